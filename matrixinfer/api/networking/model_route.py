"""ModelRoute: which requests are for a model, and which ModelServers answer them."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from matrixinfer.api import expressions
from matrixinfer.api.meta import IMMUTABLE, INT32, INT64, Conditions, Items, ObjectMeta, Owned, Rule, Status
from matrixinfer.api.networking.handling import Handling, handling
from matrixinfer.api.networking.rate_limit import RateLimit  # noqa: TC001 - pydantic reads it at run time
from matrixinfer.api.networking.traffic import (  # noqa: TC001 - as above
    Mirror,
    RouteTrafficPolicy,
    StickyBy,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_WEIGHT: Final = 100
_PORT_MAX: Final = 65535


def _re2(text: str) -> str:
    try:
        expressions.compile_expression(text)
    except expressions.ExpressionError as error:
        raise PydanticCustomError(
            "re2",
            "is not a regular expression of RE2, which has no lookaround and no backreferences: {problem}",
            {"problem": str(error)},
        ) from None
    return text


class StringMatch(Owned):
    """A condition on a string: one of three ways to match it. With none of them, anything matches."""

    RULES: ClassVar = (
        Rule(
            "set only one of exact, prefix and regex",
            ("exact", "prefix", "regex"),
            lambda match: sum(way is not None for way in (match.exact, match.prefix, match.regex)) <= 1,
            cel="[has(self.exact), has(self.prefix), has(self.regex)].filter(set, set).size() <= 1",
        ),
    )
    exact: Annotated[str | None, Field(max_length=1024, description="The whole value.")] = None
    prefix: Annotated[str | None, Field(max_length=1024, description="What the value begins with.")] = None
    regex: Annotated[
        str | None,
        Field(
            max_length=1024,
            json_schema_extra={
                "x-kubernetes-validations": [
                    {"rule": "''.matches(self) ? true : true", "message": "must be a regular expression of RE2"}
                ]
            },
            description="A regular expression that occurs in the value (RE2 syntax, not anchored: write ^ and $ to match "
            "all of it). RE2 has no lookaround and no backreferences.",
        ),
        AfterValidator(lambda value: value if value is None else _re2(value)),
    ] = None

    def matches(self, value: str) -> bool:
        """Tell whether `value` fulfils the condition."""
        if self.exact is not None:
            return value == self.exact
        if self.prefix is not None:
            return value.startswith(self.prefix)
        return self.regex is None or expressions.occurs(self.regex, value)


_HEADER_NAME: Final = r"^[A-Za-z0-9!#$%&*+.^_|~-]+$"


def _header_name(name: str) -> str:
    if not re.fullmatch(_HEADER_NAME, name):
        raise PydanticCustomError("header_name", "is not a header name: write letters, digits and '-'")
    return name


HeaderName = Annotated[str, AfterValidator(_header_name)]


class BodyMatch(Owned):
    """Conditions on the request's body."""

    model: Annotated[str | None, Field(max_length=256, description="The value of `model`, exactly.")] = None


class ModelMatch(Owned):
    """Conditions on a request; all that are set must hold."""

    headers: Annotated[
        dict[HeaderName, StringMatch],
        Field(
            max_length=16,
            json_schema_extra={
                "x-kubernetes-validations": [
                    {
                        "rule": f"self.all(name, name.matches(r'{_HEADER_NAME}'))",
                        "message": "every key must be a header name: letters, digits and '-'",
                    }
                ]
            },
            description="Conditions on headers by name, in any case; all must hold. A header that is missing counts as "
            "empty.",
        ),
    ] = Field(default_factory=dict)
    uri: Annotated[StringMatch | None, Field(description="Condition on the path of the URL, without the query.")] = None
    body: Annotated[BodyMatch | None, Field(description="Conditions on the body.")] = None

    def matches(self, *, headers: Mapping[str, str], path: str, model: str) -> bool:
        """Tell whether a request matches; names in `headers` are lower case, `path` has no query."""
        if self.body is not None and self.body.model is not None and self.body.model != model:
            return False
        if self.uri is not None and not self.uri.matches(path):
            return False
        return all(match.matches(headers.get(name.lower(), "")) for name, match in self.headers.items())


