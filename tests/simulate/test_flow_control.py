"""Flow control in the simulation: the picker's own gate in virtual time, before modelled engines."""

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from bench import flow_predicted
from extproc import plugins
from extproc.scheduling import config
from matrixinfer.cli import main
from matrixinfer.cli.simulate import generate, mooncake, simulation, summary
from matrixinfer.cli.simulate.cluster import Cluster, Group, Slo
from matrixinfer.cli.simulate.simulation import REFUSALS
from matrixinfer.cli.simulate.trace import Ask, build

HEAD = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}
VTC = "virtual-token-counter-fairness-policy"
BY_ARRIVAL = "global-strict-fairness-policy"
ONE = Group(
    prefill_tokens_per_second=1000, itl_ms_base=100, itl_ms_per_sequence=0
)  # a step takes 0.1 s and 1 ms a token


def flow(places=1, policy=VTC, parameters=None, **section):
    """A configuration whose engines take `places` requests each."""
    chosen = {"type": policy, **({"parameters": parameters} if parameters else {})}
    document = {
        **HEAD,
        "plugins": [{"type": "concurrency-detector", "parameters": {"maxConcurrency": places}}, chosen],
        "flowControl": {
            "saturationDetector": {"pluginRef": "concurrency-detector"},
            "defaultPriorityBand": {"fairnessPolicyRef": policy},
            **section,
        },
    }
    return config.load(document, plugins.BUILTIN)


def made(spec):
    name, kind = generate.kind(spec)
    return generate.made(name, kind)


def asks(*listed):
    return build("asks", listed, block_tokens=16)


def summed(record, trace, warm_up=0.0):
    found = np.zeros(len(trace), dtype=np.int64)
    return summary.summary(record, trace, configuration="", load=0, slo=Slo(), found=found, warm_up=warm_up)


def refusals(record):
    return [REFUSALS[at] if at >= 0 else "" for at in record.refusal.tolist()]


def p99(record, numbers):
    return float(np.percentile(record.ttft_s[numbers], 99))


def test_who_waits_goes_when_the_one_before_is_known_to_have_ended_and_the_wait_is_in_its_time_to_the_first_token():
    trace = asks(Ask(0.0, 900, 2, ()), Ask(0.0, 400, 2, ()))

    record = simulation.run(trace, Cluster(engines=(ONE,), settle_lag_ms=7), flow())

    assert record.waited_s.tolist() == pytest.approx([0.0, 1.1 + 0.007])  # 0.9 + 0.1 s for the prompt, and a step
    assert record.ttft_s.tolist() == pytest.approx([1.0, 1.107 + 0.5])
    assert summed(record, trace).waited_p99 == pytest.approx(1107, rel=0.02)


def test_calm_tenants_hardly_notice_one_that_floods_and_in_the_order_of_arrival_they_wait_for_it():
    spec = "tenants=4&skew=0&prefix=256&question=2000&output=2&requests=2000&rate=40&flood=0.85"
    trace = made(f"generate:tenants?{spec}")
    calm = np.flatnonzero(trace.tenant != trace.tenants.index("tenant-flood"))
    cluster = Cluster(engines=(Group(count=4),))

    alone = p99(simulation.run(trace.chosen(calm), cluster, flow()), slice(None))
    shared, by_arrival = (simulation.run(trace, cluster, flow(policy=one)) for one in (VTC, BY_ARRIVAL))

    assert p99(shared, calm) < 1.5 * alone
    assert p99(by_arrival, calm) > 10 * alone
    assert summed(by_arrival, trace).behind > 10 * summed(shared, trace).behind
    flood = summed(shared, trace).tenants[0]
    assert (flood.name, flood.requests) == ("tenant-flood", len(trace) - len(calm))
    assert flood.ttft_p50 > 10_000 * alone  # milliseconds: it waits for itself


