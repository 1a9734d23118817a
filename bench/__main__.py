"""`make bench`, or `python -m bench [SECTION ...]`: all sections, or those named."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import (
    control_plane,
    controllers,
    flow,
    flow_predicted,
    gateway,
    kvindex,
    limits,
    long,
    pick,
    routing,
    simulation,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def _controllers(_folder: Path, _rounds: int) -> None:
    controllers.run()
    asyncio.run(control_plane.run())


SECTIONS: Final[dict[str, Callable[[Path, int], object]]] = {
    "requests": lambda folder, rounds: asyncio.run(gateway.requests(folder, rounds=rounds)),
    "idle": lambda _folder, _rounds: asyncio.run(gateway.idle(seconds=20)),
    "pick": lambda _folder, _rounds: pick.run(),
    "long": lambda folder, _rounds: asyncio.run(long.run(folder, seconds=10)),
    "kvindex": lambda _folder, _rounds: kvindex.run(),
    "limits": lambda folder, rounds: asyncio.run(limits.run(folder, rounds=rounds)),
    "flow": lambda folder, rounds: asyncio.run(flow.run(folder, rounds=rounds)),
    "flow-predicted": lambda _folder, _rounds: flow_predicted.run(),
    "routing": lambda folder, _rounds: asyncio.run(routing.run(folder, seconds=20)),
    "simulation": lambda _folder, _rounds: simulation.run(),
    "controllers": _controllers,
}


def main() -> None:
    """Run the sections in order."""
    parser = argparse.ArgumentParser(
        prog="bench", description="Measures the gateway, side by side in one run, and the controllers."
    )
    parser.add_argument("section", nargs="*", choices=[[], *SECTIONS], help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each load; figures are medians")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, run in SECTIONS.items():
            if name in (options.section or SECTIONS):
                run(Path(folder), options.rounds)


if __name__ == "__main__":
    main()
