"""The JSON values that tools return and pushes contain. Text from others is sanitized."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from molecule_connect import DataPart, FilePart, InboxMessage, Part, TextPart
from molecule_connect_mcp import sanitize
from molecule_connect_mcp.peers import UNKNOWN_PEER, Peer

NO_TEXT = "(a message without text)"
QUEUED = "the peer has it; its answer arrives in the inbox as a message from this peer: use wait_for_message"
QUEUED_ELSEWHERE = "the peer has it; its answer goes to the program that reads this workspace's messages"
_NO_TASK_ID = (
    "the platform accepted the task but returned no task_id: check_task_status without one lists the newest tasks"
)
NO_TASK_ID = f"{_NO_TASK_ID}, and the result also arrives in the inbox, if the platform sends it"
NO_TASK_ID_ELSEWHERE = f"{_NO_TASK_ID}; the result, if any, goes to the program that reads this workspace's messages"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class HistoryRow(Protocol):
    """The fields of a feed row that ``history_json`` reads."""

    @property
    def row_id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def time(self) -> int | None: ...
    @property
    def caller_id(self) -> str | None: ...
    @property
    def parts(self) -> tuple[Part, ...]: ...


def message_json(message: InboxMessage, peer: Peer = UNKNOWN_PEER, *, several: bool = False) -> dict[str, Any]:
    """An inbox message. With *several* workspaces, it says which one received it."""
    fields: dict[str, Any] = {
        "activity_id": message.activity_id,
        "text": _text_or_placeholder(message),
        "peer_id": sanitize.identifier(message.caller_id),
        "kind": _kind(message),
        "method": sanitize.name(message.method),
        "created_at": _timestamp(message.created_at),
    }
    if several:
        fields["arrival_workspace_id"] = message.workspace_id
    if message.caller_id is not None:
        fields |= {"peer_name": peer.name, "peer_role": peer.role, "agent_card_url": peer.card_url}
    if message.kind != "message" and message.question:
        fields["in_answer_to"] = sanitize.text(message.question)
    if message.delegation_id:
        fields["delegation_id"] = sanitize.name(message.delegation_id)
    if files := [_attachment(part) for part in message.parts if isinstance(part, FilePart)]:
        fields["attachments"] = files
    if data := [part.data for part in message.parts if isinstance(part, DataPart)]:
        fields["data"] = sanitize.data(data)
    return fields


def push_params(message: InboxMessage, peer: Peer = UNKNOWN_PEER, *, several: bool = False) -> dict[str, Any]:
    """The parameters of a channel notification. The host turns ``meta`` into attributes of a tag: one line each."""
    meta = {
        "source": "molecule",
        "kind": _kind(message),
        "peer_id": sanitize.identifier(message.caller_id),
        "method": sanitize.name(message.method),
        "activity_id": sanitize.name(message.activity_id, max_length=sanitize.MAX_ID_LENGTH),
        "ts": _timestamp(message.created_at),
        "arrival_workspace_id": message.workspace_id if several else "",
        "peer_name": peer.name,
        "peer_role": peer.role,
    }
    if message.kind != "message" and message.question:
        meta["in_answer_to"] = sanitize.name(message.question)
    files = [_file_line(part) for part in message.parts if isinstance(part, FilePart)]
    return {"content": "\n".join([_text_or_placeholder(message), *files]), "meta": meta}


def history_json(row: HistoryRow, local: InboxMessage | None = None) -> dict[str, Any]:
    """An earlier message; ``from`` is "me", "person", "peer" or "delegation_result".

    Args:
        local: The same message in the journal, which knows the paths of its files.
    """
    text = sanitize.text("".join(part.text for part in row.parts if isinstance(part, TextPart))).strip()
    files = [_attachment(part) for part in (local or row).parts if isinstance(part, FilePart)]
    sender = "me" if row.kind in ("echo", "own") else "person" if row.caller_id is None else "peer"
    fields: dict[str, Any] = {
        "activity_id": row.row_id,
        "from": "delegation_result" if row.kind == "result" else sender,
        "text": text or NO_TEXT,
        "created_at": _timestamp(row.time),
    }
    return fields | ({"attachments": files} if files else {})


def answer_json(answer: Any, *, queued: str = QUEUED) -> dict[str, Any]:
    """The platform's response to a question: the peer's answer, or the note *queued*."""
    # An empty response, and a 502 that confirms the delivery, mean only that the peer has the question.
    if answer is None or is_queued(answer):
        return {"status": "queued", "note": queued}
    fields = answer if isinstance(answer, dict) else {}
    if "error" in fields:
        return {"status": "failed", "error": sanitize.data(fields["error"])}
    result = fields.get("result", answer)
    text = _result_text(result)
    if text:
        return {"status": "completed", "text": sanitize.text(text)}
    return {"status": "completed", "result": sanitize.data(result)}


def task_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """A delegation, from a row of the platform's list."""
    fields = {
        "task_id": sanitize.name(row.get("delegation_id") or row.get("id")),
        "peer_id": sanitize.identifier(row.get("target_id")),
        "status": sanitize.name(row.get("status")),
        "created_at": sanitize.name(row.get("created_at")),
    }
    if summary := row.get("summary"):
        fields["summary"] = sanitize.name(summary, max_length=300)
    if error := row.get("error"):
        fields["error"] = sanitize.text(str(error))
    preview = row.get("response_preview")
    if isinstance(preview, str) and preview:
        if is_queued(_parse_json(preview)):
            # The platform calls a delegation completed as soon as the peer's own inbox has it (2.18).
            fields |= {"status": "queued", "note": QUEUED}
        else:
            fields["result"] = sanitize.text(preview)
    return fields


