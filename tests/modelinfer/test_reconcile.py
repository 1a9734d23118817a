"""The whole controller over a memory cluster, one plan at a time."""

from __future__ import annotations

from typing import get_args

from controllers.modelinfer import plugins
from matrixinfer.api import kinds, workload
from matrixinfer.cluster.plan import Apply, Together
from matrixinfer.cluster.protocol import Forbidden
from tests.modelinfer.village import KEY, Village, a_role, a_template, an_infer, one_by_one, rolling


async def made(manifest, **options):
    village = Village(**options)
    await village.apply(manifest)
    await village.settle()
    return village


async def test_pods_carry_what_clients_and_workers_need():
    village = await made(an_infer(a_role(workers=2)))

    pods = await village.pods()
    entry, worker = pods["demo-0-decode-0-0"], pods["demo-0-decode-0-2"]
    env = {name: {e["name"]: e["value"] for e in pod["spec"]["containers"][0]["env"]} for name, pod in pods.items()}

    assert sorted(pods) == ["demo-0-decode-0-0", "demo-0-decode-0-1", "demo-0-decode-0-2"]
    assert env["demo-0-decode-0-2"] == {
        "GROUP_SIZE": "3",
        "ENTRY_ADDRESS": "demo-0-decode-0-0.default",
        "WORKER_INDEX": "2",
    }
    labels = {key.rpartition("/")[2]: value for key, value in entry["metadata"]["labels"].items()}
    assert labels.pop("revision")
    assert labels.pop("role-template-hash")
    assert labels == {"name": "demo", "group-name": "demo-0", "role": "decode", "role-id": "decode-0", "entry": "true"}
    assert "modelinfer.matrixinfer.ai/entry" not in worker["metadata"]["labels"]
    [owner] = entry["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("ModelInfer", "demo", True)


async def test_an_instance_with_workers_has_a_headless_service_to_its_entry():
    village = await made(an_infer(a_role(workers=1), a_role("prefill")))

    [service] = (await village.cluster.list(kinds.SERVICE)).items

    assert service["metadata"]["name"] == "demo-0-decode-0-0"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"]["modelinfer.matrixinfer.ai/entry"] == "true"


async def test_services_come_back_and_go_with_their_groups():
    village = await made(an_infer(a_role(workers=1), replicas=3))
    await village.cluster.delete(kinds.SERVICE, "demo-1-decode-0-0", "default")
    await village.settle()
    three = (await village.cluster.list(kinds.SERVICE)).items
    await village.apply(an_infer(a_role(workers=1), replicas=1))
    await village.settle()

    assert len(three) == 3
    assert len((await village.cluster.list(kinds.SERVICE)).items) == 1


async def test_a_service_that_somebody_has_changed_is_put_right():
    village = await made(an_infer(a_role(workers=1)))
    service = await village.cluster.get(kinds.SERVICE, "demo-0-decode-0-0", "default")
    service["spec"]["selector"] = {"app": "other"}
    await village.cluster.update(kinds.SERVICE, service)
    await village.settle()

    service = await village.cluster.get(kinds.SERVICE, "demo-0-decode-0-0", "default")
    assert service["spec"]["selector"]["modelinfer.matrixinfer.ai/role-id"] == "decode-0"


async def test_a_steady_world_is_left_alone():
    village = await made(an_infer(a_role(workers=1), a_role("prefill", replicas=2), replicas=2))

    plan = await village.plan()

    assert plan.actions == ()
    assert plan.requeue_after_s is None


async def test_a_pod_costs_one_write_to_make():
    village = await made(an_infer(replicas=50))

    assert len(await village.pods()) == 50
    assert village.writes <= 50 + 10


async def test_the_status_counts_and_says_what_is_missing():
    village = Village()
    await village.apply(an_infer(replicas=3))
    await village.reconcile()
    await village.set_status("demo-0-decode-0-0")
    await village.reconcile()

    status = await village.status()

    assert (status["replicas"], status["availableReplicas"], status["updatedReplicas"]) == (3, 1, 3)
    available = await village.condition("Available")
    assert available["status"] == "False"
    assert available["message"] == "1 of 3 groups are ready; not ready: demo-1, demo-2."
    assert (await village.condition("Progressing"))["status"] == "True"
    await village.settle()
    status = await village.status()
    assert (status["currentRevision"], status["availableReplicas"]) == (status["updateRevision"], 3)
    assert (await village.condition("Available"))["reason"] == "AllGroupsReady"
    assert (await village.condition("Progressing"))["status"] == "False"


async def test_readiness_that_is_lost_is_noticed_and_does_no_harm():
    village = await made(an_infer(replicas=2))
    before = await village.uids()
    await village.set_status("demo-1-decode-0-0", ready=False, restarts=3)
    await village.reconcile()

    assert (await village.status())["availableReplicas"] == 1
    assert await village.uids() == before


async def test_a_container_that_crashed_has_its_instance_made_anew():
    village = await made(an_infer(a_role(workers=1)))
    before = await village.uids()
    village.now += 100
    await village.set_status("demo-0-decode-0-1", ready=False, restarts=1, crashed=True)
    await village.settle()

    after = await village.uids()
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())
    assert [event.reason for event in village.events if event.type == "Warning"] == ["Recovering"]


