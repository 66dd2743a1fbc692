"""Ending tasks, and waiting for a while."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any


async def end(tasks: "Sequence[asyncio.Task[Any]]") -> None:
    """Cancel *tasks*, and wait until they are over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def within(seconds: float, event: asyncio.Event) -> None:
    """Wait for *event*, for at most so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
