"""Routes: by the picker's word, or, while it is away, by the model named in the body.

The picker's answer carries TARGET ("namespace/name"), which an exact map turns into that ModelServer's route, so
thousands of them cost nothing. Requests without it are health probes or unpicked; the latter go by `MODEL`, a header
that filters derive from the body in that case only (see `filters`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING

from envoy.config.route.v3 import route_pb2
from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutation
from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    RuntimeFractionalPercent,
)
from envoy_data_plane.envoy.config.route.v3 import (
    DirectResponseAction,
    HeaderMatcher,
    RetryPolicy,
    RetryPolicyRetryBackOff,
    RetryPolicyRetryHostPredicate,
    Route,
    RouteAction,
    RouteActionRequestMirrorPolicy,
    RouteConfiguration,
    RouteList,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
    WeightedClusterClusterWeight,
)
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import ExtProcPerRoute
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import PreviousHostsPredicate
from envoy_data_plane.envoy.type.matcher.v3 import HttpRequestHeaderMatchInput, RegexMatcher, StringMatcher
from envoy_data_plane.envoy.type.v3 import FractionalPercent, FractionalPercentDenominatorType
from envoy_data_plane.xds.type.matcher.v3 import (
    Matcher,
    MatcherMatcherTree,
    MatcherMatcherTreeMatchMap,
    MatcherOnMatch,
)

from controllers import ir
from controllers.xds import access, providers
from controllers.xds.typed import packed, xds_extension
from matrixinfer.api import dataplane, networking

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xds.type.matcher.v3 import matcher_pb2

Handled = tuple[ir.Handling, int]  # with the number of backends that requests for one may fail over to
ROUTES = "gateway"
RELAYED = "relayed"
EXT_PROC = "envoy.filters.http.ext_proc"
_LATER_S = 1.0  # the stream's own bound of silence, behind that of its try
MODEL = dataplane.MODEL  # set by our filters while the picker is away, and where access depends on it


def frame(
    gateway: ir.Gateway,
    models: tuple[str, ...],
    told: tuple[str, ...] = (),
    guard: ir.Access | None = None,
    outside: bool = False,  # noqa: FBT001, FBT002 - by position, as encodings are remembered
) -> RouteConfiguration:
    """Build everything but the entries of the two maps, which `filled` adds.

    `models` are the names to list; `told` the headers that answers get of the picker, beside its decision. `outside`:
    there are external providers.
    """
    limits = gateway.limits
    if guard is not None:
        models = access.visible(guard, models)
    if gateway.picker.fail_open:
        otherwise = _then(*_reserved(), _not_yet(limits), _model_list(models, limits), _unknown_model(limits))
        unpicked = MatcherOnMatch(matcher=_by_header(MODEL, otherwise))
    else:
        unpicked = _then(*_reserved(), _not_yet(limits), _unavailable(limits))
    return RouteConfiguration(
        name=ROUTES,
        virtual_hosts=[
            VirtualHost(
                name=ROUTES,
                domains=["*"],
                matcher=_by_header(dataplane.TARGET, unpicked),
            )
        ],
        request_headers_to_remove=[
            dataplane.ENDPOINT,
            dataplane.TARGET,
            dataplane.HANDLING,
            dataplane.EXPLAIN,
            MODEL,
            "x-envoy-external-address",
            "x-envoy-internal",
            *(access.removed(guard) if guard is not None else ()),
        ],
        response_headers_to_add=[
            _told(dataplane.DECISION, dataplane.EXPLANATION),
            *(_told(name, name) for name in told),
        ],
        max_direct_response_body_size_bytes=1024 * 1024,
        typed_per_filter_config=access.per_route(gateway, guard) | providers.switched_on(on=outside),
    )


def _told(header: str, key: str) -> HeaderValueOption:
    """Set a header of the answer to what the picker says; where it says nothing, there is none."""
    return HeaderValueOption(
        header=HeaderValue(key=header, value=f"%DYNAMIC_METADATA({dataplane.METADATA}:{key})%"),
        append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def picked(backend: ir.Backend, handlings: tuple[Handled, ...], limits: ir.Limits) -> MatcherOnMatch:
    """Build what is done with a request that the picker gave this backend as its target.

    The handling that it names refines it; one that is not known here (yet, or any more) changes nothing.
    """
    plain = _then(_backend_route(backend, limits))
    if not handlings:
        return plain
    choices = {
        key: _then(route) for one, further in handlings for key, route in _handled(backend, one, further, limits)
    }
    matcher = _by_header(dataplane.HANDLING, plain)
    if matcher.matcher_tree is not None:
        matcher.matcher_tree.exact_match_map = MatcherMatcherTreeMatchMap(map=choices)
    return MatcherOnMatch(matcher=matcher)


def _handled(
    backend: ir.Backend, handling: ir.Handling, further: int, limits: ir.Limits
) -> Iterable[tuple[str, Route]]:
    """Build the routes of one handling, by what the picker calls them; `further`: other backends of `together`."""
    treated = treated_by(backend, handling.policy)
    alone = dataplane.cluster_name(backend.namespace, backend.name)
    own, tries = networking.tries(treated.retry.attempts, further)
    cluster = dataplane.together_name(handling.namespace, handling.together) if tries > own else alone
    everywhere = replace(treated, retry=replace(treated.retry, attempts=tries - 1))
    parts = [("", cluster, everywhere), (dataplane.ALONE, alone, treated)]
    if handling.relayed and treated.retry.attempts:
        names = handling.together if tries > own else (backend.name,)
        also_out = replace(treated, retry=replace(treated.retry, attempts=tries))
        parts.append((dataplane.RELAYED, dataplane.relayed_name(handling.namespace, names), also_out))
    idle_s = handling.policy.idle_s
    for ending, idle in (("", None), (dataplane.STREAM, idle_s)):
        if ending and idle is None:
            continue
        for part, where, what in parts:
            key = handling.key + ending + part
            mirrors = [] if part == dataplane.ALONE else [_copies(handling, one) for one in handling.mirrors]
            action = RouteAction(cluster=where, request_mirror_policies=mirrors)
            yield (
                key,
                Route(
                    name=f"{alone}/{key}",
                    match=RouteMatch(prefix="/"),
                    route=_forward(action, what, limits, idle_s=idle, relayed=part == dataplane.RELAYED),
                    request_body_buffer_limit=limits.body_bytes,
                ),
            )


def treated_by(backend: ir.Backend, policy: ir.Policy) -> ir.Backend:
    """Give the backend as a route wants it treated."""
    return replace(
        backend,
        timeout_s=backend.timeout_s if policy.timeout_s is None else policy.timeout_s,
        retry=policy.retry or backend.retry,
    )


def _copies(handling: ir.Handling, mirror: ir.Mirror) -> RouteActionRequestMirrorPolicy:
    name = dataplane.mirror_name(handling.namespace, mirror.name)
    names = f"%DYNAMIC_METADATA({dataplane.NAMES_METADATA}:"
    return RouteActionRequestMirrorPolicy(
        cluster=name,
        runtime_fraction=RuntimeFractionalPercent(
            default_value=FractionalPercent(
                numerator=mirror.percent, denominator=FractionalPercentDenominatorType.HUNDRED
            )
        ),
        disable_shadow_host_suffix_append=True,
        request_headers_mutations=[
            HeaderMutation(
                append=HeaderValueOption(
                    header=HeaderValue(key=dataplane.RENAME, value=f"{names}{dataplane.SPAN})% {names}{name})%"),
                    append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
                )
            )
        ],
    )


def outward(provider: ir.Provider, limits: ir.Limits) -> MatcherOnMatch:
    """Build what is done with a request that the picker gave this provider as its target."""
    return _then(providers.route(provider, limits))


def unpicked(model: ir.Model, backends: tuple[ir.Backend, ...], limits: ir.Limits) -> MatcherOnMatch:
    """Build what is done with a request for this model that the picker did not see; `backends` are those of its rules."""
    return _then(*_model_routes(model, backends, limits))


def filled(frame: bytes, targets: Mapping[str, bytes], models: Mapping[str, bytes]) -> bytes:
    """Enter encoded choices, by name, into an encoded frame.

    Done by the C codec: with a thousand of them the other one takes seconds. What it does not know of it passes on.
    """
    table = route_pb2.RouteConfiguration.FromString(frame)
    by_target = table.virtual_hosts[0].matcher
    if by_target.on_no_match.HasField("matcher"):
        _enter(by_target.on_no_match.matcher, models)
    _enter(by_target, targets)
    return bytes(table.SerializeToString(deterministic=True))


def _enter(matcher: matcher_pb2.Matcher, choices: Mapping[str, bytes]) -> None:
    if not choices:
        matcher.ClearField("matcher_tree")  # Envoy takes no empty map
    for name, choice in choices.items():
        matcher.matcher_tree.exact_match_map.map[name].MergeFromString(choice)


def error_body(message: str, *, kind: str, code: str | None) -> str:
    """Write an OpenAI error object."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def _by_header(name: str, otherwise: MatcherOnMatch) -> Matcher:
    return Matcher(
        matcher_tree=MatcherMatcherTree(
            input=xds_extension("envoy.matching.inputs.request_headers", HttpRequestHeaderMatchInput(header_name=name)),
        ),
        on_no_match=otherwise,
    )


