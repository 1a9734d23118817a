"""Directories as the content of a cluster: reading, and following what editors do."""

from __future__ import annotations

import asyncio
import contextlib
from textwrap import dedent

import pytest

from matrixinfer.api import kinds
from matrixinfer.cluster.directory import Directory, read
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.protocol import EventType, Key
from matrixinfer.cluster.store import Store
from tests.cluster.conformance import PATIENCE_S
from tests.cluster.test_store import Recorder, running


def config(name: str, value: str = "1", namespace: str = "") -> str:
    place = f", namespace: {namespace}" if namespace else ""
    return dedent(
        f"""\
        apiVersion: v1
        kind: ConfigMap
        metadata: {{name: {name}{place}}}
        data: {{value: "{value}"}}
        """
    )


def server(name: str = "demo", extra: str = "") -> str:
    return (
        dedent(
            f"""\
        apiVersion: networking.matrixinfer.ai/v1alpha1
        kind: ModelServer
        metadata:
          name: {name}
        spec:
          model: demo
          inferenceEngine: vLLM
          workloadPort: {{port: 8000}}
          workloadSelector:
            matchLabels: {{app: demo}}
        """
        )
        + extra
    )


def errors(directory) -> list[tuple[str, int, str]]:
    found = read(directory).findings
    return [(finding.file, finding.line, finding.field) for finding in found if finding.severity == "error"]


def test_files_of_all_suffixes_and_depths_are_read_and_others_are_not(tmp_path):
    (tmp_path / "a.yaml").write_text(config("a"))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "b.yml").write_text(config("b", namespace="there"))
    (tmp_path / "c.json").write_text('{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}')
    (tmp_path / "notes.txt").write_text("not: [a manifest")
    (tmp_path / ".hidden.yaml").write_text("not: [a manifest")
    (tmp_path / "a.yaml~").write_text("not: [a manifest")

    reading = read(tmp_path)

    assert reading.ok
    assert set(reading.entries) == {
        Key("ConfigMap", "default", "a"),
        Key("ConfigMap", "there", "b"),
        Key("ConfigMap", "default", "c"),
    }


def test_a_mistake_is_said_with_file_line_and_field(tmp_path):
    (tmp_path / "a.yaml").write_text(config("a") + "---\n" + server(extra="  trafficPolice: {}\n"))

    assert errors(tmp_path) == [("a.yaml", 16, "spec.trafficPolice")]
    assert set(read(tmp_path).entries) == {Key("ConfigMap", "default", "a")}


def test_the_same_object_in_two_files_is_an_error_that_names_both(tmp_path):
    (tmp_path / "a.yaml").write_text(config("x", "1"))
    (tmp_path / "b.yaml").write_text(config("x", "2", "default"))

    reading = read(tmp_path)

    [finding] = reading.findings
    assert (finding.file, finding.line, finding.field) == ("b.yaml", 3, "metadata.name")
    assert "a.yaml:1" in finding.message
    assert reading.entries[Key("ConfigMap", "default", "x")].document.file == "a.yaml"


def test_an_unknown_kind_of_ours_is_an_error_that_names_those_we_know(tmp_path):
    (tmp_path / "a.yaml").write_text(server().replace("ModelServer", "ModelServe"))

    [finding] = read(tmp_path).findings

    assert (finding.line, finding.field) == (2, "kind")
    assert "ModelServer" in finding.message


def test_a_name_is_needed(tmp_path):
    (tmp_path / "a.yaml").write_text(config("a").replace("name:", "generateName:"))

    assert errors(tmp_path) == [("a.yaml", 3, "metadata.name")]


def test_a_reference_to_nothing_is_said_and_the_route_still_goes_to_its_controller(tmp_path):
    (tmp_path / "a.yaml").write_text(
        dedent(
            """\
            apiVersion: networking.matrixinfer.ai/v1alpha1
            kind: ModelRoute
            metadata: {name: r}
            spec:
              modelName: demo
              rules:
              - targetModels:
                - modelServerName: missing
            """
        )
    )

    assert errors(tmp_path) == [("a.yaml", 8, "spec.rules[0].targetModels[0].modelServerName")]
    assert Key("ModelRoute", "default", "r") in read(tmp_path).entries


