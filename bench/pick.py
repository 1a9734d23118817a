"""The picker without its sockets: the CPU of one exchange, from Envoy's messages to our answers and the settlement.

Best of several batches, so that it compares on a busy machine; what sockets and HTTP/2 add is in `requests`. The second
table is of exact tokens: what a decision takes of the loop, and beside it, with a byte-level BPE trained here.
"""

from __future__ import annotations

import itertools
import json
import random
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson
import tokenizers
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from bench import table
from extproc import plugins
from extproc.adapters import settings, telemetry
from extproc.adapters.desk import Desk
from extproc.adapters.errands import Errands
from extproc.adapters.transport import access_log, ext_proc
from extproc.candidates import World
from extproc.director import Director
from extproc.kvcache.index import PrefixIndex
from extproc.scheduling import config
from extproc.scheduling.endpoints import Endpoint, EndpointTable
from extproc.tokens.blocks import Bounds, Counts, TokenBlocks
from extproc.tokens.memo import Memo
from extproc.tokens.model import Fault, Files, ModelTokenizer
from extproc.traffic.ledger import Ledger
from extproc.traffic.pools import Pools
from extproc.traffic.routes import RouteTable
from extproc.types import Aside, HttpRequest
from matrixinfer.api import dataplane, networking

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.tokens.text import PrefixBlocks

BATCHES, BATCH = 15, 200
CONFIG: Final = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}
SPLIT: Final = (  # as in cl100k and its kin
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/v1/chat/completions",
    ":authority": "gateway.example:8080",
    "content-type": "application/json",
    "user-agent": "OpenAI/Python 3.54.0",
    "x-request-id": "7d85e4d7-b5fa-4b87-a011-beada2bf310c",
    "x-forwarded-proto": "http",
    "x-stainless-lang": "python",
    "x-stainless-async": "false",
    "accept": "application/json",
    "accept-encoding": "gzip, deflate",
}


class Sink:
    """A call whose answers nobody reads; keeps the last."""

    last = b""

    def send(self, message: bytes) -> None:
        """Take an answer."""
        self.last = message

    def finish(self, status: int = 0, message: str = "") -> None:
        """Take the end."""


class Picker:
    """Everything between transport and table, built as the picker's process builds it."""

    def __init__(self, endpoints: int, blocks: PrefixBlocks | None = None) -> None:
        rows = EndpointTable()
        self.world = World(rows, Pools(rows), Ledger(rows), PrefixIndex())
        current = config.load(CONFIG, plugins.BUILTIN)
        numbers = itertools.count(1)

        def tickets() -> str:
            return f"bench-{next(numbers):x}"

        self.director = Director(
            self.world,
            scheduler=config.build(current),
            blocks=blocks or settings.blocks(current),
            clock=time.monotonic,
            draw=random.Random(1),
            tickets=tickets,
        )
        members = [f"10.0.{n // 250}.{n % 250}:8000" for n in range(endpoints)]
        for address in members:
            rows.upsert(Endpoint(address, f"default/{address}", "vLLM"))
        self.world.pools.set({"default/demo": members})
        group = networking.API_VERSION
        server = networking.ModelServer.model_validate(
            {
                "apiVersion": group,
                "kind": "ModelServer",
                "metadata": {"name": "demo", "namespace": "default"},
                "spec": {
                    "inferenceEngine": "vLLM",
                    "workloadSelector": {"matchLabels": {"app": "demo"}},
                    "workloadPort": {"port": 8000},
                },
            }
        )
        route = networking.ModelRoute.model_validate(
            {
                "apiVersion": group,
                "kind": "ModelRoute",
                "metadata": {"name": "demo", "namespace": "default"},
                "spec": {"modelName": "demo", "rules": [{"targetModels": [{"modelServerName": "demo"}]}]},
            }
        )
        self.director.use_routes(RouteTable.build([route], [server]))
        desk = Desk(self.director, telemetry.Telemetry(self.world, self.director.routes_know), Errands())
        self.exchanges = ext_proc.ExtProcService(desk, max_body_bytes=32 << 20, tickets=tickets)
        self.log = access_log.AccessLogService(desk.settle).open(Sink())
        self._headers = _headers()

    def decide(self, body: bytes) -> tuple[float, float]:
        """Decide one request; returns the CPU seconds on the loop and beside it."""
        start, beside = time.process_time(), 0.0
        story = self.director.decide(HttpRequest("POST", HEADERS[":path"], HEADERS, body))
        try:
            errand = next(story)
            while True:
                before = time.process_time()
                assert isinstance(errand, Aside)  # noqa: S101 - no prefill here
                made = errand.work()
                beside += time.process_time() - before
                errand = story.send(made)
        except StopIteration:
            return time.process_time() - start - beside, beside

    def exchange(self, body: bytes) -> str:
        """One request, decided; returns its ticket."""
        sink = Sink()
        listener = self.exchanges.open(sink)
        listener.on_message(self._headers)
        listener.on_message(body)
        return next(reversed(self.director.recent))


