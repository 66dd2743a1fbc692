"""The implementation of the tools. Each takes its arguments and returns a JSON value, or raises a readable error."""

import asyncio
import json
import logging
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from molecule_connect import (
    ArgumentError,
    ConfigError,
    FilePart,
    Inbox,
    InboxMessage,
    MoleculeError,
    Outcome,
    Part,
    Response,
    TextPart,
    TransientPlatformError,
    endpoints,
)
from molecule_connect_mcp import sanitize
from molecule_connect_mcp.arguments import Arguments
from molecule_connect_mcp.catalogue import TOOLS
from molecule_connect_mcp.results import (
    NO_TASK_ID,
    NO_TASK_ID_ELSEWHERE,
    QUEUED,
    QUEUED_ELSEWHERE,
    answer_json,
    history_json,
    message_json,
    task_json,
)
from molecule_connect_mcp.sendable import Copies, SendableFiles
from molecule_connect_mcp.workspaces import Workspaces

MAX_PEEK, MAX_HISTORY, MAX_TASKS = 100, 200, 10
# Seconds to wait for a peer's answer, and for the platform to accept a reply.
ASK_TIMEOUT = 120.0
REPLY_PATIENCE = 10.0
INBOX_OFF = "inbox not enabled: this server was started with MOLECULE_MCP_DISABLE_INBOX; unset it and restart"
MAYBE_SENT = ". It may have arrived all the same, so don't just send it again"
_SENDING = frozenset({"send_message_to_user", "delegate_task", "delegate_task_async"})
_TOOLS = {tool.name: tool for tool in TOOLS}
_log = logging.getLogger(__name__)


