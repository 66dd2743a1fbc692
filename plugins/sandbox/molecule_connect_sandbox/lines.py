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
    try:
        while chunk := await _chunk(descriptor):
            yield chunk
    except PermissionError:
        # A plain file, or /dev/null, is always readable and cannot be waited for.
        while chunk := os.read(descriptor, CHUNK):
            yield chunk


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, CHUNK)
    except OSError:
        return b""  # a terminal that was closed


async def _chunk(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    read: asyncio.Future[bytes] = loop.create_future()

    def ready() -> None:
        # Read here: a moment later somebody may have been told of the same bytes twice, and a read would block.
        loop.remove_reader(descriptor)
        if not read.done():
            read.set_result(_read(descriptor))

    loop.add_reader(descriptor, ready)
    try:
        return await read
    finally:
        loop.remove_reader(descriptor)
