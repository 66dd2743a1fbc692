"""What the live view knows, and how it is drawn."""

import itertools
from typing import Any

import pytest
from rich.cells import cell_len

from molecule_connect import events
from molecule_connect.console.journal_facts import JournalFacts
from molecule_connect.console.render import UNFINISHED, draw, farewell
from molecule_connect.console.screen import Summary
from molecule_connect.console.view import FAILED_AGE, MOST_LINES, MOST_ROWS, NOTE_AGE, View
from molecule_connect.journal.inspect import Attempt, MessageSummary
from molecule_connect.journal.models import State
from molecule_connect.journal.totals import Totals

SUMMARY = Summary(workspace_id="ws_1", backend="mock", mode="poll", api_url="http://localhost:8080", state_dir="/state")
PEER, OTHER = "3f2a9c1d-0000-4000-8000-000000000001", "77aa01bc-0000-4000-8000-000000000002"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def row(number: int, caller: str | None = "ws_2") -> dict[str, Any]:
    return {"workspace_id": "ws_1", "row_id": f"act-{number}", "caller_id": caller}


def view_of(*happened: events.Event, clock: Clock | None = None) -> View:
    clock = clock or Clock()
    view = View(wall=lambda: clock() - 100.0, monotonic=clock)
    view.add("ws_1")
    for event in happened:
        view.apply(event)
    return view


def drawn(view: View, *, width: int = 80, height: int = 24) -> list[str]:
    return [line.plain.rstrip() for line in draw(view.snapshot(100), {"ws_1": SUMMARY}, width=width, height=height)]


def screen_text(view: View, **size: int) -> str:
    return "\n".join(drawn(view, **size))


def line_with(view: View, text: str, **size: int) -> str:
    return next(line for line in drawn(view, **size) if text in line and "handled" not in line and "ok" not in line)


@pytest.mark.parametrize(
    ("happened", "state", "detail"),
    [
        ([events.Received(**row(1), text="hi")], "waiting", ""),
        ([events.Started(**row(1), attempt=1)], "running", ""),
        ([events.Started(**row(1), attempt=3)], "running", ""),
        ([events.Progressed(**row(1), text="step")], "running", "step"),
        ([events.Answered(**row(1), text="A", seconds=1)], "answered", "A"),
        ([events.Answered(**row(1), text="A", seconds=1), events.Delivered(**row(1))], "delivered", "A"),
        ([events.Answered(**row(1), text="", seconds=1, silent=True)], "silent", ""),
        ([events.Retrying(**row(1), what="answer", reason="boom", seconds=5)], "retry", "boom"),
        ([events.Dead(**row(1), reason="too often")], "failed", "too often"),
        ([events.Recorded(**row(1), kind="result", text="x")], "recorded", "result"),
    ],
)
def test_a_message_shows_where_it_is(happened: list[events.Event], state: str, detail: str) -> None:
    (shown,) = view_of(*happened).snapshot(10).rows

    assert (shown.state, shown.detail) == (state, detail)


def test_counts_follow_the_events() -> None:
    view = view_of(
        *(events.Received(**row(number), text="hi") for number in range(5)),
        events.Started(**row(0), attempt=1),
        events.Spent(**row(0), cost_usd=0.25),
        events.Answered(**row(0), text="A", seconds=1),
        events.Delivered(**row(0)),
        events.Started(**row(1), attempt=1),
        events.Started(**row(2), attempt=1),
        events.Retrying(**row(2), what="answer", reason="boom", seconds=5),
        events.Dead(**row(3), reason="no"),
        events.Answered(**row(4), text="", seconds=1, silent=True),
    )

    counts = view.snapshot(10).counts
    assert (counts.running, counts.waiting, counts.handled, counts.failed, counts.cost_usd) == (1, 1, 2, 1, 0.25)


