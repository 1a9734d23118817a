"""Specs and revisions are read again when they are others, and only then."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from controllers.modelinfer import readings, revisions
from tests.modelinfer.village import a_role, an_infer


def stands(uid="1", **fields):
    manifest = an_infer(a_role(**fields))
    manifest["metadata"] |= {"uid": uid, "resourceVersion": "1"}
    return manifest


def test_a_spec_that_is_the_same_is_read_once_whatever_else_changes():
    kept = readings.Readings()
    first = kept.infer(stands())
    later = stands() | {"status": {"replicas": 1}}
    later["metadata"]["resourceVersion"] = "2"

    assert kept.infer(later) is first


def test_another_spec_is_read_anew():
    kept = readings.Readings()
    kept.infer(stands())
    other = kept.infer(stands(image="sim:2"))

    assert other.update == revisions.of_spec(stands(image="sim:2")["spec"])
    assert kept.infer(stands(uid="2")).update == revisions.of_spec(stands()["spec"])


def test_a_spec_that_is_not_valid_is_refused_each_time():
    kept = readings.Readings()
    kept.infer(stands())
    for _ in range(2):
        with pytest.raises(ValidationError):
            kept.infer(stands(replicas=-1))


def test_a_revision_that_was_written_again_is_read_again():
    kept = readings.Readings()
    owner, revision = stands(), revisions.of_spec(stands()["spec"])
    before, after = (revisions.manifest(owner, revision, number=number, counts={"decode": number}) for number in (1, 2))
    for manifest in (before, after):
        manifest["metadata"]["uid"] = "r"

    assert kept.revisions([before])[revision.name].number == 1
    assert kept.revisions([after])[revision.name].number == 2
    assert kept.revisions([after])[revision.name] is kept.revisions([after])[revision.name]
    assert kept.revisions([{"metadata": {"name": "x", "uid": "x"}, "data": None}]) == {}


def test_what_was_read_longest_ago_gives_way(monkeypatch):
    monkeypatch.setattr(readings, "_KEPT", 2)
    kept = readings.Readings()
    first, *_ = (kept.infer(stands(uid=str(uid))) for uid in range(3))

    assert kept.infer(stands(uid="0")) is not first
