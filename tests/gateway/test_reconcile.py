"""The gateway's reconcile: what is published, and which conditions users read."""

from __future__ import annotations

import copy

import pytest

from controllers import ir
from controllers.gateway.reconcile import KEY, Reconciler
from matrixinfer.api import kinds, validation
from matrixinfer.api.dataplane import HELD_ANNOTATION
from matrixinfer.cluster.plan import Publish, Together

GATEWAY = ir.Gateway((ir.Listener("gateway", "127.0.0.1", 8080),), ir.Picker(ir.Address(path="/run/picker.sock")))
NOON, LATER = 1_767_268_800.0, 1_767_272_400.0
API = "networking.matrixinfer.ai/v1alpha1"


class World:
    def __init__(self, *manifests):
        self.objects = list(manifests)

    def all(self, kind, namespace=None):
        return [one for one in self.objects if one["kind"] == kind.kind]

    def select(self, kind, labels, namespace=None):
        return [one for one in self.all(kind) if labels.items() <= one["metadata"].get("labels", {}).items()]


def a_server(name="demo", *, app="demo", generation=1, **spec):
    return {
        "apiVersion": API,
        "kind": "ModelServer",
        "metadata": {"name": name, "namespace": "default", "generation": generation},
        "spec": {
            "inferenceEngine": "vLLM",
            "workloadSelector": {"matchLabels": {"app": app}},
            "workloadPort": {"port": 8000},
            **spec,
        },
    }


def a_route(name="demo", *targets, **spec):
    rules = [{"targetModels": [{"modelServerName": one} for one in targets or ("demo",)]}]
    return {
        "apiVersion": API,
        "kind": "ModelRoute",
        "metadata": {"name": name, "namespace": "default", "generation": 1},
        "spec": {"modelName": name, "rules": rules, **spec},
    }


def a_pod(name="demo-0", *, ready=True, ip="10.0.0.1", annotations=None):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"app": "demo"},
            "annotations": annotations or {},
        },
        "spec": {"containers": [{"name": "engine"}]},
        "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


class Bench:
    """A reconciler whose Envoys do as told."""

    def __init__(self, *manifests):
        self.world = World(*manifests)
        self.delivery = ir.Delivery()
        self.reconciler = Reconciler(GATEWAY, lambda: self.delivery)

    def run(self, now=NOON):
        plan = self.reconciler.reconcile(KEY, self.world, now)
        (self.config,) = [action.value for action in plan.actions if isinstance(action, Publish)]
        written = [one for action in plan.actions if isinstance(action, Together) for one in action.actions]
        for action in written:
            meta = action.manifest["metadata"]
            for number, one in enumerate(self.world.objects):
                if (one["kind"], one["metadata"]["name"]) == (action.kind.kind, meta["name"]):
                    self.world.objects[number] = copy.deepcopy(one) | {"status": action.manifest["status"]}
        return [action.manifest["metadata"]["name"] for action in written]

    def settle(self, *refusals, envoys=1):
        """Let the Envoys answer what was published last."""
        self.delivery = ir.Delivery(self.config, envoys, settled=envoys > 0, refusals=refusals)

    def status(self, kind, name="demo"):
        return next(one["status"] for one in self.world.all(kind) if one["metadata"]["name"] == name)

    def conditions(self, kind, name="demo"):
        return {one["type"]: (one["status"], one["reason"]) for one in self.status(kind, name)["conditions"]}

    def message(self, kind, condition, name="demo"):
        return next(one["message"] for one in self.status(kind, name)["conditions"] if one["type"] == condition)


def test_all_is_well_once_envoy_has_taken_it():
    bench = Bench(a_server(), a_route(), a_pod(), a_pod("demo-1", ready=False, ip="10.0.0.2"))
    bench.run()
    bench.settle()
    bench.run()

    well = {
        "Accepted": ("True", "Accepted"),
        "ResolvedRefs": ("True", "ResolvedRefs"),
        "Programmed": ("True", "Programmed"),
        "Ready": ("True", "Ready"),
    }
    assert bench.conditions(kinds.MODEL_SERVER) == well
    assert bench.conditions(kinds.MODEL_ROUTE) == well
    status = bench.status(kinds.MODEL_SERVER)
    assert (status["endpoints"], status["readyEndpoints"], status["observedGeneration"]) == (2, 1, 1)


def test_a_status_is_one_that_the_api_accepts():
    bench = Bench(a_server(), a_route(), a_pod())
    bench.run()

    assert [problem for one in bench.world.objects for problem in validation.validate(one)] == []


def test_that_requests_wait_for_an_engine_changes_nothing():
    bench = Bench(a_server(), a_route())
    bench.run()
    bench.settle()
    bench.run()
    before = bench.config
    server = bench.world.all(kinds.MODEL_SERVER)[0]
    server["metadata"]["annotations"] = {HELD_ANNOTATION: "2026-01-01T12:00:00Z"}

    assert bench.run(LATER) == []
    assert bench.config == before


def test_a_status_that_stands_is_not_written_again_and_keeps_its_time():
    bench = Bench(a_server(), a_route(), a_pod())
    first = bench.run()
    second = bench.run(LATER)
    bench.settle()
    third = bench.run(LATER)

    times = {one["type"]: one["lastTransitionTime"] for one in bench.status(kinds.MODEL_SERVER)["conditions"]}
    assert (sorted(first), second, sorted(third)) == (["demo", "demo"], [], ["demo", "demo"])
    assert times == {
        "Accepted": "2026-01-01T12:00:00Z",
        "ResolvedRefs": "2026-01-01T12:00:00Z",
        "Programmed": "2026-01-01T13:00:00Z",
        "Ready": "2026-01-01T12:00:00Z",
    }