def test_counts_of_the_day_are_the_journals() -> None:
    view = view_of(events.Received(**row(1), text="hi"), events.Started(**row(1), attempt=1))
    view.add_facts(JournalFacts(totals={"ws_1": Totals(unfinished=3, handled=12, failed=2, cost_usd=0.4)}))

    assert "running 1  waiting 2  today: handled 12  failed 2  cost $0.4" in screen_text(view)
    assert "run 1  wait 2  | ok 12  fail 2  $0.4" in screen_text(view, width=40)


def test_dead_messages_are_counted_once() -> None:
    # The notice to the sender is sent like a reply, and may itself be given up.
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
        assert (counts.running, counts.waiting, counts.handled, counts.failed) == (0, 0, 0, 1)
    assert view_of(events.Notified(**row(1))).snapshot(1).counts.failed == 1


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
    assert (snapshot.rows[0].state, snapshot.counts.handled, snapshot.counts.failed) == ("delivered", 1, 0)


def mixed() -> View:
    return view_of(
        events.Received(**row(1), text="first waiting"),
        events.Received(**row(2), text="second waiting"),
        events.Answered(**row(3), text="fine", seconds=2),
        events.Delivered(**row(3)),
        events.Started(**row(4), attempt=1, text="at work"),
        events.Dead(**row(5), reason="too often"),
        events.Retrying(**row(6), what="answering", reason="boom", seconds=20, attempt=2),
        events.Started(**row(7), attempt=1, text="also at work"),
    )


def test_running_and_failed_come_first_and_waiting_last() -> None:
    states = [line.split()[2] for line in drawn(mixed()) if "ws_2" in line]

    assert states == ["running", "running", "failed", "retry", "delivered", "waiting", "waiting"]


def test_uses_the_full_height() -> None:
    view = view_of(*(events.Recorded(**row(number), kind="result", text=f"text {number}") for number in range(90)))

    for height in (10, 24, 60):
        lines = drawn(view, height=height)
        assert len(lines) == height
        assert "recorded" in lines[-1]


def test_every_kind_keeps_a_place() -> None:
    view = view_of(
        *(events.Started(**row(number), attempt=1) for number in range(50)),
        *(events.Dead(**row(number), reason="no") for number in range(50, 90)),
        *(events.Received(**row(number), text="hi") for number in range(100, 150)),
    )

    text = screen_text(view)
    assert all(state in text for state in ("running", "failed", "waiting"))


def test_failures_keep_a_place_in_a_small_window() -> None:
    lines = drawn(
        view_of(
            *(events.Started(**row(number), attempt=1) for number in range(50)),
            events.Dead(**row(50), reason="the error"),
            *(events.Received(**row(number), text="hi") for number in range(100, 150)),
        ),
        width=40,
        height=9,
    )

    assert [line.split()[1] for line in lines[3:6]] == ["run", "run", "run"]
    assert lines[7] == " the error"


def test_keeps_a_bounded_number_of_rows() -> None:
    view = view_of(events.Started(**row(0), attempt=1), *(events.Received(**row(n), text="hi") for n in range(1, 2000)))

    snapshot = view.snapshot(10_000)
    assert len(snapshot.rows) == MOST_ROWS
    assert snapshot.rows[0].state == "running"
    assert snapshot.counts.waiting == 1999


def test_failures_show_the_end_of_the_error_and_the_next_step() -> None:
    error = "no answer after 4 attempts: exit status 3: Traceback\n" + "frame\n" * 40 + "x" * 200 + " KeyError: TOKEN\n"
    lines = draw(view_of(events.Dead(**row(1), reason=error)).snapshot(9), {"ws_1": SUMMARY}, width=80, height=24)
    shown = next(line for line in lines if "KeyError" in line.plain)

    assert shown.plain.strip().startswith("…xxx")
    assert shown.plain.endswith("KeyError: TOKEN")
    assert "red" in {str(piece.style) for piece in shown.spans}
    assert "-> molecule messages replay act-1 --state-dir /state" in [line.plain.strip() for line in lines]


def test_a_hint_is_shown_for_the_first_of_equal_failures() -> None:
    hint = "see it fail with 'molecule try mock'"
    text = screen_text(view_of(*(events.Dead(**row(number), reason="no", hint=hint) for number in range(3))))

    assert text.count(f"-> {hint}") == 1
    assert text.count("-> molecule messages replay") == 3


