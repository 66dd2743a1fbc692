"""Messages of the journal in words, for terminals and for machines. Texts of peers are made harmless here."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from molecule_connect.cli.lookups import ago, moment
from molecule_connect.console.sanitize import one_line, span, visible, who
from molecule_connect.journal.inspect import Glance, Record
from molecule_connect.journal.models import State
from molecule_connect.models import DataPart, FilePart, Kind, Part, TextPart

# A line in a pipe may be long, but not as long as a message.
_PIPE_WIDTH = 400


def table(glances: Sequence[Glance], ids: Sequence[str], *, now: float, with_workspace: bool) -> Iterator[str]:
    """One line for each message, under a line of titles; nothing when there is none."""
    titles = ["ID", "CAME", "FROM", "STATE", "TRIES", "MESSAGE"]
    rows = [_row(glance, row_id, now) for glance, row_id in zip(glances, ids, strict=True)]
    if with_workspace:
        titles.insert(1, "WORKSPACE")
        for row, glance in zip(rows, glances, strict=True):
            row.insert(1, one_line(glance.workspace_id, 24))
    if not rows:
        return
    lines = [titles, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles) - 1)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
    for line in lines:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]])[:room]


def _row(glance: Glance, row_id: str, now: float) -> list[str]:
    return [
        one_line(row_id, 40),
        ago(glance.time / 1e6, now),
        who(glance.caller_id)[:24],
        glance.state.value,
        str(glance.attempt),
        _kind(glance) + one_line(glance.text, 60) + _note(glance, now),
    ]


def list_json(glances: Sequence[Glance], total: int) -> str:
    """The list as one document; ``total`` is how many there are without the limit."""
    return json.dumps({"total": total, "messages": [glance_values(glance) for glance in glances]}, indent=2)


def glance_values(glance: Glance) -> dict[str, Any]:
    """One message for machines. Times are RFC 3339; ``text`` is the beginning."""
    return {
        "workspace_id": glance.workspace_id,
        "row_id": glance.row_id,
        "kind": glance.kind,
        "state": glance.state.value,
        "caller_id": glance.caller_id,
        "context_id": glance.context_id,
        "time": moment(glance.time / 1e6),
        "changed": moment(glance.changed),
        "attempts": glance.attempt,
        "interruptions": glance.crash_count,
        "replays": glance.replay,
        "next_try": moment(glance.not_before),
        "held_until": moment(glance.held_until),
        "error": glance.error,
        "reason": glance.reason,
        "progress": glance.progress,
        "repeat_of": glance.repeat_of,
        "text": glance.text,
    }


def record_json(record: Record) -> str:
    """All of one message as a document."""
    answer = record.reply
    values = glance_values(record.glance) | {
        "message_id": record.message_id,
        "idempotency_key": record.idempotency_key,
        "task_id": record.task_id,
        "method": record.method,
        "delegation_id": record.delegation_id,
        "parts": None if record.parts is None else [_part_values(part) for part in record.parts],
        "answer": None,
        "answered": moment(record.answered_at / 1e6) if record.answered_at else None,
        "accepted": moment(record.accepted / 1e6) if record.accepted else None,
        "failed_sends": record.sends,
        "in_doubt": record.in_doubt,
        "usage": None,
    }
    if record.parts is not None:
        values["text"] = "".join(part.text for part in record.parts if isinstance(part, TextPart))
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


def details(record: Record, *, now: float) -> Iterator[str]:
    """All of one message for people: facts, its parts, its answer."""
    for title, value in _facts(record, now):
        if value:
            yield f"{title:14} {value}"
    yield ""
    if record.parts is None:
        yield f"Its text was deleted{why_deleted(record.glance)}."
    else:
        yield "Message:"
        yield from _indented(record.parts)
    if record.reply is not None:
        yield ""
        yield "Notice to the caller:" if record.reply.is_notice else "Answer:"
        yield from _indented(record.reply.parts)
    if _is_traceback(record.glance):
        yield ""
        yield "Error:"
        yield from _indented((TextPart(record.glance.error or ""),))


def name(glance: Glance) -> str:
    """One message in a few words."""
    return f'{one_line(glance.row_id, 64)} of {who(glance.caller_id)}, "{one_line(glance.text, 40)}"'


def why_deleted(glance: Glance) -> str:
    """Why its text is not there any more."""
    return " to make room in the journal" if glance.state is State.DEAD else ", a day after it was done or to make room"


def effect_of_replay(glance: Glance, *, is_inbox: bool) -> str:
    """What a replay does. *is_inbox*: no backend answers the workspace's messages."""
    if glance.has_answer:
        return "the stored answer is sent again"
    if glance.state is not State.DEAD:
        return "it is tried at once, and put off again if what it waits for has not come"
    return "it waits for a reader of the inbox again" if is_inbox else "the backend runs again"


