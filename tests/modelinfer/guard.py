"""Watches the pods of a ModelInfer, and remembers every moment at which a promise was broken."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from matrixinfer.api import kinds, workload
from matrixinfer.cluster.store import Store


class Guard:
    """Of the ModelInfer `name`: `floor` groups are available from when that many first were, and never more than `ceiling` live."""

    def __init__(self, cluster, name, *, pods_a_group, floor, ceiling):
        self._store = Store(cluster, kinds.POD)
        self._name = name
        self._pods_a_group = pods_a_group
        self._floor = floor
        self._ceiling = ceiling
        self._up = False
        self._news = asyncio.Event()
        self.changes = 0
        self.broken: list[str] = []

    async def run(self):
        self._store.on_change(self._changed)
        await self._store.run()

    def pods(self):
        return self._store.select({workload.NAME_LABEL: self._name})

    def groups(self):
        """Pods that stay, by group."""
        found = defaultdict(list)
        for pod in self.pods():
            if "deletionTimestamp" not in pod["metadata"]:
                found[pod["metadata"]["labels"][workload.GROUP_LABEL]].append(pod)
        return found

    def available(self):
        return sum(len(pods) == self._pods_a_group and all(map(_ready, pods)) for pods in self.groups().values())

    async def until(self, holds):
        """Return once it holds; it is asked after each change."""
        async with asyncio.timeout(60):
            while not holds():
                self._news.clear()
                await self._news.wait()

    def _changed(self, _old, _new):
        self.changes += 1
        available, live = self.available(), len(self.groups())
        self._up = self._up or available >= self._floor
        if self._up and available < self._floor:
            self.broken.append(f"{available} groups are available, and {self._floor} shall be")
        if live > self._ceiling:
            self.broken.append(f"there are {live} groups, and {self._ceiling} may be")
        self._news.set()


def _ready(pod):
    conditions = pod.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
