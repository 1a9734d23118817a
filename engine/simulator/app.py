"""The routes: paths to handlers, failures in between, errors in vLLM's form."""

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

import orjson

from engine.simulator import bodies, errors, http1, server
from engine.simulator.bodies import Body
from engine.simulator.endpoints import Endpoints
from engine.simulator.serving import Serving
from engine.simulator.vllm_metrics import EngineMetrics

VERSION = "0.32.0"
_log = logging.getLogger(__name__)
_METRICS_TYPE = b"text/plain; version=1.0.0; charset=utf-8"

Route = server.Handler
Handler = Callable[[Body, server.Reply], None]


class App:
    """Answers requests; `handle` and `observe` are what the server calls."""

    def __init__(
        self,
        serving: Serving,
        metrics: EngineMetrics,
        *,
        kv_events: dict[str, Any] | None,
    ) -> None:
        self._serving = serving
        self._metrics = metrics
        self._kv_events = kv_events
        do = Endpoints(serving)
        inference: dict[str, Handler] = {
            "/v1/chat/completions": do.chat,
            "/v1/completions": do.completions,
            "/v1/responses": do.responses,
            "/v1/messages": do.messages,
            "/v1/messages/count_tokens": do.count_tokens,
            "/v1/embeddings": do.embeddings,
            "/v1/score": do.score,
            "/score": do.score,
            "/v1/rerank": do.rerank,
            "/v2/rerank": do.rerank,
            "/rerank": do.rerank,
        }
        other: dict[str, Handler] = {"/tokenize": do.tokenize, "/detokenize": do.detokenize}
        if not serving.settings.no_lora:
            other["/v1/load_lora_adapter"] = do.load_lora
            other["/v1/unload_lora_adapter"] = do.unload_lora
        self._routes: dict[str, dict[str, Route]] = {
            **{path: {"POST": self._inference(handler)} for path, handler in inference.items()},
            **{path: {"POST": _with_body(handler)} for path, handler in other.items()},
            "/v1/models": {"GET": self._models},
            "/version": {"GET": lambda _, reply: reply.send(200, orjson.dumps({"version": VERSION}))},
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/metrics": {"GET": lambda _, reply: reply.send(200, self._metrics.page(), _METRICS_TYPE)},
            "/kv_event_sources": {"GET": self._event_sources},
        }

    def add(self, routes: dict[str, dict[str, Route]]) -> None:
        """Answer more paths."""
        self._routes.update(routes)

    def handle(self, request: http1.Request, reply: server.Reply) -> None:
        """Answer one request, now or later."""
        methods = self._routes.get(request.path)
        if methods is None:
            reply.send(404, b'{"detail":"Not Found"}')
            return
        route = methods.get(request.method)
        if route is None:
            reply.send(405, b'{"detail":"Method Not Allowed"}', headers=b"allow: %b\r\n" % ", ".join(methods).encode())
            return
        try:
            route(request, reply)
        except errors.ApiError as error:
            body = error.body_for_anthropic() if request.path.startswith("/v1/messages") else error.body()
            reply.send(error.status, body)
        except Exception:  # noqa: BLE001 (the root of a request: the client gets an answer whatever broke)
            _log.exception("%s %s failed", request.method, request.path)
            if reply.started:
                reply.cut(reset=True)
            else:
                reply.send(500, errors.ApiError(500, "Internal server error", kind="InternalServerError").body())

    def observe(self, reply: server.Reply) -> None:
        """Count an exchange."""
        request = reply.request
        methods = self._routes.get(request.path)
        self._metrics.http(
            handler=request.path if methods is not None and request.method in methods else "none",
            method=request.method,
            status=reply.status,
            sizes=(len(request.body), reply.written),
            seconds=time.monotonic() - reply.began,
        )

    def _inference(self, handler: Handler) -> Route:
        def route(request: http1.Request, reply: server.Reply) -> None:
            if self._serving.faults.active and self._failed(request, reply):
                return
            try:
                handler(bodies.load(request), reply)
            except errors.ApiError as error:
                self._note(request, reply, "rejected", status=error.status)
                raise

        return route

    def _failed(self, request: http1.Request, reply: server.Reply) -> bool:
        fault = self._serving.faults.take("503", "500", "garbage", "hang", "reset")
        if fault is None:
            return False
        match fault.mode:
            case "hang":
                self._note(request, reply, "failed:hang", status=0)
            case "reset":
                self._note(request, reply, "failed:reset", status=0)
                reply.cut(reset=True)
            case "garbage":
                self._note(request, reply, "failed:garbage", status=200)
                reply.send(200, secrets.token_bytes(200))
            case mode:
                self._note(request, reply, f"failed:{mode}", status=int(mode))
                kind = "ServiceUnavailableError" if mode == "503" else "InternalServerError"
                reply.send(int(mode), errors.ApiError(int(mode), "A failure on purpose.", kind=kind).body())
        return True

    def _note(self, request: http1.Request, reply: server.Reply, end: str, *, status: int) -> None:
        serving = self._serving
        entry = serving.ledger.open(
            request_id="",
            client_request_id=request.headers.get("x-request-id"),
            path=request.path,
            model=None,
            stream=False,
            now=serving.clock(),
        )
        entry.status = status
        if end == "failed:hang":
            reply.gone = lambda: serving.ledger.close(entry, end, serving.clock())
        else:
            serving.ledger.close(entry, end, serving.clock())

    def _health(self, _: http1.Request, reply: server.Reply) -> None:
        reply.send(503 if self._serving.faults.in_force("unhealthy") else 200, b"", None)

    def _event_sources(self, _: http1.Request, reply: server.Reply) -> None:
        reply.send(200, orjson.dumps({"0": self._kv_events} if self._kv_events else {}))

    def _models(self, _: http1.Request, reply: server.Reply) -> None:
        settings = self._serving.settings
        cards = [_card(name, settings.model, None, settings.context_length) for name in settings.names]
        cards += [_card(name, path, settings.names[0], None) for name, path in self._serving.adapters.items()]
        reply.send(200, orjson.dumps({"object": "list", "data": cards}))


def _with_body(handler: Handler) -> Route:
    return lambda request, reply: handler(bodies.load(request), reply)


def _card(name: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, Any]:
    created = int(time.time())
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
        "permission": [
            {
                "id": f"modelperm-{secrets.token_hex(8)}",
                "object": "model_permission",
                "created": created,
                "allow_create_engine": False,
                "allow_sampling": True,
                "allow_logprobs": True,
                "allow_search_indices": False,
                "allow_view": True,
                "allow_fine_tuning": False,
                "organization": "*",
                "group": None,
                "is_blocking": False,
            }
        ],
    }
