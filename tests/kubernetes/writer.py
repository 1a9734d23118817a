"""A controller boiled down: while it leads, it writes as fast as it can. Started as a process of its own by a test, which freezes it.

With `reckless` it writes whether it leads or not: as one would that was frozen between its last look at the clock and the write.
"""

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

LEASE, NAMESPACE = "matrixinfer-controllers", "matrixinfer-system"  # as they are deployed


def tell(leads: bool) -> None:  # noqa: FBT001 - an answer
    sys.stdout.write("leads\n" if leads else "follows\n")
    sys.stdout.flush()


async def write(server: ApiServer, elector: Elector, name: str, lane: int, *, reckless: bool) -> None:
    count = 0
    while True:
        if not (elector.leads or reckless):
            await asyncio.sleep(0.01)
            continue
        count += 1
        said = {"name": f"written-{lane}", "namespace": "default", "annotations": {name: str(count)}}
        try:
            await server.apply(kinds.SECRET, {"metadata": said}, manager=name, force=True)
        except (Unavailable, Conflict):
            await asyncio.sleep(0.01)


async def main(kubeconfig: str, name: str, *more: str) -> None:
    reckless = "reckless" in more
    candidate = Candidate(LEASE, NAMESPACE, f"{name}_1", Terms(duration_s=2, every_s=0.3, margin_s=0.7))
    settings = Settings(user_agent=name)
    async with ApiServer(
        credentials.kubeconfig(kubeconfig),
        settings,
        remaining=None if reckless else lambda: candidate.tenure.remaining(boottime()),
    ) as server:
        elector = Elector(server, candidate, changed=tell)
        lanes = [write(server, elector, name, lane, reckless=reckless) for lane in range(3)]
        await asyncio.gather(elector.run(), *lanes)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
