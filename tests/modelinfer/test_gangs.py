"""PodGroups: what is placed together, and what is said where it cannot be."""

from __future__ import annotations

import pytest

from controllers.modelinfer import quantities
from controllers.modelinfer.gangs import Served
from matrixinfer.api import kinds
from tests.modelinfer.village import Village, a_role, an_infer

REQUESTS = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"nvidia.com/gpu": 2}}


def heavy(role):
    for template in ("entryTemplate", "workerTemplate"):
        for container in role.get(template, {"spec": {"containers": []}})["spec"]["containers"]:
            container["resources"] = REQUESTS
    return role


async def made(served, *roles, **fields):
    village = Village(served)
    manifest = an_infer(*roles, **fields)
    manifest["metadata"]["annotations"] = {"scheduling.volcano.sh/queue-name": "research"}
    await village.apply(manifest)
    await village.settle()
    return village


async def pod_groups(village):
    return {one["metadata"]["name"]: one for one in (await village.cluster.list(village.served.kind)).items}


async def test_volcano_places_a_group_at_once():
    topology = {"groupPolicy": {"mode": "hard", "highestTierAllowed": 2}, "rolePolicy": {"mode": "soft"}}
    template = {"gangPolicy": {"minRoleReplicas": {"decode": 1}}, "networkTopology": topology}
    roles = (heavy(a_role("prefill")), heavy(a_role("decode", workers=2, replicas=2)))
    village = await made(Served.VOLCANO, *roles, template=template, replicas=2)

    found = await pod_groups(village)
    pod = (await village.pods())["demo-1-decode-1-2"]

    assert sorted(found) == ["demo-0", "demo-1"]
    assert found["demo-0"]["spec"] == {
        "minMember": 1 + 3,
        "minResources": {"cpu": "2", "memory": str(4 * 2**30), "nvidia.com/gpu": "8"},
        "queue": "research",
        "networkTopology": {"mode": "hard", "highestTierAllowed": 2},
        "subGroupPolicy": [
            {
                "name": role,
                "labelSelector": {
                    "matchLabels": {
                        "modelinfer.matrixinfer.ai/name": "demo",
                        "modelinfer.matrixinfer.ai/role": role,
                    }
                },
                "matchLabelKeys": ["modelinfer.matrixinfer.ai/role-id"],
                "subGroupSize": size,
                "minSubGroups": 1,
                "networkTopology": {"mode": "soft"},
            }
            for role, size in (("prefill", 1), ("decode", 3))
        ],
    }
    assert pod["spec"]["schedulerName"] == "volcano"
    assert pod["metadata"]["annotations"] == {
        "scheduling.k8s.io/group-name": "demo-1",
        "volcano.sh/task-spec": "decode-1",
    }
    assert (await village.condition("Degraded"))["status"] == "False"


async def test_older_volcano_is_told_of_tasks():
    village = await made(Served.OLD_VOLCANO, a_role("decode", workers=1, replicas=2))

    spec = (await pod_groups(village))["demo-0"]["spec"]

    assert spec["minTaskMember"] == {"decode-0": 2, "decode-1": 2}
    assert "subGroupPolicy" not in spec


async def test_the_api_servers_own_pod_groups_take_gangs_that_are_asked_for():
    village = await made(Served.IN_TREE, a_role(workers=1), template={"gangPolicy": {}}, replicas=2)

    found = await pod_groups(village)
    pod = (await village.pods())["demo-1-decode-0-1"]

    assert found["demo-1"]["spec"] == {"schedulingPolicy": {"gang": {"minCount": 2}}}
    assert pod["spec"]["schedulingGroup"] == {"podGroupName": "demo-1"}
    assert "schedulerName" not in pod["spec"]


async def test_without_a_gang_policy_the_api_servers_scheduler_takes_pods_one_by_one():
    village = await made(Served.IN_TREE)

    assert await pod_groups(village) == {}


async def test_pod_groups_follow_their_groups_and_the_spec_and_touch_no_pod():
    village = await made(Served.VOLCANO, a_role(replicas=2), replicas=3)
    before = await village.uids()
    manifest = an_infer(a_role(replicas=2), replicas=1, template={"gangPolicy": {"minRoleReplicas": {"decode": 1}}})
    await village.apply(manifest)
    await village.settle()

    found = await pod_groups(village)

    assert {name: one["spec"]["minMember"] for name, one in found.items()} == {"demo-0": 1}
    assert (await village.uids()).items() <= before.items()


