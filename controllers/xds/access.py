"""Who may: AccessPolicies in Envoy's own filters, before the body is read and before the picker is asked.

    jwt_authn, api_key_auth   check what a request shows; what is wrong is refused, what is missing passes on
    header_to_metadata        the tenant becomes metadata, which no client can send
    rbac (entry)              whoever has to be known for anything, and is not, is refused
    model                     the model's name out of the body, into a header (only if models differ in who may use them)
    rbac (models)             who may use which

The filters are always in the chain, so that no policy, not the first one either, renews a listener and closes connections.
They are switched on by the routes (`per_route`), with which keys and rules travel, too; but for `entry`, which refuses
everything until routes switch it off or say more: a gap in configuration opens no door. What tokens are checked by, and what
is taken for one, is configuration that Envoy fetches by itself (`discovered`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutation
from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    ExtensionConfigSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    HttpUri,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.rbac.v3 import Policy, RbacAction
from envoy_data_plane.envoy.config.rbac.v3 import Rbac as Rules
from envoy_data_plane.envoy.config.route.v3 import FilterConfig, RouteMatch
from envoy_data_plane.envoy.extensions.common.matching.v3 import ExtensionWithMatcher
from envoy_data_plane.envoy.extensions.filters.common.matcher.action.v3 import SkipFilter
from envoy_data_plane.envoy.extensions.filters.http.api_key_auth.v3 import (
    ApiKeyAuth,
    ApiKeyAuthPerRoute,
    Credential,
    Forwarding,
    KeySource,
)
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import (
    HeaderMutation as HeaderMutationFilter,
)
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import Mutations
from envoy_data_plane.envoy.extensions.filters.http.header_to_metadata.v3 import (
    Config,
    ConfigKeyValuePair,
    ConfigRule,
)
from envoy_data_plane.envoy.extensions.filters.http.jwt_authn.v3 import (
    JwksAsyncFetch,
    JwtAuthentication,
    JwtClaimToHeader,
    JwtHeader,
    JwtProvider,
    JwtProviderNormalizePayload,
    JwtRequirement,
    JwtRequirementOrList,
    RemoteJwks,
    RequirementRule,
)
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import LuaPerRoute
from envoy_data_plane.envoy.extensions.filters.http.rbac.v3 import Rbac, RbacPerRoute
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.type.matcher.v3 import HttpRequestHeaderMatchInput, RegexMatchAndSubstitute, RegexMatcher
from envoy_data_plane.google.protobuf import Any, Empty
from envoy_data_plane.xds.type.matcher.v3 import (
    Matcher,
    MatcherMatcherList,
    MatcherMatcherListFieldMatcher,
    MatcherMatcherListPredicate,
    MatcherMatcherListPredicatePredicateList,
    MatcherMatcherListPredicateSinglePredicate,
    MatcherOnMatch,
)
from envoy_data_plane.xds.type.matcher.v3 import RegexMatcher as XdsRegexMatcher
from envoy_data_plane.xds.type.matcher.v3 import RegexMatcherGoogleRe2 as XdsRegexMatcherGoogleRe2
from envoy_data_plane.xds.type.matcher.v3 import StringMatcher as XdsStringMatcher

from controllers import ir
from controllers.xds import principals
from controllers.xds.clusters import ads
from controllers.xds.typed import extension, packed, xds_extension
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Iterable

    from betterproto2 import Message

JWT: Final = "matrixinfer.jwt"
KEYS: Final = "matrixinfer.keys"
CERTIFICATE: Final = "matrixinfer.certificate"
IDENTITY: Final = "matrixinfer.identity"
ENTRY: Final = "matrixinfer.entry"
MODELS: Final = "matrixinfer.models"
LISTING: Final = "matrixinfer.listing"
EARLY: Final = "early/"

AUTHORIZATION: Final = "authorization"
API_KEY: Final = "x-api-key"
TENANT_HEADER: Final = "x-matrixinfer-tenant"  # between our filters only: removed at the door, and again by `_identity`
CLIENT_HEADER: Final = "x-matrixinfer-client"
CERTIFICATE_HEADER: Final = "x-matrixinfer-certificate"
LISTED: Final = "/v1/models"

# Names of the rules, by which replies know what was missing.
ANONYMOUS: Final = "anonymous"
FORBIDDEN: Final = "forbidden"
NAMELESS: Final = "nameless"
STARTING: Final = "starting"

_SIGNED: Final = r"(?i:bearer) +[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"  # what is a token rather than a key


def by_model(access: ir.Access) -> bool:
    """Tell whether models differ in who may use them, so that the body has to be read first."""
    return any(grants != access.otherwise for _, grants in access.models)


def before() -> list[HttpFilter]:
    """Write the filters that find out who asks."""
    # Whoever shows something else beside the certificate is known by that.
    named = _any(_header(TENANT_HEADER, ".+"), _header(CLIENT_HEADER, ".+"))
    return [
        _discovered(KEYS),
        _discovered(JWT),
        switched(CERTIFICATE, _skip(named, CERTIFICATE, _certificate())),
        switched(IDENTITY, _identity()),
        HttpFilter(name=ENTRY, typed_config=packed(_closed())),
    ]


def after() -> HttpFilter:
    """Write the filter that decides by the model's name, which a filter before it has read."""
    return switched(MODELS, _closed())


