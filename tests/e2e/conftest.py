"""One stack for each file of tests: they start in seconds, and what one test hurts it also heals."""

from __future__ import annotations

import pytest_asyncio

from tests.e2e.stack import a_pod, a_route, a_server, running

ENGINES = tuple(f"demo-{number}" for number in range(4))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    """Four engines that serve `demo`; asked as `hurried`, they have a second to begin their answer."""
    documents = [a_pod(name) for name in ENGINES]
    documents += [a_server(), a_route(), a_server("hurried", timeout="1s"), a_route("hurried", server="hurried")]
    async with running(tmp_path_factory.mktemp("e2e") / "manifests", *documents) as it:
        yield it