def test_retries_show_attempt_and_countdown() -> None:
    clock = Clock()
    view = view_of(
        events.Started(**row(1), attempt=1, text="question"),
        events.Retrying(**row(1), what="answering", reason="exit status 1: boom", seconds=20, attempt=2),
        clock=clock,
    )
    assert "2 of 4, again in 20 s" in line_with(view, "retry")
    clock.now += 5
    assert "2 of 4, again in 15 s" in line_with(view, "retry", width=40)
    assert "exit status 1: boom" in screen_text(view)
    clock.now += 60
    assert "2 of 4, again now" in line_with(view, "retry")

    view.apply(events.Started(**row(1), attempt=2))
    assert "2 of 4" in line_with(view, "running")
    assert "again" not in screen_text(view)


def test_rows_show_elapsed_and_total_time() -> None:
    clock = Clock()
    view = view_of(events.Started(**row(1), attempt=1), clock=clock)
    clock.now += 12
    assert "running     12 s" in screen_text(view)
    view.apply(events.Retrying(**row(1), what="answering", reason="boom", seconds=100, attempt=2))
    clock.now += 100
    view.apply(events.Started(**row(1), attempt=2))
    clock.now += 20
    assert "running     32 s" in screen_text(view)
    view.apply(events.Answered(**row(1), text="A", seconds=20))
    clock.now += 50
    view.apply(events.Delivered(**row(1)))
    assert "delivered   32 s" in screen_text(view)


def test_rows_show_progress_and_cost() -> None:
    view = view_of(
        events.Started(**row(1), attempt=1, text="question"),
        events.Spent(**row(1), cost_usd=0.0125),
        events.Progressed(**row(1), text="reading files"),
    )

    line = line_with(view, "running", width=120)
    assert all(text in line for text in ("$0.0125", "question", "reading files"))
    view.apply(events.Spent(**row(1), cost_usd=1.5))
    assert "$1.51" in line_with(view, "running")


def test_names_are_shown_once_known() -> None:
    view = view_of(events.Received(**row(1, PEER), text="hi"))
    assert "3f2a9c1d… " in screen_text(view)

    view.apply(events.PeerNamed(workspace_id="ws_1", peer_id=PEER, name="Research"))
    assert line_with(view, "waiting").split()[1] == "Research"
    view.add_facts(JournalFacts(names={"ws_1": {OTHER: "research"}}))
    assert "Research (3f2a…)" in screen_text(view)


def test_ids_of_doubtful_names_are_never_cut() -> None:
    view = view_of(events.Received(**row(1, PEER), text="hi"))
    view.apply(events.PeerNamed(workspace_id="ws_1", peer_id=PEER, name="person who has a very long name indeed"))

    for width in (30, 40, 80, 200):
        assert "3f2a…" in line_with(view, "wait", width=width)


def summary(number: int, state: State, **more: Any) -> MessageSummary:
    values = {
        "workspace_id": "ws_1", "row_id": f"old-{number}", "kind": "message", "state": state, "caller_id": None,
        "context_id": None, "time": 0, "changed": 0.0, "attempt": 1, "crash_count": 0, "replay": 0, "not_before": None,
        "held_until": None, "error": None, "reason": None, "progress": None, "repeat_of": None, "has_reply": True,
        "has_text": True, "text": f"question {number}", "answer": None, "answered_at": None, "started": None,
        "runs": (), "cost_usd": None,
    }  # fmt: skip
    return MessageSummary(**(values | more))


