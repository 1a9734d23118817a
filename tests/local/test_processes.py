import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from matrixinfer.local.processes import Command, Process, StartError, tail
from tests.local.procs import alive
from tests.local.waiting import eventually

FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
stray = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
print(os.getpid(), child.pid, stray.pid, flush=True)
time.sleep(1000)
"""


def python(code: str, log: Path) -> Command:
    return Command([sys.executable, "-c", code], os.environ, log)


async def family(log: Path) -> list[int]:
    """The three process ids that FAMILY wrote to its log."""
    await eventually(lambda: len(tail(log, 1)) == 1)
    return [int(pid) for pid in tail(log, 1)[0].split()]


async def test_a_command_writes_to_its_log_and_reports_its_exit_code(tmp_path):
    process = await Process.start(python("print('out'); import sys; sys.exit('err')", tmp_path / "log"))

    assert await process.wait() == 1
    assert tail(tmp_path / "log") == ["out", "err"]


async def test_a_death_by_signal_is_reported_as_128_and_the_signal(tmp_path):
    process = await Process.start(python("import time; time.sleep(1000)", tmp_path / "log"))

    os.kill(process.pid, signal.SIGKILL)

    assert await process.wait() == 137


async def test_sigterm_comes_first_and_lets_the_command_end_by_itself(tmp_path):
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(1000)"
    )
    process = await Process.start(python(code, tmp_path / "log"))
    await eventually(lambda: tail(tmp_path / "log") == ["up"])

    assert await process.stop(60) == 7


async def test_a_command_that_ignores_sigterm_is_killed_after_the_grace(tmp_path):
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(1000)"
    process = await Process.start(python(code, tmp_path / "log"))
    await eventually(lambda: tail(tmp_path / "log") == ["up"])

    assert await process.stop(0.1) == 137


async def test_stopping_takes_along_what_the_command_has_started(tmp_path):
    process = await Process.start(python(FAMILY, tmp_path / "log"))
    pids = await family(tmp_path / "log")

    await process.stop(60)

    assert [alive(pid) for pid in pids] == [False, False, False]


async def test_a_killed_command_takes_its_children_along(tmp_path):
    process = await Process.start(python(FAMILY, tmp_path / "log"))
    pids = await family(tmp_path / "log")

    os.kill(process.pid, signal.SIGKILL)
    await process.wait()

    assert [alive(pid) for pid in pids] == [False, False, False]


async def test_a_killed_guardian_takes_the_command_and_its_group_along(tmp_path):
    process = await Process.start(python(FAMILY, tmp_path / "log"))
    command, child, stray = await family(tmp_path / "log")

    os.kill(process._guardian.pid, signal.SIGKILL)

    assert await process.wait() == 137
    await eventually(lambda: not alive(command) and not alive(child))
    os.kill(stray, signal.SIGKILL)  # left its session, and with the guardian went the only one who knew of it


async def test_nothing_survives_the_kill_of_the_supervisor(tmp_path):
    supervisor = f"""
import asyncio, os, sys
from pathlib import Path
from matrixinfer.local.processes import Command, Process
async def main():
    for name in ("a", "b"):
        process = await Process.start(Command([sys.executable, "-c", {FAMILY!r}], os.environ, Path({str(tmp_path)!r}) / name))
        print(process._guardian.pid, flush=True)
    await process.wait()
asyncio.run(main())
"""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-c", supervisor, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert started.stdout
    pids = [int(await started.stdout.readline()), int(await started.stdout.readline())]
    pids += await family(tmp_path / "a")
    pids += await family(tmp_path / "b")
    assert all(alive(pid) for pid in pids)

    started.kill()
    await started.wait()

    await eventually(lambda: not any(alive(pid) for pid in pids))


async def test_a_command_that_does_not_exist_says_so(tmp_path):
    with pytest.raises(StartError, match="No such file or directory: no-such-program"):
        await Process.start(Command(["no-such-program"], os.environ, tmp_path / "log"))


async def test_a_working_directory_that_does_not_exist_says_so(tmp_path):
    with pytest.raises(StartError, match=r"working directory .* does not exist"):
        await Process.start(Command(["true"], os.environ, tmp_path / "log", tmp_path / "none"))
