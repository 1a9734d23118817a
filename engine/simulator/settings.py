"""The command line: what can be set, what it means, and what it is when it is not set."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
An engine that computes nothing and answers like vLLM 0.32: OpenAI, Anthropic and vLLM's own endpoints, its metrics,
its prefix cache to the block, its KV events, and a batch-aware model of its latency. Text is made of common words,
always the same for the same prompt."""

_EPILOG = """\
An answer is exactly max_tokens long where the request says max_tokens (finish_reason "length"), else it ends by
itself after a length that the prompt determines, --answer-tokens on average (finish_reason "stop").

Endpoints of its own, on --port and on --admin-port:
  GET  /sim/requests   what became of every request, and totals (?since=N: entries from number N on)
  GET  /sim/state      waiting, running, cached blocks, failures in force
  POST /sim/fail       {"mode": M, ...}, see below; answers with the failures in force
  DELETE /sim/fail     no failures any more
  POST /reset_prefix_cache   forget all prefixes (refused while requests run), as in vLLM

Failures (--fail MODE[:KEY=VALUE,...] or POST /sim/fail), applied to requests for inference:
  503, 500             answer with that status and an error body
  garbage              200 with bytes that are no JSON (no events, for a stream)
  hang                 take the request and never answer
  reset                reset the connection instead of answering
  die-mid-stream       answer, and reset the connection after `chunks` events (of a plain body: after half of it)
  slow                 every step takes `factor` times as long
  unhealthy            /health answers 503; requests are served
  refuse               close the port: connections are refused (cleared on --admin-port, or after `seconds`)
Keys: count (how many requests, default all), probability (0 to 1, default 1), chunks (default 1), factor (default 10),
seconds (ends by itself after that time)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the command line sets."""

    model: str
    served_model_name: tuple[str, ...]
    host: str
    port: int
    admin_port: int | None
    block_size: int
    kv_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int | None
    prefill_tokens_per_second: float
    itl_ms_base: float
    itl_ms_per_sequence: float
    speed: float
    answer_tokens: int
    seed: int
    lora: tuple[str, ...]
    max_loras: int
    no_lora: bool
    kv_events_endpoint: str | None
    replay_endpoint: str | None
    topic: str | None
    buffer_steps: int
    data_parallel_rank: int
    max_body_mb: int
    keep_alive: float
    grace: float
    fail: tuple[str, ...]
    kv_transfer_config: str | None
    disaggregation_mode: str
    side_channel_port: int | None
    transfer_tokens_per_second: float
    account: Path | None

    @property
    def names(self) -> tuple[str, ...]:
        """Names under which the model is served."""
        return self.served_model_name or (self.model,)

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together: as asked for, else what the cache holds, 131072 at most."""
        return self.max_model_len or min(131_072, self.cache_tokens)

    @property
    def cache_tokens(self) -> int:
        """Tokens the cache holds; block 0 is reserved."""
        return (self.kv_blocks - 1) * self.block_size


def parse(argv: Sequence[str] | None = None) -> Settings:
    """Read the command line; says what is wrong and exits 2 where something is."""
    parser = _parser()
    values = parser.parse_args(argv)
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(values).items()}
    settings = Settings(**given)
    problem = _problem(settings)
    if problem:
        parser.error(problem)
    return settings


def _problem(settings: Settings) -> str | None:
    longest = settings.max_model_len
    rules = (
        (settings.block_size >= 1, "--block-size must be at least 1"),
        (settings.kv_blocks > 1, "--kv-blocks must be at least 2 (block 0 is reserved)"),
        (settings.max_num_seqs >= 1, "--max-num-seqs must be at least 1"),
        (settings.max_num_batched_tokens >= 1, "--max-num-batched-tokens must be at least 1"),
        (settings.speed >= 0, "--speed must not be negative"),
        (settings.prefill_tokens_per_second > 0, "--prefill-tokens-per-second must be positive"),
        (min(settings.itl_ms_base, settings.itl_ms_per_sequence) >= 0, "--itl-ms-* must not be negative"),
        (settings.answer_tokens >= 1, "--answer-tokens must be at least 1"),
        (longest is None or longest >= 1, "--max-model-len must be at least 1"),
        (
            (longest or 0) <= settings.cache_tokens,
            f"--max-model-len {longest} is over the {settings.cache_tokens} tokens that --kv-blocks hold",
        ),
        (settings.topic or settings.port or not settings.kv_events_endpoint, "--port 0 with KV events needs --topic"),
        (
            settings.kv_events_endpoint or not settings.replay_endpoint,
            "--replay-endpoint needs --kv-events-endpoint",
        ),
    )
    return next((message for holds, message in rules if not holds), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine.simulator",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("serving").add_argument
    add("--model", required=True, help="model path or name; /v1/models reports it as the root")
    add("--served-model-name", nargs="+", default=[], metavar="NAME", help="names clients use (default: --model)")
    add("--host", default="0.0.0.0", help="address to listen on (default %(default)s)")
    add("--port", type=int, default=8000, help="port to listen on, 0 for any free one (default %(default)s)")
    add("--admin-port", type=int, help="a second port for /sim/*, which no failure closes, 0 for any free one")
    add("--lora", nargs="+", default=[], metavar="NAME[=PATH]", help="adapters loaded from the start")
    add(
        "--max-loras",
        type=int,
        default=4,
        help="adapters that can run in one batch, as the metrics say (default %(default)s)",
    )
    add("--no-lora", action="store_true", help="no adapters: loading one is 404 and the LoRA metric is absent")
    add("--max-body-mb", type=int, default=256, help="larger request bodies get 413 (default %(default)s)")
    add(
        "--keep-alive",
        type=float,
        default=5.0,
        help="seconds that an idle connection stays open, 5 as in vLLM; 0: for ever (default %(default)s)",
    )
    add(
        "--grace",
        type=float,
        default=30.0,
        help="seconds that requests in flight have after SIGTERM (default %(default)s)",
    )
    add(
        "--account",
        type=Path,
        metavar="FILE",
        help="write there what became of each request as it ends, so that it is known when the engine is killed, too",
    )
    add("--seed", type=int, default=0, help="other seeds give other texts (default %(default)s)")
    add(
        "--answer-tokens",
        type=int,
        default=64,
        help="mean length of an answer without max_tokens (default %(default)s)",
    )

    add = parser.add_argument_group("memory and batch").add_argument
    add("--block-size", type=int, default=16, help="tokens per KV block (default %(default)s)")
    add("--kv-blocks", type=int, default=16_384, help="KV blocks, block 0 reserved (default %(default)s)")
    add("--max-num-seqs", type=int, default=256, help="sequences that run at once (default %(default)s)")
    add(
        "--max-num-batched-tokens",
        type=int,
        default=8_192,
        help="tokens per step; longer prompts take several (default %(default)s)",
    )
    add(
        "--max-model-len", type=int, help="most tokens of prompt and answer (default: the cache's size, 131072 at most)"
    )

    add = parser.add_argument_group("latency (a step takes: base + per sequence + prompt tokens / rate)").add_argument
    add(
        "--prefill-tokens-per-second",
        type=float,
        default=20_000.0,
        help="uncached prompt tokens per second (default %(default)s)",
    )
    add("--itl-ms-base", type=float, default=8.0, help="milliseconds of any step (default %(default)s)")
    add(
        "--itl-ms-per-sequence",
        type=float,
        default=0.2,
        help="milliseconds more for each sequence in the batch (default %(default)s)",
    )
    add("--speed", type=float, default=1.0, help="times as fast as that; 0: nothing takes time (default %(default)s)")

    add = parser.add_argument_group("KV events (off without an endpoint)").add_argument
    add(
        "--kv-events-endpoint",
        metavar="tcp://*:5557",
        help="publish BlockStored, BlockRemoved, AllBlocksCleared here (ZMQ PUB)",
    )
    add("--replay-endpoint", metavar="tcp://*:5558", help="answer with past events here (ZMQ ROUTER)")
    add("--topic", metavar="kv@IP:PORT@MODEL", help="topic of the events (default: kv@HOST:PORT@MODEL)")
    add("--buffer-steps", type=int, default=10_000, help="event batches kept for replay (default %(default)s)")
    add("--data-parallel-rank", type=int, default=0, help="rank that the events carry (default %(default)s)")

    add = parser.add_argument_group("KV transfer (off without a configuration)").add_argument
    add(
        "--kv-transfer-config",
        metavar="JSON",
        help="as vLLM's: kv_connector NixlConnector, MooncakeConnector or LMCacheConnectorV1 (which shares nothing here), "
        "kv_role, kv_load_failure_policy",
    )
    add(
        "--disaggregation-mode",
        choices=("null", "prefill", "decode"),
        default="null",
        help="as SGLang's: requests carry a bootstrap room (default %(default)s)",
    )
    add(
        "--side-channel-port",
        "--disaggregation-bootstrap-port",
        type=int,
        help="where other engines take blocks, 0 for any free one (default 5600 for NIXL, 8998 for Mooncake and SGLang)",
    )
    add(
        "--transfer-tokens-per-second",
        type=float,
        default=1_000_000.0,
        help="rate at which blocks come from another engine (default %(default)s)",
    )

    add = parser.add_argument_group("failures").add_argument
    add(
        "--fail",
        action="append",
        default=[],
        metavar="MODE[:KEY=VALUE,...]",
        help="fail from the start; may be repeated",
    )
    return parser
