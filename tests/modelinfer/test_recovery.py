"""Pods that fail, or are gone: what is made anew with them."""

from __future__ import annotations

import pytest

from tests.modelinfer.town import FORMING_S, Town, a_role, a_shape, wanting

SHAPE = a_shape(a_role("prefill"), a_role("decode", replicas=2, pods=3))
POLICIES = ["InferGroupRecreate", "RoleRecreate", "None"]


def standing(recovery, **fields):
    town = Town(wanting(2, SHAPE, recovery=recovery, **fields))
    town.settle()
    town.now += 1000
    return town


def renewed(town, before):
    return {name for name, uid in town.uids().items() if before.get(name) != uid}


EXPECTED = {
    "InferGroupRecreate": {"0-prefill-0-0", *(f"0-decode-{i}-{k}" for i in range(2) for k in range(3))},
    "RoleRecreate": {f"0-decode-1-{k}" for k in range(3)},
    "None": {"0-decode-1-2"},
}


@pytest.mark.parametrize("recovery", POLICIES)
@pytest.mark.parametrize("how", ["deleted", "vanished"])
def test_what_goes_with_a_pod_that_is_gone(recovery, how):
    town = standing(recovery)
    before = town.uids()
    (town.delete if how == "deleted" else town.gone)("0-decode-1-2")
    town.settle()

    assert renewed(town, before) == EXPECTED[recovery]
    assert town.available() == 2


@pytest.mark.parametrize("recovery", ["InferGroupRecreate", "RoleRecreate"])
def test_what_goes_with_a_pod_that_has_failed(recovery):
    town = standing(recovery)
    before = town.uids()
    town.fail("0-decode-1-2")
    town.settle()

    assert renewed(town, before) == EXPECTED[recovery]


def test_with_none_a_failed_pod_is_left_to_its_node():
    town = standing("None")
    town.fail("0-decode-1-2")

    assert not town.plan().delete


def test_with_none_a_pod_that_has_ended_is_replaced_alone():
    town = standing("None")
    before = town.uids()
    town.fail("0-decode-1-2", ended=True)
    town.settle()

    assert renewed(town, before) == EXPECTED["None"]


def test_a_whole_instance_that_is_gone_takes_its_group_along_only_where_asked():
    for recovery, expected in (("InferGroupRecreate", 7), ("RoleRecreate", 1)):
        town = standing(recovery)
        before = town.uids()
        town.gone("0-prefill-0-0")
        town.settle()

        assert len(renewed(town, before)) == expected, recovery


def test_grace_lets_a_pod_come_back_and_says_when_to_look_again():
    town = standing("RoleRecreate", grace_s=30.0)
    town.fail("0-decode-1-2")
    town.now += 10

    steps = town.plan()

    assert not steps.delete
    assert steps.look_at == town.now + 20
    town.change("0-decode-1-2", ready=True, failed_at=None)
    town.now += 100
    assert not town.plan().delete


def test_after_the_grace_the_pod_is_replaced():
    town = standing("RoleRecreate", grace_s=30.0)
    town.fail("0-decode-1-2")
    town.now += 30

    assert {removal.pod.name for removal in town.plan().delete} == {f"0-decode-1-{k}" for k in range(3)}


def test_what_fails_from_the_start_is_not_made_anew_in_a_hurry():
    town = Town(wanting(1))
    town.step()
    town.fail("0-decode-0-0")

    steps = town.plan()

    assert not steps.delete
    assert steps.look_at == town.now + 10


@pytest.mark.parametrize("recovery", POLICIES)
@pytest.mark.parametrize("made", range(8))
def test_a_controller_that_dies_while_it_makes_a_group_goes_on_where_it_stopped(recovery, made):
    town = Town(wanting(1, SHAPE, recovery=recovery))
    town.step(actions=made)
    town.kubelet()
    before = town.uids()
    town.now += FORMING_S / 2
    town.settle()

    assert before.items() <= town.uids().items()
    assert len(town.pods) == 7
    assert town.available() == 1


def test_more_instances_of_a_role_are_no_loss():
    town = standing("InferGroupRecreate")
    before = town.uids()
    more = a_shape(a_role("prefill", replicas=3), a_role("decode", replicas=2, pods=3))
    town.want(wanting(2, more, recovery="InferGroupRecreate"))
    town.settle()

    assert before.items() <= town.uids().items()
    assert len(town.pods) == 2 * 9


def test_fewer_instances_and_then_more_are_no_loss():
    town = standing("InferGroupRecreate")
    fewer = a_shape(a_role("prefill"), a_role("decode", replicas=1, pods=3))
    town.want(wanting(2, fewer, recovery="InferGroupRecreate"))
    town.settle()
    before = town.uids()
    town.now += 1000
    town.want(wanting(2, SHAPE, recovery="InferGroupRecreate"))
    town.settle()

    assert before.items() <= town.uids().items()


def test_an_instance_that_was_added_and_is_gone_is_a_loss():
    town = standing("InferGroupRecreate")
    more = a_shape(a_role("prefill", replicas=2), a_role("decode", replicas=2, pods=3))
    town.want(wanting(2, more, recovery="InferGroupRecreate"))
    town.settle()
    before = town.uids()
    town.gone("1-prefill-1-0")
    town.settle()

    assert len(renewed(town, before)) == 8


def test_a_controller_that_dies_while_it_removes_an_instance_does_not_take_the_group_for_broken():
    town = standing("InferGroupRecreate")
    fewer = a_shape(a_role("prefill"), a_role("decode", replicas=1, pods=3))
    town.want(wanting(2, fewer, recovery="InferGroupRecreate"))
    town.step(actions=1)
    town.settle()

    assert town.made == list(dict.fromkeys(town.made))
    assert town.available() == 2
