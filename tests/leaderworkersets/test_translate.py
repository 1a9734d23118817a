"""LeaderWorkerSets as ModelInfers."""

from __future__ import annotations

import pytest

from controllers.leaderworkersets.translate import model_infer, unheeded
from matrixinfer.api import validation
from tests.leaderworkersets.builders import a_set, a_template


def translated(**fields):
    return model_infer(a_set(metadata={"uid": "u-1"}, **fields))


def test_a_group_is_a_leader_and_its_workers():
    made = translated(size=4, replicas=3, leaderTemplate=a_template("leader"), workerTemplate=a_template("worker"))
    [role] = made["spec"]["template"]["roles"]

    assert validation.validate(made) == []
    assert (made["spec"]["replicas"], role["replicas"], role["workerReplicas"]) == (3, 1, 3)
    assert role["entryTemplate"]["spec"]["containers"][0]["image"] == "leader"
    assert role["workerTemplate"]["spec"]["containers"][0]["image"] == "worker"
    assert made["metadata"]["ownerReferences"][0] | {"uid": "u-1"} == {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "name": "demo",
        "uid": "u-1",
        "controller": True,
        "blockOwnerDeletion": True,
    }


def test_without_a_leaders_template_the_workers_is_the_leaders():
    [role] = translated(size=2)["spec"]["template"]["roles"]

    assert role["entryTemplate"] == role["workerTemplate"]


def test_a_group_of_one_has_no_workers():
    [role] = translated(size=1)["spec"]["template"]["roles"]

    assert role["workerReplicas"] == 0
    assert "workerTemplate" not in role


def test_containers_are_told_what_leader_worker_set_tells_them():
    template = a_template()
    template["spec"]["containers"][0]["env"] = [
        {"name": "MASTER", "value": "$(LWS_LEADER_ADDRESS):5000"},
        {"name": "LWS_GROUP_SIZE", "value": "mine"},
    ]
    [role] = translated(workerTemplate=template)["spec"]["template"]["roles"]

    assert role["entryTemplate"]["spec"]["containers"][0]["env"] == [
        {"name": "LWS_LEADER_ADDRESS", "value": "$(ENTRY_ADDRESS)"},
        {"name": "LWS_GROUP_SIZE", "value": "$(GROUP_SIZE)"},
        {"name": "LWS_WORKER_INDEX", "value": "$(WORKER_INDEX)"},
        {"name": "MASTER", "value": "$(LWS_LEADER_ADDRESS):5000"},
    ]


@pytest.mark.parametrize(
    ("policy", "recovery"),
    [
        (None, "InferGroupRecreate"),
        ("RecreateGroupOnPodRestart", "InferGroupRecreate"),
        ("RecreateGroupAfterStart", "InferGroupRecreate"),
        ("None", "None"),
        ("Default", "None"),
    ],
)
def test_a_restart_policy_is_a_recovery_policy(policy, recovery):
    fields = {} if policy is None else {"restartPolicy": policy}

    assert translated(**fields)["spec"]["recoveryPolicy"] == recovery


def test_a_rollout_goes_as_it_would():
    rolling = {"maxUnavailable": "25%", "maxSurge": 1, "partition": 2}
    made = translated(rolloutStrategy={"type": "RollingUpdate", "rollingUpdateConfiguration": rolling})

    assert validation.validate(made) == []
    assert made["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"] == rolling


def test_labels_and_annotations_of_pods_and_of_the_set_are_kept():
    made = translated(workerTemplate=a_template(labels={"app": "x"}, annotations={"a": "b"}, name="n"))
    [role] = made["spec"]["template"]["roles"]

    assert role["workerTemplate"]["metadata"] == {"labels": {"app": "x"}, "annotations": {"a": "b"}}


def test_what_has_no_effect_is_named():
    lws = a_set(
        startupPolicy="LeaderReady",
        networkConfig={"subdomainPolicy": "UniquePerReplica"},
        subGroupPolicy={"subGroupSize": 2},
        volumeClaimTemplates=[{}],
        metadata={"annotations": {"leaderworkerset.sigs.k8s.io/exclusive-topology": "rack"}},
    )

    assert [line.partition(":")[0].split()[0] for line in unheeded(lws)] == [
        "spec.startupPolicy",
        "spec.networkConfig.subdomainPolicy",
        "spec.leaderWorkerTemplate.subGroupPolicy",
        "spec.leaderWorkerTemplate.volumeClaimTemplates",
        "the",
    ]
    assert unheeded(a_set()) == []
