"""The picker in virtual time: the same table, ledger, index, scheduler and plugins that serve, without the protocol.

What is the director's in a gateway is here in short: candidates, cycle, choice, note what was sent, settle. What the scraper
does is `scraped`: columns show what the engine was at its last scrape, not what it is. With flow control in the configuration
requests are asked for at `turns`, and placed when that lets them go.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import numpy as np

from extproc.scheduling import config as scheduling
from extproc.scheduling.endpoints import Endpoint, EndpointTable
from extproc.scheduling.framework import Cycle
from extproc.traffic import latency
from extproc.traffic.flow import callers
from extproc.traffic.ledger import Ledger, Sent
from extproc.types import Api, HttpRequest, InferenceRequest, Outcome
from matrixinfer.cli.simulate.holders import Learned, Told
from matrixinfer.cli.simulate.turns import BYTES_PER_TOKEN, Turns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from matrixinfer.cli.simulate.cluster import Cluster
    from matrixinfer.cli.simulate.engine import Engine
    from matrixinfer.cli.simulate.engine import Request as Served
    from matrixinfer.cli.simulate.holders import Holders
    from matrixinfer.cli.simulate.trace import Trace

BASE_MODEL: Final = "model"
_SESSION: Final = "x-session-id"
_TENANT: Final = "x-tenant"
_PATH: Final = "/v1/chat/completions"
_POOL: Final = "default/model"


class Picker:
    """One picker before the cluster's engines; rows of its table are the engines' places. It knows no other picker."""

    def __init__(self, settings: scheduling.Config, cluster: Cluster, trace: Trace, *, exact: bool, seed: int) -> None:
        self._trace = trace
        self._scheduler = scheduling.build(settings)
        self._draw = random.Random(seed)  # noqa: S311 - chance for balance
        each = cluster.each
        self.table = EndpointTable(capacity=max(len(each), 4))
        self._places = [
            self._meet(place, group.name, frozenset({BASE_MODEL, *group.loras}), frozenset(group.loras))
            for place, group in enumerate(each)
        ]
        self._rows = np.array(self._places, dtype=np.intp)
        self._place_of = {row: place for place, row in enumerate(self._places)}
        self._ledger = Ledger(self.table)
        self._model_rows = [self._candidates(model) for model in trace.models]
        self._most = max(1, settings.prefix.max_blocks * settings.prefix.block_size_tokens // trace.block_tokens)
        self.told = Told(settings, cluster, trace, self._places) if exact else None  # listens to the engines
        self._holders: Holders = self.told or Learned(settings, trace)
        rules = settings.flow
        self.turns = (
            None
            if rules is None
            else Turns(rules, scheduling.detector(settings), table=self.table, pool=_POOL, rows=self._rows)
        )

    def ask(self, number: int, now: float) -> None:
        """Take a request at the gate."""
        assert self.turns is not None  # noqa: S101 - for the types: nobody asks without flow control
        trace, request = self._trace, self._request(number)
        objective = trace.objectives[trace.objective[number]]
        http = HttpRequest(
            "POST",
            _PATH,
            {callers.OBJECTIVE[0]: objective} if objective else {},
            bytes(request.prompt_tokens * BYTES_PER_TOKEN),
            tenant=trace.tenants[trace.tenant[number]],
            key=trace.keys[trace.key[number]],
        )
        self.turns.at(now)
        self.turns.ask(number, http, request, lambda: self._known(number))

    def place(self, number: int, chain: list[int], now: float) -> int:
        """Say which engine gets the request. Raises Saturated."""
        trace, turns = self._trace, self.turns
        chain = chain[: self._most] if len(chain) > self._most else chain
        rows = self._model_rows[trace.model[number]]
        if turns is not None:
            rows = turns.gate.narrowed(rows, now)
        cycle = self._cycle(number, chain, rows, now)
        result = self._scheduler.schedule(cycle)
        row = result.rows[0]
        request = cycle.request
        self._ledger.open(
            Sent(
                ticket=request.id,
                request_id=request.id,
                model=request.model,
                engine_model=request.model,
                target=_POOL,
                route="",
                path=_PATH,
                stream=True,
                endpoints=result.addresses,
                prompt_tokens=request.prompt_tokens,
                blocks=cycle.blocks,
                matched=0,
                at=now,
                waited_s=now - float(trace.at[number]),
            )
        )
        self._holders.routed(chain, row, now)
        if turns is not None:
            turns.sent(
                number,
                prompt=request.prompt_tokens,
                cached=int(cycle.matched[rows.tolist().index(row)]) * trace.block_tokens,
                output=int(trace.output[number]),
            )
        return self._place_of[row]

    def warm(self, engines: Sequence[Engine], now: float) -> None:
        """Learn, before the first request, what can be asked of engines that have served others before."""
        for engine in engines:
            self.scraped(engine, now)
            if self.told is not None:
                self.told.replayed(engine.place, engine.findable)

    def settle(self, served: Served, place: int, ended: float, now: float) -> None:
        """Hear, at `now`, that an answer was complete when it `ended`."""
        settlement = self._ledger.settle(
            Outcome(
                ticket=str(served.number),
                request_id="",
                model="",
                endpoint=_address(place),
                status=200,
                flags=(),
                details="",
                attempts=1,
                started_at=served.arrived,
                duration_s=ended - served.arrived,
                first_token_s=served.first_token - served.arrived,
                prompt_tokens=served.prompt,
                completion_tokens=served.output,
                cached_tokens=max(served.cached, 0),
            ),
            now,
        )
        if settlement is not None:
            latency.learn(self.table, settlement, now)
            if self.turns is not None:
                self.turns.at(now)
                self.turns.gate.settle(settlement)

    def scraped(self, engine: Engine, now: float) -> None:
        """Take what an engine's metrics page says."""
        row = self._places[engine.place]
        table = self.table
        table.waiting[row] = len(engine.waiting)
        table.running[row] = engine.running
        table.kv_usage[row] = engine.kv_usage
        table.kv_tokens[row] = engine.capacity
        table.inflight_scraped[row] = table.inflight[row]
        table.inflight_tokens_scraped[row] = table.inflight_tokens[row]
        table.scraped_at[row] = now
        if self.turns is not None:
            self.turns.at(now)
            self.turns.gate.pump()

    def _known(self, number: int) -> int:
        """Return how many tokens of a prompt the engine has that knows it best, of those with a place."""
        assert self.turns is not None  # noqa: S101 - for the types: the gate asks
        trace, now = self._trace, self.turns.now
        rows = self.turns.gate.narrowed(self._model_rows[trace.model[number]], now)
        matched = self._holders.match(trace.chain(number)[: self._most], rows, now)
        return int(matched.max()) * trace.block_tokens

    def _cycle(self, number: int, chain: Sequence[int], rows: NDArray[np.intp], now: float) -> Cycle:
        holders, request = self._holders, self._request(number)
        matched = holders.match(chain, rows, now)
        return Cycle(
            request=request,
            table=self.table,
            rows=rows,
            matched=matched,
            home=holders.home(chain, rows, matched),
            blocks=len(chain),
            now=now,
            draw=self._draw,
            trunk=holders.trunk(chain),
            engine_model=request.model,
        )

    def _request(self, number: int) -> InferenceRequest:
        trace = self._trace
        headers: dict[str, str] = {}
        if session := trace.sessions[trace.session[number]]:
            headers[_SESSION] = session
        if tenant := trace.tenants[trace.tenant[number]]:
            headers[_TENANT] = tenant
        return InferenceRequest(
            id=str(number),
            api=Api.CHAT,
            path=_PATH,
            headers=headers,
            model=trace.models[trace.model[number]] or BASE_MODEL,
            stream=True,
            prefix=b"",
            prompt_tokens=int(trace.prompt[number]),
            max_tokens=None,
            wants_usage=True,
            cache_salt="",
            body=b"",
        )

    def _meet(self, place: int, group: str, models: frozenset[str], adapters: frozenset[str]) -> int:
        row = self.table.upsert(
            Endpoint(address=_address(place), pod=f"default/{group}-{place}", engine="vLLM", labels={"group": group})
        )
        self.table.models[row] = models
        self.table.adapters[row] = adapters
        return row

    def _candidates(self, model: str) -> NDArray[np.intp]:
        """Rows that may serve `model`: those with the adapter, all where none has it, as the director does it."""
        loaded = [row for row in self._rows.tolist() if model in self.table.models[row]]
        return np.array(loaded, dtype=np.intp) if model and loaded else self._rows


def _address(place: int) -> str:
    return f"10.0.{place >> 8}.{place & 255}:8000"
