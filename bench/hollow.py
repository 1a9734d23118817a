"""`python -m bench.hollow KUBECONFIG`: a node on which every pod is ready at once, as a process of its own."""

from __future__ import annotations

import asyncio
import sys

from matrixinfer.cluster import credentials
from matrixinfer.cluster.apiserver import ApiServer, Settings
from matrixinfer.cluster.ratelimit import Rate
from matrixinfer.local.hollow import HollowNode


async def main(kubeconfig: str) -> None:
    """Play the node until killed."""
    settings = Settings(rate=Rate(10_000, 10_000))
    async with ApiServer(credentials.kubeconfig(kubeconfig), settings) as server:
        await HollowNode(server, at_once=16).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
