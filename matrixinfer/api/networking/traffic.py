"""What a ModelRoute says of its requests beside where they go: who stays where, who gets a copy, how long, how often."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from matrixinfer.api.meta import INT32, Duration, Owned, Rule
from matrixinfer.api.networking.model_server import Retry  # noqa: TC001 - pydantic reads it at run time

TOKEN = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"  # noqa: S105 - a word of HTTP, as RFC 9110 calls it


class StickyBy(Owned):
    """What of a request decides its target, in place of chance."""

    RULES: ClassVar = (
        Rule(
            "set exactly one of header, cookie and caller",
            ("header", "cookie", "caller"),
            lambda sticky: sum(way is not None for way in (sticky.header, sticky.cookie, sticky.caller)) == 1,
            cel="[has(self.header), has(self.cookie), has(self.caller)].filter(set, set).size() == 1",
        ),
    )
    header: Annotated[
        str | None,
        Field(max_length=256, pattern=TOKEN, description="A header, in any case: requests of one value stay together."),
    ] = None
    cookie: Annotated[
        str | None,
        Field(max_length=256, pattern=TOKEN, description="A cookie: requests of one value stay together."),
    ] = None
    caller: Annotated[
        Literal["Tenant", "APIKey"] | None,
        Field(description="Who asks, as an AccessPolicy found: the tenant, or the single API key."),
    ] = None


class Mirror(Owned):
    """A ModelServer that gets copies of requests; its answers are thrown away."""

    model_server_name: Annotated[
        str, Field(min_length=1, max_length=253, description="A ModelServer in the namespace of the route.")
    ]
    percent: Annotated[
        int,
        Field(ge=1, le=100, json_schema_extra=INT32, description="Share of the rule's requests that are copied."),
    ] = 100


class RouteTrafficPolicy(Owned):
    """Limits on the time and the number of tries of a route's requests; what is left out is the ModelServer's."""

    timeout: Annotated[
        Duration | None,
        Field(description="Longest time until the answer begins (its headers), for each try."),
    ] = None
    idle_timeout: Annotated[
        Duration | None,
        Field(
            description="Longest silence in a streamed answer, the wait for its first token included. A plain answer comes "
            "at once and has no silence. Left out: the gateway's own, 15 minutes."
        ),
    ] = None
    retry: Annotated[Retry | None, Field(description="Retries, in place of the ModelServer's.")] = None