def _then(*choices: Route) -> MatcherOnMatch:
    return MatcherOnMatch(action=xds_extension("route", RouteList(routes=list(choices))))


def _backend_route(backend: ir.Backend, limits: ir.Limits) -> Route:
    name = dataplane.cluster_name(backend.namespace, backend.name)
    return Route(
        name=name,
        match=RouteMatch(prefix="/"),
        route=_forward(RouteAction(cluster=name), backend, limits),
        request_body_buffer_limit=limits.body_bytes,
    )


def _forward(
    action: RouteAction, backend: ir.Backend, limits: ir.Limits, *, idle_s: float | None = None, relayed: bool = False
) -> RouteAction:
    """Say how requests are sent on, and tried again; `relayed`: the last try is a provider's, which has no timeout."""
    # A stream may last as long as tokens come: only the wait for its beginning is bounded, for each attempt.
    action.timeout = timedelta(0)
    action.idle_timeout = timedelta(seconds=limits.idle_s)
    timeout_s, tries = backend.timeout_s, backend.retry.attempts + 1
    if idle_s is not None and timeout_s is not None:
        # Envoy 1.40 forgets the bound of a try's silence when the bound of its beginning has passed.
        if idle_s <= timeout_s:
            timeout_s = None  # a try that does not begin is silent
        else:
            # Without a byte until the last try has begun.
            waits_s = (tries - 1) * (timeout_s + 10 * backend.retry.interval_s) + (idle_s if relayed else timeout_s)
            action.idle_timeout = timedelta(seconds=min(max(idle_s, waits_s) + _LATER_S, limits.idle_s))
    words = [word for word in backend.retry.on if not word.isdecimal()]
    codes = [int(word) for word in backend.retry.on if word.isdecimal()]
    action.retry_policy = RetryPolicy(
        retry_on=",".join([*words, *(["retriable-status-codes"] if codes else [])]),
        retriable_status_codes=codes,
        num_retries=tries - 1,
        per_try_timeout=None if timeout_s is None else timedelta(seconds=timeout_s),
        # Silence of the try, and not the stream's: the module gets to end an answer that has begun with an error event.
        per_try_idle_timeout=None if idle_s is None else timedelta(seconds=idle_s),
        retry_back_off=RetryPolicyRetryBackOff(
            base_interval=timedelta(seconds=backend.retry.interval_s),
            max_interval=timedelta(seconds=backend.retry.interval_s * 10),
        ),
        retry_host_predicate=[
            RetryPolicyRetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts", typed_config=packed(PreviousHostsPredicate())
            )
        ],
        # Without the picker a dead endpoint is the one with the least requests: few draws would come upon it again.
        host_selection_retry_max_attempts=25,
    )
    return action


