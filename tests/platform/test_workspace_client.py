import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
from tests.platform.kit import API, Connect, Script, envelope, row

from molecule_connect.config.tokens import read_token_file
from molecule_connect.errors import CursorExpiredError, PermanentPlatformError, TransientPlatformError
from molecule_connect.models import (
    DataPart,
    Kind,
    Outgoing,
    Presence,
    RowMark,
    Signal,
    TextPart,
    WorkspaceInfo,
    WorkspaceStatus,
)
from molecule_connect.platform.credentials import Credentials
from molecule_connect.worker.ports import Platform


def nothing_known(row_id: str) -> bool:
    return False


def to_person(text: str) -> Outgoing:
    return Outgoing(message_id="m", caller_id=None, context_id=None, in_reply_to="q", parts=(TextPart(text),))


class Closed:
    is_open = False
    reason = "another machine serves it"


async def test_closed_gate_keeps_replies_and_files(connect: Connect) -> None:
    script = Script(httpx.Response(200, json={}))
    platform = connect(script)
    platform.gate = Closed()
    for request in (platform.send(to_person("hi")), platform.acknowledge_file("f")):
        with pytest.raises(TransientPlatformError, match="another machine serves it"):
            await request
    assert script.requests == []
    platform.gate = None
    await platform.acknowledge_file("f")
    assert len(script.requests) == 1


def test_it_is_what_delivery_asks_for(connect: Connect) -> None:
    platform: Platform = connect(Script(httpx.Response(200)))

    assert platform.now() is None


async def test_a_page_is_fetched_and_classified(connect: Connect) -> None:
    rows = [row("b", request_body=envelope({"text": "hi"})), row("a", source_id="ws-1")]
    script = Script(httpx.Response(200, json=rows))
    page = await connect(script).fetch(since_id="z", limit=2, known=nothing_known)

    assert [(item.row_id, item.kind) for item in page.items] == [("b", Kind.MESSAGE), ("a", Kind.OWN)]
    assert (page.count, page.limit, page.size) == (
        2,
        2,
        len(json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()),
    )
    assert dict(script.requests[0].url.params) == {"type": "a2a_receive", "limit": "2", "since_id": "z"}


async def test_earliest_time_is_date_or_newest_row(connect: Connect) -> None:
    old = {"Date": "Thu, 01 Jan 1970 00:00:10 GMT"}
    newest = httpx.Response(200, json=[row(created_at="1970-01-01T00:01:00Z")])
    client = connect(Script(newest, httpx.Response(200, json=[], headers=old)))

    first = await client.fetch(limit=5, known=nothing_known)
    second = await client.fetch(limit=5, known=nothing_known)

    assert (first.earliest, second.earliest) == (None, 60_000_000)
    now = client.now()
    assert now is not None
    assert 60_000_000 <= now < 120_000_000


async def test_trace_is_a_header_of_its_reply_only(connect: Connect) -> None:
    script = Script(httpx.Response(200, json={}), httpx.Response(200, json={}))
    client = connect(script)
    await client.send(attrs.evolve(to_person("hi"), trace="00-1-2-01"))
    await client.send(to_person("hi"))
    assert [request.headers.get("traceparent") for request in script.requests] == ["00-1-2-01", None]


@pytest.mark.parametrize("content", [b'[{"id":"a"},', b'[{"id":"a', b"", b"<html>sign in</html>", b'{"error":"x"}'])
async def test_malformed_page_is_transient(connect: Connect, content: bytes) -> None:
    with pytest.raises(TransientPlatformError):
        await connect(Script(httpx.Response(200, content=content))).fetch(limit=5, known=nothing_known)


async def test_a_large_page_is_read_in_slices(connect: Connect) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def page_of(rows: int) -> httpx.Response:
        parts = [{"kind": "text", "text": "x" * 10}] * 1000
        return httpx.Response(200, json=[{"id": f"{n}", "request_body": {"parts": parts}} for n in range(rows)])

    client = connect(Script(page_of(1), page_of(100)))
    task = asyncio.create_task(other())
    counts = []
    for _ in range(2):
        turns = 0
        await client.fetch(limit=500, known=nothing_known)
        counts.append(turns)
    task.cancel()
    small, large = counts
    assert large > small + 10


class Large(httpx.AsyncByteStream):
    """The beginning of a row, and then more of it than anybody reads."""

    def __init__(self, head: bytes) -> None:
        self._head = head

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._head
        for _ in range(200):
            yield b"x" * 1_000_000


async def test_oversized_row_is_passed_by_its_beginning(connect: Connect) -> None:
    head = b'[{"activity_type":"a2a_receive","created_at":"1970-01-01T00:01:00Z","id":"big","request_body":{"text":"'
    client = connect(lambda request: httpx.Response(200, stream=Large(head)))
    page = await client.fetch(since_id="z", limit=1, known=nothing_known)
    (item,) = page.items
    assert (item.row_id, item.kind, item.time) == ("big", Kind.UNREADABLE, 60_000_000)
    assert "too large" in item.reason
    assert item.raw.startswith('{"activity_type"')
    assert len(item.raw) < 10_000
    assert (page.count, page.marks) == (1, (RowMark("big", 60_000_000),))
    assert (await client.fetch(since_id="z", limit=1, known=lambda row_id: row_id == "big")).items == ()


