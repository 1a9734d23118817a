"""The picker's process, from its command line to its last breath."""

import asyncio
import contextlib
import json
import logging

import aiohttp
import pytest

from extproc import __main__ as picker_process
from extproc.adapters.transport import serving
from matrixinfer.api import kinds
from matrixinfer.cluster import feed
from matrixinfer.cluster.memory import MemoryCluster
from tests.picker.running import a_picker, a_pod, a_route, endpoints, eventually, put, ticket

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hello " * 200}]}


@pytest.mark.parametrize("transport", ["ngh2", "grpc"])
async def test_a_request_is_placed_settled_counted_and_shown(transport):
    async with a_picker(flags=("--transport", transport, "--access-log")) as picker:
        answer = await picker.ask(CHAT, x_request_id="r-1", x_matrixinfer_explain="1")
        await picker.settle(answer, prompt_tokens=300, completion_tokens=7, cached_tokens=100)

        assert set(endpoints(answer)) == {engine.address for engine in picker.engines}
        assert json.loads(answer.dynamic_metadata["matrixinfer"]["decision"])["reason"]
        document = await picker.page("/decisions/r-1")
        assert (document["ticket"], document["end"]["end"]) == (ticket(answer), "complete")
        _, metrics = await picker.get("/metrics", what="metrics")
        assert 'matrixinfer_requests_total{model="demo",reason="complete",status="200"} 1.0' in metrics
        assert 'matrixinfer_tokens_total{model="demo",type="output"} 7.0' in metrics
        assert (await picker.logged("served"))["cached_tokens"] == 100


async def test_models_are_listed_and_refusals_say_why():
    async with a_picker() as picker:
        listed = await picker.ask(None, "/v1/models", "GET")
        refused = await picker.ask({**CHAT, "model": "other"})

        assert json.loads(listed.immediate_response.body)["data"][0]["id"] == "demo"
        assert refused.immediate_response.status.code == 404
        assert json.loads(refused.immediate_response.body)["error"]["code"] == "model_not_found"
        _, metrics = await picker.get("/metrics", what="metrics")
        assert 'matrixinfer_requests_total{model="unknown",reason="unknown-model",status="404"} 1.0' in metrics


async def test_the_world_is_followed():
    async with a_picker() as picker:
        await put(picker.cluster, a_pod(picker.engines[0], "pod-0", ready=False))
        await eventually(lambda: _placed(picker, {picker.engines[1].address}))
        await picker.cluster.delete(kinds.POD, "pod-1", "ns")
        gone = await eventually(lambda: _refused(picker, 503))
        await put(picker.cluster, a_route("other", model="other"))
        await put(picker.cluster, a_pod(picker.engines[0], "pod-0"))
        await eventually(lambda: _placed(picker, {picker.engines[0].address}, model="other"))

        assert {option.header.key for option in gone.headers.set_headers} >= {"retry-after", "x-matrixinfer-reason"}
        listed = (await picker.page("/endpoints"))["endpoints"]
        assert [(each["pod"], each["ready"]) for each in listed] == [("ns/pod-0", True)]


async def test_engines_are_asked_how_they_are():
    async with a_picker() as picker:
        picker.engines[0].running, picker.engines[0].usage = 7, 0.5
        picker.engines[0].models = ["demo", "adapter"]
        address = picker.engines[0].address

        shown = await eventually(lambda: _endpoint(picker, address, running=7.0))

        assert (shown["kv_usage"], shown["waiting"]) == (0.5, 0.0)


async def test_an_engine_that_is_gone_is_avoided_until_it_is_back():
    async with a_picker() as picker:
        address = picker.engines[0].address
        await picker.logged("serving")
        picker.engines[0].stop()
        await picker.ask(CHAT)  # busy engines are asked often

        host, port = address.split(":")
        picker.engines[0]._server.close()
        await eventually(lambda: _avoided(picker, address))
        picker.engines[0]._server = await asyncio.start_server(picker.engines[0]._answer, host, int(port))
        await eventually(lambda: _avoided(picker, address, wanted=False))