class TargetModel(Owned):
    """One destination of a rule."""

    RULES: ClassVar = (
        Rule(
            "exactly one of modelServerName or externalModelProviderName must be set",
            ("model_server_name", "external_model_provider_name"),
            lambda target: (target.model_server_name is None) != (target.external_model_provider_name is None),
            cel="has(self.modelServerName) != has(self.externalModelProviderName)",
        ),
    )
    model_server_name: Annotated[
        str | None,
        Field(min_length=1, max_length=253, description="A ModelServer in the namespace of the route."),
    ] = None
    external_model_provider_name: Annotated[
        str | None,
        Field(min_length=1, max_length=253, description="An ExternalModelProvider in the namespace of the route."),
    ] = None
    weight: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            json_schema_extra=INT32,
            description="Share of the rule's requests, relative to the weights of its other targets. 0 takes none.",
        ),
    ] = DEFAULT_WEIGHT
    overflow: Annotated[
        bool,
        Field(
            description="Take no share, but what the other targets cannot: requests for which none of them has an endpoint "
            "that is ready, or all endpoints are saturated, or that have failed at all of them before an answer began."
        ),
    ] = False


class RouteRule(Owned):
    """Where requests go that match."""

    RULES: ClassVar = (
        Rule(
            "overflow of what? a rule needs a target without it",
            ("target_models",),
            lambda rule: any(not target.overflow for target in rule.target_models),
            cel="self.targetModels.exists(target, !has(target.overflow) || !target.overflow)",
            blames="targetModels",
        ),
        Rule(
            "at least one target needs a weight above 0",
            ("target_models",),
            lambda rule: any(target.weight > 0 for target in rule.target_models),
            cel="self.targetModels.exists(target, target.weight > 0)",
            blames="targetModels",
        ),
        Rule(
            "must not mirror to the same ModelServer twice",
            ("mirrors",),
            lambda rule: len({mirror.model_server_name for mirror in rule.mirrors}) == len(rule.mirrors),
            cel="!has(self.mirrors) || self.mirrors.all(one, self.mirrors.exists_one(other, "
            "other.modelServerName == one.modelServerName))",
            blames="mirrors",
        ),
    )
    name: Annotated[str, Field(max_length=253, description="A name for people, logs and metrics.")] = ""
    model_match: Annotated[
        ModelMatch | None, Field(description="Which requests the rule is for; left out, all of the route's.")
    ] = None
    target_models: Annotated[
        Items[TargetModel],
        Field(min_length=1, max_length=16, description="Destinations, chosen at random by weight."),
    ]
    sticky_by: Annotated[
        StickyBy | None,
        Field(
            description="Choose the target by a hash of this value instead of at random: requests with one value have one "
            "target as long as that has an endpoint that is ready. A request without the value is drawn."
        ),
    ] = None
    mirrors: Annotated[
        Items[Mirror],
        Field(max_length=4, description="ModelServers that get copies of the requests; clients see nothing of them."),
    ] = ()


class ParentReference(Owned):
    """A Gateway that serves the route (Gateway API ParentReference)."""

    group: Annotated[
        str,
        Field(
            max_length=253,
            pattern=r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
            description="API group of the parent.",
        ),
    ] = "gateway.networking.k8s.io"
    kind: Annotated[
        str,
        Field(
            min_length=1,
            max_length=63,
            pattern=r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$",
            description="Kind of the parent.",
        ),
    ] = "Gateway"
    namespace: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=63,
            pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
            description="Namespace of the parent; left out, that of the route.",
        ),
    ] = None
    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the parent.")]
    section_name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=253,
            pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
            description="Listener of the Gateway; left out, all of them.",
        ),
    ] = None
    port: Annotated[
        int | None,
        Field(ge=1, le=_PORT_MAX, json_schema_extra=INT32, description="Port of the listeners; left out, all of them."),
    ] = None


