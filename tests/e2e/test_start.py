"""`matrixinfer up` where it cannot start: it names what is in the way, says what to change, and exits at once."""

import asyncio
import os
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest

pytestmark = pytest.mark.envoy
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
OPTIONS = ("--port", "--admin-port", "--metrics-port")


async def up(*arguments, **env):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "matrixinfer", "up", *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | env,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    except TimeoutError:
        process.kill()
        raise
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("option", OPTIONS)
async def test_a_port_in_use_is_named_with_the_option_to_change(option):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        ports = [word for each in OPTIONS for word in (each, port if each == option else 0)]

        code, out, err = await up(QUICKSTART, *ports)

    assert (code, out) == (1, "")
    assert f"port {port} is in use: choose another with {option} PORT" in err
    assert "Traceback" not in err


async def test_no_envoy_says_where_to_get_one():
    code, out, err = await up(QUICKSTART, "--port", 0, MATRIXINFER_ENVOY="/nowhere/envoy")

    assert (code, out) == (1, "")
    assert "MATRIXINFER_ENVOY=/nowhere/envoy is not an executable file: set it to an Envoy binary, or unset it" in err
