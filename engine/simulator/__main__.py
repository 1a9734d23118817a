"""Starts the simulated engine: builds its parts, listens, waits for SIGTERM, drains."""

import asyncio
import gc
import signal
import sys

import uvloop

from engine.simulator import (
    app,
    batch,
    control,
    engine,
    events,
    faults,
    kvcache,
    server,
    serving,
    settings,
    transfer,
    vllm_metrics,
)


def main() -> None:
    """Run until told to stop; exits 0 after draining, 1 with the reason where the start fails."""
    configuration = settings.parse()
    try:
        given = [faults.from_flag(flag) for flag in configuration.fail]
        uvloop.run(_serve(configuration, given))
    except faults.BadFault as error:
        sys.exit(f"--fail: {error}")
    except transfer.BadConfig as error:
        sys.exit(f"--kv-transfer-config: {error}")
    except OSError as error:
        sys.exit(f"cannot start: {error}")


async def _serve(configuration: settings.Settings, given: list[faults.Fault]) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)

    feed = _feed(configuration)
    publisher = events.Publisher(feed, block_size=configuration.block_size) if feed else None
    metrics = vllm_metrics.EngineMetrics(
        model=configuration.names[0],
        cache=vllm_metrics.cache_info(configuration),
        max_model_len=configuration.context_length,
        max_loras=None if configuration.no_lora else configuration.max_loras,
    )
    runner = engine.Engine(_batch(configuration), metrics, publisher.publish if publisher else None)
    service = serving.Serving(configuration, runner, loop.time)
    if configuration.account is not None:
        service.ledger.record = configuration.account.open("ab", buffering=0).write
    for lora in configuration.lora:
        name, _, path = lora.partition("=")
        service.adapters.load(name, path or name)

    transfers = _transfers(configuration, runner)
    if transfers is not None:
        service.transfers = transfers
        await transfers.listen()

    front = app.App(service, metrics, kv_events=feed.as_config() if feed else None)
    http = server.Server(
        front.handle,
        front.observe,
        max_body_bytes=configuration.max_body_mb << 20,
        keep_alive_s=configuration.keep_alive,
    )
    controls = control.Control(service, http)
    front.add(controls.routes())
    await http.listen(configuration.host, configuration.port)
    lines = [f"serving {configuration.names[0]} on http://{configuration.host}:{http.port}"]
    admin = None
    if configuration.admin_port is not None:
        admin = server.Server(front.handle, front.observe, max_body_bytes=1 << 20, keep_alive_s=0)
        await admin.listen(configuration.host, configuration.admin_port)
        lines.append(f"admin on http://{configuration.host}:{admin.port}")
    for fault in given:
        controls.add(fault)
    print(*lines, sep="\n", flush=True)  # noqa: T201 (what a terminal or a test waits for)
    gc.freeze()

    await stop.wait()
    await http.drain(configuration.grace)
    if admin is not None:
        await admin.drain(0)
    if publisher is not None:
        publisher.close()
    if transfers is not None:
        await transfers.close()


def _batch(configuration: settings.Settings) -> batch.Batch:
    blocks = kvcache.Blocks(
        configuration.kv_blocks, configuration.block_size, record_events=configuration.kv_events_endpoint is not None
    )
    limits = batch.Limits(configuration.max_num_seqs, configuration.max_num_batched_tokens)
    latency = batch.Latency(
        configuration.itl_ms_base / 1000,
        configuration.itl_ms_per_sequence / 1000,
        configuration.prefill_tokens_per_second,
        configuration.speed,
    )
    return batch.Batch(blocks, limits, latency)


def _transfers(configuration: settings.Settings, runner: engine.Engine) -> transfer.Transfers | None:
    port, rate = configuration.side_channel_port, configuration.transfer_tokens_per_second
    if configuration.disaggregation_mode != "null":
        config = transfer.for_sglang(configuration.disaggregation_mode, port=port, tokens_per_s=rate)
    elif configuration.kv_transfer_config is not None:
        config = transfer.from_json(configuration.kv_transfer_config, port=port, tokens_per_s=rate)
    else:
        return None
    return transfer.Transfers(config, runner.state.blocks, configuration.host)


def _feed(configuration: settings.Settings) -> events.Feed | None:
    if configuration.kv_events_endpoint is None:
        return None
    return events.Feed(
        endpoint=configuration.kv_events_endpoint,
        replay_endpoint=configuration.replay_endpoint,
        topic=configuration.topic or f"kv@{configuration.host}:{configuration.port}@{configuration.names[0]}",
        buffer_steps=configuration.buffer_steps,
        rank=configuration.data_parallel_rank,
    )


if __name__ == "__main__":
    main()
