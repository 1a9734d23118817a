"""What holds of all tests: on any machine a property may take its time, and who shares a lane where lanes run side by side.

`make test` runs two lanes (pytest-xdist): most of a test that starts processes is waiting. Tests of a file share a lane and
what the file has started, those of `kubernetes` their API servers; pages of the documentation share nothing. A test that is
marked `alone` compares times: meanwhile the other lane rests.
"""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("any machine", settings(), deadline=None)
settings.load_profile("any machine")

TESTS = Path(__file__).parent


class Lanes(LoadScopeScheduling):
    """Gives a lane what has to stay together, the next whenever it is free."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.startswith("tests/kubernetes/"):
            return "kubernetes"
        return nodeid if file == "tests/docs/test_pages.py" else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return Lanes(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside of the time that a test may take
def pytest_runtest_protocol(item):
    if not hasattr(item.config, "workerinput"):  # nobody runs beside us
        return (yield)
    # Who waits for the room keeps its door shut, so that all get their turn.
    with (TESTS / "__init__.py").open() as door, (TESTS / "conftest.py").open() as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        return (yield)


def pytest_terminal_summary(terminalreporter):
    reasons = {}
    for report in terminalreporter.stats.get("skipped", ()):
        if report.nodeid.startswith("tests/kubernetes/"):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        terminalreporter.write_line(f"left out: {count} Kubernetes tests: {reason}", yellow=True)
