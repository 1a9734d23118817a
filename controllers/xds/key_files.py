"""Keys of issuers that are in files: put into what Envoy is told, and again whenever they change.

Envoy reads such a file once. So what a file says is told inline, as far as it is on this machine, too; of a file that is
not, Envoy is told the name. A file that is gone, or holds no key set (it may be half written), leaves the last good one in
force.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from controllers import ir

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
_MOST_BYTES: Final = 1 << 20


class KeyFiles:
    """What the files say that the last access named."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        """`on_change` is called when a file says something else."""
        self._on_change = on_change
        self._texts: dict[str, str] = {}  # "": nothing usable yet

    def put_in(self, access: ir.Access | None) -> ir.Access | None:
        """Return the access with the files' keys in place of their names."""
        issuers = access.issuers if access is not None else ()
        self._texts = {
            one.jwks.file: self._texts.get(one.jwks.file) or _read(one.jwks.file) for one in issuers if one.jwks.file
        }
        if access is None or not any(self._texts.values()):
            return access
        return replace(
            access,
            issuers=tuple(
                replace(one, jwks=replace(one.jwks, inline=text, file=""))
                if (text := self._texts.get(one.jwks.file, ""))
                else one
                for one in issuers
            ),
        )

    async def follow(self) -> None:
        """Look at the files again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for file in tuple(self._texts):
                text = await asyncio.to_thread(_read, file)
                known = self._texts.get(file)
                if text and known is not None and text != known:
                    log.info("new keys in %s", file)
                    self._texts[file] = text
                    self._on_change()


def _read(file: str) -> str:
    """Return the key set in a file; "" if there is none."""
    try:
        with Path(file).open("rb") as opened:
            text = opened.read(_MOST_BYTES).decode()
        found = json.loads(text)
    except (OSError, ValueError):
        return ""
    return text if isinstance(found, dict) and isinstance(found.get("keys"), list) and found["keys"] else ""
