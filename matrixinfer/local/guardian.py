"""The guardian: one small process around each process of the stack, so that nothing outlives the supervisor.

It starts the command in a session of its own and then waits for one of three things: the command's end, a byte on
standard input (`t`: SIGTERM to the command; `k`: SIGKILL to all of it), or the end of standard input, which the kernel
gives it when the supervisor dies in any way. Whatever the reason, it leaves only when every descendant is gone: as
"child subreaper" it inherits those whose parents went before them, also such as have left the session. Should the
guardian itself be killed, the kernel kills the command (PDEATHSIG; the guardian has one thread, so the signal's tie to
the parent thread is no trap here).

Run as a script by path with `python -I -S`, so it imports nothing of ours. Arguments: the log file, then the command.
Standard output carries two lines of JSON to the supervisor: `{"pid": N}` or `{"error": ...}`, then `{"exit": code}`,
with 128 + N for a death by signal N, as container runtimes report it.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
from contextlib import suppress

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
NOT_EXECUTABLE = 126


def main(log: str, *command: str) -> None:
    """Run the command to its end."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)

    child = spawn(libc, log, command)
    ended = attend(child, wake_r)
    finish()
    say({"exit": ended})


def say(message: dict[str, object]) -> None:
    """One line to the supervisor, which may be gone."""
    with suppress(OSError):
        os.write(1, json.dumps(message).encode() + b"\n")


def spawn(libc: ctypes.CDLL, log: str, command: tuple[str, ...]) -> int:
    """Start the command; tells the supervisor its process id, or why it could not be started."""
    report_r, report_w = os.pipe2(os.O_CLOEXEC)
    guardian = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != guardian:
                os._exit(128 + signal.SIGKILL)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_RDONLY)
            output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.dup2(null, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.execvp(command[0], command)  # noqa: S606 - a command line, not a shell's
        except OSError as error:
            os.write(report_w, f"{error.strerror}: {error.filename or command[0]}".encode())
        finally:
            os._exit(NOT_EXECUTABLE)
    os.close(report_w)
    problem = os.read(report_r, 4096).decode(errors="replace")  # ends at exec, which closes the other end
    os.close(report_r)
    say({"error": problem} if problem else {"pid": child})
    return child


def attend(child: int, wake: int) -> int:
    """Wait for the command's end or the supervisor's; returns the exit code."""
    while True:
        readable, _, _ = select.select([0, wake], [], [])
        if wake in readable:
            signals = os.read(wake, 4096)
            if any(number != signal.SIGCHLD for number in signals):
                os.kill(child, signal.SIGTERM)
            ended = reap(child)
            if ended is not None:
                return ended
        if 0 in readable:
            orders = os.read(0, 4096)
            if not orders or b"k" in orders:
                with suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                return code(status)
            os.kill(child, signal.SIGTERM)  # not reaped yet, so the number is still the command's


def reap(child: int) -> int | None:
    """Collect the dead, also inherited ones; the exit code if the command is among them."""
    ended = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        if pid == child:
            ended = code(status)


def finish() -> None:
    """Kill all descendants, as a container's runtime does when its first process has ended."""
    while True:
        for pid in children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children() -> list[int]:
    """Direct children, of which orphaned grandchildren become ones."""
    me = str(os.getpid())
    found = []
    for process in os.scandir("/proc"):
        if process.name.isdecimal():
            with suppress(OSError), open(f"{process.path}/stat", "rb") as stat:  # noqa: PTH123 - pathlib costs its import
                # pid (name) state parent: the name may hold spaces and brackets, so split after the last bracket.
                if stat.read().rpartition(b")")[2].split()[1].decode() == me:
                    found.append(int(process.name))
    return found


def code(status: int) -> int:
    """Exit code as container runtimes give it."""
    ended = os.waitstatus_to_exitcode(status)
    return ended if ended >= 0 else 128 - ended


if __name__ == "__main__":
    main(*sys.argv[1:])
