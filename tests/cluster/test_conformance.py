"""The memory cluster passes the suite of all clusters, and the feed its read half, over a real socket."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from matrixinfer.api import kinds
from matrixinfer.cluster.feed import Feed, serve
from matrixinfer.cluster.memory import MemoryCluster
from tests.cluster import conformance


class InMemory:
    @pytest.fixture
    def namespace(self):
        return "default"

    @pytest.fixture
    def other_namespace(self):
        return "other"

    @pytest.fixture
    def cluster(self):
        return MemoryCluster()


class TestMemoryCluster(
    InMemory,
    conformance.ReadConformance,
    conformance.WriteConformance,
    conformance.ApplyConformance,
    conformance.GarbageConformance,
):
    @pytest.fixture
    def reader(self, cluster):
        return cluster


class TestFeed(InMemory, conformance.ReadConformance):
    @pytest.fixture
    async def reader(self, cluster):
        with tempfile.TemporaryDirectory() as directory:  # short: socket paths have a bound
            path = Path(directory) / "feed"
            async with serve(cluster, path, [conformance.WIDGET, kinds.POD]):
                yield Feed(path)
