"""The models' tokenizers: found for every model that a route names, loaded beside the loop, followed when files change.

What cannot be found or used is logged once, counted, and tried again; until then the model has text blocks. A tokenizer
that turns bad while it is in use stays as it was.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import os
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from extproc.adapters import telemetry, tokens_files
from extproc.errors import Busy
from extproc.tokens.memo import Memo
from extproc.tokens.model import Fault, ModelTokenizer
from extproc.tokens.remote import Remote
from extproc.types import Call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from extproc.adapters.tokens_files import Named, Source, Stamp
    from extproc.plugins.token_producer import TokenProducer
    from extproc.tokens.blocks import Counts
    from extproc.traffic.routes import RouteTable
    from extproc.types import Called

_LOG = logging.getLogger(__name__)
_OK: Final = 200
_LOG_FAULTS_EVERY: Final = 1000  # requests of one model and reason: each line more would cost the others time


class _Found(NamedTuple):
    """What looking for one model's tokenizer brought."""

    source: Source | None = None
    stamp: Stamp = ()
    problem: str = ""


class Tokenizers:
    """Knows the tokenizer of each model. Written on the loop only."""

    def __init__(
        self,
        params: TokenProducer.Params,
        routes: Callable[[], RouteTable],
        engines: Callable[[str], Sequence[str]] = lambda _server: (),
        call: Callable[[Call], Awaitable[Called]] | None = None,
    ) -> None:
        """`routes`: those in force, which name the models; `engines`: URLs of a ModelServer's engines that are ready.

        `call`: performs a call to an engine.
        """
        self.memo = Memo(params.memo_bytes)
        self.loads = 0
        self.failures = 0
        self.unanswered = 0  # questions to engines
        self._params = params
        self._routes = routes
        self._found: dict[str, _Found] = {}  # by the engine's name for the model
        self._ready: dict[str, ModelTokenizer] = {}  # likewise
        self._loaded: dict[Source, tuple[Stamp, ModelTokenizer]] = {}  # a model and its adapters share one
        self._tried: dict[Source, tuple[Stamp, str]] = {}  # what could not be used, and why
        self._numbers = itertools.count(1)
        self._faults: Counter[tuple[str, str]] = Counter()  # model, reason
        self._engines = engines
        self._call = call
        self._templates: dict[Source, str] = {}  # as engines told them
        self._servers: dict[str, str] = {}  # by model
        self._left_alone: dict[str, float] = {}  # models whose engines failed, and until when
        self._turns = itertools.count()
        self._remote = Remote(self._engine, self._engine_failed, timeout_s=params.ask_timeout_seconds)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread for a text: the cores are Envoy's, too

    def use(self, params: TokenProducer.Params) -> None:
        """Go by these from now on; what changed takes effect with the next look."""
        if params != self._params:
            self._params = params
            self.memo.most_bytes = params.memo_bytes
            self._remote.timeout_s = params.ask_timeout_seconds

    @property
    def remote(self) -> Remote | None:
        """Who asks engines where there is no tokenizer; None: nobody."""
        return self._remote if self._params.ask_engines and self._params.enabled else None

    def find(self, model: str) -> ModelTokenizer | None:
        """Return the tokenizer of `model`, as its engine knows it; None: there is none, or not yet."""
        return self._ready.get(model)

    def fault(self, model: str, fault: Fault) -> None:
        """Take note of a request whose token ids cannot be told."""
        seen = self._faults[model, fault.reason]
        self._faults[model, fault.reason] = seen + 1
        if seen % _LOG_FAULTS_EVERY == 0:
            extra = {"model": model, "reason": fault.reason, "why": str(fault)[:300], "seen": seen + 1}
            _LOG.info("a request has text blocks in place of token blocks", extra=extra)

    async def run(self) -> None:
        """Follow routes and files until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._params.recheck_seconds)

    async def look(self) -> None:
        """Bring tokenizers in step with routes and files, once."""
        params = self._params
        wanted = dict(named(self._routes())) if params.enabled else {}
        self._servers = {model: known.server for model, known in wanted.items()}
        found = await asyncio.to_thread(_survey, wanted, params)
        for model in self._ready.keys() - found.keys():
            del self._ready[model]
        await self._ask_templates(found)
        for model, one in found.items():
            if one.source is None:
                self._without(model, one.problem)
            elif (tokenizer := await self._tokenizer(one.source, one.stamp)) is not None:
                self._ready[model] = tokenizer
            else:
                one = one._replace(problem=self._tried[one.source][1])  # noqa: PLW2901 - with what came of it
            found[model] = one
        self._found = found
        sources = {one.source for one in found.values()}
        for known in (self._loaded, self._tried, self._templates):
            for gone in [source for source in known if source not in sources]:
                del known[gone]

    def metrics(self, counts: Counts) -> Iterable[Metric]:
        """Yield what is counted here and in the blocks."""
        states = Counter(
            "ready" if model in self._ready else "failed" if one.problem else "none"
            for model, one in self._found.items()
        )
        yield telemetry.labelled_gauge(
            "matrixinfer_tokenizers",
            "Models by whether they have a tokenizer; none: none was found, failed: it cannot be used.",
            {(state,): float(states[state]) for state in ("ready", "none", "failed")},
            ("state",),
        )
        yield telemetry.counter(
            "matrixinfer_tokenizer_loads",
            "Tokenizers read, at the start and when their files change.",
            {("ok",): self.loads, ("failed",): self.failures},
            ("result",),
        )
        yield telemetry.counter(
            "matrixinfer_tokenizer_requests",
            "Requests by what their prefix is made of: tokens, or text, and why text.",
            {("tokens",): 0.0, **{(kind,): float(value) for kind, value in counts.requests.items()}},
            ("prefix",),
        )
        yield telemetry.counter(
            "matrixinfer_tokenizer_bytes",
            "Bytes of prompts: known by pieces, or encoded.",
            {("known",): counts.known_bytes, ("encoded",): counts.encoded_bytes},
            ("source",),
        )
        yield telemetry.gauge(
            "matrixinfer_tokenizer_pending_bytes",
            "Bytes of prompts being encoded beside the loop.",
            counts.pending_bytes,
        )
        yield telemetry.gauge("matrixinfer_tokenizer_memo_bytes", "Memory of remembered pieces.", self.memo.bytes)

    async def _tokenizer(self, source: Source, stamp: Stamp) -> ModelTokenizer | None:
        """Return the tokenizer in `source`, loaded again if its files changed; the one before where that fails."""
        stamp = (*stamp, (self._templates.get(source, ""), 0, 0, 0))
        before = self._loaded.get(source)
        if before is not None and before[0] == stamp:
            return before[1]
        if (tried := self._tried.get(source)) is not None and tried[0] == stamp:
            return before[1] if before else None
        try:
            tokenizer = await asyncio.to_thread(self._load, source, before[1] if before else None)
        except Fault as fault:
            self.failures += 1
            self._tried[source] = stamp, str(fault)
            extra = {"folder": str(source.folder), "problem": str(fault)}
            _LOG.warning("a tokenizer cannot be used: text blocks take the place of token blocks", extra=extra)
            return before[1] if before else None
        self.loads += 1
        self._loaded[source] = stamp, tokenizer
        extra = {"folder": str(source.folder), "cuts": tokenizer.encoder.cuts}
        _LOG.info("a tokenizer is in use", extra=extra)
        if tokenizer.encoder.faults:
            _LOG.warning("texts cannot be cut everywhere: long prompts cost more", extra=extra)
        return tokenizer

    def _without(self, model: str, problem: str) -> None:
        """Note that a model has no tokenizer now, and say so once. After a problem the one before stays in use."""
        known = self._found.get(model)
        if not problem:
            self._ready.pop(model, None)
        if known is not None and known.source is None and known.problem == problem:
            return
        if problem:
            self.failures += 1
            _LOG.warning("a tokenizer cannot be found", extra={"model": model, "problem": problem})
        else:
            _LOG.info("no tokenizer: text blocks take the place of token blocks", extra={"model": model})

    async def _ask_templates(self, found: Mapping[str, _Found]) -> None:
        """Learn from engines which chat templates they render with, where that is wanted and they tell."""
        asked = {one.source: model for model, one in found.items() if one.source is not None}
        for source, model in asked.items():
            params, url = self._params, self._engine(model)
            if self._call is None or not params.ask_engines or source.settings.chat_template or not url:
                continue
            try:
                called = await self._call(Call("GET", f"{url}/tokenizer_info", params.ask_timeout_seconds))
                template = orjson.loads(called.body)["chat_template"] if called.status == _OK else None
            except (Busy, orjson.JSONDecodeError, KeyError, TypeError):
                continue
            if isinstance(template, str) and template:
                self._templates[source] = template

    def _engine(self, model: str) -> str:
        """Return the URL of an engine that serves `model`, one after the other; "": none is to be asked."""
        if self._left_alone.get(model, 0.0) > asyncio.get_running_loop().time():
            return ""
        urls = self._engines(self._servers.get(model, ""))
        return urls[next(self._turns) % len(urls)] if urls else ""

    def _engine_failed(self, model: str, why: str) -> None:
        self.unanswered += 1
        self._left_alone[model] = asyncio.get_running_loop().time() + self._params.recheck_seconds
        _LOG.warning("an engine does not tokenize: text blocks for a while", extra={"model": model, "why": why})

    def _load(self, source: Source, before: ModelTokenizer | None) -> ModelTokenizer:
        files = tokens_files.read(source)
        if template := self._templates.get(source):
            files = dataclasses.replace(files, templates=(("default", template),), processor="")
        return ModelTokenizer(
            files,
            memo=self.memo,
            number=next(self._numbers),
            strftime_now=lambda form: datetime.now().strftime(form),  # noqa: DTZ005 - local time, as engines take it
            trusts_templates=source.settings.trust_request_chat_template,
            defaults=source.settings.template_defaults(),
            like=before,
        )


def _survey(wanted: Mapping[str, Named], params: TokenProducer.Params) -> dict[str, _Found]:
    """Look for every model's tokenizer."""
    return {model: _look_for(known, params) for model, known in wanted.items()}


def _look_for(known: Named, params: TokenProducer.Params) -> _Found:
    try:
        source = tokens_files.locate(known, params)
    except Fault as fault:
        return _Found(problem=str(fault))
    return _Found() if source is None else _Found(source, tokens_files.stamp(source))


def named(routes: RouteTable) -> Iterator[tuple[str, Named]]:
    """Yield every model that goes to an engine by these routes, with the names its tokenizer may have."""
    made: dict[str, Named] = {}
    for route in routes.routes:
        for rule in route.spec.rules:
            for target in rule.target_models:
                server = routes.servers.get(f"{route.namespace}/{target.model_server_name}")
                if server is None:
                    continue
                base = server.spec.model or route.spec.model_name
                annotation = server.metadata.annotations.get(tokens_files.ANNOTATION, "")
                bases = [base] if base else []
                for name in (*bases, *route.spec.lora_adapters):
                    names = tuple(dict.fromkeys((name, *bases)))
                    made.setdefault(
                        name, tokens_files.Named(names, annotation, f"{route.namespace}/{target.model_server_name}")
                    )
    yield from made.items()
