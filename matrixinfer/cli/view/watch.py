"""Looks at a running stack again and again, and hands over what it sees: the one place that asks the pickers.

It asks for as little as will do: decisions only after requests have come or gone, routes only after the cluster has. A picker
that does not answer is asked again; what it said last stays, and the others are not waited for it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import aiohttp

from matrixinfer.cli import pages
from matrixinfer.cli.view import samples
from matrixinfer.cli.view.snapshot import Gateway, Look, Seen, kept, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from matrixinfer.cli.view.snapshot import Snapshot
    from matrixinfer.local import gateways
    from matrixinfer.local.stack import Stack

PATIENCE_S: Final = 2.0
LATE_S: Final = 0.5  # that one picker takes before the others are shown without its news
DECISIONS: Final = 5  # that are shown


async def watch(stack: Stack, show: Callable[[Snapshot], None], *, every_s: float) -> None:
    """Show the stack every `every_s` seconds, for good."""
    started = time.monotonic()
    async with AsyncExitStack() as opened:
        watched = [await opened.enter_async_context(_Watched(one)) for one in stack.gateways]
        while True:
            await asyncio.wait([one.look() for one in watched], timeout=None if len(watched) == 1 else LATE_S)
            now = time.monotonic()
            show(snapshot([one.seen(now) for one in watched], up_s=now - started))
            await asyncio.sleep(every_s)


class _Watched:
    """One gateway, and what its picker has told; an async context manager."""

    def __init__(self, gateway: gateways.Gateway) -> None:
        self._gateway = gateway
        self._picker = aiohttp.ClientSession(gateway.admin_url, timeout=aiohttp.ClientTimeout(total=PATIENCE_S))
        self._looks: list[Look] = []
        self._heard = time.monotonic()
        self._silent = False
        self._looking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ask no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._picker.close()

    def look(self) -> asyncio.Task[None]:
        """Ask the picker, unless it still has to answer."""
        if self._looking is not None and self._looking.done():
            self._looking.result()  # bugs are not for the next look
            self._looking = None
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        return self._looking

    def seen(self, now: float) -> Seen:
        """Return what there is to show."""
        one = self._gateway
        silent_s = now - self._heard if self._silent else None
        return Seen(Gateway(one.number, one.url, one.admin_url, silent_s), self._looks)

    async def _look(self) -> None:
        try:
            look = await _look(self._picker, self._looks[-1] if self._looks else None)
        except (aiohttp.ClientError, TimeoutError, pages.NotAPicker):
            self._silent = True
        else:
            self._heard, self._silent = look.at, False
            self._looks = kept([*self._looks, look], look.at)


async def _look(picker: aiohttp.ClientSession, before: Look | None) -> Look:
    """Ask the picker. Raises ClientError, TimeoutError and NotAPicker."""
    page = samples.samples((await _page(picker, "/metrics")).decode())
    endpoints = pages.read(await _page(picker, "/endpoints"), pages.Endpoints).endpoints
    if before is None or _moved(samples.FEED_CHANGES, before, page):
        routes = pages.read(await _page(picker, "/routes"), pages.Routes)
    else:
        routes = before.routes
    if before is None or _moved(samples.LEDGER, before, page) or _moved(samples.REQUESTS, before, page):
        recent = pages.read(await _page(picker, f"/decisions?limit={DECISIONS}"), pages.Decisions)
        return Look(time.monotonic(), page, endpoints, recent.decisions, recent.refusals, routes)
    now = time.monotonic()
    decisions = [replace(line, s_ago=line.s_ago + now - before.at) for line in before.decisions]
    refusals = [replace(line, s_ago=line.s_ago + now - before.at) for line in before.refusals]
    return Look(now, page, endpoints, decisions, refusals, routes)


def _moved(name: str, before: Look, page: samples.Samples) -> bool:
    return before.samples.of(name) != page.of(name)


async def _page(picker: aiohttp.ClientSession, path: str) -> bytes:
    async with picker.get(path, raise_for_status=True) as answer:
        return await answer.read()
