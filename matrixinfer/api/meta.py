"""What resources of every group share: metadata, conditions, durations, and the two manners of parsing.

`Owned` parses our kinds, where an unknown field is a mistake; `Foreign` parses Kubernetes' kinds, of which we read parts.
A rule that spans several fields is a `Rule` on its class: Python runs it, and the CRD carries the same rule in CEL.
Explicit nulls count as absent fields, as the API server has them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationInfo, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError, core_schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue

Manifest = dict[str, Any]
T = TypeVar("T")
# A list on the wire, immutable here. Strictness is about scalars ("80" is not a port), not about tuple against list.
Items = Annotated[tuple[T, ...], Strict(strict=False)]

RULE_BROKEN: Final = "rule_broken"  # pydantic error type of a Rule that does not hold
FIELDS_ONLY: Final = {"rules": "not checked"}  # validation context that leaves the rules to the caller

# Additions to a field's schema.
INT32: Final = {"format": "int32"}
INT64: Final = {"format": "int64"}
IMMUTABLE: Final = {"x-immutable": True}


def immutable(field: str) -> str:
    """Say that a field cannot be changed."""
    return f"{field} is immutable: delete the object and create it anew to change it"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule over several fields of one object; `holds` sees at least the fields in `reads` (Python names)."""

    message: str
    reads: tuple[str, ...]
    holds: Callable[[Any], bool]
    cel: str = ""  # the same for the API server; "" where CEL cannot say it
    blames: str = ""  # wire name of the field that the message is about; "" for the object


def _without_nulls(data: Any) -> Any:
    if isinstance(data, dict) and None in data.values():
        return {key: value for key, value in data.items() if value is not None}
    return data


class Foreign(BaseModel):
    """A part of a Kubernetes resource: fields that we do not read are passed over."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )
    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return _without_nulls(data)


class Owned(BaseModel):
    """A part of a resource of ours: unknown fields, loose types and broken rules are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
    )
    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return _without_nulls(data)

    @model_validator(mode="after")
    def _keep_rules(self, info: ValidationInfo) -> Owned:
        if info.context is FIELDS_ONLY:
            return self
        broken = [rule.message for rule in self.RULES if not rule.holds(self)]
        if broken:
            raise PydanticCustomError(RULE_BROKEN, "{problems}", {"problems": "; ".join(broken)})
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Carry the rules that CEL can say into the schema."""
        result = handler.resolve_ref_schema(handler(schema))
        said = [
            {"rule": rule.cel, "message": rule.message} | ({"fieldPath": f".{rule.blames}"} if rule.blames else {})
            for rule in cls.RULES
            if rule.cel
        ]
        return result | {"x-kubernetes-validations": said} if said else result


class OwnerReference(Foreign):
    """The object that this one belongs to (metav1.OwnerReference)."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(Foreign):
    """Metadata of an object (metav1.ObjectMeta), as far as we read it."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str = ""  # set: the object is on its way out
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    owner_references: tuple[OwnerReference, ...] = ()
    finalizers: tuple[str, ...] = ()


# Everything that metadata may hold: the fields above and those that only the API server reads.
METADATA_FIELDS: Final = frozenset(field.alias or name for name, field in ObjectMeta.model_fields.items()) | {
    "managedFields",
    "selfLink",
}


class Object(Foreign):
    """Any object at all: its kind and its metadata."""

    api_version: str = ""
    kind: str = ""
    metadata: ObjectMeta = ObjectMeta()


class Status(Owned):
    """A part of a status: we alone write it, and a newer version of ours may have written more than this one knows."""

    model_config = ConfigDict(extra="ignore")


class Condition(Status):
    """One aspect of an object's state (metav1.Condition)."""

    # It has one owner as a whole, and those of others stand beside it: to note who owns each of its fields is a third of managedFields,
    # and an eighth of what the API server does for a status.
    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    type: Annotated[
        str,
        Field(
            max_length=316,
            pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
            description="Aspect of the object that this condition is about, in CamelCase.",
        ),
    ]
    status: Annotated[
        Literal["True", "False", "Unknown"], Field(description="Whether the aspect holds: True, False or Unknown.")
    ]
    reason: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            description="Why the status is what it is: one CamelCase word for programs.",
        ),
    ]
    message: Annotated[
        str, Field(max_length=32768, description="Why the status is what it is, for people: what to change.")
    ]
    last_transition_time: Annotated[
        str, Field(json_schema_extra={"format": "date-time"}, description="When the status last changed.")
    ]
    observed_generation: Annotated[
        int | None,
        Field(
            ge=0, json_schema_extra={"format": "int64"}, description="Generation of the spec that the status is about."
        ),
    ] = None


Conditions = Annotated[
    Items[Condition],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Accepted, ResolvedRefs, Programmed and Ready: whether each holds, and what to change if not.",
    ),
]


_UNIT_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION: Final = (
    r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))*$"
)
_DURATION_LENGTH: Final = 32
_LONGEST_H: Final = 2_562_047  # Kubernetes counts nanoseconds in 63 bits


class Duration(str):
    """A span of time above zero, written as Go and Kubernetes write it: `1h30m`, `250ms`, `1.5s`.

    It is its text, so that it is written back as it came, and knows its length in `seconds`.
    """

    __slots__ = ("seconds",)
    seconds: float

    def __new__(cls, text: str) -> Self:
        """Read the text. Raises ValueError that says what to write instead."""
        if len(text) > _DURATION_LENGTH or not re.fullmatch(_DURATION, text):
            raise ValueError(
                "is not a duration: write a number and a unit (ns, us, ms, s, m, h), such as 30s, 500ms or 1h30m"
            )
        duration = super().__new__(cls, text)
        duration.seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION_PART.findall(text))
        if duration.seconds <= 0:
            raise ValueError("must be longer than zero; leave the field out to use its default")
        if duration.seconds > _LONGEST_H * _UNIT_S["h"]:
            raise ValueError(f"must be {_LONGEST_H}h at most")
        return duration

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Parse from its text, write back the same text."""

        def read(value: Any) -> Duration:
            try:
                return value if isinstance(value, Duration) else cls(value if isinstance(value, str) else "")
            except ValueError as error:
                raise PydanticCustomError("duration", "{problem}", {"problem": str(error)}) from None

        return core_schema.no_info_plain_validator_function(
            read,
            serialization=core_schema.plain_serializer_function_ser_schema(str, return_schema=core_schema.str_schema()),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Give what the CRD says of it."""
        return {
            "type": "string",
            "maxLength": _DURATION_LENGTH,
            "pattern": _DURATION,
            "x-kubernetes-validations": [
                {"rule": "duration(self) > duration('0s')", "message": "must be longer than zero"}
            ],
        }


def _number_or_name(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("int_or_string", "must be a number or a name")
    return value


IntOrString = Annotated[int | str, BeforeValidator(_number_or_name)]
