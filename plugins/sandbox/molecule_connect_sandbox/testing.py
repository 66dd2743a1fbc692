"""The sandbox for tests: in process without sockets, or over loopback, with the same helpers.

async with Sandbox.in_process() as sandbox:
    workspace = await sandbox.workspace()
    await sandbox.say(workspace, "hello")
"""

import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import attrs
import httpx

from molecule_connect_sandbox.app import create_app
from molecule_connect_sandbox.forger import DEEP, DEEP_MARK, FORGERIES
from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.server import running_server
from molecule_connect_sandbox.transport import StreamingTransport

__all__ = ["FORGERIES", "Answer", "ForgedRow", "Sandbox", "StreamingTransport", "Workspace"]

ADMIN = "sandbox-admin"
# Longer than the sandbox waits for replies, rows or heartbeats.
TIMEOUT = 90.0
IN_PROCESS_URL = "http://127.0.0.1:8080"


@attrs.frozen
class Workspace:
    """A workspace of the sandbox and its token."""

    id: str
    token: str = attrs.field(repr=False)
    name: str


@attrs.frozen(kw_only=True)
class Answer:
    """A message that a workspace sent. ``to`` is the peer's id, or None for the person in the canvas."""

    to: str | None
    text: str
    message_id: str | None
    message: dict[str, Any]
    row_id: str
    created_at: str


@attrs.frozen(kw_only=True)
class ForgedRow:
    """A row that a hostile peer wrote.

    Attributes:
        kind: One of ``FORGERIES``.
        sender_id: The peer, which is the row's ``source_id``.
        row_id: None if the platform dropped the row because it had the message id already.
    """

    kind: str
    sender_id: str
    row_id: str | None


