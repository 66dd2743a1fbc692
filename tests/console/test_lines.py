"""Plain lines for a pipe."""

import io
from typing import Any

import pytest

from molecule_connect import events
from molecule_connect.console.lines import LineScreen, line_of
from molecule_connect.console.screen import Summary

ROW: dict[str, Any] = {"workspace_id": "ws_1", "row_id": "act-1", "caller_id": "ws_2"}


def summary(workspace_id: str = "ws_1") -> Summary:
    return Summary(
        workspace_id=workspace_id, backend="mock", mode="poll", api_url="http://localhost:8080", state_dir="/state"
    )


def told(*happened: events.Event, workspaces: tuple[str, ...] = ("ws_1",)) -> list[str]:
    stream = io.StringIO()
    screen = LineScreen(stream, wall=lambda: 0.0, monotonic=lambda: 0.0)
    screen.open([summary(name) for name in workspaces])
    for event in happened:
        screen(event)
    screen.close()
    return stream.getvalue().splitlines()


def test_a_line_is_time_level_and_text() -> None:
    lines = told(events.Received(**ROW, text="hello"))

    assert lines == [
        "1970-01-01T00:00:00Z INFO    molecule connect: "
        "workspace ws_1, backend mock, mode poll, api http://localhost:8080, state /state",
        "1970-01-01T00:00:00Z INFO    act-1 received from ws_2: hello",
    ]


@pytest.mark.parametrize(
    ("event", "level", "words"),
    [
        (events.Received(**ROW, text="a\nb"), "INFO", "act-1 received from ws_2: a b"),
        (events.Started(**ROW, attempt=2), "INFO", "act-1 attempt 2"),
        (events.Answered(**ROW, text="A", seconds=0.5), "INFO", "act-1 answered in 0.5 s: A"),
        (events.Answered(**ROW, text="", seconds=0.5, silent=True), "INFO", "act-1 handled without a reply in 0.5 s"),
        (events.Delivered(**ROW), "INFO", "act-1 delivered"),
        (events.Delivered(**ROW, confirmed=False), "INFO", "act-1 delivered, not confirmed by the platform"),
        (events.Retrying(**ROW, what="send", reason="503", seconds=5), "WARNING", "act-1 send: 503; again in 5.0 s"),
        (events.Dead(**ROW, reason="4 attempts"), "ERROR", "act-1 given up: 4 attempts"),
        (events.Notified(**ROW), "INFO", "act-1 notified the sender that there is no reply"),
        (
            events.Notified(**ROW, error="403"),
            "WARNING",
            "act-1 could not notify the sender that there is no reply: 403",
        ),
        (events.Recorded(**ROW, kind="answer", text="ok"), "INFO", "act-1 answer from ws_2: ok"),
        (events.Registered(workspace_id="ws_1"), "INFO", "registered"),
        (events.Listening(workspace_id="ws_1", by="polling"), "INFO", "listening by polling"),
        (events.Trouble(workspace_id="ws_1", part="intake", reason="503"), "ERROR", "intake: 503"),
        (events.Trouble(workspace_id="ws_1", part="a", reason="b", hint="c"), "ERROR", "a: b -> c"),
        (events.Trouble(workspace_id="ws_1", part="register", reason="register: 503"), "ERROR", "register: 503"),
        (events.Recovered(workspace_id="ws_1", part="intake"), "INFO", "intake: recovered"),
        (events.Notice(workspace_id="ws_1", text="read this", hint="do that"), "WARNING", "read this -> do that"),
        (events.Stopping(workspace_id="ws_1", running=0, grace=20), "INFO", "stopping"),
        (events.Stopped(workspace_id="ws_1"), "INFO", "stopped"),
        (events.Described(workspace_id="ws_1", text="x may: read"), "INFO", "x may: read"),
    ],
)
def test_what_matters_is_told_in_one_line(event: events.Event, level: str, words: str) -> None:
    line = line_of(event)

    assert line is not None
    assert (line.level, line.text) == (level, words)


def test_first_attempt_has_no_line() -> None:
    assert line_of(events.Started(**ROW, attempt=1)) is None


def test_stopping_explains_a_second_signal() -> None:
    line = line_of(events.Stopping(workspace_id="ws_1", running=2, grace=20))

    assert line is not None
    assert line.text == (
        "stopping: 2 running, at most 20 s; a second signal exits at once;"
        " unfinished messages stay in the journal and are answered at the next start"
    )


def test_limits_progress_to_once_a_second() -> None:
    lines = told(*(events.Progressed(**ROW, text=f"step {number}") for number in range(50)))

    assert [line.partition("act-1 ")[2] for line in lines[1:]] == ["running: step 0"]


def test_names_workspaces_only_among_several() -> None:
    assert "[ws_1]" not in told(events.Registered(workspace_id="ws_1"))[-1]
    assert "[ws_1]" in told(events.Registered(workspace_id="ws_1"), workspaces=("ws_1", "ws_2"))[-1]


def test_changing_lists_change_whether_names_show() -> None:
    stream = io.StringIO()
    screen = LineScreen(stream, wall=lambda: 0.0, monotonic=lambda: 0.0)
    screen.open([summary()])
    screen(events.Registered(workspace_id="ws_1"))
    screen.open([summary("ws_2")])
    screen(events.Registered(workspace_id="ws_2"))
    screen.forget("ws_1")
    screen(events.Paused(workspace_id="ws_2"))
    screen.close()

    texts = [line.partition("    ")[2] or line for line in stream.getvalue().splitlines()]
    assert texts[1] == "registered"
    assert texts[3] == "[ws_2] registered"
    assert texts[4].endswith("WARNING paused on the platform: messages are stored but not processed")


def test_progress_is_limited_per_workspace() -> None:
    rows = [events.Progressed(**{**ROW, "workspace_id": name}, text="step") for name in ("ws_1", "ws_2")]

    assert len(told(*rows, workspaces=("ws_1", "ws_2"))) == 4
