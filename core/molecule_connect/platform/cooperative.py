"""Work of unknown length in steps, so that one large answer doesn't hold up everything else on the event loop."""

import asyncio
from collections.abc import Generator
from typing import TypeVar

# Seconds of work after which other tasks get a turn. A turn costs about 20 microseconds.
SLICE = 0.002
T = TypeVar("T")
Steps = Generator[None, None, T]


def finish(steps: Steps[T]) -> T:
    """The result of *steps*, without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


async def in_slices(steps: Steps[T], *, length: float = SLICE) -> T:
    """The result of *steps*; other tasks run after every *length* seconds."""
    loop = asyncio.get_running_loop()
    until = loop.time() + length
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if loop.time() >= until:
            await asyncio.sleep(0)
            until = loop.time() + length
