"""Format messages of the journal for terminals and as JSON. Control characters of senders are removed here."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from rich.cells import cell_len, set_cell_size

from molecule_connect.cli.message_query import Entry
from molecule_connect.console.sanitize import ago, moment, one_line, span, visible, who
from molecule_connect.journal.inspect import Attempt, MessageSummary
from molecule_connect.journal.models import State, StoredMessage
from molecule_connect.journal.transitions import MAX_ATTEMPTS
from molecule_connect.models import DataPart, FilePart, Kind, Part, TextPart

# Characters of a line that isn't printed to a terminal, unless COLUMNS is set.
_PIPE_WIDTH = 400
# Terminals of this width and above show dates in full and longer names.
_WIDE = 110
# The fewest characters for the texts of the message and of the answer together, and the most for each.
_FEWEST_TEXT = 20
_MOST_TEXT, _MOST_ANSWER = 60, 200
_LONGEST_ERROR = 2500
_TITLES = ("ID", "TIME", "WORKSPACE", "SENDER", "TEXT", "ANSWER", "DURATION", "COST")
# Left out one after the other if the line is too narrow.
_DISPENSABLE = ("COST", "DURATION", "WORKSPACE", "TIME")
_NUMBERS = frozenset({"DURATION", "COST"})


class Table:
    """Lines of equal columns for messages.

    Args:
        entries: The messages whose texts decide the widths of the columns; None if they aren't known yet.
        width: The longest line, in cells of the terminal.
    """

    def __init__(
        self, entries: Sequence[Entry] | None, *, now: float, width: int, is_colored: bool, with_workspace: bool
    ) -> None:
        self._is_colored = is_colored
        self._is_wide = width >= _WIDE
        titles = [title for title in _TITLES if title != "WORKSPACE" or with_workspace]
        widest = {title: cell_len(title) for title in titles}
        for row in [self._cells(entry, now) for entry in entries or ()]:
            widest |= {title: max(widest[title], cell_len(row[title])) for title in titles}
        widest["ANSWER"] = min(widest["ANSWER"], _MOST_ANSWER)
        if entries is None:
            least = {"ID": 8, "TIME": 19 if self._is_wide else 8, "SENDER": 12, "WORKSPACE": 12, "COST": 7}
            widest |= {title: max(widest[title], least[title]) for title in titles if title in least}
            widest |= {"TEXT": _MOST_TEXT, "ANSWER": 2 * _MOST_TEXT}
        for title in _DISPENSABLE:
            if self._room(widest, width) < _FEWEST_TEXT:
                widest.pop(title, None)
        room = max(_FEWEST_TEXT, self._room(widest, width))
        text = min(widest["TEXT"], max(room // 2, room - widest["ANSWER"]))
        widest |= {"TEXT": text, "ANSWER": min(widest["ANSWER"], room - text)}
        self._widths = widest
        self._width = width

    @property
    def titles(self) -> str:
        """The first line."""
        return self._line({title: title for title in self._widths})

    def line(self, entry: Entry, now: float) -> str:
        """The line of one message."""
        return self._line(self._cells(entry, now), state=entry.message.state)

    def _room(self, widths: dict[str, int], width: int) -> int:
        fixed = sum(length for title, length in widths.items() if title not in ("TEXT", "ANSWER"))
        return width - fixed - 2 * (len(widths) - 1)

    def _line(self, cells: dict[str, str], *, state: State = State.DONE) -> str:
        parts = []
        room = self._width
        for title, width in self._widths.items():
            # The end of an error says most.
            has_error = title == "ANSWER" and state in (State.DEAD, State.RECEIVED)
            cell = _fit(cells[title], min(width, max(0, room)), with_end=has_error)
            cell = cell.strip().rjust(len(cell)) if title in _NUMBERS else cell
            room -= width + 2
            is_red = title == "ANSWER" and state is State.DEAD and self._is_colored
            parts.append(click.style(cell, fg="red") if is_red else cell)
        return "  ".join(parts).rstrip()

    def _cells(self, entry: Entry, now: float) -> dict[str, str]:
        message = entry.message
        seconds = message.seconds(now)
        return {
            "ID": one_line(entry.row_id, 40),
            "TIME": _local(message.time / 1e6, now, in_full=self._is_wide),
            "WORKSPACE": one_line(message.workspace_id, 24 if self._is_wide else 12),
            "SENDER": one_line(entry.sender, 24 if self._is_wide else 12),
            "TEXT": _kind(message) + (one_line(message.text, _MOST_TEXT) if message.has_text else "(deleted)"),
            "ANSWER": one_line(_answer(message, now), _LONGEST_ERROR),
            "DURATION": "-" if seconds is None else span(seconds),
            "COST": _dollars(message.cost_usd),
        }


def line_width(*, is_terminal: bool, environ: Mapping[str, str]) -> int:
    """The longest line that is printed: the terminal's width, or COLUMNS."""
    if is_terminal or environ.get("COLUMNS", "").isdecimal():
        return shutil.get_terminal_size().columns
    return _PIPE_WIDTH


def list_json(entries: Sequence[Entry], total: int, now: float) -> str:
    """The list as a document; ``total`` counts the messages without the limit."""
    return json.dumps({"total": total, "messages": [entry_values(entry, now) for entry in entries]}, indent=2)


def entry_json(entry: Entry, now: float) -> str:
    """A message as one line of JSON."""
    return json.dumps(entry_values(entry, now))


def entry_values(entry: Entry, now: float) -> dict[str, Any]:
    """A message as JSON values, with its sender and answer."""
    message = entry.message
    seconds = message.seconds(now)
    return message_values(message) | {
        "sender": entry.sender,
        "answer": message.answer,
        "duration_seconds": None if seconds is None else round(seconds, 3),
        "cost_usd": message.cost_usd,
    }


