"""What every Cluster does, in examples: run against each implementation by subclassing with fixtures.

`WriteConformance` and `GarbageConformance` need the fixture `cluster`; `ReadConformance` also `reader`, which may be another
view of the same cluster. Each test gets a `namespace` of its own. A cluster with an API server behind it has to serve
`WIDGET_CRD` first. Nothing here waits for a fixed time: what a server does later is awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from matrixinfer.api import kinds
from matrixinfer.cluster.protocol import (
    AlreadyExists,
    Cluster,
    Conflict,
    EventType,
    Expired,
    Invalid,
    Kind,
    Manifest,
    NotFound,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from matrixinfer.cluster.store import Source

PATIENCE_S = 45  # a lease that nobody gave back runs for 15
WIDGET = Kind(
    "conformance.matrixinfer.ai",
    "v1",
    "Widget",
    "widgets",
    scale=(".spec.replicas", ".status.replicas", ".status.selector"),
)
DEPLOYMENT = Kind(
    "apps", "v1", "Deployment", "deployments"
)  # any cluster has it, with a Pod's template that may change
WIDGET_CRD: Manifest = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.conformance.matrixinfer.ai"},
    "spec": {
        "group": WIDGET.group,
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {
                    "status": {},
                    "scale": {
                        "specReplicasPath": ".spec.replicas",
                        "statusReplicasPath": ".status.replicas",
                        "labelSelectorPath": ".status.selector",
                    },
                },
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            }
        ],
    },
}


def a_widget(namespace: str, name: str = "w", *, labels: dict[str, str] | None = None, **spec: Any) -> Manifest:
    meta: Manifest = {"name": name, "namespace": namespace}
    if labels:
        meta["labels"] = labels
    return {"apiVersion": WIDGET.api_version, "kind": "Widget", "metadata": meta, "spec": spec}


def a_pod(namespace: str, name: str = "p", *, node: str = "") -> Manifest:
    spec: Manifest = {"containers": [{"name": "engine", "image": "simulator:1"}]}
    if node:
        spec["nodeName"] = node
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def a_deployment(namespace: str, container: Manifest, **env: str) -> Manifest:
    container = container | {"env": [{"name": key, "value": value} for key, value in env.items()]}
    template = {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [container]}}
    return {
        "apiVersion": DEPLOYMENT.api_version,
        "kind": DEPLOYMENT.kind,
        "metadata": {"name": "d", "namespace": namespace},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "x"}}, "template": template},
    }


def a_model_infer(namespace: str) -> Manifest:
    template = {"spec": {"containers": [{"name": "engine", "image": "simulator:1"}]}}
    roles = [{"name": "engine", "workerReplicas": 0, "entryTemplate": template}]
    meta = {"name": "demo", "namespace": namespace}
    return {"metadata": meta, "spec": {"replicas": 1, "template": {"roles": roles}}}


def a_condition(kind: str, status: str, **more: Any) -> Manifest:
    said = {
        "type": kind,
        "status": status,
        "reason": "Said",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    return said | more


def owned_by(child: Manifest, *owners: Manifest, block: bool = True) -> Manifest:
    references = [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": block,
        }
        for owner in owners
    ]
    return child | {"metadata": child["metadata"] | {"ownerReferences": references}}


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - the world is another process
            await asyncio.sleep(0.02)


async def stands(cluster: Cluster, kind: Kind, name: str, namespace: str) -> bool:
    try:
        await cluster.get(kind, name, namespace)
    except NotFound:
        return False
    return True


async def next_events(source: Source, kind: Kind, since: str, count: int, **options: Any) -> list[tuple[str, str]]:
    """Type and name of the next changes, bookmarks passed over."""
    return [
        (event["type"], event["object"]["metadata"]["name"])
        for event in await next_changes(source, kind, since, count, **options)
    ]


async def next_changes(source: Source, kind: Kind, since: str, count: int, **options: Any) -> list[Manifest]:
    found: list[Manifest] = []
    async with asyncio.timeout(PATIENCE_S), contextlib.aclosing(source.watch(kind, since=since, **options)) as events:
        async for event in events:
            if event.type is not EventType.BOOKMARK:
                found.append({"type": event.type.value, "object": event.object})
            if len(found) == count:
                break
    return found


def version(manifest: Manifest) -> str:
    return str(manifest["metadata"]["resourceVersion"])


def generation(manifest: Manifest) -> int:
    return int(manifest["metadata"]["generation"])


class ReadConformance:
    """list and watch: what a Feed can do as well."""

    async def test_list_gives_what_stands_and_where_to_watch_from(self, cluster, reader, namespace):
        await cluster.create(WIDGET, a_widget(namespace, "b"))
        await cluster.create(WIDGET, a_widget(namespace, "a"))

        found = await reader.list(WIDGET, namespace=namespace)

        assert [item["metadata"]["name"] for item in found.items] == ["a", "b"]
        assert found.resource_version

    async def test_list_of_all_namespaces_has_each(self, cluster, reader, namespace):
        created = await cluster.create(WIDGET, a_widget(namespace))

        found = await reader.list(WIDGET)

        assert created["metadata"]["uid"] in [item["metadata"]["uid"] for item in found.items]

    async def test_list_selects_by_all_labels_given(self, cluster, reader, namespace):
        await cluster.create(WIDGET, a_widget(namespace, "both", labels={"app": "x", "tier": "y"}))
        await cluster.create(WIDGET, a_widget(namespace, "one", labels={"app": "x"}))

        found = await reader.list(WIDGET, namespace=namespace, labels={"app": "x", "tier": "y"})

        assert [item["metadata"]["name"] for item in found.items] == ["both"]

    async def test_list_of_a_namespace_without_objects_is_empty(self, reader, namespace):
        found = await reader.list(WIDGET, namespace=namespace)

        assert found.items == ()

    async def test_watch_tells_every_change_since_the_list_in_order(self, cluster, reader, namespace):
        since = (await reader.list(WIDGET, namespace=namespace)).resource_version
        created = await cluster.create(WIDGET, a_widget(namespace, size=1))
        created["spec"]["size"] = 2
        await cluster.update(WIDGET, created)
        await cluster.delete(WIDGET, "w", namespace)

        events = await next_events(reader, WIDGET, since, 3, namespace=namespace)

        assert events == [("ADDED", "w"), ("MODIFIED", "w"), ("DELETED", "w")]

    async def test_watch_tells_what_happens_after_it_began(self, cluster, reader, namespace):
        since = (await reader.list(WIDGET, namespace=namespace)).resource_version
        watching = asyncio.create_task(next_events(reader, WIDGET, since, 1, namespace=namespace))
        await asyncio.sleep(0)
        await cluster.create(WIDGET, a_widget(namespace))

        assert await watching == [("ADDED", "w")]

    async def test_watch_resumes_from_the_resource_version_of_an_event(self, cluster, reader, namespace):
        since = (await reader.list(WIDGET, namespace=namespace)).resource_version
        for name in ("a", "b", "c"):
            await cluster.create(WIDGET, a_widget(namespace, name))
        first = await next_changes(reader, WIDGET, since, 2, namespace=namespace)

        rest = await next_events(reader, WIDGET, version(first[1]["object"]), 1, namespace=namespace)

        assert rest == [("ADDED", "c")]

    async def test_watch_of_one_namespace_does_not_see_another(self, cluster, reader, namespace, other_namespace):
        since = (await reader.list(WIDGET)).resource_version
        await cluster.create(WIDGET, a_widget(other_namespace, "there"))
        await cluster.create(WIDGET, a_widget(namespace, "here"))

        assert await next_events(reader, WIDGET, since, 1, namespace=namespace) == [("ADDED", "here")]

    async def test_watch_of_one_kind_does_not_see_another(self, cluster, reader, namespace):
        since = (await reader.list(WIDGET, namespace=namespace)).resource_version
        await cluster.create(kinds.POD, a_pod(namespace))
        await cluster.create(WIDGET, a_widget(namespace))

        assert await next_events(reader, WIDGET, since, 1, namespace=namespace) == [("ADDED", "w")]

    async def test_a_deletion_event_carries_the_last_state_and_a_later_version(self, cluster, reader, namespace):
        created = await cluster.create(WIDGET, a_widget(namespace, size=7))
        since = version(created)
        await cluster.delete(WIDGET, "w", namespace)

        [event] = await next_changes(reader, WIDGET, since, 1, namespace=namespace)

        assert event["object"]["spec"] == {"size": 7}
        assert version(event["object"]) != since

    async def test_a_version_from_before_the_history_is_expired(self, reader):
        with pytest.raises(Expired):
            await next_changes(reader, WIDGET, "1", 1)

    async def test_a_reader_may_change_what_it_was_given(self, cluster, reader, namespace):
        await cluster.create(WIDGET, a_widget(namespace, size=1))
        for found in [await reader.list(WIDGET, namespace=namespace) for _ in range(2)]:
            assert found.items[0]["spec"] == {"size": 1}
            found.items[0]["spec"]["size"] = 2


class WriteConformance:
    """create, update, status, scale, apply, delete."""

    async def test_create_fills_in_system_metadata(self, cluster, namespace):
        created = await cluster.create(WIDGET, a_widget(namespace, size=1))

        meta = created["metadata"]
        assert meta["uid"]
        assert meta["resourceVersion"]
        assert meta["generation"] == 1
        assert meta["creationTimestamp"].endswith("Z")
        assert await cluster.get(WIDGET, "w", namespace) == created

    async def test_create_ignores_system_metadata_given(self, cluster, namespace):
        given = a_widget(namespace)
        given["metadata"] |= {"generation": 9, "creationTimestamp": "2001-01-01T00:00:00Z"}

        created = await cluster.create(WIDGET, given)

        assert generation(created) == 1
        assert created["metadata"]["creationTimestamp"] != "2001-01-01T00:00:00Z"

    async def test_create_of_a_taken_name_fails(self, cluster, namespace):
        await cluster.create(WIDGET, a_widget(namespace))

        with pytest.raises(AlreadyExists):
            await cluster.create(WIDGET, a_widget(namespace))

    async def test_create_completes_a_generated_name(self, cluster, namespace):
        given = a_widget(namespace)
        given["metadata"] = {"generateName": "w-", "namespace": namespace}

        names = {(await cluster.create(WIDGET, given))["metadata"]["name"] for _ in range(3)}

        assert len(names) == 3
        assert all(name.startswith("w-") and len(name) > 2 for name in names)

    async def test_create_without_a_name_is_invalid(self, cluster, namespace):
        given = a_widget(namespace)
        del given["metadata"]["name"]

        with pytest.raises(Invalid, match="name"):
            await cluster.create(WIDGET, given)

    async def test_create_with_a_bad_name_is_invalid(self, cluster, namespace):
        with pytest.raises(Invalid, match=r"metadata\.name"):
            await cluster.create(WIDGET, a_widget(namespace, "Not_A_Name"))

    async def test_create_drops_status(self, cluster, namespace):
        created = await cluster.create(WIDGET, a_widget(namespace) | {"status": {"phase": "Odd"}})

        assert "status" not in created

    async def test_a_new_pod_is_pending(self, cluster, namespace):
        created = await cluster.create(kinds.POD, a_pod(namespace) | {"status": {"phase": "Running"}})

        assert created["status"]["phase"] == "Pending"

    async def test_a_name_used_again_is_another_object(self, cluster, namespace):
        first = await cluster.create(WIDGET, a_widget(namespace))
        await cluster.delete(WIDGET, "w", namespace)

        second = await cluster.create(WIDGET, a_widget(namespace))

        assert first["metadata"]["uid"] != second["metadata"]["uid"]

    async def test_get_of_nothing_is_not_found(self, cluster, namespace):
        with pytest.raises(NotFound):
            await cluster.get(WIDGET, "none", namespace)

    async def test_objects_of_our_kinds_are_validated_with_every_problem(self, cluster, namespace):
        route = {"metadata": {"name": "r", "namespace": namespace}, "spec": {"modelName": 5, "rules": "none"}}

        with pytest.raises(Invalid) as refusal:
            await cluster.create(kinds.MODEL_ROUTE, route)

        assert "spec.modelName" in str(refusal.value)
        assert "spec.rules" in str(refusal.value)

    async def test_update_replaces_spec_and_counts_a_generation(self, cluster, namespace):
        created = await cluster.create(WIDGET, a_widget(namespace, size=1, color="red"))
        created["spec"] = {"size": 2}

        updated = await cluster.update(WIDGET, created)

        assert updated["spec"] == {"size": 2}
        assert generation(updated) == 2
        assert version(updated) != version(created)

    async def test_update_of_labels_counts_no_generation(self, cluster, namespace):
        created = await cluster.create(WIDGET, a_widget(namespace, size=1))
        created["metadata"]["labels"] = {"app": "x"}

        updated = await cluster.update(WIDGET, created)

        assert updated["metadata"]["labels"] == {"app": "x"}
        assert generation(updated) == 1

    async def test_update_ignores_status(self, cluster, namespace):
        created = await cluster.create(WIDGET, a_widget(namespace, size=1))
        await cluster.update_status(WIDGET, created | {"status": {"phase": "Good"}})
        latest = await cluster.get(WIDGET, "w", namespace)

        updated = await cluster.update(WIDGET, latest | {"spec": {"size": 2}, "status": {"phase": "Bad"}})

        assert updated["status"] == {"phase": "Good"}
        assert updated["spec"] == {"size": 2}

    async def test_update_status_ignores_all_else(self, cluster, namespace):
        created = await cluster.create(WIDGET, a_widget(namespace, size=1))

        updated = await cluster.update_status(WIDGET, created | {"spec": {"size": 2}, "status": {"phase": "Good"}})

        assert updated["spec"] == {"size": 1}
        assert updated["status"] == {"phase": "Good"}
        assert generation(updated) == 1

    async def test_update_status_of_a_kind_without_status_is_not_found(self, cluster, namespace):
        given = {"metadata": {"name": "c", "namespace": namespace}, "data": {"key": "value"}}
        await cluster.create(kinds.CONFIG_MAP, given)

        with pytest.raises(NotFound):
            await cluster.update_status(kinds.CONFIG_MAP, given)

    async def test_update_of_an_old_read_conflicts(self, cluster, namespace):
        old = await cluster.create(WIDGET, a_widget(namespace, size=1))
        await cluster.update(WIDGET, old | {"spec": {"size": 2}})

        with pytest.raises(Conflict):
            await cluster.update(WIDGET, old | {"spec": {"size": 3}})
        with pytest.raises(Conflict):
            await cluster.update_status(WIDGET, old | {"status": {"phase": "Late"}})

    async def test_of_many_updates_of_one_read_only_one_wins(self, cluster, namespace):
        read = await cluster.create(WIDGET, a_widget(namespace, size=0))

        results = await asyncio.gather(
            *(cluster.update(WIDGET, read | {"spec": {"size": size}}) for size in range(1, 6)), return_exceptions=True
        )

        assert sum(isinstance(result, dict) for result in results) == 1
        assert sum(isinstance(result, Conflict) for result in results) == 4

    async def test_a_write_that_changes_nothing_is_none(self, cluster, namespace):
        created = await cluster.create(WIDGET, a_widget(namespace, size=1))

        assert version(await cluster.update(WIDGET, created)) == version(created)
        with_status = await cluster.update_status(WIDGET, created | {"status": {"phase": "Good"}})
        assert version(await cluster.update_status(WIDGET, with_status)) == version(with_status)

    async def test_true_is_not_one(self, cluster, namespace):
        created = await cluster.create(WIDGET, a_widget(namespace, size=1))

        updated = await cluster.update(WIDGET, created | {"spec": {"size": True}})

        assert updated["spec"]["size"] is True
        assert generation(updated) == 2

    async def test_update_of_nothing_is_not_found(self, cluster, namespace):
        with pytest.raises(NotFound):
            await cluster.update(WIDGET, a_widget(namespace))

    async def test_what_a_caller_gave_or_got_is_not_what_stands(self, cluster, namespace):
        given = a_widget(namespace, size=1)
        got = await cluster.create(WIDGET, given)
        given["spec"]["size"] = 2
        got["spec"]["size"] = 3

        assert (await cluster.get(WIDGET, "w", namespace))["spec"] == {"size": 1}

    async def test_scale_sets_replicas_and_nothing_else(self, cluster, namespace):
        await cluster.create(WIDGET, a_widget(namespace, replicas=1, size=5))
        await cluster.update_status(WIDGET, a_widget(namespace) | await status_of(cluster, namespace, replicas=1))

        scale = await cluster.scale(WIDGET, "w", namespace, 3)

        stood = await cluster.get(WIDGET, "w", namespace)
        assert stood["spec"] == {"replicas": 3, "size": 5}
        assert generation(stood) == 2
        assert scale["kind"] == "Scale"
        assert scale["spec"] == {"replicas": 3}
        assert scale["status"]["replicas"] == 1

    async def test_scale_below_zero_is_invalid(self, cluster, namespace):
        await cluster.create(WIDGET, a_widget(namespace, replicas=1))

        with pytest.raises(Invalid):
            await cluster.scale(WIDGET, "w", namespace, -1)

    async def test_scale_of_a_kind_without_it_is_not_found(self, cluster, namespace):
        await cluster.create(kinds.POD, a_pod(namespace))

        with pytest.raises(NotFound):
            await cluster.scale(kinds.POD, "p", namespace, 3)

    async def test_delete_of_nothing_is_not_found(self, cluster, namespace):
        with pytest.raises(NotFound):
            await cluster.delete(WIDGET, "none", namespace)

    async def test_delete_of_another_uid_or_version_conflicts(self, cluster, namespace):
        await cluster.create(WIDGET, a_widget(namespace))

        with pytest.raises(Conflict):
            await cluster.delete(WIDGET, "w", namespace, uid="11111111-2222-3333-4444-555555555555")
        with pytest.raises(Conflict):
            await cluster.delete(WIDGET, "w", namespace, resource_version="1")
        assert await stands(cluster, WIDGET, "w", namespace)

    async def test_an_object_with_finalizers_is_marked_and_stays_until_they_go(self, cluster, namespace):
        given = a_widget(namespace)
        given["metadata"]["finalizers"] = ["example.com/wait"]
        await cluster.create(WIDGET, given)

        await cluster.delete(WIDGET, "w", namespace)
        marked = await cluster.get(WIDGET, "w", namespace)

        assert marked["metadata"]["deletionTimestamp"]
        marked["metadata"]["finalizers"] = []
        await cluster.update(WIDGET, marked)
        assert not await stands(cluster, WIDGET, "w", namespace)

    async def test_no_finalizer_is_added_to_an_object_being_deleted(self, cluster, namespace):
        given = a_widget(namespace)
        given["metadata"]["finalizers"] = ["example.com/wait"]
        await cluster.create(WIDGET, given)
        await cluster.delete(WIDGET, "w", namespace)
        marked = await cluster.get(WIDGET, "w", namespace)

        marked["metadata"]["finalizers"].append("example.com/more")
        with pytest.raises(Invalid):
            await cluster.update(WIDGET, marked)

    async def test_deleting_twice_is_once(self, cluster, namespace):
        given = a_widget(namespace)
        given["metadata"]["finalizers"] = ["example.com/wait"]
        await cluster.create(WIDGET, given)
        await cluster.delete(WIDGET, "w", namespace)
        marked = await cluster.get(WIDGET, "w", namespace)

        await cluster.delete(WIDGET, "w", namespace)

        assert await cluster.get(WIDGET, "w", namespace) == marked

    async def test_a_pod_is_given_a_node_once(self, cluster, namespace):
        await cluster.create(kinds.POD, a_pod(namespace))

        await cluster.bind("p", namespace, "n1")

        assert (await cluster.get(kinds.POD, "p", namespace))["spec"]["nodeName"] == "n1"
        with pytest.raises(Conflict):
            await cluster.bind("p", namespace, "n2")
        await cluster.delete(kinds.POD, "p", namespace)
        with pytest.raises(Conflict):
            await cluster.bind("p", namespace, "n1")
        with pytest.raises(NotFound):
            await cluster.bind("none", namespace, "n1")

    async def test_a_pod_on_a_node_terminates_until_the_node_lets_it_go(self, cluster, namespace):
        await cluster.create(kinds.POD, a_pod(namespace, node="n1"))

        await cluster.delete(kinds.POD, "p", namespace, grace_period_s=20)
        terminating = await cluster.get(kinds.POD, "p", namespace)

        assert terminating["metadata"]["deletionTimestamp"]
        assert terminating["metadata"]["deletionGracePeriodSeconds"] == 20
        await cluster.delete(kinds.POD, "p", namespace, grace_period_s=0)
        assert not await stands(cluster, kinds.POD, "p", namespace)

    async def test_a_pod_on_a_node_has_thirty_seconds_unless_it_says_otherwise(self, cluster, namespace):
        await cluster.create(kinds.POD, a_pod(namespace, "a", node="n1"))
        patient = a_pod(namespace, "b", node="n1")
        patient["spec"]["terminationGracePeriodSeconds"] = 7
        await cluster.create(kinds.POD, patient)

        for name in ("a", "b"):
            await cluster.delete(kinds.POD, name, namespace)

        graces = [(await cluster.get(kinds.POD, name, namespace))["metadata"] for name in ("a", "b")]
        assert [meta["deletionGracePeriodSeconds"] for meta in graces] == [30, 7]

    async def test_a_grace_period_can_be_made_shorter_and_not_longer(self, cluster, namespace):
        await cluster.create(kinds.POD, a_pod(namespace, node="n1"))
        for grace_s in (20, 10, 25):
            await cluster.delete(kinds.POD, "p", namespace, grace_period_s=grace_s)

        meta = (await cluster.get(kinds.POD, "p", namespace))["metadata"]
        assert meta["deletionGracePeriodSeconds"] == 10

    async def test_a_pod_on_no_node_goes_at_once(self, cluster, namespace):
        await cluster.create(kinds.POD, a_pod(namespace))

        await cluster.delete(kinds.POD, "p", namespace)

        assert not await stands(cluster, kinds.POD, "p", namespace)


async def status_of(cluster: Cluster, namespace: str, **status: Any) -> Manifest:
    latest = await cluster.get(WIDGET, "w", namespace)
    return {"metadata": latest["metadata"], "status": status}


class ApplyConformance:
    """Server-side apply and field ownership."""

    async def test_apply_creates_what_is_not_there(self, cluster, namespace):
        applied = await cluster.apply(WIDGET, a_widget(namespace, size=1), manager="one")

        assert applied["spec"] == {"size": 1}
        assert generation(applied) == 1

    async def test_apply_says_in_managed_fields_who_owns_what(self, cluster, namespace):
        applied = await cluster.apply(WIDGET, a_widget(namespace, size=1), manager="one")

        [entry] = applied["metadata"]["managedFields"]
        assert (entry["manager"], entry["operation"], entry["fieldsType"]) == ("one", "Apply", "FieldsV1")
        assert entry["fieldsV1"]["f:spec"].keys() - {"."} == {"f:size"}  # "." is the mapping itself

    async def test_apply_twice_is_once(self, cluster, namespace):
        first = await cluster.apply(WIDGET, a_widget(namespace, size=1), manager="one")

        assert await cluster.apply(WIDGET, a_widget(namespace, size=1), manager="one") == first

    async def test_apply_leaves_the_fields_of_others(self, cluster, namespace):
        await cluster.apply(WIDGET, a_widget(namespace, size=1), manager="one")

        applied = await cluster.apply(WIDGET, a_widget(namespace, color="red"), manager="two")

        assert applied["spec"] == {"size": 1, "color": "red"}

    async def test_apply_drops_what_it_named_before_and_does_not_now(self, cluster, namespace):
        await cluster.apply(WIDGET, a_widget(namespace, size=1, color="red"), manager="one")
        await cluster.apply(WIDGET, a_widget(namespace, shape="round"), manager="two")

        applied = await cluster.apply(WIDGET, a_widget(namespace, size=1), manager="one")

        assert applied["spec"] == {"size": 1, "shape": "round"}

    async def test_a_field_that_two_apply_stays_until_both_drop_it(self, cluster, namespace):
        await cluster.apply(WIDGET, a_widget(namespace, size=1, color="red"), manager="one")
        await cluster.apply(WIDGET, a_widget(namespace, color="red"), manager="two")

        kept = await cluster.apply(WIDGET, a_widget(namespace, size=1), manager="one")
        assert kept["spec"] == {"size": 1, "color": "red"}
        dropped = await cluster.apply(WIDGET, a_widget(namespace, shape="round"), manager="two")
        assert dropped["spec"] == {"size": 1, "shape": "round"}

    async def test_a_conflict_names_the_manager_and_the_field(self, cluster, namespace):
        await cluster.apply(WIDGET, a_widget(namespace, size=1), manager="one")

        with pytest.raises(Conflict) as refusal:
            await cluster.apply(WIDGET, a_widget(namespace, size=2), manager="two")

        assert '"one"' in str(refusal.value)
        assert ".spec.size" in str(refusal.value)

    async def test_force_takes_the_field_over(self, cluster, namespace):
        await cluster.apply(WIDGET, a_widget(namespace, size=1), manager="one")
        applied = await cluster.apply(WIDGET, a_widget(namespace, size=2), manager="two", force=True)

        assert applied["spec"] == {"size": 2}
        with pytest.raises(Conflict):
            await cluster.apply(WIDGET, a_widget(namespace, size=1), manager="one")

    async def test_a_field_that_an_update_changed_conflicts_with_apply(self, cluster, namespace):
        applied = await cluster.apply(WIDGET, a_widget(namespace, size=1), manager="one")
        applied["spec"]["size"] = 2
        await cluster.update(WIDGET, applied)

        with pytest.raises(Conflict):
            await cluster.apply(WIDGET, a_widget(namespace, size=1), manager="one")

    async def test_a_field_that_scale_changed_conflicts_with_apply(self, cluster, namespace):
        await cluster.apply(WIDGET, a_widget(namespace, replicas=1), manager="one")
        await cluster.scale(WIDGET, "w", namespace, 4)

        with pytest.raises(Conflict, match="replicas"):
            await cluster.apply(WIDGET, a_widget(namespace, replicas=1), manager="one")

    async def test_apply_merges_containers_and_env_by_name(self, cluster, namespace):
        await cluster.apply(
            DEPLOYMENT, a_deployment(namespace, {"name": "engine", "image": "e:1"}, A="1"), manager="one"
        )
        given = a_deployment(namespace, {"name": "engine"}, B="2")
        given["spec"]["template"]["spec"]["containers"].append({"name": "sidecar", "image": "s:1"})

        applied = await cluster.apply(DEPLOYMENT, given, manager="two")

        containers = applied["spec"]["template"]["spec"]["containers"]
        assert [container["name"] for container in containers] == ["engine", "sidecar"]
        assert {item["name"]: item["value"] for item in containers[0]["env"]} == {"A": "1", "B": "2"}
        assert containers[0]["image"] == "e:1"

    async def test_apply_drops_only_its_own_items(self, cluster, namespace):
        await cluster.apply(
            DEPLOYMENT, a_deployment(namespace, {"name": "engine", "image": "e:1"}, A="1"), manager="one"
        )
        await cluster.apply(DEPLOYMENT, a_deployment(namespace, {"name": "engine"}, B="2", C="3"), manager="two")

        applied = await cluster.apply(DEPLOYMENT, a_deployment(namespace, {"name": "engine"}, C="3"), manager="two")

        [container] = applied["spec"]["template"]["spec"]["containers"]
        assert {item["name"]: item["value"] for item in container["env"]} == {"A": "1", "C": "3"}

    async def test_apply_replaces_other_lists_whole(self, cluster, namespace):
        await cluster.apply(WIDGET, a_widget(namespace, items=[1, 2, 3]), manager="one")

        applied = await cluster.apply(WIDGET, a_widget(namespace, items=[4]), manager="one")

        assert applied["spec"] == {"items": [4]}

    async def test_apply_of_labels_removes_only_its_own(self, cluster, namespace):
        await cluster.apply(WIDGET, a_widget(namespace, labels={"a": "1", "b": "2"}), manager="one")
        await cluster.apply(WIDGET, a_widget(namespace, labels={"c": "3"}), manager="two")

        applied = await cluster.apply(WIDGET, a_widget(namespace, labels={"a": "1"}), manager="one")

        assert applied["metadata"]["labels"] == {"a": "1", "c": "3"}

    async def test_apply_ignores_status_and_apply_status_all_else(self, cluster, namespace):
        applied = await cluster.apply(WIDGET, a_widget(namespace, size=1) | {"status": {"phase": "Odd"}}, manager="one")
        assert "status" not in applied

        given = a_widget(namespace, size=2) | {"status": {"phase": "Good"}}
        applied = await cluster.apply_status(WIDGET, given, manager="two")

        assert applied["spec"] == {"size": 1}
        assert applied["status"] == {"phase": "Good"}
        assert generation(applied) == 1

    async def test_pod_conditions_are_merged_by_type(self, cluster, namespace):
        await cluster.create(kinds.POD, a_pod(namespace))
        for manager, kind in (("node", "Ready"), ("gateway", "example.com/Drained")):
            status = {"conditions": [{"type": kind, "status": "True"}]}
            given = {"metadata": {"name": "p", "namespace": namespace}, "status": status}
            applied = await cluster.apply_status(kinds.POD, given, manager=manager)

        assert {condition["type"] for condition in applied["status"]["conditions"]} >= {"Ready", "example.com/Drained"}

    async def test_a_condition_of_ours_is_owned_whole_and_those_of_others_stand_beside_it(self, cluster, namespace):
        await cluster.create(kinds.MODEL_INFER, a_model_infer(namespace))

        async def applied_by(manager, *conditions, force=False):
            meta = {"name": "demo", "namespace": namespace}
            given = {"metadata": meta, "status": {"conditions": list(conditions)}}
            stands = await cluster.apply_status(kinds.MODEL_INFER, given, manager=manager, force=force)
            return {one["type"]: one for one in stands["status"]["conditions"]}

        ours = a_condition("Available", "True", observedGeneration=1)
        await applied_by("one", ours)
        both = await applied_by("two", a_condition("example.com/Audited", "True"))
        assert both["Available"] == ours
        assert both.keys() == {"Available", "example.com/Audited"}

        with pytest.raises(Conflict):
            await applied_by("two", a_condition("Available", "False"))
        taken = await applied_by("two", a_condition("Available", "False"), force=True)
        assert taken == {"Available": a_condition("Available", "False")}  # nothing of it is left from before

    async def test_apply_status_of_nothing_is_not_found(self, cluster, namespace):
        with pytest.raises(NotFound):
            await cluster.apply_status(WIDGET, a_widget(namespace) | {"status": {}}, manager="one")

    async def test_apply_validates_what_comes_out(self, cluster, namespace):
        route = {"metadata": {"name": "r", "namespace": namespace}, "spec": {"rules": []}}

        with pytest.raises(Invalid, match=r"spec\."):
            await cluster.apply(kinds.MODEL_ROUTE, route, manager="one")
        assert not await stands(cluster, kinds.MODEL_ROUTE, "r", namespace)


class GarbageConformance:
    """Owner garbage collection."""

    async def test_dependents_follow_their_owner(self, cluster, namespace):
        owner = await cluster.create(WIDGET, a_widget(namespace, "owner"))
        child = await cluster.create(WIDGET, owned_by(a_widget(namespace, "child"), owner))
        await cluster.create(WIDGET, owned_by(a_widget(namespace, "grandchild"), child))

        await cluster.delete(WIDGET, "owner", namespace)

        assert not await stands(cluster, WIDGET, "owner", namespace)
        for name in ("child", "grandchild"):
            await eventually(lambda name=name: gone(cluster, name, namespace))

    async def test_orphans_stay_without_the_reference(self, cluster, namespace):
        owner = await cluster.create(WIDGET, a_widget(namespace, "owner"))
        await cluster.create(WIDGET, owned_by(a_widget(namespace, "child"), owner))

        await cluster.delete(WIDGET, "owner", namespace, propagation="Orphan")

        await eventually(lambda: gone(cluster, "owner", namespace))
        child = await cluster.get(WIDGET, "child", namespace)
        assert not child["metadata"].get("ownerReferences")

    async def test_an_owner_deleted_in_the_foreground_waits_for_its_dependents(self, cluster, namespace):
        owner = await cluster.create(WIDGET, a_widget(namespace, "owner"))
        held = owned_by(a_widget(namespace, "child"), owner)
        held["metadata"]["finalizers"] = ["example.com/wait"]
        await cluster.create(WIDGET, held)

        await cluster.delete(WIDGET, "owner", namespace, propagation="Foreground")

        await eventually(lambda: marked(cluster, "child", namespace))
        waiting = await cluster.get(WIDGET, "owner", namespace)
        assert waiting["metadata"]["deletionTimestamp"]
        assert waiting["metadata"]["finalizers"] == ["foregroundDeletion"]
        child = await cluster.get(WIDGET, "child", namespace)
        child["metadata"]["finalizers"] = []
        await cluster.update(WIDGET, child)
        await eventually(lambda: gone(cluster, "child", namespace))
        await eventually(lambda: gone(cluster, "owner", namespace))

    async def test_dependents_that_do_not_block_are_not_waited_for(self, cluster, namespace):
        owner = await cluster.create(WIDGET, a_widget(namespace, "owner"))
        held = owned_by(a_widget(namespace, "child"), owner, block=False)
        held["metadata"]["finalizers"] = ["example.com/wait"]
        await cluster.create(WIDGET, held)

        await cluster.delete(WIDGET, "owner", namespace, propagation="Foreground")

        await eventually(lambda: gone(cluster, "owner", namespace))
        await eventually(lambda: marked(cluster, "child", namespace))

    async def test_a_dependent_with_another_owner_stays(self, cluster, namespace):
        one = await cluster.create(WIDGET, a_widget(namespace, "one"))
        two = await cluster.create(WIDGET, a_widget(namespace, "two"))
        await cluster.create(WIDGET, owned_by(a_widget(namespace, "child"), one, two))

        await cluster.delete(WIDGET, "one", namespace)

        async def released() -> bool:
            child = await cluster.get(WIDGET, "child", namespace)
            return [reference["name"] for reference in child["metadata"]["ownerReferences"]] == ["two"]

        await eventually(released)
        await cluster.delete(WIDGET, "two", namespace)
        await eventually(lambda: gone(cluster, "child", namespace))

    async def test_an_object_whose_owner_never_was_goes(self, cluster, namespace):
        absent = a_widget(namespace, "absent")
        absent["metadata"]["uid"] = "11111111-2222-3333-4444-555555555555"

        await cluster.create(WIDGET, owned_by(a_widget(namespace, "child"), absent))

        await eventually(lambda: gone(cluster, "child", namespace))

    async def test_owner_references_are_checked(self, cluster, namespace):
        given = a_widget(namespace)
        given["metadata"]["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": ""}]

        with pytest.raises(Invalid, match="ownerReferences"):
            await cluster.create(WIDGET, given)


async def gone(cluster: Cluster, name: str, namespace: str) -> bool:
    return not await stands(cluster, WIDGET, name, namespace)


async def marked(cluster: Cluster, name: str, namespace: str) -> bool:
    return "deletionTimestamp" in (await cluster.get(WIDGET, name, namespace))["metadata"]