@pytest.mark.parametrize(
    ("served", "fields", "reason"),
    [
        (Served.NOTHING, {"schedulerName": "volcano"}, "Volcano is not installed"),
        (Served.NOTHING, {"template": {"gangPolicy": {}}}, "gangPolicy has no effect"),
        (Served.IN_TREE, {"template": {"networkTopology": {"groupPolicy": {}}}}, "networkTopology has no effect"),
        (Served.OLD_VOLCANO, {"template": {"networkTopology": {"rolePolicy": {}}}}, "1.14"),
        (Served.VOLCANO, {"schedulerName": "other", "template": {"gangSchedule": {}}}, "gangPolicy has no effect"),
    ],
)
async def test_what_cannot_be_had_is_said(served, fields, reason):
    village = await made(served, **fields)

    degraded = await village.condition("Degraded")

    assert degraded["reason"] == "GangUnavailable"
    assert reason in degraded["message"]


def test_every_kind_of_pod_groups_has_a_name():
    assert Served.IN_TREE.kind == kinds.IN_TREE_POD_GROUP
    assert Served.NOTHING.kind is None


@pytest.mark.parametrize(
    ("text", "amount"),
    [("500m", 0.5), ("2", 2), (3, 3), ("8Gi", 8 * 2**30), ("1e3", 1000), ("1.5k", 1500), ("1E", 1e18)],
)
def test_quantities_are_read_as_kubernetes_writes_them(text, amount):
    assert quantities.parse(text) == amount


@pytest.mark.parametrize("text", ["", "x", "1 Gi", "1gi", "--1"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(ValueError, match="not a quantity"):
        quantities.parse(text)


def test_a_pod_asks_for_its_containers_and_sidecars_or_for_the_most_that_starting_takes():
    spec = {
        "initContainers": [
            {"resources": {"requests": {"cpu": "4"}}},
            {"restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
            {"resources": {"requests": {"memory": "1Gi", "cpu": "1"}}},
        ],
        "containers": [{"resources": {"limits": {"cpu": "1"}}}, {"resources": {"requests": {"cpu": "250m"}}}],
        "overhead": {"memory": "1Mi"},
    }

    assert quantities.written(quantities.of_pod(spec)) == {"cpu": "4", "memory": str(2**30 + 2**20)}
    assert quantities.written(quantities.total([(quantities.of_pod(spec), 2)]))["cpu"] == "8"


def test_fractions_of_thousandths_are_rounded_up():
    assert quantities.written({"cpu": quantities.parse("100u")}) == {"cpu": "1m"}


async def in_tree(*roles, **fields):
    village = Village(Served.IN_TREE)
    await village.apply(an_infer(*roles, template={"gangPolicy": {}}, **fields))
    await village.settle()
    return village


async def test_the_api_servers_own_pod_group_is_never_changed_while_its_pods_are_there():
    village = await in_tree(a_role(workers=1))
    [before] = (await pod_groups(village)).values()
    await village.apply(an_infer(a_role(workers=1, replicas=2), template={"gangPolicy": {}}))
    await village.settle()
    [after] = (await pod_groups(village)).values()

    assert after == before
    assert {pod["spec"]["schedulingGroup"]["podGroupName"] for pod in (await village.pods()).values()} == {"demo-0"}


async def test_a_group_that_begins_anew_has_a_pod_group_of_its_numbers():
    village = await in_tree(a_role(workers=1))
    [before] = (await pod_groups(village)).values()
    await village.apply(an_infer(a_role(workers=1, replicas=2, image="sim:2"), template={"gangPolicy": {}}))
    await village.settle()
    [after] = (await pod_groups(village)).values()

    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["spec"]["schedulingPolicy"]["gang"]["minCount"] == 4
    assert len(await village.pods()) == 4


async def test_a_pod_of_a_group_that_has_become_smaller_does_not_wait_for_those_that_are_gone():
    village = await in_tree(a_role(replicas=3))
    await village.apply(an_infer(a_role(replicas=2), template={"gangPolicy": {}}))
    await village.settle()
    await village.cluster.delete(kinds.POD, "demo-0-decode-0-0", "default", grace_period_s=0)
    await village.settle()

    assert {name: "schedulingGroup" in pod["spec"] for name, pod in (await village.pods()).items()} == {
        "demo-0-decode-0-0": False,
        "demo-0-decode-1-0": True,
    }
