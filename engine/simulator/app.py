"""The routes: paths to handlers, failures in between, errors in vLLM's form."""

import secrets
import time
from collections.abc import Callable

import orjson

from engine.simulator import bodies, errors, http1, openai, server
from engine.simulator.bodies import Body
from engine.simulator.serving import Serving, Work
from engine.simulator.vllm_metrics import EngineMetrics

VERSION = "0.32.0"
METRICS_TYPE = b"text/plain; version=1.0.0; charset=utf-8"

Route = Callable[[http1.Request, server.Reply], None]


class App:
    """Answers requests; `handle` and `observe` are what the server calls."""

    def __init__(self, serving: Serving, metrics: EngineMetrics) -> None:
        self._serving = serving
        self._metrics = metrics
        inference: dict[str, Callable[[Body, server.Reply], None]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completions,
        }
        self._routes: dict[str, dict[str, Route]] = {
            **{path: {"POST": self._inference(handler)} for path, handler in inference.items()},
            "/v1/models": {"GET": self._models},
            "/version": {"GET": lambda _, reply: reply.send(200, orjson.dumps({"version": VERSION}))},
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/metrics": {"GET": lambda _, reply: reply.send(200, self._metrics.page(), METRICS_TYPE)},
        }

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
            reply.send(error.status, error.body())

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

    def _inference(self, handler: Callable[[Body, server.Reply], None]) -> Route:
        def route(request: http1.Request, reply: server.Reply) -> None:
            if self._serving.faults.active and self._failed(request, reply):
                return
            try:
                handler(bodies.load(request), reply)
            except errors.ApiError as error:
                self._note(request, reply, "rejected", status=error.status)
                raise

        return route

    def _note(self, request: http1.Request, reply: server.Reply, end: str, *, status: int) -> None:
        serving = self._serving
        entry = serving.ledger.open(
            request_id="", client_request_id=request.headers.get("x-request-id"), path=request.path,
            model=None, stream=False, now=serving.clock(),
        )  # fmt: skip
        entry.status = status
        if end == "failed:hang":
            reply.gone = lambda: serving.ledger.close(entry, end, serving.clock())
        else:
            serving.ledger.close(entry, end, serving.clock())

    def _failed(self, request: http1.Request, reply: server.Reply) -> bool:
        fault = self._serving.faults.take("503", "500", "garbage", "hang", "reset")
        if fault is None:
            return False
        match fault.mode:
            case "hang":
                self._note(request, reply, "failed:hang", status=0)
                return True
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

    def _health(self, _: http1.Request, reply: server.Reply) -> None:
        reply.send(503 if self._serving.faults.in_force("unhealthy") else 200, b"", None)

    def _models(self, _: http1.Request, reply: server.Reply) -> None:
        settings = self._serving.settings
        cards = [self._card(name, settings.model, None, settings.context_length) for name in settings.names]
        cards += [self._card(name, path, settings.names[0], None) for name, path in self._serving.adapters.items()]
        reply.send(200, orjson.dumps({"object": "list", "data": cards}))

    def _card(self, name: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, object]:
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

    def _chat(self, body: Body, reply: server.Reply) -> None:
        serving = self._serving
        sampling = bodies.sampling(body, "max_completion_tokens", "max_tokens")
        model = serving.model(body)
        form = openai.Chat(serving.frame(model, sampling))
        serving.generate(
            reply,
            Work(
                prompts=(serving.chat_prompt(body),),
                sampling=sampling,
                model=model,
                salt=bodies.text(body, "cache_salt"),
                form=form,
                request_id=form.request_id,
            ),
        )

    def _completions(self, body: Body, reply: server.Reply) -> None:
        serving = self._serving
        sampling = bodies.sampling(body, "max_tokens")
        model = serving.model(body)
        form = openai.Completion(serving.frame(model, sampling))
        serving.generate(
            reply,
            Work(
                prompts=serving.prompts(body),
                sampling=bodies.with_default_length(sampling, 16),
                model=model,
                salt=bodies.text(body, "cache_salt"),
                form=form,
                request_id=form.request_id,
            ),
        )
