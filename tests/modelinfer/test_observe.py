"""Pods as they are seen: whose they are, whether they are ready, and whether they have failed."""

from __future__ import annotations

import pytest

from controllers.modelinfer.observe import seen
from controllers.modelinfer.shapes import InstanceKey


def at(second):
    return f"2026-01-01T00:{second // 60:02}:{second % 60:02}Z"


BEGIN = seen("x", {"metadata": {"name": "x-0-a-0-0", "creationTimestamp": at(0)}}).created


def a_pod(name="demo-0-decode-1-2", *, ready=False, since=0, phase="Running", **container):
    status = {
        "phase": phase,
        "startTime": at(0),
        "conditions": [{"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": at(since)}],
        "containerStatuses": [{"name": "engine"} | container],
    }
    return {"metadata": {"name": name, "creationTimestamp": at(0)}, "status": status}


def failed_at(**fields):
    found = seen("demo", a_pod(**fields)).failed_at
    return None if found is None else found - BEGIN


def ended(second, code=1):
    return {"terminated": {"exitCode": code, "finishedAt": at(second)}}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("demo-0-decode-1-2", (InstanceKey(0, "decode", 1), 2)),
        ("demo-10-a-1-b-0-0", (InstanceKey(10, "a-1-b", 0), 0)),
        ("demo-0-a-3-2-1", (InstanceKey(0, "a-3", 2), 1)),
    ],
)
def test_a_name_says_the_place(name, place):
    found = seen("demo", a_pod(name))

    assert (found.instance, found.member) == place


@pytest.mark.parametrize("name", ["demo", "demo-0", "other-0-decode-0-0", "demo-00-decode-0-0", "demo-0-decode-0"])
def test_other_names_are_no_place(name):
    assert seen("demo", a_pod(name)) is None


def test_a_pod_without_a_status_is_neither_ready_nor_failed():
    found = seen("demo", {"metadata": {"name": "demo-0-decode-0-0", "creationTimestamp": at(0)}})

    assert (found.ready, found.failed_at, found.leaving) == (False, None, False)


def test_a_crash_that_ended_readiness_is_a_failure_since_then():
    assert failed_at(since=100, restartCount=1, lastState=ended(100)) == 100
    assert failed_at(since=100, restartCount=1, lastState=ended(95)) == 95


def test_a_restart_of_long_ago_does_not_count_when_readiness_flaps():
    assert failed_at(since=1000, restartCount=5, lastState=ended(300)) is None


def test_a_ready_pod_has_not_failed_however_often_it_has_restarted():
    assert failed_at(ready=True, since=1000, restartCount=5, lastState=ended(999)) is None


def test_of_many_crashes_the_loss_of_readiness_is_when_it_began():
    assert failed_at(since=100, restartCount=7, lastState=ended(500)) == 100


def test_a_pod_that_never_was_ready_gets_a_few_restarts():
    assert failed_at(since=0, restartCount=2, lastState=ended(60)) is None
    assert failed_at(since=0, restartCount=3, lastState=ended(60)) == 0


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_a_pod_that_has_ended_has_failed(phase):
    assert failed_at(phase=phase, since=40, state=ended(70, 0)) == 70
    assert failed_at(phase=phase, since=40) == 40


def test_a_finished_init_container_is_no_crash():
    pod = a_pod(since=100)
    pod["status"]["initContainerStatuses"] = [{"name": "load", "restartCount": 0, "state": ended(120, 0)}]

    assert seen("demo", pod).failed_at is None


@pytest.mark.parametrize(("text", "cost"), [("5", 5), ("-3", -3), ("1.5", 0), ("x", 0), ("", 0), ("9" * 400, 0)])
def test_a_cost_that_is_no_number_is_none(text, cost):
    pod = a_pod()
    pod["metadata"]["annotations"] = {"controller.kubernetes.io/pod-deletion-cost": text}

    assert seen("demo", pod).cost == cost
