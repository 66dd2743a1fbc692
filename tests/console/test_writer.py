"""A terminal or pipe that is slow, stopped or gone."""

import io
import os
import threading

from molecule_connect.console.writer import GuardedStream, LineWriter


def left_out(count: int) -> str:
    return f"{count} left out"


def test_lines_come_out_in_order() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream, left_out)

    for number in range(100):
        writer.put(f"line {number}")
    writer.close()

    assert stream.getvalue().splitlines() == [f"line {number}" for number in range(100)]


def test_closed_pipes_raise_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        writer = LineWriter(stream, left_out)
        writer.put("nobody reads this")
        writer.close()


def test_a_closed_stream_raises_nothing() -> None:
    stream = io.StringIO()
    stream.close()

    guarded = GuardedStream(stream)
    guarded.write("lost")
    guarded.flush()

    assert not guarded.isatty()


def test_unread_pipes_block_nothing_and_report_gaps() -> None:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    writer = LineWriter(stream, left_out, max_waiting=10)
    for _ in range(100):
        writer.put("x" * 10_000)
    writer.close(timeout=0.05)

    told = bytearray()
    drained = threading.Event()

    def drain() -> None:
        while chunk := os.read(reading, 1 << 16):
            told.extend(chunk)
        drained.set()

    reader = threading.Thread(target=drain)
    reader.start()
    writer.close()
    stream.close()
    assert drained.wait(5)
    reader.join()
    os.close(reading)
    lines = told.decode().splitlines()
    assert lines[-1].endswith(" left out")
    assert int(lines[-1].split()[0]) + len(lines) - 1 == 100


def test_unencodable_characters_are_spelled_out() -> None:
    raw = io.BytesIO()
    guarded = GuardedStream(io.TextIOWrapper(raw, encoding="ascii"))

    guarded.write("caf\u00e9 \ud800\n")
    guarded.flush()

    assert raw.getvalue() == b"caf\\xe9 \\ud800\n"
