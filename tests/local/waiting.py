"""Awaiting conditions of the world that nobody announces."""

import asyncio
from collections.abc import Awaitable, Callable


async def eventually(holds: Callable[[], object], within_s: float = 30) -> None:
    """Return as soon as `holds()` is true. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - the condition belongs to other processes
            await asyncio.sleep(0.01)


async def eventually_async(holds: Callable[[], Awaitable[object]], within_s: float = 30) -> None:
    """Like `eventually` for a condition that has to be awaited itself."""
    async with asyncio.timeout(within_s):
        while not await holds():  # noqa: ASYNC110 - the condition belongs to other processes
            await asyncio.sleep(0.02)
