"""What a connection tells of answers that it did not send."""

from typing import Any

import attrs

from molecule_connect import events
from molecule_connect.journal.incoming import Stored
from molecule_connect.journal.models import State
from molecule_connect.models import Inbound, Kind
from molecule_connect.worker.health import Health
from molecule_connect.worker.reports import FOREIGN_SECONDS, Reports

ECHO = Inbound(row_id="r", kind=Kind.ECHO, message_id="r", idempotency_key="r", time=2)


class Told(list[events.Event]):
    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self]


def stored(**changes: Any) -> Stored:
    return attrs.evolve(Stored(item=ECHO, state=State.DONE, time=2), **changes)


def test_an_answer_that_is_not_ours_is_trouble_until_none_came_for_a_while() -> None:
    told, now = Told(), [1000.0]
    reports = Reports("ws_1", told.append, Health(), clock=lambda: now[0])

    reports.stored([stored(foreign_echo=True), stored(foreign_echo=True)], since=1)
    notice, trouble = told
    assert isinstance(notice, events.Notice)
    assert isinstance(trouble, events.Trouble)
    assert (trouble.part, "not ours" in trouble.reason) == ("people", True)
    del told[0]

    now[0] += FOREIGN_SECONDS - 1
    reports.passes()
    reports.stored([stored(foreign_echo=True)], since=1)
    now[0] += FOREIGN_SECONDS - 1
    reports.passes()
    assert told.kinds() == ["Trouble"]

    now[0] += 1
    reports.passes()
    assert told.kinds() == ["Trouble", "Recovered"]
    reports.stored([stored(foreign_echo=True)], since=1)
    assert told.kinds() == ["Trouble", "Recovered", "Trouble"]


def test_our_own_answers_and_those_of_before_are_no_trouble() -> None:
    told = Told()
    reports = Reports("ws_1", told.append, Health())

    reports.stored([stored(), stored(foreign_echo=True)], since=2)
    reports.passes()
    assert told == []
