import asyncio
import os
import re
import shutil
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.local.procs import alive, descendants
from tests.local.waiting import eventually

pytestmark = pytest.mark.envoy
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
ANY_PORTS = ("--port", "0", "--admin-port", "0", "--metrics-port", "0", "--envoy-workers", "1")


@pytest.fixture
def small(tmp_path):
    """The quickstart with one engine instead of four."""
    folder = tmp_path / "manifests"
    shutil.copytree(QUICKSTART, folder)
    (folder / "engines.yaml").write_text((QUICKSTART / "engines.yaml").read_text().partition("\n---\n")[0])
    return folder


@asynccontextmanager
async def up(*arguments, **env):
    """Runs `matrixinfer up`; whatever the body leaves is killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "matrixinfer",
        "up",
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | env,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ready(process):
    """The URL of the ready line, which is the first of standard output."""
    line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
    found = re.fullmatch(r"ready (http://127\.0\.0\.1:\d+)\n", line)
    assert found, line + (await process.stderr.read()).decode()
    return found.group(1)


async def completed(url, model="demo"):
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/completions", json={"model": model, "prompt": "hi", "max_tokens": 1}) as answer,
    ):
        assert "x-request-id" in answer.headers
        return answer.status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_up_says_ready_serves_and_stops_cleanly_on_a_signal(number, small):
    async with up(small, *ANY_PORTS) as process:
        url = await ready(process)
        assert await completed(url) == 200
        started = descendants(process.pid)
        assert len(started) >= 6  # three processes, each with its guardian

        process.send_signal(number)

        assert await asyncio.wait_for(process.wait(), 30) == 0
        assert await process.stdout.read() == b""
        assert not any(alive(pid) for pid in started)


async def test_nothing_survives_a_kill_of_up():
    async with up(QUICKSTART, *ANY_PORTS) as process:
        await ready(process)
        started = descendants(process.pid)
        assert len(started) >= 6

        process.kill()

        await process.wait()
        await eventually(lambda: not any(alive(pid) for pid in started))


async def test_a_signal_during_the_start_stops_as_well(small, tmp_path):
    async with up(small, *ANY_PORTS, "--state-dir", tmp_path / "state") as process:
        await eventually(lambda: len(descendants(process.pid)) >= 2)
        started = descendants(process.pid)
        process.send_signal(signal.SIGTERM)

        assert await asyncio.wait_for(process.wait(), 30) == 0
        await eventually(lambda: not any(alive(pid) for pid in started))


async def test_logs_of_pods_are_shown_on_demand(tmp_path):
    manifest = (QUICKSTART / "engines.yaml").read_text().partition("---")[0]
    speaking = manifest.replace("[python, -m, engine.simulator]", "[python, -c, print('hello')]")
    (tmp_path / "pod.yaml").write_text(speaking)
    shutil.copy(QUICKSTART / "gateway.yaml", tmp_path)
    async with up(tmp_path, *ANY_PORTS, "--logs") as process:
        while await asyncio.wait_for(process.stderr.readline(), 60) != b"demo-0/engine | hello\n":
            pass


async def test_what_cannot_serve_in_time_exits_with_3_and_says_why(tmp_path):
    manifest = (QUICKSTART / "engines.yaml").read_text().partition("---")[0]
    (tmp_path / "pod.yaml").write_text(manifest.replace("path: /health, port: http", "path: /health, port: 8123"))
    shutil.copy(QUICKSTART / "gateway.yaml", tmp_path)
    async with up(tmp_path, *ANY_PORTS, "--ready-timeout", "3") as process:
        out, err = await asyncio.wait_for(process.communicate(), 60)

    assert (process.returncode, out) == (3, b"")
    assert b"pod default/demo-0 is not ready" in err
    assert b":8123/health: connection refused" in err


async def test_a_users_mistake_exits_with_1_and_says_what_to_change(tmp_path):
    async with up(tmp_path / "none", *ANY_PORTS) as process:
        _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert b"is not a directory" in err

    async with up(QUICKSTART, *ANY_PORTS, MATRIXINFER_ENVOY="/nowhere/envoy") as process:
        _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert b"set it to an Envoy binary" in err
    assert b"Traceback" not in err
