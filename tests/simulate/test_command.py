"""`matrixinfer simulate` as it is called."""

import csv
import sys
from pathlib import Path
from subprocess import run

import pytest

from matrixinfer.cli import main

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "simulate"
TRACE = str(EXAMPLES / "conversations.jsonl")
CLUSTER = str(EXAMPLES / "four-engines.yaml")


def test_tables_csv_and_page(tmp_path):
    files = ["--csv", str(tmp_path / "all.csv"), "--plot", str(tmp_path / "all.html")]
    configs = ["--config", str(EXAMPLES / "random.yaml"), "--exact", "default"]
    command = [sys.executable, "-m", "matrixinfer", "simulate", TRACE, "--cluster", CLUSTER, *configs]

    done = run(
        [*command, "--load", "0.3,0.6", *files], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "random" in done.stdout
    assert "default, exact" in done.stdout
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert [row["configuration"] for row in rows] == ["random", "default, exact"] * 2
    assert float(rows[0]["load"]) == pytest.approx(0.3, rel=0.2)
    assert 0 < float(rows[1]["hit_rate"]) < 1
    assert (tmp_path / "all.html").read_text().count("<circle") == 6 * 4


def told(capsys, *arguments):
    code = main.main(["simulate", *arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engines:\n- count: 2\n  kvblocks: 9\n", "3: engines[0].kvblocks: unknown parameter; did you mean kvBlocks"),
        ("engines:\n- count: 0\n", "2: engines[0].count: must be a whole number at least 1"),
        ("engines: []\n", "1: engines: must have an entry"),
        ("scrapeIntervalS: 1\nspeed: 3\n", "2: speed: unknown parameter"),
        ("engines: [\n", "not YAML"),
        ("- 1\n", "must be a mapping"),
    ],
)
def test_a_mistake_in_the_cluster_is_told_with_its_line(tmp_path, capsys, text, said):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)

    code, error = told(capsys, TRACE, "--cluster", str(file))

    assert code == 2
    assert f"{file}:" in error
    assert said in error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plugins:\n- type: random-picker\n", "apiVersion"),
        (
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: randm-picker\n",
            "4: plugins[0].type: unknown plugin type 'randm-picker'; did you mean random-picker",
        ),
        ("a: 1\na: 2\n", "2: not YAML"),
    ],
)
def test_a_mistake_in_a_configuration_is_told_with_its_line(tmp_path, capsys, text, said):
    file = tmp_path / "config.yaml"
    file.write_text(text)

    code, error = told(capsys, TRACE, "--cluster", CLUSTER, "--config", str(file))

    assert code == 2
    assert f"{file}:" in error
    assert said in error


def test_nothing_is_written_when_something_is_wrong(tmp_path, capsys):
    bad = tmp_path / "trace.jsonl"
    bad.write_text('{"timestamp": 0}\n')

    code, error = told(capsys, str(bad), "--cluster", CLUSTER, "--csv", str(tmp_path / "out.csv"))

    assert code == 2
    assert f"{bad}:1: not a request" in error
    assert [file.name for file in tmp_path.iterdir()] == ["trace.jsonl"]


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(tmp_path, capsys):
    code, error = told(capsys, TRACE, "--cluster", CLUSTER, "--csv", str(tmp_path / "none" / "out.csv"))

    assert code == 2
    assert "there is no such folder" in error


@pytest.mark.parametrize(
    "wrong",
    [
        ["--load", "0"],
        ["--load", "x"],
        ["--plot", "a.png"],
        ["--warm-up", "1"],
        ["--requests", "0"],
        ["--load", "1", "--rate", "2"],
    ],
)
def test_usage(wrong, capsys):
    try:
        code = main.main(["simulate", TRACE, "--cluster", CLUSTER, *wrong])
    except SystemExit as left:
        code = left.code

    assert code == 2
    assert wrong[0] in capsys.readouterr().err
