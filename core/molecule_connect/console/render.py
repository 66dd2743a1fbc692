"""Render a snapshot as lines of rich text, each of which fits the window."""

import os
import shlex
import time
from collections.abc import Mapping, Sequence

import attrs
from rich.cells import cell_len
from rich.text import Text

from molecule_connect.config.state_dir import preview_state_dir
from molecule_connect.console.cells import fitted, steady, tail, wrapped
from molecule_connect.console.lines import Line
from molecule_connect.console.names import Label, short_id
from molecule_connect.console.outages import Cause
from molecule_connect.console.sanitize import last_line, one_line, span
from molecule_connect.console.screen import Summary
from molecule_connect.console.view import Counts, MessageRow, Note, Snapshot, WorkspaceStatus, kind_of
from molecule_connect.worker.attempt import MAX_ATTEMPTS

_NARROW = 60
_STYLES = {
    "waiting": "yellow",
    "running": "cyan",
    "answered": "blue",
    "delivered": "green",
    "silent": "green",
    "retry": "yellow",
    "failed": "bold red",
    "recorded": "dim",
    "INFO": "dim",
    "WARNING": "yellow",
    "ERROR": "bold red",
}
_SHORT_STATES = {
    "waiting": "wait",
    "running": "run",
    "answered": "send",
    "delivered": "done",
    "silent": "done",
    "retry": "retry",
    "failed": "fail",
    "recorded": "kept",
}
# Heartbeats are sent every 30 s, or every 60 s under a low rate limit.
_LATE_HEARTBEAT = 75.0
# Windows of this height have room for more than the first line of a problem.
_ROOMY = 20
_NO_LABEL = Label("?")
UNFINISHED = "unfinished messages stay in the journal and are answered at the next start"


def draw_line(line: Line) -> Text:
    """A line outside of the view."""
    level = "" if line.level == "INFO" else f"{line.level.lower()}: "
    return Text(f"{level}{line.text}", style=_STYLES.get(line.level, ""))


def farewell(counts: Counts) -> str:
    """What there is to know after the end."""
    waiting = counts.running + counts.waiting
    kept = f"; {waiting} unfinished: they stay in the journal and are answered at the next start" if waiting else ""
    return f"stopped; today: {_today(counts)}{kept}"


def draw(snapshot: Snapshot, summaries: Mapping[str, Summary], *, width: int, height: int) -> list[Text]:
    """The lines of the view: status, problems, counts, messages and notes; at most *height* of them."""
    layout = _Layout(width=width, with_workspace=len(snapshot.workspaces) > 1)
    top = _top(snapshot, summaries, layout, height)
    notes = _notes(snapshot.notes, room=0 if height < 8 else 1 if height < 16 else 3)
    room = height - len(top) - len(notes)
    messages = _messages(snapshot, summaries, layout, room)
    blank = [Text()] * (room - len(messages)) if notes else []
    lines = [*top, *messages, *blank, *notes][: max(0, height)]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


# The status


