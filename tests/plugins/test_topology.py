from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import plugins
from extproc.plugins.topology_affinity_filter import TopologyAffinityFilter
from extproc.plugins.topology_affinity_scorer import TopologyAffinityScorer
from extproc.plugins.topology_extractor import Labels
from extproc.scheduling import config, topology
from extproc.scheduling.disaggregation import roles_by_label
from extproc.scheduling.topology import Place
from tests.scheduling.builders import a_cycle, a_plugin, a_request, an_endpoint

HOST, RACK, ZONE, REGION = (
    "kubernetes.io/hostname",
    "topology.kubernetes.io/rack",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
)
EVERYWHERE = (
    an_endpoint(labels={HOST: "h1", RACK: "r1", ZONE: "z1", REGION: "eu"}),
    an_endpoint(labels={HOST: "h2", RACK: "r1", ZONE: "z1", REGION: "eu"}),
    an_endpoint(labels={HOST: "h3", RACK: "r2", ZONE: "z1", REGION: "eu"}),
    an_endpoint(labels={HOST: "h4", ZONE: "z2", REGION: "eu"}),
    an_endpoint(labels={HOST: "h5", REGION: "us"}),
    an_endpoint(),
)
CONFIGURATION = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins: [{type: disagg-profile-handler}, {type: prefill-filter}, {type: decode-filter}, {type: topology-affinity-scorer}]
schedulingProfiles:
- {name: prefill, plugins: [{pluginRef: prefill-filter}, {pluginRef: topology-affinity-scorer}]}
- {name: decode, plugins: [{pluginRef: decode-filter}]}
"""
HERE = "host=h1,rack=r1,zone=z1,region=eu"


def near(place=HERE, endpoints=EVERYWHERE, plugin=TopologyAffinityScorer, **parameters):
    """What a plugin says of a request whose header names a place."""
    cycle = a_cycle(*endpoints, request=a_request(headers={"x-peer-topology": place}))
    one = a_plugin(plugin, peer_topology_header="X-Peer-Topology", **parameters)
    return (one.score(cycle) if hasattr(one, "score") else one.keep(cycle)).tolist()


def test_the_nearer_the_better():
    assert near() == [1.0, 0.2, 0.05, 0.02, 0.0, 0.0]


def test_what_is_not_known_is_near_to_nothing():
    assert near("zone=z1") == [0.05, 0.05, 0.05, 0.0, 0.0, 0.0]
    assert near("zone=,host=") == [0.0] * 6
    assert near("anything") == [0.0] * 6


def test_the_node_is_the_host_if_no_label_tells_it():
    endpoints = an_endpoint(node="h1"), an_endpoint(node="h1", labels={HOST: "other"}), an_endpoint(node="h2")

    assert near("host=h1", endpoints) == [1.0, 0.0, 0.0]


def test_labels_may_have_other_names():
    endpoints = an_endpoint(labels={"failure-zone": "z1"}), an_endpoint(labels={ZONE: "z1"})

    assert near("zone=z1", endpoints, labels=Labels(zone="failure-zone")) == [0.05, 0.0]


def test_the_endpoint_of_another_profile_comes_before_the_header_and_that_before_the_pickers_own_place():
    cycle = a_cycle(*EVERYWHERE, request=a_request(headers={"x-peer-topology": "host=h2"}))
    cycle.table.home = Place(host="h3")
    scorer = a_plugin(TopologyAffinityScorer, peer_topology_header="x-peer-topology")

    assert scorer.score(cycle._replace(peer=3)).tolist() == [0.02, 0.02, 0.02, 1.0, 0.0, 0.0]
    assert scorer.score(cycle).tolist() == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert a_plugin(TopologyAffinityScorer).score(cycle).tolist() == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("least", "stay"), [("host", 1), ("rack", 2), ("zone", 3), ("region", 4)])
def test_the_filter_keeps_who_is_near_enough(least, stay):
    assert near(plugin=TopologyAffinityFilter, min_affinity=least) == [True] * stay + [False] * (6 - stay)


def test_the_filter_leaves_all_where_nobody_is_near_or_nothing_is_known():
    assert near("host=h9", plugin=TopologyAffinityFilter) == [True] * 6
    assert near("", plugin=TopologyAffinityFilter) == [True] * 6


def test_prefill_is_placed_near_decode():
    disaggregation = config.build(config.load(config.parse(CONFIGURATION), plugins.BUILTIN)).disaggregation
    cycle = a_cycle(
        an_endpoint(node="n2", labels={"llm-d.ai/role": "decode"}),
        *(an_endpoint(node=f"n{at}", labels={"llm-d.ai/role": "prefill"}) for at in (1, 2, 3)),
    )
    pair = disaggregation.pair(cycle, roles_by_label(cycle.table, cycle.rows))

    assert (pair.decode.rows[0], pair.prefill.rows[0]) == (0, 2)


@pytest.mark.parametrize(
    ("text", "place"), [("", Place()), ("zone=z1, host=h1", Place(host="h1", zone="z1")), ("rack=", Place())]
)
def test_the_pickers_own_place_is_read(text, place):
    assert topology.told(text) == place


@pytest.mark.parametrize("text", ["z1", "zone", "zome=z1", "zone=a,zone=b", "zone=a=b"])
def test_a_place_that_is_written_wrong_is_refused(text):
    with pytest.raises(ValueError, match="a place is host=a,rack=b,zone=c,region=d"):
        topology.told(text)


@given(st.text(max_size=60))
def test_any_header_is_read(text):
    assert isinstance(topology.read(text), Place)
