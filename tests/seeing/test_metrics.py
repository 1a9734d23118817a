"""The page and the dashboard against the picker's registry."""

import json
import re
from pathlib import Path

import pytest

from extproc.__main__ import _arguments, _Picker
from extproc.adapters import telemetry
from matrixinfer.cli.view import samples

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "observability.md"
DASHBOARD = json.loads((ROOT / "dashboards" / "matrixinfer.json").read_text())
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
SCRAPED = {"job", "instance"}  # labels that Prometheus adds
WORDS = {"by", "on", "or", "and", "unless", "without", "group_left", "ignoring", "offset", "inf", "bool"}


def registry():
    """Everything that a picker's metrics page may show: families by name."""
    picker = _Picker(_arguments(["--socket", "picker.sock", "--cluster-socket", "cluster.sock"]))
    return {family.name: family for family in telemetry.registry(picker._telemetry).collect()}


def series(families):
    """Labels by the name of a sample."""
    found = {}
    for family in families.values():
        if family.name.startswith("matrixinfer_"):
            labels = set(family._labelnames)
        else:
            labels = {label for sample in family.samples for label in sample.labels}
        for suffix in SUFFIXES.get(family.type, ("",)):
            found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


FAMILIES = registry()
SERIES = series(FAMILIES)


def expected_table():
    rows = []
    for family in FAMILIES.values():
        if family.name.startswith("matrixinfer_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            rows.append(f"| `{name}` | {family.type} | {', '.join(family._labelnames)} | {family.documentation} |")
    return rows


def test_the_page_lists_every_metric_as_the_picker_has_it():
    listed = [line for line in PAGE.read_text().splitlines() if line.startswith("| `matrixinfer_")]

    assert listed == expected_table()


@pytest.mark.parametrize("family", [each for each in FAMILIES if each.startswith("matrixinfer_")])
def test_every_metric_follows_the_rules_of_prometheus(family):
    metric = FAMILIES[family]

    assert re.fullmatch(r"matrixinfer_[a-z]+(_[a-z]+)*", family)
    assert metric.documentation.endswith(".")
    assert len(metric.documentation) > 20
    if metric.type == "histogram":
        assert family.endswith(("_seconds", "_ratio", "_bytes", "_tokens"))
    assert not family.endswith(("_ms", "_us", "_total", "_count", "_milliseconds"))


def panels():
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", ())


def expressions():
    found = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    return found + [one["definition"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]


def metrics_and_labels(expression):
    """Names of metrics in a PromQL expression, and the labels that it speaks of."""
    plain = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    labels = {
        name for inside in re.findall(r"{([^}]*)}", plain) for name in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside)
    }
    for grouped in re.findall(r"\b(?:by|on|without|ignoring|group_left)\s*\(([^)]*)\)", plain):
        labels |= set(re.findall(r"\w+", grouped))
    rest = re.sub(r"\b(?:by|on|without|ignoring|group_left)\s*\([^)]*\)", " ", re.sub(r"{[^}]*}", " ", plain))
    rest = re.sub(r"\[[^]]*\]", " ", rest)
    if asked := re.match(r"label_values\((\w+), (\w+)\)$", expression):
        return {asked[1]}, {asked[2]}
    names = {name for name, call in re.findall(r"\b([a-zA-Z_:][\w:]*)\s*(\()?", rest) if not call}
    return names - WORDS, labels


@pytest.mark.parametrize("expression", expressions())
def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(expression):
    names, labels = metrics_and_labels(expression)

    assert names
    assert names <= set(SERIES)
    assert labels <= set().union(*(SERIES[name] for name in names)) | SCRAPED
    assert expression.count("(") == expression.count(")")


def test_counters_are_asked_for_their_rates():
    for expression in expressions():
        for name in metrics_and_labels(expression)[0]:
            if name.endswith(("_total", "_bucket", "_sum", "_count")) and "label_values" not in expression:
                assert re.search(rf"(?:rate|increase)\({name}[{{\[]", expression), expression


def test_every_row_of_the_dashboard_is_there_and_nothing_overlaps():
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells

    assert rows == ["Traffic", "Latency", "Placement", "Engines", "Limits of trust"]
    assert DASHBOARD["schemaVersion"] >= 39
    assert len({panel["id"] for panel in panels()}) == len(list(panels()))


def test_every_metric_of_the_picker_is_on_the_dashboard_or_known_to_be_elsewhere():
    asked = set().union(*(metrics_and_labels(expression)[0] for expression in expressions()))
    asked = {re.sub("_(bucket|sum|count|total)$", "", name) for name in asked}
    missing = {name for name in FAMILIES if name.startswith("matrixinfer_")} - asked

    assert missing == {"matrixinfer_inflight_tokens", "matrixinfer_config_loads"}


def test_the_live_view_reads_metrics_that_there_are():
    assert set(SERIES) >= samples.WANTED
    for name in (samples.REQUESTS, samples.TOKENS, samples.ENDPOINT_TOKENS, samples.TTFT, samples.UNMET):
        assert (
            sorted(SERIES[name])
            == {
                samples.REQUESTS: ["model", "reason", "status"],
                samples.TOKENS: ["model", "type"],
                samples.ENDPOINT_TOKENS: ["endpoint", "type"],
                samples.TTFT: ["le", "model"],
                samples.UNMET: ["condition", "kind"],
            }[name]
        )
