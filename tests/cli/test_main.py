import subprocess
import sys

import pytest

from matrixinfer.cli.main import main

HEAVY = ("aiohttp", "grpc", "numpy", "pydantic", "yaml", "asyncio", "extproc", "controllers")


@pytest.mark.parametrize("command", [["--help"], ["up", "--help"], ["validate", "--help"]])
def test_help_costs_no_more_than_pythons_start(command):
    code = (
        "import sys\nfrom matrixinfer.cli.main import main\n"
        f"try: main({command!r})\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.strip() == "[]"
    assert "usage: matrixinfer" in done.stdout


def test_the_module_and_the_version():
    done = subprocess.run(
        [sys.executable, "-m", "matrixinfer", "--version"], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("matrixinfer 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["up", "x", "--port", "70000"], "'70000' is not a port: 0 to 65535"),
        (["up", "x", "--port", "-1"], "'-1' is not a port"),
        (["up", "--engine", "ftp://x"], "'ftp://x' is not an engine's address, such as http://127.0.0.1:8000"),
        (["up", "x", "--max-body-bytes", "0"], "'0' is not a positive number"),
        (["up", "x", "--picker-failure-mode", "maybe"], "invalid choice: 'maybe'"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)

    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["up"], ["up", "dir", "--engine", "http://127.0.0.1:1"]])
def test_up_takes_a_directory_or_engines_and_not_both(arguments, capsys):
    assert main(arguments) == 2
    assert "one of the two" in capsys.readouterr().err
