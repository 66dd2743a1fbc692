"""Lines on standard input and output, and redirected prints."""

import asyncio
import os
import subprocess
import sys

import pytest

from molecule_connect_mcp.stdio import LineReader, LineWriter

PRINTING = """
import os, sys
from molecule_connect_mcp.stdio import redirected
with redirected() as ends:
    print("from python", flush=True)
    os.system("echo from a child; cat")
    os.write(ends.writing, b"protocol: " + os.read(ends.reading, 100))
print("afterwards")
"""


async def lines_of(content: bytes) -> list[bytes]:
    reading, writing = os.pipe()
    reader = LineReader(reading)
    writer = asyncio.to_thread(os.write, writing, content)
    await writer
    os.close(writing)
    found = []
    while (line := await reader.next()) is not None:
        found.append(line)
    os.close(reading)
    return found


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\nno end", [b"a", b"no end"]),
        (b"\n\na\r\n", [b"", b"", b"a\r"]),
    ],
)
async def test_lines_are_split(content: bytes, lines: list[bytes]) -> None:
    assert await lines_of(content) == lines


async def test_fast_writing_host_is_throttled() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    reader = LineReader(reading)
    written = stuck = 0
    while stuck < 20:
        try:
            written += os.write(writing, b"\n" * 65536)
            stuck = 0
        except BlockingIOError:
            stuck += 1
        await asyncio.sleep(0.005)
    os.close(writing)
    assert written < 1 << 19
    found = 0
    while await reader.next() is not None:
        found += 1
    os.close(reading)
    assert found == written


async def test_lines_written_in_order_until_pipe_breaks() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing)
    await asyncio.gather(*(writer.write(str(number).encode()) for number in range(100)))
    assert os.read(reading, 1 << 16).split() == [str(number).encode() for number in range(100)]
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        await writer.write(b"anybody?")
    assert writer.broken.is_set()
    with pytest.raises(BrokenPipeError):
        await writer.write(b"anybody?")
    os.close(writing)


def test_prints_go_to_standard_error() -> None:
    done = subprocess.run([sys.executable, "-c", PRINTING], input=b"line\n", capture_output=True, timeout=30)
    assert done.stdout == b"protocol: line\nafterwards\n"
    assert done.stderr == b"from python\nfrom a child\n"
