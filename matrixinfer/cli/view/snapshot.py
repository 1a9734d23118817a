"""What the view shows at one moment, made of the looks taken at the pickers in the last minute. Pure.

Rates are those of the last ten seconds, shares and quantiles those of the last minute: few requests tell little of them.
Several gateways before the same engines are one to the user: what they count is added up, endpoints are one row for each
address. A picker that is silent has its part in it as it told last.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from matrixinfer.cli.view import samples as names
from matrixinfer.cli.view.samples import Samples, quantile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matrixinfer.cli import pages

    _Account = tuple[float, pages.Endpoint]  # how old it is (seconds), and what a picker says

RATES_S: Final = 10.0
SHARES_S: Final = 60.0
NO_ERRORS: Final = frozenset({"complete", "client-gone"})  # how requests end whose end is nobody's fault here
UNKNOWN: Final = "unknown"  # the label of models that no route names


@dataclass(frozen=True, slots=True)
class Look:
    """What the picker said at one moment."""

    at: float  # seconds, of a clock that only runs forward
    samples: Samples
    endpoints: Sequence[pages.Endpoint]
    decisions: Sequence[pages.Line]
    refusals: Sequence[pages.Refusal]
    routes: pages.Routes


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway, and whether its picker can be asked."""

    number: int  # from 1
    url: str
    admin_url: str
    silent_s: float | None = None  # how long the picker has not answered; None: it does


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one gateway."""

    gateway: Gateway
    looks: Sequence[Look] = ()  # oldest first


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went through something."""

    requests_s: float = 0.0
    input_s: float = 0.0  # tokens
    output_s: float = 0.0
    prompt: float = 0.0  # tokens in the last minute
    cached: float = 0.0  # of these
    errors: float = 0.0  # in the last minute
    requests: float = 0.0  # in the last minute
    ttft_p50_s: float | None = None
    ttft_p99_s: float | None = None


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """One engine."""

    address: str
    pod: str
    state: str  # "ready", "not ready", "avoided 3s"
    inflight: int
    waiting: float | None  # None: it has not told
    kv_usage: float | None
    traffic: Traffic
    server: str = ""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One name that clients may ask for."""

    name: str
    targets: tuple[str, ...]  # "server ready/all"
    served: bool  # by anything that is ready
    traffic: Traffic


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """One recent decision, or refusal (without a ticket, a pod and a prompt)."""

    s_ago: float
    ticket: str
    request_id: str
    model: str
    pod: str  # its address where the pod is gone
    matched: str
    prompt_tokens: int | None
    end: str
    gateway: int = 0  # its number; 0: there is only one


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything on the screen."""

    gateways: tuple[Gateway, ...]
    up_s: float
    total: Traffic = field(default_factory=Traffic)
    served: float = 0.0  # requests since the pickers' start
    endpoints: tuple[EndpointRow, ...] = ()
    models: tuple[ModelRow, ...] = ()
    decisions: tuple[DecisionRow, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def ready(self) -> int:
        """How many endpoints may be chosen."""
        return sum(row.state != "not ready" for row in self.endpoints)

    @property
    def inflight(self) -> int:
        """Requests sent and not settled."""
        return sum(row.inflight for row in self.endpoints)


@dataclass(frozen=True, slots=True)
class _Growth:
    """What was counted in the two windows."""

    per_s: Samples  # in the short one
    long: Samples


def snapshot(seen: Sequence[Seen], *, up_s: float) -> Snapshot:
    """Return what was seen of all gateways, together."""
    gateways = tuple(one.gateway for one in seen)
    told = [one for one in seen if one.looks]
    if not told:
        return Snapshot(gateways, up_s)
    # Who is gone where somebody can be asked is gone, whatever a silent picker told last.
    answering = [one for one in told if one.gateway.silent_s is None] or told
    listed = {each.address: each for one in answering for each in one.looks[-1].endpoints}
    shorten = _shortener([each.pod for each in listed.values()])
    pods = {address: shorten(each.pod) for address, each in listed.items()}
    growths = [_growth(one.looks) for one in told]
    growth = _Growth(Samples.sum([one.per_s for one in growths]), Samples.sum([one.long for one in growths]))
    latest, alone = max(one.looks[-1].at for one in told), len(seen) == 1
    rows = [_endpoint(accounts, growth, shorten) for accounts in _accounts(told, latest, listed)]
    decisions = [row for one in told for row in _decisions(one, pods, latest=latest, alone=alone)]
    return Snapshot(
        gateways=gateways,
        up_s=up_s,
        total=_of_models(growth, None),
        served=sum(sum(one.looks[-1].samples.of(names.REQUESTS).values()) for one in told),
        endpoints=tuple(sorted(rows, key=_by_name)),
        models=tuple(_models(answering[0].looks[-1].routes, growth)),
        decisions=tuple(sorted(decisions, key=lambda row: row.s_ago)),
        problems=tuple(_problems(told, growth.long, alone=alone)),
    )


def kept(looks: Sequence[Look], now: float) -> list[Look]:
    """Return the looks that are still needed: those of the last minute and the newest before it."""
    old = [look for look in looks if look.at < now - SHARES_S]
    return [*old[-1:], *(look for look in looks if look.at >= now - SHARES_S)]


def _growth(looks: Sequence[Look]) -> _Growth:
    """Compare the newest look with those a window ago, or the oldest there is."""
    now = looks[-1]
    short = _before(looks, now.at - RATES_S)
    long = _before(looks, now.at - SHARES_S)
    per_s = now.samples.since(short.samples).times(1.0 / max(now.at - short.at, 1.0))
    return _Growth(per_s, now.samples.since(long.samples))


def _before(looks: Sequence[Look], at: float) -> Look:
    """Return the newest look at `at` or before, or the oldest."""
    return next((look for look in reversed(looks) if look.at <= at), looks[0])


def _of_models(growth: _Growth, model: str | None) -> Traffic:
    """Return the traffic of a model, or of all."""

    def total(samples: Samples, name: str, at: int, kind: str = "") -> float:
        return sum(
            value
            for labels, value in samples.of(name).items()
            if (model is None or labels[at] == model) and (not kind or labels[-1] == kind)
        )

    ended = {
        labels: value for labels, value in growth.long.of(names.REQUESTS).items() if model is None or labels[0] == model
    }
    buckets: defaultdict[float, float] = defaultdict(float)
    for labels, value in growth.long.of(names.TTFT).items():
        if model is None or labels[1] == model:
            buckets[float(labels[0])] += value
    return Traffic(
        requests_s=total(growth.per_s, names.REQUESTS, 0),
        input_s=total(growth.per_s, names.TOKENS, 0, "input"),
        output_s=total(growth.per_s, names.TOKENS, 0, "output"),
        prompt=total(growth.long, names.TOKENS, 0, "input"),
        cached=total(growth.long, names.CACHED, 0),
        errors=sum(value for (_, reason, _), value in ended.items() if reason not in NO_ERRORS),
        requests=sum(ended.values()),
        ttft_p50_s=quantile(0.5, buckets.items()),
        ttft_p99_s=quantile(0.99, buckets.items()),
    )


def _accounts(told: Sequence[Seen], latest: float, addresses: Iterable[str]) -> Iterable[list[_Account]]:
    """Return what the pickers say of each of the addresses."""
    found: dict[str, list[_Account]] = {address: [] for address in addresses}
    for one in told:
        look = one.looks[-1]
        for each in look.endpoints:
            if each.address in found:
                found[each.address].append((latest - look.at, each))
    return found.values()


def _endpoint(accounts: Sequence[_Account], growth: _Growth, shorten: _Shortener) -> EndpointRow:
    """Return the row of an endpoint by all that is said of it.

    What the engine says of itself is as it told last. It is avoided where one picker avoids it.
    """
    _, one = min(accounts, key=lambda account: account[0])
    address = one.address
    avoided_s = max(each.avoided_for_s - late_s for late_s, each in accounts)
    state = "ready" if one.ready else "not ready"
    if one.ready and avoided_s > 0:
        state = f"avoided {avoided_s:.0f}s"
    scrapes = {
        each.scraped_s_ago + late_s: each for late_s, each in reversed(accounts) if each.scraped_s_ago is not None
    }
    engine = scrapes[min(scrapes)] if scrapes else None
    return EndpointRow(
        address=address,
        pod=shorten(one.pod),
        state=state,
        inflight=sum(each.inflight for _, each in accounts),
        waiting=None if engine is None else engine.waiting,
        kv_usage=None if engine is None else engine.kv_usage,
        server=", ".join(shorten(server) for server in one.servers),
        traffic=Traffic(
            requests_s=growth.per_s.value(names.ENDPOINT_REQUESTS, address),
            input_s=growth.per_s.value(names.ENDPOINT_TOKENS, address, "input"),
            output_s=growth.per_s.value(names.ENDPOINT_TOKENS, address, "output"),
            prompt=growth.long.value(names.ENDPOINT_TOKENS, address, "input"),
            cached=growth.long.value(names.ENDPOINT_TOKENS, address, "cached"),
            errors=growth.long.value(names.ENDPOINT_FAILURES, address),
            requests=growth.long.value(names.ENDPOINT_REQUESTS, address),
        ),
    )


def _models(routes: pages.Routes, growth: _Growth) -> Iterable[ModelRow]:
    """Yield the models that are served, and what was asked for in vain."""
    for name in routes.models:
        targets: dict[str, pages.Server] = {}
        for route in routes.routes:
            if name == route.spec.modelName or name in route.spec.loraAdapters:
                namespace = route.route.partition("/")[0]
                for rule in route.spec.rules:
                    for target in rule.targetModels:
                        server = routes.servers.get(f"{namespace}/{target.modelServerName}")
                        if server is not None:
                            targets[target.modelServerName] = server
        yield ModelRow(
            name=name,
            targets=tuple(f"{server} {it.ready}/{len(it.endpoints)}" for server, it in targets.items()),
            served=any(it.ready for it in targets.values()),
            traffic=_of_models(growth, name),
        )
    unknown = _of_models(growth, UNKNOWN)
    if unknown.requests and UNKNOWN not in routes.models:
        yield ModelRow(UNKNOWN, ("no route names it",), served=False, traffic=unknown)


def _decisions(seen: Seen, pods: Mapping[str, str], *, latest: float, alone: bool) -> Iterable[DecisionRow]:
    """Yield the decisions and refusals of a gateway's picker."""
    now, number = seen.looks[-1], 0 if alone else seen.gateway.number
    late_s = latest - now.at
    for line in now.decisions:
        yield DecisionRow(
            s_ago=line.s_ago + late_s,
            ticket=line.ticket,
            request_id=line.request_id,
            model=line.model,
            pod=pods.get(line.endpoint, line.endpoint),
            matched=line.matched_blocks,
            prompt_tokens=line.prompt_tokens,
            end=line.end,
            gateway=number,
        )
    for refusal in now.refusals:
        yield DecisionRow(
            s_ago=refusal.s_ago + late_s,
            ticket="",
            request_id=refusal.request_id,
            model=refusal.model,
            pod="",
            matched="",
            prompt_tokens=None,
            end=f"{refusal.status} {refusal.reason}",
            gateway=number,
        )


def _problems(told: Sequence[Seen], lately: Samples, *, alone: bool) -> Iterable[str]:
    """Yield what limits the trust in all the rest, the worst first; what all say of a resource once."""
    for one in told:
        samples, whose = one.looks[-1].samples, "" if alone else f"gateway {one.gateway.number}: "
        if not samples.value(names.FEED_CONNECTED):
            yield f"{whose}the picker does not hear the cluster: it works with what it knew last"
        if samples.value(names.CONFIG_PROBLEM):
            yield f"{whose}the scheduler's configuration cannot be used: the last good one is in force (see the picker's log)"
    yield from dict.fromkeys(said for one in told for said in _of_resources(one.looks[-1]))
    if bypassed := lately.value(names.BYPASSED):
        yield f"{bypassed:.0f} requests in the last minute went past the picker"
    if expired := lately.value(names.LEDGER, "expired"):
        yield f"{expired:.0f} requests in the last minute were given up: no record of their end came"


def _of_resources(now: Look) -> Iterable[str]:
    for resource, problem in now.routes.problems.items():
        yield f"{resource}: {problem}"
    for route, why in now.routes.skipped.items():
        yield f"ModelRoute {route} is not served: {why}"
    for (condition, kind), count in now.samples.of(names.UNMET).items():
        if condition == "Programmed" and count:
            yield f"{count:.0f} {kind}: Envoy has not taken what was made of it (see its condition Programmed)"


class _Shortener:
    """Leaves off a namespace that all have in common."""

    def __init__(self, namespaces: frozenset[str]) -> None:
        self._common = f"{next(iter(namespaces))}/" if len(namespaces) == 1 else ""

    def __call__(self, name: str) -> str:
        return name.removeprefix(self._common)


def _shortener(pods: Iterable[str]) -> _Shortener:
    return _Shortener(frozenset(pod.partition("/")[0] for pod in pods))


def _by_name(row: EndpointRow) -> tuple[list[tuple[int, str]], str]:
    """Order demo-2 before demo-10."""
    parts = re.split(r"(\d+)", row.pod)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], row.address