async def test_a_crash_within_its_grace_is_waited_for():
    village = await made(an_infer(template={"restartGracePeriodSeconds": 60}))
    village.now += 100
    await village.set_status("demo-0-decode-0-0", ready=False, restarts=1, crashed=True)
    village.now += 20

    plan = await village.reconcile()

    assert 39 <= plan.requeue_after_s <= 40
    assert not (await village.pods())["demo-0-decode-0-0"]["metadata"].get("deletionTimestamp")


async def test_a_rollout_goes_through_and_keeps_history():
    village = await made(an_infer(replicas=3))
    first = (await village.status())["updateRevision"]
    await village.apply(an_infer(a_role(image="sim:2"), replicas=3))
    await village.settle()

    status = await village.status()
    stored = (await village.cluster.list(kinds.CONTROLLER_REVISION)).items

    assert await village.images() == {"demo-0": "sim:2", "demo-1": "sim:2", "demo-2": "sim:2"}
    assert status["currentRevision"] == status["updateRevision"] != first
    assert sorted(one["revision"] for one in stored) == [1, 2]


async def test_a_stored_revision_is_a_patch_that_rolls_back():
    village = await made(an_infer(replicas=2))
    first = (await village.status())["updateRevision"]
    await village.apply(an_infer(a_role(image="sim:2"), replicas=2))
    await village.settle()
    old = await village.cluster.get(kinds.CONTROLLER_REVISION, f"demo-{first}", "default")
    manifest = an_infer(replicas=2)
    manifest["spec"] |= {key: value for key, value in old["data"]["spec"].items() if value is not None}
    await village.apply(manifest)
    await village.settle()

    status = await village.status()

    assert status["updateRevision"] == status["currentRevision"] == first
    assert set((await village.images()).values()) == {"sim:1"}
    numbers = {
        one["metadata"]["name"]: one["revision"]
        for one in (await village.cluster.list(kinds.CONTROLLER_REVISION)).items
    }
    assert numbers[f"demo-{first}"] == 3


async def test_history_is_bounded():
    village = await made(an_infer(revisionHistoryLimit=2))
    for number in range(2, 7):
        await village.apply(an_infer(a_role(image=f"sim:{number}"), revisionHistoryLimit=2))
        await village.settle()

    assert len((await village.cluster.list(kinds.CONTROLLER_REVISION)).items) == 3


async def test_protected_groups_come_back_with_their_own_image():
    village = await made(an_infer(replicas=5))
    first = (await village.status())["currentRevision"]
    partitioned = an_infer(a_role(image="sim:2"), replicas=5, rolloutStrategy=rolling(partition=3))
    await village.apply(partitioned)
    await village.settle()
    await village.cluster.delete(kinds.POD, "demo-1-decode-0-0", "default")
    await village.settle()
    status = await village.status()

    assert list((await village.images()).values()) == ["sim:1"] * 3 + ["sim:2"] * 2
    assert (status["currentRevision"], status["updatedReplicas"], status["currentReplicas"]) == (first, 2, 3)
    assert (await village.condition("UpdateInProgress"))["reason"] == "Partitioned"
    partitioned["spec"]["replicas"] = 3
    await village.apply(partitioned)
    await village.settle()
    status = await village.status()
    assert (status["updatedReplicas"], status["currentReplicas"]) == (0, 3)


async def test_a_share_that_comes_to_nothing_after_scaling_does_not_stop_a_rollout():
    village = await made(an_infer(replicas=10, rolloutStrategy=rolling(maxUnavailable="10%")))
    await village.cluster.scale(kinds.MODEL_INFER, "demo", "default", 3)
    await village.settle()
    manifest = an_infer(a_role(image="sim:2"), replicas=3, rolloutStrategy=rolling(maxUnavailable="10%"))
    await village.apply(manifest)
    await village.settle()

    assert set((await village.images()).values()) == {"sim:2"}