async def test_a_changed_configuration_is_taken_and_a_bad_one_is_not(tmp_path):
    file = tmp_path / "config.yaml"
    head = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
    file.write_text(head)
    async with a_picker(flags=("--config", str(file))) as picker:
        file.write_text(head + "plugins: [{type: random-picker}]\n")
        await picker.logged("a new configuration is in force")
        file.write_text(head + "plugins: [{type: no-such-plugin}]\n")
        refused = await picker.logged("the new configuration cannot be used; the last good one stays")

        assert "plugins[0].type" in refused["problem"]
        shown = await picker.page("/config")
        assert "random-picker" in [plugin["type"] for plugin in shown["plugins"]]
        assert shown["problem"]
        assert endpoints(await picker.ask(CHAT))


async def test_a_bad_configuration_stops_the_start(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{type: nope}]\n")
    async with a_picker(start=False) as picker:
        await picker.start("--config", str(file))

        assert await picker.process.wait() == 1
        assert "plugins[0].type" in (await eventually(lambda: picker.logs[-1:]))[0]["message"]


async def test_it_stops_when_told_and_lets_go_of_its_socket():
    async with a_picker() as picker:
        await picker.ask(CHAT)

        assert await picker.stop() == 0
        assert not (picker.folder / "p.sock").exists()


async def test_without_a_cluster_it_waits_and_says_so():
    async with a_picker(start=False) as picker:
        picker.folder = picker.folder / "elsewhere"
        picker.folder.mkdir()
        await picker.start()
        status, _ = await picker.get("/healthz", what="metrics")

        assert status == 503
        assert not (picker.folder / "p.sock").exists()


async def test_it_says_that_it_serves_once_envoy_can_connect_and_no_sooner(tmp_path, monkeypatch, caplog):
    opening, may_open = asyncio.Event(), asyncio.Event()
    serve = serving.serve

    async def slowly(*words, **more):
        opening.set()
        await may_open.wait()
        return await serve(*words, **more)

    monkeypatch.setattr(serving, "serve", slowly)
    monkeypatch.setattr(picker_process, "_settle_memory", lambda: None)
    caplog.set_level(logging.INFO)
    flags = ["--socket", str(tmp_path / "p.sock"), "--cluster-socket", str(tmp_path / "c.sock")]
    flags += ["--admin-port", "0", "--metrics-port", "0", "--metrics-host", "127.0.0.1"]
    async with feed.serve(MemoryCluster(), tmp_path / "c.sock", feed.KINDS), aiohttp.ClientSession() as http:
        running = asyncio.create_task(picker_process._Picker(picker_process._arguments(flags)).run())
        try:
            async with asyncio.timeout(30):
                await opening.wait()
            port = next(
                one.address[1] for one in caplog.records if one.message == "listening" and one.what == "metrics"
            )

            async def says():
                async with http.get(f"http://127.0.0.1:{port}/healthz") as answer:
                    return answer.status

            before = await says()
            may_open.set()
            await eventually((tmp_path / "p.sock.out").exists)
            after = await eventually(lambda: _is(200, says))
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    assert (before, after) == (503, True)


async def _is(wanted, ask):
    return await ask() == wanted


async def _placed(picker, addresses, model="demo"):
    answer = await picker.ask({**CHAT, "model": model})
    return answer.HasField("request_body") and set(endpoints(answer)) == addresses


async def _refused(picker, status):
    answer = await picker.ask(CHAT)
    return answer.immediate_response if answer.immediate_response.status.code == status else None


async def _endpoint(picker, address, **wanted):
    for each in (await picker.page("/endpoints"))["endpoints"]:
        if each["address"] == address and all(each[key] == value for key, value in wanted.items()):
            return each
    return None


async def _avoided(picker, address, *, wanted=True):
    found = await _endpoint(picker, address)
    return (found["avoided_for_s"] > 0) == wanted


async def test_without_an_access_log_the_stream_settles():
    async with a_picker(flags=("--follow",)) as picker:
        await picker.ask(CHAT)

        await eventually(lambda: _counted(picker, 'matrixinfer_ledger_total{event="settled"} 1.0'))
        assert await _counted(picker, "matrixinfer_ledger_open 0.0")


async def _counted(picker, line):
    _, metrics = await picker.get("/metrics", what="metrics")
    return line in metrics
