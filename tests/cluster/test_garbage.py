"""Owner garbage collection over any family."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.cluster.garbage import FINALIZERS, PROPAGATIONS
from matrixinfer.cluster.memory import MemoryCluster
from tests.cluster.conformance import WIDGET, a_widget, owned_by

COUNT = 7
owners = st.sets(st.integers(0, COUNT - 1), max_size=3)
deletions = st.lists(
    st.tuples(st.integers(0, COUNT - 1), st.sampled_from(PROPAGATIONS)),
    min_size=1,
    max_size=4,
    unique_by=lambda d: d[0],
)


@given(
    st.lists(st.tuples(owners, st.booleans(), st.booleans()), min_size=COUNT, max_size=COUNT),
    deletions,
    st.integers(0, 99),
)
def test_collection_ends_and_leaves_only_objects_with_an_owner_or_without_need_of_one(family, deleted, seed):
    async def story() -> None:
        cluster = MemoryCluster(chance=random.Random(seed))
        made = []
        for number, (parents, block, held) in enumerate(family):
            widget = a_widget("default", f"w{number}")
            widget = owned_by(widget, *(made[parent] for parent in sorted(parents) if parent < number), block=block)
            if held:
                widget["metadata"]["finalizers"] = ["example.com/held"]
            made.append(await cluster.create(WIDGET, widget))
        for number, propagation in deleted:
            if f"w{number}" in await names(cluster):
                await cluster.delete(WIDGET, f"w{number}", "default", propagation=propagation)
        await check(cluster)
        for name in await names(cluster):  # let go of all that is held, youngest first
            if name in await names(cluster):
                stands = await cluster.get(WIDGET, name, "default")
                left = [other for other in stands["metadata"].get("finalizers", ()) if other != "example.com/held"]
                await cluster.update(WIDGET, stands | {"metadata": stands["metadata"] | {"finalizers": left}})

        await check(cluster)
        going = [item for item in (await cluster.list(WIDGET)).items if "deletionTimestamp" in item["metadata"]]
        assert going == []
        directly = {f"w{number}" for number, _ in deleted}
        assert directly.isdisjoint(await names(cluster))

    asyncio.run(story())


async def names(cluster: MemoryCluster) -> list[str]:
    return sorted((item["metadata"]["name"] for item in (await cluster.list(WIDGET)).items), reverse=True)


async def check(cluster: MemoryCluster) -> None:
    items = {item["metadata"]["uid"]: item["metadata"] for item in (await cluster.list(WIDGET)).items}
    for meta in items.values():
        named = [reference["uid"] for reference in meta.get("ownerReferences", ())]
        if "deletionTimestamp" not in meta:
            assert all(uid in items for uid in named)
        else:
            assert meta["finalizers"]
        waits = FINALIZERS["Foreground"] in meta.get("finalizers", ())
        dependents = [other for other in items.values() if blocks(other, meta["uid"])]
        assert not waits or dependents


def blocks(meta, uid: str) -> bool:
    return any(
        reference["uid"] == uid and reference["blockOwnerDeletion"] for reference in meta.get("ownerReferences", ())
    )