def is_queued(answer: Any) -> bool:
    """Whether *answer* only confirms that the peer has or will get the question."""
    fields = answer if isinstance(answer, dict) else {}
    return fields.get("status") == "queued" or fields.get("queued") is True or fields.get("delivery_confirmed") is True


def _kind(message: InboxMessage) -> str:
    if message.kind == "result":
        return "delegation_result"
    return "canvas_user" if message.caller_id is None else "peer_agent"


def _text_or_placeholder(message: InboxMessage) -> str:
    text = sanitize.text(message.text).strip()
    if text:
        return text
    count = sum(isinstance(part, FilePart) for part in message.parts)
    return f"({count} file{'s' if count > 1 else ''}, no text)" if count else NO_TEXT


def _timestamp(microseconds: int | None) -> str:
    """Microseconds since 1970 as ``2026-05-01T10:00:00.123456Z``; empty if unknown or out of range."""
    if microseconds is None:
        return ""
    try:
        return f"{_EPOCH + timedelta(microseconds=microseconds):%Y-%m-%dT%H:%M:%S.%fZ}"
    except OverflowError:
        return ""


def _attachment(part: FilePart) -> dict[str, Any]:
    """A file of a message, with its local ``path``, or the reason why it is ``unavailable``."""
    fields: dict[str, Any] = {"name": sanitize.name(part.name), "mime_type": sanitize.name(part.mime_type)}
    if part.size is not None:
        fields["size"] = part.size
    # ``address`` excludes local URIs: a sender can write file:///etc/passwd, and a model could try to open it.
    if part.address:
        fields["uri"] = sanitize.name(part.address, max_length=2000)
    if part.path is not None and Path(part.path).is_file():
        fields["path"] = str(part.path)
    else:
        fields["unavailable"] = sanitize.name(part.unavailable, max_length=300) or "it is not on this machine"
    return fields


def _file_line(part: FilePart) -> str:
    file = _attachment(part)
    return f"- file {file['name'] or 'without a name'}: {file.get('path') or file['unavailable']}"


def _result_text(result: Any) -> str:
    """The text of an A2A result: of the message, of a task's status, or of its artifacts."""
    if isinstance(result, str):
        return result
    if not isinstance(result, dict):
        return ""
    status = result.get("status")
    candidates = [result, result.get("message"), status.get("message") if isinstance(status, dict) else None]
    artifacts = result.get("artifacts")
    candidates += artifacts if isinstance(artifacts, list) else []
    for candidate in candidates:
        parts = candidate.get("parts") if isinstance(candidate, dict) else None
        texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        if found := "".join(text for text in texts if isinstance(text, str)):
            return found
    return ""


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
