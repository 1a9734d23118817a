"""A controller boiled down: while it leads, it writes as fast as it can. Started as a process of its own by a test, which freezes it."""

from __future__ import annotations

import asyncio
import sys

from matrixinfer.api import kinds
from matrixinfer.cluster import credentials
from matrixinfer.cluster.apiserver import ApiServer, Settings
from matrixinfer.cluster.clock import boottime
from matrixinfer.cluster.election import Elector
from matrixinfer.cluster.lease import Candidate, Terms
from matrixinfer.cluster.protocol import Conflict, Unavailable


def tell(leads: bool) -> None:  # noqa: FBT001 - an answer
    sys.stdout.write("leads\n" if leads else "follows\n")
    sys.stdout.flush()


async def write(server: ApiServer, elector: Elector, name: str, lane: int) -> None:
    count = 0
    while True:
        if not elector.leads:
            await asyncio.sleep(0.01)
            continue
        count += 1
        given = {"metadata": {"name": f"written-{lane}", "namespace": "default"}, "data": {name: str(count)}}
        try:
            await server.apply(kinds.CONFIG_MAP, given, manager=name, force=True)
        except (Unavailable, Conflict):
            await asyncio.sleep(0.01)


async def main(kubeconfig: str, name: str) -> None:
    candidate = Candidate("writers", "default", name, Terms(duration_s=2, every_s=0.3, margin_s=0.7))
    settings = Settings(user_agent=name)
    async with ApiServer(
        credentials.kubeconfig(kubeconfig), settings, remaining=lambda: candidate.tenure.remaining(boottime())
    ) as server:
        elector = Elector(server, candidate, changed=tell)
        await asyncio.gather(elector.run(), *(write(server, elector, name, lane) for lane in range(3)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