def listing(lua: Message) -> HttpFilter:
    """Write the filter that tells the picker which names to list."""
    return switched(LISTING, _skip(_unless_header(":path", LISTED + ".*"), LISTING, lua))


def switched(name: str, message: Message) -> HttpFilter:
    """Write a filter that only runs where routes switch it on."""
    return HttpFilter(name=name, typed_config=packed(message), disabled=True)


def discovered(name: str, access: ir.Access | None) -> TypedExtensionConfig:
    """Write the configuration of a filter that Envoy fetches by itself."""
    if access is None:
        access = _NOBODY
    if name == KEYS:
        return extension(name, _skip(_no_key(access), KEYS, _keys(access)))
    tokens = _tokens(access)
    return extension(name, _skip(_unless_header(AUTHORIZATION, _SIGNED), JWT, tokens) if access.takes_keys else tokens)


def readers(gateway: ir.Gateway) -> tuple[str, ...]:
    """Name the filters that read the model's name; those of the same name behind EARLY do so before the picker is asked."""
    return ("matrixinfer.model",) if gateway.module else ("matrixinfer.model", "matrixinfer.model_header")


def per_route(gateway: ir.Gateway, access: ir.Access | None) -> dict[str, Any]:
    """Write what comes with the routes: which filters run, and how."""
    if access is None:
        return {ENTRY: packed(FilterConfig(disabled=True))}
    found: dict[str, Message] = {
        IDENTITY: _ON,
        ENTRY: RbacPerRoute(rbac=Rbac(rules=_entry(access))),
        LISTING: LuaPerRoute(filter_context=principals.table(access)),
    }
    if access.issuers:
        found[JWT] = _ON
    if access.certificates:
        found[CERTIFICATE] = _ON
    if by_model(access):
        names = readers(gateway)
        found |= {EARLY + name: _ON for name in names}
        if gateway.picker.fail_open:
            found |= dict.fromkeys(names, FilterConfig(disabled=True))
        found[MODELS] = RbacPerRoute(rbac=Rbac(rules=_models(access)))
    if access.takes_keys:
        found[KEYS] = ApiKeyAuthPerRoute(
            credentials=[
                Credential(key=one.key, client=f",{','.join(one.policies)},|{one.client}") for one in access.keys
            ],
            forwarding=_forwarding(access),
        )
    return {name: packed(message) for name, message in found.items()}


def removed(access: ir.Access) -> list[str]:
    """List what engines do not see beside the credential that was used."""
    return [] if access.forward_keys else [API_KEY]


def visible(access: ir.Access, names: Iterable[str]) -> tuple[str, ...]:
    """Say what may be listed without knowing who asks: what everybody may use that got so far."""
    grants = dict(access.models)
    known = None if access.otherwise is None else tuple(one for one in access.otherwise if not one.tenants)
    return tuple(
        name
        for name in names
        if (of := grants.get(name, access.otherwise)) is None
        or (of == access.otherwise and known and not any(one.claims for one in known))
    )


def jwks_cluster(url: str) -> str:
    """Name the cluster behind which an issuer's keys are fetched."""
    return f"jwks/{urlsplit(url).scheme}/{urlsplit(url).netloc}"


