"""``connect(...)`` in code, against the barest platform that the field has."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

from molecule_connect import (
    AsyncPlatformClient,
    AuthError,
    ConfigError,
    PermanentPlatformError,
    Progress,
    Request,
    Response,
    TransientPlatformError,
    WorkspaceSettings,
    connect,
    hookimpl,
)
from molecule_connect.platform import endpoints

from .kit import BarestPlatform


@attrs.frozen(eq=False)
class Pong:
    """Answers ``pong: <text>``, once it may."""

    seen: list[Request] = attrs.field(factory=list)
    entered: asyncio.Event = attrs.field(factory=asyncio.Event)
    release: asyncio.Event = attrs.field(factory=asyncio.Event)
    waits: bool = False

    @hookimpl
    async def handle_a2a(self, request: Request, progress: Progress) -> Response:
        self.seen.append(request)
        self.entered.set()
        if self.waits:
            await self.release.wait()
        return Response.from_text(f"pong: {request.text}")


@asynccontextmanager
async def connected(platform: BarestPlatform, folder: Path, **given: Any) -> AsyncIterator["asyncio.Task[None]"]:
    """A connection that is cancelled, and has drained, at the end of the block."""
    task = asyncio.ensure_future(serving(platform, folder, **given))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def serving(
    platform: BarestPlatform, folder: Path, transport: httpx.AsyncBaseTransport | None = None, **given: Any
) -> Coroutine[Any, Any, None]:
    fields: dict[str, Any] = {
        "workspace_id": "ws-target",
        "backend": Pong(),
        "token": "tok-12345",
        "api_url": "http://localhost:8080",
        "poll_interval": 0.02,
        "heartbeat_interval": 0.05,
    } | given
    return connect(WorkspaceSettings(**fields), state_dir=folder, transport=transport or httpx.MockTransport(platform))


def cursor(folder: Path) -> str:
    return str(json.loads((folder / "ws-target.json").read_text())["last_since_id"])


async def test_peer_gets_one_reply(tmp_path: Path) -> None:
    platform = BarestPlatform()
    platform.put("ping", row_id="act-1", source="ws-peer")
    async with connected(platform, tmp_path):
        await platform.until(lambda: platform.sent and len(platform.beats) > 2 and platform.reads > 20)
    [(path, body)] = platform.sent
    assert path == "/workspaces/ws-peer/a2a"
    assert body["params"]["message"]["parts"] == [{"kind": "text", "text": "pong: ping"}]
    assert body["params"]["message"]["role"] == "agent"
    assert platform.registers[0]["delivery_mode"] == "poll"
    assert cursor(tmp_path) == "act-1"


async def test_person_gets_no_a2a_reply(tmp_path: Path) -> None:
    platform, pong = BarestPlatform(), Pong()
    platform.put("hello", row_id="act-1", source=None)
    async with connected(platform, tmp_path, backend=pong):
        await platform.until(lambda: platform.paths.count("/workspaces/ws-target/notify") == 2)
        await platform.until(lambda: (tmp_path / "ws-target.json").exists())
    assert [request.text for request in pong.seen] == ["hello"]
    assert pong.seen[0].caller_id is None
    assert pong.seen[0].message_id == "act-1"
    assert platform.sent == []
    assert cursor(tmp_path) == "act-1"


async def test_one_410_and_then_rows(tmp_path: Path) -> None:
    platform = BarestPlatform(activity=[410])
    platform.put("ping", row_id="act-1", source="ws-peer")
    async with connected(platform, tmp_path), asyncio.timeout(1.2):
        await platform.until(lambda: platform.sent)
    assert len(platform.sent) == 1


async def test_refused_register_ends_at_once(tmp_path: Path) -> None:
    platform = BarestPlatform(register=[401] * 9)
    with pytest.raises(AuthError, match="register: 401") as caught:
        await serving(platform, tmp_path)
    assert len(platform.registers) == 1
    assert (caught.value.operation, caught.value.status) == ("register", 401)
    assert "tok-12345" not in str(caught.value)


async def test_register_is_retried(tmp_path: Path) -> None:
    platform = BarestPlatform(register=[503])
    async with connected(platform, tmp_path), asyncio.timeout(4):
        await platform.until(lambda: platform.beats)
    assert len(platform.registers) == 2


async def test_polls_and_heartbeats_keep_their_intervals(tmp_path: Path) -> None:
    platform = BarestPlatform()
    async with connected(platform, tmp_path), asyncio.timeout(5):
        await platform.until(lambda: len(platform.beats) >= 5)
        # 20 ms and 50 ms: more than one read to a beat, and not ten.
        assert len(platform.beats) < platform.reads < 10 * len(platform.beats)


async def test_cancel_lets_the_handler_finish(tmp_path: Path) -> None:
    platform, pong = BarestPlatform(), Pong(waits=True)
    platform.put("ping", row_id="act-1", source="ws-peer")
    task = asyncio.ensure_future(serving(platform, tmp_path, backend=pong))
    await asyncio.wait_for(pong.entered.wait(), 5)
    task.cancel()
    asyncio.get_running_loop().call_later(0.1, pong.release.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [body["params"]["message"]["parts"][0]["text"] for _, body in platform.sent] == ["pong: ping"]
    assert cursor(tmp_path) == "act-1"


@pytest.mark.parametrize("waits", [True, False])
async def test_cancel_settles_message_without_notify(tmp_path: Path, waits: bool) -> None:
    platform, pong = BarestPlatform(), Pong(waits=waits)
    platform.put("hello", row_id="act-1", source=None)
    task = asyncio.ensure_future(serving(platform, tmp_path, backend=pong))
    await asyncio.wait_for(pong.entered.wait(), 5)
    task.cancel()
    asyncio.get_running_loop().call_later(0.1, pong.release.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert platform.sent == []
    assert cursor(tmp_path) == "act-1"


@pytest.mark.parametrize(
    ("missing", "named"),
    [({"backend": None}, "backend"), ({"workspace_id": ""}, "workspace id"), ({"token": None}, "token")],
)
async def test_missing_argument_is_named(tmp_path: Path, missing: dict[str, Any], named: str) -> None:
    platform = BarestPlatform()
    with pytest.raises(ConfigError, match=named):
        await serving(platform, tmp_path, **missing)
    assert platform.paths == []


async def test_errors_name_operation_and_status(tmp_path: Path) -> None:
    async def unreachable(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async def refused(request: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"error": "delivery_mode must be 'push' or 'poll'"})

    with pytest.raises(PermanentPlatformError, match="register: 400 delivery_mode must be"):
        await serving(BarestPlatform(), tmp_path, transport=httpx.MockTransport(refused))
    client = AsyncPlatformClient(
        "http://localhost:8080", workspace_id="ws-1", token="tok-12345", transport=httpx.MockTransport(unreachable)
    )
    async with client:
        with pytest.raises(TransientPlatformError, match="register") as caught:
            await client.call(endpoints.register("ws-1", {"name": "x"}))
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
