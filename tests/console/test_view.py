"""What the live view knows, and how it is drawn."""

import io
from typing import Any

import pytest
from rich.console import Console

from molecule_connect import events
from molecule_connect.console.render import draw
from molecule_connect.console.screen import Summary
from molecule_connect.console.view import MessageRow, View, pick

SUMMARY = Summary(workspace_id="ws_1", backend="mock", mode="poll", api_url="http://localhost:8080", state_dir="/state")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def row(number: int, caller: str | None = "ws_2") -> dict[str, Any]:
    return {"workspace_id": "ws_1", "row_id": f"act-{number}", "caller_id": caller}


def view_of(*happened: events.Event, clock: Clock | None = None) -> View:
    view = View(wall=lambda: 0.0, monotonic=clock or Clock())
    view.add("ws_1")
    for event in happened:
        view.apply(event)
    return view


def screen_text(view: View, *, width: int = 80, height: int = 24) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=height, markup=False, emoji=False, highlight=False)
    console.print(draw(view.snapshot(20), {"ws_1": SUMMARY}, width=width, height=height))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("happened", "state", "detail"),
    [
        ([events.Received(**row(1), text="hi")], "waiting", ""),
        ([events.Started(**row(1), attempt=1)], "running", ""),
        ([events.Started(**row(1), attempt=3)], "running", "attempt 3"),
        ([events.Progressed(**row(1), text="step")], "running", "step"),
        ([events.Answered(**row(1), text="A", seconds=1)], "answered", "A"),
        ([events.Answered(**row(1), text="A", seconds=1), events.Delivered(**row(1))], "delivered", "A"),
        ([events.Answered(**row(1), text="", seconds=1, silent=True)], "silent", "no reply, 1.0 s"),
        ([events.Retrying(**row(1), what="answer", reason="boom", seconds=5)], "retry", "boom; again in 5.0 s"),
        ([events.Dead(**row(1), reason="too often")], "failed", "too often"),
        ([events.Recorded(**row(1), kind="result", text="x")], "recorded", "result"),
    ],
)
def test_a_message_shows_where_it_is(happened: list[events.Event], state: str, detail: str) -> None:
    (shown,) = view_of(*happened).snapshot(10).rows

    assert (shown.state, shown.detail) == (state, detail)


def test_the_counts_follow_the_messages() -> None:
    view = view_of(
        *(events.Received(**row(number), text="hi") for number in range(5)),
        events.Started(**row(0), attempt=1),
        events.Answered(**row(0), text="A", seconds=1),
        events.Delivered(**row(0)),
        events.Started(**row(1), attempt=1),
        events.Started(**row(2), attempt=1),
        events.Retrying(**row(2), what="answer", reason="boom", seconds=5),
        events.Dead(**row(3), reason="no"),
    )

    counts = view.snapshot(10).counts
    assert (counts.received, counts.waiting, counts.running, counts.delivered, counts.failed) == (5, 2, 1, 1, 1)


def test_dead_messages_are_counted_once() -> None:
    # The line that tells the sender so is sent like an answer, and may itself be given up.
    given_up = [
        events.Received(**row(1), text="hi"),
        events.Started(**row(1), attempt=4),
        events.Dead(**row(1), reason="no answer after 4 attempts"),
        events.Retrying(**row(1), what="sending", reason="no route", seconds=5),
    ]
    endings = [
        events.Notified(**row(1)),
        events.Notified(**row(1), error="it cannot be sent"),
        events.Delivered(**row(1)),
    ]
    for ending in endings:
        snapshot = view_of(*given_up, ending).snapshot(10)
        assert snapshot.rows[0].state == "failed"
        counts = snapshot.counts
        assert (counts.received, counts.waiting, counts.running, counts.delivered, counts.failed) == (1, 0, 0, 0, 1)
    assert "delivered 0  failed 1" in screen_text(view_of(*given_up, events.Notified(**row(1))))
    assert "delivered 0  failed 1" in screen_text(view_of(events.Notified(**row(1))))


@pytest.mark.parametrize("again", [[events.Started(**row(1), attempt=1)], []])
def test_replayed_messages_no_longer_count_as_failed(again: list[events.Event]) -> None:
    # Of one whose answer is stored no backend is asked again.
    view = view_of(
        events.Dead(**row(1), reason="no"),
        *again,
        events.Answered(**row(1), text="A", seconds=1),
        events.Delivered(**row(1)),
    )

    snapshot = view.snapshot(10)
    assert (snapshot.rows[0].state, snapshot.counts.delivered, snapshot.counts.failed) == ("delivered", 1, 0)