def _discovered(name: str) -> HttpFilter:
    source = ExtensionConfigSource(config_source=ads(), type_urls=[f"{_TYPES}.{one}" for one in _DISCOVERED])
    return HttpFilter(name=name, config_discovery=source, disabled=True)


def _tokens(access: ir.Access) -> JwtAuthentication:
    providers = {one.issuer: _provider(one) for one in access.issuers}
    if not providers:
        return JwtAuthentication()
    either = [JwtRequirement(provider_name=name) for name in providers]
    return JwtAuthentication(
        providers=providers,
        rules=[
            RequirementRule(
                match=RouteMatch(prefix="/"),
                requires=JwtRequirement(
                    requires_any=JwtRequirementOrList(requirements=[*either, JwtRequirement(allow_missing=Empty())])
                ),
            )
        ],
    )


def _provider(issuer: ir.Issuer) -> JwtProvider:
    jwks = issuer.jwks
    remote = local = None
    if jwks.url:
        remote = RemoteJwks(
            http_uri=HttpUri(uri=jwks.url, cluster=jwks_cluster(jwks.url), timeout=timedelta(seconds=5)),
            cache_duration=timedelta(seconds=jwks.cache_s),
            # Fetched ahead of the first token; a server that is away holds up tokens, and nothing else.
            async_fetch=JwksAsyncFetch(fast_listener=True, failed_refetch_duration=timedelta(seconds=1)),
        )
    elif jwks.file:
        local = DataSource(filename=jwks.file)
    else:
        local = DataSource(inline_string=jwks.inline)
    return JwtProvider(
        issuer=issuer.issuer,
        require_expiration=True,
        remote_jwks=remote,
        local_jwks=local,
        forward=issuer.forward,
        from_headers=[JwtHeader(name=AUTHORIZATION, value_prefix="Bearer ")],
        payload_in_metadata=issuer.issuer,
        normalize_payload_in_metadata=JwtProviderNormalizePayload(space_delimited_claims=["scope"]),
        claim_to_headers=[JwtClaimToHeader(header_name=TENANT_HEADER, claim_name=issuer.tenant_claim)],
        clock_skew_seconds=30,
    )


def _keys(access: ir.Access) -> ApiKeyAuth:
    return ApiKeyAuth(
        key_sources=[KeySource(header=AUTHORIZATION), KeySource(header=API_KEY)],
        forwarding=_forwarding(access),
    )


def _forwarding(access: ir.Access) -> Forwarding:
    return Forwarding(header=CLIENT_HEADER, hide_credentials=not access.forward_keys)


def _no_key(access: ir.Access) -> MatcherMatcherListPredicate:
    """Hold where there is no key to check: nothing is shown, or a token is."""
    nothing = _all(_unless_header(AUTHORIZATION, "(?s).+"), _unless_header(API_KEY, "(?s).+"))
    if not access.issuers:
        return nothing
    return _any(nothing, _header(AUTHORIZATION, _SIGNED))


def _certificate() -> HeaderMutationFilter:
    return HeaderMutationFilter(
        mutations=Mutations(
            request_mutations=[
                HeaderMutation(
                    append=HeaderValueOption(
                        header=HeaderValue(key=CERTIFICATE_HEADER, value=f"%DOWNSTREAM_PEER_{san}_SAN%"),
                        append_action=HeaderValueOptionHeaderAppendAction.ADD_IF_ABSENT,
                    )
                )
                for san in ("URI", "DNS")
            ]
        )
    )


def _identity() -> Config:
    """Turn the headers that the filters before have set into metadata, and remove them."""

    def pair(key: str, rewrite: RegexMatchAndSubstitute | None = None) -> ConfigKeyValuePair:
        return ConfigKeyValuePair(metadata_namespace=dataplane.ACCESS_METADATA, key=key, regex_value_rewrite=rewrite)

    name = RegexMatchAndSubstitute(pattern=RegexMatcher(regex=r"^[^|]*\|(.*)$"), substitution=r"\1")
    return Config(
        request_rules=[
            ConfigRule(header=TENANT_HEADER, on_header_present=pair(dataplane.TENANT), remove=True),
            ConfigRule(header=CERTIFICATE_HEADER, on_header_present=pair(dataplane.TENANT)),
            ConfigRule(header=CERTIFICATE_HEADER, on_header_present=pair(dataplane.CERTIFICATE), remove=True),
            ConfigRule(header=CLIENT_HEADER, on_header_present=pair(dataplane.TENANT, name)),
            ConfigRule(header=CLIENT_HEADER, on_header_present=pair(dataplane.CLIENT), remove=True),
        ]
    )


