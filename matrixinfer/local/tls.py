"""Certificates for the gateway: read from the user's files, handed to Envoy, and again whenever they change.

Envoy watches the files written here, which are replaced as a whole; the user's may be overwritten, renamed or linked anew.
A pair that does not fit together is reported, and the last good one serves on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

LOOK_EVERY_S: Final = 1.0
TYPE: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

logger = logging.getLogger("matrixinfer.local")


class BadCertificate(Exception):
    """The files cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Files:
    """What the user has given; all PEM."""

    certificate: Path
    key: Path
    client_ca: Path | None = None  # who signs clients' certificates; None: clients are not asked
    client_optional: bool = False  # clients may come without

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file."""
        return tuple(file for file in (self.certificate, self.key, self.client_ca) if file is not None)


class Secrets:
    """The same as Envoy reads them, in a folder of ours."""

    def __init__(self, files: Files, folder: Path) -> None:
        self._files = files
        self.certificate = folder / "tls-certificate.json"
        self.clients = folder / "tls-clients.json"
        self._seen: tuple[bytes, ...] = ()

    def write(self) -> None:
        """Check the files and hand them over, if they are others than last time. Raises BadCertificate."""
        found = _read(self._files)
        if found == self._seen:
            return
        _check(self._files)
        certificate, key = (text.decode() for text in found[:2])
        pair = {"certificate_chain": {"inline_string": certificate}, "private_key": {"inline_string": key}}
        _replace(self.certificate, {"name": "certificate", "tls_certificate": pair})
        if self._files.client_ca is not None:
            trusted = {"trusted_ca": {"inline_string": found[2].decode()}}
            _replace(self.clients, {"name": "clients", "validation_context": trusted})
        self._seen = found

    async def follow(self) -> None:
        """Hand over what changes, until cancelled."""
        said = ""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                self.write()
                said = ""
            except BadCertificate as error:
                if str(error) != said:
                    said = str(error)
                    logger.warning("%s; the gateway goes on with what it had", error)


def _read(files: Files) -> tuple[bytes, ...]:
    try:
        return tuple(file.read_bytes() for file in files.all)
    except OSError as error:
        raise BadCertificate(f"{error.filename}: {error.strerror}") from error


def _check(files: Files) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.certificate, files.key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        raise BadCertificate(
            f"{files.certificate} and {files.key} are no certificate chain and its key without a passphrase, in PEM:"
            f" {error}"
        ) from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            raise BadCertificate(f"{files.client_ca} holds no certificates in PEM: {error}") from error


def _replace(file: Path, secret: dict[str, object]) -> None:
    new = file.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        json.dump({"resources": [{"@type": TYPE, **secret}]}, out)
    new.replace(file)
