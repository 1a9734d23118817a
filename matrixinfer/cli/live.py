"""The live view: a screen at the lower end of the terminal, drawn once a second, and all lines readable above it.

Lines are the plain view's own. The screen begins when requests are served and goes when the stack stops: until then
and from then on there are lines only. It is drawn on standard error; standard output gets no more than its `ready` line.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.live import Live
from rich.segment import Segment, Segments

from matrixinfer.cli.view.screen import screen
from matrixinfer.cli.view.watch import watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from matrixinfer.cli.plain import PlainView
    from matrixinfer.cli.view.snapshot import Snapshot
    from matrixinfer.local.stack import Stack

EVERY_S: Final = 1.0
_LINES_ABOVE: Final = 4  # at least, for what is logged
_TALLEST: Final = 0.75  # of the terminal


class LiveView:
    """Draws, and lets the plain view tell the rest."""

    def __init__(self, plain: PlainView) -> None:
        self._plain = plain
        self._serving = asyncio.Event()

    def say(self, text: str) -> None:
        """Tell the user."""
        self._plain.say(text)

    def serving(self, url: str) -> None:
        """Tell that requests are served from now on."""
        self._plain.serving(url)
        self._serving.set()

    @asynccontextmanager
    async def watching(self, stack: Stack) -> AsyncIterator[None]:
        """Tell what happens in the stack until the body ends."""
        async with self._plain.watching(stack):
            drawing = asyncio.create_task(self._draw(stack))
            try:
                yield
            finally:
                drawing.cancel()
                await asyncio.gather(drawing, return_exceptions=True)

    async def _draw(self, stack: Stack) -> None:
        await self._serving.wait()
        console = Console(stderr=True, highlight=False)
        with (
            Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live,
            _logs_to_standard_error(),
        ):
            await watch(stack, lambda shown: live.update(drawn(console, shown), refresh=True), every_s=EVERY_S)


def drawn(console: Console, shown: Snapshot) -> Segments:
    """Return the screen as it is to be put out: worked out once, since every line above it puts it out again."""
    width = console.width
    tall = max(min(int(console.height * _TALLEST), console.height - _LINES_ABOVE), 1)
    rule = Segment("─" * width, console.get_style("bright_black"))
    lines = console.render_lines(screen(shown, width=width, height=tall - 1), pad=False)[: tall - 1]
    parts = [rule]
    for line in lines:
        parts += [Segment.line(), *line]
    return Segments(parts)


@contextmanager
def _logs_to_standard_error() -> Iterator[None]:
    """Let log lines go where standard error goes now: above the screen, while there is one."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.StreamHandler)]
    before = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)
