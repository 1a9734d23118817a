from __future__ import annotations

import itertools
import re
import textwrap
from pathlib import Path

import numpy as np
import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import errors
from extproc.adapters import custom
from extproc.adapters.settings import Settings
from extproc.scheduling import config
from extproc.scheduling.framework import NoParams
from tests.picker.running import a_picker, endpoints
from tests.scheduling.builders import a_cycle, an_endpoint

PAGE = (Path(__file__).parents[2] / "docs" / "scheduling.md").read_text()
HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
SEEN = itertools.count()


def block(language, section):
    """The first block of this language on the page after a heading."""
    return re.search(rf"```{language}\n(.*?)```", PAGE.partition(f"## {section}\n")[2], re.DOTALL)[1]


def install(folder, source, entries):
    """Write a module, and the distribution that offers plugins of it, as an installer does."""
    module = f"plugins_{next(SEEN)}"
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = [f"{name} = {module}:{target}" for name, target in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[matrixinfer.plugins]", *lines, ""]))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def a_config(folder, text):
    file = folder / "config.yaml"
    file.write_text(HEAD + text)
    return file


def a_class(**members):
    """A custom plugin with these methods."""
    plain = {"TYPE": "mine", "Params": NoParams, "__init__": lambda self, params: None}
    return type("Mine", (), plain | members)


def guarded(**methods):
    """Such a plugin as it runs, and who watches it."""
    watch = custom.Watch(clock=lambda: 0.0)
    functions = {name: (lambda _self, *given, work=work: work(*given)) for name, work in methods.items()}
    return watch.guarded("mine", a_class(**functions)(NoParams())), watch


def failures(watch):
    return {reason: count for (_plugin, reason), count in watch.failures.values.items() if count}


def raising(*_given):
    raise RuntimeError("no")


def test_the_documented_plugin_works_as_documented(site, tmp_path):
    source = block("python", "Plugins of your own")
    entry = re.search(r"(\S+) = \"\w+:(\w+)\"", block("toml", "Plugins of your own"))
    install(site, source, {entry[1]: entry[2]})
    settings = Settings(a_config(tmp_path, block("yaml", "Plugins of your own")))
    watch = custom.Watch()
    scheduler = config.build(settings.current, watch.guarded)

    result = scheduler.schedule(a_cycle(an_endpoint(), an_endpoint(labels={"price": "spot"}), an_endpoint()))

    assert len([line for line in source.splitlines() if line]) <= 10
    assert result.rows[0] == 1
    assert not failures(watch)


async def test_a_plugin_that_fails_is_left_out_and_shown_by_name_and_the_picker_goes_on(site, tmp_path):
    source = """
        from extproc.scheduling.framework import NoParams

        class Picky:
            TYPE, Params = "picky-scorer", NoParams
            def __init__(self, params):
                pass
            def score(self, cycle):
                if "x-break" in cycle.request.headers:
                    raise RuntimeError("as told")
                addresses = sorted(cycle.table.address(row) for row in cycle.rows.tolist())
                return [float(cycle.table.address(row) == addresses[0]) for row in cycle.rows.tolist()]
    """
    install(site, source, {"picky": "Picky"})
    file = a_config(tmp_path, "plugins: [{type: picky-scorer, name: picky}]\n")
    async with a_picker(flags=("--config", str(file))) as picker:
        first = min(engine.address for engine in picker.engines)
        body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}

        chosen = {endpoints(await picker.ask(body))[0] for _ in range(8)}
        broken = [endpoints(await picker.ask(body, x_break="1")) for _ in range(3)]
        logged = await picker.logged("a custom plugin failed; decisions are made without it")
        _status, page = await picker.get("/metrics", "metrics")

        assert chosen == {first}
        assert {len(each) for each in broken} == {2}
        assert logged["plugin"] == "picky"
        assert 'matrixinfer_custom_plugin_failures_total{plugin="picky",reason="raised"} 3.0' in page
        assert 'matrixinfer_custom_plugin_seconds_count{plugin="picky"} 11.0' in page


def test_without_custom_plugins_there_are_no_metrics_of_them_and_ours_run_as_they_are():
    watch = custom.Watch()
    scheduler = config.build(Settings(None).current, watch.guarded)

    assert list(watch.metrics()) == []
    assert {type(one).__module__.rpartition(".")[0] for _name, one in scheduler.profile.filters} == {"extproc.plugins"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (raising, "raised"),
        (lambda _cycle: [0.1], "result"),
        (lambda _cycle: [[0.1], [0.2], [0.3]], "result"),
        (lambda _cycle: [0.1, float("nan"), 0.2], "result"),
        (lambda _cycle: [0.1, float("inf"), 0.2], "result"),
        (lambda _cycle: None, "result"),
        (lambda _cycle: ["a", "b", "c"], "result"),
        (lambda _cycle: [0.1, [0.2], 0.3], "result"),
        (lambda _cycle: exit(), "raised"),  # noqa: PLR1722 - what a plugin might do
    ],
)
def test_a_scorer_that_fails_gives_zero_to_all_and_is_counted(answer, reason):
    scorer, watch = guarded(score=answer)

    assert scorer.score(a_cycle(*[an_endpoint()] * 3)).tolist() == [0.0, 0.0, 0.0]
    assert failures(watch) == {reason: 1}


def test_scores_beyond_the_range_are_cut_off():
    scorer, watch = guarded(score=lambda _cycle: [2, -1, 0.5])

    assert scorer.score(a_cycle(*[an_endpoint()] * 3)).tolist() == [1.0, 0.0, 0.5]
    assert not failures(watch)


