"""How a workspace is doing: problems, error rates, and replies by other programs."""

import asyncio
from typing import Any

import attrs
import pytest
from tests.worker.kit import EPOCH, Events, status_of

from molecule_connect import events
from molecule_connect.journal.incoming import Stored
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import State
from molecule_connect.models import Inbound, Kind, Presence
from molecule_connect.worker.status import FOREIGN_SECONDS

START = round(EPOCH * 1e6)
ECHO = Inbound(row_id="r", kind=Kind.ECHO, message_id="r", idempotency_key="r", time=START + 1)


def stored(**changes: Any) -> Stored:
    return attrs.evolve(Stored(item=ECHO, state=State.DONE, time=START + 1), **changes)


def kinds(seen: Events) -> list[str]:
    return [type(event).__name__ for event in seen.seen if not isinstance(event, events.Beat)]


# Problems


async def test_reports_a_problem_once_until_it_changes(journal: Journal) -> None:
    seen = Events()
    status = status_of(journal, seen)
    for reason, hint in (("full", ""), ("full", ""), ("full", "delete"), ("gone", "delete")):
        status.report("files", reason, hint)
    status.clear("files")
    status.clear("files")
    assert [(event.reason, event.hint) for event in seen.of(events.Trouble)] == [
        ("full", ""),
        ("full", "delete"),
        ("gone", "delete"),
    ]
    assert [event.part for event in seen.of(events.Recovered)] == ["files"]
    assert status.wedged == ""


async def test_names_lasting_problems_until_cleared(journal: Journal) -> None:
    status, changes = status_of(journal), []

    def note_change() -> None:
        if status.wedged_changed.is_set():
            status.wedged_changed.clear()
            changes.append(status.wedged)

    for part, reason in (("intake", "503"), ("journal", "full"), ("journal", "still full")):
        status.report(part, reason, lasting=True)
        note_change()
    cleared = []
    for part in ("intake", "intake", "journal"):
        cleared.append(status.clear(part))
        note_change()
    assert changes == ["intake: 503", "intake: 503; journal: full", "journal: still full", ""]
    assert cleared == [True, False, True]


# The error rate


@pytest.mark.parametrize(
    ("outcomes", "rate"), [("", 0.0), ("xx", 0.0), ("xxx", 1.0), ("x..", 1 / 3), ("....", 0.0), ("x.x.", 0.5)]
)
async def test_error_rate_needs_at_least_three_attempts(journal: Journal, outcomes: str, rate: float) -> None:
    status = status_of(journal)
    for outcome in outcomes:
        status.attempt_ended("peer-1", "no" if outcome == "x" else "")
    assert status.presence().error_rate == pytest.approx(rate)


async def test_forgets_failures_after_five_minutes(journal: Journal) -> None:
    status = status_of(journal)
    for error in ("first", "second", "third"):
        status.attempt_ended(None, error)
    await asyncio.sleep(299)
    assert (status.presence().error_rate, status.presence().sample_error) == (1.0, "third")
    await asyncio.sleep(2)
    assert (status.presence().error_rate, status.presence().sample_error) == (0.0, "")


async def test_ignores_failures_of_a_single_caller(journal: Journal) -> None:
    status = status_of(journal)
    for _ in range(4):
        status.attempt_ended(None)
    for _ in range(1000):
        status.attempt_ended("peer-1", "its own fault")
    assert (status.presence().error_rate, status.presence().sample_error) == (0.0, "its own fault")
    status.attempt_ended("peer-2", "no")
    assert status.presence().error_rate > 0.5


# Replies by other programs


async def test_reports_foreign_replies_until_they_stop(journal: Journal) -> None:
    seen = Events()
    status = status_of(journal, seen)
    foreign, heartbeat = [stored(foreign_echo=True)], Presence()

    with status.saved_in(journal.path.parent):
        status.received(foreign * 2)
        notice, trouble = seen.seen
        assert isinstance(notice, events.Notice)
        assert isinstance(trouble, events.Trouble)
        assert (trouble.part, "another program" in trouble.reason) == ("people", True)
        del seen.seen[0]

        await asyncio.sleep(FOREIGN_SECONDS - 1)
        status.heartbeat_accepted(heartbeat, sent_at=0)
        status.received(foreign)
        await asyncio.sleep(FOREIGN_SECONDS - 1)
        status.heartbeat_accepted(heartbeat, sent_at=0)
        assert kinds(seen) == ["Trouble"]

        await asyncio.sleep(1)
        status.heartbeat_accepted(heartbeat, sent_at=0)
        assert kinds(seen) == ["Trouble", "Recovered"]
        status.received(foreign)
        assert kinds(seen) == ["Trouble", "Recovered", "Trouble"]


async def test_ignores_own_and_earlier_replies(journal: Journal) -> None:
    seen = Events()
    status = status_of(journal, seen)
    with status.saved_in(journal.path.parent):
        status.received([stored(), stored(foreign_echo=True, time=START)])
        status.heartbeat_accepted(Presence(), sent_at=0)
    assert kinds(seen) == []
