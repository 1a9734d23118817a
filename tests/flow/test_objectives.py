"""InferenceObjectives: at which pools they count, what they count beside the gateway's own words, and while they change."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import errors
from extproc.traffic.flow.objectives import priorities
from matrixinfer.api import kinds
from matrixinfer.api.objectives import InferenceObjective
from matrixinfer.api.validation import validate
from tests.flow.room import BAND, POOL, RULES, Room, rules
from tests.picker.running import a_pod, a_server, eventually, put
from tests.picker.test_world import At, following

HEADER = "x-llm-d-inference-objective"
OURS = {"group": "networking.matrixinfer.ai", "kind": "ModelServer"}
SERVERS = {
    ("ns", "engines"): {"tier": "fast", "gpu": "h100"},
    ("ns", "others"): {"tier": "slow"},
    ("other", "engines"): {"tier": "fast"},
}


def a_manifest(name="batch", priority=-1, *, namespace="ns", kind=kinds.INFERENCE_OBJECTIVE, **spec):
    spec = spec or {"poolRef": {"name": "engines"}}
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec | ({} if priority is None else {"priority": priority}),
    }


def an_objective(*args, **spec):
    return InferenceObjective.model_validate(a_manifest(*args, **spec))


def pools(objective):
    return {server for server, _ in priorities([objective], SERVERS)}


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ({"poolRef": {"name": "engines"}}, {"ns/engines"}),
        ({"poolRef": {"group": "llm-d.ai", "kind": "InferencePool", "name": "engines"}}, {"ns/engines"}),
        ({"poolRef": {"group": "inference.networking.k8s.io", "name": "engines"}}, {"ns/engines"}),
        ({"poolRef": OURS | {"name": "others"}}, {"ns/others"}),
        ({"poolRef": {"kind": "ModelServer", "name": "engines"}}, set()),
        ({"poolRef": {"group": "", "kind": "Service", "name": "engines"}}, set()),
        ({"poolRef": {"name": "gone"}}, set()),
        ({"poolRefs": [{"name": "gone"}, {"name": "others"}, {"name": "engines"}]}, {"ns/engines", "ns/others"}),
        ({"poolRef": {"name": "engines"}, "poolSelector": {"matchLabels": {"tier": "slow"}}}, {"ns/engines", "ns/others"}),
        ({"poolSelector": {}}, {"ns/engines", "ns/others"}),
        ({"poolSelector": {"matchLabels": {"tier": "fast"}}}, {"ns/engines"}),
        ({"poolSelector": {"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}}, {"ns/others"}),
    ],
)  # fmt: skip
def test_an_objective_is_for_the_model_servers_of_its_namespace_that_it_names(spec, found):
    assert pools(an_objective(**spec)) == found


def test_equal_names_in_several_namespaces_are_several_objectives():
    table = priorities([an_objective("a", 1), an_objective("a", 2, namespace="other")], SERVERS)

    assert table == {("ns/engines", "a"): 1, ("other/engines", "a"): 2}


def test_an_objective_without_a_priority_has_priority_0():
    assert priorities([an_objective("a", None)], SERVERS) == {("ns/engines", "a"): 0}


words = st.sampled_from(["a", "b", "c"])
labels = st.dictionaries(words, words)
requirements = st.one_of(
    st.fixed_dictionaries(
        {"key": words, "operator": st.sampled_from(["In", "NotIn"]), "values": st.lists(words, min_size=1)}
    ),
    st.fixed_dictionaries({"key": words, "operator": st.sampled_from(["Exists", "DoesNotExist"])}),
)
selectors = st.fixed_dictionaries({}, optional={"matchLabels": labels, "matchExpressions": st.lists(requirements)})
references = st.builds(lambda name: {"name": name}, words)
specs = st.fixed_dictionaries(
    {"poolSelector": selectors},
    optional={"poolRef": references, "poolRefs": st.lists(references, min_size=1, max_size=3)},
)
places = st.tuples(words, words)


def meets(requirement, of):
    has = of.get(requirement["key"])
    said = {
        "In": has in requirement.get("values", ()),
        "NotIn": has not in requirement.get("values", ()),
        "Exists": has is not None,
        "DoesNotExist": has is None,
    }
    return said[requirement["operator"]]


@given(
    st.dictionaries(places, st.tuples(st.integers(-9, 9), specs), max_size=6),
    st.dictionaries(places, labels, max_size=8),
)
def test_the_table_says_of_every_pair_what_its_objective_says(written, servers):
    manifests = [a_manifest(name, at, namespace=where, **spec) for (where, name), (at, spec) in written.items()]
    assert [validate(manifest) for manifest in manifests] == [[]] * len(manifests)

    table = priorities([InferenceObjective.model_validate(one) for one in manifests], servers)

    expected = {}
    for (where, name), (at, spec) in written.items():
        selector = spec["poolSelector"]
        for (namespace, server), carried in servers.items():
            named = [*spec.get("poolRefs", ()), spec.get("poolRef")]
            selected = all(carried.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
                meets(one, carried) for one in selector.get("matchExpressions", ())
            )
            if namespace == where and ({"name": server} in named or selected):
                expected[f"{namespace}/{server}", name] = at
    assert table == expected


# ---- what it counts


def stated(rules, table, **asked):
    """The priority of a request that names `gold`."""
    room = Room(rules, slots=9)
    room.gate.objectives = table
    return room.ask(headers={HEADER: "gold"}, **asked).passed.priority


@pytest.mark.parametrize("at", [5, 0, -5])
def test_it_counts_up_and_down_where_the_gateway_says_nothing(at):
    assert stated(RULES, {(POOL, "gold"): at}) == at


@pytest.mark.parametrize("name", ["x-llm-d-inference-objective", "x-gateway-inference-objective"])
def test_both_names_of_the_header_count(name):
    room = Room()
    room.gate.objectives = {(POOL, "gold"): 5}

    assert room.ask(headers={name: "gold"}).passed.priority == 5


@pytest.mark.parametrize(
    "table", [{}, {(POOL, "silver"): 5}, {("ns/others", "gold"): 5}, {("other/engines", "gold"): 5}]
)
def test_one_that_is_not_there_or_not_for_the_pool_says_nothing(table):
    assert stated(RULES, table) == 0
    assert stated(dataclasses.replace(RULES, keys={"k": 3}), table, key="k") == 3
    assert stated(dataclasses.replace(RULES, keys={"k": 3}, trusted=True), table, key="k") == 3


FOR_TENANTS = rules('{"tenants": [{"name": "acme", "priority": 3}]}')
FOR_KEYS = rules('{"keys": [{"name": "k", "priority": 3}]}')
MISTRUSTING = rules('{"trustRequestHeaders": false}')


@pytest.mark.parametrize(
    ("rules", "asked", "own"),
    [(FOR_TENANTS, {"tenant": "acme"}, 3), (FOR_KEYS, {"key": "k"}, 3), (MISTRUSTING, {}, 0)],
)
def test_it_only_lowers_what_the_gateway_says_of_a_caller_or_of_all_headers(rules, asked, own):
    assert [stated(rules, {(POOL, "gold"): at}, **asked) for at in (9, own, -2)] == [own, own, -2]


@pytest.mark.parametrize(("rules", "asked"), [(FOR_TENANTS, {"tenant": "another"}), (FOR_KEYS, {"key": "another"})])
def test_it_counts_for_callers_of_whom_the_configuration_says_nothing(rules, asked):
    assert stated(rules, {(POOL, "gold"): 9}, **asked) == 9


def test_it_decides_where_headers_are_trusted():
    trusting = dataclasses.replace(FOR_KEYS, trusted=True)

    assert [stated(trusting, {(POOL, "gold"): at}, key="k") for at in (9, -2)] == [9, -2]


def test_an_entry_of_the_configuration_stands_above_an_object_of_the_same_name():
    configured = rules('{"objectives": [{"name": "gold", "priority": -3}]}')
    raising = rules('{"objectives": [{"name": "gold", "priority": 3}]}')

    assert stated(configured, {(POOL, "gold"): 9}) == -3
    assert stated(raising, {(POOL, "gold"): 9}) == 0  # of itself, a header that only lowers


class Untouched(dict):
    """Headers that nobody may look at."""

    def get(self, *_):
        raise AssertionError


def test_without_objectives_headers_are_not_looked_at():
    assert Room().ask(headers=Untouched()).passed.priority == 0


def test_a_request_keeps_the_priority_that_it_came_with():
    room = Room()
    room.gate.objectives = {(POOL, "gold"): 5}
    first = room.ask()
    gold = room.ask(headers={HEADER: "gold"})
    room.gate.objectives = {(POOL, "gold"): -5}
    plain = room.ask()

    refused = room.ask(headers={HEADER: "gold"}).refusal
    room.end(first)

    assert isinstance(refused, errors.Shed)
    assert (gold.waits, plain.waits) == (False, True)
    assert gold.passed.priority == 5


def test_a_band_is_of_the_priority_that_an_objective_says():
    banded = dataclasses.replace(RULES, bands={-5: BAND})
    room = Room(banded)
    room.gate.objectives = {(POOL, "gold"): -5}
    room.ask()

    assert room.ask(headers={HEADER: "gold"}).waits


# ---- as the cluster tells it


async def test_objectives_come_change_and_go_with_the_cluster():
    stage = await following()
    gate = stage.director.gate

    await put(stage.cluster, a_manifest("batch", -1))
    await eventually(lambda: gate.objectives == {("ns/engines", "batch"): -1})
    await put(stage.cluster, a_manifest("batch", 4))
    await eventually(lambda: gate.objectives == {("ns/engines", "batch"): 4})
    await put(stage.cluster, a_manifest("batch", 4, poolRef={"name": "others"}))
    await eventually(lambda: gate.objectives == {})
    await put(stage.cluster, a_server("others", app="others"))
    await eventually(lambda: gate.objectives == {("ns/others", "batch"): 4})
    await stage.cluster.delete(kinds.INFERENCE_OBJECTIVE, "batch", "ns")
    await eventually(lambda: gate.objectives == {})
    await stage.stop()


async def test_a_selector_follows_the_labels_of_model_servers():
    stage = await following()
    gate = stage.director.gate
    await put(stage.cluster, a_manifest("batch", -1, poolSelector={"matchLabels": {"tier": "slow"}}))
    await put(stage.cluster, a_manifest("always", 1))
    await eventually(lambda: gate.objectives == {("ns/engines", "always"): 1})

    server = a_server()
    server["metadata"]["labels"] = {"tier": "slow"}
    await put(stage.cluster, server)
    await eventually(lambda: ("ns/engines", "batch") in gate.objectives)

    await put(stage.cluster, a_server())
    await eventually(lambda: gate.objectives == {("ns/engines", "always"): 1})
    await stage.stop()


async def test_of_one_name_in_both_groups_llm_ds_own_counts():
    stage = await following()
    gate = stage.director.gate

    await put(stage.cluster, a_manifest("batch", -1))
    await put(stage.cluster, a_manifest("batch", -2, kind=kinds.OLD_INFERENCE_OBJECTIVE))
    await put(stage.cluster, a_manifest("old", -3, kind=kinds.OLD_INFERENCE_OBJECTIVE))
    await eventually(lambda: gate.objectives == {("ns/engines", "batch"): -1, ("ns/engines", "old"): -3})
    await stage.cluster.delete(kinds.INFERENCE_OBJECTIVE, "batch", "ns")

    await eventually(lambda: gate.objectives == {("ns/engines", "batch"): -2, ("ns/engines", "old"): -3})
    await stage.stop()


async def test_one_that_cannot_be_read_keeps_its_last_good_version_and_is_said_by_its_group():
    stage = await following()
    stage.view.put(kinds.OLD_INFERENCE_OBJECTIVE, a_manifest("batch", -1, kind=kinds.OLD_INFERENCE_OBJECTIVE))
    stage.view.put(kinds.OLD_INFERENCE_OBJECTIVE, a_manifest("batch", "-2", kind=kinds.OLD_INFERENCE_OBJECTIVE))
    stage.view.put(kinds.INFERENCE_OBJECTIVE, a_manifest("batch", 3, poolRef={"name": "others"}))
    stage.view.rebuild()

    assert stage.director.gate.objectives == {("ns/engines", "batch"): -1}
    assert list(stage.view.problems) == ["InferenceObjective.inference.networking.x-k8s.io ns/batch"]
    await stage.stop()


async def test_one_on_its_way_out_says_nothing_any_more():
    stage = await following()
    held = a_manifest()
    held["metadata"]["finalizers"] = ["example.com/hold"]
    await put(stage.cluster, held)
    await eventually(lambda: stage.director.gate.objectives)

    await stage.cluster.delete(kinds.INFERENCE_OBJECTIVE, "batch", "ns")

    await eventually(lambda: stage.director.gate.objectives == {})
    await stage.stop()


async def test_what_others_say_in_a_status_is_no_condition_of_ours():
    stage = await following()

    for status in ("odd", {"conditions": [{"type": "Ready", "status": "False"}]}):
        stage.view.put(kinds.INFERENCE_OBJECTIVE, a_manifest() | {"status": status})
    stage.view.rebuild()

    assert (stage.view.problems, json.dumps(stage.view.unmet).count("InferenceObjective")) == ({}, 0)
    assert stage.director.gate.objectives == {("ns/engines", "batch"): -1}
    await stage.stop()


async def test_pods_that_come_and_go_leave_the_priorities_as_they_are():
    stage = await following()
    await put(stage.cluster, a_manifest())
    await eventually(lambda: stage.director.gate.objectives)
    made, rebuilds = stage.director.gate.objectives, stage.view.rebuilds

    stage.view.put(kinds.POD, a_pod(At("127.0.0.3:8003"), "c"))
    stage.view.rebuild()

    assert stage.view.rebuilds > rebuilds
    assert stage.director.gate.objectives is made
    await stage.stop()
