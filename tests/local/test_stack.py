import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from matrixinfer.api import core, kinds
from matrixinfer.local.containers import Backoff
from matrixinfer.local.processes import Command, Process
from matrixinfer.local.stack import CannotStart, Config, NotReady, Stack
from tests.local.procs import alive
from tests.local.waiting import eventually, eventually_async

pytestmark = pytest.mark.envoy
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
PROMPT = {"model": "demo", "prompt": "hello", "max_tokens": 2}

UNREADY = """\
apiVersion: v1
kind: Pod
metadata: {name: demo-0, labels: {app: demo}}
spec:
  containers:
  - name: engine
    command: [python, -c, "import time; print('loading weights', flush=True); time.sleep(1000)"]
    readinessProbe:
      httpGet: {path: /health, port: 8123}
"""


def a_config(directory=QUICKSTART, **fields):
    return Config(
        directory=directory,
        port=0,
        admin_port=0,
        metrics_port=0,
        envoy_workers=1,
        backoff=Backoff(0.1, 1),
        **fields,
    )


@pytest.fixture
def small(tmp_path):
    """The quickstart with one engine instead of four."""
    folder = tmp_path / "manifests"
    shutil.copytree(QUICKSTART, folder)
    (folder / "engines.yaml").write_text((QUICKSTART / "engines.yaml").read_text().partition("\n---\n")[0])
    return folder


@pytest.fixture
async def client():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


async def complete(client, stack, **fields):
    async with client.post(f"{stack.url}/v1/completions", json=PROMPT | fields) as answer:
        return answer.status, await answer.json(content_type=None)


async def all_ready(stack):
    pods = (await stack.cluster.list(kinds.POD)).items
    return all(core.Pod.model_validate(pod).ready for pod in pods)


async def test_the_quickstart_serves_and_leaves_nothing(client):
    async with Stack(a_config()) as stack:
        await stack.ready()
        status, body = await complete(client, stack)
        pids = stack.pids()
        async with client.get(f"{stack.admin_url}/endpoints") as answer:
            endpoints = await answer.text()
        async with client.get(stack.metrics_url) as answer:
            assert answer.status == 200
        folder = stack.logs.parent

    assert status == 200, body
    assert body["usage"]["completion_tokens"] == 2
    assert endpoints.count(":8000") >= 1
    assert set(pids) == {"envoy", "picker", *(f"default/demo-{i}/engine" for i in range(4))}
    assert not any(alive(pid) for pid in pids.values())
    assert not folder.exists()


async def test_two_stacks_run_side_by_side(client, small):
    async with Stack(a_config(small)) as one, Stack(a_config(small)) as other:
        await asyncio.gather(one.ready(), other.ready())

        assert one.url != other.url
        assert (await complete(client, one))[0] == 200
        assert (await complete(client, other))[0] == 200


async def test_a_killed_part_comes_back_and_traffic_goes_on(client):
    async with Stack(a_config()) as stack:
        await stack.ready()
        pids = stack.pids()

        os.kill(pids["default/demo-0/engine"], signal.SIGKILL)
        assert [(await complete(client, stack))[0] for _ in range(10)] == [200] * 10
        await eventually(lambda: stack.pids().get("default/demo-0/engine") not in (None, pids["default/demo-0/engine"]))

        os.kill(pids["picker"], signal.SIGKILL)
        assert [(await complete(client, stack))[0] for _ in range(10)] == [200] * 10
        await eventually(lambda: stack.pids().get("picker") not in (None, pids["picker"]))

        os.kill(pids["envoy"], signal.SIGKILL)
        await eventually(lambda: stack.pids().get("envoy") not in (None, pids["envoy"]))
        await stack.ready()
        assert (await complete(client, stack))[0] == 200


async def test_a_stack_that_fails_closed_answers_503_without_its_picker(client, small):
    async with Stack(a_config(small, fail_open=False)) as stack:
        await stack.ready()
        os.kill(stack.pids()["picker"], signal.SIGSTOP)

        status, body = await complete(client, stack)
        assert status == 503
        assert body["error"]["message"]


async def test_an_edited_file_takes_effect(client, small):
    async with Stack(a_config(small)) as stack:
        await stack.ready()
        route = (small / "gateway.yaml").read_text()
        (small / "gateway.yaml").write_text(
            route.replace("modelName: demo", "modelName: other").replace(
                "name: demo\nspec:\n  modelName", "name: renamed\nspec:\n  modelName"
            )
        )

        async def renamed():
            return (await complete(client, stack, model="other"))[0] == 200

        await eventually_async(renamed)