def raw_text(raw: str) -> str:
    """JSON text as it came, but for characters that show nothing: those as JSON escapes, which mean the same."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else json.dumps(char)[1:-1] for char in raw.replace("\r", "")
    )


def _facts(record: Record, now: float) -> Iterator[tuple[str, str]]:
    glance = record.glance
    yield "row", one_line(glance.row_id)
    yield "workspace", one_line(glance.workspace_id)
    yield "from", who(glance.caller_id)
    yield "kind", "" if glance.is_readable else glance.kind
    yield "conversation", one_line(glance.context_id or "")
    yield "message id", "" if record.message_id == glance.row_id else one_line(record.message_id)
    yield "task", one_line(record.task_id or "")
    yield "delegation", one_line(record.delegation_id or "")
    yield "method", "" if record.method == "message/send" else one_line(record.method)
    yield "written", _when(glance.time / 1e6, now)
    yield "state", f"{glance.state.value}, since {_when(glance.changed, now)}"
    yield "reason", one_line(glance.reason or "", 1000)
    yield "repeat of", one_line(glance.repeat_of or "")
    yield "doing", one_line(glance.progress or "")
    yield "tries", str(glance.attempt)
    yield "interruptions", str(glance.crash_count or "")
    yield "replays", str(glance.replay or "")
    yield "last error", "" if _is_traceback(glance) else one_line(glance.error or "", 1000)
    yield "next try", _wait(glance, now)
    yield "held", _hold(glance, now) if glance.state is State.CLAIMED else ""
    yield "answered", _when(record.answered_at / 1e6, now) if record.reply and record.answered_at else ""
    yield "failed sends", str(record.sends or "")
    yield "accepted", _when(record.accepted / 1e6, now) if record.accepted else ""
    yield "in doubt", "the platform may have taken the answer already" if record.in_doubt else ""
    if record.reply is not None and (usage := record.reply.usage) is not None:
        cost = f", {usage.cost_usd:.4f} USD" if usage.cost_usd else ""
        yield "usage", f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out{cost}"


def _is_traceback(glance: Glance) -> bool:
    """Whether the error is the traceback of an unexpected one."""
    return (glance.error or "").startswith("Traceback ")


def _kind(glance: Glance) -> str:
    return f"{glance.kind}: " if glance.kind in (Kind.ANSWER, Kind.RESULT) else ""


def _note(glance: Glance, now: float) -> str:
    waits = _wait(glance, now)
    match glance.state:
        case State.DEAD:
            words = glance.reason
        case State.RUNNING:
            words = glance.progress
        case State.CLAIMED:
            words = _hold(glance, now)
        case State.ANSWERED:
            words = f"the answer waits to be sent, {waits or 'now'}"
        case State.DONE:
            words = (
                f"repeat of {glance.repeat_of}" if glance.repeat_of else glance.reason and f"dropped: {glance.reason}"
            )
        case _:
            words = ": ".join(filter(None, (waits, glance.error)))
    return f" | {one_line(words)}" if words else ""


def _hold(glance: Glance, now: float) -> str:
    if glance.held_until is None or glance.held_until <= now:
        return "its reader did not finish it: the next one gets it"
    return f"with a reader, for {span(glance.held_until - now)} more at most"


def _wait(glance: Glance, now: float) -> str:
    return f"in {span(glance.not_before - now)}" if glance.not_before and glance.not_before > now else ""


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
            # What looks like a path of this machine must not be taken for one.
            named = f"no path; its uri is given as {json.dumps(part.uri)}" if part.uri else "no path"
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
