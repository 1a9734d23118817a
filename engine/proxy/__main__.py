"""Starts the proxy: reads its flags, listens, waits for SIGTERM, drains."""

import argparse
import asyncio
import ipaddress
import logging
import signal
import sys
from collections.abc import Sequence

import uvloop
from aiohttp import web

from engine.proxy import app
from matrixinfer.api import transfer


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to stop; exits 0 after draining, 1 where the address cannot be used."""
    arguments = _arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        uvloop.run(_serve(arguments))
    except OSError as error:
        sys.exit(f"cannot start: {error}")
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine.proxy", description="Performs the prefill leg for the decode engine beside it."
    )
    add = parser.add_argument
    add("--host", default="0.0.0.0", help="address to listen on (default %(default)s)")
    add("--port", type=int, default=8000, help="port to listen on, 0 for any free one (default %(default)s)")
    add("--engine", default="http://127.0.0.1:8200", help="URL of the decode engine (default %(default)s)")
    add("--connector", choices=("http", "lmcache", "nixl", "mooncake", "sglang"), default="nixl",
        help="how blocks travel (default %(default)s)")  # fmt: skip
    add("--bootstrap-port", type=int, default=transfer.BOOTSTRAP_PORT,
        help="of Mooncake's and SGLang's prefill engines (default %(default)s)")  # fmt: skip
    add("--prefill-timeout", type=float, default=45.0,
        help="seconds for all tries of a prefill leg together (default %(default)s)")  # fmt: skip
    add("--tries", type=int, default=2, help="prefill engines asked, at most (default %(default)s)")
    add("--aggregated", choices=("auto", "always", "never"), default="auto",
        help="whether the engine may compute a prompt itself when no prefill engine has; auto: unless the connector is "
        "sglang (default %(default)s)")  # fmt: skip
    add("--prefillers", action="append", type=ipaddress.ip_network, default=[], metavar="CIDR",
        help="networks that prefill engines may be in; may be repeated (default: any)")  # fmt: skip
    add("--grace", type=float, default=30.0, help="seconds that requests have after SIGTERM (default %(default)s)")
    return parser.parse_args(argv)


async def _serve(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    alone = arguments.aggregated == "always" or (arguments.aggregated == "auto" and arguments.connector != "sglang")
    settings = app.Settings(
        engine=arguments.engine.rstrip("/"),
        connector=arguments.connector,
        bootstrap_port=arguments.bootstrap_port,
        timeout_s=arguments.prefill_timeout,
        tries=arguments.tries,
        alone=alone,
        allowed=tuple(arguments.prefillers),
    )
    async with app.Proxy(settings) as proxy:
        runner = web.AppRunner(
            proxy.application(), access_log=None, handler_cancellation=True, shutdown_timeout=arguments.grace
        )
        await runner.setup()
        await web.TCPSite(runner, arguments.host, arguments.port).start()
        host, port = runner.addresses[0][:2]
        print(f"proxy on http://{host}:{port} before {settings.engine}", flush=True)  # noqa: T201 - what a terminal or a test waits for
        await stop.wait()
        await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
