"""What the tools do. Each takes its arguments and returns a JSON value, or raises what the model should read."""

import asyncio
import functools
import json
import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from molecule_connect import (
    ArgumentError,
    ConfigError,
    FilePart,
    Inbox,
    MoleculeError,
    Outcome,
    Part,
    Response,
    TextPart,
    TransientPlatformError,
    WorkspaceSettings,
    endpoints,
)
from molecule_connect_mcp import harmless
from molecule_connect_mcp.arguments import Arguments
from molecule_connect_mcp.catalogue import TOOLS
from molecule_connect_mcp.desk import Desk
from molecule_connect_mcp.history import history_shape, parse_moment
from molecule_connect_mcp.sendable import Copies, SendableFiles
from molecule_connect_mcp.shapes import harmless_data, message_shape
from molecule_connect_mcp.tasks import ELSEWHERE, LATER, NAMELESS, NAMELESS_ELSEWHERE, answer_shape, task_shape

MOST_PEEKED, MOST_HISTORY = 100, 200
ASK_TIMEOUT = 120.0
REPLY_PATIENCE = 10.0
INBOX_OFF = "inbox not enabled: this server was started with MOLECULE_MCP_DISABLE_INBOX; unset it and start it again"
IN_DOUBT = ". It may have arrived all the same, so do not simply say it again"
_SPEAKS = frozenset({"send_message_to_user", "delegate_task", "delegate_task_async"})
_SPECS = {tool.name: tool for tool in TOOLS}
_log = logging.getLogger(__name__)


