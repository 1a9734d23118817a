"""Decisions: written by the picker, taken again by `matrixinfer replay`, used as a trace."""

import asyncio
import json

import pytest
import yaml

from extproc import plugins
from extproc.adapters.decision_log import DecisionLog
from extproc.scheduling import config
from matrixinfer.cli import main
from matrixinfer.cli.simulate.cluster import Cluster, Group
from matrixinfer.cli.simulate.traces import Source
from tests.director.stage import ADDRESSES, Stage, a_chat, an_outcome, words

RANDOM = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: random-picker\n"
ONE_PLACE = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: concurrency-detector, parameters: {maxConcurrency: 1}}
flowControl:
  saturationDetector: {pluginRef: concurrency-detector}
"""
LEAST = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: least-request-scorer\n"


def recorded(file, requests=40, **options):
    """Conversations of two turns over four engines, each answered when three more have begun."""
    log = DecisionLog(file, epoch=iter(range(10_000)).__next__, **options)
    stage = Stage()
    stage.director._witness = log
    open_decisions = []
    for number in range(requests):
        turns = [words(number // 2, 400)] + (["yes", words(number, 30)] if number % 2 else [])
        open_decisions.append(stage.decide(a_chat(*turns)))
        stage.clock.now += 0.1
        if len(open_decisions) > 3:
            stage.director.settle(an_outcome(open_decisions.pop(0)))
    log.close()
    return stage


def replayed(capsys, *arguments):
    code = main.main(["replay", *map(str, arguments)])
    out, error = capsys.readouterr()
    return code, out, error


def test_the_same_configuration_decides_the_same(tmp_path, capsys):
    recorded(tmp_path / "log.jsonl")

    code, out, _ = replayed(capsys, tmp_path / "log.jsonl")

    assert code == 0
    assert "0 differ" in out


def test_another_one_is_compared_score_by_score(tmp_path, capsys):
    recorded(tmp_path / "log.jsonl")
    (tmp_path / "least.yaml").write_text(LEAST)

    code, out, _ = replayed(capsys, tmp_path / "log.jsonl", "--config", tmp_path / "least.yaml", "--show", 1)

    assert code == 1
    assert out.startswith("40 decisions: ")
    assert "least-request-scorer prefers" in out
    assert out.count("weighted mean") == 1


def test_chance_is_named_as_the_reason(tmp_path, capsys):
    recorded(tmp_path / "log.jsonl")
    (tmp_path / "random.yaml").write_text(RANDOM)

    code, out, _ = replayed(capsys, tmp_path / "log.jsonl", "--config", tmp_path / "random.yaml")

    assert code == 0  # without scorers all scores are equal
    assert "ties between equal scores" in out


def test_a_log_is_a_trace(tmp_path):
    recorded(tmp_path / "log.jsonl")

    trace = Source(str(tmp_path / "log.jsonl"), Cluster(engines=(Group(count=4),)), requests=None).own()

    assert len(trace) == 40
    assert set(trace.output.tolist()) == {5}
    assert trace.block_tokens == 256


def test_a_log_says_who_asked_and_when_for_a_simulation_of_flow_control(tmp_path):
    stage = Stage(ADDRESSES[:1])
    found = config.load(yaml.safe_load(ONE_PLACE), plugins.BUILTIN)
    stage.director.gate.use(found.flow, config.detector(found))
    log = DecisionLog(tmp_path / "log.jsonl", epoch=lambda: 1000 + stage.clock.now)
    stage.director._witness = log
    http = a_chat("hi", headers={"x-gateway-inference-objective": "batch"})
    first = stage.decide(http._replace(tenant="acme", key="nightly"))
    stage.clock.now += 1
    waiting = stage.director.decide(a_chat("there")._replace(tenant="other"))
    next(waiting)
    stage.clock.now += 4
    stage.director.settle(an_outcome(first))
    with pytest.raises(StopIteration):
        waiting.send(None)
    log.close()

    trace = Source(str(tmp_path / "log.jsonl"), Cluster(engines=(Group(),)), requests=None).own()

    assert trace.at.tolist() == [0.0, 1.0]
    assert [trace.tenants[at] for at in trace.tenant] == ["acme", "other"]
    assert [trace.keys[at] for at in trace.key] == ["nightly", ""]
    assert [trace.objectives[at] for at in trace.objective] == ["batch", ""]


def test_the_log_turns_over_at_its_bound_and_begins_with_what_is_known(tmp_path):
    file = tmp_path / "log.jsonl"

    async def two_files():
        log = DecisionLog(file, epoch=lambda: 0.0, max_bytes=2000)
        stage = Stage()
        stage.director._witness = log
        writing = asyncio.create_task(log.run())
        while not (tmp_path / "log.jsonl.1").exists():
            stage.decide(a_chat("hello"))
            await asyncio.sleep(0.05)
        stage.decide(a_chat("hello"))
        writing.cancel()
        await asyncio.wait([writing])
        log.close()

    asyncio.run(two_files())

    kinds = [next(iter(json.loads(line))) for line in file.read_text().splitlines()]
    assert kinds[:4] == ["endpoint"] * 4
    assert "decision" in kinds


def test_what_comes_faster_than_it_is_written_is_dropped_and_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("extproc.adapters.decision_log._QUEUED", 10)
    recorded(tmp_path / "log.jsonl")

    _, out, _ = replayed(capsys, tmp_path / "log.jsonl")

    assert "entries are missing from the log" in out


GOOD = {
    "version": 1,
    "at": 0,
    "now": 0,
    "ticket": "t",
    "model": "m",
    "prompt_tokens": 10,
    "blocks": 1,
    "trunk": 0,
    "endpoints": ["a:1"],
    "matched": [0],
    "columns": {},
    "order": ["a:1"],
}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "2: not a line of a decision log"),
        ('{"decisions": {}}', "2: not a line of a decision log"),
        ("{}", "2: not a line of a decision log: it has none of its keys"),
        ({**GOOD, "prompt_tokens": -1}, "2: prompt_tokens must not be negative"),
        ({**GOOD, "matched": [0, 1]}, "2: matched has 2 entries for 1 endpoints"),
        ({**GOOD, "columns": {"load": [1]}}, "2: there is no column 'load'"),
        ({**GOOD, "version": 9}, "2: a decision log of version 9"),
        ({**GOOD, "chain": "?"}, "2: chain is not base64"),
        ({**GOOD, "endpoints": ["b:1"]}, "2: b:1 is not introduced by an endpoint line above"),
    ],
)
def test_a_bad_line_is_told_with_its_number(tmp_path, capsys, line, said):
    file = tmp_path / "log.jsonl"
    known = json.dumps({"endpoint": {"address": "a:1", "pod": "ns/a", "engine": "vLLM"}})
    file.write_text(f"{known}\n{line if isinstance(line, str) else json.dumps({'decision': line})}\n")

    code, _, error = replayed(capsys, file)

    assert code == 2
    assert f"{file}:{said}" in error


def test_a_log_without_decisions_and_a_bad_configuration_are_told(tmp_path, capsys):
    (tmp_path / "log.jsonl").write_text("")
    (tmp_path / "bad.yaml").write_text("kind: Nothing\n")

    assert replayed(capsys, tmp_path / "log.jsonl")[2].endswith("has no decision\n")
    assert replayed(capsys, tmp_path / "none.jsonl")[0] == 2
    assert "bad.yaml:1: " in replayed(capsys, tmp_path / "log.jsonl", "--config", tmp_path / "bad.yaml")[2]
