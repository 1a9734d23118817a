"""A role of a group: what one entry pod and its workers run, and how many instances there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from pydantic import Field, WithJsonSchema

from matrixinfer.api.core import PodSpec  # noqa: TC001 - pydantic reads the annotation
from matrixinfer.api.meta import INT32, Owned, Rule
from matrixinfer.api.workload.amounts import Amount, is_zero, resolve_down
from matrixinfer.api.workload.names import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from matrixinfer.api.core import Container

_MOST_REPLICAS: Final = 1_000_000
_MOST_WORKERS: Final = 1000
_STRINGS: Final = {"additionalProperties": {"type": "string", "maxLength": 262144}}
_POD_SPEC: Final = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_OURS: Final = f"labels and annotations that begin with {PREFIX} are set by the controller: choose other keys"


class TemplateMetadata(Owned):
    """What the pods carry besides what the controller gives them."""

    RULES: ClassVar = (
        Rule(
            _OURS,
            ("labels", "annotations"),
            lambda meta: not any(key.startswith(PREFIX) for key in (*meta.labels, *meta.annotations)),
            cel=" && ".join(
                f"(!has(self.{field}) || !self.{field}.exists(key, key.startsWith('{PREFIX}')))"
                for field in ("labels", "annotations")
            ),
        ),
    )
    labels: Annotated[
        dict[str, str], Field(max_length=64, json_schema_extra=_STRINGS, description="Labels of the pods.")
    ] = Field(default_factory=dict)
    annotations: Annotated[
        dict[str, str], Field(max_length=64, json_schema_extra=_STRINGS, description="Annotations of the pods.")
    ] = Field(default_factory=dict)


class PodTemplate(Owned):
    """What a pod runs."""

    RULES: ClassVar = (
        Rule(
            "an image must not contain spaces",
            ("spec",),
            lambda template: not any(set(" \t\n") & set(one.image) for one in _containers(template.spec)),
            blames="spec",
        ),
        Rule(
            "a container sets the same environment variable twice: remove one of them",
            ("spec",),
            lambda template: all(_unique(env.name for env in one.env) for one in _containers(template.spec)),
            blames="spec",
        ),
        Rule(
            "a container names the same port and protocol twice: remove one of them",
            ("spec",),
            lambda template: all(
                _unique(f"{port.container_port}/{port.protocol}" for port in one.ports)
                for one in _containers(template.spec)
            ),
            blames="spec",
        ),
    )
    metadata: Annotated[TemplateMetadata, Field(description="Labels and annotations of the pods.")] = TemplateMetadata()
    spec: Annotated[
        PodSpec,
        WithJsonSchema(_POD_SPEC),
        Field(description="Specification of the pods, as in any Pod (core/v1 PodSpec)."),
    ]


class Role(Owned):
    """One role of a group, such as prefill or decode. An instance of it is one entry pod and its workers."""

    RULES: ClassVar = (
        Rule(
            "is required while workerReplicas is more than 0",
            ("worker_replicas", "worker_template"),
            lambda role: not role.worker_replicas or role.worker_template is not None,
            cel="self.workerReplicas == 0 || has(self.workerTemplate)",
            blames="workerTemplate",
        ),
        Rule(
            "maxUnavailable and maxSurge must not both be 0: nothing could ever be replaced",
            ("max_unavailable", "max_surge"),
            lambda role: not (is_zero(role.max_unavailable) and is_zero(role.max_surge)),
            blames="maxUnavailable",
        ),
        Rule(
            "must not be more than the role's replicas",
            ("max_unavailable", "replicas"),
            lambda role: role.replicas == 0 or resolve_down(role.max_unavailable, role.replicas) <= role.replicas,
            blames="maxUnavailable",
        ),
    )
    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=12,
            pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
            description="Name of the role: lower case letters, digits and '-', beginning with a letter.",
        ),
    ]
    replicas: Annotated[
        int,
        Field(ge=0, le=_MOST_REPLICAS, json_schema_extra=INT32, description="Instances of the role in each group."),
    ] = 1
    entry_template: Annotated[PodTemplate, Field(description="The pod of an instance that requests go to.")]
    worker_replicas: Annotated[
        int,
        Field(ge=0, le=_MOST_WORKERS, json_schema_extra=INT32, description="Worker pods beside each entry pod."),
    ]
    worker_template: Annotated[
        PodTemplate | None,
        Field(
            description="The worker pods. Set, each instance has a headless Service of the entry pod's name, so that "
            "ENTRY_ADDRESS resolves."
        ),
    ] = None
    max_unavailable: Annotated[
        Amount,
        Field(
            description="Instances of a group that may be missing in a RoleRollingUpdate: a number, or a share of the "
            "replicas, rounded down but at least 1 while maxSurge is 0."
        ),
    ] = 1
    max_surge: Annotated[
        Amount,
        Field(
            description="Instances beyond `replicas` in a RoleRollingUpdate: a number, or a share of the replicas, "
            "rounded up."
        ),
    ] = 0
    partition: Annotated[
        Amount | None,
        Field(
            description="Instances that a RoleRollingUpdate leaves at their revision, the lowest indexes first: a number, "
            "or a share of the replicas, rounded up."
        ),
    ] = None


def _containers(spec: PodSpec) -> Iterator[Container]:
    yield from spec.init_containers
    yield from spec.containers


def _unique(names: Iterable[str]) -> bool:
    listed = list(names)
    return len(set(listed)) == len(listed)
