"""`matrixinfer up` on a terminal and without one."""

import asyncio
import fcntl
import io
import os
import pty
import re
import signal
import struct
import sys
import termios
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from matrixinfer.cli.views import drawable
from tests.e2e.stack import a_pod, a_route, a_server, write
from tests.local.procs import descendants

pytestmark = pytest.mark.envoy
NOT_THE_TERMINALS = ("NO_COLOR", "COLUMNS", "LINES")  # what the tests' own surroundings say of another
ANY_PORTS = ("--port", "0", "--admin-port", "0", "--metrics-port", "0", "--envoy-workers", "1")


class Terminal:
    """A terminal of 120 columns and 30 lines, and all that was put out on it."""

    def __init__(self):
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        self.seen = ""
        asyncio.get_running_loop().add_reader(self._master, self._read)
        self._news = asyncio.Event()

    def _read(self):
        self.seen += os.read(self._master, 65536).decode(errors="replace")
        self._news.set()

    async def shows(self, pattern):
        """Wait until the text (without colours) has the pattern."""
        async with asyncio.timeout(60):
            while not (found := re.search(pattern, self.plain)):
                self._news.clear()
                await self._news.wait()
        return found

    @property
    def plain(self):
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.seen)

    def forget(self):
        self.seen = ""

    def close(self):
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)
        os.close(self.slave)


@asynccontextmanager
async def up(folder, stderr, *arguments, **env):
    write(folder / "manifests", [a_pod("demo-0"), a_server(), a_route()])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "matrixinfer", "up", str(folder / "manifests"), *ANY_PORTS, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        env={key: value for key, value in os.environ.items() if key not in NOT_THE_TERMINALS} | env,
    )
    try:
        ready = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        assert re.fullmatch(r"ready http://127\.0\.0\.1:\d+\n", ready)
        yield process, ready.split()[1]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ask(url, **headers):
    body = {"model": "demo", "prompt": "hello", "max_tokens": 2}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/completions", json=body, headers=headers) as answer,
    ):
        assert answer.status == 200


def picker_of(pid, folder=b""):
    """The picker's pid; with several, of that whose socket is below `folder`."""
    for each in descendants(pid):
        command = Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0")
        if command[1:3] == [b"-m", b"extproc"] and folder in command[command.index(b"--socket") + 1]:
            return each
    raise AssertionError("no picker runs")


async def test_a_terminal_gets_a_screen_that_follows_what_happens_and_goes_with_the_stack(tmp_path):
    terminal = Terminal()
    async with up(tmp_path, terminal.slave, TERM="xterm") as (process, url):
        await terminal.shows(rf"MatrixInfer {url} .* 1/1 ready")
        await ask(url, **{"x-request-id": "see-me"})
        await terminal.shows(r"see-me .*demo-0 .*complete")
        await terminal.shows(r"demo +demo 1/1")
        picker = picker_of(process.pid)
        os.kill(picker, signal.SIGSTOP)
        await terminal.shows("! the picker has not answered for")
        os.kill(picker, signal.SIGCONT)
        terminal.forget()
        await terminal.shows("1 requests in all")
        process.send_signal(signal.SIGINT)

        assert await asyncio.wait_for(process.wait(), 30) == 0
        await terminal.shows("matrixinfer: stopping")
        assert await process.stdout.read() == b""
        assert terminal.seen.rindex("\x1b[?25h") > terminal.seen.rfind("\x1b[?25l")  # the cursor is shown again
    terminal.close()


async def test_a_terminal_shows_all_gateways_and_goes_on_where_one_is_silent(tmp_path):
    terminal = Terminal()
    async with up(tmp_path, terminal.slave, "--gateways", "2", TERM="xterm") as (process, first):
        second = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().split()[1]
        await terminal.shows(rf"MatrixInfer {first}, :{second.rpartition(':')[2]} .* 1/1 ready")
        await ask(first, **{"x-request-id": "by-one"})
        await ask(second, **{"x-request-id": "by-two"})
        await terminal.shows(r" 1 +by-one .*demo-0 .*complete")
        await terminal.shows(r" 2 +by-two .*demo-0 .*complete")
        await terminal.shows("2 requests in all")
        picker = picker_of(process.pid, b"/2/")
        os.kill(picker, signal.SIGSTOP)
        await terminal.shows("! the picker of gateway 2 has not answered for .*: its part of what follows")
        await ask(first, **{"x-request-id": "more-by-one"})
        await terminal.shows(r" 1 +more-by-one .*demo-0 .*complete")
        os.kill(picker, signal.SIGCONT)
        terminal.forget()
        await terminal.shows("3 requests in all")
    terminal.close()


async def test_without_a_terminal_lines_sum_up_all_gateways(tmp_path):
    async with up(tmp_path, asyncio.subprocess.PIPE, "--gateways", "2") as (process, first):
        second = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().split()[1]
        await ask(first)
        await ask(second)
        async with asyncio.timeout(60):
            while b"matrixinfer: 2 requests in all" not in await process.stderr.readline():
                pass


async def test_without_a_terminal_lines_sum_up_what_has_changed(tmp_path):
    async with up(tmp_path, asyncio.subprocess.PIPE, TERM="xterm") as (process, url):

        async def line_with(text):
            async with asyncio.timeout(60):
                while text not in (line := (await process.stderr.readline()).decode()):
                    assert "\x1b" not in line
            return line

        await line_with("is ready")
        await ask(url)

        assert re.match(r"matrixinfer: 1 requests in all, .*, TTFT p50 \S+ p99 \S+", await line_with("requests in all"))


@pytest.mark.parametrize(
    ("terminal", "env", "expected"),
    [
        (True, {"TERM": "xterm-256color"}, True),
        (False, {"TERM": "xterm-256color"}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {}, False),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "xterm", "NO_COLOR": ""}, True),
    ],
)
def test_a_screen_is_drawn_where_it_can_be_and_is_wanted(terminal, env, expected):
    stream = io.StringIO()
    stream.isatty = lambda: terminal

    assert drawable(stream, env) is expected