@pytest.mark.parametrize(
    "head",
    [
        b'[{"id":"a","request_body":{"text":"',
        b'[{"created_at":"1970-01-01T00:01:00Z","id":"bi',
        b"[" + b" " * 70_000,
        b"{",
        b"",
    ],
)
async def test_oversized_row_without_id_is_transient(connect: Connect, head: bytes) -> None:
    client = connect(lambda request: httpx.Response(200, stream=Large(head)))
    with pytest.raises(TransientPlatformError, match="too large"):
        await client.fetch(since_id="z", limit=1, known=nothing_known)


async def test_invalid_utf8_does_not_stop_reading(connect: Connect) -> None:
    script = Script(httpx.Response(200, content=b'\xef\xbb\xbf[{"id":"a","summary":"caf\xe9"}]'))
    page = await connect(script).fetch(limit=5, known=nothing_known)

    assert page.items[0].parts == (TextPart("caf\ufffd"),)


async def test_an_expired_cursor_is_told(connect: Connect) -> None:
    script = Script(httpx.Response(410, json={"error": "since_id cursor not found"}))
    with pytest.raises(CursorExpiredError):
        await connect(script).fetch(since_id="z", limit=5, known=nothing_known)


async def test_fingerprint_matches_the_echo(connect: Connect) -> None:
    script = Script(httpx.Response(200))
    client = connect(script)
    await client.send(to_person("done\0"))
    echo = row(source_id=None, method="notify", response_body={"result": script.last_json["message"]})

    reader = connect(Script(httpx.Response(200, json=[echo])))
    (item,) = (await reader.fetch(limit=5, known=nothing_known)).items
    assert item.fingerprint == client.fingerprint(None, to_person("done\0").parts)


async def test_invalid_data_fails_before_any_request(connect: Connect) -> None:
    script = Script(httpx.Response(200))
    bad = Outgoing(message_id="m", caller_id="p", context_id=None, in_reply_to="q", parts=(DataPart({1, 2}),))
    with pytest.raises(PermanentPlatformError, match="not JSON"):
        await connect(script).send(bad)

    assert script.requests == []


@pytest.mark.parametrize(
    ("response", "info"),
    [
        (httpx.Response(200, json={"status": "online"}), WorkspaceInfo(status=WorkspaceStatus.ACTIVE)),
        (httpx.Response(200, json={"status": "paused"}), WorkspaceInfo(status=WorkspaceStatus.PAUSED)),
        (
            httpx.Response(410, json={"error": "workspace removed", "hint": "make one"}),
            WorkspaceInfo(status=WorkspaceStatus.REMOVED, hint="make one"),
        ),
        (httpx.Response(404), WorkspaceInfo(status=WorkspaceStatus.UNKNOWN)),
        (httpx.Response(401), WorkspaceInfo(status=WorkspaceStatus.UNKNOWN)),
        (httpx.Response(400, json={"error": "invalid workspace ID"}), WorkspaceInfo(status=WorkspaceStatus.UNKNOWN)),
    ],
)
async def test_workspace_info_from_partial_cards(
    connect: Connect, response: httpx.Response, info: WorkspaceInfo
) -> None:
    assert await connect(Script(response)).workspace() == info


@pytest.mark.parametrize("response", [httpx.Response(503), httpx.Response(200, html="<html>")])
async def test_transient_workspace_error_is_raised(connect: Connect, response: httpx.Response) -> None:
    with pytest.raises(TransientPlatformError, match="workspace"):
        await connect(Script(response)).workspace()


async def test_register_500_hints_at_the_id(connect: Connect) -> None:
    script = Script(httpx.Response(500, json={"error": "registration failed"}))

    with pytest.raises(TransientPlatformError, match="registration failed") as caught:
        await connect(script).register({"name": "n"})

    assert "id may be wrong" in caught.value.hint
    assert "molecule doctor ws-1" in caught.value.hint


@pytest.mark.parametrize("answer", [{"status": "registered"}, {"auth_token": ""}, None])
async def test_register_without_token_keeps_the_old(connect: Connect, answer: Any) -> None:
    script = Script(httpx.Response(200, json=answer) if answer else httpx.Response(200))
    client = connect(script)
    await client.register({"name": "n"})
    await client.heartbeat(Presence())

    assert script.requests[0].headers["authorization"] == script.requests[1].headers["authorization"]


