"""What the view shows at one moment, made of the looks taken at the picker in the last minute. Pure.

Rates are those of the last ten seconds, shares and quantiles those of the last minute: few requests tell little of them.
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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything on the screen."""

    url: str
    admin_url: str
    up_s: float
    silent_s: float | None  # how long the picker has not answered; None: it does
    total: Traffic = field(default_factory=Traffic)
    served: float = 0.0  # requests since the picker's start
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
    """What was counted in the two windows, and how long they really were."""

    short: Samples
    short_s: float
    long: Samples

    def per_s(self, name: str, *labels: str) -> float:
        return self.short.value(name, *labels) / self.short_s


def snapshot(looks: Sequence[Look], *, url: str, admin_url: str, up_s: float, silent_s: float | None) -> Snapshot:
    """Return what `looks` (oldest first) say together."""
    if not looks:
        return Snapshot(url, admin_url, up_s, silent_s)
    now = looks[-1]
    growth = _growth(looks)
    shorten = _shortener([each.pod for each in now.endpoints])
    pods = {each.address: shorten(each.pod) for each in now.endpoints}
    return Snapshot(
        url=url,
        admin_url=admin_url,
        up_s=up_s,
        silent_s=silent_s,
        total=_of_models(growth, None),
        served=sum(now.samples.of(names.REQUESTS).values()),
        endpoints=tuple(sorted((_endpoint(each, growth, shorten) for each in now.endpoints), key=_by_name)),
        models=tuple(_models(now.routes, growth)),
        decisions=tuple(_decisions(now, pods)),
        problems=tuple(_problems(now, growth.long)),
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
    return _Growth(
        short=now.samples.since(short.samples),
        short_s=max(now.at - short.at, 1.0),
        long=now.samples.since(long.samples),
    )


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
        requests_s=total(growth.short, names.REQUESTS, 0) / growth.short_s,
        input_s=total(growth.short, names.TOKENS, 0, "input") / growth.short_s,
        output_s=total(growth.short, names.TOKENS, 0, "output") / growth.short_s,
        prompt=total(growth.long, names.TOKENS, 0, "input"),
        cached=total(growth.long, names.CACHED, 0),
        errors=sum(value for (_, reason, _), value in ended.items() if reason not in NO_ERRORS),
        requests=sum(ended.values()),
        ttft_p50_s=quantile(0.5, buckets.items()),
        ttft_p99_s=quantile(0.99, buckets.items()),
    )


def _endpoint(one: pages.Endpoint, growth: _Growth, shorten: _Shortener) -> EndpointRow:
    address = one.address
    state = "ready" if one.ready else "not ready"
    if one.ready and one.avoided_for_s > 0:
        state = f"avoided {one.avoided_for_s:.0f}s"
    told = one.scraped_s_ago is not None
    return EndpointRow(
        address=address,
        pod=shorten(one.pod),
        state=state,
        inflight=one.inflight,
        waiting=one.waiting if told else None,
        kv_usage=one.kv_usage if told else None,
        server=", ".join(shorten(server) for server in one.servers),
        traffic=Traffic(
            requests_s=growth.per_s(names.ENDPOINT_REQUESTS, address),
            input_s=growth.per_s(names.ENDPOINT_TOKENS, address, "input"),
            output_s=growth.per_s(names.ENDPOINT_TOKENS, address, "output"),
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


def _decisions(now: Look, pods: Mapping[str, str]) -> list[DecisionRow]:
    """Return decisions and refusals, newest first."""
    sent = [
        DecisionRow(
            s_ago=line.s_ago,
            ticket=line.ticket,
            request_id=line.request_id,
            model=line.model,
            pod=pods.get(line.endpoint, line.endpoint),
            matched=line.matched_blocks,
            prompt_tokens=line.prompt_tokens,
            end=line.end,
        )
        for line in now.decisions
    ]
    refused = [
        DecisionRow(
            s_ago=line.s_ago,
            ticket="",
            request_id=line.request_id,
            model=line.model,
            pod="",
            matched="",
            prompt_tokens=None,
            end=f"{line.status} {line.reason}",
        )
        for line in now.refusals
    ]
    return sorted((*sent, *refused), key=lambda row: row.s_ago)


def _problems(now: Look, lately: Samples) -> Iterable[str]:
    """Yield what limits the trust in all the rest, the worst first."""
    if not now.samples.value(names.FEED_CONNECTED):
        yield "the picker does not hear the cluster: it works with what it knew last"
    if now.samples.value(names.CONFIG_PROBLEM):
        yield "the scheduler's configuration cannot be used: the last good one is in force (see the picker's log)"
    for resource, problem in now.routes.problems.items():
        yield f"{resource}: {problem}"
    for route, why in now.routes.skipped.items():
        yield f"ModelRoute {route} is not served: {why}"
    for (condition, kind), count in now.samples.of(names.UNMET).items():
        if condition == "Programmed" and count:
            yield f"{count:.0f} {kind}: Envoy has not taken what was made of it (see its condition Programmed)"
    if bypassed := lately.value(names.BYPASSED):
        yield f"{bypassed:.0f} requests in the last minute went past the picker"
    if expired := lately.value(names.LEDGER, "expired"):
        yield f"{expired:.0f} requests in the last minute were given up: no record of their end came"


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
