"""Who else may get a request: the list that goes on to further targets, and the names that they need."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.scheduling.endpoints import Endpoint, EndpointTable
from extproc.traffic import failover, routes
from extproc.traffic.pools import Pools
from matrixinfer.api import dataplane, networking
from tests.traffic.test_routes import a_request, a_route, a_server, a_table, a_target, resolved

RELAY = dataplane.RELAY_ENDPOINT


class World:
    """ModelServers a, b, c, ... with so many endpoints each, and one rule over them."""

    def __init__(self, *sizes, models=(), rule=None, **spec):
        names = "abcdef"[: len(sizes)]
        self.servers = [
            a_server(name, model=models[number] if number < len(models) else None) for number, name in enumerate(names)
        ]
        self.table, pools = EndpointTable(), {}
        for name, size in zip(names, sizes, strict=True):
            pools[f"ns/{name}"] = [f"{name}{number}" for number in range(size)]
            for address in pools[f"ns/{name}"]:
                self.table.upsert(Endpoint(address, f"ns/{address}", "vLLM"))
        self.pools = Pools(self.table)
        self.pools.set(pools)
        targets = [a_target(name, 100 if number == 0 else 1) for number, name in enumerate(names)]
        self.routes = a_table(
            a_route("r", rules=[{"targetModels": targets} | (rule or {})], **spec), servers=self.servers
        )

    def shared(self, *endpoints, request=None, divided=(), alone=False, provider=""):
        asked = request or a_request()
        placement = resolved(
            self.routes, asked, ready=[name for name in self.routes.servers if self.pools.has_endpoints(name)]
        )
        others = failover.Others(self.routes.servers, self.pools, self.table, lambda name: name in divided, 0.0)
        return failover.shared(placement, endpoints, asked, others, alone=alone, provider=provider)

    def busy(self, **inflight):
        for address, count in inflight.items():
            self.table.view["inflight"][self.table.row(address)] = count


def test_further_targets_stand_behind_as_many_endpoints_of_the_own_as_its_retries_reach():
    shared = World(4, 4, 4).shared("a3", "a1", "a0", "a2")

    assert shared.endpoints == ("a3", "a1", "a0", "b0", "b1", "c0", "c1")
    assert shared.further == {"b0": "ns/b", "b1": "ns/b", "c0": "ns/c", "c1": "ns/c"}
    assert shared.names == ()


def test_those_with_the_least_to_do_are_taken_and_one_that_is_avoided_last():
    world = World(1, 3)
    world.busy(b0=5, b1=1, b2=0)
    world.table.avoid_until[world.table.row("b2")] = 10.0

    assert world.shared("a0").endpoints[:3] == ("a0", "b1", "b0")


def test_tries_that_the_own_target_has_no_endpoints_for_go_to_others():
    # Three tries of its own and two of the other: Envoy must not choose by itself as long as somebody is not listed.
    assert World(1, 9).shared("a0").endpoints == ("a0", "b0", "b1", "b2", "b3")
    assert World(1, 2).shared("a0").endpoints == ("a0", "b0", "b1")


def test_a_rule_of_one_target_says_nothing():
    shared = World(3).shared("a0", "a1")

    assert shared == failover.Shared(("a0", "a1"))


def test_a_target_without_endpoints_is_no_further_target():
    assert World(2, 0, 1).shared("a0", "a1").further == {"c0": "ns/c"}


def test_targets_beyond_the_second_further_one_are_left_out():
    assert set(World(1, 1, 1, 1).shared("a0").further.values()) == {"ns/b", "ns/c"}


@pytest.mark.parametrize("attempts", [0, 1, 5])
def test_the_routes_retries_say_how_far_the_own_target_is_tried(attempts):
    world = World(9, 9, trafficPolicy={"retry": {"attempts": attempts}})

    shared = world.shared("a0", "a1", "a2", "a3")

    expected = {0: ("a0", "a1", "a2", "a3"), 1: ("a0", "a1", "b0", "b1"), 5: ("a0", "a1", "a2", "a3", "b0", "b1")}
    assert shared.endpoints[:6] == expected[attempts]


def test_who_knows_the_model_by_another_name_is_told_it():
    world = World(1, 1, 1, models=("name-a", "name-b", None))

    shared = world.shared("a0")

    assert dict(shared.names) == {"b0": '"name-b"', "c0": '"demo"'}


def test_names_are_ascii_whatever_they_are():
    name = 'q"uo\\té\n'
    [(_, told)] = World(1, 1, models=("x", name)).shared("a0").names

    assert told.isascii()
    assert json.loads(told) == name


def test_an_adapter_keeps_its_name_and_prefers_who_has_loaded_it():
    world = World(1, 3, models=("name-a", "name-b"), loraAdapters=["sql"])
    world.table.models[world.table.row("b2")] = frozenset({"sql"})

    shared = world.shared("a0", request=a_request("sql"))

    assert (shared.endpoints, shared.names) == (("a0", "b2"), ())


def test_where_prefill_is_done_elsewhere_nobody_else_gets_the_body():
    world = World(1, 1, rule={"mirrors": [{"modelServerName": "b"}]})

    shared = world.shared("a0", alone=True)

    [(header, said)] = shared.headers
    assert (shared.endpoints, header) == (("a0",), dataplane.HANDLING)
    assert said.endswith(dataplane.ALONE)
    assert World(1, 1, 1).shared("a0", divided=("ns/b",)).further == {"c0": "ns/c"}


def test_a_gateways_own_choice_of_endpoints_is_kept():
    request = a_request()._replace(subset=("a0",))

    assert World(1, 1).shared("a0", request=request).further == {}


def test_a_mirror_is_told_its_name():
    world = World(1, 1, 1, models=("name-a", "name-b", "name-c"), rule={"mirrors": [{"modelServerName": "c"}]})

    assert dict(world.shared("a0").names)["mirror/ns/c"] == '"name-c"'
    assert dict(World(1, models=("x",), rule={"mirrors": [{"modelServerName": "a"}]}).shared("a0").names) == {}


def test_only_streams_are_watched_for_silence():
    world = World(1, trafficPolicy={"idleTimeout": "10s"})

    [(_, plain)] = world.shared("a0").headers
    [(_, stream)] = world.shared("a0", request=a_request()._replace(stream=True)).headers

    assert stream == plain + dataplane.STREAM


def test_the_same_content_has_the_same_key_and_any_other_another():
    def key(**spec):
        [(_, said)] = World(1, 1, **spec).shared("a0").headers
        return said

    keys = [
        key(),
        key(trafficPolicy={"timeout": "1s"}),
        key(trafficPolicy={"timeout": "2s"}),
        key(trafficPolicy={"retry": {"attempts": 1}}),
        key(rule={"mirrors": [{"modelServerName": "b"}]}),
        key(rule={"mirrors": [{"modelServerName": "b", "percent": 7}]}),
    ]

    assert key(rule={"name": "named", "stickyBy": {"header": "x"}}) == keys[0]
    assert len(set(keys)) == len(keys)
    assert all(len(one) == 18 for one in keys)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(lambda sizes: sizes[0] > 0),
    st.integers(0, 6),
    st.data(),
)
def test_the_list_holds_each_endpoint_once_begins_with_the_own_and_reaches_as_far_as_the_tries(sizes, attempts, data):
    world = World(*sizes, trafficPolicy={"retry": {"attempts": attempts}})
    own = tuple(f"a{number}" for number in range(data.draw(st.integers(1, sizes[0]))))

    shared = world.shared(*own)

    listed = shared.endpoints
    _, most = networking.tries(attempts, len(sizes) - 1)
    reachable = [
        address for size, name in zip(sizes, "abcde", strict=False) for address in (f"{name}{n}" for n in range(size))
    ]
    assert len(set(listed)) == len(listed)
    assert listed[0] == "a0"
    assert set(listed) <= set(reachable)
    assert set(shared.further) == {address for address in listed if not address.startswith("a")}
    if attempts == 0 or len(sizes) == 1:
        assert listed == own
    else:
        ready = [name for size, name in zip(sizes[1:], "bcde", strict=False) if size][: networking.FURTHER_TARGETS]
        room = len(own) + sum(size for size, name in zip(sizes[1:], "bcde", strict=False) if name in ready)
        assert len(listed) == min(most, room) or not ready


def test_what_overflows_goes_to_the_modelserver_that_says_so_wherever_it_stands_and_back():
    rules = [{"targetModels": [a_target("a"), a_target("b"), a_target("c"), a_target("d", 1) | {"overflow": True}]}]
    table = a_table(a_route("r", rules=rules), servers=[a_server(name, model=f"m-{name}") for name in "abcd"])

    placement = resolved(table, ready=[f"ns/{name}" for name in "abcd"])
    beside = routes.to_relief(placement)

    assert (len(placement.then), placement.relief) == (2, ("ns/d", "m-d"))
    assert (beside.server, beside.model, beside.relief) == ("ns/d", "m-d", None)
    assert beside.then == ((placement.server, placement.model),)
    assert resolved(table, ready=["ns/d"]).relief is None
    assert resolved(table, ready=["ns/a", "ns/b"]).relief is None


def test_a_target_that_is_written_twice_is_one():
    rules = [{"targetModels": [a_target("a"), a_target("a"), a_target("b"), a_target("b")]}]

    placement = resolved(a_table(a_route("r", rules=rules), servers=["a", "b"]))

    assert (placement.server, placement.then) == ("ns/a", (("ns/b", "demo"),))


SPARE = {"externalModelProviderName": "p", "overflow": True}


def overflowing(*sizes, **spec):
    targets = [*(a_target(name) for name in "abcdef"[: len(sizes)]), SPARE]
    return World(*sizes, rule={"targetModels": targets}, **spec)


@pytest.mark.parametrize(
    ("sizes", "own", "expected"),
    [
        ((1,), ("a0",), ("a0", RELAY)),
        ((4,), ("a0", "a1", "a2", "a3"), ("a0", "a1", "a2", RELAY)),
        ((4, 2), ("a0", "a1", "a2", "a3"), ("a0", "a1", "a2", "b0", "b1", RELAY)),
        ((1, 1), ("a0",), ("a0", "b0", RELAY)),
        ((1, 0), ("a0",), ("a0", RELAY)),
    ],
)
def test_a_provider_that_overflows_is_behind_all_of_them(sizes, own, expected):
    shared = overflowing(*sizes).shared(*own, provider="provider/ns/p")

    assert shared.endpoints == expected
    assert shared.further[RELAY] == "provider/ns/p"
    assert dict(shared.headers)[dataplane.HANDLING].endswith(dataplane.RELAYED)


def test_a_stream_whose_silence_is_bounded_goes_on_as_well():
    world = overflowing(1, trafficPolicy={"idleTimeout": "5s"})

    shared = world.shared("a0", request=a_request()._replace(stream=True), provider="provider/ns/p")

    assert dict(shared.headers)[dataplane.HANDLING].endswith(dataplane.STREAM + dataplane.RELAYED)


@pytest.mark.parametrize(
    ("spec", "given"),
    [
        ({}, {}),
        ({}, {"provider": "provider/ns/p", "alone": True}),
        ({}, {"provider": "provider/ns/p", "request": a_request()._replace(subset=("a0",))}),
        ({"trafficPolicy": {"retry": {"attempts": 0}}}, {"provider": "provider/ns/p"}),
    ],
)
def test_without_a_provider_or_a_second_try_or_for_a_body_that_is_not_its_nobody_is_behind_them(spec, given):
    shared = overflowing(2, **spec).shared("a0", "a1", **given)

    assert (shared.endpoints, shared.further) == (("a0", "a1"), {})
    assert dataplane.RELAYED not in dict(shared.headers)[dataplane.HANDLING]