def test_what_cannot_be_decoded_or_is_no_directory_is_said(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: 1\nb: \xff\n")

    assert errors(tmp_path) == [("a.yaml", 2, "")]
    assert not read(tmp_path / "a.yaml").ok
    assert not read(tmp_path / "none").ok


class Following:
    """A directory that is followed, and the ConfigMaps that come of it."""

    def __init__(self, path, cluster, store, recorder, reports):
        self.path = path
        self.cluster = cluster
        self.store = store
        self.changes = recorder
        self.reports: asyncio.Queue = reports

    async def report(self, predicate) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not predicate([str(finding) for finding in await self.reports.get()]):
                pass

    def values(self) -> dict[str, str]:
        return {item["metadata"]["name"]: item["data"]["value"] for item in self.store.all()}


@pytest.fixture
async def following(tmp_path):
    cluster = MemoryCluster()
    store = Store(cluster, kinds.CONFIG_MAP)
    recorder = Recorder(store)
    reports: asyncio.Queue = asyncio.Queue()
    directory = Directory(tmp_path, cluster, report=reports.put_nowait)
    (tmp_path / "a.yaml").write_text(config("a"))
    async with running(store):
        task = asyncio.create_task(directory.follow())
        await recorder.count(1)
        yield Following(tmp_path, cluster, store, recorder, reports)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_new_changed_and_deleted_files_are_followed(following):
    (following.path / "sub").mkdir()
    (following.path / "sub" / "b.yaml").write_text(config("b"))
    assert (await following.changes.count(2))[1:] == [("added", "b")]
    (following.path / "sub" / "b.yaml").write_text(config("b", "2"))
    assert (await following.changes.count(3))[2:] == [("modified", "b")]
    assert following.values() == {"a": "1", "b": "2"}
    (following.path / "sub" / "b.yaml").unlink()
    assert (await following.changes.count(4))[3:] == [("deleted", "b")]


async def test_an_editor_that_replaces_the_file_changes_the_object(following):
    new = following.path / "a.yaml.tmp"
    new.write_text(config("a", "2"))
    new.rename(following.path / "a.yaml")

    assert (await following.changes.count(2))[1:] == [("modified", "a")]


async def test_an_editor_that_deletes_and_writes_again_does_not_delete_the_object(following):
    (following.path / "a.yaml").unlink()
    await asyncio.sleep(0.2)  # longer than changes are gathered: the deletion is seen by itself
    (following.path / "a.yaml").write_text(config("a", "2"))

    assert (await following.changes.count(2))[1:] == [("modified", "a")]


async def test_a_renamed_file_or_an_object_that_moves_is_no_change(following):
    uid = following.store.get("a", "default")["metadata"]["uid"]
    (following.path / "a.yaml").rename(following.path / "z.yaml")
    (following.path / "b.yaml").write_text(config("b"))
    (following.path / "b.yaml").unlink()
    (following.path / "c.yaml").write_text(config("c") + "---\n" + config("b"))
    await following.changes.count(3)
    (following.path / "z.yaml").write_text(config("a", "2"))

    changes = await following.changes.count(4)
    assert ("deleted", "a") not in changes
    assert following.store.get("a", "default")["metadata"]["uid"] == uid


async def test_a_document_that_turns_bad_keeps_the_last_good_object(following):
    await following.report(lambda findings: findings == [])
    (following.path / "a.yaml").write_text(config("a", "2").replace("data:", "data: ["))
    await following.report(lambda findings: any("a.yaml:4" in finding for finding in findings))
    (following.path / "b.yaml").write_text(config("b"))
    await following.changes.count(2)
    assert following.values() == {"a": "1", "b": "1"}

    (following.path / "a.yaml").write_text(config("a", "3"))

    assert (await following.changes.count(3))[2:] == [("modified", "a")]
    await following.report(lambda findings: findings == [])


async def test_a_bad_document_beside_good_ones_keeps_only_its_own_object(following):
    (following.path / "a.yaml").write_text(config("a") + "---\n" + server())
    await eventually_stands(following.cluster, "demo")
    (following.path / "a.yaml").write_text(config("a", "2") + "---\n" + server(extra="  wrong: 1\n"))
    assert (await following.changes.count(2))[1:] == [("modified", "a")]
    (following.path / "b.yaml").write_text(config("b"))
    (following.path / "a.yaml").write_text(server(extra="  wrong: 1\n"))

    changes = await following.changes.count(4)

    assert sorted(changes[2:]) == [("added", "b"), ("deleted", "a")]
    assert await following.cluster.get(kinds.MODEL_SERVER, "demo", "default")


async def test_a_directory_that_is_taken_away_deletes_nothing_and_its_successor_is_followed(following):
    away = following.path.with_name("away")
    following.path.rename(away)
    await following.report(lambda findings: any("not a directory" in finding for finding in findings))
    assert following.values() == {"a": "1"}
    following.path.mkdir()
    (following.path / "a.yaml").write_text(config("a", "2"))
    await following.changes.count(2)
    (following.path / "b.yaml").write_text(config("b"))

    assert (await following.changes.count(3))[1:] == [("modified", "a"), ("added", "b")]


async def test_what_is_applied_belongs_to_the_manager_directory_and_leaves_others_fields(following):
    stands = following.store.get("a", "default")
    assert [entry["manager"] for entry in stands["metadata"]["managedFields"]] == ["directory"]
    labels = {"metadata": stands["metadata"] | {"labels": {"by": "hand"}}}
    await following.cluster.update(kinds.CONFIG_MAP, stands | labels)
    (following.path / "a.yaml").write_text(config("a", "2"))

    await following.changes.count(3)

    stands = following.store.get("a", "default")
    assert stands["metadata"]["labels"] == {"by": "hand"}
    assert stands["data"] == {"value": "2"}


async def test_an_object_that_comes_back_while_it_is_still_going_is_made_again(following):
    pod = dedent(
        """\
        apiVersion: v1
        kind: Pod
        metadata: {name: p}
        spec: {nodeName: n, containers: [{name: c}]}
        """
    )
    since = (await following.cluster.list(kinds.POD)).resource_version
    (following.path / "p.yaml").write_text(pod)
    async with contextlib.aclosing(following.cluster.watch(kinds.POD, since=since)) as events:
        async with asyncio.timeout(PATIENCE_S):
            first = await anext(events)
            (following.path / "p.yaml").unlink()
            while "deletionTimestamp" not in (await anext(events)).object["metadata"]:
                pass
            (following.path / "p.yaml").write_text(pod)
            await asyncio.sleep(0.3)  # it is seen while the old one is going
            await following.cluster.delete(kinds.POD, "p", "default", grace_period_s=0)
            while (event := await anext(events)).type is not EventType.ADDED:
                pass

    assert event.object["metadata"]["uid"] != first.object["metadata"]["uid"]


async def eventually_stands(cluster, name: str) -> None:
    since = (await cluster.list(kinds.MODEL_SERVER)).resource_version
    if any(item["metadata"]["name"] == name for item in (await cluster.list(kinds.MODEL_SERVER)).items):
        return
    async with asyncio.timeout(PATIENCE_S), contextlib.aclosing(cluster.watch(kinds.MODEL_SERVER, since=since)) as seen:
        async for event in seen:
            if event.object["metadata"].get("name") == name:
                return
