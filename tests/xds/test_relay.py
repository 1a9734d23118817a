"""What Envoy is told of requests that go on to a provider: the relay, who is in its clusters, and nothing where there is none."""

import json
from dataclasses import replace

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from google.protobuf import any_pb2

from controllers import ir
from controllers.xds.snapshot import CDS, EDS, LDS, RDS, Builder
from matrixinfer.api import dataplane
from tests.xds.stack import answer_json, running

PICKER = ir.Picker(ir.Address(path="/run/picker.sock"))
GATEWAY = ir.Gateway((ir.Listener("gateway", "127.0.0.1", 8080),), PICKER)
KINDS = {
    CDS: cluster_pb2.Cluster,
    EDS: endpoint_pb2.ClusterLoadAssignment,
    LDS: listener_pb2.Listener,
    RDS: route_pb2.RouteConfiguration,
}
ONE, TOGETHER = "modelservers/default/a/relayed", "modelservers/default/a+b/relayed"


def a_config(*handlings, providers=True, gateway=GATEWAY, attempts=2):
    backends = tuple(
        ir.Backend("default", name, (ir.Endpoint(address, 8000),), retry=ir.Retry(attempts))
        for name, address in (("a", "10.0.0.1"), ("b", "10.0.0.2"))
    )
    outside = (ir.Provider("default", "outside", "api.example.com", 443),) if providers else ()
    return ir.IR(gateway, backends, outside, handlings=handlings)


def a_handling(*targets, relayed=True):
    return ir.Handling("k", "default", targets, targets if len(targets) > 1 else (), relayed=relayed)


def built(*handlings, **config):
    return Builder().build(a_config(*handlings, **config)).resources


def decoded(resources, kind, name):
    return KINDS[kind].FromString(any_pb2.Any.FromString(resources[kind][name].encoded).value)


def routed(resources, target="default/a"):
    """Cluster and retries by handling."""
    table = decoded(resources, RDS, "gateway")
    choice = table.virtual_hosts[0].matcher.matcher_tree.exact_match_map.map[target]
    found = {}
    for key, handled in choice.matcher.matcher_tree.exact_match_map.map.items():
        routes = route_components_pb2.RouteList.FromString(handled.action.typed_config.value).routes
        found[key] = routes[0].route.cluster, routes[0].route.retry_policy.num_retries.value
    return found


@pytest.mark.parametrize(("targets", "cluster", "tries"), [(("a",), ONE, 3), (("a", "b"), TOGETHER, 5)])
def test_a_request_that_may_go_on_has_a_route_with_one_try_more(targets, cluster, tries):
    resources = built(a_handling(*targets))

    assert routed(resources)["k-relayed"] == (cluster, tries)
    assert routed(resources)["k"][1] == tries - 1
    assert "relay" not in routed(resources)["k"][0]
    assert routed(resources)["k-alone"] == ("modelserver/default/a", 2)


def test_the_relay_is_the_endpoint_that_nobody_gets_to_by_chance():
    found = decoded(built(a_handling("a", "b")), EDS, TOGETHER)

    engines, relay = found.endpoints
    assert [one.endpoint.address.socket_address.address for one in engines.lb_endpoints] == ["10.0.0.1", "10.0.0.2"]
    assert (engines.priority, relay.priority) == (0, 1)
    inside = relay.lb_endpoints[0].endpoint.address.envoy_internal_address
    assert f"envoy://{inside.server_listener_name}/" == dataplane.RELAY_ENDPOINT
    assert inside.server_listener_name in built(a_handling("a", "b"))[LDS]


def test_the_relay_knows_providers_only():
    resources = built(a_handling("a"))

    table = decoded(resources, RDS, "relayed")
    assert list(table.virtual_hosts[0].matcher.matcher_tree.exact_match_map.map) == ["provider/default/outside"]
    assert dataplane.RELAY in table.request_headers_to_remove


def test_a_new_provider_does_not_change_the_relay():
    config = a_config(a_handling("a"))
    more = replace(config, providers=(*config.providers, ir.Provider("default", "more", "api.example.org", 443)))

    before, after = Builder().build(config).resources, Builder().build(more).resources

    assert before[LDS] == after[LDS]
    assert before[RDS]["relayed"] != after[RDS]["relayed"]


@pytest.mark.parametrize(
    "without",
    [
        {"providers": False},
        {"gateway": replace(GATEWAY, picker=ir.Picker(ir.Address(host="picker.example", port=9002)))},
    ],
)
def test_without_providers_or_who_speaks_with_them_there_is_no_relay(without):
    assert built(a_handling("a", "b"), **without) == built(a_handling("a", "b", relayed=False), **without)


def test_without_tries_nothing_goes_on():
    assert set(routed(built(a_handling("a"), attempts=0))) == {"k", "k-alone"}


def test_what_does_not_go_on_is_as_if_nothing_did():
    plain, mixed = (
        built(a_handling("b", relayed=False)),
        built(a_handling("b", relayed=False), replace(a_handling("a"), key="l")),
    )

    for kind in (CDS, EDS):
        assert plain[kind].items() <= mixed[kind].items()
    assert routed(plain, "default/b") == routed(mixed, "default/b")
    assert plain[LDS]["gateway"] == mixed[LDS]["gateway"]
    assert set(plain[LDS]) == {"gateway"}


# ---- on a real Envoy


@pytest.mark.envoy
@pytest.mark.asyncio
@pytest.mark.parametrize("module", [True, False])
async def test_the_relay_is_the_last_word_with_the_module_and_without(module):
    async with running(module=module) as stack:
        engines = [ir.Endpoint("127.0.0.1", one.port) for one in stack.engines[:2]]
        delivery = await stack.apply(
            backends=(ir.Backend("default", "a", tuple(engines), timeout_s=0.2),),
            providers=(ir.Provider("default", "outside", "localhost", 9),),
            handlings=(a_handling("a"),),
        )
        stack.engines[0].behave = lambda request, writer: answer_json(request, writer, b"no", "503 Unavailable")
        stack.pick(0, target="default/a", handling="k-relayed")
        stack.picker.answer = with_relay(stack.picker.answer)

        answer = await stack.envoy.request(body=b'{"model": "demo"}', **{dataplane.RELAY: "a-clients-own"})

    # Nobody listens where the relay asks: that is the answer, though tries and engines are left.
    assert delivery.refusals == ()
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "no_picker")
    assert [len(one.requests) for one in stack.engines[:2]] == [1, 0]
    assert not {"expect", dataplane.RELAY} & stack.engines[0].requests[0].headers.keys()


def with_relay(answer):
    def relayed(headers, body):
        pick = answer(headers, body)
        return replace(pick, endpoints=f"{pick.endpoints},{dataplane.RELAY_ENDPOINT}")

    return relayed
