"""Limits for all workspaces of a process together."""

import asyncio

import pytest
from tests.worker.kit import FakePlatform, Serving
from tests.worker.test_budget import dear
from tests.worker.test_limits import Hall

from molecule_connect.config.workspaces import FleetLimits
from molecule_connect.journal.journal import Journal
from molecule_connect.worker.fleet import Fleet


def _fleet(concurrency: int | None, cost: float | None = None, spent: dict[str | None, float] | None = None) -> Fleet:
    limits = FleetLimits(concurrency=concurrency, max_cost_per_day=cost)
    return Fleet(lambda: {"ws-2": spent or {}}, limits)


async def test_workspaces_share_slots_in_turn(journal: Journal) -> None:
    fleet = _fleet(2)
    one, two = (Hall(journal, 8, fleet=fleet) for _ in range(2))
    for number in range(3):
        one.comes(f"one-{number}", f"peer-{number}", workspace_id="ws-1")
    two.comes("two-0", "peer-9", workspace_id="ws-2")
    assert await one.settled() == ["one-0", "one-1"]
    assert await two.settled() == []
    await one.leaves("one-0")
    await one.leaves("one-1")
    assert (one.entered, two.entered) == (["one-0", "one-1", "one-2"], ["two-0"])
    await one.empty()
    await two.empty()


async def test_peers_leave_a_slot_of_the_fleet_to_people(journal: Journal) -> None:
    fleet = _fleet(4)
    one, two = (Hall(journal, 8, fleet=fleet) for _ in range(2))
    for number in range(5):
        one.comes(f"flood-{number}", "peer-1", workspace_id="ws-1")
    assert await one.settled() == ["flood-0", "flood-1"]
    two.comes("peer", "peer-2", workspace_id="ws-2")
    two.comes("person", None, workspace_id="ws-2")
    assert await two.settled() == ["peer", "person"]
    await one.empty()
    await two.empty()


async def test_raised_limit_starts_waiting_messages(journal: Journal) -> None:
    fleet = _fleet(1)
    hall = Hall(journal, 8, fleet=fleet)
    hall.comes("first")
    hall.comes("second", "peer-2")
    assert await hall.settled() == ["first"]
    fleet.set_limits(FleetLimits())
    assert await hall.settled() == ["first", "second"]
    await hall.empty()


async def test_cancelled_waiter_leaves_the_fleet_free(journal: Journal) -> None:
    fleet = _fleet(1)
    one, two = (Hall(journal, 8, fleet=fleet) for _ in range(2))
    one.comes("one", workspace_id="ws-1")
    two.comes("two", workspace_id="ws-2")
    await one.settled()
    await two.empty()
    await one.leaves("one")
    two.comes("later", workspace_id="ws-2")
    assert await two.settled() == ["later"]
    await one.empty()
    await two.empty()


@pytest.mark.parametrize(("spent", "answered"), [({None: 9.5}, 1), ({None: 10.0}, 0), ({"peer": 4.9}, 6), ({}, 10)])
async def test_cost_of_other_workspaces_counts(journal: Journal, spent: dict[str | None, float], answered: int) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, dear, fleet=_fleet(None, 10.0, spent)) as serving:
        for number in range(answered + 1):
            platform.write(f"hi {number}", caller=None)
        await asyncio.sleep(60)
        rows = serving.rows("state, error")
        assert [state for state, _ in rows] == ["done"] * answered + ["received"]
        assert "all workspaces" in rows[-1][1]
