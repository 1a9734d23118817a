"""Roles within groups: scaled, and rolled role by role."""

from __future__ import annotations

from controllers.modelinfer.shapes import Limits
from tests.modelinfer.town import Town, a_role, a_shape, wanting


def by_role(replicas=1, *, decode="b", count=4, current="a", limits=None, **each):
    """Prefill stays as it is, decode changes."""
    update = a_shape(a_role("prefill"), a_role("decode", replicas=count, version=decode), revision=decode)
    before = a_shape(a_role("prefill"), a_role("decode", replicas=count), revision=current)
    return wanting(
        replicas, update, current=before, by_role=True, limits=limits, role_limits={"decode": Limits(**each)}
    )


def started(replicas=1, count=4):
    town = Town(by_role(replicas, decode="a", count=count))
    town.settle()
    return town


def decodes(town, group=0):
    found = sorted(
        (pod.instance.index, pod.hash[7]) for pod in town.pods.values() if pod.instance.role == "decode"
        and pod.instance.group == group and not pod.leaving
    )  # fmt: skip
    return "".join(version for _, version in found)


def test_instances_are_added_and_removed():
    town = started(count=1)
    town.want(by_role(decode="a", count=3))
    town.settle()
    three = decodes(town)
    town.want(by_role(decode="a", count=1))
    town.settle()

    assert three == "aaa"
    assert sorted(town.pods) == ["0-decode-0-0", "0-prefill-0-0"]


def test_the_dearest_instance_stays():
    town = started(count=4)
    town.change("0-decode-2-0", cost=10)
    town.want(by_role(decode="a", count=1))
    town.settle()

    assert "0-decode-2-0" in town.pods
    assert decodes(town) == "a"


def test_the_instance_that_is_not_ready_goes_first():
    town = started(count=4)
    town.change("0-decode-0-0", ready=False)
    town.want(by_role(decode="a", count=3))

    assert [removal.pod.name for removal in town.plan().delete] == ["0-decode-0-0"]


def test_only_the_role_that_changed_is_replaced():
    town = started(replicas=2)
    before = town.uids()
    town.want(by_role(2))
    town.settle()

    assert decodes(town) == decodes(town, 1) == "bbbb"
    assert all(town.uids()[name] == uid for name, uid in before.items() if "prefill" in name)


def test_a_template_that_never_becomes_ready_leaves_the_rest_of_the_role_running():
    town = started()
    town.bad = {"b"}
    town.want(by_role(unavailable=2))
    town.settle()

    assert decodes(town) == "aabb"


def test_surge_of_a_role_keeps_its_group_available():
    town = started()
    town.want(by_role(unavailable=0, surge=1))
    least = 1
    for _ in range(30):
        town.step()
        least = min(least, town.available())
        town.kubelet()

    assert decodes(town) == "bbbb"
    assert least == 1


def test_protected_instances_stay_and_come_back_at_their_revision():
    town = started()
    town.want(by_role(partition=2))
    town.settle()
    town.gone("0-decode-0-0")
    town.settle()

    assert decodes(town) == "aabb"


def test_instances_added_beside_protected_ones_are_new():
    town = started()
    town.want(by_role(partition=2))
    town.settle()
    town.want(by_role(partition=2, count=6))
    town.settle()

    assert decodes(town) == "aabbbb"


def test_protected_instances_go_last():
    town = started(count=5)
    town.want(by_role(partition=3, count=5))
    town.settle()
    for index in range(3):
        town.change(f"0-decode-{index}-0", cost=-100)
    town.want(by_role(partition=3, count=3))
    town.settle()

    assert decodes(town) == "aaa"


def test_groups_are_worked_on_one_after_the_other():
    town = started(replicas=4, count=1)
    town.want(by_role(4, count=1))
    least = 4
    for _ in range(40):
        town.step()
        least = min(least, town.available())
        town.kubelet()

    assert [decodes(town, group) for group in range(4)] == ["b"] * 4
    assert least == 3


def test_a_role_that_is_gone_from_the_spec_goes_and_a_new_one_comes():
    town = started()
    update = a_shape(a_role("prefill"), a_role("encode"), revision="c")
    town.want(wanting(1, update, by_role=True))
    town.settle()

    assert sorted(town.pods) == ["0-encode-0-0", "0-prefill-0-0"]


def test_fewer_workers_are_a_new_template_like_any_other():
    before = a_shape(a_role("decode", pods=3), revision="a")
    after = a_shape(a_role("decode", pods=2), revision="b")
    town = Town(wanting(1, before, by_role=True))
    town.settle()
    town.want(wanting(1, after, current=before, by_role=True))
    town.settle()

    assert sorted(town.pods) == ["0-decode-0-0", "0-decode-0-1"]
    assert town.available() == 1
