"""Limits per caller: costs are added up in the journal, reported in the heartbeat, and limited per day."""

import asyncio
import json
from decimal import Decimal
from typing import Any

import attrs
import pytest
from tests.worker.kit import EPOCH, WORKSPACE, FakePlatform, Serving

from molecule_connect import events
from molecule_connect.errors import BackendError
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Progress, Request, Response, Usage

DAY = 24 * 3600


class Loud:
    """Raises whatever is asked of it."""

    def __float__(self) -> float:
        raise RuntimeError("no number")


NONSENSE: list[Any] = [
    *(None, float("nan"), float("inf"), float("-inf"), "abc", "", [1.0], {}, object(), Loud(), -1, 1e300),
    *(int("9" * 500), Decimal("NaN"), Decimal("sNaN"), Decimal("1e400"), json.loads("1e400"), 1j, b"7"),
]


def test_usage_counts_invalid_numbers_as_zero() -> None:
    dear = Usage(input_tokens=None, output_tokens=7.0, cost_usd=Decimal("0.25"))
    assert (dear.input_tokens, dear.output_tokens, dear.cost_usd) == (0, 7, 0.25)
    assert isinstance(dear.cost_usd, float)
    for value in NONSENSE:
        usage = Usage(input_tokens=value, output_tokens=value, cost_usd=value)
        assert (usage.input_tokens, usage.output_tokens, usage.cost_usd) == (0, 0, 0) or value == b"7"


@pytest.mark.parametrize("usage", ["abc", {"cost_usd": 1}, 1.5, object(), Usage(cost_usd=1e5), Usage(cost_usd=10**400)])
async def test_no_usage_costs_the_answer(journal: Journal, usage: Any) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        if request.text == "fail":
            raise BackendError("no", retryable=False, usage=usage)
        return Response.from_text(request.text, usage=usage)

    async with Serving(platform, journal, handler) as serving:
        platform.write("hi", caller="peer")
        platform.write("fail", caller="other")
        await platform.until(lambda: len(platform.sent) == 2)
        await asyncio.sleep(31)
        assert platform.beats[-1].wedged == ""
    assert sorted(serving.rows("state, attempt")) == [("dead", 1), ("done", 1)]


async def test_heartbeat_clamps_the_monthly_cost(journal: Journal) -> None:
    platform = FakePlatform()
    await journal.writer.put(lambda db: db.execute("INSERT INTO spend VALUES ('ws-1', '2027-01-15', 9e999)").rowcount)
    async with Serving(platform, journal, dear):
        await asyncio.sleep(1)
    assert platform.beats[0].monthly_spend_cents == 10**12


async def dear(request: Request, progress: Progress) -> Response:
    """Every answer costs a dollar."""
    return Response.from_text(request.text, usage=Usage(cost_usd=1.0))


async def test_spent_budget_defers_messages_to_tomorrow(journal: Journal) -> None:
    midnight = DAY - EPOCH % DAY
    await asyncio.sleep(midnight - 600)
    platform = FakePlatform()
    async with Serving(platform, journal, dear, max_cost_per_day=2.0, concurrency=1) as serving:
        for number in range(3):
            platform.write(f"{number}")
        await platform.until(lambda: len(platform.sent) == 2)
        await asyncio.sleep(60)
        assert platform.answers() == ["0", "1"]
        [trouble] = serving.events.of(events.Trouble)
        assert (trouble.part, trouble.reason) == ("budget", "2.00 of 2.00 US dollars a day are spent")
        await platform.until(lambda: len(platform.sent) == 3, seconds=DAY)
        assert asyncio.get_running_loop().time() >= midnight
        assert [event.part for event in serving.events.of(events.Recovered)] == ["budget"]
    assert serving.rows("state, attempt") == [("done", 1)] * 3