def _headers() -> bytes:
    message = pb.ProcessingRequest()
    for key, value in HEADERS.items():
        message.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    message.protocol_config.request_body_mode = 2  # BUFFERED
    return bytes(message.SerializeToString())


def _chat(turns: list[str]) -> bytes:
    return orjson.dumps({"model": "demo", "messages": [{"role": "user", "content": turn} for turn in turns]})


def _body(text: str) -> bytes:
    body = pb.HttpBody(body=_chat([text]), end_of_stream=True)
    return bytes(pb.ProcessingRequest(request_body=body).SerializeToString())


def _record(ticket: str) -> bytes:
    entry = accesslog_pb2.HTTPAccessLogEntry()
    common = entry.common_properties
    common.start_time.GetCurrentTime()
    common.duration.FromMilliseconds(120)
    common.upstream_cluster = "modelserver/default/demo"
    metadata = common.metadata.filter_metadata
    metadata[dataplane.METADATA].update({dataplane.TICKET: ticket})
    metadata[dataplane.SERVED_METADATA].update({"host": "10.0.0.1:8000"})
    metadata[dataplane.USAGE_METADATA].update(
        {"prompt_tokens": 200, "completion_tokens": 30, "cached_tokens": 0, "model": "demo"}
    )
    entry.response.response_code.value = 200
    entry.response.response_code_details = "via_upstream"
    entry.request.request_id = HEADERS["x-request-id"]
    return bytes(als_pb2.StreamAccessLogsMessage(http_logs={"log_entry": [entry]}).SerializeToString())


class _One:
    """The one tokenizer of all models."""

    remote = None

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer

    def find(self, _model: str) -> ModelTokenizer:
        return self._tokenizer

    def fault(self, model: str, fault: Fault) -> None:
        raise AssertionError(f"{model}: {fault}")


def files() -> Files:
    """A tokenizer trained on Python's sources, split as cl100k splits, with ChatML's template."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, level])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=16_000,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train([str(source) for source in sources()[:150]], trainer)
    return Files(bpe.to_str(), json.dumps({"chat_template": TEMPLATE}))


def sources() -> list[Path]:
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def _exact(files: Files) -> list[tuple[str, ...]]:
    """Time decisions by exact tokens: the quickest of requests that differ, over 256 endpoints."""
    lines = [
        line for source in sources()[150:] for line in source.read_text(errors="replace").splitlines(keepends=True)
    ]
    chance = random.Random(1)
    tokenizer = ModelTokenizer(files, memo=Memo(), number=1, strftime_now=time.strftime)
    sample = "".join(chance.choices(lines, k=5000))
    ratio = len(sample) / len(tokenizer.encoder.ids(sample))

    def text(tokens: float) -> str:
        """Return text of about so many tokens that nobody has seen."""
        return "".join(chance.choices(lines, k=int(tokens * ratio / 20)))[: int(tokens * ratio)]

    shown, system, document = text(10_000), text(10_000), text(95_000)
    cases: tuple[tuple[str, Callable[[], list[str]], int], ...] = (
        ("200 tokens, cold", lambda: [text(200)], 100),
        ("10k tokens, known", lambda: [shown], 100),
        ("10k tokens known, a turn of 1.5 KB", lambda: [system, text(1500 / ratio)], 60),
        ("100k tokens, 95k shared", lambda: [document, text(5_000)], 12),
        ("49k tokens, cold", lambda: [text(49_000)], 8),
    )
    rows = []
    for name, made, times in cases:
        current = config.load(CONFIG, plugins.BUILTIN)
        picker = Picker(256, TokenBlocks(_One(tokenizer), settings.blocks(current), Bounds(), Counts()))
        took = [picker.decide(_chat(made())) for _ in range(times)][1:]
        rows.append((name, *(f"{min(values) * 1e3:.2f}" for values in zip(*took, strict=True))))
    return rows


def run() -> None:
    """Print the table."""
    rows = []
    words = "words of a long document that many share " * 3000
    for endpoints in (4, 256):
        for name, text in (("200 tokens", words[:800]), ("10k tokens, known", words[:40_000])):
            picker = Picker(endpoints)
            fresh = [_body(f"{n} {text}") for n in range(200)] if name == "200 tokens" else [_body(text)]
            pick, settle = [], []
            for _ in range(BATCHES):
                start = time.process_time()
                tickets = [picker.exchange(fresh[number % len(fresh)]) for number in range(BATCH)]
                pick.append(time.process_time() - start)
                records = [_record(ticket) for ticket in tickets]
                start = time.process_time()
                for record in records:
                    picker.log.on_message(record)
                settle.append(time.process_time() - start)
            rows.append((name, str(endpoints), *(f"{min(times) / BATCH * 1e6:.0f}" for times in (pick, settle))))
    head = ("prompt", "endpoints", "exchange us", "settlement us")
    table.show("The picker's handler alone: CPU per exchange", head, rows)
    rows = _exact(files())
    table.show("A decision by exact tokens: CPU, 256 endpoints", ("prompt", "loop ms", "beside it ms"), rows)