def _model_routes(model: ir.Model, known: tuple[ir.Backend, ...], limits: ir.Limits) -> Iterable[Route]:
    backends = {(backend.namespace, backend.name): backend for backend in known}
    for number, rule in enumerate(model.rules):
        shares = [share for share in rule.shares if share.weight and (share.namespace, share.name) in backends]
        if not shares:
            continue
        heaviest = max(shares, key=lambda share: share.weight)
        clusters = WeightedCluster(
            clusters=[
                WeightedClusterClusterWeight(
                    name=dataplane.cluster_name(share.namespace, share.name), weight=share.weight
                )
                for share in shares
            ]
        )
        yield Route(
            name=f"model/{model.name}/{number}",
            match=_conditions(rule),
            route=_forward(
                RouteAction(weighted_clusters=clusters),
                treated_by(backends[heaviest.namespace, heaviest.name], rule.policy),
                limits,
            ),
            request_body_buffer_limit=limits.body_bytes,
        )
    yield _unavailable(limits) if model.outside else _unknown_model(limits)


def _conditions(rule: ir.Rule) -> RouteMatch:
    headers = [
        # Kubernetes users write a header's name as they like; a missing header counts as the empty text.
        HeaderMatcher(name=name.lower(), string_match=_text(match), treat_missing_header_as_empty=True)
        for name, match in rule.headers
    ]
    path = rule.path
    if path is None:
        return RouteMatch(prefix="/", headers=headers)
    if path.kind is ir.Match.EXACT:
        return RouteMatch(path=path.value, headers=headers)
    if path.kind is ir.Match.PREFIX:
        return RouteMatch(prefix=path.value, headers=headers)
    return RouteMatch(safe_regex=_anywhere(path.value), headers=headers)