@pytest.mark.parametrize("seed", range(6))
def test_tenants_that_wait_never_differ_by_more_than_the_bound(seed):
    """The bound of tests/flow/test_properties.py, on what engines served in a run."""
    chance = np.random.default_rng(seed)
    locality, weights, places = int(chance.choice([0, 500, 5000])), (1.0, float(chance.choice([0.5, 1.0, 3.0]))), 2
    longest = (2000, int(chance.choice([300, 2000])))
    listed = []
    for number in range(400):
        at = number % 2
        prompt, output = (int(chance.integers(1, most + 1)) for most in (longest[at], 200))
        shared = [1000 * at + block for block in range(prompt // 16)]  # a tenant's prompts all begin alike
        listed.append(Ask(0.0, prompt, output, shared, tenant="ab"[at]))
    trace = asks(*listed)
    tenants = [{"name": name, "weight": weight} for name, weight in zip("ab", weights, strict=True)]
    settings = flow(places, parameters={"localityTokens": locality}, tenants=tenants, defaultRequestTTL="10m")

    record = simulation.run(trace, Cluster(engines=(Group(count=2),)), settings)

    counted = (trace.prompt - record.cached + 0.1 * record.cached + 2 * trace.output) / np.array(weights)[trace.tenant]
    ended = record.ttft_s + record.tpot_s * (trace.output - 1)
    in_flight, unit = 2 * places, (2000 + 2 * 256) / min(weights)  # 256: what answers are thought to have at first
    bound = 2 * (locality + (in_flight + 1) * unit) + in_flight * unit
    both_wait = min(record.waited_s[trace.tenant == at].max() for at in (0, 1))
    order = [number for number in np.argsort(ended, kind="stable") if ended[number] < both_wait]
    lead = np.cumsum([counted[number] * (1 if trace.tenant[number] else -1) for number in order])
    assert (record.refusal < 0).all()
    assert len(order) > 100
    assert np.abs(lead).max() <= bound
    assert summed(record, trace).behind <= bound


def test_without_weights_nobody_is_behind_by_more_than_a_few_requests_and_by_arrival_much_more():
    listed = [Ask(0.001 * number, 2000, 4, (), tenant="flood") for number in range(200)]
    listed += [Ask(0.5 + 0.001 * number, 500, 4, (), tenant="calm") for number in range(50)]
    trace, cluster = asks(*listed), Cluster(engines=(Group(count=2),))

    fair, by_arrival = (summed(simulation.run(trace, cluster, flow(1, one)), trace) for one in (VTC, BY_ARRIVAL))

    assert fair.behind < 10_000
    assert by_arrival.behind > 150 * 2000
    assert [one.name for one in fair.tenants] == ["flood", "calm"]
    assert by_arrival.tenants[1].behind == by_arrival.behind


def test_what_is_refused_is_counted_by_its_reason_and_sums_up():
    listed = [Ask(0.0, 1000, 1, (), tenant="flood") for _ in range(8)]  # one goes, four wait, three find the band full
    listed += [Ask(0.1, 1000, 1, (), tenant="calm", objective="batch")]  # shed: it says that it may be refused
    listed += [Ask(0.2, 1000, 1, (), tenant="calm")]  # takes the place of one of the flood
    trace = asks(*listed)
    section = {
        "defaultPriorityBand": {"maxRequests": 4, "defaultRequestTTL": "3s", "fairnessPolicyRef": VTC},
        "objectives": [{"name": "batch", "priority": -1}],
    }

    record = simulation.run(trace, Cluster(engines=(ONE,)), flow(**section))

    said = refusals(record)
    assert said[:8].count("queue-full") == 3
    assert said[:8].count("displaced") == 1
    assert said[8:] == ["shed", ""]
    row = summed(record, trace)
    assert (row.shed, row.queue_full, row.displaced, row.waited_too_long) == (1, 3, 1, said.count("waited-too-long"))
    assert row.waited_too_long == 2  # three are served in 3 s: one at once, two that waited
    assert row.refused == sum(map(bool, said)) == 7
    assert sum(one.refused for one in row.tenants) == row.refused
    assert (record.ttft_s >= 0).tolist() == [not one for one in said]


def test_keys_tenants_and_objectives_of_a_trace_say_how_urgent_a_request_is(tmp_path):
    file = tmp_path / "trace.jsonl"
    common = '"timestamp": 0, "input_length": 1000, "output_length": 1, "hash_ids": []'
    facts = ("", ', "objective": "batch"', ', "tenant": "gold"', ', "key": "root"', ', "tenant": "other"')
    file.write_text("".join(f"{{{common}{fact}}}\n" for fact in facts))
    section = {
        "tenants": [{"name": "gold", "priority": 5}],
        "keys": [{"name": "root", "priority": 9}],
        "objectives": [{"name": "batch", "priority": -1}],
        "priorityBands": [{"priority": -1}],
    }

    record = simulation.run(mooncake.read(file), Cluster(engines=(ONE,)), flow(**section))

    assert np.argsort(record.waited_s).tolist() == [0, 3, 2, 4, 1]


def test_a_body_counts_as_four_bytes_for_each_token():
    listed = [Ask(0.0, 1000, 1, ()) for _ in range(4)]
    section = {"defaultPriorityBand": {"maxBytes": "8000", "fairnessPolicyRef": VTC}}

    record = simulation.run(asks(*listed), Cluster(engines=(ONE,)), flow(**section))

    assert refusals(record) == ["", "", "", "queue-full"]


def test_each_picker_has_a_gate_of_its_own():
    trace = asks(*[Ask(0.0, 1000, 1, ()) for _ in range(40)])
    cluster = Cluster(engines=(ONE,), pickers=2, pickers_join_at=(0.5,))

    record = simulation.run(trace, cluster, flow())

    assert (record.waited_s == 0).sum() == 3  # the engine has a place for each of them
    assert set(record.picker.tolist()) == {0, 1, 2}
    assert (record.ttft_s > 0).all()


def test_the_detector_sees_engines_as_old_as_their_pages():
    """A cache that one request fills lets nobody else in until a page says that it has ended."""
    group = Group(kv_blocks=1001, max_num_seqs=600)
    listed = [Ask(0.0, 15_000, 300, ())] + [Ask(2.0, 10, 1, ()) for _ in range(300)]
    trace = asks(*listed)
    settings = config.load({**HEAD, "flowControl": {}}, plugins.BUILTIN)

    quick, slow = (
        simulation.run(trace, Cluster(engines=(group,), scrape_interval_s=seconds), settings) for seconds in (0.1, 1.9)
    )

    for record in (quick, slow):
        ended = record.ttft_s[0] + record.tpot_s[0] * 299
        assert ended > 2.5
        assert (record.ttft_s >= 0).all()
        assert record.waited_s[1:].min() >= ended - 2 - 1e-9
    assert slow.waited_s[1] < ended - 2 + 1.9


def test_where_the_gate_is_shut_the_scheduler_sees_only_engines_with_a_place():
    blocks = list(range(1, 100))
    trace = asks(*[Ask(0.001 * number, 1600, 50, blocks) for number in range(4)])

    record = simulation.run(trace, Cluster(engines=(Group(count=2),)), flow(2))

    assert sorted(record.place.tolist()) == [0, 0, 1, 1]


def test_a_feature_gate_turns_it_off_and_then_nothing_is_different():
    trace = made("generate:tenants?requests=600&rate=60")
    document = {**HEAD, "flowControl": {}, "featureGates": ["flowControl=false"]}
    cluster = Cluster(engines=(Group(count=4),))

    off, plain = (simulation.run(trace, cluster, config.load(one, plugins.BUILTIN)) for one in (document, HEAD))

    assert off.ttft_s.tolist() == plain.ttft_s.tolist()
    assert off.place.tolist() == plain.place.tolist()
    assert off.behind is None
    assert not summed(off, trace).tenants


@hypothesis(max_examples=40)
@given(st.integers(0, 1 << 32), st.integers(1, 3), st.integers(1, 3), st.sampled_from([VTC, BY_ARRIVAL]), st.booleans())
def test_every_request_is_served_once_or_refused_and_no_engine_has_more_than_its_places(
    seed, places, pickers, policy, exact
):
    chance = np.random.default_rng(seed)
    listed = [
        Ask(
            float(at),
            int(chance.integers(1, 3000)),
            int(chance.integers(1, 60)),
            [int(chance.integers(1, 4))],
            tenant="abc"[chance.integers(3)],
            objective=("", "low")[chance.integers(2)],
        )
        for at in np.sort(chance.uniform(0, 3, 60))
    ]
    trace = asks(*listed)
    section = {
        "maxRequests": 12,
        "defaultRequestTTL": "2s",
        "priorityBands": [{"priority": -1, "maxRequests": 3}],
        "objectives": [{"name": "low", "priority": -1}],
    }
    cluster = Cluster(engines=(Group(count=2, speed=0.3),), pickers=pickers)

    record = simulation.run(trace, cluster, flow(places, policy, **section), exact=exact, seed=seed % 100)

    served = record.ttft_s >= 0
    assert (served == (record.refusal < 0)).all()
    assert (record.waited_s[served] <= 2.0 + 1e-9).all()
    assert (record.ttft_s[served] > record.waited_s[served]).all()
    begins = trace.at + record.waited_s
    ends = trace.at + record.ttft_s + record.tpot_s * (trace.output - 1)
    for picker in range(pickers):
        for engine in range(2):
            own = np.flatnonzero(served & (record.place == engine) & (record.picker == picker))
            for number in own:
                at = begins[number]
                assert ((begins[own] <= at) & (ends[own] > at + 1e-6)).sum() <= places
    assert summed(record, trace).refused == (~served).sum()


# ---- as it is called


CLUSTER = "engines:\n- {count: 2}\n"
CONFIGURATION = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: concurrency-detector, parameters: {maxConcurrency: 4}}
flowControl:
  saturationDetector: {pluginRef: concurrency-detector}
  defaultPriorityBand: {maxRequests: 20}
"""


def called(tmp_path, text, *more):
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "fair.yaml").write_text(text)
    trace = "generate:tenants?requests=300&rate=60&flood=0.8"
    files = ["--cluster", str(tmp_path / "cluster.yaml"), "--config", str(tmp_path / "fair.yaml")]
    return main.main(["simulate", trace, *files, *more])


def test_tables_name_refusals_tenants_and_waits(tmp_path, capsys):
    files = ["--csv", str(tmp_path / "all.csv"), "--plot", str(tmp_path / "all.html")]

    code = called(tmp_path, CONFIGURATION, "--config", "default", *files)

    said = capsys.readouterr().out
    assert code == 0
    (row, plain) = csv.DictReader((tmp_path / "all.csv").open())
    reasons = {name: int(row[name]) for name in ("shed", "queue_full", "displaced", "waited_too_long")}
    assert row["queued"] == "True"
    assert plain["queued"] == "False"
    assert int(row["refused"]) == sum(reasons.values()) > 0
    assert f"fair refused {row['refused']} of 270: " in said
    assert f"{reasons['queue_full']} queue-full" in said
    assert "behind" in said
    assert "tenant-flood" in said
    assert (tmp_path / "all.html").read_text().count("<circle") == 2 * 9


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("  defaultPriorityBand: {maxRequest: 20}", "7: flowControl.defaultPriorityBand.maxRequest: unknown parameter"),
        ("  saturationDetectr: {}", "7: flowControl.saturationDetectr: unknown parameter"),
        ("  priorityBands:\n  - {priority: 1, defaultRequestTTL: 1h}", "8: flowControl.priorityBands[0]"),
        ("  defaultPriorityBand: {fairnessPolicyRef: fair}", "7: flowControl.defaultPriorityBand.fairnessPolicyRef"),
    ],
)
def test_a_mistake_in_the_section_is_told_with_its_line(tmp_path, capsys, wrong, said):
    text = CONFIGURATION.replace("  defaultPriorityBand: {maxRequests: 20}", wrong)

    code = called(tmp_path, text)

    assert code == 2
    assert f"{tmp_path / 'fair.yaml'}:{said}" in capsys.readouterr().err


def test_a_closed_loop_that_floods_behind_envoy_is_foretold():
    """Measured (docs/flow-control.md): 0.87 s alone, 0.95 s in shares, 6.6 s in the order of arrival."""
    alone = flow_predicted.predicted(VTC, seconds=15, flooded=False)
    shared, by_arrival = (flow_predicted.predicted(one, seconds=15, flooded=True) for one in (VTC, BY_ARRIVAL))

    assert alone.at(0.99) == pytest.approx(0.87, rel=0.1)
    assert shared.at(0.99) == pytest.approx(0.95, rel=0.1)
    assert by_arrival.at(0.99) == pytest.approx(6.6, rel=0.25)
    assert shared.flood_served > 0.9 * by_arrival.flood_served