class Tools:
    """The tools over one desk.

    Args:
        hold: How long a message that was waited for is kept from other readers, in seconds.
        sendable: Makes the rule for files, once the first is to be sent. None: without roots that were named.
    """

    def __init__(self, desk: Desk, *, hold: float, sendable: Callable[[], SendableFiles] | None = None) -> None:
        self._desk, self._hold = desk, hold
        workspaces = [WorkspaceSettings(workspace_id=one) for one in desk.workspace_ids]
        self._sendable = functools.cache(sendable or functools.partial(SendableFiles.of, workspaces))
        self._functions: dict[str, Callable[[Arguments], Awaitable[Any]]] = {
            name: getattr(self, f"_{name}") for name in _SPECS
        }

    async def call(self, name: str, given: Mapping[str, Any], roots: Sequence[Path] = ()) -> tuple[str, bool]:
        """The text of the result, and whether it tells of an error. Never raises what a model could not read.

        Args:
            roots: The host's roots, for a tool that sends files.
        """
        spec = _SPECS.get(name)
        if spec is None:
            return f"there is no tool {harmless.name(name)!r}; there are {', '.join(_SPECS)}", True
        if spec.needs_inbox and not self._desk.reads:
            return INBOX_OFF, True
        try:
            result = await self._functions[name](Arguments(given, roots))
        except TimeoutError:
            return f"{name} took too long and was given up; look at the state of things before you try again", True
        except MoleculeError as error:
            return _told(error) + (IN_DOUBT if name in _SPEAKS and _in_doubt(error) else ""), True
        except Exception as error:  # the host has to be answered, whatever went wrong
            _log.error("%s failed: %s", name, "".join(traceback.format_exception(error)))
            return f"{name} failed by a fault of the server ({type(error).__name__}); its log says more", True
        return json.dumps(result, ensure_ascii=False), False

    # The inbox

    async def _wait_for_message(self, arguments: Arguments) -> Any:
        seconds = arguments.seconds("timeout_secs")
        inbox = await self._desk.inbox()
        message = await inbox.wait(seconds, hold=self._hold)
        if message is None:
            return {"timeout": True, "timeout_secs": _plain(seconds)} | self._trouble(inbox)
        return self._shape(inbox, message)

    async def _inbox_peek(self, arguments: Arguments) -> Any:
        inbox = await self._desk.inbox()
        messages = inbox.peek(arguments.count("limit", 10, MOST_PEEKED))
        return {"messages": [self._shape(inbox, one) for one in messages]} | self._trouble(inbox)

    async def _inbox_pop(self, arguments: Arguments) -> Any:
        activity_id = arguments.text("activity_id").strip()
        inbox = await self._desk.inbox()
        removed = await inbox.pop(activity_id, workspace_id=await self._desk.named(arguments))
        return {"removed": removed, "activity_id": activity_id}

    async def _reply(self, arguments: Arguments) -> Any:
        activity_id, files = arguments.text("activity_id").strip(), arguments.paths("files")
        text = arguments.optional("text") if files else arguments.text("text")
        inbox = await self._desk.inbox()
        workspace_id = await self._desk.named(arguments)
        copies = await self._copied(files, arguments)
        parts: list[Part] = [TextPart(text)] if text else []
        # They stay: the answer may be sent later, by another process.
        parts += [FilePart(uri="", name=copy.name, path=copy) for copy in copies.files]
        response = Response(parts=parts)
        try:
            told = await inbox.reply(activity_id, response, workspace_id=workspace_id, patience=REPLY_PATIENCE)
        except ConfigError:  # nothing was stored
            copies.discard()
            raise
        if told.startswith("dead"):
            reason = harmless.name(told.partition(":")[2], longest=500)
            raise ArgumentError(
                f"the platform does not take this answer: {reason}",
                hint="it is kept; tell your operator, who can send it again with 'molecule messages replay'",
            )
        return {"status": told, "activity_id": activity_id}

    # The person and the peers

    async def _send_message_to_user(self, arguments: Arguments) -> Any:
        files = arguments.paths("attachments")
        text = arguments.optional("message") if files else arguments.text("message")
        workspace_id = await self._desk.chosen(arguments)
        copies = await self._copied(files, arguments)
        try:
            await self._desk.sender().tell_user(workspace_id, text, copies.files)
        finally:
            copies.discard()
        return {"status": "sent", "workspace_id": workspace_id}

    async def _list_peers(self, arguments: Arguments) -> Any:
        workspace_id = await self._desk.chosen(arguments)
        client = self._desk.client(workspace_id)
        rows = await client.call(endpoints.peers(workspace_id, arguments.optional("query")))
        self._desk.peers.learn(workspace_id, rows)
        return {"peers": [_peer_shape(row) for row in rows if harmless.identifier(row.get("id"))]}

    async def _delegate_task(self, arguments: Arguments) -> Any:
        peer_id, workspace_id = await self._peer(arguments)
        task = arguments.text("task")
        answer = await self._desk.sender().ask(workspace_id, peer_id, task, timeout=ASK_TIMEOUT)
        return {"peer_id": peer_id, **answer_shape(answer, later=LATER if self._desk.reads else ELSEWHERE)}

    async def _delegate_task_async(self, arguments: Arguments) -> Any:
        peer_id, workspace_id = await self._peer(arguments)
        task_id = await self._desk.sender().delegate(workspace_id, peer_id, arguments.text("task"))
        if task_id:
            return {"task_id": task_id, "peer_id": peer_id, "status": "delegated"}
        return {"peer_id": peer_id, "status": "delegated", "note": NAMELESS if self._desk.reads else NAMELESS_ELSEWHERE}

    async def _check_task_status(self, arguments: Arguments) -> Any:
        task_id = arguments.optional("task_id")
        workspace_id = await self._desk.chosen(arguments)
        rows = await self._desk.client(workspace_id).call(endpoints.delegations(workspace_id))
        if not task_id:
            return {"tasks": [task_shape(row) for row in rows[:10]]}
        found = next((row for row in rows if task_id in (row.get("delegation_id"), row.get("id"))), None)
        if found is None:
            raise ArgumentError(
                f"the platform knows no task {harmless.name(task_id)} among its newest fifty",
                hint="compare it with what delegate_task_async returned, or call check_task_status without task_id",
            )
        return task_shape(found)

    async def _get_workspace_info(self, arguments: Arguments) -> Any:
        workspace_id = await self._desk.chosen(arguments)
        info = await self._desk.client(workspace_id).call(endpoints.workspace(workspace_id))
        shape = {
            "workspace_id": workspace_id,
            "name": harmless.name(info.name),
            "status": info.status.value,
            "agent_card": harmless_data(info.card),
        }
        if self._desk.reads:
            shape["inbox"] = (await self._desk.inbox()).trouble(workspace_id) or "well"
        if len(self._desk.workspace_ids) > 1:
            shape["workspaces"] = list(self._desk.workspace_ids)
        return shape

    async def _chat_history(self, arguments: Arguments) -> Any:
        peer_id = arguments.identifier("peer_id") if arguments.optional("peer_id") else None
        workspace_id = await self._desk.chosen(arguments)
        operation = endpoints.history(
            workspace_id,
            peer_id=peer_id,
            before=parse_moment(arguments.optional("before")),
            limit=arguments.count("limit", 20, MOST_HISTORY),
        )
        rows = await self._desk.client(workspace_id).call(operation)
        kept = (await self._desk.inbox()).get if self._desk.reads else None
        # What came lately has its files on this machine, which the platform's rows do not know.
        ours = {row.row_id: kept(row.row_id, workspace_id=workspace_id) if kept else None for row in rows}
        return {"messages": [history_shape(row, ours[row.row_id]) for row in reversed(rows)]}

    # Inside

    async def _copied(self, files: Sequence[str], arguments: Arguments) -> Copies:
        if files and not self._desk.reads:
            # Whoever reads the inbox would take the upload for the person's.
            raise ArgumentError("files cannot be sent: inbox not enabled", hint="send the text alone")
        return await asyncio.to_thread(self._sendable().copy, files, arguments.roots)

    async def _peer(self, arguments: Arguments) -> tuple[str, str]:
        """The peer that is asked, and the workspace of ours that asks."""
        peer_id, workspace_id = arguments.identifier("peer_id"), await self._desk.chosen(arguments)
        # The platform reads an id in capitals as the same one.
        if peer_id.lower() in {one.lower() for one in self._desk.workspace_ids}:
            raise ArgumentError(f"{peer_id} is your own workspace", hint="name a peer: list_peers shows them")
        return peer_id, workspace_id

    def _shape(self, inbox: Inbox, message: Any) -> dict[str, Any]:
        peer = self._desk.peers.of(message.workspace_id, message.caller_id)
        return message_shape(message, peer, several=len(inbox.workspace_ids) > 1)

    def _trouble(self, inbox: Inbox) -> dict[str, Any]:
        """Why nothing may be arriving, where that is so."""
        ids = inbox.workspace_ids
        told = [f"{one}: {why}" if len(ids) > 1 else why for one in ids if (why := inbox.trouble(one))]
        return {"trouble": "; ".join(told)} if told else {}


def _in_doubt(error: MoleculeError) -> bool:
    """Whether the platform may have acted on what failed."""
    return isinstance(error, TransientPlatformError) and error.outcome is not Outcome.NOT_TAKEN


def _told(error: MoleculeError) -> str:
    text = harmless.text(str(error)).strip() or type(error).__name__
    return f"{text}. What to do: {harmless.text(error.hint)}" if error.hint else text


def _plain(seconds: float) -> float | int:
    return int(seconds) if seconds == int(seconds) else seconds


def _peer_shape(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: harmless.name(row.get(key)) for key in ("id", "name", "role", "status")}