async def test_a_stack_that_cannot_serve_names_the_pod_the_probe_and_the_last_lines(tmp_path):
    (tmp_path / "pod.yaml").write_text(UNREADY)
    shutil.copy(QUICKSTART / "gateway.yaml", tmp_path)
    async with Stack(a_config(tmp_path)) as stack:
        await eventually(lambda: "loading weights" in "".join(log.read_text() for log in stack.logs.glob("*demo-0*")))
        with pytest.raises(NotReady) as stopped:
            await stack.ready(within_s=1)

    said = str(stopped.value)
    assert "pod default/demo-0 is not ready" in said
    assert "readiness probe, GET http://127." in said
    assert ":8123/health: connection refused" in said
    assert "    loading weights" in said


async def test_a_route_that_leads_nowhere_is_not_ready(small):
    gateway = (small / "gateway.yaml").read_text()
    (small / "gateway.yaml").write_text(gateway.replace("modelServerName: demo", "modelServerName: nope"))
    async with Stack(a_config(small)) as stack:
        await eventually_async(lambda: all_ready(stack))
        with pytest.raises(NotReady, match="no ModelServer 'nope'"):
            await stack.ready(within_s=1)


async def test_a_directory_with_nothing_usable_cannot_start(tmp_path):
    (tmp_path / "bad.yaml").write_text("apiVersion: v1\nkind: Pod\nmetadata: {}\n")

    with pytest.raises(CannotStart, match=r"bad\.yaml:3: error: metadata\.name"):
        async with Stack(a_config(tmp_path)):
            pass


async def test_a_bad_document_leaves_the_rest_served(client, small):
    (small / "bad.yaml").write_text("kind: Pod\nspec: [")
    async with Stack(a_config(small)) as stack:
        await stack.ready()

        assert (await complete(client, stack))[0] == 200
        assert [finding.file for finding in stack.findings] == ["bad.yaml"]


async def test_a_bad_scheduler_configuration_cannot_start(tmp_path):
    (tmp_path / "config.yaml").write_text("apiVersion: llm-d.ai/v1alpha1\nkind: Nope\n")

    with pytest.raises(CannotStart, match=r"--config .*config\.yaml: kind: must be EndpointPickerConfig"):
        async with Stack(a_config(scheduling=tmp_path / "config.yaml")):
            pass


async def test_a_port_in_use_cannot_start(small):
    async with Stack(a_config(small)) as stack:
        with pytest.raises(CannotStart, match=f"port {stack.port} is in use: choose another with --port PORT"):
            async with Stack(Config(directory=QUICKSTART, port=stack.port)):
                pass


async def test_without_envoy_a_stack_cannot_start(monkeypatch):
    monkeypatch.setenv("MATRIXINFER_ENVOY", "/nowhere/envoy")

    with pytest.raises(CannotStart, match="set it to an Envoy binary"):
        async with Stack(a_config()):
            pass


async def test_engines_that_run_already_are_served_with_their_adapters(client, unused_tcp_port):
    argv = [sys.executable, "-m", "engine.simulator", "--model", "base", "--lora", "sql=/adapters/sql"]
    argv += ["--host", "127.0.0.1", "--port", str(unused_tcp_port)]
    engine = await Process.start(Command(argv, os.environ, Path(os.devnull)))
    config = a_config(None, engines=(f"http://localhost:{unused_tcp_port}",))
    async with Stack(config) as stack:
        await stack.ready()
        async with client.get(f"{stack.url}/v1/models") as answer:
            listed = [model["id"] for model in (await answer.json())["data"]]
        answers = [await complete(client, stack, model=model) for model in ("base", "sql")]
    await engine.stop(5)

    assert sorted(listed) == ["base", "sql"]
    assert [(status, body["model"]) for status, body in answers] == [(200, "base"), (200, "sql")]


async def test_logs_are_kept_in_a_folder_of_the_users_own(small, tmp_path):
    async with Stack(a_config(small, state_dir=tmp_path / "state")) as stack:
        await stack.ready()

    names = {log.name for log in (tmp_path / "state" / "logs").iterdir()}
    assert names == {"envoy.log", "picker.log", "default_demo-0_engine.log"}
