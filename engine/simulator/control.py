"""The simulator's own endpoints: the account of requests, the state of the batch, failures on purpose."""

import asyncio
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import orjson

from engine.simulator import batch, faults, http1, server
from engine.simulator.serving import Serving


class Control:
    """Puts failures in force, and tells what happened."""

    def __init__(self, serving: Serving, front: server.Server) -> None:
        self._serving = serving
        self._front = front
        self._latency: batch.Latency = serving.engine.state.latency
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def routes(self) -> dict[str, dict[str, server.Handler]]:
        """Give the paths that are answered here."""
        return {
            "/reset_prefix_cache": {"POST": self.reset_prefix_cache},
            "/abort_request": {"POST": self.abort_request},
            "/sim/requests": {"GET": self.requests},
            "/sim/state": {"GET": self.state},
            "/sim/fail": {"POST": self.fail, "DELETE": self.clear},
        }

    def requests(self, request: http1.Request, reply: server.Reply) -> None:
        """GET /sim/requests."""
        since = parse_qs(request.query).get("since", ["0"])[0]
        if not since.isdigit():
            _refuse(reply, "since must be a number")
            return
        _answer(reply, self._serving.ledger.as_dict(int(since)))

    def state(self, _: http1.Request, reply: server.Reply) -> None:
        """GET /sim/state."""
        state = self._serving.engine.state
        _answer(
            reply,
            {
                "waiting": len(state.waiting),
                "running": len(state.running),
                "blocks": state.blocks.total,
                "free_blocks": state.blocks.free,
                "cached_blocks": state.blocks.cached,
                "steps": state.counters.steps,
                "preemptions": state.counters.preemptions,
                "loras": [name for name, _ in self._serving.adapters.items()],
                "failures": self._failures(),
                "transfers": self._serving.transfers.state() if self._serving.transfers is not None else None,
            },
        )

    def abort_request(self, request: http1.Request, reply: server.Reply) -> None:
        """POST /abort_request, SGLang's: end a request that waits for its blocks."""
        transfers = self._serving.transfers
        rid = str(orjson.loads(request.body or b"{}").get("rid", ""))
        if transfers is not None:
            transfers.abort(rid)
        reply.send(200, b"", None)

    def fail(self, request: http1.Request, reply: server.Reply) -> None:
        """POST /sim/fail."""
        try:
            fault = faults.from_mapping(orjson.loads(request.body))
        except (orjson.JSONDecodeError, faults.BadFault) as error:
            _refuse(reply, str(error))
            return
        self.add(fault)
        _answer(reply, {"failures": self._failures()})

    def clear(self, _: http1.Request, reply: server.Reply) -> None:
        """DELETE /sim/fail."""
        self._serving.faults.clear()
        self._apply()
        _answer(reply, {"failures": []})

    def reset_prefix_cache(self, _: http1.Request, reply: server.Reply) -> None:
        """POST /reset_prefix_cache."""
        reply.send(200 if self._serving.engine.reset_prefix_cache() else 500, b"", None)

    def add(self, fault: faults.Fault) -> None:
        """Put a failure in force."""
        self._serving.faults.add(fault)
        if fault.seconds is not None:
            asyncio.get_running_loop().call_later(fault.seconds, self._end, fault)
        self._apply()

    def _end(self, fault: faults.Fault) -> None:
        self._serving.faults.remove(fault)
        self._apply()

    def _apply(self) -> None:
        active = self._serving.faults
        slow = active.in_force("slow")
        factor = slow.factor if slow is not None else 1.0
        self._serving.engine.state.latency = replace(self._latency, speed=self._latency.speed / factor)
        refuse = active.in_force("refuse") is not None
        if refuse and not self._closed:
            asyncio.get_running_loop().call_soon(
                self._front.refuse_connections
            )  # the answer to this request goes out first
        if not refuse and self._closed:
            task = asyncio.ensure_future(self._front.reopen())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._closed = refuse

    def _failures(self) -> list[dict[str, Any]]:
        return [fault.as_dict() for fault in self._serving.faults.active]


def _answer(reply: server.Reply, value: Any) -> None:
    reply.send(200, orjson.dumps(value))


def _refuse(reply: server.Reply, message: str) -> None:
    reply.send(400, orjson.dumps({"error": message}))
