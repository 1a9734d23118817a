"""Revisions: what changes the hash of pods, and what does not."""

from __future__ import annotations

import copy

import pytest

from controllers.modelinfer import revisions
from tests.modelinfer.village import a_role, an_infer


def spec(*roles, **fields):
    return an_infer(*(roles or (a_role("prefill"), a_role("decode", workers=1))), **fields)["spec"]


def hashes(given):
    shape = revisions.of_spec(given).shape
    return shape.revision, *(role.hash for role in shape.roles)


def test_hashes_stay_what_they_are_since_another_would_replace_every_pod_there_is():
    assert hashes(spec()) == ("wvdq57njkw", "t42g2wvvk6", "q95vx79qp9")


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 9},
        {"recoveryPolicy": "None"},
        {"rolloutStrategy": {"type": "RoleRollingUpdate"}},
        {"plugins": [], "schedulerName": None, "topologySpreadConstraints": []},
        {"revisionHistoryLimit": 1},
    ],
)
def test_how_many_and_how_to_roll_are_not_what_pods_are_made_of(change):
    assert hashes(spec() | change) == hashes(spec())


def test_numbers_of_a_role_are_not_what_its_pods_are_made_of():
    numbers = {"replicas": 3, "maxUnavailable": 2, "maxSurge": 1, "partition": 1}

    assert hashes(spec(a_role("decode", **numbers))) == hashes(spec(a_role("decode")))


@pytest.mark.parametrize(
    "change",
    [
        {"schedulerName": "volcano"},
        {"plugins": [{"name": "lws-standard-labels"}]},
        {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]},
    ],
)
def test_what_every_pod_is_made_of_changes_every_role(change):
    before, after = hashes(spec()), hashes(spec() | change)

    assert not set(before) & set(after)


def test_a_role_changes_alone():
    before, after = hashes(spec()), hashes(spec(a_role("prefill"), a_role("decode", workers=1, image="sim:2")))

    assert before[1] == after[1]
    assert before[2] != after[2]
    assert before[0] != after[0]


def test_a_plugin_changes_the_roles_that_it_is_for():
    plugin = {"name": "lws-standard-labels", "scope": {"roles": ["decode"]}}
    before, after = hashes(spec()), hashes(spec() | {"plugins": [plugin]})

    assert before[1] == after[1]
    assert before[2] != after[2]


def test_nothing_and_left_out_are_the_same():
    given = spec()
    filled = copy.deepcopy(given)
    filled["template"]["roles"][0]["entryTemplate"] |= {"metadata": {"labels": {}, "annotations": None}}

    assert hashes(filled) == hashes(given)


def test_a_stored_revision_comes_back_as_it_was_with_the_counts_it_was_last_wanted_with():
    owner = an_infer() | {"metadata": {"name": "demo", "namespace": "default", "uid": "u"}}
    revision = revisions.of_spec(spec())
    manifest = revisions.manifest(owner, revision, number=4, counts={"prefill": 2, "decode": 5})

    back = revisions.stored(manifest)

    assert (back.name, back.number, back.spec) == (revision.name, 4, revision.spec)
    assert [(role.name, role.replicas, role.pods) for role in back.shape.roles] == [("prefill", 2, 1), ("decode", 5, 2)]


@pytest.mark.parametrize("data", [None, {}, {"spec": {}}, {"spec": {"template": {"roles": [{}]}}}, {"spec": 1}])
def test_a_revision_that_holds_something_else_is_passed_over(data):
    assert revisions.stored({"metadata": {"name": "demo-x"}, "data": data}) is None
