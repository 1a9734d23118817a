"""The admin pages, for people and for `matrixinfer explain`: JSON over HTTP on loopback, read only.

What is shown is made when it is asked for; the data path keeps nothing for it but the ring of recent decisions. Metrics
and health are served by the same code on the metrics port.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson
import prometheus_client
from aiohttp import web

from extproc.adapters import flow_metrics
from extproc.decisions import described
from extproc.traffic.routes import unmet

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from extproc.adapters.desk import Refusal
    from extproc.adapters.world import WorldView
    from extproc.candidates import World
    from extproc.decisions import Record
    from extproc.director import Director
    from extproc.scheduling.endpoints import EndpointTable, Lora
    from extproc.traffic.ledger import Settlement

_PAGES: Final = {
    "/endpoints": "every engine: load, what it holds, its standing",
    "/routes": "models, routes, ModelServers and providers, and what is wrong with any of them",
    "/decisions": "recent decisions and refusals, newest first; ?limit=N, ?model=NAME",
    "/decisions/{id}": "one of them, by ticket or x-request-id: candidates, scores, why the winner won, how it ended",
    "/queues": "what waits for its turn, by ModelServer, priority and tenant, with the tenants' counters",
    "/config": "the scheduler's configuration in force",
    "/healthz": "200 once the world is known",
    "/metrics": "Prometheus metrics",
}
_LIMIT: Final = 50
_OPTIONS: Final = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE


@dataclass(frozen=True, slots=True)
class Shown:
    """What the pages show."""

    world: World
    director: Director
    view: WorldView
    clock: Callable[[], float]
    config: Callable[[], Mapping[str, Any]]
    ready: Callable[[], bool]
    registry: prometheus_client.CollectorRegistry
    refusals: Collection[Refusal]  # oldest first


def application(shown: Shown, *, pages: bool = True) -> web.Application:
    """Return the pages; without `pages` only /metrics and /healthz, for a port that others reach."""
    app = web.Application()
    handlers = _Pages(shown)
    app.router.add_get("/metrics", handlers.metrics)
    app.router.add_get("/healthz", handlers.healthz)
    if pages:
        app.router.add_get("/", handlers.index)
        app.router.add_get("/endpoints", handlers.endpoints)
        app.router.add_get("/routes", handlers.routes)
        app.router.add_get("/decisions", handlers.decisions)
        app.router.add_get("/decisions/{id:.+}", handlers.decision)
        app.router.add_get("/queues", handlers.queues)
        app.router.add_get("/config", handlers.config)
    return app


class _Pages:
    def __init__(self, shown: Shown) -> None:
        self._shown = shown

    async def index(self, _request: web.Request) -> web.Response:
        return _json({"pages": _PAGES})

    async def healthz(self, _request: web.Request) -> web.Response:
        ready = self._shown.ready()
        return _json({"status": "ok" if ready else "not serving"}, status=200 if ready else 503)

    async def metrics(self, _request: web.Request) -> web.Response:
        text = prometheus_client.generate_latest(self._shown.registry)
        return web.Response(body=text, headers={"content-type": prometheus_client.CONTENT_TYPE_LATEST})

    async def endpoints(self, _request: web.Request) -> web.Response:
        table, now = self._shown.world.table, self._shown.clock()
        index, pools = self._shown.world.index, self._shown.world.pools
        servers = list(self._shown.director.routes.servers)
        listed = []
        for row in table.rows():
            endpoint = table.endpoints[row]
            if endpoint is None:
                continue
            age = now - float(table.scraped_at[row])
            listed.append(
                {
                    "address": endpoint.address,
                    "pod": endpoint.pod,
                    "engine": endpoint.engine,
                    "ready": endpoint.ready,
                    "servers": [server for server in servers if endpoint.address in pools.members(server)],
                    "models": sorted(table.models[row]),
                    "inflight": int(table.inflight[row]),
                    "inflight_tokens": int(table.inflight_tokens[row]),
                    "waiting": float(table.waiting[row]),
                    "running": float(table.running[row]),
                    "kv_usage": round(float(table.kv_usage[row]), 4),
                    "scraped_s_ago": round(age, 2) if age != float("inf") else None,
                    "avoided_for_s": round(max(float(table.avoid_until[row]) - now, 0.0), 2),
                    "blocks_known": index.held(row),
                    "adapters": _adapters(table.lora[row]),
                    "learned": _learned(table, row, now),
                }
            )
        return _json({"endpoints": listed})

    async def routes(self, _request: web.Request) -> web.Response:
        table, pools = self._shown.director.routes, self._shown.world.pools
        servers = {
            key: {
                "spec": server.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
                "endpoints": sorted(pools.members(key)),
                "ready": len(pools.ready(key)),
            }
            for key, server in table.servers.items()
        }
        routes = [
            {"route": route.key, "spec": route.spec.model_dump(mode="json", by_alias=True, exclude_none=True)}
            for route in table.routes
        ]
        return _json(
            {
                "models": [listed.name for listed in table.models()],
                "routes": routes,
                "skipped": table.skipped,
                "servers": servers,
                "providers": {
                    key: {
                        "spec": one.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
                        "unmet": unmet(one) or None,
                    }
                    for key, one in table.providers.items()
                },
                "problems": self._shown.view.problems,
            }
        )

    async def decisions(self, request: web.Request) -> web.Response:
        limit = request.query.get("limit", str(_LIMIT))
        if not limit.isdecimal():
            return _json({"error": f"limit must be a number, not {limit!r}"}, status=400)
        model = request.query.get("model")
        newest = [
            record
            for record in reversed(self._shown.director.recent.values())
            if model is None or record.sent.model == model
        ]
        refused = [each for each in reversed(tuple(self._shown.refusals)) if model in (None, each.model)]
        return _json(
            {
                "decisions": [self._line(record) for record in newest[: int(limit)]],
                "refusals": [self._refusal(each) for each in refused[: int(limit)]],
            }
        )

    async def decision(self, request: web.Request) -> web.Response:
        wanted = request.match_info["id"]
        recent = self._shown.director.recent
        record = recent.get(wanted)
        if record is None:
            record = next((each for each in reversed(recent.values()) if each.sent.request_id == wanted), None)
        refused = next((each for each in reversed(tuple(self._shown.refusals)) if each.request_id == wanted), None)
        if record is None and refused is not None:
            why = f"no endpoint was chosen: refused with {refused.status} ({refused.reason}): {refused.message}"
            return _json({"error": why, **self._refusal(refused)}, status=404)
        if record is None:
            return _json(
                {"error": f"no recent decision with ticket or request id {wanted!r}; the last {len(recent)} are kept"},
                status=404,
            )
        return _json(self._document(record))

    async def queues(self, _request: web.Request) -> web.Response:
        return _json(flow_metrics.shown(self._shown.director.gate, self._shown.clock()))

    async def config(self, _request: web.Request) -> web.Response:
        return _json(self._shown.config())

    def _line(self, record: Record) -> dict[str, Any]:
        sent = record.sent
        return {
            "ticket": sent.ticket,
            "request_id": sent.request_id,
            "s_ago": round(self._shown.clock() - sent.at, 2),
            "model": sent.model,
            "target": sent.target,
            "endpoint": sent.endpoints[0],
            "prompt_tokens": sent.prompt_tokens,
            "matched_blocks": f"{sent.matched}/{sent.blocks}",
            "end": record.settlement.end.value if record.settlement else "open",
        }

    def _refusal(self, refusal: Refusal) -> dict[str, Any]:
        document = refusal._asdict()
        document["s_ago"] = round(self._shown.clock() - document.pop("at"), 2)
        return {"end": "refused", **document}

    def _document(self, record: Record) -> dict[str, Any]:
        document = described(record)
        document["s_ago"] = round(self._shown.clock() - record.sent.at, 2)
        document["end"] = _end(record.settlement)
        return document


def _end(settlement: Settlement | None) -> dict[str, Any]:
    if settlement is None:
        return {"end": "open"}
    return {
        "end": settlement.end.value,
        "served": settlement.served,
        "target": settlement.target,
        "failed": settlement.failed,
        "outcome": settlement.outcome._asdict() if settlement.outcome is not None else None,
        "charged": settlement.charged._asdict() if settlement.charged is not None else None,
    }


def _adapters(lora: Lora | None) -> dict[str, Any] | None:
    if lora is None:
        return None
    return {"running": sorted(lora.running), "waiting": sorted(lora.waiting), "slots": lora.slots}


def _learned(table: EndpointTable, row: int, now: float) -> dict[str, float] | None:
    """Show what settled requests took there; None if none was measured."""
    if not table.ttft_samples[row] and not table.tpot_samples[row]:
        return None
    return {
        "ttft_s": round(float(table.ttft_s[row]), 4),
        "tpot_s": round(float(table.tpot_s[row]), 5),
        "inflight": round(float(table.latency_load[row]), 2),
        "s_ago": round(now - float(table.latency_at[row]), 1),
    }


def _json(document: Any, *, status: int = 200) -> web.Response:
    return web.Response(
        body=orjson.dumps(document, option=_OPTIONS), status=status, headers={"content-type": "application/json"}
    )
