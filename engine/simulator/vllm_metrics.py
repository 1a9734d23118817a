"""vLLM 0.32's metrics page: names, help texts, labels and bounds, in its order."""

import platform
import re
import resource
import time
from collections.abc import Iterable
from pathlib import Path

from engine.simulator import batch
from engine.simulator.metrics import Counter, Family, Gauge, Histogram, Labels, page
from engine.simulator.settings import Settings

_PAGE_SIZE = resource.getpagesize()
_LENGTHS = (
    1,
    2,
    5,
    10,
    20,
    50,
    100,
    200,
    500,
    1000,
    2000,
    5000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
)
_STEP = tuple(1 << i for i in (0, *range(3, 15)))
_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_HIGHR = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60)
_LOWR = (0.1, 0.5, 1)
_SIZES = (
    "Content length of {} by handler. Only value of header is respected. Otherwise ignored. No percentile calculated. "
)
_FLOPS = "(for Model Flops Utilization calculations)."
_UNCOUNTED = re.compile(r"/metrics|/health|/load|/ping|/version|/server_info|/sim/")


class EngineMetrics:
    """All of the page's families; the engine reports into it, the endpoint renders it."""

    def __init__(
        self, *, model: str, cache: Iterable[tuple[str, str]], max_model_len: int, max_loras: int | None
    ) -> None:
        one: Labels = (("engine", "0"), ("model_name", model))
        self.one = one
        self._model = model
        self._families: list[Family] = []
        self._max_loras = max_loras
        self._process()
        for what, text in (
            ("flops", f"Estimated number of floating point operations per GPU {_FLOPS}"),
            ("read_bytes", f"Estimated number of bytes read from memory per GPU {_FLOPS}"),
            ("write_bytes", f"Estimated number of bytes written to memory per GPU {_FLOPS}"),
        ):
            self._counter(f"vllm:estimated_{what}_per_gpu", text)
        self.running = self._gauge("vllm:num_requests_running", "Number of requests in model execution batches.")
        self.waiting = self._gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.")
        self.by_reason = self._gauge(
            "vllm:num_requests_waiting_by_reason",
            "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = "
            "deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals "
            "vllm:num_requests_waiting.",
        )
        sleep = self._gauge(
            "vllm:engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1 "
            "means sleep level 1; discard_all = 1 means sleep level 2.",
        )
        for state in ("awake", "weights_offloaded", "discard_all"):
            sleep.set((*one, ("sleep_state", state)), float(state == "awake"))
        self.usage = self._gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.")
        self.queries = self._counter(
            "vllm:prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens."
        )
        self.hits = self._counter("vllm:prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.")
        for what, unit in (("queries", "queried"), ("hits", "cached")):
            text = f"External prefix cache {what} from KV connector cross-instance cache sharing, in terms of number of {unit} tokens."
            self._counter(f"vllm:external_prefix_cache_{what}", text)
        for what, unit in (("queries", "queried"), ("hits", "cached")):
            self._counter(f"vllm:mm_cache_{what}", f"Multi-modal cache {what}, in terms of number of {unit} items.")
        self.preemptions = self._counter("vllm:num_preemptions", "Cumulative number of preemption from the engine.")
        self.prompt = self._counter("vllm:prompt_tokens", "Number of prefill tokens processed.")
        self.by_source = self._counter(
            "vllm:prompt_tokens_by_source", "Number of prompt tokens by source.",
            label="source", values=("local_compute", "local_cache_hit", "external_kv_transfer"),
        )  # fmt: skip
        self.cached = self._counter("vllm:prompt_tokens_cached", "Number of cached prompt tokens (local + external).")
        self.cached_by_source = self._counter(
            "vllm:prompt_tokens_cached_by_source",
            "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), disk, "
            "p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to "
            "vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.",
            label="source", values=("device", "host", "p2p", "disk", "external_unspecified"),
        )  # fmt: skip
        self.generation = self._counter("vllm:generation_tokens", "Number of generation tokens processed.")
        self.success = self._counter(
            "vllm:request_success", "Count of successfully processed requests.",
            label="finished_reason", values=("stop", "length", "abort", "error", "repetition"),
        )  # fmt: skip
        rejections = Counter(
            "vllm:admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            [
                (("model_name", model), ("reason", reason))
                for reason in ("max_num_queued_reqs", "max_num_queued_tokens")
            ],
        )
        self._families.append(rejections)
        lengths = [bound for bound in _LENGTHS if bound <= max_model_len]
        self.prompt_lengths = self._histogram(
            "vllm:request_prompt_tokens", "Number of prefill tokens processed.", lengths
        )
        self.generation_lengths = self._histogram(
            "vllm:request_generation_tokens", "Number of generation tokens processed.", lengths
        )
        self.step_tokens = self._histogram(
            "vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", _STEP
        )
        self.max_lengths = self._histogram(
            "vllm:request_max_num_generation_tokens",
            "Histogram of maximum number of requested generation tokens.",
            lengths,
        )
        self.params_n = self._histogram(
            "vllm:request_params_n", "Histogram of the n request parameter.", (1, 2, 5, 10, 20)
        )
        self.params_max = self._histogram(
            "vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.", lengths
        )
        self.ttft = self._histogram(
            "vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", _TTFT
        )
        self.itl = self._histogram(
            "vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", _ITL
        )
        self.tpot = self._histogram(
            "vllm:request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            _ITL,
        )
        self.e2e = self._histogram(
            "vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", _REQUEST
        )
        self.queue_time, self.inference, self.prefill, self.decode = (
            self._histogram(
                f"vllm:request_{what}_time_seconds", f"Histogram of time spent in {phase} phase for request.", _REQUEST
            )
            for what, phase in (
                ("queue", "WAITING"),
                ("inference", "RUNNING"),
                ("prefill", "PREFILL"),
                ("decode", "DECODE"),
            )
        )
        self.preempted = self._histogram(
            "vllm:request_num_preemptions",
            "Histogram of the number of times a request was preempted.",
            (1, 2, 3, 4, 5, 10, 20),
        )
        self.computed = self._histogram(
            "vllm:request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            lengths,
        )
        self.lora = Gauge("vllm:lora_requests_info", "Running stats on lora requests.")
        if max_loras is not None:
            self._families.append(self.lora)
        info = self._gauge("vllm:cache_config_info", "Information of the LLMEngine CacheConfig")
        info.set((*cache, ("engine", "0")), 1)
        self._loras: dict[Labels, float] = {}
        self._http()

    def page(self) -> bytes:
        """Give the whole page."""
        return page(self._families)

    def watch(self, state: batch.Batch) -> None:
        """Read what the batch knows when the page is made."""
        one, counters = self.one, state.counters
        self.running.ask(one, lambda: len(state.running))
        self.waiting.ask(one, lambda: len(state.waiting))
        self.by_reason.ask((*one, ("reason", "capacity")), lambda: len(state.waiting))
        self.by_reason.set((*one, ("reason", "deferred")), 0)
        self.usage.ask(one, lambda: state.blocks.usage)
        self.queries.ask(one, lambda: counters.queried_tokens)
        self.hits.ask(one, lambda: counters.hit_tokens)
        self.preemptions.ask(one, lambda: counters.preemptions)
        self.cached_by_source.ask((*one, ("source", "device")), lambda: counters.hit_tokens)

    def step(self, state: batch.Batch, produced: list[batch.Sequence]) -> None:
        """Count a completed step in."""
        one = self.one
        self.step_tokens.observe(one, state.step_tokens)
        self.generation.add(one, sum(1 for sequence in produced if sequence.max_tokens))

    def first_token(self, sequence: batch.Sequence, now: float) -> None:
        """Count a sequence in whose prompt is done."""
        one = self.one
        self.prompt.add(one, sequence.prompt_tokens)
        self.by_source.add((*one, ("source", "local_compute")), sequence.prompt_tokens - sequence.cached_tokens)
        if sequence.cached_tokens:
            self.by_source.add((*one, ("source", "local_cache_hit")), sequence.cached_tokens)
            self.cached.add(one, sequence.cached_tokens)
        self.ttft.observe(one, now - sequence.arrived)

    def finished(self, sequence: batch.Sequence, now: float, *, n: int, max_tokens: int | None) -> None:
        """Count a sequence in that has run to its end."""
        one = self.one
        self.success.add((*one, ("finished_reason", sequence.finish or "error")))
        if sequence.admitted is None or sequence.first_token is None:
            return
        tokens = sequence.output_tokens
        decode = sequence.last_token - sequence.first_token
        self.prompt_lengths.observe(one, sequence.prompt_tokens)
        self.generation_lengths.observe(one, tokens)
        self.max_lengths.observe(one, tokens)
        self.params_n.observe(one, n)
        if max_tokens is not None:
            self.params_max.observe(one, max_tokens)
        self.tpot.observe(one, decode / (tokens - 1) if tokens > 1 else 0.0)
        self.e2e.observe(one, now - sequence.arrived)
        self.queue_time.observe(one, sequence.admitted - sequence.arrived)
        self.inference.observe(one, sequence.last_token - sequence.admitted)
        self.prefill.observe(one, sequence.first_token - sequence.admitted)
        self.decode.observe(one, decode)
        self.preempted.observe(one, sequence.preemptions)
        self.computed.observe(one, sequence.prompt_tokens - sequence.cached_tokens)

    def loras(self, running: str, waiting: str) -> None:
        """Adapters in use; a new combination is a new series whose value is the time it was last so."""
        labels = (
            ("max_lora", str(self._max_loras)),
            ("running_lora_adapters", running),
            ("waiting_lora_adapters", waiting),
        )
        self._loras[labels] = time.time()
        self.lora.replace(self._loras)

    def http(self, *, handler: str, method: str, status: int, sizes: tuple[int, int], seconds: float) -> None:
        """Count an exchange in, unless it is one of those that watch the engine."""
        if _UNCOUNTED.search(handler):
            return
        by_handler = (("handler", handler),)
        self._http_requests.add((("handler", handler), ("method", method), ("status", f"{status // 100}xx")))
        self._http_in.observe(by_handler, sizes[0])
        self._http_out.observe(by_handler, sizes[1])
        self._http_highr.observe((), seconds)
        self._http_lowr.observe((("handler", handler), ("method", method)), seconds)

    def _gauge(self, name: str, text: str) -> Gauge:
        gauge = Gauge(name, text)
        self._families.append(gauge)
        return gauge

    def _counter(self, name: str, text: str, *, label: str | None = None, values: Iterable[str] = ()) -> Counter:
        series = [(*self.one, (label, value)) for value in values] if label else [self.one]
        counter = Counter(name, text, series)
        self._families.append(counter)
        return counter

    def _histogram(self, name: str, text: str, bounds: Iterable[float]) -> Histogram:
        histogram = Histogram(name, text, tuple(bounds), [self.one])
        self._families.append(histogram)
        return histogram

    def _http(self) -> None:
        self._http_requests = Counter("http_requests", "Total number of requests by method, status and handler.")
        self._http_in = Histogram("http_request_size_bytes", _SIZES.format("incoming requests"), ())
        self._http_out = Histogram("http_response_size_bytes", _SIZES.format("outgoing responses"), ())
        self._http_highr = Histogram(
            "http_request_duration_highr_seconds",
            "Latency with many buckets but no API specific labels. Made for more accurate percentile calculations. ",
            _HIGHR,
            [()],
        )
        self._http_lowr = Histogram(
            "http_request_duration_seconds",
            "Latency with only few buckets by handler. Made to be only used if aggregation by handler is important. ",
            _LOWR,
        )
        self._families += [self._http_requests, self._http_in, self._http_out, self._http_highr, self._http_lowr]

    def _process(self) -> None:
        import gc  # noqa: PLC0415 (only here)

        generations = [(("generation", str(i)),) for i in range(3)]
        for name, text, key in (
            ("python_gc_objects_collected", "Objects collected during gc", "collected"),
            ("python_gc_objects_uncollectable", "Uncollectable objects found during GC", "uncollectable"),
            ("python_gc_collections", "Number of times this generation was collected", "collections"),
        ):
            counter = Counter(name, text, created=False)
            for i, labels in enumerate(generations):
                counter.ask(labels, lambda i=i, key=key: gc.get_stats()[i][key])  # type: ignore[misc] # bound per loop
            self._families.append(counter)
        major, minor, patch = platform.python_version_tuple()
        self._gauge("python_info", "Python platform information").set(
            (
                ("implementation", platform.python_implementation()),
                ("major", major),
                ("minor", minor),
                ("patchlevel", patch),
                ("version", platform.python_version()),
            ),
            1,
        )
        started = time.time()
        self._gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.").ask((), lambda: _statm(0))
        self._gauge("process_resident_memory_bytes", "Resident memory size in bytes.").ask((), lambda: _statm(1))
        self._gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.").set(
            (), started
        )
        cpu = Counter("process_cpu_seconds", "Total user and system CPU time spent in seconds.", created=False)
        cpu.ask((), time.process_time)
        self._families.append(cpu)
        self._gauge("process_open_fds", "Number of open file descriptors.").ask(
            (), lambda: len(list(Path("/proc/self/fd").iterdir()))
        )
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._gauge("process_max_fds", "Maximum number of open file descriptors.").set((), limit)