async def test_start_with_higher_limit_runs_deferred_messages(journal: Journal) -> None:
    platform = FakePlatform()
    for number in range(3):
        platform.write(f"{number}", age=3 - number)
    for limit, answered in ((1.0, 1), (2.0, 2), (2.0, 2), (None, 3)):
        async with Serving(platform, journal, dear, max_cost_per_day=limit) as serving:
            await asyncio.sleep(60)
        assert platform.answers() == ["0", "1", "2"][:answered]
    assert serving.rows("state, attempt") == [("done", 1)] * 3


async def test_failed_and_silent_attempts_are_counted(journal: Journal) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        if request.text == "fail":
            raise BackendError("no", retryable=False, usage=Usage(cost_usd=0.25))
        return Response.silent(usage=Usage(cost_usd=0.5))

    async with Serving(platform, journal, handler) as serving:
        platform.write("fail", caller="peer")
        platform.write("hush", caller="other")
        await platform.until(lambda: {state for _, state in serving.rows()} == {"done", "dead"})
        assert journal.of(WORKSPACE).spend_by_caller() == {None: 0, "peer": 0.25, "other": 0.5}
        await asyncio.sleep(31)
        assert platform.beats[-1].monthly_spend_cents == 75


async def test_other_workspaces_and_days_do_not_count(journal: Journal) -> None:
    journal.of("other").add_spend(None, 5.0)
    ours = journal.of(WORKSPACE)
    ours.add_spend(None, 1.5)
    ours.add_spend("peer", 2.0)
    await journal.data_version()
    assert (ours.spend_by_caller(), ours.month_spend()) == ({None: 1.5, "peer": 2.0}, 3.5)
    await asyncio.sleep(DAY)
    assert (ours.spend_by_caller(), ours.month_spend()) == ({None: 0.0}, 3.5)


# Shares


async def test_peer_beyond_its_share_waits_alone(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal, dear, max_cost_per_day=4.0, concurrency=1) as serving:
        for number in range(4):
            platform.write(f"greedy {number}", caller="greedy")
        await platform.until(lambda: len(platform.sent) == 2)
        platform.write("modest", caller="modest")
        platform.write("person")
        await platform.until(lambda: len(platform.sent) == 4)
        await asyncio.sleep(60)
        assert platform.answers() == ["greedy 0", "greedy 1", "modest", "person"]
        [trouble] = serving.events.of(events.Trouble)
        assert trouble.part == "peer budget"
        assert trouble.reason == "the share of peer greedy: 2.00 of 2.00 US dollars a day are spent"
        [retrying] = serving.events.of(events.Retrying)
        assert (retrying.what, retrying.reason) == ("daily budget", trouble.reason)


async def test_peers_leave_a_quarter_to_people(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal, dear, max_cost_per_day=4.0, concurrency=1) as serving:
        for number in range(8):
            platform.write("peer", caller=f"peer-{number}")
        await platform.until(lambda: len(platform.sent) == 3)
        await asyncio.sleep(10)
        for _ in range(2):
            platform.write("person")
        await platform.until(lambda: len(platform.sent) == 4)
        await asyncio.sleep(60)
    assert platform.answers() == ["peer", "peer", "peer", "person"]
    assert [trouble.reason for trouble in serving.events.of(events.Trouble)] == [
        "the share of peers: 3.00 of 3.00 US dollars a day are spent",
        "4.00 of 4.00 US dollars a day are spent",
    ]


async def test_overspending_peers_take_nothing_from_people(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)

    async def handler(request: Request, progress: Progress) -> Response:
        await asyncio.sleep(10)
        return Response.from_text(request.text, usage=Usage(cost_usd=0.01 if request.text == "cheap" else 1.0))

    async with Serving(platform, journal, handler, max_cost_per_day=4.0):
        platform.write("cheap", caller="peer")
        await platform.until(lambda: len(platform.sent) == 1)
        for number in range(7):
            platform.write("peer", caller=f"peer-{number}")
        await platform.until(lambda: len(platform.sent) == 8)
        platform.write("person")
        await platform.until(lambda: len(platform.sent) == 9)


# Reservations


@attrs.define
class Backend:
    """Takes three seconds for each message, at *cost*; counts what runs at once."""

    cost: float
    running: int = 0
    most: int = 0

    async def __call__(self, request: Request, progress: Progress) -> Response:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(3)
        self.running -= 1
        return Response.from_text(request.text, usage=Usage(cost_usd=self.cost))


