"""What ``--log-level``, ``--log-events`` and ``--log-text`` let into a log."""

import io
import json
from typing import Any

import pytest

from molecule_connect import events
from molecule_connect.console.json_lines import JsonScreen
from molecule_connect.console.lines import LineScreen
from molecule_connect.console.log_options import LogOptions, event_kinds, event_name
from molecule_connect.errors import ConfigError

ABOUT: dict[str, Any] = {"workspace_id": "ws_1", "row_id": "row", "caller_id": None}
RECEIVED = events.Received(**ABOUT, text="my secret plan")
ANSWERED = events.Answered(**ABOUT, text="my secret plan", seconds=1.5, cost_usd=0.25)
BEAT = events.Beat(workspace_id="ws_1", active_tasks=1, wedged="")
DEAD = events.Dead(**ABOUT, reason="no")


def _json(options: LogOptions, *shown: events.Event) -> list[dict[str, Any]]:
    stream = io.StringIO()
    screen = JsonScreen(stream, options)
    for event in shown:
        screen(event)
    screen.note("WARNING", "a note")
    screen.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("level", "names"),
    [
        ("debug", ["beat", "answered", "dead", "log"]),
        ("info", ["answered", "dead", "log"]),
        ("warning", ["dead", "log"]),
        ("error", ["dead"]),
    ],
)
def test_level_leaves_lower_events_out(level: str, names: list[str]) -> None:
    found = _json(LogOptions.of(level, [], "full"), BEAT, ANSWERED, DEAD)
    assert [line["event"] for line in found] == names
    assert all(line["v"] == 1 for line in found)


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (["answered,beat"], ["beat", "answered", "log"]),
        (["answered", "dead"], ["answered", "dead", "log"]),
        (["-answered"], ["received", "dead", "log"]),
        (["-answered -dead"], ["received", "log"]),
    ],
)
def test_events_are_chosen_by_name(chosen: list[str], names: list[str]) -> None:
    found = _json(LogOptions.of("info", chosen, "full"), BEAT, RECEIVED, ANSWERED, DEAD)
    assert [line["event"] for line in found] == names


def test_unknown_event_is_an_error() -> None:
    with pytest.raises(ConfigError, match="did you mean 'answered'") as caught:
        LogOptions.of("info", ["anwsered"], "full")
    assert "received" in caught.value.hint


def test_texts_are_left_out() -> None:
    found = _json(LogOptions.of("info", [], "none"), RECEIVED, ANSWERED)
    assert [line.get("text") for line in found[:2]] == ["", ""]
    assert "secret" not in json.dumps(found)


def test_equal_texts_have_equal_hashes() -> None:
    other = events.Received(**ABOUT, text="another")
    found = _json(LogOptions.of("info", [], "hash"), RECEIVED, ANSWERED, other)
    one, same, different = (line["text"] for line in found[:3])
    assert one == same != different
    assert one.startswith("sha256:")
    assert "secret" not in one


def test_operators_texts_are_never_hidden() -> None:
    notice = events.Notice(workspace_id="ws_1", text="check the disk")
    assert _json(LogOptions.of("info", [], "none"), notice)[0]["text"] == "check the disk"


def test_lines_follow_the_same_options() -> None:
    stream = io.StringIO()
    screen = LineScreen(stream, LogOptions.of("debug", [], "none"))
    for event in (BEAT, RECEIVED, ANSWERED):
        screen(event)
    screen.close()
    lines = stream.getvalue().splitlines()
    assert "heartbeat" in lines[0]
    assert "$0.25" in lines[2]
    assert "secret" not in stream.getvalue()


def test_a_reload_is_one_event() -> None:
    reloaded = events.Reloaded(workspace_id="", source="fleet.toml", text="it was read again", new=("ws_2",))
    refused = events.ReloadRefused(workspace_id="", source="fleet.toml", text="not applied", reasons=("not TOML",))
    found = _json(LogOptions(), reloaded, refused)
    assert (found[0]["event"], found[0]["new"], found[0]["level"]) == ("reloaded", ["ws_2"], "info")
    assert (found[1]["event"], found[1]["reasons"], found[1]["level"]) == ("reload_refused", ["not TOML"], "error")


def test_names_of_events_are_unique() -> None:
    names = [event_name(kind) for kind in event_kinds()]
    assert len(set(names)) == len(names) > 20
