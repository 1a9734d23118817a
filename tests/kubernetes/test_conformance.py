"""The client of a real API server passes the suite of all clusters."""

from __future__ import annotations

import pytest

from tests.cluster import conformance


class TestApiServer(conformance.ReadConformance, conformance.WriteConformance, conformance.ApplyConformance):
    @pytest.fixture
    def reader(self, cluster):
        return cluster


class TestGarbage(conformance.GarbageConformance):
    @pytest.fixture(autouse=True)
    def _collector(self, plane):
        if not plane.collects:
            pytest.skip("this API server has no controller-manager, which collects garbage")