@pytest.mark.parametrize("concurrency", [1, 40])
@pytest.mark.parametrize("peers", [False, True])
async def test_backlog_exceeds_the_budget_by_one_attempt(journal: Journal, concurrency: int, peers: bool) -> None:
    platform, backend = FakePlatform(), Backend(cost=0.6)
    for number in range(40):
        platform.write("hi", caller=f"peer-{number}" if peers else None, context=f"talk-{number}")
    async with Serving(platform, journal, backend, max_cost_per_day=1.0, concurrency=concurrency) as serving:
        await asyncio.sleep(300)
        assert len(platform.sent) == 2
        assert serving.connection._dispatcher.active == 0
    assert {state for _, state in serving.rows()} == {"done", "received"}


async def test_running_attempts_reserve_their_estimated_cost(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend(cost=1.0)
    for number in range(20):
        platform.write("hi", context=f"talk-{number}")
    async with Serving(platform, journal, backend, max_cost_per_day=6.0, concurrency=20):
        await asyncio.sleep(2)
        assert backend.running == 1
        await asyncio.sleep(2)
        assert backend.running == 5
        await asyncio.sleep(300)
    assert len(platform.sent) == 6


async def test_attempts_without_cost_are_not_delayed(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend(cost=0.0)
    for number in range(9):
        platform.write("hi", context=f"talk-{number}")
    async with Serving(platform, journal, backend, max_cost_per_day=1.0):
        await platform.until(lambda: len(platform.sent) == 9, seconds=7)
    assert backend.most == 8


async def test_tiny_costs_are_reserved_and_released(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend(cost=6e-10)
    platform.write("hi")
    async with Serving(platform, journal, backend, max_cost_per_day=1.0) as serving:
        await platform.until(lambda: len(platform.sent) == 1)
        for number in range(4):
            platform.write("hi", context=f"talk-{number}")
        await platform.until(lambda: len(platform.sent) == 5, seconds=30)
    assert {state for _, state in serving.rows()} == {"done"}
    assert serving.error is None


async def test_peers_first_attempt_blocks_no_person(journal: Journal) -> None:
    platform, backend = FakePlatform(has_stream=True), Backend(cost=0.1)
    async with Serving(platform, journal, backend, max_cost_per_day=1.0):
        platform.write("peer", caller="peer")
        await platform.until(lambda: backend.running == 1)
        platform.write("person")
        await asyncio.sleep(1)
        assert backend.running == 2


async def test_a_restart_estimates_costs_from_earlier_replies(journal: Journal) -> None:
    platform, backend = FakePlatform(has_stream=True), Backend(cost=0.1)
    platform.write("hi")
    async with Serving(platform, journal, backend, max_cost_per_day=10.0):
        await platform.until(lambda: len(platform.sent) == 1)
    for number in range(8):
        platform.write("hi", context=f"talk-{number}")
    async with Serving(platform, journal, backend, max_cost_per_day=10.0):
        await asyncio.sleep(2)
        assert backend.running == 8


async def test_a_restart_remembers_what_each_caller_spent(journal: Journal) -> None:
    platform = FakePlatform()
    for number in range(3):
        platform.write("hi", caller="greedy", context=f"talk-{number}")
    for _ in range(2):
        async with Serving(platform, journal, dear, max_cost_per_day=2.0, concurrency=1):
            await asyncio.sleep(60)
    assert len(platform.sent) == 1


async def test_requested_pause_shows_in_the_heartbeat(journal: Journal) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        raise BackendError("usage limit reached", retry_after=7200)

    async with Serving(platform, journal, handler) as serving:
        platform.write("hi", caller="peer")
        await asyncio.sleep(3600)
        assert platform.beats[-1].sample_error == "1 messages wait for the backend: usage limit reached"
        assert platform.beats[-1].wedged == ""
    assert serving.rows("state, attempt") == [("received", 0)]
