"""Starts the simulated engine: builds its parts, listens, waits for SIGTERM, drains."""

import asyncio
import gc
import signal
import sys

import uvloop

from engine.simulator import app, batch, engine, kvcache, server, serving, settings, vllm_metrics


def main() -> None:
    """Run until told to stop; exits 0 after draining, 1 with the reason where the start fails."""
    configuration = settings.parse()
    try:
        uvloop.run(_serve(configuration))
    except OSError as error:
        sys.exit(f"cannot start: {error}")


async def _serve(configuration: settings.Settings) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    blocks = kvcache.Blocks(configuration.kv_blocks, configuration.block_size)
    state = batch.Batch(
        blocks,
        batch.Limits(configuration.max_num_seqs, configuration.max_num_batched_tokens),
        batch.Latency(
            configuration.itl_ms_base / 1000,
            configuration.itl_ms_per_sequence / 1000,
            configuration.prefill_tokens_per_second,
            configuration.speed,
        ),
    )
    metrics = vllm_metrics.EngineMetrics(
        model=configuration.names[0],
        cache=vllm_metrics.cache_info(configuration),
        max_model_len=configuration.context_length,
        max_loras=None if configuration.no_lora else configuration.max_loras,
    )
    runner = engine.Engine(state, metrics)
    service = serving.Serving(configuration, runner, loop.time)
    front = app.App(service, metrics)
    http = server.Server(front.handle, front.observe, max_body_bytes=configuration.max_body_mb << 20)
    await http.listen(configuration.host, configuration.port)
    print(f"serving {configuration.names[0]} on http://{configuration.host}:{http.port}", flush=True)  # noqa: T201 (the one line)
    gc.freeze()
    await stop.wait()
    await http.drain(configuration.grace)


if __name__ == "__main__":
    main()
