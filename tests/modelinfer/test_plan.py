"""Groups: made, scaled, rolled; the arithmetic alone."""

from __future__ import annotations

import pytest

from controllers.modelinfer.shapes import Limits
from tests.modelinfer.town import Town, a_role, a_shape, wanting

OLD, NEW, NEWER = a_shape(revision="a"), a_shape(revision="b"), a_shape(revision="c")


def rolled_out(wanted):
    town = Town(wanted)
    town.settle()
    return town


def rolling(replicas, *, update=NEW, **limits):
    return wanting(replicas, update, current=OLD, limits=Limits(**limits), known=(NEW,))


def test_groups_of_all_roles_are_made_with_the_first_entry_last():
    shape = a_shape(a_role("prefill"), a_role("decode", replicas=2, pods=2))
    town = Town(wanting(1, shape))

    town.step()

    assert town.made == ["0-decode-1-1", "0-decode-1-0", "0-decode-0-1", "0-decode-0-0", "0-prefill-0-0"]


def test_scaling_up_fills_the_lowest_ordinals():
    town = rolled_out(wanting(3))
    for name in [name for name in town.pods if name.startswith("1-")]:
        town.gone(name)

    town.want(wanting(4))
    town.settle()

    assert town.live() == [0, 1, 2, 3]


def test_scaling_to_zero_and_back():
    town = rolled_out(wanting(3))
    town.want(wanting(0))
    town.settle()
    empty = dict(town.pods)
    town.want(wanting(2))
    town.settle()

    assert empty == {}
    assert town.live() == [0, 1]


def test_the_highest_ordinals_go_first():
    town = rolled_out(wanting(4))
    town.want(wanting(2))
    town.settle()

    assert town.live() == [0, 1]


def test_the_cheapest_go_before_the_highest():
    town = rolled_out(wanting(4))
    for ordinal, cost in enumerate((5, -1, 30, 0)):
        town.change(f"{ordinal}-decode-0-0", cost=cost)
    town.want(wanting(1))
    town.settle()

    assert town.live() == [2]


def test_what_is_not_ready_goes_before_the_cheapest():
    town = rolled_out(wanting(4))
    town.change("1-decode-0-0", ready=False, cost=100)
    town.want(wanting(3))
    town.step()

    assert [name for name, pod in town.pods.items() if pod.leaving] == ["1-decode-0-0"]


def test_protected_groups_go_last_whatever_they_cost():
    town = rolled_out(wanting(5, OLD))
    town.want(rolling(5, partition=3))
    town.settle()
    for ordinal, cost in enumerate((-5, -4, -3, 100, 100)):
        town.change(f"{ordinal}-decode-0-0", cost=cost)
    town.want(rolling(3, partition=3))
    town.settle()

    assert town.revisions() == {0: "a", 1: "a", 2: "a"}


def test_a_rollout_never_misses_more_groups_than_it_may():
    town = rolled_out(wanting(4, OLD))
    town.want(rolling(4, unavailable=2))
    least = 4
    for _ in range(20):
        town.step()
        least = min(least, town.available())
        town.kubelet()

    assert least == 2
    assert set(town.revisions().values()) == {"b"}


def test_a_template_that_never_becomes_ready_stops_at_the_floor():
    town = rolled_out(wanting(6, OLD))
    town.bad = {"b"}
    town.want(rolling(6, unavailable=2))
    town.settle()

    assert town.available() == 4
    assert sorted(town.revisions().values()) == ["a", "a", "a", "a", "b", "b"]


def test_going_back_touches_only_what_had_changed():
    town = rolled_out(wanting(6, OLD))
    town.bad = {"b"}
    town.want(rolling(6, unavailable=2))
    town.settle()
    before = {name: uid for name, uid in town.uids().items() if town.pods[name].revision == "a"}

    town.want(wanting(6, OLD, current=OLD, known=(NEW,)))
    town.settle()

    assert set(town.revisions().values()) == {"a"}
    assert before.items() <= town.uids().items()


def test_broken_groups_of_the_old_revision_do_not_hold_up_a_rollout():
    town = Town(wanting(3, OLD))
    town.bad = {"a"}
    town.settle()
    town.want(rolling(3))
    town.settle()

    assert set(town.revisions().values()) == {"b"}
    assert town.available() == 3


