"""JSON lines for machines."""

import io
import json
from typing import Any

import attrs
import pytest

from molecule_connect import events
from molecule_connect.console.json_lines import JsonScreen
from molecule_connect.console.log_options import EVERYTHING
from molecule_connect.console.screen import Summary


def every_event() -> list[events.Event]:
    filler = {"int": 1, "float": 1.5, "bool": True, "str": "text", "str | None": None, "tuple[str, ...]": ["a"]}

    def kinds(base: type[events.Event]) -> list[type[events.Event]]:
        return [kind for sub in base.__subclasses__() for kind in (sub, *kinds(sub))]

    def fill(annotation: Any) -> Any:
        return filler[annotation.__name__ if isinstance(annotation, type) else str(annotation)]

    return [kind(**{field.name: fill(field.type) for field in attrs.fields(kind)}) for kind in kinds(events.Event)]


def told(screen_calls: Any) -> list[dict[str, Any]]:
    stream = io.StringIO()
    screen = JsonScreen(stream, EVERYTHING, wall=lambda: 0.0)
    screen_calls(screen)
    screen.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_events_have_name_time_and_fields() -> None:
    event = events.Answered(workspace_id="ws_1", row_id="act-1", caller_id=None, text="é\n\x1b", seconds=0.5)

    assert told(lambda screen: screen(event)) == [
        {
            "v": 1,
            "event": "answered",
            "time": "1970-01-01T00:00:00.000000+00:00",
            "level": "info",
            "workspace_id": "ws_1",
            "row_id": "act-1",
            "caller_id": None,
            "context_id": None,
            "text": "é\n\x1b",
            "seconds": 0.5,
            "silent": False,
            "cost_usd": 0.0,
        }
    ]


@pytest.mark.parametrize("event", every_event(), ids=lambda event: type(event).__name__)
def test_every_event_is_one_complete_line(event: events.Event) -> None:
    (line,) = told(lambda screen: screen(event))

    assert line.keys() - {"v", "event", "time", "level"} == {field.name for field in attrs.fields(type(event))}


def test_other_lines_have_their_own_names() -> None:
    summary = Summary(workspace_id="ws_1", backend="mock", mode="poll", api_url="http://x", state_dir="/s")

    def calls(screen: JsonScreen) -> None:
        screen.open([summary])
        screen.note("WARNING", "careful", "look")
        screen.fail("broken", "mend it", 2)

    start, log, error = told(calls)

    assert start.items() >= {"event": "starting", "workspace_id": "ws_1", "backend": "mock", "mode": "poll"}.items()
    assert log.items() >= {"event": "log", "level": "WARNING", "text": "careful", "hint": "look"}.items()
    assert error.items() >= {"event": "error", "text": "broken", "hint": "mend it", "exit_code": 2}.items()
    assert "traceback" not in error


def test_the_output_is_ascii_whatever_peers_write() -> None:
    stream = io.StringIO()
    screen = JsonScreen(stream)
    screen(events.Received(workspace_id="w", row_id="r", caller_id=None, text="\u202e\x9b\ud800 你"))
    screen.close()

    assert stream.getvalue().isascii()