class Tools:
    """The tools of one session.

    Args:
        claim_seconds: How long a message that was returned is hidden from other readers.
        files: The rules for files to send.
    """

    def __init__(self, workspaces: Workspaces, *, claim_seconds: float, files: SendableFiles) -> None:
        self._workspaces, self._claim_seconds, self._files = workspaces, claim_seconds, files

    async def call(self, name: str, arguments: Mapping[str, Any], roots: Sequence[Path] = ()) -> tuple[str, bool]:
        """Call a tool. Returns the text of the result, and whether it is an error.

        Args:
            roots: The host's roots, for a tool that sends files.
        """
        tool = _TOOLS.get(name)
        if tool is None:
            return f"there is no tool {sanitize.name(name)!r}; there are {', '.join(_TOOLS)}", True
        if tool.needs_inbox and not self._workspaces.has_inbox:
            return INBOX_OFF, True
        try:
            result = await getattr(self, f"_{name}")(Arguments(arguments, roots))
        except TimeoutError:
            return f"{name} timed out; check whether it had an effect before you try again", True
        except MoleculeError as error:
            return _describe(error) + (MAYBE_SENT if name in _SENDING and _maybe_sent(error) else ""), True
        except Exception as error:  # the host needs a response in any case
            _log.error("%s failed: %s", name, "".join(traceback.format_exception(error)))
            return f"{name} failed because of a bug in the server ({type(error).__name__}); see the server's log", True
        return json.dumps(result, ensure_ascii=False), False

    # The inbox

    async def _wait_for_message(self, arguments: Arguments) -> Any:
        seconds = arguments.seconds("timeout_secs")
        inbox = await self._workspaces.inbox()
        message = await inbox.wait(seconds, hold=self._claim_seconds)
        if message is None:
            return {"timeout": True, "timeout_secs": _integral(seconds)} | _trouble(inbox)
        return self._message_json(message)

    async def _inbox_peek(self, arguments: Arguments) -> Any:
        inbox = await self._workspaces.inbox()
        messages = inbox.peek(arguments.count("limit", 10, MAX_PEEK))
        return {"messages": [self._message_json(one) for one in messages]} | _trouble(inbox)

    async def _inbox_pop(self, arguments: Arguments) -> Any:
        activity_id = arguments.text("activity_id").strip()
        inbox = await self._workspaces.inbox()
        removed = await inbox.pop(activity_id, workspace_id=self._workspaces.find(arguments))
        return {"removed": removed, "activity_id": activity_id}

    async def _reply(self, arguments: Arguments) -> Any:
        activity_id, files = arguments.text("activity_id").strip(), arguments.paths("files")
        text = arguments.optional("text") if files else arguments.text("text")
        inbox = await self._workspaces.inbox()
        workspace_id = self._workspaces.find(arguments)
        copies = await self._copy(files, arguments)
        parts: list[Part] = [TextPart(text)] if text else []
        # The copies stay on disk: another process may send the reply later.
        parts += [FilePart(uri="", name=copy.name, path=copy) for copy in copies.files]
        response = Response(parts=parts)
        try:
            result = await inbox.reply(activity_id, response, workspace_id=workspace_id, patience=REPLY_PATIENCE)
        except ConfigError:  # the reply wasn't stored
            copies.discard()
            raise
        if result.status == "dead":
            raise ArgumentError(
                f"the platform refused this reply: {sanitize.name(result.reason, max_length=500)}",
                hint="it is kept as a dead letter; ask your operator to send it again with 'molecule messages replay'",
            )
        return {"status": result.status, "activity_id": activity_id}

    # People and peers

    async def _send_message_to_user(self, arguments: Arguments) -> Any:
        files = arguments.paths("attachments")
        text = arguments.optional("message") if files else arguments.text("message")
        workspace_id = await self._workspaces.resolve(arguments)
        copies = await self._copy(files, arguments)
        try:
            await self._workspaces.sender().tell_user(workspace_id, text, copies.files)
        finally:
            copies.discard()
        return {"status": "sent", "workspace_id": workspace_id}

    async def _list_peers(self, arguments: Arguments) -> Any:
        workspace_id = await self._workspaces.resolve(arguments)
        client = self._workspaces.client(workspace_id)
        rows = await client.call(endpoints.peers(workspace_id, arguments.optional("query")))
        self._workspaces.peers.update(workspace_id, rows)
        return {"peers": [_peer_json(row) for row in rows if sanitize.identifier(row.get("id"))]}

    async def _delegate_task(self, arguments: Arguments) -> Any:
        peer_id, workspace_id = await self._peer(arguments)
        task = arguments.text("task")
        answer = await self._workspaces.sender().ask(workspace_id, peer_id, task, timeout=ASK_TIMEOUT)
        queued = QUEUED if self._workspaces.has_inbox else QUEUED_ELSEWHERE
        return {"peer_id": peer_id, **answer_json(answer, queued=queued)}

    async def _delegate_task_async(self, arguments: Arguments) -> Any:
        peer_id, workspace_id = await self._peer(arguments)
        task_id = await self._workspaces.sender().delegate(workspace_id, peer_id, arguments.text("task"))
        if task_id:
            return {"task_id": task_id, "peer_id": peer_id, "status": "delegated"}
        note = NO_TASK_ID if self._workspaces.has_inbox else NO_TASK_ID_ELSEWHERE
        return {"peer_id": peer_id, "status": "delegated", "note": note}

    async def _check_task_status(self, arguments: Arguments) -> Any:
        task_id = arguments.optional("task_id")
        workspace_id = await self._workspaces.resolve(arguments)
        rows = await self._workspaces.client(workspace_id).call(endpoints.delegations(workspace_id))
        if not task_id:
            return {"tasks": [task_json(row) for row in rows[:MAX_TASKS]]}
        found = next((row for row in rows if task_id in (row.get("delegation_id"), row.get("id"))), None)
        if found is None:
            raise ArgumentError(
                f"the platform has no task {sanitize.name(task_id)} among its 50 newest",
                hint="check the task_id that delegate_task_async returned, or call check_task_status without task_id",
            )
        return task_json(found)

    async def _get_workspace_info(self, arguments: Arguments) -> Any:
        workspace_id = await self._workspaces.resolve(arguments)
        info = await self._workspaces.client(workspace_id).call(endpoints.workspace(workspace_id))
        result = {
            "workspace_id": workspace_id,
            "name": sanitize.name(info.name),
            "status": info.status.value,
            "agent_card": sanitize.data(info.card),
        }
        if self._workspaces.has_inbox:
            result["inbox"] = (await self._workspaces.inbox()).trouble(workspace_id) or "well"
        if len(self._workspaces.workspace_ids) > 1:
            result["workspaces"] = list(self._workspaces.workspace_ids)
        return result

    async def _chat_history(self, arguments: Arguments) -> Any:
        peer_id = arguments.identifier("peer_id") if arguments.optional("peer_id") else None
        workspace_id = await self._workspaces.resolve(arguments)
        request = endpoints.history(
            workspace_id,
            peer_id=peer_id,
            before=arguments.time("before"),
            limit=arguments.count("limit", 20, MAX_HISTORY),
        )
        newest_first = await self._workspaces.client(workspace_id).call(request)
        rows = list(reversed(newest_first))
        if not self._workspaces.has_inbox:
            return {"messages": [history_json(row) for row in rows]}
        # The journal knows the local paths of the files of recent messages.
        inbox = await self._workspaces.inbox()
        return {"messages": [history_json(row, inbox.get(row.row_id, workspace_id=workspace_id)) for row in rows]}

    # Shared

    async def _copy(self, files: Sequence[str], arguments: Arguments) -> Copies:
        if not files:
            return Copies()
        if not self._workspaces.has_inbox:
            # The program that reads the inbox would take the upload for the person's.
            raise ArgumentError("files cannot be sent: inbox not enabled", hint="send only the text")
        return await asyncio.to_thread(self._files.copy, files, arguments.roots)

    async def _peer(self, arguments: Arguments) -> tuple[str, str]:
        """The peer that a call names, and the workspace that sends to it."""
        peer_id, workspace_id = arguments.identifier("peer_id"), await self._workspaces.resolve(arguments)
        # The platform compares ids without regard to case.
        if peer_id.lower() in {one.lower() for one in self._workspaces.workspace_ids}:
            raise ArgumentError(f"{peer_id} is your own workspace", hint="name a peer from list_peers")
        return peer_id, workspace_id

    def _message_json(self, message: InboxMessage) -> dict[str, Any]:
        peer = self._workspaces.peers.get(message.workspace_id, message.caller_id)
        return message_json(message, peer, several=len(self._workspaces.workspace_ids) > 1)


def _trouble(inbox: Inbox) -> dict[str, Any]:
    """The problems that keep messages from arriving, if any."""
    ids = inbox.workspace_ids
    problems = [f"{one}: {problem}" if len(ids) > 1 else problem for one in ids if (problem := inbox.trouble(one))]
    return {"trouble": "; ".join(problems)} if problems else {}


def _maybe_sent(error: MoleculeError) -> bool:
    """Whether the platform may have processed the failed request."""
    return isinstance(error, TransientPlatformError) and error.outcome is not Outcome.NOT_TAKEN


def _describe(error: MoleculeError) -> str:
    text = sanitize.text(str(error)).strip() or type(error).__name__
    return f"{text}. What to do: {sanitize.text(error.hint)}" if error.hint else text


def _integral(seconds: float) -> float | int:
    return int(seconds) if seconds == int(seconds) else seconds


def _peer_json(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: sanitize.name(row.get(key)) for key in ("id", "name", "role", "status")}
