"""Conversations don't block each other: fair turns between callers, and the circuit breaker."""

import asyncio
from typing import Any

import attrs
import pytest
from tests.worker.kit import WORKSPACE, FakePlatform, Serving, status_of

from molecule_connect.errors import BackendError
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import State, StoredMessage
from molecule_connect.models import Progress, Request, Response
from molecule_connect.worker.budget import DailyBudget
from molecule_connect.worker.circuit_breaker import CircuitBreaker
from molecule_connect.worker.clock import Clock
from molecule_connect.worker.fleet import Fleet
from molecule_connect.worker.limits import ConcurrencyLimit


def entry(row_id: str, caller: str | None = "peer-1", **given: Any) -> StoredMessage:
    """A message that waits."""
    values: dict[str, Any] = {name.name: None for name in attrs.fields(StoredMessage)}
    values |= {"workspace_id": "ws-1", "row_id": row_id, "state": State.RECEIVED, "caller_id": caller, "raw": "{}"}
    values |= {"attempt": 0, "crash_count": 0, "replay": 0, "time": 0, "in_doubt": False, "sends": 0, "parts": ()}
    return StoredMessage(**(values | given))


class Hall:
    """Messages that want a slot; each keeps it until it is let go."""

    def __init__(
        self, journal: Journal, capacity: int, breaker: CircuitBreaker | None = None, fleet: Fleet | None = None
    ) -> None:
        fleet = fleet or Fleet(dict)
        status, clock = status_of(journal), Clock(FakePlatform(), journal.wall)
        budget = DailyBudget(None, journal.of(WORKSPACE), status, clock, fleet)
        self.slots = ConcurrencyLimit(capacity, breaker or CircuitBreaker(status), budget, fleet)
        self.entered: list[str] = []
        self._leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def comes(self, row_id: str, caller: str | None = "peer-1", **given: Any) -> None:
        self._leave[row_id] = asyncio.Event()
        self.tasks[row_id] = asyncio.ensure_future(self._hold(entry(row_id, caller, **given)))

    async def _hold(self, one: StoredMessage) -> None:
        async with self.slots.slot(one):
            self.entered.append(one.row_id)
            await self._leave[one.row_id].wait()

    def lets_go(self, row_id: str) -> None:
        self._leave[row_id].set()

    async def leaves(self, row_id: str) -> None:
        self.lets_go(row_id)
        await self.tasks[row_id]
        await asyncio.sleep(0.01)

    async def settled(self) -> list[str]:
        await asyncio.sleep(0.01)
        return self.entered

    async def empty(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        outcomes = await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert (self.slots.busy, self.slots.waiting) == (0, 0)


@pytest.fixture
async def breaker(journal: Journal) -> CircuitBreaker:
    return CircuitBreaker(status_of(journal))


async def test_flooding_peer_leaves_slots_to_others(breaker: CircuitBreaker, journal: Journal) -> None:
    hall = Hall(journal, 4, breaker)
    for number in range(9):
        hall.comes(f"flood-{number}")
    assert await hall.settled() == ["flood-0", "flood-1"]
    hall.comes("other", "peer-2")
    hall.comes("third", "peer-3")
    assert (await hall.settled())[2:] == ["other"]
    hall.comes("person", None)
    assert (await hall.settled())[3:] == ["person"]
    await hall.empty()


async def test_peers_together_leave_one_slot_to_people(journal: Journal) -> None:
    hall = Hall(journal, 8)
    for number in range(8):
        hall.comes(f"long-{number}", f"peer-{number}")
    assert len(await hall.settled()) == 7
    hall.comes("person", None)
    assert (await hall.settled())[7:] == ["person"]
    await hall.empty()


async def test_people_may_use_every_slot(journal: Journal) -> None:
    hall = Hall(journal, 3)
    for number in range(4):
        hall.comes(f"talk-{number}", None, context_id=f"talk-{number}")
    assert await hall.settled() == ["talk-0", "talk-1", "talk-2"]
    await hall.empty()


async def test_capacity_of_two_serves_two_people(journal: Journal) -> None:
    hall = Hall(journal, 2)
    hall.comes("one", None, context_id="talk-1")
    hall.comes("other", None, context_id="talk-2")
    assert await hall.settled() == ["one", "other"]
    await hall.empty()


async def test_last_slot_goes_to_a_new_holder(journal: Journal) -> None:
    hall = Hall(journal, 2)
    for number in range(3):
        hall.comes(f"flood-{number}")
    hall.comes("other", "peer-2")
    # Lent while the other had not come yet.
    assert await hall.settled() == ["flood-0", "flood-1"]
    await hall.leaves("flood-0")
    assert hall.entered[2:] == ["other"]
    await hall.leaves("flood-1")
    assert hall.entered[3:] == ["flood-2"]
    await hall.empty()


async def test_a_single_slot_is_given_to_anybody(journal: Journal) -> None:
    hall = Hall(journal, 1)
    hall.comes("one")
    hall.comes("two")
    assert await hall.settled() == ["one"]
    await hall.leaves("one")
    assert hall.entered == ["one", "two"]
    await hall.empty()


async def test_free_slots_go_to_callers_in_turn(journal: Journal) -> None:
    hall = Hall(journal, 1)
    hall.comes("first")
    await hall.settled()
    for caller in ("a", "b"):
        for number in range(3):
            hall.comes(f"{caller}{number}", caller)
    for number in range(3):
        hall.comes(f"person{number}", None, context_id=f"talk-{number}")
    order = ["first", *(f"{caller}{number}" for number in range(3) for caller in ("a", "b", "person"))]
    for row_id in order:
        await hall.settled()
        await hall.leaves(row_id)
    assert hall.entered == order


async def test_cancelled_waiter_gets_no_slot(journal: Journal) -> None:
    hall = Hall(journal, 1)
    hall.comes("holder")
    await hall.settled()
    hall.comes("gives up", "peer-2")
    hall.comes("waits", "peer-3")
    await hall.settled()
    # The holder's task runs before the cancelled one notices.
    hall.lets_go("holder")
    hall.tasks["gives up"].cancel()
    assert await hall.settled() == ["holder", "waits"]
    assert not hall.tasks["holder"].exception()
    assert (hall.slots.busy, hall.slots.waiting) == (1, 0)
    await hall.empty()


async def test_waiter_cancelled_with_its_grant_releases_it(journal: Journal) -> None:
    hall = Hall(journal, 1)
    hall.comes("holder")
    await hall.settled()
    hall.comes("gives up", "peer-2")
    hall.comes("waits", "peer-3")
    await hall.settled()
    hall.lets_go("holder")
    await hall.tasks["holder"]
    hall.tasks["gives up"].cancel()
    assert (await hall.settled())[-1] == "waits"
    assert hall.slots.busy == 1
    await hall.empty()


async def test_suspect_messages_take_turns_by_caller(journal: Journal) -> None:
    hall = Hall(journal, 8)
    for number in range(3):
        hall.comes(f"suspect-{number}", crash_count=2)
    hall.comes("person", None, crash_count=2)
    assert await hall.settled() == ["suspect-0"]
    assert hall.slots.blocked_for() == 0
    for row_id in ("suspect-0", "suspect-1", "person"):
        await hall.leaves(row_id)
    assert hall.entered == ["suspect-0", "suspect-1", "person", "suspect-2"]
    await hall.empty()


async def test_suspect_messages_run_one_at_a_time(journal: Journal) -> None:
    hall = Hall(journal, 8)
    for number in range(3):
        hall.comes(f"suspect-{number}", f"peer-{number}", crash_count=2)
    hall.comes("once only", "peer-3", crash_count=1)
    hall.comes("innocent", "peer-4")
    assert sorted(await hall.settled()) == ["innocent", "once only", "suspect-0"]
    await hall.leaves("suspect-0")
    assert hall.entered[-1] == "suspect-1"
    await hall.empty()


async def test_blocked_time_counts_while_messages_wait(journal: Journal) -> None:
    hall = Hall(journal, 3)
    hall.comes("one", "peer-1")
    await asyncio.sleep(400)
    assert hall.slots.blocked_for() == 0
    hall.comes("two", "peer-1")
    await asyncio.sleep(400)
    # A free slot is left, but not for this caller.
    assert hall.slots.blocked_for() == pytest.approx(400)
    hall.comes("three", "peer-2")
    await asyncio.sleep(100)
    assert hall.slots.blocked_for() == pytest.approx(100)
    await hall.leaves("one")
    assert hall.slots.blocked_for() == 0
    await hall.empty()


async def test_blocked_queue_shows_in_the_heartbeat(journal: Journal) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    for number in range(9):
        platform.write(caller=f"peer-{number}")
    async with Serving(platform, journal, handler, grace=0.0) as serving:
        await asyncio.sleep(280)
        assert {beat.sample_error for beat in platform.beats} == {""}
        await asyncio.sleep(60)
        assert platform.beats[-1].sample_error == "all slots busy for 5 minutes, 2 conversations waiting"
        assert platform.beats[-1].active_tasks == 7
    assert serving.error is None


async def test_long_runs_of_peers_block_no_person(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)

    async def handler(request: Request, progress: Progress) -> Response:
        if request.caller_id is not None:
            await asyncio.sleep(3000)
        return Response.from_text(request.text)

    for number in range(8):
        platform.write("long", caller=f"peer-{number}")
    async with Serving(platform, journal, handler, grace=0.0):
        await asyncio.sleep(60)
        platform.write("hello")
        await platform.until(lambda: platform.answers() == ["hello"], seconds=5)


def fail(breaker: CircuitBreaker, *row_ids: str) -> None:
    """Failures of as many callers as there are ids."""
    for row_id in row_ids:
        breaker.failed(entry(row_id, f"fails-{row_id}"), "the model is out")


async def test_failures_of_two_callers_open_the_circuit(
    breaker: CircuitBreaker,
) -> None:
    fail(breaker, "one", "one", "one", "one")
    assert not breaker.backend.is_open
    fail(breaker, "two")
    assert breaker.backend.is_open


async def test_conversations_of_people_count_as_callers(breaker: CircuitBreaker) -> None:
    for context in ("talk-1", "talk-1", "talk-2"):
        breaker.failed(entry(f"in {context}", None, context_id=context), "the model is out")
    assert breaker.backend.is_open


async def test_one_failing_caller_keeps_the_backend_closed(breaker: CircuitBreaker, journal: Journal) -> None:
    for number in range(20):
        breaker.failed(entry(f"bad-{number}", "attacker"), "cannot be passed on")
    assert not breaker.backend.is_open
    hall = Hall(journal, 8, breaker)
    for number in range(4):
        hall.comes(f"attack-{number}", "attacker")
    for number in range(3):
        hall.comes(f"other-{number}", f"peer-{number}")
    assert await hall.settled() == ["other-0", "other-1", "other-2"]
    assert hall.slots.blocked_for() == 0
    await asyncio.sleep(5.1)
    assert hall.entered[3:] == ["attack-0"]
    await asyncio.sleep(10)
    assert hall.entered[4:] == ["attack-1"]
    await hall.empty()


async def test_success_between_failures_keeps_circuit_closed(breaker: CircuitBreaker) -> None:
    fail(breaker, "one", "two")
    breaker.succeeded(entry("good", "peer-1"))
    fail(breaker, "one", "two")
    assert not breaker.backend.is_open


async def test_failures_count_after_another_callers_success(breaker: CircuitBreaker) -> None:
    bad = entry("bad", "attacker")
    breaker.failed(bad, "no")
    assert breaker.counts(bad)
    for row_id in ("bad", "worse"):
        breaker.failed(entry(row_id, "attacker"), "no")
    assert not breaker.counts(bad)
    breaker.succeeded(entry("good", "peer-1"))
    assert breaker.counts(bad)


async def test_open_circuit_probes_at_growing_intervals(
    breaker: CircuitBreaker,
    journal: Journal,
) -> None:
    hall, loop = Hall(journal, 8, breaker), asyncio.get_running_loop()
    fail(breaker, "x", "y", "z")
    opened = loop.time()
    for number in range(8):
        hall.comes(f"m{number}", f"peer-{number}")
    times = []
    for number in range(7):
        while len(hall.entered) == number:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        assert len(hall.entered) == number + 1
        times.append(round(loop.time() - opened))
        await hall.leaves(hall.entered[-1])
    assert times == pytest.approx([5, 15, 35, 75, 135, 195, 255], abs=1)
    await hall.empty()


async def test_probes_take_turns_with_people_first(breaker: CircuitBreaker, journal: Journal) -> None:
    hall = Hall(journal, 8, breaker)
    fail(breaker, "x", "y", "z")
    for number in range(20):
        hall.comes(f"untried-{number}", "peer-1")
    hall.comes("tried", "peer-2", first_failed=1.0)
    hall.comes("person", None, first_failed=1.0)
    order = ["person", "untried-0", "tried", "untried-1"]
    for row_id in order:
        while row_id not in hall.entered:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        await hall.leaves(row_id)
    assert hall.entered == order
    await hall.empty()


async def test_good_standing_skips_the_probe_interval(breaker: CircuitBreaker, journal: Journal) -> None:
    hall = Hall(journal, 8, breaker)
    breaker.succeeded(entry("before", None, context_id="talk-0"))
    fail(breaker, "x", "y", "z")
    for number in range(1, 4):
        hall.comes(f"person-{number}", None, context_id=f"talk-{number}")
    hall.comes("stranger", "peer-1")
    assert await hall.settled() == ["person-1"]
    breaker.failed(entry("person-1", None, context_id="talk-1"), "the model is out")
    await hall.leaves("person-1")
    assert hall.entered == ["person-1"]
    await hall.empty()


async def test_good_standing_lasts_an_hour(breaker: CircuitBreaker) -> None:
    breaker.succeeded(entry("before", None))
    await asyncio.sleep(3600)
    assert breaker.trusts(None)
    await asyncio.sleep(1)
    assert not breaker.trusts(None)


async def test_reopened_circuit_probes_after_five_seconds(
    breaker: CircuitBreaker,
    journal: Journal,
) -> None:
    hall = Hall(journal, 8, breaker)
    fail(breaker, "x", "y", "z")
    for number in range(4):
        hall.comes(f"m{number}", f"peer-{number}")
    await asyncio.sleep(40)
    assert hall.entered == ["m0", "m1", "m2"]  # the next is due at 75 s
    breaker.succeeded(entry("good", "peer-9"))
    fail(breaker, "x", "y", "z")
    hall.slots.reconsider()
    await asyncio.sleep(5.5)
    assert hall.entered == ["m0", "m1", "m2", "m3"]
    await hall.empty()


async def test_closing_the_circuit_releases_all_waiters(breaker: CircuitBreaker, journal: Journal) -> None:
    hall = Hall(journal, 8, breaker)
    fail(breaker, "x", "y", "z")
    for number in range(5):
        hall.comes(f"m{number}", f"peer-{number}")
    await asyncio.sleep(5.1)
    assert hall.entered == ["m0"]
    breaker.succeeded(entry("good", "peer-9"))
    await hall.leaves("m0")
    assert hall.entered == [f"m{number}" for number in range(5)]
    await hall.empty()


@attrs.define
class Model:
    """A backend that can be out."""

    out: bool = True
    calls: list[tuple[float, str]] = attrs.field(factory=list)

    async def __call__(self, request: Request, progress: Progress) -> Response:
        self.calls.append((asyncio.get_running_loop().time(), request.message_id))
        if self.out:
            raise BackendError("the model is out")
        return Response.from_text(request.text)


async def test_backend_outage_of_ten_minutes_loses_nothing(journal: Journal) -> None:
    platform, model = FakePlatform(), Model()
    for number in range(20):
        platform.write(str(number), caller=f"peer-{number % 5}", context=f"talk-{number}")
    async with Serving(platform, journal, model) as serving:
        await asyncio.sleep(60)
        assert platform.beats[-1].wedged == "backend: the model is out"
        await asyncio.sleep(540)
        assert len(model.calls) < 35  # eight at once before it opens, then probes
        model.out = False
        await platform.until(lambda: len(platform.sent) == 20, seconds=130)
        await asyncio.sleep(31)
        assert platform.beats[-1].wedged == ""
    assert sorted(platform.answers(), key=int) == [str(number) for number in range(20)]
    assert {state for _, state in serving.rows()} == {"done"}


async def picky(request: Request, progress: Progress) -> Response:
    """Fails for peers whose text is bad."""
    if request.text == "bad":
        raise BackendError("the arguments are too long")
    return Response.from_text(request.text)


async def test_failing_peers_delay_no_trusted_person(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal, picky):
        platform.write("first")
        await platform.until(lambda: len(platform.sent) == 1)
        for number in range(80):
            platform.write("bad", caller=f"peer-{number % 8}", context=f"talk-{number}")
        for number in range(20):
            await asyncio.sleep(30)
            sent = len(platform.sent)
            platform.write(f"hello {number}", context=f"chat-{number % 3}")
            await platform.until(lambda sent=sent: len(platform.sent) > sent, seconds=1)  # type: ignore[misc]


async def test_only_caller_that_fails_loses_no_attempts(journal: Journal) -> None:
    platform, model = FakePlatform(), Model()
    for number in range(5):
        platform.write("bad", caller="peer-1", context=f"talk-{number}")
    async with Serving(platform, journal, model) as serving:
        await asyncio.sleep(3600)
        assert platform.beats[-1].wedged == "backend: the model is out"
    assert {state for _, state in serving.rows()} == {"received"}


async def test_failing_peer_is_dead_after_four_attempts(
    journal: Journal,
) -> None:
    platform = FakePlatform(has_stream=True)
    for number in range(5):
        platform.write("bad", caller="attacker", context=f"talk-{number}")
    async with Serving(platform, journal, picky) as serving:
        await asyncio.sleep(60)
        assert platform.beats[-1].wedged != ""
        platform.write("good", caller="peer-1")
        await platform.until(lambda: "good" in platform.answers(), seconds=5)
        await asyncio.sleep(31)
        assert platform.beats[-1].wedged == ""
        await asyncio.sleep(3600)
    states = dict(serving.rows("message_id, state"))
    assert sorted(states.values()) == ["dead"] * 5 + ["done"]


async def test_open_circuit_keeps_messages_for_a_day(journal: Journal) -> None:
    platform, model = FakePlatform(), Model()
    for number in range(3):
        platform.write(str(number), caller=f"peer-{number}")
    async with Serving(platform, journal, model) as serving:
        await asyncio.sleep(600)
        platform.ahead = 23.5 * 3600
        await asyncio.sleep(600)
        assert {state for _, state in serving.rows()} == {"received"}
        platform.ahead = 24 * 3600
        await asyncio.sleep(600)
        assert {state for _, state in serving.rows()} == {"dead"}
    assert len(platform.sent) == 3  # each caller is told
