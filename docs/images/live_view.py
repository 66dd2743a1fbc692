"""Draws the pictures of the live view: python docs/images/live_view.py"""

import io
import os
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from molecule_connect import events
from molecule_connect.console.journal_facts import JournalFacts
from molecule_connect.console.render import draw
from molecule_connect.console.screen import Summary
from molecule_connect.console.view import View
from molecule_connect.journal.totals import Totals

WORKSPACE = "6f1c2e1a-3b7d-4c55-9a3e-2f7d0c1b9e44"
PEERS = {"research": "2c9d41aa-0000-4000-8000-000000000001", "ops": "77aa01bc-0000-4000-8000-000000000002"}
COLUMNS, LINES = 80, 24
# Rich's own format loads a font from another site.
FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px;
line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


class Clock:
    now = 1_797_000_000.0

    def __call__(self) -> float:
        return self.now


def message(number: int, caller: str | None) -> dict[str, str | None]:
    caller_id = None if caller is None else PEERS[caller]
    return {"workspace_id": WORKSPACE, "row_id": f"{number:02x}f03bc1-5a1e-4d7c", "caller_id": caller_id}


def filled(clock: Clock) -> View:
    view = View(wall=clock, monotonic=clock)
    view.add(WORKSPACE)
    view.add_facts(JournalFacts(names={WORKSPACE: {PEERS["research"]: "Research", PEERS["ops"]: "Ops Europe"}}))
    clock.now += 5400

    def happen(*happened: events.Event, after: float = 0.0) -> None:
        clock.now += after
        for event in happened:
            view.apply(event)

    happen(events.Registered(workspace_id=WORKSPACE), events.Listening(workspace_id=WORKSPACE, by="stream"))
    for number, (caller, text, reply, cost) in enumerate(
        [
            ("ops", "Summarize last night's alerts", "3 alerts, all resolved: disk on db-2, ...", 0.0312),
            (None, "Which invoices are overdue?", "Two: 2026-114 and 2026-121", 0.0184),
            ("research", "Compare the two vendor offers", "Offer B is 12 % cheaper, but ...", 0.1027),
        ]
    ):
        about = message(number, caller)
        happen(events.Received(**about, text=text), events.Started(**about, attempt=1), after=40)
        happen(
            events.Spent(**about, cost_usd=cost),
            events.Answered(**about, text=reply, seconds=8.0 + number),
            events.Delivered(**about),
            after=8 + number,
        )
    failed, retried = message(9, "research"), message(10, "ops")
    happen(events.Started(**failed, attempt=4, text="Fetch the tender documents"), after=30)
    reason = "the command ended with exit status 1: starting Traceback (most recent call last): KeyError: 'TENDER_KEY'"
    happen(events.Dead(**failed, reason=reason), after=2)
    happen(events.Started(**retried, attempt=1, text="Check the backup of db-2"), after=3)
    slow = "the command ended with exit status 75: ssh: connect to host db-2 port 22: Connection timed out"
    happen(events.Retrying(**retried, what="answering", reason=slow, seconds=23, attempt=2), after=3)
    running = message(11, None)
    happen(events.Received(**running, text="Plan the move"), events.Started(**running, attempt=1), after=1)
    happen(events.Progressed(**running, text="reading 14 files"), events.Spent(**running, cost_usd=0.0441), after=12)
    for number, text in ((12, "And the new office?"), (13, "Please also check the lease")):
        happen(events.Received(**message(number, None), text=text))
    happen(events.Beat(workspace_id=WORKSPACE, active_tasks=1, wedged=""))
    view.add_facts(JournalFacts(totals={WORKSPACE: Totals(unfinished=4, handled=41, failed=1, cost_usd=2.87)}))
    clock.now += 4
    return view


def picture(view: View, target: Path) -> None:
    summary = Summary(
        workspace_id=WORKSPACE, backend="exec", mode="poll", api_url="https://app.example.com", state_dir=""
    )
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    lines = draw(view.snapshot(50), {WORKSPACE: summary}, width=COLUMNS, height=LINES - 1)
    for line in lines:
        console.print(line, soft_wrap=True)
    svg = console.export_svg(title="molecule connect", theme=MONOKAI, code_format=FORMAT, unique_id="view")
    target.write_text(svg)


def main() -> None:
    os.environ["TZ"] = "UTC"
    time.tzset()
    folder, clock = Path(__file__).parent, Clock()
    view = filled(clock)
    picture(view, folder / "live-view.svg")
    view.apply(events.Stopping(workspace_id=WORKSPACE, running=1, grace=30.0))
    clock.now += 4
    picture(view, folder / "live-view-stopping.svg")


if __name__ == "__main__":
    main()
