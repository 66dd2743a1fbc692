import json
import tracemalloc
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molecule_connect.models import Signal
from molecule_connect.platform.event_stream import read_events, signal_of


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def events(*chunks: bytes) -> list[bytes]:
    return [event async for event in read_events(pieces(*chunks))]


def event(kind: object, **data: object) -> bytes:
    return json.dumps({"type": kind, "timestamp": 1786698753104, "data": data}).encode()


async def test_skips_comments_and_other_fields() -> None:
    stream = b": ping\n\nevent: x\nid: 3\nretry: 1\njunk\n\ndata: a\n\n: again\ndata:b\ndata: c\n\n"

    assert await events(stream) == [b"a", b"b\nc"]


async def test_incomplete_event_is_dropped() -> None:
    assert await events(b"data: whole\n\ndata: ha") == [b"whole"]
    assert await events(b"data: no blank line\n") == []


async def test_line_ends_of_both_kinds_are_understood() -> None:
    assert await events(b"data: a\r", b"\n\r\ndata: b\n\r\n") == [b"a", b"b"]


async def test_large_line_is_one_event() -> None:
    line = b"x" * (1 << 16)

    (found,) = await events(b"data: ", *[line] * 256, b"\n\n")
    assert signal_of(found) is Signal.ROW


@pytest.mark.parametrize("chunk", [b"x" * (1 << 16), (b"data: " + b"x" * 57 + b"\n") * (1 << 10), b"data:\n" * 4200])
async def test_endless_event_uses_little_memory(chunk: bytes) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"data: "
        for _ in range(64):
            yield bytes(bytearray(chunk))  # each is a copy
        sizes.append(tracemalloc.get_traced_memory()[0] - before)
        yield b"\n\ndata: next\n\n"

    sizes: list[int] = []
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        first, second = [event async for event in read_events(endless())]
    finally:
        tracemalloc.stop()
    assert sizes[0] < 1 << 20
    assert (signal_of(first), second) == (Signal.ROW, b"next")


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), min_size=1), max_size=4), st.data())
async def test_events_do_not_depend_on_pieces(texts: list[str], data: st.DataObject) -> None:
    stream = b": ping\n\n" + b"".join(b"data: " + text.encode() + b"\n\n" for text in texts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=6)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert await events(*chunks) == [text.encode() for text in texts]


@pytest.mark.parametrize(
    ("data", "signal"),
    [
        (event("ACTIVITY_LOGGED", activity_type="a2a_receive"), Signal.ROW),
        (event("ACTIVITY_LOGGED"), Signal.ROW),
        (event("ACTIVITY_LOGGED", activity_type=None), Signal.ROW),
        (event("ACTIVITY_LOGGED", activity_type=5), Signal.ROW),
        (event("ACTIVITY_LOGGED", activity_type="task_update"), Signal.OTHER),
        (event("SOMETHING_NEW"), Signal.ROW),
        (event("USER_MESSAGE"), Signal.ROW),
        (event(7), Signal.ROW),
        (event("AGENT_MESSAGE"), Signal.OTHER),
        (event("TASK_UPDATED"), Signal.OTHER),
        (event("DELEGATION_COMPLETE"), Signal.OTHER),
        (event("WORKSPACE_HEARTBEAT"), Signal.BEAT),
        (event("WORKSPACE_PAUSED"), Signal.STATUS),
        (event("WORKSPACE_ONLINE"), Signal.STATUS),
        (event("WORKSPACE_REMOVED"), Signal.STATUS),
        (event("WORKSPACE_DEGRADED"), Signal.OTHER),
        (event("EXTERNAL_CREDENTIALS_ROTATED"), Signal.ROTATED),
        (b"not json", Signal.OTHER),
        (b"[]", Signal.OTHER),
        (event("ACTIVITY_LOGGED", activity_type="a2a_receive", text="x" * 300_000), Signal.ROW),
    ],
)
def test_each_event_means_what_it_can_change(data: bytes, signal: Signal) -> None:
    assert signal_of(data) is signal


@given(st.binary())
def test_no_event_raises(data: bytes) -> None:
    assert signal_of(data) in Signal