def _statm(column: int) -> float:
    with open("/proc/self/statm") as statm:  # noqa: PTH123 (a tenth of pathlib's cost, at every scrape)
        return int(statm.read().split()[column]) * _PAGE_SIZE


def cache_info(settings: Settings) -> list[tuple[str, str]]:
    """Give the labels of vllm:cache_config_info."""
    size, blocks = settings.block_size, settings.kv_blocks
    return [
        ("_block_size_resolved", "True"),
        ("block_size", str(size)),
        ("cache_dtype", "auto"),
        ("cache_hit_alignment_tokens", "None"),
        ("effective_attention_block_size", str(size)),
        ("enable_mamba_shared_prefix_checkpoint", "False"),
        ("enable_prefix_caching", "True"),
        ("gpu_memory_utilization", "0.92"),
        ("hash_block_size", "None"),
        ("is_attention_free", "False"),
        ("kv_cache_dtype_skip_layers", "[]"),
        ("kv_cache_layout", "None"),
        ("kv_cache_max_concurrency", str(size * blocks / settings.context_length)),
        ("kv_cache_memory_bytes", str(size * blocks * 512)),
        ("kv_cache_size_tokens", str(size * blocks)),
        ("kv_offloading_backend", "native"),
        ("kv_offloading_size", "None"),
        ("kv_sharing_fast_prefill", "False"),
        ("mamba_block_size", "None"),
        ("mamba_cache_dtype", "auto"),
        ("mamba_cache_mode", "none"),
        ("mamba_page_size_padded", "None"),
        ("mamba_ssm_cache_dtype", "float32"),
        ("num_cpu_blocks", "None"),
        ("num_gpu_blocks", str(blocks)),
        ("num_gpu_blocks_override", "None"),
        ("prefix_cache_retention_interval", "0"),
        ("prefix_caching_hash_algo", "sha256"),
        ("prefix_match_unit", "None"),
        ("replayssm_buffer_len", "16"),
        ("skip_page_size_padded", "None"),
        ("sliding_window", "None"),
        ("swa_bounded_replay", "True"),
        ("use_kda_recoverssm", "False"),
        ("use_replayssm", "False"),
        ("user_specified_block_size", "True"),
    ]