def _text(match: ir.TextMatch) -> StringMatcher:
    if match.kind is ir.Match.EXACT:
        return StringMatcher(exact=match.value)
    if match.kind is ir.Match.PREFIX:
        return StringMatcher(prefix=match.value)
    return StringMatcher(safe_regex=_anywhere(match.value))


def _anywhere(pattern: str) -> RegexMatcher:
    """Envoy matches whole texts; rules search."""
    return RegexMatcher(regex=f"(?s).*?(?:{pattern}).*")


def relayed(limits: ir.Limits) -> RouteConfiguration:
    """Build the table of requests that go on to providers, but for the entries of its map, which `filled` adds."""
    otherwise = _then(_not_yet(limits), _unavailable(limits))
    return RouteConfiguration(
        name=RELAYED,
        virtual_hosts=[
            VirtualHost(name=RELAYED, domains=["*"], matcher=_by_header(dataplane.TARGET, otherwise)),
        ],
        request_headers_to_remove=[dataplane.ENDPOINT, dataplane.TARGET, dataplane.RELAY],
        max_direct_response_body_size_bytes=1024 * 1024,
        typed_per_filter_config=providers.switched_on(on=True),
    )


def _reserved() -> tuple[Route, ...]:
    unasked = {EXT_PROC: packed(ExtProcPerRoute(disabled=True))}
    return tuple(
        Route(
            name=f"reserved{path}",
            match=RouteMatch(path=path),
            direct_response=DirectResponseAction(status=200, body=DataSource(inline_string='{"status":"ok"}')),
            typed_per_filter_config=unasked,
        )
        for path in dataplane.HEALTH_PATHS
    )


def _not_yet(limits: ir.Limits) -> Route:
    body = error_body(
        "The endpoints of this model are not known to the gateway yet. Try again in a moment.",
        kind="service_unavailable",
        code="no_endpoints",
    )
    picked = RouteMatch(prefix="/", headers=[HeaderMatcher(name=dataplane.TARGET, present_match=True)])
    return _answer("unknown-target", picked, 503, body, limits)


def _unavailable(limits: ir.Limits) -> Route:
    body = error_body(
        "The endpoint picker does not answer. Try again in a moment.", kind="service_unavailable", code="no_picker"
    )
    return _answer("unpicked", RouteMatch(prefix="/"), 503, body, limits)


def _unknown_model(limits: ir.Limits) -> Route:
    body = error_body(
        "No route serves this model (or the body names none). GET /v1/models lists what is served.",
        kind="invalid_request_error",
        code="model_not_found",
    )
    return _answer("unknown-model", RouteMatch(prefix="/"), 404, body, limits)


def _model_list(models: tuple[str, ...], limits: ir.Limits) -> Route:
    listed = [{"id": name, "object": "model", "created": 0, "owned_by": "matrixinfer"} for name in sorted(models)]
    body = json.dumps({"object": "list", "data": listed})
    get = HeaderMatcher(name=":method", string_match=StringMatcher(exact="GET"))
    return _answer("models", RouteMatch(path="/v1/models", headers=[get]), 200, body, limits)


def _answer(name: str, match: RouteMatch, status: int, body: str, limits: ir.Limits) -> Route:
    later = HeaderValueOption(header=HeaderValue(key="retry-after", value="1"))
    return Route(
        name=name,
        response_headers_to_add=[later] if status == HTTPStatus.SERVICE_UNAVAILABLE else [],
        match=match,
        direct_response=DirectResponseAction(status=status, body=DataSource(inline_string=body)),
        request_body_buffer_limit=limits.body_bytes,
    )