async def test_scale_goes_through_the_subresource():
    village = await made(an_infer(replicas=1))
    scale = await village.cluster.scale(kinds.MODEL_INFER, "demo", "default", 4)
    await village.settle()

    assert "modelinfer.matrixinfer.ai/role-id=decode-0" in scale["status"]["selector"]
    assert (await village.status())["replicas"] == 4


async def test_a_pod_that_was_labelled_away_gets_its_labels_back():
    village = await made(an_infer())
    before = await village.uids()
    pod = await village.cluster.get(kinds.POD, "demo-0-decode-0-0", "default")
    del pod["metadata"]["labels"]["modelinfer.matrixinfer.ai/name"]
    pod["metadata"]["labels"]["modelinfer.matrixinfer.ai/role"] = "mine"
    await village.cluster.update(kinds.POD, pod)
    await village.settle()

    labels = (await village.pods())["demo-0-decode-0-0"]["metadata"]["labels"]
    assert labels["modelinfer.matrixinfer.ai/name"] == "demo"
    assert labels["modelinfer.matrixinfer.ai/role"] == "decode"
    assert await village.uids() == before


async def test_a_name_that_belongs_to_somebody_else_is_said_and_left_alone():
    village = Village()
    foreign = {"metadata": {"name": "demo-0-decode-0-0", "namespace": "default"}} | a_template("mine")
    await village.cluster.create(kinds.POD, foreign)
    await village.apply(an_infer(replicas=2))
    await village.reconcile()
    plan = await village.reconcile()

    degraded = await village.condition("Degraded")
    assert plan.requeue_after_s == 15
    assert degraded["reason"] == "NameTaken"
    assert "Pod demo-0-decode-0-0" in degraded["message"]
    assert (await village.pods())["demo-0-decode-0-0"]["spec"]["containers"][0]["image"] == "mine"
    await village.cluster.delete(kinds.POD, "demo-0-decode-0-0", "default")
    await village.settle()
    assert (await village.condition("Degraded"))["status"] == "False"
    assert (await village.status())["availableReplicas"] == 2


async def test_why_pods_do_not_start_is_said():
    village = Village()
    village.bad = {"sim:1"}
    await village.apply(an_infer())
    await village.reconcile()
    waiting = {"reason": "ImagePullBackOff", "message": "no such image sim:1"}
    await village.set_status("demo-0-decode-0-0", ready=False, phase="Pending", waiting=waiting)
    await village.reconcile()

    why = "pod demo-0-decode-0-0: container engine: ImagePullBackOff: no such image sim:1."
    assert (await village.condition("Degraded"))["message"] == why
    assert (await village.condition("Available"))["message"].endswith(why)


async def test_roles_tell_when_they_are_made_and_when_they_run():
    village = await made(an_infer(a_role("prefill"), a_role(replicas=2)))

    told = [(event.reason, event.message) for event in village.events]

    assert told == [
        ("RoleCreating", "Creating decode-0 of demo-0, decode-1 of demo-0"),
        ("RoleCreating", "Creating prefill-0 of demo-0"),
        ("RoleRunning", "Role prefill: all 1 instances are ready"),
        ("RoleRunning", "Role decode: all 2 instances are ready"),
    ]


async def test_an_update_tells_what_goes_and_not_what_takes_its_place():
    village = await made(an_infer(replicas=2))
    village.events.clear()
    await village.apply(an_infer(a_role(image="sim:2"), replicas=2))
    await village.settle()

    assert [(event.reason, event.message) for event in village.events if event.reason != "RoleRunning"] == [
        ("RoleDeleting", "Deleting for the update: decode-0 of demo-1"),
        ("RoleDeleting", "Deleting for the update: decode-0 of demo-0"),
    ]


async def test_an_update_tells_what_is_made_besides():
    village = await made(an_infer())
    village.events.clear()
    await village.apply(an_infer(a_role(image="sim:2"), rolloutStrategy=rolling(maxSurge=1, maxUnavailable=0)))
    await village.settle()

    assert [(event.reason, event.message) for event in village.events if event.reason != "RoleRunning"] == [
        ("RoleCreating", "Creating decode-0 of demo-1"),
        ("RoleDeleting", "Deleting for the update: decode-0 of demo-0"),
    ]


