"""Whatever a caller writes, the memory cluster stores it soundly or says what is wrong."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.api import kinds
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.protocol import ClusterError, Invalid

junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
metadata = st.fixed_dictionaries(
    {"name": st.just("p"), "namespace": st.just("default")},
    optional=dict.fromkeys(
        ("labels", "annotations", "finalizers", "ownerReferences", "managedFields", "uid", "generateName"), junk
    ),
)
items = st.lists(
    st.one_of(junk, st.dictionaries(st.sampled_from(["name", "env", "ports", "image", "volumeMounts"]), junk)),
    max_size=3,
)
specs = st.dictionaries(st.sampled_from(["containers", "volumes", "nodeName", "hostAliases"]), st.one_of(junk, items))
manifests = st.fixed_dictionaries(
    {"metadata": metadata}, optional={"spec": st.one_of(junk, specs), "status": junk, "kind": junk, "extra": junk}
)


@given(st.lists(st.tuples(st.sampled_from(["create", "update", "status", "apply"]), manifests), max_size=4))
def test_no_write_breaks_the_cluster(writes):
    async def story() -> None:
        cluster = MemoryCluster()
        for verb, manifest in writes:
            with contextlib.suppress(ClusterError):
                if verb == "create":
                    await cluster.create(kinds.POD, manifest)
                elif verb == "update":
                    await cluster.update(kinds.POD, manifest)
                elif verb == "status":
                    await cluster.update_status(kinds.POD, manifest)
                else:
                    await cluster.apply(kinds.POD, manifest, manager="one", force=True)
        good = {"metadata": {"name": "good", "namespace": "default"}, "spec": {"containers": [{"name": "c"}]}}
        await cluster.create(kinds.POD, good)

        assert "good" in [item["metadata"]["name"] for item in (await cluster.list(kinds.POD)).items]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({}, r"metadata\.namespace"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"name": 5, "namespace": "default"}}, r"metadata\.name"),
        ({"metadata": {"name": "x", "namespace": "default"}, "data": {1, 2}}, "JSON"),
        ({"kind": "Pod", "metadata": {"name": "x", "namespace": "default"}}, "ConfigMap"),
        ({"metadata": {"name": "x", "namespace": "default", "labels": {"a": 1}}}, r"metadata\.labels"),
        ({"metadata": {"name": "x", "namespace": "default", "resourceVersion": "1"}}, "resourceVersion"),
    ],
)
async def test_a_refusal_names_the_field(manifest, said):
    with pytest.raises(Invalid, match=said):
        await MemoryCluster().create(kinds.CONFIG_MAP, manifest)
