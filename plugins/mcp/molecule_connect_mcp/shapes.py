"""The message as tools and pushes show it. Whatever others wrote goes through ``harmless``."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs

from molecule_connect import DataPart, FilePart, InboxMessage
from molecule_connect_mcp import harmless

NO_TEXT = "(a message without text)"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@attrs.frozen(kw_only=True)
class Peer:
    """What is known of a workspace that writes to us; empty where nothing is."""

    name: str = ""
    role: str = ""
    card_url: str = ""


NOBODY = Peer()


def kind_of(message: InboxMessage) -> str:
    """``canvas_user``, ``peer_agent`` or ``delegation_result``."""
    if message.kind == "result":
        return "delegation_result"
    return "canvas_user" if message.caller_id is None else "peer_agent"


def text_of(message: InboxMessage) -> str:
    """The text of a message, else what stands in for one."""
    text = harmless.text(message.text).strip()
    if text:
        return text
    count = sum(isinstance(part, FilePart) for part in message.parts)
    return f"({count} file{'s' if count > 1 else ''}, no text)" if count else NO_TEXT


def time_of(message: InboxMessage) -> str:
    """When it was written, as the platform spells a time; empty where it did not say."""
    return timestamp(message.created_at)


def timestamp(microseconds: int | None) -> str:
    """*microseconds* since 1970 as ``2026-05-01T10:00:00.123456Z``."""
    if microseconds is None:
        return ""
    try:
        return f"{_EPOCH + timedelta(microseconds=microseconds):%Y-%m-%dT%H:%M:%S.%fZ}"
    except OverflowError:
        return ""


def message_shape(message: InboxMessage, peer: Peer = NOBODY, *, several: bool = False) -> dict[str, Any]:
    """What tools show of *message*. *several*: more than one workspace is served, so it says which one it came to."""
    shape: dict[str, Any] = {
        "activity_id": message.activity_id,
        "text": text_of(message),
        "peer_id": harmless.identifier(message.caller_id),
        "kind": kind_of(message),
        "method": harmless.name(message.method),
        "created_at": time_of(message),
    }
    if several:
        shape["arrival_workspace_id"] = message.workspace_id
    if message.caller_id is not None:
        shape |= {"peer_name": peer.name, "peer_role": peer.role, "agent_card_url": peer.card_url}
    if message.kind != "message" and message.question:
        shape["in_answer_to"] = harmless.text(message.question)
    if message.delegation_id:
        shape["delegation_id"] = harmless.name(message.delegation_id)
    if files := [attachment(part) for part in message.parts if isinstance(part, FilePart)]:
        shape["attachments"] = files
    if data := [part.data for part in message.parts if isinstance(part, DataPart)]:
        shape["data"] = harmless_data(data)
    return shape


def attachment(part: FilePart) -> dict[str, Any]:
    """A file of a message: ``path`` is where it lies on this machine, else ``unavailable`` says why it does not."""
    shape: dict[str, Any] = {"name": harmless.name(part.name), "mime_type": harmless.name(part.mime_type)}
    if part.size is not None:
        shape["size"] = part.size
    # A sender can write file:///etc/passwd, which a model would take for a file that it may open.
    if part.address:
        shape["uri"] = harmless.name(part.address, longest=2000)
    if part.path is not None and Path(part.path).is_file():
        shape["path"] = str(part.path)
    else:
        shape["unavailable"] = harmless.name(part.unavailable, longest=300) or "it is not on this machine"
    return shape


def harmless_data(value: Any) -> Any:
    """A JSON value with every text in it made harmless."""
    if isinstance(value, str):
        return harmless.text(value)
    if isinstance(value, dict):
        return {harmless.name(key): harmless_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [harmless_data(item) for item in value]
    return value


def push_shape(message: InboxMessage, peer: Peer = NOBODY, *, several: bool = False) -> dict[str, Any]:
    """The parameters of the channel's notification. Its meta become attributes of a tag, so each is a short line."""
    meta = {
        "source": "molecule",
        "kind": kind_of(message),
        "peer_id": harmless.identifier(message.caller_id),
        "method": harmless.name(message.method),
        "activity_id": harmless.name(message.activity_id, longest=harmless.LONGEST_ID),
        "ts": time_of(message),
        "arrival_workspace_id": message.workspace_id if several else "",
        "peer_name": peer.name,
        "peer_role": peer.role,
    }
    if message.kind != "message" and message.question:
        meta["in_answer_to"] = harmless.name(message.question)
    files = [_file_line(part) for part in message.parts if isinstance(part, FilePart)]
    return {"content": "\n".join([text_of(message), *files]), "meta": meta}


def _file_line(part: FilePart) -> str:
    shape = attachment(part)
    return f"- file {shape['name'] or 'without a name'}: {shape.get('path') or shape['unavailable']}"
