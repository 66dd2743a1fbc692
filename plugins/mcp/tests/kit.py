"""An inbox in memory, and a host that speaks the protocol over pipes."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

from molecule_connect import (
    ConfigError,
    Inbox,
    InboxMessage,
    MoleculeError,
    Part,
    ReplyResult,
    Response,
    TextPart,
    WorkspaceSettings,
)
from molecule_connect_mcp.serving import serve
from molecule_connect_mcp.settings import ServerSettings
from molecule_connect_mcp.stdio import Descriptors

MODERN = "2026-07-28"
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def message(activity_id: str = "a1", *parts: Part | str, **fields: Any) -> InboxMessage:
    """A message; by default "hi" from a person."""
    made = tuple(TextPart(part) if isinstance(part, str) else part for part in (parts or ("hi",)))
    whole: dict[str, Any] = {
        "workspace_id": "ws-1",
        "kind": "message",
        "caller_id": None,
        "context_id": None,
        "task_id": None,
        "message_id": f"m-{activity_id}",
        "method": "message/send",
        "raw": "{}",
        "created_at": 1_790_000_000_123_456,
        "delegation_id": None,
    }
    return InboxMessage(activity_id=activity_id, parts=made, **{**whole, **fields})


class FakeAddress:
    def url(self, path: str) -> str:
        return f"https://p.example{path}"


class FakeClient:
    """Answers requests by their name. An answer that is an exception is raised."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self._answers = answers
        self.address = FakeAddress()
        self.called: list[Any] = []

    async def call(self, operation: Any) -> Any:
        self.called.append(operation)
        answer = self._answers.get(operation.name, [])
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            return []
        if isinstance(answer, BaseException):
            raise answer
        return answer


class FakeInbox:
    """An inbox in memory."""

    def __init__(self, *messages: InboxMessage, workspace_ids: Sequence[str] = ("ws-1",), **answers: Any) -> None:
        self.workspace_ids = tuple(workspace_ids)
        self.ended: dict[str, MoleculeError] = {}
        self.replies: list[tuple[str, Response]] = []
        self.notifications: list[tuple[str, str, tuple[Path, ...]]] = []
        self.asked: list[tuple[str, str, str]] = []
        self.holds: list[float] = []
        self.outcome = ReplyResult("delivered")
        self.answer: Any = {"status": "queued"}
        self.problem = ""
        self.delegation = "d-1"
        self.fake_client = FakeClient(answers)
        self._messages = list(messages)
        self._news = asyncio.Event()

    def arrive(self, message: InboxMessage) -> None:
        self._messages.append(message)
        self._news.set()

    async def wait(self, seconds: float, *, hold: float = 300.0) -> InboxMessage | None:
        self.holds.append(hold)
        if not self._messages and seconds:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._news.wait()
        return self._messages[0] if self._messages else None

    def peek(self, limit: int = 10) -> list[InboxMessage]:
        return self._messages[:limit]

    def get(self, activity_id: str, *, workspace_id: str | None = None) -> InboxMessage | None:
        return next((one for one in self._messages if one.activity_id == activity_id), None)

    async def pop(self, activity_id: str, *, workspace_id: str | None = None) -> bool:
        found = [one for one in self._messages if one.activity_id == activity_id]
        self._messages = [one for one in self._messages if one.activity_id != activity_id]
        return bool(found)

    async def reply(
        self, activity_id: str, response: Response, *, workspace_id: str | None = None, patience: float = 10.0
    ) -> ReplyResult:
        if not any(one.activity_id == activity_id for one in self._messages):
            raise ConfigError(f"there is no message {activity_id!r}", hint="peek shows what waits")
        self.replies.append((activity_id, response))
        return self.outcome

    async def arrivals(self) -> AsyncIterator[InboxMessage]:
        yielded = 0
        while True:
            while yielded < len(self._messages):
                yielded += 1
                yield self._messages[yielded - 1]
            self._news.clear()
            await self._news.wait()

    def client(self, workspace_id: str) -> FakeClient:
        if workspace_id not in self.workspace_ids:
            raise ConfigError(f"workspace {workspace_id!r} is not served here")
        return self.fake_client

    async def tell_user(self, workspace_id: str, text: str, files: Sequence[Path] = ()) -> None:
        self.notifications.append((workspace_id, text, tuple(files)))

    async def ask(self, workspace_id: str, peer_id: str, text: str, *, timeout: float) -> Any:
        self.asked.append((workspace_id, peer_id, text))
        return self.answer

    async def delegate(self, workspace_id: str, peer_id: str, task: str) -> str:
        self.asked.append((workspace_id, peer_id, task))
        return self.delegation

    def trouble(self, workspace_id: str) -> str:
        return self.problem