def test_a_third_revision_in_the_middle_of_a_rollout_is_what_everything_ends_at():
    town = rolled_out(wanting(4, OLD))
    town.want(rolling(4))
    town.step()
    town.kubelet()
    town.step()
    town.want(wanting(4, NEWER, current=OLD, known=(NEW,)))
    town.settle()

    assert set(town.revisions().values()) == {"c"}


def test_surge_makes_new_groups_before_old_ones_go():
    town = rolled_out(wanting(3, OLD))
    town.want(rolling(3, unavailable=0, surge=1))
    least, most = 3, 3
    for _ in range(40):
        town.step()
        least, most = min(least, town.available()), max(most, len(town.live()))
        town.kubelet()

    assert (least, most) == (3, 4)
    assert set(town.revisions().values()) == {"b"}
    assert len(town.live()) == 3
    assert len(town.made) == 3 + 3


def test_protected_groups_stay_and_the_others_are_updated():
    town = rolled_out(wanting(5, OLD))
    town.want(rolling(5, partition=3))
    town.settle()

    assert town.revisions() == {0: "a", 1: "a", 2: "a", 3: "b", 4: "b"}


def test_a_protected_group_that_is_deleted_comes_back_at_its_revision():
    town = rolled_out(wanting(5, OLD))
    town.want(rolling(5, partition=3))
    town.settle()
    town.gone("1-decode-0-0")
    town.settle()

    assert town.revisions() == {0: "a", 1: "a", 2: "a", 3: "b", 4: "b"}


def test_groups_added_beside_protected_ones_are_of_the_newest_revision():
    town = rolled_out(wanting(5, OLD))
    town.want(rolling(5, partition=3))
    town.settle()
    town.want(rolling(7, partition=3))
    town.settle()

    assert "".join(town.revisions().values()) == "aaabbbb"


def test_protected_groups_keep_the_shape_of_their_own_revision():
    wide = a_shape(a_role(replicas=3, version="b"), revision="b")
    town = rolled_out(wanting(3, OLD))
    town.want(rolling(3, update=wide, partition=2))
    town.settle()

    assert [len(group.pods) for _, group in sorted(town.groups().items())] == [1, 1, 3]
    assert town.available() == 3


def test_role_replicas_and_template_changed_together_do_not_scale_groups_that_are_about_to_go():
    wide = a_shape(a_role(replicas=3, version="b"), revision="b")
    town = rolled_out(wanting(2, OLD))
    before = len(town.made)
    town.want(rolling(2, update=wide))
    town.settle()

    assert len(town.made) - before == 2 * 3


def test_groups_whose_revision_is_forgotten_stay_as_they_are_until_their_turn():
    town = rolled_out(wanting(3, a_shape(a_role(replicas=2, pods=3))))
    before = town.uids()
    town.want(wanting(3, NEW, limits=Limits(unavailable=0, surge=1)))
    town.bad = {"b"}
    town.settle()

    assert before.items() <= town.uids().items()


def test_a_pod_that_would_be_made_the_same_today_is_of_the_newest_revision():
    town = rolled_out(wanting(2, OLD))
    relabelled = a_shape(a_role(version="a"), revision="z")
    town.want(wanting(2, relabelled, current=OLD))

    steps = town.plan()

    assert not steps.create
    assert not steps.delete


def test_pods_that_are_going_hold_their_names_and_new_ones_wait():
    town = rolled_out(wanting(1))
    town.delete("0-decode-0-0")

    steps = town.plan()

    assert not steps.create
    assert steps.targets.keys() == {0}
    town.gone("0-decode-0-0")
    assert [place.member for place in town.plan().create] == [0]


@pytest.mark.parametrize("unavailable", [1, 2, 5])
def test_scaling_and_rolling_at_once_end_where_they_should(unavailable):
    town = rolled_out(wanting(5, OLD))
    town.want(rolling(3, unavailable=unavailable))
    town.settle()

    assert town.revisions() == {0: "b", 1: "b", 2: "b"}
