"""``docs/log-events.md`` lists all events with their level and fields, made from their classes."""

import inspect
from typing import Any

import attrs
import pytest
from tests.docs.pages import page

from molecule_connect import events
from molecule_connect.console.log_options import event_kinds, event_name, level_of

PAGE = page("log-events.md")
EXAMPLES = {"workspace_id": "ws_1", "row_id": "r", "caller_id": None}


def _table(base: type[events.Event]) -> str:
    rows = ["| event | level | fields | meaning |", "| --- | --- | --- | --- |"]
    common = {field.name for field in attrs.fields(base)}
    for kind in event_kinds():
        if issubclass(kind, events.MessageEvent) is (base is events.MessageEvent):
            fields = ", ".join(f"`{field.name}`" for field in attrs.fields(kind) if field.name not in common)
            required = {field.name: "" for field in attrs.fields(kind) if field.default is attrs.NOTHING}
            given: dict[str, Any] = {**required, **{name: EXAMPLES[name] for name in common & EXAMPLES.keys()}}
            level = level_of(kind(**given))
            meaning = " ".join((inspect.getdoc(kind) or "").split()).replace("``", "`")
            rows.append(f"| `{event_name(kind)}` | {level} | {fields} | {meaning} |")
    return "\n".join(rows)


@pytest.mark.parametrize("base", [events.MessageEvent, events.Event])
def test_page_lists_every_event(base: type[events.Event]) -> None:
    assert _table(base) in PAGE, f"put this table on the page, and raise VERSION if a field is gone:\n{_table(base)}"
