"""A snapshot as rich draws it. The only module of the console that imports rich."""

import time
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from molecule_connect.console.lines import Line, trouble, with_hint
from molecule_connect.console.sanitize import one_line, span
from molecule_connect.console.screen import Summary
from molecule_connect.console.view import Health, MessageRow, Snapshot, pick

_NARROW = 60
# Time, caller and state of a wide table, with their gaps.
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
# A beat is due every 30 s, every 60 s where the platform's rate limit is small.
_BEAT_IS_LATE = 75.0


def draw_line(line: Line) -> Text:
    """A line over the view."""
    return Text(f"{line.level.lower()}: {line.text}", style=_STYLES.get(line.level, ""))


def draw(snapshot: Snapshot, summaries: Mapping[str, Summary], *, width: int, height: int) -> RenderableType:
    """The whole view: a head for each connection, the counts, and as much of the messages as *height* lines hold."""
    lines: list[RenderableType] = []
    if len(snapshot.connections) > 1:
        lines += _heads(snapshot, summaries, room=max(2, height // 2))
    else:
        for workspace_id, health in snapshot.connections:
            lines += _head(workspace_id, health, summaries.get(workspace_id), snapshot)
    lines.append(_counts(snapshot, width))
    rows = pick(snapshot.rows, max(0, height - len(lines) - 2))
    if rows:
        lines.append(_table(rows, width, name_workspaces=len(snapshot.connections) > 1))
    # The cursor rests on a line of its own: a ^C that the terminal echoes there breaks no line of the picture.
    return Group(*lines, Text())


def _heads(snapshot: Snapshot, summaries: Mapping[str, Summary], *, room: int) -> list[Text]:
    """A line for each of several workspaces, and one for each trouble; where *room* is short, the well ones go."""
    ordered = sorted(snapshot.connections, key=lambda named: _is_well(named[1]))
    blocks = [_block(name, health, summaries.get(name), snapshot) for name, health in ordered]
    lines: list[Text] = []
    for shown, block in enumerate(blocks):
        left = len(blocks) - shown
        if len(lines) + len(block) > room - (left > 1):
            all_well = all(_is_well(health) for _, health in ordered[shown:])
            return [*lines, _line(f"  and {left} more{', all online' if all_well else ''}", "dim")]
        lines += block
    return lines


def _block(workspace_id: str, health: Health, summary: Summary | None, snapshot: Snapshot) -> list[Text]:
    head = _line(workspace_id, "bold")
    head.append_text(_state(health, snapshot, since_start=False))
    if summary is not None:
        head.append(f"  {summary.backend}, {summary.api_url}", "dim")
    troubles = [
        _line(f"    {one_line(with_hint(trouble(part, reason), hint), 400)}", "bold red")
        for part, (reason, hint) in health.troubles.items()
    ]
    return [head, *troubles]


def _is_well(health: Health) -> bool:
    return health.registered and not (health.troubles or health.stopping or health.paused)


def _head(workspace_id: str, health: Health, summary: Summary | None, snapshot: Snapshot) -> list[Text]:
    title = _line(workspace_id, "bold")
    if summary is not None:
        title.append(f"  {summary.backend}, {summary.mode}, {summary.api_url}", "dim")
    lines = [title, _state(health, snapshot)]
    for part, (reason, hint) in health.troubles.items():
        lines.append(_line(f"  {one_line(trouble(part, reason))}", "bold red"))
        if hint:
            lines.append(_line(f"  -> {one_line(hint)}", "yellow"))
    return lines


def _state(health: Health, snapshot: Snapshot, *, since_start: bool = True) -> Text:
    if health.stopping:
        text = _line(f"  {health.stopping}", "yellow")
    elif health.paused:
        text = _line("  paused on the platform: messages are kept, none is run", "yellow")
    elif not health.registered:
        text = _line("  not registered yet", "yellow")
    else:
        text = _line("  troubled" if health.troubles else "  online", "red" if health.troubles else "green")
    if health.last_beat is not None:
        age = snapshot.now - health.last_beat
        text.append(f", beat {age:.0f} s ago", "red" if age > _BEAT_IS_LATE else "dim")
    if health.listening:
        text.append(f", {health.listening}", "dim")
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
        cells = [Text(row.caller), Text(row.state, _STYLES[row.state]), _story(row, room)]
        if name_workspaces:
            cells.insert(0, Text(row.workspace_id))
        if wide:
            cells.insert(0, Text(time.strftime("%H:%M:%S", time.localtime(row.time))))
        table.add_row(*cells)
    return table


def _story(row: MessageRow, width: int) -> Text:
    detail = Text(row.detail)
    if width < _NARROW or not (row.text and row.detail):
        return detail if row.detail else Text(row.text)
    asked = Text(row.text, "dim")
    asked.truncate((width - _FIXED_COLUMNS) // 2, overflow="ellipsis")
    return Text.assemble(asked, "  ", detail)


def _line(text: str, style: str) -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")