class ModelRouteSpec(Owned):
    """A model name (or LoRA adapters) as clients write it, and where requests for it go."""

    RULES: ClassVar = (
        Rule(
            "modelName and loraAdapters cannot both be empty",
            ("model_name", "lora_adapters"),
            lambda spec: bool(spec.model_name or spec.lora_adapters),
            cel="self.modelName != '' || (has(self.loraAdapters) && size(self.loraAdapters) > 0)",
        ),
        Rule(
            "must not name the same adapter twice",
            ("lora_adapters",),
            lambda spec: len(set(spec.lora_adapters)) == len(spec.lora_adapters),
            blames="loraAdapters",
        ),
        Rule(
            "a route with loraAdapters can only target ModelServers: use modelServerName in every target",
            ("lora_adapters", "rules"),
            lambda spec: (
                not spec.lora_adapters
                or all(target.model_server_name is not None for rule in spec.rules for target in rule.target_models)
            ),
            cel="!has(self.loraAdapters) || size(self.loraAdapters) == 0 || "
            "self.rules.all(rule, rule.targetModels.all(target, has(target.modelServerName)))",
            blames="rules",
        ),
    )
    model_name: Annotated[
        str,
        Field(
            max_length=256,
            json_schema_extra=IMMUTABLE,
            description="The value of `model` in requests that this route is for. It cannot be changed later.",
        ),
    ] = ""
    lora_adapters: Annotated[
        Items[Annotated[str, Field(min_length=1, max_length=256)]],
        Field(
            max_length=10,
            json_schema_extra={"x-kubernetes-list-type": "set"},
            description="Names of LoRA adapters that this route is for as well, as clients write them in `model`.",
        ),
    ] = ()
    parent_refs: Annotated[
        Items[ParentReference],
        Field(
            max_length=32,
            description="Gateways that serve the route; left out, those of the route's namespace.",
        ),
    ] = ()
    rules: Annotated[
        Items[RouteRule],
        Field(min_length=1, max_length=16, description="Tried in order; the first that matches decides."),
    ]
    rate_limit: Annotated[RateLimit | None, Field(description="Token limits of the model.")] = None
    traffic_policy: Annotated[
        RouteTrafficPolicy | None,
        Field(description="Times and tries of requests to the route's ModelServers; what is left out is as these say."),
    ] = None

    def match(self, *, headers: Mapping[str, str], path: str, model: str) -> RouteRule | None:
        """Give the first rule that matches; names in `headers` are lower case, `path` has no query."""
        for rule in self.rules:
            if rule.model_match is None or rule.model_match.matches(headers=headers, path=path, model=model):
                return rule
        return None


class ModelRouteStatus(Status):
    """What the controllers found."""

    observed_generation: Annotated[
        int, Field(ge=0, json_schema_extra=INT64, description="Generation of the spec that this status is about.")
    ] = 0
    conditions: Conditions = ()


class ModelRoute(Owned):
    """ModelRoute says where requests for a model (or for LoRA adapters) go."""

    model_config = ConfigDict(title="ModelRoute")

    api_version: Literal["networking.matrixinfer.ai/v1alpha1"] = "networking.matrixinfer.ai/v1alpha1"
    kind: Literal["ModelRoute"] = "ModelRoute"
    metadata: ObjectMeta
    spec: Annotated[ModelRouteSpec, Field(description="What is wanted.")]
    status: Annotated[ModelRouteStatus | None, Field(description="What is.")] = None

    @cached_property
    def handlings(self) -> tuple[Handling | None, ...]:
        """How requests of each rule are handled; made once, as it is asked for at every change of anything."""
        return tuple(handling(self.metadata.namespace, self.spec, rule) for rule in self.spec.rules)
