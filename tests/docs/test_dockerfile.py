"""The image, as far as it can be seen without building it: what is copied suffices to run, and nothing else is sent along."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

DOCKERFILE = (ROOT / "Dockerfile.extproc").read_text()
STAGES = re.split(r"(?m)^FROM ", DOCKERFILE)[1:]
LETS_THROUGH = {line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}


def copied(stage):
    """What a stage takes from the build context."""
    return [line.split()[1] for line in re.findall(r"(?m)^COPY (?!--from).*$", stage)]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A folder with what the last stage takes along."""
    app = tmp_path_factory.mktemp("app")
    for name in copied(STAGES[-1]):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, app / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, app)
    return app


def run(image, *command):
    return subprocess.run(
        [sys.executable, *command],
        cwd=image,
        env=os.environ | {"PYTHONPATH": str(image), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_everything_that_is_copied_is_sent_to_the_builder():
    names = {name for stage in STAGES for name in copied(stage)}

    assert {Path(name).parts[0] for name in names} == LETS_THROUGH
    assert all((ROOT / name).exists() for name in names)


def test_what_is_copied_runs_the_picker_and_the_controllers(image):
    print_homes = (
        "import extproc.director as e, controllers.xds.filters as c; print(e.__file__, c.RESPONSE_LUA.exists())"
    )

    assert "--cluster-socket" in run(image, "-m", "extproc", "--help")
    assert run(image, "-c", print_homes).split() == [str(image / "extproc" / "director.py"), "True"]
    run(image, "-c", "import controllers.__main__, controllers.xds.ads")
    for program in ("matrixinfer.cluster", "engine.simulator", "engine.proxy"):
        assert "usage" in run(image, "-m", program, "--help")


def test_it_runs_as_nobody_in_particular():
    users = re.findall(r"(?m)^USER (\d+):(\d+)$", STAGES[-1])

    assert users
    assert all(int(user) > 0 for user, _ in users)
    assert STAGES[-1].index("USER") > STAGES[-1].rindex("RUN")


def test_everything_is_installed_by_hash():
    installs = re.findall(r"(?m)^.*pip.* install .*$", DOCKERFILE)

    assert len(installs) == 2
    assert all("--require-hashes" in line and ".lock" in line for line in installs)
