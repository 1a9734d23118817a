"""`make bench`, or `python -m bench [SECTION ...]`: all sections, or those named."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from bench import control_plane, controllers, gateway, kvindex, limits, long, pick, routing, simulation

SECTIONS = ("requests", "idle", "pick", "long", "kvindex", "limits", "routing", "simulation", "controllers")


def main() -> None:
    """Run the sections in order."""
    parser = argparse.ArgumentParser(
        prog="bench", description="Measures the gateway, side by side in one run, and the controllers."
    )
    parser.add_argument("section", nargs="*", choices=[[], *SECTIONS], help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each load; figures are medians")
    options = parser.parse_args()
    sections = options.section or SECTIONS
    with tempfile.TemporaryDirectory() as folder:
        if "requests" in sections:
            asyncio.run(gateway.requests(Path(folder), rounds=options.rounds))
        if "idle" in sections:
            asyncio.run(gateway.idle(seconds=20))
        if "pick" in sections:
            pick.run()
        if "long" in sections:
            asyncio.run(long.run(Path(folder), seconds=10))
        if "kvindex" in sections:
            kvindex.run()
        if "limits" in sections:
            asyncio.run(limits.run(Path(folder), rounds=options.rounds))
        if "routing" in sections:
            asyncio.run(routing.run(Path(folder), seconds=20))
        if "simulation" in sections:
            simulation.run()
        if "controllers" in sections:
            controllers.run()
            asyncio.run(control_plane.run())


if __name__ == "__main__":
    main()