def test_shows_messages_from_before_a_restart() -> None:
    runs = (Attempt(1.0, 31.0, "boom"),)
    view = view_of(events.Started(workspace_id="ws_1", row_id="old-1", caller_id=None, attempt=2))
    messages = [
        summary(1, State.RECEIVED),
        summary(2, State.DEAD, reason="exit status 9", cost_usd=0.5, runs=runs),
        summary(3, State.RECEIVED, error="exit status 8", not_before=30.0),
        summary(4, State.DONE, answer="the reply", runs=runs),
        summary(5, State.RUNNING),
    ]
    view.add_facts(JournalFacts(messages=messages))

    rows = {shown.row_id: shown for shown in view.snapshot(9).rows}
    assert [(one, shown.state) for one, shown in sorted(rows.items())] == [
        ("old-1", "running"), ("old-2", "failed"), ("old-3", "retry"), ("old-4", "delivered"), ("old-5", "waiting"),
    ]  # fmt: skip
    text = screen_text(view)
    for shown in ("exit status 9", "$0.5", "2 of 4, again in 30 s", "the reply", "delivered   30 s"):
        assert shown in text

    view.add_facts(JournalFacts(gone=[("ws_1", "old-2")]))
    assert "exit status 9" not in screen_text(view)


def test_old_failures_leave_the_view() -> None:
    clock = Clock()
    view = view_of(events.Dead(**row(1), reason="no"), clock=clock)
    clock.now += FAILED_AGE

    assert view.snapshot(9).rows == ()


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


def test_lines_for_the_normal_screen_appear_once() -> None:
    view = view_of(events.Dead(**row(1), reason="no"), events.Received(**row(2), text="hi"))

    assert [line.text for line in view.take_lines()] == ["act-1 given up: no"]
    assert view.take_lines() == []


def test_lines_for_the_normal_screen_are_bounded() -> None:
    view = view_of(*(events.Dead(**row(number), reason="no") for number in range(MOST_LINES + 5)))

    lines = view.take_lines()
    assert len(lines) == MOST_LINES + 1
    assert lines[0].text == "5 earlier lines left out"


def test_notices_are_shown_for_a_while() -> None:
    clock = Clock()
    view = view_of(events.Notice(workspace_id="ws_1", text="skipped 3 messages", hint="look"), clock=clock)
    assert "skipped 3 messages -> look" in drawn(view)[-1]

    clock.now += NOTE_AGE
    assert "skipped" not in screen_text(view)


OUTAGE = "http://x cannot be reached (refused)"


def outage(*parts: str) -> list[events.Event]:
    operations = {"intake": "activity", "stream": "events", "heartbeat": "heartbeat", "sending": "notify"}
    return [
        events.Trouble(workspace_id="ws_1", part=part, reason=f"{operations[part]}: {OUTAGE}", hint=f"hint of {part}")
        for part in parts
    ]


def test_one_cause_of_an_outage_is_one_line() -> None:
    ended = events.Trouble(workspace_id="ws_1", part="stream", reason="the event stream ended")
    view = view_of(ended, *outage("heartbeat", "intake", "stream"))
    text = screen_text(view)

    assert text.count("cannot be reached") == 1
    assert f"intake, heartbeat, stream: {OUTAGE}" in text
    assert text.count("hint of") == 1
    lines = [line.text for line in view.take_lines()]
    assert [line.partition(":")[0] for line in lines] == ["heartbeat"]

    for part in ("heartbeat", "stream"):
        view.apply(events.Recovered(workspace_id="ws_1", part=part))
        assert view.take_lines() == []
    view.apply(events.Recovered(workspace_id="ws_1", part="intake"))
    assert [line.text for line in view.take_lines()] == ["intake: recovered"]


def test_an_outage_is_not_repeated_for_each_reply() -> None:
    view = view_of(
        *outage("intake"),
        events.Answered(**row(1), text="A", seconds=1),
        events.Retrying(**row(1), what="sending", reason=f"notify: {OUTAGE}", seconds=5),
    )

    assert screen_text(view).count("cannot be reached") == 1
    assert "again in 5 s" in line_with(view, "answered")


def test_different_causes_keep_their_lines() -> None:
    refused = events.Trouble(workspace_id="ws_1", part="heartbeat", reason="heartbeat: the token was refused (401)")
    backend = events.Trouble(workspace_id="ws_1", part="backend", reason="exit status 2: config: no key")
    text = screen_text(view_of(*outage("intake"), refused, backend))

    for shown in (
        f"intake: {OUTAGE}",
        "heartbeat: the token was refused (401)",
        "backend: exit status 2: config: no key",
    ):
        assert shown in text


