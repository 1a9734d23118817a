"""Run a gateway and its engines on this machine, from a directory of manifests or before engines that run already.

Prints `ready URL` on standard output as soon as requests are served, a line for each gateway, and everything else on
standard error: on a terminal a live view with the log lines above it, elsewhere lines.
Stops on SIGINT (Ctrl-C) and SIGTERM, and takes every process it started along.

Exit codes: 0 stopped as asked, 1 something to put right (manifests, a port in use, no Envoy), 2 usage,
3 started but could not serve in time.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from matrixinfer.cli.exits import Exit

if TYPE_CHECKING:
    import asyncio

    from matrixinfer.cli.views import View
    from matrixinfer.local.stack import Config

LOG_LEVELS = ("debug", "info", "warning", "error")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", type=Path, help="manifests (YAML); edits take effect at once"
    )
    parser.add_argument(
        "--engine",
        metavar="URL",
        action="append",
        type=_url,
        help="an engine that runs already, such as http://127.0.0.1:8000; its models are discovered; may be repeated",
    )
    parser.add_argument("--port", type=_port, default=8080, help="of the gateway (default 8080; 0: any free one)")
    parser.add_argument(
        "--bind", metavar="ADDRESS", default="127.0.0.1", help="address of the gateway (default 127.0.0.1)"
    )
    secure = parser.add_argument_group("TLS", "the plain port is then reached from this machine only")
    secure.add_argument("--tls-cert", metavar="FILE", type=Path, help="certificate chain, PEM; changes take effect")
    secure.add_argument("--tls-key", metavar="FILE", type=Path, help="its key, PEM")
    secure.add_argument("--tls-client-ca", metavar="FILE", type=Path, help="clients need certificates signed by these")
    secure.add_argument("--tls-client-optional", action="store_true", help="clients may come without a certificate")
    secure.add_argument("--tls-port", type=_port, default=8443, help="where TLS is spoken (default 8443; 0: any)")
    parser.add_argument("--admin-port", type=_port, default=15000, help="of the admin pages (default 15000)")
    parser.add_argument("--metrics-port", type=_port, default=9090, help="of the picker's metrics (default 9090)")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="scheduling: an EndpointPickerConfig (default: built in)"
    )
    parser.add_argument(
        "--decision-log", metavar="FILE", type=Path, help="write every decision there, for `matrixinfer replay`"
    )
    parser.add_argument(
        "--state-dir", metavar="DIR", type=Path, help="where logs and sockets go and stay (default: temporary)"
    )
    parser.add_argument(
        "--picker-failure-mode",
        choices=("open", "closed"),
        default="open",
        help="while the picker does not answer: balance without it (open, default), or answer 503 (closed)",
    )
    parser.add_argument(
        "--max-body-bytes",
        type=_positive,
        default=32 * 1024 * 1024,
        help="longer request bodies get 413 (default 33554432)",
    )
    parser.add_argument(
        "--gateways",
        metavar="N",
        type=_positive,
        default=1,
        help="pairs of Envoy and picker (default 1); each further one has the ports that follow",
    )
    parser.add_argument(
        "--redis",
        metavar="URL",
        nargs="?",
        const=True,
        type=_redis,
        help="where gateways count global limits together, whatever address routes name; without URL one is started",
    )
    parser.add_argument("--envoy-workers", type=_positive, default=min(4, os.cpu_count() or 1), help="threads of Envoy")
    parser.add_argument(
        "--ready-timeout",
        metavar="SECONDS",
        type=_positive,
        default=60,
        help="give up if nothing is served by then (default 60; large models take longer to load)",
    )
    parser.add_argument("--logs", action="store_true", help="show what the pods write, too")
    parser.add_argument(
        "--no-view",
        dest="view",
        action="store_false",
        help="lines only, also on a terminal that could show a live view (as with TERM=dumb or NO_COLOR set)",
    )
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="info", help="of what is said on standard error")


def run(arguments: argparse.Namespace) -> int:
    """Run until a signal."""
    if bool(arguments.directory) == bool(arguments.engine):
        print("matrixinfer up: give a DIR of manifests or --engine URL, one of the two", file=sys.stderr)  # noqa: T201
        return Exit.USAGE
    if bool(arguments.tls_cert) != bool(arguments.tls_key) or (arguments.tls_client_ca and not arguments.tls_cert):
        print("matrixinfer up: TLS needs both --tls-cert and --tls-key", file=sys.stderr)  # noqa: T201
        return Exit.USAGE
    if arguments.tls_client_optional and not arguments.tls_client_ca:
        print("matrixinfer up: --tls-client-optional needs --tls-client-ca", file=sys.stderr)  # noqa: T201
        return Exit.USAGE
    import asyncio  # noqa: PLC0415 - see main.py

    from matrixinfer.local import counter, tls  # noqa: PLC0415
    from matrixinfer.local.stack import Config  # noqa: PLC0415

    files = None
    if arguments.tls_cert:
        files = tls.Files(arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca, arguments.tls_client_optional)

    config = Config(
        directory=arguments.directory,
        engines=tuple(arguments.engine or ()),
        port=arguments.port,
        bind=arguments.bind,
        tls=files,
        tls_port=arguments.tls_port,
        admin_port=arguments.admin_port,
        metrics_port=arguments.metrics_port,
        scheduling=arguments.config,
        decision_log=arguments.decision_log,
        state_dir=arguments.state_dir,
        fail_open=arguments.picker_failure_mode == "open",
        max_body_bytes=arguments.max_body_bytes,
        gateways=arguments.gateways,
        redis=counter.HERE if arguments.redis is True else arguments.redis or "",
        envoy_workers=arguments.envoy_workers,
        log_level=arguments.log_level,
    )
    return asyncio.run(_up(config, logs=arguments.logs, live=arguments.view, ready_within_s=arguments.ready_timeout))


async def _up(config: Config, *, logs: bool, live: bool, ready_within_s: float) -> Exit:
    import asyncio  # noqa: PLC0415
    import signal  # noqa: PLC0415

    from matrixinfer.cli import views  # noqa: PLC0415
    from matrixinfer.local.stack import CannotStart, NotReady  # noqa: PLC0415

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    view = views.choose(config.log_level, logs=logs, live=live)
    try:
        return await _serve(config, view, stop, ready_within_s)
    except CannotStart as error:
        view.say(str(error))
        return Exit.MISTAKE
    except NotReady as error:
        view.say(str(error))
        return Exit.NOT_READY


async def _serve(config: Config, view: View, stop: asyncio.Event, ready_within_s: float) -> Exit:
    import asyncio  # noqa: PLC0415

    from matrixinfer.local.stack import Stack  # noqa: PLC0415

    async with Stack(config) as stack, view.watching(stack):
        stopping = asyncio.create_task(stop.wait())
        failing = asyncio.create_task(stack.failed())
        ready = asyncio.create_task(stack.ready(ready_within_s))
        try:
            await asyncio.wait({ready, stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                for one in stack.gateways:
                    view.serving(one.url)
                await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                failing.result()
        finally:
            for task in (stopping, failing, ready):
                task.cancel()
            await asyncio.gather(stopping, failing, ready, return_exceptions=True)
        view.say("stopping")
    return Exit.CLEAN


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 65536:  # noqa: PLR2004 - ports have 16 bits
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")


def _positive(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")


def _redis(text: str) -> str:
    from extproc.adapters.redis_limits import endpoint  # noqa: PLC0415 - only where Redis is given
    from extproc.errors import ConfigError  # noqa: PLC0415

    url = text if "://" in text else f"redis://{text}"
    try:
        endpoint(url)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no Redis ({error.message}): give HOST:PORT or redis://..., and DIR before --redis"
        ) from error
    return url


def _url(text: str) -> str:
    from urllib.parse import urlsplit  # noqa: PLC0415 - only where an engine is given

    url = urlsplit(text if "://" in text else f"http://{text}")
    if url.scheme != "http" or not url.hostname or url.path not in ("", "/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an engine's address, such as http://127.0.0.1:8000")
    return f"http://{url.netloc}"