async def test_plugins_and_spread_are_part_of_the_pods_and_of_their_revision():
    plugins = [
        {"name": "demo-pod-tweaks", "config": {"runtimeClassName": "nvidia", "env": [{"name": "A", "value": "b"}]}},
        {"name": "lws-standard-labels", "scope": {"target": "Worker"}},
    ]
    village = await made(an_infer(a_role(workers=1)))
    before = await village.uids()
    spread = [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]
    await village.apply(an_infer(a_role(workers=1), plugins=plugins, topologySpreadConstraints=spread))
    await village.settle()

    pods = await village.pods()
    entry, worker = pods["demo-0-decode-0-0"], pods["demo-0-decode-0-1"]
    assert not set(before.values()) & set((await village.uids()).values())
    assert entry["spec"]["runtimeClassName"] == "nvidia"
    assert {"name": "A", "value": "b"} in entry["spec"]["containers"][0]["env"]
    [constraint] = entry["spec"]["topologySpreadConstraints"]
    assert constraint["labelSelector"] == {"matchLabels": {"modelinfer.matrixinfer.ai/name": "demo"}}
    assert "leaderworkerset.sigs.k8s.io/name" not in entry["metadata"]["labels"]
    assert worker["metadata"]["labels"]["leaderworkerset.sigs.k8s.io/worker-index"] == "1"


async def test_two_host_aliases_of_one_address_are_both_kept():
    aliases = [{"ip": "10.0.0.1", "hostnames": ["a"]}, {"ip": "10.0.0.1", "hostnames": ["b"]}]
    role = a_role() | {"entryTemplate": a_template(hostAliases=aliases)}
    village = await made(an_infer(role))

    pod = (await village.pods())["demo-0-decode-0-0"]
    assert pod["spec"]["hostAliases"] == [{"ip": "10.0.0.1", "hostnames": ["a", "b"]}]


async def test_what_a_model_infer_owns_goes_with_it():
    village = await made(an_infer(a_role(workers=1), replicas=2))
    await village.cluster.delete(kinds.MODEL_INFER, "demo", "default")
    await village.kubelet()

    left = [
        len((await village.cluster.list(kind)).items) for kind in (kinds.POD, kinds.SERVICE, kinds.CONTROLLER_REVISION)
    ]
    assert left == [0, 0, 0]
    assert (await village.plan()).actions == ()


async def test_a_spec_that_is_not_valid_is_said_and_nothing_is_touched():
    village = await made(an_infer(replicas=2))
    controller, world = await village.world()
    manifest = world.get(kinds.MODEL_INFER, "demo")
    manifest["spec"]["replicas"] = -1

    [action] = controller.reconcile(KEY, world, village.now).actions

    [condition] = action.manifest["status"]["conditions"]
    assert condition["type"] == "Accepted"
    assert condition["message"].startswith("spec.replicas: must be at least 0, not the number -1.")


async def test_everything_is_written_before_the_pods_that_need_it():
    village = Village()
    await village.apply(an_infer(a_role(workers=1)))

    applied = [action.kind.kind for action in one_by_one(await village.plan()) if isinstance(action, Apply)]

    assert applied == ["ControllerRevision", "Service", "Pod", "Pod"]


async def test_many_pods_are_made_at_once_and_the_first_entry_of_a_group_after_its_others():
    village = Village()
    await village.apply(an_infer(a_role("prefill", workers=1), a_role(replicas=2, workers=1), replicas=30))

    waves = [
        [pod.manifest["metadata"]["name"].split("-", 2)[2] for pod in action.actions]
        for action in (await village.plan()).actions
        if isinstance(action, Together) and action.actions[0].kind == kinds.POD
    ]

    assert [set(wave) for wave in waves[:3]] == [
        {"prefill-0-1", "decode-0-1", "decode-1-1"},
        {"decode-0-0", "decode-1-0"},
        {"prefill-0-0"},
    ]
    assert [sum(map(len, waves[number : number + 3])) for number in (0, 3, 6)] == [66, 66, 48]


async def test_what_the_api_server_refuses_is_said_until_it_is_changed():
    village = Village()
    await village.apply(an_infer(replicas=2))
    controller, world = await village.world()
    refused = controller.refused(KEY, world, Forbidden("exceeded quota: pods"), village.now)
    for action in refused.actions:
        await village.cluster.apply_status(action.kind, action.manifest, manager="test", force=True)

    degraded = await village.condition("Degraded")
    assert degraded["reason"] == "Refused"
    assert degraded["message"] == "The API server refuses what is to be made: exceeded quota: pods"
    await village.reconcile()
    assert (await village.condition("Degraded"))["reason"] == "Refused"
    await village.settle()
    assert (await village.condition("Degraded"))["status"] == "False"


def test_every_plugin_that_the_schema_takes_is_there():
    assert set(get_args(workload.Plugin.model_fields["name"].annotation)) == set(plugins.BUILTIN)
