"""Format messages of the journal for terminals and as JSON. Control characters of senders are removed here."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from molecule_connect.console.sanitize import ago, moment, one_line, span, visible, who
from molecule_connect.journal.inspect import MessageSummary
from molecule_connect.journal.models import State, StoredMessage
from molecule_connect.models import DataPart, FilePart, Kind, Part, TextPart

# The maximum length of a line that isn't printed to a terminal.
_PIPE_WIDTH = 400


def table(messages: Sequence[MessageSummary], ids: Sequence[str], *, now: float, with_workspace: bool) -> Iterator[str]:
    """A header line and one line per message; nothing if there are no messages."""
    titles = ["ID", "WRITTEN", "FROM", "STATE", "ATTEMPTS", "MESSAGE"]
    rows = [_row(message, row_id, now) for message, row_id in zip(messages, ids, strict=True)]
    if with_workspace:
        titles.insert(1, "WORKSPACE")
        for row, message in zip(rows, messages, strict=True):
            row.insert(1, one_line(message.workspace_id, 24))
    if not rows:
        return
    lines = [titles, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles) - 1)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
    for line in lines:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]])[:room]


def _row(message: MessageSummary, row_id: str, now: float) -> list[str]:
    return [
        one_line(row_id, 40),
        ago(message.time / 1e6, now),
        who(message.caller_id)[:24],
        message.state.value,
        str(message.attempt),
        _kind(message) + one_line(message.text, 60) + _note(message, now),
    ]


def list_json(messages: Sequence[MessageSummary], total: int) -> str:
    """The list as a document; ``total`` counts the messages without the limit."""
    return json.dumps({"total": total, "messages": [message_values(message) for message in messages]}, indent=2)


def message_values(message: MessageSummary | StoredMessage) -> dict[str, Any]:
    """A message as JSON values. Times are RFC 3339; ``text`` is an excerpt."""
    return {
        "workspace_id": message.workspace_id,
        "row_id": message.row_id,
        "kind": message.kind,
        "state": message.state.value,
        "caller_id": message.caller_id,
        "context_id": message.context_id,
        "time": moment(message.time / 1e6),
        "changed": moment(message.changed),
        "attempts": message.attempt,
        "interruptions": message.crash_count,
        "replays": message.replay,
        "next_try": moment(message.not_before),
        "held_until": moment(message.held_until),
        "error": message.error,
        "reason": message.reason,
        "progress": message.progress,
        "repeat_of": message.repeat_of,
        "text": message.text,
    }


def message_json(message: StoredMessage) -> str:
    """A message with its parts and its reply as a document."""
    answer = message.reply
    values = message_values(message) | {
        "message_id": message.message_id,
        "idempotency_key": message.idempotency_key,
        "task_id": message.task_id,
        "method": message.method,
        "delegation_id": message.delegation_id,
        "parts": [_part_values(part) for part in message.parts] if message.has_text else None,
        "answer": None,
        "answered": moment(message.answered_at / 1e6) if message.answered_at else None,
        "accepted": moment(message.accepted / 1e6) if message.accepted else None,
        "failed_sends": message.sends,
        "in_doubt": message.in_doubt > 0,
        "usage": None,
    }
    if answer is not None:
        values["answer"] = {"parts": [_part_values(part) for part in answer.parts], "is_notice": answer.is_notice}
        if answer.usage is not None:
            usage = answer.usage
            values["usage"] = {
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "cost_usd": usage.cost_usd,
            }
    return json.dumps(values, indent=2)


def details(message: StoredMessage, *, now: float) -> Iterator[str]:
    """The lines of ``molecule messages show``: facts, the parts of the message, its reply."""
    for title, value in _facts(message, now):
        if value:
            yield f"{title:14} {value}"
    yield ""
    if not message.has_text:
        yield f"Its text was deleted{why_deleted(message)}."
    else:
        yield "Message:"
        yield from _indented(message.parts)
    if message.reply is not None:
        yield ""
        yield "Notice to the caller:" if message.reply.is_notice else "Reply:"
        yield from _indented(message.reply.parts)
    if _is_traceback(message):
        yield ""
        yield "Error:"
        yield from _indented((TextPart(message.error or ""),))


def name(message: MessageSummary) -> str:
    """The row id, caller and text of a message, abbreviated."""
    return f'{one_line(message.row_id, 64)} of {who(message.caller_id)}, "{one_line(message.text, 40)}"'


def why_deleted(message: StoredMessage) -> str:
    """Why the text was deleted, as an ending for a sentence."""
    return (
        " to make room in the journal" if message.state is State.DEAD else ", a day after it was done or to make room"
    )


def effect_of_replay(message: MessageSummary, *, is_inbox: bool) -> str:
    """What a replay does. With *is_inbox*, readers answer the messages of the workspace."""
    if message.has_reply:
        return "the stored reply is sent again"
    if message.state is not State.DEAD:
        return "it is processed now, and deferred again if necessary"
    return "it waits again for a reader of the inbox" if is_inbox else "the backend runs again"


def raw_text(raw: str) -> str:
    """JSON text with invisible characters as JSON escapes."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else json.dumps(char)[1:-1] for char in raw.replace("\r", "")
    )


