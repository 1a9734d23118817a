"""The HTTPS server that API servers ask. What is decided is `review`'s business, what is shown `reconcile`'s.

A new certificate holds for handshakes from then on; connections that stand go on as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson
from aiohttp import web
from cryptography import x509
from prometheus_client import Counter, Gauge

from controllers.webhooks import review

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prometheus_client import CollectorRegistry

    from controllers.webhooks.reconcile import Shown

log = logging.getLogger(__name__)

PATH: Final = "/validate"
_MOST_BYTES: Final = 8 * 1024 * 1024  # the API server takes 3 MiB for an object, and sends the old one with the new
_LARGE_BYTES: Final = 64 * 1024  # longer ones are read beside the event loop, on which Envoy is served, too
_READ_S: Final = 10.0
_HANDSHAKE_S: Final = 10.0


class Webhooks:
    """Answers AdmissionReviews. `show` is what the loop of the certificates publishes to."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._context = _context()
        self._shown: Shown | None = None
        self._reviews = Counter(
            "matrixinfer_admission_reviews",
            "Objects that the API server asked about, by kind and outcome: allowed, warned, refused, or malformed (no review).",
            ("kind", "outcome"),
            registry=registry,
        )
        self._expires = Gauge(
            "matrixinfer_webhook_certificate_expiry_timestamp_seconds",
            "When the certificate that is shown ends; 0 while there is none.",
            registry=registry,
        )

    def show(self, shown: Shown) -> None:
        """Show this certificate from the next handshake on; one that cannot be used is logged, and the last one stays."""
        if shown == self._shown:
            return
        try:
            _load(_context(), shown)  # a context is in pieces after a key that does not fit
            _load(self._context, shown)
            until = x509.load_pem_x509_certificate(shown.certificate).not_valid_after_utc
        except (ssl.SSLError, ValueError) as error:
            log.warning("the webhooks' certificate cannot be used: %s", error)
            return
        self._shown = shown
        self._expires.set(until.timestamp())
        log.info("the webhooks show a certificate that holds until %s", until.isoformat())

    def problem(self) -> str:
        """Say why this replica is not to be asked yet; "" once there was a certificate.

        One that ends without being renewed is for the metric to tell: Envoy asks the same replicas, and needs them more.
        """
        return "" if self._shown is not None else "webhooks: there is no certificate yet"

    @contextlib.asynccontextmanager
    async def serve(self, host: str, port: int) -> AsyncIterator[int]:
        """Answer at this address until the context is left; gives the port, which may be chosen (0)."""
        app = web.Application(client_max_size=_MOST_BYTES)
        app.add_routes([web.post(PATH, self._answer)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
        await runner.setup()
        if runner.server is None:
            raise RuntimeError("the runner of the webhooks was not set up")
        server = await asyncio.get_running_loop().create_server(
            runner.server, host, port, ssl=self._context, ssl_handshake_timeout=_HANDSHAKE_S
        )
        try:
            yield int(server.sockets[0].getsockname()[1])
        finally:
            server.close()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            return self._malformed(415, f"the content type must be application/json, not {request.content_type}")
        try:
            async with asyncio.timeout(_READ_S):
                raw = await request.read()
        except TimeoutError:
            return self._malformed(408, f"the body did not arrive within {_READ_S:g} s")
        except web.HTTPRequestEntityTooLarge:
            return self._malformed(413, f"the body is larger than {_MOST_BYTES} bytes")
        try:
            answered = await asyncio.to_thread(_decide, raw) if len(raw) > _LARGE_BYTES else _decide(raw)
        except orjson.JSONDecodeError as error:
            return self._malformed(400, f"the body is not JSON: {error}")
        except review.NotAReview as error:
            return self._malformed(400, str(error))
        body, kind, outcome = answered
        self._reviews.labels(kind, outcome).inc()
        return web.Response(body=body, content_type="application/json")

    def _malformed(self, status: int, message: str) -> web.Response:
        self._reviews.labels("", "malformed").inc()
        return web.Response(status=status, text=f"{message}\n")


def _decide(raw: bytes) -> tuple[bytes, str, str]:
    asked = orjson.loads(raw)
    answered, outcome = review.answer(asked)
    return orjson.dumps(answered), review.kind_of(asked), outcome


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load(context: ssl.SSLContext, shown: Shown) -> None:
    """Give the context the pair; OpenSSL takes it from files only. Raises ssl.SSLError."""
    with tempfile.TemporaryDirectory() as folder:  # readable by its owner alone
        certificate, key = Path(folder, "tls.crt"), Path(folder, "tls.key")
        certificate.write_bytes(shown.certificate)
        key.write_bytes(shown.key)
        context.load_cert_chain(certificate, key, password="")  # a key with a password is refused, not asked about