def test_workspaces_share_the_line_of_an_outage() -> None:
    troubles = [
        events.Trouble(workspace_id=f"ws_{number}", part="intake", reason=f"activity: {OUTAGE}") for number in range(3)
    ]
    text = screen_text(several(3, *troubles), width=100)

    assert f"3 workspaces: intake: {OUTAGE}" in text
    assert text.count("cannot be reached") == 1


def test_stop_counts_down_and_explains() -> None:
    clock = Clock()
    view = view_of(
        events.Registered(workspace_id="ws_1"),
        events.Started(**row(1), attempt=1),
        events.Stopping(workspace_id="ws_1", running=1, grace=20.0),
        clock=clock,
    )
    assert "stopping: 1 running, 20 s left; Ctrl-C exits at once" in screen_text(view)
    assert UNFINISHED in screen_text(view)
    clock.now += 1
    assert "1 running, 19 s left" in screen_text(view, width=40)
    assert "unfinished: answered at next start" in screen_text(view, width=40)
    clock.now += 30
    assert "1 running, which are cut short" in screen_text(view)

    view.apply(events.Stopped(workspace_id="ws_1"))
    assert "left" not in screen_text(view)
    assert "1 unfinished: they stay in the journal and are answered at the next start" in farewell(
        view.snapshot(1).counts
    )


@pytest.mark.parametrize(("width", "height"), [(200, 50), (80, 23), (40, 9), (20, 5), (8, 3), (1, 1)])
def test_every_line_fits_the_window(width: int, height: int) -> None:
    texts = ["宽 text " * 30, "👨‍👩‍👧‍👦❤️👍🏽🇩🇪1️⃣ " * 20, "שלום " * 40, "a\u0301\u0301\u0301\u0301" * 90, "x" * 300]
    trouble = events.Trouble(workspace_id="ws_1", part="intake", reason="503 宽" * 40, hint="wait " * 40)
    happened: list[events.Event] = [trouble, events.Notice(workspace_id="ws_1", text=texts[1])]
    for number, text in zip(range(40), itertools.cycle(texts)):
        peer = f"peer-{number}"
        happened.append(events.PeerNamed(workspace_id="ws_1", peer_id=peer, name=text))
        happened.append(events.Started(**row(number, peer), attempt=number % 4 + 1, text=text))
        happened.append(
            (
                events.Progressed(**row(number, peer), text=text),
                events.Dead(**row(number, peer), reason=text),
                events.Retrying(**row(number, peer), what="answering", reason=text, seconds=9, attempt=2),
                events.Answered(**row(number, peer), text=text, seconds=1),
            )[number % 4]
        )
    lines = drawn(view_of(*happened), width=width, height=height)

    assert max(map(cell_len, lines)) <= width
    assert len(lines) <= height


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

    assert lines[0] == "  ws_30: intake: no feed -> look there"
    assert lines[1].startswith("ws_30  problems")
    assert "  and 46 more, all online" in lines
    assert len(lines) <= 12


def test_lines_above_name_the_workspace_of_several() -> None:
    view = several(2, events.Paused(workspace_id="ws_1"))

    assert [line.text.partition(" ")[0] for line in view.take_lines()] == ["[ws_1]"]


def test_restarted_workspaces_show_and_removed_ones_vanish() -> None:
    view = several(3)
    for name in ("ws_0", "ws_1"):
        view.apply(events.Trouble(workspace_id=name, part="connection", reason="401"))
        view.apply(events.Stopped(workspace_id=name))
    view.add("ws_0")
    view.apply(events.Registered(workspace_id="ws_0"))
    view.forget("ws_1")

    health = dict(view.snapshot(5).workspaces)
    assert (health["ws_0"].is_over, health["ws_0"].problems) == (False, ())
    assert health.keys() == {"ws_0", "ws_2"}
