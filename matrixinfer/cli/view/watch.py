"""Looks at a running stack again and again, and hands over what it sees: the one place that asks the picker.

It asks for as little as will do: decisions only after requests have come or gone, routes only after the cluster has. A picker
that does not answer is asked again; what it said last stays.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import aiohttp

from matrixinfer.cli import pages
from matrixinfer.cli.view import samples
from matrixinfer.cli.view.snapshot import Look, kept, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from matrixinfer.cli.view.snapshot import Snapshot
    from matrixinfer.local.stack import Stack

PATIENCE_S: Final = 2.0
DECISIONS: Final = 5  # that are shown


async def watch(stack: Stack, show: Callable[[Snapshot], None], *, every_s: float) -> None:
    """Show the stack every `every_s` seconds, for good."""
    started = time.monotonic()
    heard = started
    looks: list[Look] = []
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(stack.admin_url, timeout=timeout) as picker:
        while True:
            silent_s = None
            try:
                look = await _look(picker, looks[-1] if looks else None)
            except (aiohttp.ClientError, TimeoutError, pages.NotAPicker):
                silent_s = time.monotonic() - heard
            else:
                heard = look.at
                looks = kept([*looks, look], look.at)
            up_s = time.monotonic() - started
            show(snapshot(looks, url=stack.url, admin_url=stack.admin_url, up_s=up_s, silent_s=silent_s))
            await asyncio.sleep(every_s)


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