def _top(snapshot: Snapshot, summaries: Mapping[str, Summary], layout: "_Layout", height: int) -> list[Text]:
    several = len(snapshot.workspaces) > 1
    lines: list[Text] = []
    for workspace_id, status in () if several else snapshot.workspaces:
        lines += [_title(workspace_id, summaries.get(workspace_id)), _state(status, snapshot, since_start=True)]
    if any(status.stops_at is not None and not status.is_over for _, status in snapshot.workspaces):
        lines.append(Text(f"  {UNFINISHED if layout.is_wide else 'unfinished: answered at next start'}", "yellow"))
    for cause in snapshot.causes:
        lines += _cause(cause, snapshot, layout, most=2 if height >= _ROOMY else 1)
    counts = _counts(snapshot.counts, layout)
    if several:
        lines = lines[: height // 3]
        lines += _workspaces(snapshot, summaries, room=max(2, height // 2 - len(lines)))
    return [*lines[: max(0, height - 1)], counts]


def _title(workspace_id: str, summary: Summary | None) -> Text:
    title = Text(workspace_id, "bold")
    if summary is not None:
        title.append(f"  {summary.backend}, {summary.mode}, {summary.api_url}", "dim")
    return title


def _workspaces(snapshot: Snapshot, summaries: Mapping[str, Summary], *, room: int) -> list[Text]:
    """A line per workspace. If *room* is short, healthy workspaces are left out first."""
    ordered = sorted(snapshot.workspaces, key=lambda named: named[1].is_healthy)
    shown = ordered if len(ordered) <= room else ordered[: room - 1]
    lines = []
    for workspace_id, status in shown:
        line = Text(workspace_id, "bold")
        line.append_text(_state(status, snapshot))
        if (summary := summaries.get(workspace_id)) is not None:
            line.append(f"  {summary.backend}, {summary.api_url}", "dim")
        lines.append(line)
    if left := ordered[len(shown) :]:
        healthy = ", all online" if all(status.is_healthy for _, status in left) else ""
        lines.append(Text(f"  and {len(left)} more{healthy}", "dim"))
    return lines


def _cause(cause: Cause, snapshot: Snapshot, layout: "_Layout", *, most: int) -> list[Text]:
    """The parts and the reason, and the next step, in at most *most* lines each."""
    owner = ""
    if len(snapshot.workspaces) > 1:
        count = len(cause.workspaces)
        owner = f"{count} workspaces: " if count > 1 else f"{cause.workspaces[0]}: "
    text, hint = f"  {owner}{one_line(cause.text, 400)}", one_line(cause.hint, 400)
    if layout.with_workspace or not hint:
        line = f"{text} -> {hint}" if hint else text
        return [Text(piece, "bold red") for piece in wrapped(line, layout.width, 2 * most - 1)]
    return [
        *(Text(line, "bold red") for line in wrapped(text, layout.width, most)),
        *(Text(line, "yellow") for line in wrapped(f"  -> {hint}", layout.width, most)),
    ]


def _state(status: WorkspaceStatus, snapshot: Snapshot, *, since_start: bool = False) -> Text:
    if status.is_over:
        text = Text("  stopped", "yellow")
    elif status.stops_at is not None:
        text = Text(f"  {_countdown(status, snapshot.now)}", "yellow")
    elif status.paused:
        text = Text("  paused on the platform: messages are stored but not processed", "yellow")
    elif not status.registered:
        text = Text("  not registered yet", "yellow")
    else:
        text = Text("  problems" if status.problems else "  online", "red" if status.problems else "green")
    if status.last_beat is not None:
        age = snapshot.now - status.last_beat
        text.append(f", heartbeat {age:.0f} s ago", "red" if age > _LATE_HEARTBEAT else "dim")
    if status.listening:
        text.append(f", {status.listening}", "dim")
    if since_start:
        text.append(f", up {span(snapshot.uptime)}", "dim")
    return text


def _countdown(status: WorkspaceStatus, now: float) -> str:
    left = max(0.0, (status.stops_at or now) - now)
    if not status.running:
        return "stopping"
    if not left:
        return f"stopping: {status.running} running, which are cut short"
    return f"stopping: {status.running} running, {left:.0f} s left; Ctrl-C exits at once"


def _counts(counts: Counts, layout: "_Layout") -> Text:
    pairs = [("running", "run", counts.running, "cyan"), ("waiting", "wait", counts.waiting, "yellow")]
    today = [("handled", "ok", counts.handled, "green"), ("failed", "fail", counts.failed, "bold red")]
    text = Text()
    for place, part in enumerate((pairs, today)):
        if place:
            text.append("today: " if layout.is_wide else "| ", "dim")
        for name, short_name, count, style in part:
            text.append(f"{name if layout.is_wide else short_name} {count}  ", style if count else "dim")
    text.append(f"cost {_money(counts.cost_usd)}" if layout.is_wide else _money(counts.cost_usd), "dim")
    return text


def _today(counts: Counts) -> str:
    return f"handled {counts.handled}, failed {counts.failed}, cost {_money(counts.cost_usd)}"


def _money(cost_usd: float) -> str:
    return f"${cost_usd:.2f}" if cost_usd >= 1 or not cost_usd else f"${cost_usd:.4f}".rstrip("0")


def _notes(notes: Sequence[Note], *, room: int) -> list[Text]:
    lines = []
    for note in notes[len(notes) - room :] if room < len(notes) else notes:
        line = Text(f"{_clock(note.time)} ", "dim")
        lines.append(line.append_text(draw_line(Line(note.line.level, steady(note.line.text)))))
    return lines


# The messages


@attrs.frozen(kw_only=True)
class _Layout:
    """The widths of the columns."""

    width: int
    with_workspace: bool

    @property
    def is_wide(self) -> bool:
        return self.width >= _NARROW

    @property
    def sender(self) -> int:
        return 24 if self.width >= 120 else 16 if self.is_wide else 9

    @property
    def workspace(self) -> int:
        return 14 if self.is_wide else 6

    @property
    def before_details(self) -> int:
        """The width of all columns before the details, with their gaps."""
        time_column = 9 if self.is_wide else 0
        workspace = self.workspace + 1 if self.with_workspace else 0
        return time_column + workspace + self.sender + 1 + (10 + 7 if self.is_wide else 6)


def _messages(snapshot: Snapshot, summaries: Mapping[str, Summary], layout: _Layout, room: int) -> list[Text]:
    kinds: dict[int, list[list[Text]]] = {}
    hints = {""}
    for row in snapshot.rows:
        folder = summaries[row.workspace_id].state_dir if row.workspace_id in summaries else ""
        label = snapshot.labels.get((row.workspace_id, row.caller_id), _NO_LABEL)
        entry = [_row(row, label, snapshot, layout)]
        is_outage = row.state == "answered" and any(cause.problems[0].is_outage for cause in snapshot.causes)
        if row.state == "failed" or (row.until is not None and row.detail and not is_outage):
            # One failure is often like the next.
            hint = "" if row.hint in hints else row.hint
            hints.add(row.hint)
            entry += _failure(row, folder, hint, layout)
        kinds.setdefault(kind_of(row.state), []).append(entry)
    return [line for kind, entries in _fill(kinds, room) for entry in entries for line in entry]


def _fill(kinds: Mapping[int, list[list[Text]]], room: int) -> list[tuple[int, list[list[Text]]]]:
    """Divide *room* lines among the kinds of messages, so that a long kind doesn't displace all others."""
    # Running ones get half of it.
    shares = {kind: room // 5 if kind else room // 2 for kind in kinds}
    shares = {kind: max(share, len(kinds[kind][0])) for kind, share in shares.items()}
    taken: dict[int, list[list[Text]]] = {kind: [] for kind in kinds}
    # First each kind gets its share, then the first kinds get all that is left. Finished ones fill up.
    order = sorted(kinds, key=lambda kind: (kind == kind_of("delivered"), kind))
    for limits in (shares, dict.fromkeys(kinds, room)):
        for kind in order:
            used = sum(map(len, taken[kind]))
            for entry in kinds[kind][len(taken[kind]) :]:
                if len(entry) > room or used + len(entry) > limits[kind]:
                    break
                taken[kind].append(entry)
                used, room = used + len(entry), room - len(entry)
    return sorted(taken.items())


def _row(row: MessageRow, label: Label, snapshot: Snapshot, layout: _Layout) -> Text:
    line = Text()
    if layout.is_wide:
        line.append(f"{_clock(row.time)} ", "dim")
    if layout.with_workspace:
        line.append(f"{fitted(row.workspace_id, layout.workspace)} ")
    line.append(f"{_sender(label, layout.sender)} ")
    if layout.is_wide:
        line.append(f"{row.state:9} ", _STYLES[row.state])
        line.append(f"{_duration(row, snapshot.now):>6} ", "dim")
    else:
        line.append(f"{_SHORT_STATES[row.state]:5} ", _STYLES[row.state])
    return line.append_text(_details(row, snapshot, layout))


def _sender(label: Label, width: int) -> str:
    """The sender's name; its id stays visible if the name is too long."""
    ending = f" ({label.short_id}…)" if label.short_id else ""
    if not ending:
        return fitted(label.name, width)
    if cell_len(ending) + 2 > width:
        return fitted(f"{label.short_id}…", width)
    name = fitted(label.name, min(cell_len(steady(label.name)), width - cell_len(ending)))
    return fitted(f"{name}{ending}", width)


def _duration(row: MessageRow, now: float) -> str:
    if row.state in ("waiting", "recorded"):
        return ""
    seconds = row.seconds(now)
    if not seconds:
        return ""
    return f"{seconds:.0f} s" if row.started is not None and seconds < 120 else span(seconds)


def _details(row: MessageRow, snapshot: Snapshot, layout: _Layout) -> Text:
    """Attempt and next attempt, cost, and the beginning of the message and of its progress, reply or error."""
    facts = Text()
    if not layout.is_wide and row.until is None and (duration := _duration(row, snapshot.now)):
        facts.append(f"{duration}  ", "dim")
    if (attempt := _attempt(row, snapshot.now)) and row.state != "failed":
        facts.append(f"{attempt}  ", "yellow")
    if row.cost_usd:
        facts.append(f"{_money(row.cost_usd)}  ", "dim")
    room = max(0, layout.width - layout.before_details - facts.cell_len)
    text, detail = steady(row.text), steady(one_line(row.detail))
    if row.state == "failed" or row.until is not None or not detail:
        return facts.append(fitted(text, room, pad=False))
    if room < 24 or not text:
        return facts.append(fitted(detail, room, pad=False))
    asked = fitted(text, min(room // 2, cell_len(text)), pad=False)
    facts.append(f"{asked}  ", "dim")
    return facts.append(fitted(detail, room - cell_len(asked) - 2, pad=False))


def _attempt(row: MessageRow, now: float) -> str:
    """The attempt, unless it is the first one, and when the next one is."""
    which = f"{row.attempt} of {MAX_ATTEMPTS}" if row.attempt > 1 else ""
    if row.until is None:
        return which
    left = row.until - now
    again = f"again in {left:.0f} s" if 0.5 <= left < 120 else f"again in {span(left)}" if left >= 120 else "again now"
    return f"{which}, {again}" if which else again


def _failure(row: MessageRow, folder: str, hint: str, layout: _Layout) -> list[Text]:
    """The end of the error, and the next steps after the last attempt."""
    indent = " " * (9 if layout.is_wide else 1)
    error = Text(indent).append(tail(last_line(row.detail), layout.width - len(indent)), "red")
    if row.state != "failed":
        return [error]
    steps = [steady(hint), _next_step(row, folder)]
    return [error, *(Text(indent).append(f"-> {step}", "yellow") for step in steps if step)]


def _next_step(row: MessageRow, folder: str) -> str:
    place = ""
    if folder and folder != str(preview_state_dir(None, os.environ)):
        place = f" --state-dir {shlex.quote(folder)}"
    return f"molecule messages replay {short_id(row.row_id).removesuffix('…')}{place}"


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