def _facts(message: StoredMessage, now: float) -> Iterator[tuple[str, str]]:
    yield "row", one_line(message.row_id)
    yield "workspace", one_line(message.workspace_id)
    yield "from", who(message.caller_id)
    yield "kind", "" if message.kind == Kind.MESSAGE else message.kind
    yield "conversation", one_line(message.context_id or "")
    yield "message id", "" if message.message_id == message.row_id else one_line(message.message_id)
    yield "task", one_line(message.task_id or "")
    yield "delegation", one_line(message.delegation_id or "")
    yield "method", "" if message.method == "message/send" else one_line(message.method)
    yield "written", _when(message.time / 1e6, now)
    yield "state", f"{message.state.value}, since {_when(message.changed, now)}"
    yield "reason", one_line(message.reason or "", 1000)
    yield "repeat of", one_line(message.repeat_of or "")
    yield "progress", one_line(message.progress or "")
    yield "attempts", str(message.attempt)
    yield "interruptions", str(message.crash_count or "")
    yield "replays", str(message.replay or "")
    yield "last error", "" if _is_traceback(message) else one_line(message.error or "", 1000)
    yield "next attempt", _wait(message, now)
    yield "claim", _claim(message, now) if message.state is State.CLAIMED else ""
    yield "answered", _when(message.answered_at / 1e6, now) if message.reply and message.answered_at else ""
    yield "failed sends", str(message.sends or "")
    yield "accepted", _when(message.accepted / 1e6, now) if message.accepted else ""
    yield "in doubt", "the platform may have accepted the reply already" if message.in_doubt else ""
    if message.reply is not None and (usage := message.reply.usage) is not None:
        cost = f", {usage.cost_usd:.4f} USD" if usage.cost_usd else ""
        yield "usage", f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out{cost}"


def _is_traceback(message: MessageSummary | StoredMessage) -> bool:
    return (message.error or "").startswith("Traceback ")


def _kind(message: MessageSummary) -> str:
    return f"{message.kind}: " if message.kind in (Kind.ANSWER, Kind.RESULT) else ""


def _note(message: MessageSummary, now: float) -> str:
    waits = _wait(message, now)
    match message.state:
        case State.DEAD:
            words = message.reason
        case State.RUNNING:
            words = message.progress
        case State.CLAIMED:
            words = _claim(message, now)
        case State.ANSWERED:
            words = f"the reply will be sent {waits or 'now'}"
        case State.DONE:
            words = (
                f"repeat of {message.repeat_of}"
                if message.repeat_of
                else message.reason and f"dropped: {message.reason}"
            )
        case _:
            words = ": ".join(filter(None, (waits, message.error)))
    return f" | {one_line(words)}" if words else ""


def _claim(message: MessageSummary | StoredMessage, now: float) -> str:
    if message.held_until is None or message.held_until <= now:
        return "the claim has expired: the next reader gets the message"
    return f"claimed by a reader, for up to {span(message.held_until - now)} more"


def _wait(message: MessageSummary | StoredMessage, now: float) -> str:
    return f"in {span(message.not_before - now)}" if message.not_before and message.not_before > now else ""


def _when(seconds: float, now: float) -> str:
    return f"{moment(seconds)}, {ago(seconds, now)}"


def _indented(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        for line in visible(_words(part)).expandtabs(4).split("\n"):
            yield f"    {line}"


def _words(part: Part) -> str:
    match part:
        case TextPart(text):
            return text
        case DataPart(data):
            return json.dumps(data, indent=2, ensure_ascii=False)
        case FilePart():
            size = "" if part.size is None else f", {part.size:,} bytes"
            # The uri of a sender may look like a path of this machine.
            named = f"no path; the sender's uri is {json.dumps(part.uri)}" if part.uri else "no path"
            uri = f"{part.uri[:80]}..." if part.uri.startswith("data:") else part.address or named
            about = f"{part.mime_type or 'of unknown type'}{size}{f', {part.unavailable}' if part.unavailable else ''}"
            return f"file {part.name or 'without a name'} ({about}) {part.path or uri}"


def _part_values(part: Part) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"kind": "text", "text": text}
        case DataPart(data):
            return {"kind": "data", "data": data}
        case FilePart():
            file: dict[str, Any] = {"uri": part.uri, "name": part.name, "mime_type": part.mime_type, "size": part.size}
            file |= {"path": str(part.path)} if part.path is not None else {}
            file |= {"unavailable": part.unavailable} if part.unavailable else {}
            return {"kind": "file", "file": file}
