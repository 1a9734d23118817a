import subprocess
import sys
from pathlib import Path

import pytest

from matrixinfer.local import state

HOLD = """
import sys, pathlib
from matrixinfer.local.state import State
print(State(None).folder, flush=True)
sys.stdin.read()
"""


def test_a_temporary_folder_goes_with_its_stack():
    mine = state.State(None)
    assert mine.logs.is_dir()

    mine.close()

    assert not mine.folder.exists()


def test_the_users_own_folder_stays(tmp_path):
    mine = state.State(tmp_path / "state")
    (mine.logs / "envoy.log").write_text("kept")

    mine.close()

    assert (tmp_path / "state" / "logs" / "envoy.log").read_text() == "kept"


def test_a_folder_has_one_stack_at_a_time(tmp_path):
    mine = state.State(tmp_path)

    with pytest.raises(state.StateInUse, match="choose another with --state-dir"):
        state.State(tmp_path)
    mine.close()
    state.State(tmp_path).close()


def test_what_a_killed_stack_left_is_swept_and_what_runs_is_not():
    mine = state.State(None)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        theirs = Path(other.stdout.readline().strip())
        state.sweep()
        assert theirs.is_dir()
        other.kill()

    state.sweep()

    assert not theirs.is_dir()
    assert mine.folder.is_dir()
    mine.close()
