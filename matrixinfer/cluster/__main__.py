"""What the picker hears of a Kubernetes cluster: follows an API server, and answers at a Unix socket as `matrixinfer up` does.

    python -m matrixinfer.cluster --socket /run/matrixinfer/cluster.sock

It runs beside each picker, as a process of its own, so that no request waits while news of pods is read, and so that the process which
reads requests has no credentials. All that it writes is the time at which requests waited for an engine (`wakeup.py`). While the API
server is away the picker keeps what it knows. Exit status: 0 after SIGTERM or SIGINT, 1 for a kubeconfig or a socket that cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from matrixinfer.cluster import credentials, feed
from matrixinfer.cluster.apiserver import ApiServer, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger("matrixinfer.cluster")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_serve(options))
    except (credentials.AccessError, OSError) as error:
        print(f"matrixinfer.cluster: {error}", file=sys.stderr)  # noqa: T201 - why the process does not start
        return 1
    return 0


async def _serve(options: argparse.Namespace) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    access = credentials.find(path=options.kubeconfig, context=options.context)
    settings = Settings(user_agent="matrixinfer-picker")
    async with ApiServer(access, settings) as server, feed.serve(server, options.socket, feed.KINDS):
        log.info("following %s; answering at %s", access.server, options.socket)
        await stopping.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m matrixinfer.cluster", description="News of a cluster for a picker."
    )
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket; the picker's --cluster-socket")
    parser.add_argument(
        "--kubeconfig", default="", help="file; by default the pod's own account, $KUBECONFIG or ~/.kube/config"
    )
    parser.add_argument("--context", default="", help="context of the kubeconfig; by default its current one")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
