"""Limits of a ModelRoute: how many requests and tokens it takes in a unit of time, in all and from each caller."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from matrixinfer.api.meta import INT64, Items, Owned, Rule

_UINT32_MAX: Final = 2**32 - 1
UNIT_S: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "month": 30 * 86_400}

_Unit = Literal["second", "minute", "hour", "day", "month"]


class Redis(Owned):
    """A Redis server."""

    address: Annotated[
        str,
        Field(
            min_length=1,
            max_length=300,
            pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?):[0-9]{1,5}$",
            description="Where it listens, `host:port`.",
        ),
    ]


class GlobalRateLimit(Owned):
    """Counting across gateway pods."""

    redis: Annotated[Redis, Field(description="The server that counts.")]


class Amounts(Owned):
    """What may be asked in a unit of time."""

    requests_per_unit: Annotated[
        int | None,
        Field(ge=1, le=_UINT32_MAX, json_schema_extra=INT64, description="Requests per unit; left out, no limit."),
    ] = None
    input_tokens_per_unit: Annotated[
        int | None,
        Field(ge=1, le=_UINT32_MAX, json_schema_extra=INT64, description="Prompt tokens per unit; left out, no limit."),
    ] = None
    output_tokens_per_unit: Annotated[
        int | None,
        Field(
            ge=1, le=_UINT32_MAX, json_schema_extra=INT64, description="Generated tokens per unit; left out, no limit."
        ),
    ] = None
    unit: Annotated[_Unit, Field(description="The unit of time; a month is 30 days.")] = "second"
    shadow: Annotated[
        bool,
        Field(description="Count what would be refused, and refuse nothing: to try a limit before it is in force."),
    ] = False


class CallerRateLimit(Amounts):
    """What one caller may ask of a route in a unit of time."""

    RULES: ClassVar = (
        Rule(
            "set at least one of requestsPerUnit, inputTokensPerUnit and outputTokensPerUnit",
            ("requests_per_unit", "input_tokens_per_unit", "output_tokens_per_unit"),
            lambda limit: (
                limit.requests_per_unit is not None
                or limit.input_tokens_per_unit is not None
                or limit.output_tokens_per_unit is not None
            ),
            cel="has(self.requestsPerUnit) || has(self.inputTokensPerUnit) || has(self.outputTokensPerUnit)",
        ),
    )
    name: Annotated[
        str,
        Field(
            max_length=253,
            description="The caller. Left out, every caller that no other entry names, each counted for itself.",
        ),
    ] = ""


class RateLimit(Amounts):
    """How many requests and tokens a model may be sent, and may answer, in a unit of time."""

    RULES: ClassVar = (
        Rule(
            "must not name the same tenant twice",
            ("tenants",),
            lambda limit: len({caller.name for caller in limit.tenants}) == len(limit.tenants),
            blames="tenants",
        ),
        Rule(
            "must not name the same API key twice",
            ("keys",),
            lambda limit: len({caller.name for caller in limit.keys}) == len(limit.keys),
            blames="keys",
        ),
    )
    tenants: Annotated[
        Items[CallerRateLimit],
        Field(
            max_length=64,
            description="Limits of tenants, beside those of the route, on requests whose tenant is known.",
        ),
    ] = ()
    keys: Annotated[
        Items[CallerRateLimit],
        Field(max_length=64, description="Limits of API keys by their names, on requests whose key is known."),
    ] = ()
    global_: Annotated[
        GlobalRateLimit | None,
        Field(alias="global", description="One limit for all gateway pods; left out, each counts for itself."),
    ] = None
