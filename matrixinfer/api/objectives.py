"""`llm-d.ai/v1alpha2`: InferenceObjective, by which a request says how urgent it is. Its older group has the same fields.

The kind is llm-d's, and so is its CRD; nobody here writes its status. The pools that it is for are ModelServers of its own
namespace here: a reference to an InferencePool means the ModelServer of that name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from pydantic import ConfigDict, Field

from matrixinfer.api import kinds
from matrixinfer.api.meta import Items, ObjectMeta, Owned, Rule
from matrixinfer.api.names import LabelKey, LabelValue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Labels = dict[LabelKey, LabelValue]
_MOST: Final = 2**31 - 1  # the wire's int32
_POOL: Final = "InferencePool"
_POOL_GROUPS: Final = (kinds.OBJECTIVES_GROUP, "inference.networking.k8s.io", kinds.OLD_OBJECTIVES_GROUP)


class PoolReference(Owned):
    """A pool of the objective's own namespace."""

    group: Annotated[
        str | None,
        Field(
            max_length=253,
            pattern=r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
            description="API group of the pool. Left out: that of InferencePools.",
        ),
    ] = None
    kind: Annotated[
        str,
        Field(
            min_length=1,
            max_length=63,
            pattern=r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$",
            description="Kind of the pool: InferencePool, or ModelServer.",
        ),
    ] = _POOL
    name: Annotated[str, Field(min_length=1, max_length=253, description="Its name.")]

    @property
    def server(self) -> str | None:
        """Name of the ModelServer that is meant; None if the reference is to something else."""
        if self.kind == _POOL and (self.group is None or self.group in _POOL_GROUPS):
            return self.name
        if (self.group, self.kind) == (kinds.NETWORKING_GROUP, kinds.MODEL_SERVER.kind):
            return self.name
        return None


class Requirement(Owned):
    """One condition on the labels of a pool (metav1.LabelSelectorRequirement)."""

    RULES: ClassVar = (
        Rule(
            "In and NotIn need values, Exists and DoesNotExist take none",
            ("operator", "values"),
            lambda one: bool(one.values) == (one.operator in ("In", "NotIn")),
        ),
    )
    key: Annotated[LabelKey, Field(description="The label that it is about.")]
    operator: Annotated[Literal["In", "NotIn", "Exists", "DoesNotExist"], Field(description="What has to hold of it.")]
    values: Annotated[Items[LabelValue], Field(description="With In and NotIn: the values.")] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Tell whether labels meet the condition; a label that is not there is in no list."""
        if self.operator == "In":
            return labels.get(self.key) in self.values
        if self.operator == "NotIn":
            return labels.get(self.key) not in self.values
        return (self.key in labels) == (self.operator == "Exists")


class PoolSelector(Owned):
    """Pools by their labels (metav1.LabelSelector); without any condition, every pool of the namespace."""

    match_labels: Annotated[Labels, Field(default_factory=dict, description="Labels that a pool must carry.")]
    match_expressions: Annotated[Items[Requirement], Field(description="Conditions that must hold as well.")] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Tell whether a pool with these labels is meant."""
        return self.match_labels.items() <= labels.items() and all(one.holds(labels) for one in self.match_expressions)


class InferenceObjectiveSpec(Owned):
    """How urgent requests are that name the objective, and at which pools."""

    RULES: ClassVar = (
        Rule(
            "say which pools it is for: poolRef, poolRefs or poolSelector",
            ("pool_ref", "pool_refs", "pool_selector"),
            lambda spec: spec.pool_ref is not None or bool(spec.pool_refs) or spec.pool_selector is not None,
        ),
    )
    priority: Annotated[
        int | None,
        Field(
            ge=-_MOST - 1,
            le=_MOST,
            description="Higher ones go first; below 0, a request may be refused where it would wait. Left out: 0.",
        ),
    ] = None
    pool_ref: Annotated[PoolReference | None, Field(description="The pool that it is for.")] = None
    pool_refs: Annotated[Items[PoolReference], Field(min_length=1, description="Further ones.")] = ()
    pool_selector: Annotated[PoolSelector | None, Field(description="Further ones, by their labels.")] = None

    def references(self) -> Iterator[tuple[tuple[str | int, ...], PoolReference]]:
        """Give every reference, with the field that it stands in."""
        if self.pool_ref is not None:
            yield ("poolRef",), self.pool_ref
        for index, one in enumerate(self.pool_refs):
            yield ("poolRefs", index), one


class InferenceObjective(Owned):
    """InferenceObjective says how urgent requests are that name it."""

    model_config = ConfigDict(title="InferenceObjective")

    api_version: Literal["llm-d.ai/v1alpha2", "inference.networking.x-k8s.io/v1alpha2"] = "llm-d.ai/v1alpha2"
    kind: Literal["InferenceObjective"] = "InferenceObjective"
    metadata: ObjectMeta
    spec: Annotated[InferenceObjectiveSpec, Field(description="What is wanted.")]
    status: Any = None  # others' words, whatever they are

    @property
    def priority(self) -> int:
        """The priority of requests that name it."""
        return self.spec.priority or 0
