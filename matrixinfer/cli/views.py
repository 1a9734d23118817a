"""Which view of a running stack suits the place where it is shown."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol

from matrixinfer.cli.plain import PlainView

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager
    from typing import TextIO

    from matrixinfer.local.stack import Stack


class View(Protocol):
    """What `matrixinfer up` tells."""

    def say(self, text: str) -> None:
        """Tell the user."""
        ...

    def serving(self, url: str) -> None:
        """Tell that requests are served from now on."""
        ...

    def watching(self, stack: Stack) -> AbstractAsyncContextManager[None]:
        """Tell what happens in the stack until the body ends."""
        ...


def choose(log_level: str, *, logs: bool, live: bool) -> View:
    """Return the live view where it is wanted and can be drawn, else the plain one."""
    if not live or not drawable(sys.stderr, os.environ):
        return PlainView(log_level, logs=logs)
    from matrixinfer.cli.live import LiveView  # noqa: PLC0415 - drawing costs time to import

    return LiveView(PlainView(log_level, logs=logs, summaries=False))


def drawable(stream: TextIO, env: Mapping[str, str]) -> bool:
    """Tell whether a live view can be drawn there, and nothing says that it should not."""
    return stream.isatty() and env.get("TERM", "dumb") not in ("dumb", "") and not env.get("NO_COLOR")