def _closed() -> Rbac:
    everything = Policy(permissions=[principals.ANYTHING], principals=[principals.ANYBODY])
    return Rbac(rules=Rules(action=RbacAction.DENY, policies={STARTING: everything}))


def _entry(access: ir.Access) -> Rules:
    """Refuse what no model's name can make right."""
    policies = {}
    if access.otherwise is not None:
        policies[ANONYMOUS] = Policy(permissions=[principals.SERVED], principals=[principals.UNKNOWN])
        if not by_model(access):
            policies[f"{FORBIDDEN}-0"] = Policy(
                permissions=[principals.not_listing(LISTED)], principals=[principals.none_of(access.otherwise)]
            )
    return Rules(action=RbacAction.DENY, policies=policies)


def _models(access: ir.Access) -> Rules:
    """Refuse by the model's name; Envoy tries the rules by name, those for unknown callers first."""
    groups: dict[tuple[ir.Grant, ...], list[str]] = {}
    special = [name for name, grants in access.models if grants != access.otherwise]
    for name, grants in access.models:
        if grants is not None and name in special:
            groups.setdefault(grants, []).append(name)
    policies = {}
    guarded = [name for names in groups.values() for name in names]
    if guarded:
        policies[ANONYMOUS] = Policy(permissions=[principals.model_in(guarded)], principals=[principals.UNKNOWN])
    for number, (grants, names) in enumerate(groups.items()):
        policies[f"{FORBIDDEN}-{number}"] = Policy(
            permissions=[principals.model_in(names)], principals=[principals.none_of(grants)]
        )
    if access.otherwise is not None:
        policies[f"{FORBIDDEN}-otherwise"] = Policy(
            permissions=[principals.model_not_in(special)], principals=[principals.none_of(access.otherwise)]
        )
    policies[NAMELESS] = Policy(permissions=[principals.NO_MODEL], principals=[principals.ANYBODY])
    return Rules(action=RbacAction.DENY, policies=policies)


def _header(name: str, pattern: str) -> MatcherMatcherListPredicate:
    return MatcherMatcherListPredicate(
        single_predicate=MatcherMatcherListPredicateSinglePredicate(
            input=xds_extension("request-headers", HttpRequestHeaderMatchInput(header_name=name)),
            value_match=XdsStringMatcher(
                safe_regex=XdsRegexMatcher(google_re2=XdsRegexMatcherGoogleRe2(), regex=pattern)
            ),
        )
    )


def _unless_header(name: str, pattern: str) -> MatcherMatcherListPredicate:
    return MatcherMatcherListPredicate(not_matcher=_header(name, pattern))


def _all(*predicates: MatcherMatcherListPredicate) -> MatcherMatcherListPredicate:
    return MatcherMatcherListPredicate(and_matcher=MatcherMatcherListPredicatePredicateList(predicate=list(predicates)))


def _any(*predicates: MatcherMatcherListPredicate) -> MatcherMatcherListPredicate:
    return MatcherMatcherListPredicate(or_matcher=MatcherMatcherListPredicatePredicateList(predicate=list(predicates)))


def _skip(when: MatcherMatcherListPredicate, name: str, message: Message) -> ExtensionWithMatcher:
    return ExtensionWithMatcher(
        extension_config=extension(name, message),
        xds_matcher=Matcher(
            matcher_list=MatcherMatcherList(
                matchers=[
                    MatcherMatcherListFieldMatcher(
                        predicate=when, on_match=MatcherOnMatch(action=xds_extension("skip", SkipFilter()))
                    )
                ]
            )
        ),
    )


_NOBODY: Final = ir.Access()
_ON: Final = FilterConfig(config=Any())
_TYPES: Final = "type.googleapis.com/envoy.extensions"
_DISCOVERED: Final = ("common.matching.v3.ExtensionWithMatcher", "filters.http.jwt_authn.v3.JwtAuthentication")
