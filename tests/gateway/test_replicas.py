"""Several replicas and one that writes statuses: whose Envoys took what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controllers import ir
from controllers.gateway.reconcile import REPLICA_WATCHES
from controllers.gateway.replicas import DELIVERY, Replica, record, together
from matrixinfer.api import kinds
from tests.gateway.test_reconcile import GATEWAY

ONE, TWO = Replica("system", "one"), Replica("system", "two")
CONFIG = ir.IR(GATEWAY, (ir.Backend("default", "demo", (ir.Endpoint("10.0.0.1", 8000),)),))
TAKEN = ir.Delivery(CONFIG, envoys=1, settled=True)
NONE = ir.Delivery(CONFIG)


class World:
    """Pods of replicas, and their records."""

    def __init__(self, *pods):
        self.objects = {("Pod", pod["metadata"]["name"]): pod for pod in pods}

    def get(self, kind, name, namespace=""):
        return self.objects.get((kind.kind, name))

    def select(self, kind, labels, namespace=None):
        return [one for (found, _), one in sorted(self.objects.items()) if found == kind.kind]

    def keep(self, replica, delivery):
        written = record(replica, delivery, self)
        if written is not None:
            self.objects["Lease", written["metadata"]["name"]] = written
        return written


def a_pod(name, *, ready=True, uid="1"):
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {"metadata": {"name": name, "namespace": "system", "uid": uid}, "status": {"conditions": conditions}}


@pytest.fixture
def world():
    return World(a_pod("one"), a_pod("two"))


def test_what_another_replicas_envoys_took_is_known(world):
    world.keep(TWO, TAKEN)

    assert together(ONE, NONE, world) == TAKEN
    assert together(ONE, TAKEN, world) == replace(TAKEN, envoys=2)


def test_a_record_is_written_when_it_says_something_new(world):
    assert world.keep(TWO, NONE) is None
    assert world.keep(TWO, replace(TAKEN, settled=False)) is None
    assert world.keep(TWO, TAKEN) is not None
    assert world.keep(TWO, TAKEN) is None
    elsewhere = replace(CONFIG, backends=(replace(CONFIG.backends[0], endpoints=()),))
    assert world.keep(TWO, replace(TAKEN, config=elsewhere)) is None
    assert world.keep(TWO, NONE) is not None


def test_a_replica_whose_envoys_have_something_else_has_not_answered(world):
    world.keep(TWO, replace(TAKEN, config=ir.IR(GATEWAY)))

    assert together(ONE, TAKEN, world) == replace(TAKEN, envoys=2, settled=False)


def test_our_own_envoys_are_waited_for_too(world):
    world.keep(TWO, TAKEN)

    assert not together(ONE, replace(TAKEN, settled=False), world).settled


def test_a_refusal_is_read_as_it_was_written(world):
    refusals = (
        ir.Refusal("no", None, frozenset(("a", "b"))),
        ir.Refusal("not that", frozenset((("n", "x"),)), None, frozenset((("n", "p"),))),
    )
    world.keep(TWO, replace(TAKEN, refusals=refusals))

    assert together(ONE, NONE, world).refusals == refusals


@pytest.mark.parametrize("pod", [None, a_pod("two", ready=False)])
def test_a_replica_that_is_gone_counts_no_more(world, pod):
    world.keep(TWO, TAKEN)
    world.objects["Pod", "two"] = pod

    assert together(ONE, NONE, world) == NONE


def test_a_record_goes_with_its_pod_and_is_of_the_one_that_is_there(world):
    written = world.keep(TWO, TAKEN)
    world.objects["Pod", "two"] = a_pod("two", uid="2")
    again = world.keep(TWO, TAKEN)

    assert [one["metadata"]["ownerReferences"][0]["uid"] for one in (written, again)] == ["1", "2"]


def test_outside_a_pod_nothing_is_recorded():
    assert record(Replica("system", "laptop"), TAKEN, World()) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 1, "envoys": "x", "settled": 1, "refusals": []}'])
def test_what_is_no_record_is_passed_over(world, text):
    world.keep(TWO, TAKEN)["metadata"]["annotations"][DELIVERY] = text

    assert together(ONE, NONE, world) == NONE


def test_the_leaders_lease_is_nobodys_news(world):
    touches = REPLICA_WATCHES[kinds.LEASE]
    kept = world.keep(TWO, TAKEN)

    assert list(touches(kept, world)) != []
    assert list(touches({"metadata": {"name": "matrixinfer-controllers"}}, world)) == []
