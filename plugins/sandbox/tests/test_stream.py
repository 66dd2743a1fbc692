"""The event stream, and the transport that lets it be read without a socket."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from molecule_connect_sandbox.event_stream import BUFFER, Broadcaster
from molecule_connect_sandbox.testing import Sandbox, Workspace


class Reader:
    """An open stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.type = response.headers["content-type"]
        self._lines = response.aiter_lines()

    async def line(self) -> str:
        async with asyncio.timeout(5):
            return await anext(self._lines)

    async def event(self) -> tuple[str, Any]:
        """The next event: its type and data."""
        while not (line := await self.line()).startswith("data: "):
            pass
        event = json.loads(line[6:])
        assert isinstance(event["timestamp"], int)
        return event["type"], event["data"]


@contextlib.asynccontextmanager
async def opened(sandbox: Sandbox, workspace: Workspace) -> AsyncIterator[Reader]:
    headers = {"Authorization": f"Bearer {workspace.token}"}
    async with sandbox.client.stream("GET", f"/workspaces/{workspace.id}/events/stream", headers=headers) as response:
        yield Reader(response)


async def test_sends_event_once_message_is_readable(sandbox: Sandbox, newer: bool) -> None:
    parent, child = await sandbox.pair()
    async with opened(sandbox, parent) as stream:
        assert stream.type.startswith("text/event-stream")
        assert await stream.line() == ": ping"
        await sandbox.say(parent, "hi", sender=child)
        for _ in range(2 if newer else 1):
            kind, data = await stream.event()
            assert (kind, data["method"], data["source_id"]) == ("ACTIVITY_LOGGED", "message/send", child.id)
            assert "id" not in data
        assert len(await sandbox.rows(parent)) == 1
        # No further event about it: the next one is the heartbeat's.
        beat = {"workspace_id": parent.id}
        await sandbox.call("POST", "/registry/heartbeat", beat, token=parent.token)
        assert (await stream.event())[0] == "WORKSPACE_HEARTBEAT"


async def test_streams_own_notify_as_agent_message(august: Sandbox) -> None:
    workspace = await august.workspace()
    async with opened(august, workspace) as stream:
        for text in ("one", "two"):
            path = f"/workspaces/{workspace.id}/notify"
            await august.call("POST", path, {"message": text}, token=workspace.token)
        assert [await stream.event() for _ in "12"] == [
            ("AGENT_MESSAGE", {"message": "one"}),
            ("AGENT_MESSAGE", {"message": "two"}),
        ]


async def test_streams_workspace_lifecycle(august: Sandbox) -> None:
    workspace = await august.workspace(registered=True)
    async with opened(august, workspace) as stream:
        await august.pause(workspace)
        await august.resume(workspace)
        beat = {"workspace_id": workspace.id, "current_task": "reading"}
        await august.call("POST", "/registry/heartbeat", beat, token=workspace.token)
        await august.rotate(workspace)
        await august.delete(workspace)
        assert [(await stream.event())[0] for _ in range(7)] == [
            "WORKSPACE_PAUSED",
            "WORKSPACE_PROVISIONING",
            "WORKSPACE_HEARTBEAT",
            "TASK_UPDATED",
            "WORKSPACE_ONLINE",
            "EXTERNAL_CREDENTIALS_ROTATED",
            "WORKSPACE_REMOVED",
        ]


async def test_forgets_closed_streams(august: Sandbox) -> None:
    workspace = await august.workspace()
    path = f"/sandbox/workspaces/{workspace.id}/streams"
    async with opened(august, workspace):
        assert await august.admin("GET", path) == {"open": 1}
    assert await august.admin("GET", path) == {"open": 0}


async def test_stream_requires_workspace_token(august: Sandbox) -> None:
    workspace, other = await august.workspace(), await august.workspace()
    answered = await august.call("GET", f"/workspaces/{workspace.id}/events/stream", token=other.token)
    assert answered.status_code == 401


async def test_drops_events_beyond_buffer() -> None:
    broadcaster = Broadcaster(lambda: 0.0)
    listener = broadcaster.listen("w")
    for number in range(BUFFER + 10):
        broadcaster.publish("w", "TASK_UPDATED", {"n": number})
    assert len(listener.waiting) == BUFFER
    assert b'"n":0' in listener.waiting[0]


async def test_stream_drop_cuts_stream_already_open(august: Sandbox) -> None:
    workspace = await august.workspace()
    async with opened(august, workspace) as stream:
        assert await stream.line() == ": ping"
        await august.faults("stream-drop")
        with pytest.raises(httpx.ReadError):
            await stream.event()


async def test_stalled_stream_stays_open_and_silent(august: Sandbox) -> None:
    workspace = await august.workspace()
    async with opened(august, workspace) as stream:
        await august.faults("stream-stall")
        await august.pause(workspace)
        await august.call("GET", "/health")
        await august.faults()
        await august.resume(workspace)
        assert (await stream.event())[0] == "WORKSPACE_PROVISIONING"


async def test_silent_stream_sends_no_ping(august: Sandbox) -> None:
    workspace = await august.workspace()
    await august.faults("stream-silent")
    async with opened(august, workspace) as stream:
        assert stream.status == 200
        await august.pause(workspace)
        await august.faults("stream-drop")
        with pytest.raises(httpx.ReadError):
            await stream.line()


async def test_application_errors_reach_the_client() -> None:
    from molecule_connect_sandbox.transport import StreamingTransport

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("broken")

    async with httpx.AsyncClient(transport=StreamingTransport(broken)) as client:
        with pytest.raises(RuntimeError, match="broken"):
            await client.get("http://127.0.0.1/")


async def test_slow_response_raises_read_timeout(august: Sandbox) -> None:
    await august.faults("slow-answers=30,path=/health")
    with pytest.raises(httpx.ReadTimeout):
        await august.client.get("/health", timeout=0.01)


async def test_spared_stream_is_not_cut(august: Sandbox) -> None:
    workspace = await august.workspace()
    await august.faults("stream-drop,chance=0")
    async with opened(august, workspace) as stream:
        await august.pause(workspace)
        assert (await stream.event())[0] == "WORKSPACE_PAUSED"


async def test_stalled_stream_raises_read_timeout(august: Sandbox) -> None:
    workspace = await august.workspace()
    path, headers = f"/workspaces/{workspace.id}/events/stream", {"Authorization": f"Bearer {workspace.token}"}
    # The response head must arrive within the timeout.
    async with august.client.stream("GET", path, headers=headers, timeout=1) as response:
        with pytest.raises(httpx.ReadTimeout):
            await anext(line async for line in response.aiter_lines() if line.startswith("data: "))
