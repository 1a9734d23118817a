"""A LeaderWorkerSet's reconcile, against worlds made by hand."""

from __future__ import annotations

from controllers.leaderworkersets.reconcile import reconcile, refused
from controllers.leaderworkersets.translate import model_infer
from matrixinfer.api import kinds
from matrixinfer.cluster.plan import Apply, ApplyStatus, Emit, Plan
from matrixinfer.cluster.protocol import Invalid, Key
from tests.leaderworkersets.builders import a_set

KEY = Key("LeaderWorkerSet", "default", "demo")
NOW = 1_800_000_000.0


class World:
    def __init__(self, *objects):
        self._objects = {(one["kind"], one["metadata"]["name"]): one for one in objects}

    def get(self, kind, name, namespace=""):
        return self._objects.get((kind.kind, name))


def the_set(**fields):
    return a_set(metadata={"uid": "u-1", "generation": 1}, **fields)


def plan(*objects):
    return reconcile(KEY, World(*objects), NOW)


def with_status(lws, action):
    return lws | {"status": action.manifest["status"]}


def test_its_model_infer_is_made():
    [apply, status] = plan(the_set()).actions

    assert apply == Apply(kinds.MODEL_INFER, model_infer(the_set()))
    assert isinstance(status, ApplyStatus)


def test_nothing_is_written_that_stands():
    lws = the_set()
    infer = model_infer(lws) | {"status": {"replicas": 1, "availableReplicas": 1, "labelSelector": "a=b"}}
    [status] = plan(lws, infer).actions

    assert status.manifest["status"] | {"conditions": []} == {
        "replicas": 1,
        "readyReplicas": 1,
        "updatedReplicas": 0,
        "hpaPodSelector": "a=b",
        "conditions": [],
    }
    assert plan(with_status(lws, status), infer) == Plan()


def test_more_replicas_are_passed_on():
    infer = model_infer(the_set())
    [apply, *_] = plan(the_set(replicas=5), infer).actions

    assert apply.manifest["spec"]["replicas"] == 5


def test_a_model_infer_of_somebody_else_is_left_alone_and_said():
    infer = model_infer(the_set())
    infer["metadata"]["ownerReferences"] = []
    made = plan(the_set(), infer)
    [status] = made.actions
    [condition] = status.manifest["status"]["conditions"]

    assert (condition["type"], condition["status"], condition["reason"]) == ("Available", "False", "NameTaken")
    assert made.requeue_after_s == 15.0
    assert plan(with_status(the_set(), status), infer).actions == ()


def test_what_is_refused_is_said():
    [status] = refused(KEY, World(the_set()), Invalid("names too long"), NOW).actions
    [condition] = status.manifest["status"]["conditions"]

    assert (condition["reason"], "names too long" in condition["message"]) == ("Refused", True)


def test_what_has_no_effect_is_told_once():
    lws = the_set(startupPolicy="LeaderReady")
    first, later = plan(lws), plan(lws, model_infer(lws))

    assert [one.reason for one in first.actions if isinstance(one, Emit)] == ["NotHeeded"]
    assert [one for one in later.actions if isinstance(one, Emit)] == []


def test_a_set_that_is_going_or_gone_is_left_to_the_garbage_collector():
    going = a_set(metadata={"uid": "u-1", "deletionTimestamp": "2026-01-01T00:00:00Z"})

    assert plan(going) == Plan() == plan()