def message_values(message: MessageSummary) -> dict[str, Any]:
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


def message_json(entry: Entry, message: StoredMessage, now: float) -> str:
    """A message with its parts, attempts and reply as a document."""
    answer = message.reply
    values = entry_values(entry, now) | {
        "text": message.text,
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
        "runs": [
            {"started": moment(run.started), "ended": moment(run.ended), "seconds": run.seconds, "error": run.error}
            for run in _runs(entry.message)
        ],
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


def details(entry: Entry, message: StoredMessage, *, now: float) -> Iterator[str]:
    """The lines of ``molecule messages show``: facts, the parts of the message, files, attempts, the reply."""
    for title, value in _facts(entry, message, now):
        if value:
            yield f"{title:14} {value}"
    yield ""
    if not message.has_text:
        yield f"Its text was deleted{why_deleted(message)}."
    else:
        yield "Message:"
        yield from _indented(message.parts)
    if files := [*_files("received", message.parts), *_files("sent", message.reply.parts if message.reply else ())]:
        yield ""
        yield "Files:"
        yield from files
    if runs := _runs(entry.message):
        yield ""
        yield "Attempts:" if len(runs) < MAX_ATTEMPTS else f"Attempts (the newest {len(runs)}):"
        for number, run in enumerate(runs, 1):
            yield f"    {number:<2} {_run(run, now, is_last=run is runs[-1], message=message)}"
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


def _facts(entry: Entry, message: StoredMessage, now: float) -> Iterator[tuple[str, str]]:
    seconds = entry.message.seconds(now)
    yield "row", one_line(message.row_id)
    yield "workspace", one_line(message.workspace_id)
    yield "from", _sender(entry)
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
    yield "duration", "" if seconds is None else span(seconds)
    yield "cost", "" if entry.message.cost_usd is None else f"{entry.message.cost_usd:.4f} USD"


def _sender(entry: Entry) -> str:
    shown = who(entry.message.caller_id)
    return (
        shown
        if entry.message.caller_id is None or shown == entry.sender or entry.sender.endswith("…")
        else (f"{entry.sender}, {shown}")
    )


def _runs(message: MessageSummary) -> list[Attempt]:
    """The newest attempts, with the running one."""
    is_running = message.state is State.RUNNING and message.started is not None
    return [*message.runs, *([Attempt(message.started, None, None)] if is_running else [])]


def _run(run: Attempt, now: float, *, is_last: bool, message: StoredMessage) -> str:
    started = moment(run.started) or "at an unknown time"
    if run.error is None and run.ended is None:
        progress = f": {one_line(message.progress)}" if message.progress else ""
        return f"{started}  runs for {span(max(0.0, now - (run.started or now)))}{progress}"
    took = "-" if run.seconds is None else span(run.seconds)
    return f"{started}  {took:>6}  {'succeeded' if run.error is None else one_line(run.error, 1000)}"


def _files(direction: str, parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, FilePart):
            place = str(part.path) if part.path else part.name or "without a name"
            size = "size unknown" if part.size is None else f"{part.size:,} bytes"
            note = f", {part.unavailable}" if part.unavailable else ""
            yield f"    {direction:8}  {visible(one_line(place, 1000))} ({size}{note})"


def _is_traceback(message: MessageSummary | StoredMessage) -> bool:
    return (message.error or "").startswith("Traceback ")


def _kind(message: MessageSummary) -> str:
    return f"{message.kind}: " if message.kind in (Kind.ANSWER, Kind.RESULT) else ""


def _answer(message: MessageSummary, now: float) -> str:
    """The answer, or the state and why there is none."""
    waits = _wait(message, now)
    match message.state:
        case State.DONE if message.repeat_of:
            return f"repeat of {message.repeat_of}"
        case State.DONE if message.answer is not None:
            return message.answer
        case State.DONE if message.reason:
            return f"dropped: {message.reason}"
        case State.DONE:
            return "(deleted)" if message.answered_at is not None else "done without an answer"
        case State.RUNNING:
            attempt = f", attempt {message.attempt}" if message.attempt > 1 else ""
            return ": ".join(filter(None, (f"running{attempt}", message.progress)))
        case State.CLAIMED:
            return f"held, {_claim(message, now)}"
        case State.ANSWERED:
            return f"answered, the reply will be sent {waits or 'now'}"
        case State.DEAD:
            return ": ".join(filter(None, ("dead", message.reason)))
        case _:
            again = f", {'again ' if message.attempt else ''}{waits}" if waits else ""
            return ": ".join(filter(None, (f"received{again}", message.error)))


def _local(seconds: float, now: float, *, in_full: bool) -> str:
    """A time in the local zone: the time of day for today, unless *in_full*."""
    try:
        then, today = time.localtime(seconds), time.localtime(now)
    except (ValueError, OverflowError, OSError):
        return "-"
    if in_full:
        return time.strftime("%Y-%m-%d %H:%M:%S", then)
    return time.strftime("%H:%M:%S" if then[:3] == today[:3] else "%b %d", then)


def _dollars(cost: float | None) -> str:
    if cost is None:
        return "-"
    return f"${cost:,.2f}" if cost >= 0.01 or cost == 0 else f"${cost:.4f}"


def _fit(text: str, width: int, *, with_end: bool = False) -> str:
    """*text* in exactly *width* cells. Of a text that is too long, the beginning is kept, or both ends."""
    if cell_len(text) > width:
        end = ""
        for char in reversed(text) if with_end else ():
            if cell_len(char + end) > min(width // 2, width - 8):
                break
            end = char + end
        head = set_cell_size(text, max(0, width - 1 - cell_len(end))).rstrip()
        text = f"{head}…{end}" if width else ""
    return text + " " * (width - cell_len(text))


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