@attrs.frozen(kw_only=True)
class Sandbox:
    """A running sandbox. ``transport`` is for further clients of an in-process sandbox; None over loopback."""

    url: str
    options: SandboxOptions
    client: httpx.AsyncClient
    transport: StreamingTransport | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def in_process(cls, **options: Any) -> AsyncIterator[Self]:
        """Run a sandbox without sockets. *options* are the fields of ``SandboxOptions``."""
        chosen = SandboxOptions(**{"admin_token": ADMIN, **options})
        app = create_app(chosen)
        transport = StreamingTransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url=IN_PROCESS_URL, timeout=TIMEOUT, trust_env=False) as client,
        ):
            yield cls(url=IN_PROCESS_URL, options=chosen, client=client, transport=transport)

    @classmethod
    @contextlib.asynccontextmanager
    async def over_loopback(cls, **options: Any) -> AsyncIterator[Self]:
        """Run a sandbox over real HTTP in a thread of this process."""
        chosen = SandboxOptions(**{"admin_token": ADMIN, **options})
        with running_server(chosen) as server:
            async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT, trust_env=False) as client:
                yield cls(url=server.url, options=chosen, client=client)

    @classmethod
    @contextlib.contextmanager
    def in_thread(cls, **options: Any) -> Iterator[Self]:
        """Like ``over_loopback``, for synchronous fixtures. Use its helpers from one event loop only."""
        chosen = SandboxOptions(**{"admin_token": ADMIN, **options})
        with running_server(chosen) as server:
            # The client is never closed, so it must not keep connections open.
            no_keepalive = httpx.Limits(max_keepalive_connections=0)
            yield cls(
                url=server.url,
                options=chosen,
                client=httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT, trust_env=False, limits=no_keepalive),
            )

    async def call(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, **headers: str
    ) -> httpx.Response:
        """Send any request. *body* is sent as JSON unless it is bytes; ``X_Workspace_ID=...`` becomes a header."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        content = body if isinstance(body, bytes) else None
        return await self.client.request(
            method, path, content=content, json=None if content is not None else body, headers=sent
        )

    async def admin(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Send a request as the administrator and return its JSON. Raises ``AssertionError`` if it fails."""
        return (await self._admin(method, path, body, **headers)).json()

    async def _admin(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        answered = await self.call(method, path, body, token=self.options.control_token, **headers)
        if not answered.is_success:
            raise AssertionError(f"{method} {path}: {answered.status_code} {answered.text}")
        return answered

    async def workspace(
        self, name: str = "tester", *, parent: Workspace | None = None, registered: bool = False
    ) -> Workspace:
        """Create an external workspace in poll mode. *registered*: it is online, as if a connector served it."""
        body = {"name": name, "tier": 1, "runtime": "external", "external": True, "delivery_mode": "poll"}
        if parent is not None:
            body["parent_id"] = parent.id
        made = await self.admin("POST", "/workspaces", body)
        workspace = Workspace(made["id"], made["connection"]["auth_token"], name)
        if registered:
            about = {"id": workspace.id, "delivery_mode": "poll", "agent_card": {"name": name}}
            await self.call("POST", "/registry/register", about, token=workspace.token)
        return workspace

    async def pair(self) -> tuple[Workspace, Workspace]:
        """Create two workspaces that may write to each other."""
        parent = await self.workspace("parent")
        return parent, await self.workspace("child", parent=parent)

    async def say(self, to: Workspace, text: str, *, sender: Workspace | None = None, **message: Any) -> httpx.Response:
        """Send a text as a person, or as the peer *sender*. *message*: further members, such as ``contextId``."""
        parts = [{"kind": "text", "text": text}]
        filled = {"role": "user", "messageId": str(uuid.uuid4()), "parts": parts, **message}
        return await self.post(to, {"method": "message/send", "params": {"message": filled}}, sender=sender)

    async def post(self, to: Workspace, body: Any, *, sender: Workspace | None = None) -> httpx.Response:
        """Post any body to ``a2a`` as a person, or as the peer *sender*."""
        path = f"/workspaces/{to.id}/a2a"
        if isinstance(body, dict):
            body = {"jsonrpc": "2.0", "id": str(uuid.uuid4()), **body}
        if sender is not None:
            return await self.call("POST", path, body, token=sender.token, X_Workspace_ID=sender.id)
        return await self.call("POST", path, body, token=self.options.admin_token)

    async def answers(self, workspace: Workspace, count: int = 0, *, timeout: float = 30) -> list[Answer]:
        """The messages that *workspace* sent, in order. Waits for *count* of them, at most *timeout* seconds."""
        path = f"/sandbox/workspaces/{workspace.id}/answers?count={count}&timeout={timeout}"
        return [Answer(**fields) for fields in await self.admin("GET", path)]

    async def rows(self, workspace: Workspace, count: int = 0, *, timeout: float = 30) -> list[dict[str, Any]]:
        """All rows of a feed, oldest first, including late ones. Waits for *count* of them.

        The deeply nested list of a forged row, which ``json`` can't parse, is replaced with ``DEEP_MARK``.
        """
        path = f"/sandbox/workspaces/{workspace.id}/rows?count={count}&timeout={timeout}"
        answered = await self._admin("GET", path)
        rows: list[dict[str, Any]] = json.loads(answered.text.replace(DEEP, f'"{DEEP_MARK}"'))
        return rows

    async def beats(self, workspace: Workspace, count: int = 0, *, timeout: float = 30) -> list[dict[str, Any]]:
        """The heartbeats of a workspace, as received. Waits for *count* of them."""
        path = f"/sandbox/workspaces/{workspace.id}/beats?count={count}&timeout={timeout}"
        beats: list[dict[str, Any]] = await self.admin("GET", path)
        return beats

    async def put_plugin(self, name: str, archive: bytes) -> None:
        """Upload any bytes as the archive of a plugin."""
        await self.admin("PUT", f"/sandbox/plugins/{name}", archive)

    async def set_secrets(self, workspace: Workspace, **secrets: str) -> None:
        """Set secrets of a workspace."""
        await self.admin("PUT", f"/sandbox/workspaces/{workspace.id}/secrets", secrets)

    async def add_rows(self, workspace: Workspace, *rows: dict[str, Any]) -> list[str]:
        """Write rows into a feed and return their ids. A body is any JSON value."""
        added = await self.admin("POST", f"/sandbox/workspaces/{workspace.id}/rows", {"rows": list(rows)})
        ids: list[str] = added["ids"]
        return ids

    async def forge(self, workspace: Workspace, *kinds: str, sender: Workspace | None = None) -> tuple[ForgedRow, ...]:
        """Write a forged row of each of *kinds* into a feed, as a hostile peer; by default of all ``FORGERIES``.

        They refer to existing pending uploads, delegations and message ids.

        Args:
            sender: The peer. None: a child of the workspace, which the sandbox creates.
        """
        body = {"kinds": list(kinds), "sender": sender.id if sender else None}
        forged = await self.admin("POST", f"/sandbox/workspaces/{workspace.id}/forge", body)
        return tuple(ForgedRow(sender_id=forged["sender"], **row) for row in forged["rows"])

    async def prune(self, workspace: Workspace, *, keep: int = 0) -> int:
        """Delete all rows but the newest *keep*. Returns the number deleted."""
        pruned = await self.admin("DELETE", f"/sandbox/workspaces/{workspace.id}/rows?keep={keep}")
        return int(pruned["pruned"])

    async def faults(self, *texts: str) -> None:
        """Replace the active faults with these."""
        await self.admin("PUT", "/sandbox/faults", {"faults": list(texts)})

    async def requests(self) -> dict[tuple[str, str], int]:
        """The number of requests by method and path, with ``:id`` for ids."""
        counts: dict[tuple[str, str], int] = {}
        for method, path, _, count in (await self.admin("GET", "/sandbox/requests"))["requests"]:
            counts[method, path] = counts.get((method, path), 0) + count
        return counts

    async def status(self, workspace: Workspace) -> str:
        """The status of a workspace; ``removed`` after it was deleted."""
        answered = await self.call("GET", f"/workspaces/{workspace.id}?include_removed=true")
        return str(answered.json()["status"])

    async def pause(self, workspace: Workspace) -> None:
        """Pause a workspace and its descendants."""
        await self.admin("POST", f"/workspaces/{workspace.id}/pause?cascade=true")

    async def resume(self, workspace: Workspace) -> None:
        """Resume a paused workspace."""
        await self.admin("POST", f"/workspaces/{workspace.id}/resume")

    async def delete(self, workspace: Workspace) -> None:
        """Delete a workspace and its descendants."""
        name = (await self.call("GET", f"/workspaces/{workspace.id}")).json()["name"]
        await self.admin("DELETE", f"/workspaces/{workspace.id}?confirm=true", X_Confirm_Name=name)

    async def rotate(self, workspace: Workspace) -> Workspace:
        """Revoke the tokens of a workspace. Returns it with a new one."""
        made = await self.admin("POST", f"/workspaces/{workspace.id}/external/rotate", {})
        return attrs.evolve(workspace, token=made["connection"]["auth_token"])