def test_what_is_missing_is_named():
    bench = Bench(a_server(), a_route("demo", "demo", "other"))
    bench.run()

    assert bench.conditions(kinds.MODEL_SERVER)["ResolvedRefs"] == ("False", "NoPods")
    assert "app=demo" in bench.message(kinds.MODEL_SERVER, "ResolvedRefs")
    assert bench.conditions(kinds.MODEL_SERVER)["Ready"] == ("False", "NoReadyEndpoints")
    assert bench.conditions(kinds.MODEL_ROUTE)["ResolvedRefs"] == ("False", "BackendNotFound")
    assert "other" in bench.message(kinds.MODEL_ROUTE, "ResolvedRefs")


def test_a_pod_with_a_port_that_is_none_is_named():
    bench = Bench(a_server(), a_pod(annotations={"networking.matrixinfer.ai/port": "http"}))
    bench.run()

    assert bench.conditions(kinds.MODEL_SERVER)["ResolvedRefs"] == ("False", "InvalidPort")
    assert "demo-0" in bench.message(kinds.MODEL_SERVER, "ResolvedRefs")


def test_an_invalid_object_says_what_to_change_and_the_others_are_served():
    bench = Bench(a_server(), a_server("bad", workloadPort={"port": 0}), a_route(), a_route("gone", rules=[]), a_pod())
    bench.run()

    assert [backend.name for backend in bench.config.backends] == ["demo"]
    assert [model.name for model in bench.config.models] == ["demo"]
    assert bench.conditions(kinds.MODEL_SERVER, "bad")["Accepted"] == ("False", "Invalid")
    assert "spec.workloadPort.port" in bench.message(kinds.MODEL_SERVER, "Accepted", "bad")
    assert bench.conditions(kinds.MODEL_ROUTE, "gone")["Accepted"] == ("False", "Invalid")


def test_a_route_that_asks_for_a_gateway_is_not_accepted():
    bench = Bench(a_server(), a_route(parentRefs=[{"name": "public"}]), a_pod())
    bench.run()

    assert bench.config.models == ()
    assert bench.conditions(kinds.MODEL_ROUTE)["Accepted"] == ("False", "NoMatchingParent")


def test_what_others_claim_first_is_named():
    old, new = a_route("old"), a_route("new", loraAdapters=["sql"])
    new["spec"]["modelName"] = "old"
    for number, route in enumerate((old, new)):
        route["metadata"]["creationTimestamp"] = f"2026-01-0{number + 1}T00:00:00Z"
    bench = Bench(a_server(), old, new, a_route("third", loraAdapters=["old"]), a_pod())
    bench.run()

    assert bench.conditions(kinds.MODEL_ROUTE, "old")["Accepted"] == ("True", "Accepted")
    assert bench.conditions(kinds.MODEL_ROUTE, "new")["Accepted"] == ("True", "Overlapping")
    assert "'old' is served by ModelRoute default/old first" in bench.message(kinds.MODEL_ROUTE, "Accepted", "new")
    assert "'old' is served by ModelRoute default/old first" in bench.message(kinds.MODEL_ROUTE, "Accepted", "third")


def test_model_servers_of_the_same_pods_name_each_other():
    bench = Bench(a_server("one"), a_server("two"), a_server("other", app="other"), a_pod())
    bench.run()

    assert bench.conditions(kinds.MODEL_SERVER, "one")["ResolvedRefs"] == ("True", "SharedPods")
    assert "default/two" in bench.message(kinds.MODEL_SERVER, "ResolvedRefs", "one")
    assert bench.conditions(kinds.MODEL_SERVER, "other")["ResolvedRefs"] == ("False", "NoPods")


def test_without_envoys_nothing_is_programmed():
    bench = Bench(a_server(), a_pod())
    bench.run()
    before = bench.conditions(kinds.MODEL_SERVER)["Programmed"]
    bench.settle(envoys=0)
    bench.run()

    assert before == ("Unknown", "Pending")
    assert bench.conditions(kinds.MODEL_SERVER)["Programmed"] == ("Unknown", "NoEnvoy")


@pytest.mark.parametrize(
    ("refusal", "refused"),
    [
        (ir.Refusal("no", frozenset({("default", "demo")}), frozenset()), {"demo"}),
        (ir.Refusal("no", frozenset(), frozenset({"other"})), set()),
        (ir.Refusal("no", None, None), {"demo", "other"}),
    ],
)
def test_a_refusal_is_said_of_the_objects_that_it_concerns(refusal, refused):
    bench = Bench(a_server(), a_server("other", app="other"), a_pod())
    bench.run()
    bench.settle(refusal)
    bench.run()

    found = {
        name
        for name in ("demo", "other")
        if bench.conditions(kinds.MODEL_SERVER, name)["Programmed"] == ("False", "Refused")
    }
    assert found == refused


def test_an_endpoint_that_comes_does_not_unprogram():
    bench = Bench(a_server(), a_route(), a_pod())
    bench.run()
    bench.settle()
    bench.run()
    bench.world.objects.append(a_pod("demo-1", ip="10.0.0.2"))

    bench.run()

    assert len(bench.config.backends[0].endpoints) == 2
    assert bench.conditions(kinds.MODEL_SERVER)["Programmed"] == ("True", "Programmed")