@pytest.mark.parametrize("answer", [raising, lambda _cycle: [True], lambda _cycle: [1, 0]])
def test_a_filter_that_fails_leaves_all_in(answer):
    one, watch = guarded(keep=answer)

    assert one.keep(a_cycle(an_endpoint(), an_endpoint())).tolist() == [True, True]
    assert sum(failures(watch).values()) == 1


@pytest.mark.parametrize(
    "answer",
    [raising, *(lambda _cycle, _scores, wrong=wrong: wrong for wrong in ([], [2], [-1], [0, 0], [0.5], 1, [[0, 1]]))],
)
def test_where_a_picker_fails_the_best_scores_win(answer):
    picker, watch = guarded(order=answer)

    assert picker.order(a_cycle(an_endpoint(), an_endpoint()), np.array([0.1, 0.9])).tolist() == [1, 0]
    assert sum(failures(watch).values()) == 1


def test_a_plugin_that_cannot_take_note_does_not_stop_the_decision():
    one, watch = guarded(score=lambda cycle: np.ones(len(cycle.rows)), observe=raising)

    one.observe(a_cycle(an_endpoint()), 0)

    assert failures(watch) == {"raised": 1}


def test_a_plugin_keeps_the_roles_that_it_has_and_no_others():
    one, _watch = guarded(keep=raising)

    assert [role for role in ("keep", "score", "order", "observe") if hasattr(one, role)] == ["keep"]


@given(
    st.one_of(
        st.none(),
        st.text(),
        st.lists(st.one_of(st.floats(), st.integers(-2, 4), st.booleans(), st.text()), max_size=4),
    )
)
def test_whatever_a_plugin_returns_the_scheduler_gets_what_it_can_use(anything):
    one, _watch = guarded(keep=lambda _cycle: anything, score=lambda _cycle: anything)
    picker, _watch = guarded(order=lambda _cycle, _scores: anything)
    cycle = a_cycle(*[an_endpoint()] * 3)

    scores = one.score(cycle)
    order = picker.order(cycle, scores).tolist()

    assert one.keep(cycle).shape == (3,)
    assert one.keep(cycle).dtype == bool
    assert scores.shape == (3,)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert order
    assert len(set(order) & {0, 1, 2}) == len(order)


def test_the_time_that_each_takes_is_its_own():
    watch = custom.Watch(clock=itertools.count().__next__)
    scorer = watch.guarded("slow", a_class(score=lambda _self, cycle: np.ones(len(cycle.rows)))(NoParams()))
    registry = prometheus_client.CollectorRegistry()
    registry.register(type("Source", (), {"collect": staticmethod(watch.metrics)})())

    scorer.score(a_cycle(an_endpoint()))

    assert registry.get_sample_value("matrixinfer_custom_plugin_seconds_sum", {"plugin": "slow"}) == 1.0


def test_a_failing_plugin_writes_one_line_a_minute(caplog):
    now = [0.0]
    watch = custom.Watch(clock=lambda: now[0])
    scorer = watch.guarded("mine", a_class(score=lambda _self, _cycle: raising())(NoParams()))
    for at in (0, 1, 59, 60, 61):
        now[0] = at
        scorer.score(a_cycle(an_endpoint()))

    assert [record.failures for record in caplog.records] == [1, 4]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("import nothing_of_that_name", "cannot be imported"),
        ("raise SystemExit(3)", "cannot be imported"),
        ("One = 3", "must name a class"),
        ("class One: pass", "must have a TYPE"),
        ("class One: TYPE = 'queue-scorer'", "there is a plugin of the type queue-scorer already"),
        ("class One: TYPE = 'one'", "must have Params, a dataclass"),
        (
            "from extproc.scheduling.framework import NoParams\nclass One: TYPE, Params = 'one', NoParams",
            "it must be a filter",
        ),
        (
            "from dataclasses import dataclass\n@dataclass\nclass P:\n  names: list[str]\nclass One: TYPE, Params = 'one', P",
            "Params.names: list[str] is none of",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_logged_and_the_others_stand(site, caplog, source, wanted):
    install(site, source, {"one": "One"})
    install(site, block("python", "Plugins of your own"), {"good": "CheapPodScorer"})

    assert [one.TYPE for one in custom.found()] == ["cheap-pod-scorer"]
    (record,) = caplog.records
    assert wanted in record.getMessage()
    assert record.plugin == "one"


def test_a_plugin_that_cannot_be_made_is_a_mistake_in_the_configuration(site, tmp_path):
    source = """
        from dataclasses import dataclass

        class One:
            TYPE = "one"
            @dataclass(frozen=True)
            class Params:
                words: tuple[str, ...] = ()
            def __init__(self, params):
                self.word = params.words[0]
            def score(self, cycle):
                return [1.0] * len(cycle.rows)
    """
    install(site, source, {"one": "One"})

    with pytest.raises(errors.ConfigError, match=r"plugins\.first: the plugin cannot be made: IndexError"):
        Settings(a_config(tmp_path, "plugins: [{type: one, name: first}]\n"))
    with pytest.raises(errors.ConfigError, match=r"plugins\[0\]\.parameters\.words\[0\]: must be a string, not 1"):
        Settings(a_config(tmp_path, "plugins: [{type: one, parameters: {words: [1]}}]\n"))

    assert Settings(a_config(tmp_path, "plugins: [{type: one, parameters: {words: [a]}}]\n")).problem == ""
