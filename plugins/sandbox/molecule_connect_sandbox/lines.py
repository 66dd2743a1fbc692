"""Lines of standard input as they arrive, without a thread that couldn't be stopped."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import IO

CHUNK = 65536


async def read_lines(stream: IO[str]) -> AsyncIterator[str]:
    """Yield each line of *stream* without its line ending."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        for line in stream:
            yield line.rstrip("\r\n")
        return
    rest = b""
    async for chunk in _chunks(descriptor):
        *complete, rest = (rest + chunk).split(b"\n")
        for raw in complete:
            yield _text(raw)
    if rest:
        yield _text(rest)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")


async def _chunks(descriptor: int) -> AsyncIterator[bytes]:
    try:
        while chunk := await _chunk(descriptor):
            yield chunk
    except PermissionError:
        # Regular files and /dev/null are always readable and can't be polled.
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
        # Read inside the callback: by the time the task resumes, the loop may have called it twice, and a read blocks.
        loop.remove_reader(descriptor)
        if not read.done():
            read.set_result(_read(descriptor))

    loop.add_reader(descriptor, ready)
    try:
        return await read
    finally:
        loop.remove_reader(descriptor)