async def test_issued_token_is_stored_before_return(connect: Connect, tmp_path: Path) -> None:
    credentials = Credentials("ws-1", origin=API, token="first-token", state_dir=tmp_path)
    script = Script(httpx.Response(200, json={"auth_token": "handed-out-token"}))
    client = connect(script, token=None, credentials=credentials)
    await client.register({"name": "n"})
    await client.heartbeat(Presence())

    assert read_token_file(tmp_path / "ws-1.token") == "handed-out-token"
    assert script.requests[-1].headers["authorization"] == "Bearer handed-out-token"


async def test_issued_token_is_reported_once(connect: Connect, tmp_path: Path) -> None:
    credentials = Credentials("ws-1", origin=API, token="first-token", state_dir=tmp_path)
    script = Script(httpx.Response(200, json={"auth_token": "handed-out-token"}))
    client = connect(script, token=None, credentials=credentials)
    first, second = await client.register({"name": "n"}), await client.register({"name": "n"})

    assert "the platform issued a token" in first
    assert str(tmp_path / "ws-1.token") in first
    assert "handed-out-token" not in first
    assert second == ""


async def test_unstorable_token_is_reported_and_used(connect: Connect, tmp_path: Path) -> None:
    credentials = Credentials("ws-1", origin=API, token="first-token", state_dir=tmp_path / "missing")
    script = Script(httpx.Response(200, json={"auth_token": "handed-out-token"}))
    client = connect(script, token=None, credentials=credentials)
    notice = await client.register({"name": "n"})

    assert notice
    assert "handed-out-token" not in notice


class Stream(httpx.AsyncByteStream):
    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


def event(kind: str) -> bytes:
    return f'data: {{"type":"{kind}","data":{{}}}}\n\n'.encode()


async def test_signals_end_with_the_connection(connect: Connect) -> None:
    chunks = Stream(b": ping\n\n", event("ACTIVITY_LOGGED") + event("WORKSPACE_HEARTBEAT")[:9], event("X")[9:])
    script = Script(lambda request: httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=chunks))
    signals = [signal async for signal in connect(script).signals()]

    assert signals == [Signal.OPENED, Signal.ROW, Signal.ROW]


async def test_abandoned_stream_is_closed(connect: Connect) -> None:
    closed: list[bool] = []

    class Watched(Stream):
        async def aclose(self) -> None:
            closed.append(True)

    script = Script(
        lambda request: httpx.Response(
            200, headers={"Content-Type": "text/event-stream"}, stream=Watched(event("ACTIVITY_LOGGED"))
        )
    )
    async with contextlib.aclosing(connect(script).signals()) as signals:
        async for signal in signals:
            assert signal is Signal.OPENED
            break

    assert closed == [True]


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (httpx.Response(404), PermanentPlatformError),
        (httpx.Response(405, text="no"), PermanentPlatformError),
        (httpx.Response(404, json={"error": "workspace not found"}), PermanentPlatformError),
        (httpx.Response(401, json={"error": "x"}), PermanentPlatformError),
        (httpx.Response(500, json={"error": "x"}), TransientPlatformError),
        (httpx.Response(200, html="<html>"), TransientPlatformError),
        (httpx.Response(204), TransientPlatformError),
    ],
)
async def test_missing_stream_raises(connect: Connect, response: httpx.Response, error: type[Exception]) -> None:
    with pytest.raises(error):
        async for _ in connect(Script(response)).signals():
            pass


async def test_absent_stream_is_retried_hourly(connect: Connect) -> None:
    script = Script(httpx.Response(404))
    client = connect(script)
    for _ in range(3):
        with pytest.raises(PermanentPlatformError):
            async for _ in client.signals():
                pass

    assert len(script.requests) == 1


async def test_stream_opens_with_rotated_token(connect: Connect, tmp_path: Path) -> None:
    credentials = Credentials("ws-1", origin=API, token="first-token", state_dir=tmp_path)
    credentials.keep("second-token")

    def judge(request: httpx.Request) -> httpx.Response:
        if request.headers["authorization"] == "Bearer second-token":
            return httpx.Response(401)
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=Stream())

    client = connect(judge, token=None, credentials=credentials)
    assert [signal async for signal in client.signals()] == [Signal.OPENED]


PEER = "3f2a9c1d-0000-4000-8000-000000000001"


async def test_registry_names_are_by_canonical_id(connect: Connect) -> None:
    listed = [{"id": PEER.upper(), "name": "Ops"}, {"id": "ws-3", "name": None}, {"id": 4, "name": "x"}, "junk", {}]
    script = Script(httpx.Response(200, json=listed), httpx.Response(200, json={"id": "ws-5", "name": "Sales"}))
    client = connect(script)

    assert {peer_id: name for peer_id, name in (await client.peer_names()).items() if peer_id} == {
        PEER: "Ops",
        "ws-3": "",
    }
    assert await client.peer_name("ws-5") == "Sales"
    assert [request.url.path for request in script.requests] == ["/registry/ws-1/peers", "/registry/discover/ws-5"]