def test_finished_messages_make_room_first() -> None:
    states = ["running"] * 2 + ["delivered"] * 7
    rows = tuple(
        MessageRow(workspace_id="w", time=0, caller="c", text=str(number), state=state)
        for number, state in enumerate(states)
    )

    assert [each.text for each in pick(rows, 4)] == ["0", "1", "7", "8"]
    assert [each.text for each in pick(rows, 1)] == ["1"]
    assert pick(rows, 0) == ()


def test_keeps_a_bounded_number_of_rows() -> None:
    view = view_of(*(events.Received(**row(number), text="hi") for number in range(2000)))

    snapshot = view.snapshot(10_000)
    assert len(snapshot.rows) == 500
    assert snapshot.counts.waiting == 2000


def test_problems_show_their_hint_until_cleared() -> None:
    view = view_of(events.Trouble(workspace_id="ws_1", part="intake", reason="503", hint="wait for the platform"))
    text = screen_text(view)
    assert "intake: 503" in text
    assert "-> wait for the platform" in text

    view.apply(events.Recovered(workspace_id="ws_1", part="intake"))
    assert "503" not in screen_text(view)


def test_status_shows_registration_listening_and_heartbeat_age() -> None:
    clock = Clock()
    view = view_of(clock=clock)
    assert "not registered yet" in screen_text(view)

    view.apply(events.Registered(workspace_id="ws_1"))
    view.apply(events.Listening(workspace_id="ws_1", by="stream"))
    view.apply(events.Beat(workspace_id="ws_1", active_tasks=0, wedged=""))
    clock.now += 12
    assert "online, heartbeat 12 s ago, stream" in screen_text(view)


def test_important_lines_appear_once_above() -> None:
    view = view_of(events.Dead(**row(1), reason="no"), events.Received(**row(2), text="hi"))

    assert [line.text for line in view.snapshot(10).above] == ["act-1 given up: no"]
    assert view.snapshot(10).above == ()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (20, 5), (8, 3)])
def test_the_picture_fits_the_terminal(width: int, height: int) -> None:
    trouble = events.Trouble(workspace_id="ws_1", part="intake", reason="503 " * 40, hint="wait " * 40)
    view = view_of(trouble, *(events.Received(**row(n, None), text="宽 text " * 30) for n in range(40)))

    lines = screen_text(view, width=width, height=height).splitlines()

    assert max(len(line) for line in lines) <= width
    assert len(lines) <= max(height, 6)


def test_peer_text_cannot_style_the_view() -> None:
    view = view_of(events.Received(**row(1, "\x1b[2Jevil"), text="[bold red]x[/] \x1b]0;t\x07\x1b[31m:smile:"))

    text = screen_text(view)

    assert "\x1b" not in text
    assert "[bold red]x[/] :smile:" in text
    assert "evil" in text


def several(count: int, *happened: events.Event) -> View:
    view = View(wall=lambda: 0.0, monotonic=Clock())
    for number in range(count):
        view.add(f"ws_{number}")
        view.apply(events.Registered(workspace_id=f"ws_{number}"))
    for event in happened:
        view.apply(event)
    return view


def test_several_workspaces_have_a_line_each() -> None:
    received = [events.Received(workspace_id=f"ws_{n}", row_id="same", caller_id=None, text="hi") for n in range(2)]

    lines = screen_text(several(2, *received), width=100).splitlines()

    assert lines[0].startswith("ws_0  online")
    assert lines[1].startswith("ws_1  online")
    assert [line.split()[1:4] for line in lines[3:5]] == [["ws_0", "person", "waiting"], ["ws_1", "person", "waiting"]]


def test_shows_problems_first_when_space_is_short() -> None:
    trouble = events.Trouble(workspace_id="ws_30", part="intake", reason="no feed", hint="look there")

    lines = screen_text(several(50, trouble), height=12).splitlines()

    assert lines[0].startswith("ws_30  problems")
    assert "intake: no feed -> look there" in lines[1]
    assert "  and 46 more, all online" in lines
    assert len(lines) <= 12


def test_lines_above_name_the_workspace_of_several() -> None:
    view = several(2, events.Paused(workspace_id="ws_1"))

    assert [line.text.partition(" ")[0] for line in view.snapshot(5).above] == ["[ws_1]"]


def test_restarted_workspaces_show_and_removed_ones_vanish() -> None:
    view = several(3)
    for name in ("ws_0", "ws_1"):
        view.apply(events.Trouble(workspace_id=name, part="connection", reason="401"))
        view.apply(events.Stopped(workspace_id=name))
    view.add("ws_0")
    view.apply(events.Registered(workspace_id="ws_0"))
    view.forget("ws_1")

    health = dict(view.snapshot(5).workspaces)
    assert (health["ws_0"].stopping, health["ws_0"].problems) == ("", {})
    assert health.keys() == {"ws_0", "ws_2"}
