"""Render a snapshot with rich. The only module of the console that imports it."""

import time
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from molecule_connect.console.lines import Line, problem_text, with_hint
from molecule_connect.console.sanitize import one_line, span
from molecule_connect.console.screen import Summary
from molecule_connect.console.view import MessageRow, Snapshot, WorkspaceStatus, pick

_NARROW = 60
# The width of time, caller and state in a wide table, with gaps.
_FIXED_COLUMNS = 34
_WORKSPACE_COLUMN = 14
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
# Heartbeats are sent every 30 s, or every 60 s under a low rate limit.
_LATE_HEARTBEAT = 75.0


def draw_line(line: Line) -> Text:
    """A line above the view."""
    return Text(f"{line.level.lower()}: {line.text}", style=_STYLES.get(line.level, ""))


def draw(snapshot: Snapshot, summaries: Mapping[str, Summary], *, width: int, height: int) -> RenderableType:
    """The view: a header per workspace, the counters, and as many messages as fit into *height* lines."""
    lines: list[RenderableType] = []
    if len(snapshot.workspaces) > 1:
        lines += _headers(snapshot, summaries, room=max(2, height // 2))
    else:
        for workspace_id, status in snapshot.workspaces:
            lines += _header(workspace_id, status, summaries.get(workspace_id), snapshot)
    lines.append(_counts(snapshot, width))
    rows = pick(snapshot.rows, max(0, height - len(lines) - 2))
    if rows:
        lines.append(_table(rows, width, name_workspaces=len(snapshot.workspaces) > 1))
    # An empty last line for the cursor, so that an echoed ^C doesn't break the view.
    return Group(*lines, Text())


def _headers(snapshot: Snapshot, summaries: Mapping[str, Summary], *, room: int) -> list[Text]:
    """A line per workspace and per problem. If *room* is short, healthy workspaces are left out first."""
    ordered = sorted(snapshot.workspaces, key=lambda named: _is_healthy(named[1]))
    blocks = [_block(name, status, summaries.get(name), snapshot) for name, status in ordered]
    lines: list[Text] = []
    for shown, block in enumerate(blocks):
        left = len(blocks) - shown
        if len(lines) + len(block) > room - (left > 1):
            all_healthy = all(_is_healthy(status) for _, status in ordered[shown:])
            return [*lines, _line(f"  and {left} more{', all online' if all_healthy else ''}", "dim")]
        lines += block
    return lines


def _block(workspace_id: str, status: WorkspaceStatus, summary: Summary | None, snapshot: Snapshot) -> list[Text]:
    head = _line(workspace_id, "bold")
    head.append_text(_state(status, snapshot, since_start=False))
    if summary is not None:
        head.append(f"  {summary.backend}, {summary.api_url}", "dim")
    problems = [
        _line(f"    {one_line(with_hint(problem_text(part, reason), hint), 400)}", "bold red")
        for part, (reason, hint) in status.problems.items()
    ]
    return [head, *problems]


def _is_healthy(status: WorkspaceStatus) -> bool:
    return status.registered and not (status.problems or status.stopping or status.paused)


def _header(workspace_id: str, status: WorkspaceStatus, summary: Summary | None, snapshot: Snapshot) -> list[Text]:
    title = _line(workspace_id, "bold")
    if summary is not None:
        title.append(f"  {summary.backend}, {summary.mode}, {summary.api_url}", "dim")
    lines = [title, _state(status, snapshot)]
    for part, (reason, hint) in status.problems.items():
        lines.append(_line(f"  {one_line(problem_text(part, reason))}", "bold red"))
        if hint:
            lines.append(_line(f"  -> {one_line(hint)}", "yellow"))
    return lines


def _state(status: WorkspaceStatus, snapshot: Snapshot, *, since_start: bool = True) -> Text:
    if status.stopping:
        text = _line(f"  {status.stopping}", "yellow")
    elif status.paused:
        text = _line("  paused on the platform: messages are stored but not processed", "yellow")
    elif not status.registered:
        text = _line("  not registered yet", "yellow")
    else:
        text = _line("  problems" if status.problems else "  online", "red" if status.problems else "green")
    if status.last_beat is not None:
        age = snapshot.now - status.last_beat
        text.append(f", heartbeat {age:.0f} s ago", "red" if age > _LATE_HEARTBEAT else "dim")
    if status.listening:
        text.append(f", {status.listening}", "dim")
    if since_start:
        text.append(f", up {span(snapshot.uptime)}", "dim")
    return text


def _counts(snapshot: Snapshot, width: int) -> Text:
    counts = snapshot.counts
    pairs = [
        ("received", "in", counts.received, ""),
        ("waiting", "wait", counts.waiting, "yellow"),
        ("running", "run", counts.running, "cyan"),
        ("delivered", "sent", counts.delivered, "green"),
        ("failed", "fail", counts.failed, "bold red"),
    ]
    text = _line("", "")
    for name, short_name, count, style in pairs:
        text.append(f"{name if width >= _NARROW else short_name} {count}  ", style if count else "dim")
    return text


def _table(rows: tuple[MessageRow, ...], width: int, *, name_workspaces: bool) -> Table:
    wide = width >= _NARROW
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    if wide:
        table.add_column(width=8, no_wrap=True, style="dim")
    if name_workspaces:
        table.add_column(width=_WORKSPACE_COLUMN, no_wrap=True, overflow="ellipsis")
    table.add_column(width=14 if wide else 8, no_wrap=True, overflow="ellipsis")
    table.add_column(width=9, no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for row in rows:
        room = width - _WORKSPACE_COLUMN if name_workspaces else width
        cells = [Text(row.caller), Text(row.state, _STYLES[row.state]), _details(row, room)]
        if name_workspaces:
            cells.insert(0, Text(row.workspace_id))
        if wide:
            cells.insert(0, Text(time.strftime("%H:%M:%S", time.localtime(row.time))))
        table.add_row(*cells)
    return table


def _details(row: MessageRow, width: int) -> Text:
    detail = Text(row.detail)
    if width < _NARROW or not (row.text and row.detail):
        return detail if row.detail else Text(row.text)
    asked = Text(row.text, "dim")
    asked.truncate((width - _FIXED_COLUMNS) // 2, overflow="ellipsis")
    return Text.assemble(asked, "  ", detail)


def _line(text: str, style: str) -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")
