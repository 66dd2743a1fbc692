"""Lines of standard input, as they come, without a thread that could not be stopped."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import IO

CHUNK = 65536


async def read_lines(stream: IO[str]) -> AsyncIterator[str]:
    """Each line of *stream* without its end, until there are no more."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        for given in stream:
            yield given.rstrip("\r\n")
        return
    waiting = b""
    async for chunk in _chunks(descriptor):
        *whole, waiting = (waiting + chunk).split(b"\n")
        for line in whole:
            yield _text(line)
    if waiting:
        yield _text(waiting)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")


async def _chunks(descriptor: int) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(descriptor, readable.set)
    except PermissionError:
        # A plain file, or /dev/null, is always readable and cannot be waited for.
        while chunk := os.read(descriptor, CHUNK):
            yield chunk
        return
    try:
        while True:
            await readable.wait()
            readable.clear()
            chunk = os.read(descriptor, CHUNK)
            if not chunk:
                return
            yield chunk
    finally:
        loop.remove_reader(descriptor)