def as_inbox(inbox: FakeInbox) -> Inbox:
    return cast("Inbox", inbox)


class Host:
    """An MCP host. It offers ``roots``, a list of URIs, unless that is None."""

    def __init__(self, writing: int, reading: asyncio.StreamReader) -> None:
        self._writing, self._reading = writing, reading
        self.notes: list[dict[str, Any]] = []
        self.roots: list[str] | None = None
        self.asked_for_roots = 0
        self._replies: dict[Any, dict[str, Any]] = {}

    def write(self, *messages: dict[str, Any]) -> None:
        for one in messages:
            os.write(self._writing, json.dumps({"jsonrpc": "2.0", **one}).encode() + b"\n")

    def write_raw(self, content: bytes) -> None:
        os.write(self._writing, content)

    def close(self) -> None:
        """Close the input of the server, as a host does when it exits."""
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1

    async def read(self) -> dict[str, Any]:
        """Return the next line."""
        async with asyncio.timeout(10):
            line = await self._reading.readline()
        assert line, "the server closed its side"
        found: dict[str, Any] = json.loads(line)
        return found

    async def answer(self, request_id: Any) -> dict[str, Any]:
        """Return the response to a request. Notifications before it are added to ``notes``."""
        while request_id not in self._replies:
            line = await self.read()
            if line.get("method") == "roots/list":
                self.asked_for_roots += 1
                self.write({"id": line["id"], "result": {"roots": [{"uri": uri} for uri in self.roots or ()]}})
            elif "id" in line:
                self._replies[line["id"]] = line
            else:
                self.notes.append(line)
        return self._replies.pop(request_id)

    async def note(self) -> dict[str, Any]:
        """Return the next notification."""
        while not self.notes:
            line = await self.read()
            if "id" in line:
                self._replies[line["id"]] = line
            else:
                self.notes.append(line)
        return self.notes.pop(0)

    async def begin(self, name: str = "test") -> dict[str, Any]:
        """Perform the handshake of the older era, and return the server's result."""
        capabilities = {} if self.roots is None else {"roots": {"listChanged": True}}
        client = {"name": name, "version": "1.2.3"}
        about = {"protocolVersion": "2025-11-25", "capabilities": capabilities, "clientInfo": client}
        self.write({"id": "init", "method": "initialize", "params": about})
        result: dict[str, Any] = (await self.answer("init"))["result"]
        self.write({"method": "notifications/initialized"})
        return result

    async def call(self, name: str, **arguments: Any) -> Any:
        """Call a tool. Returns its result as JSON, or its error as text."""
        self.write({"id": "call", "method": "tools/call", "params": {"name": name, "arguments": arguments}})
        result = (await self.answer("call"))["result"]
        text = result["content"][0]["text"]
        return text if result.get("isError") else json.loads(text)


class Serving:
    """A server in this process, over pipes, with a fake inbox that opens once *may_open* is set."""

    def __init__(
        self, inbox: FakeInbox, settings: ServerSettings | None = None, *, may_open: asyncio.Event | None = None
    ) -> None:
        self.inbox, self._may_open = inbox, may_open
        self.opened: list[dict[str, Any]] = []
        self._settings = settings or ServerSettings()

    @contextlib.asynccontextmanager
    async def _open(self, workspaces: Sequence[WorkspaceSettings], **options: Any) -> AsyncIterator[Inbox]:
        if self._may_open is not None:
            await self._may_open.wait()
        self.opened.append(options)
        yield as_inbox(self.inbox)

    async def __aenter__(self) -> Self:
        to_server, from_host = os.pipe()
        to_host, from_server = os.pipe()
        self._server_ends = (to_server, from_server)
        reading = asyncio.StreamReader(limit=1 << 24)
        pipe = os.fdopen(to_host, "rb", buffering=0)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reading), pipe
        )
        self.host = Host(from_host, reading)
        workspaces = [WorkspaceSettings(workspace_id=one, token="t") for one in self.inbox.workspace_ids]
        descriptors = Descriptors(to_server, from_server)
        self.task = asyncio.create_task(serve(workspaces, self._settings, descriptors, opener=self._open))
        return self

    async def stop_reading(self) -> None:
        """Close the reading end of the host."""
        self._transport.close()
        await asyncio.sleep(0)

    async def __aexit__(self, *_: object) -> None:
        self.host.close()
        try:
            async with asyncio.timeout(10):
                await asyncio.gather(self.task, return_exceptions=True)
        finally:
            self._transport.close()
            for descriptor in self._server_ends:
                os.close(descriptor)
