"""Loops between agents: the guard stops programs that answer each other endlessly, and affects no others."""

import asyncio
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from tests.worker.kit import WORKSPACE, FakePlatform, Serving, echo

from molecule_connect.config.settings import PeerBudget
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import State, StoredMessage, StoredReply
from molecule_connect.models import Kind, Outgoing, Progress, Request, Response, TextPart
from molecule_connect.worker.clock import Clock
from molecule_connect.worker.loop_guard import LoopGuard
from molecule_connect.worker.outcomes import Deferred, Refusal, Rejected

MINUTE, HOUR = 60.0, 3600.0
Verdict = type[Refusal] | None


class TalkClock(Clock):
    """The clock of a ``Talk``."""

    def __init__(self, talk: "Talk") -> None:
        super().__init__(FakePlatform(), lambda: talk.now, monotonic=lambda: talk.now)
        self._talk = talk

    def now(self) -> int:
        return self._talk.micros()


def verdict_of(refusal: Refusal | None) -> Verdict:
    return None if refusal is None else type(refusal)


def reason_of(refusal: Refusal | None) -> str:
    assert refusal is not None
    return refusal.reason


def until(refusal: Refusal | None) -> float:
    """When a deferred message is due; a moment later, since times are rounded."""
    assert isinstance(refusal, Deferred)
    return refusal.not_before + 1e-6


@attrs.define
class Talk:
    """A peer that writes to us and is answered at once, on a clock that the test sets."""

    budget: PeerBudget = attrs.field(factory=PeerBudget)
    now: float = 1000.0
    number: int = 0
    others_wait: bool = False
    past: list[tuple[StoredMessage, int]] = attrs.field(factory=list)
    guard: LoopGuard = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.guard = LoopGuard(self.budget, self, TalkClock(self))

    def exchanges(self, since: int, most: int) -> Iterator[tuple[StoredMessage, int]]:
        return iter(self.past)

    def has_other_due(self, message: StoredMessage) -> bool:
        return self.others_wait

    def message(self, text: str = "", **given: Any) -> StoredMessage:
        self.number += 1
        values: dict[str, Any] = {name.name: None for name in attrs.fields(StoredMessage)}
        values |= {"workspace_id": "ws-1", "row_id": f"row-{self.number}", "state": State.RECEIVED, "raw": "{}"}
        values |= {"attempt": 0, "crash_count": 0, "replay": 0, "in_doubt": False, "sends": 0, "parts": ()}
        values |= {"caller_id": "peer-1", "time": self.micros(), "fingerprint": text or f"text {self.number}"}
        return StoredMessage(**(values | given))

    def micros(self) -> int:
        return round(self.now * 1e6)

    def rules(self, entry: StoredMessage, *, others_wait: bool = False) -> Refusal | None:
        self.others_wait = others_wait
        return self.guard.check(entry)

    def answers(self, entry: StoredMessage, answer: str = "") -> StoredMessage:
        parts = (TextPart(answer or f"answer to {entry.fingerprint}"),)
        entry = attrs.evolve(entry, reply=StoredReply(parts=parts), answered_at=self.micros())
        self.guard.reply_accepted(entry, at=self.micros())
        return entry

    def turn(
        self, text: str = "", answer: str = "", *, pause: float = 0.1, others_wait: bool = False, **given: Any
    ) -> Verdict:
        """The peer writes *pause* seconds after the last answer; what may run is answered at once."""
        self.now += pause
        entry = self.message(text, **given)
        ruling = self.rules(entry, others_wait=others_wait)
        if verdict_of(ruling) is None:
            self.answers(entry, answer)
        return verdict_of(ruling)

    def turns_until(self, verdict: Verdict, *, pause: float, most: int = 2000) -> int:
        """How many turns ran before *verdict*."""
        for number in range(most):
            if self.turn(pause=pause) is verdict:
                return number
        raise AssertionError(f"never {verdict}")


# Budgets


def test_sixty_turns_a_minute_defer_the_next() -> None:
    talk = Talk()
    # The first message is written after no answer: it is no turn.
    assert talk.turns_until(Deferred, pause=0.1) == 61
    ruling = talk.rules(talk.message())
    assert until(ruling) == pytest.approx(1000.2 + MINUTE)
    assert "60 turns a minute" in reason_of(ruling)
    talk.now = until(ruling)
    assert talk.turn(pause=0.0) is None


def test_600_turns_an_hour_defer_the_next() -> None:
    talk = Talk()
    assert talk.turns_until(Deferred, pause=1.1) == 601
    ruling = talk.rules(talk.message())
    assert until(ruling) == pytest.approx(1002.2 + HOUR)
    assert "600 turns an hour" in reason_of(ruling)


def test_two_exceeded_hours_are_a_loop() -> None:
    talk = Talk()
    talk.turns_until(Deferred, pause=1.1)
    talk.now = until(talk.rules(talk.message()))
    assert talk.turns_until(Rejected, pause=1.1) == 600
    assert reason_of(talk.rules(talk.message())) == "loop: peer-1 used up its hourly budget twice in three hours"


def test_hour_exceeded_after_three_hours_only_waits() -> None:
    talk = Talk()
    talk.turns_until(Deferred, pause=1.1)
    talk.now += 3 * HOUR
    assert talk.turns_until(Deferred, pause=1.1) == 600


@pytest.mark.parametrize("jitter", [(0.0,), (2.0, 0.0, 1.0, 0.5, 1.5, 0.2, 1.9)])
def test_ten_messages_a_minute_are_not_limited(jitter: tuple[float, ...]) -> None:
    talk = Talk()
    for number in range(8 * 600):
        talk.now = 1000.0 + number * 6.0 + jitter[number % len(jitter)]
        entry = talk.message("status?")
        ruling = talk.rules(entry)
        while verdict_of(ruling) is Deferred:
            assert until(ruling) - talk.now < 3
            talk.now = until(ruling)
            ruling = talk.rules(entry)
        assert verdict_of(ruling) is None
        talk.now += 1.0
        talk.answers(entry, f"it is {number}")


@pytest.mark.parametrize("contexts", [1, 7, 500])
def test_repeated_bursts_of_500_are_not_limited(contexts: int) -> None:
    talk = Talk()
    for _ in range(20):
        talk.now += 60.0
        burst = [talk.message(context_id=f"talk-{number % contexts}") for number in range(500)]
        for entry in burst:
            talk.now += 0.01
            assert verdict_of(talk.rules(entry)) is None
            talk.answers(entry)


@pytest.mark.parametrize("contexts", [1, 8])
def test_eight_workers_are_not_limited(contexts: int) -> None:
    talk = Talk()
    asked: dict[int, StoredMessage] = {}
    for number in range(3 * 600 * 8):
        worker = number % 8
        if worker in asked:
            talk.answers(asked[worker])
        talk.now = 1000.0 + number * 6.0 / 8
        asked[worker] = talk.message(context_id=f"talk-{worker % contexts}")
        ruling = talk.rules(asked[worker])
        assert verdict_of(ruling) is None or until(ruling) - talk.now < 60


def test_conversations_are_counted_separately() -> None:
    talk = Talk()
    for number in range(3 * 600 * 8):
        talk.now = 1000.0 + number * 6.0 / 8
        entry = talk.message(context_id=f"talk-{number % 8}")
        ruling = talk.rules(entry)
        assert verdict_of(ruling) is None or until(ruling) - talk.now < 60
        talk.answers(entry)


# Loops side by side


def side_by_side(talk: Talk, *, many: int, contexts: Callable[[int], str], most: int) -> int:
    """So many loops with one peer, in each of which it meets an answer with a message; how many ran in a minute."""
    for number in range(many):
        talk.answers(talk.message(context_id=contexts(number)))
    under_way: list[StoredMessage] = []
    ran = 0
    for number in range(most):
        talk.now += 0.05
        under_way.append(talk.message(context_id=contexts(number)))
        if len(under_way) < many:
            continue
        entry = under_way.pop(0)
        if verdict_of(talk.rules(entry, others_wait=True)) is None:
            ran += 1
            talk.answers(entry)
        else:
            under_way.append(entry)
    return ran


@pytest.mark.parametrize("many", [1, 2, 5])
@pytest.mark.parametrize("kind", ["a context each", "one context", "ever new contexts"])
def test_concurrent_loops_are_limited_one_by_one(many: int, kind: str) -> None:
    contexts = {
        "a context each": lambda number: f"talk-{number % many}",
        "one context": lambda number: "talk",
        "ever new contexts": lambda number: f"talk-{number}",
    }[kind]
    assert side_by_side(Talk(), many=many, contexts=contexts, most=1100) <= 60 * many


def test_peer_with_waiting_messages_may_repeat_itself() -> None:
    talk = Talk()
    assert {talk.turn("status?", "still at it", others_wait=True) for _ in range(60)} == {None}
    assert talk.turn("status?", "still at it", others_wait=False) is Rejected


def test_delegations_do_not_count() -> None:
    talk = Talk()
    assert {talk.turn(pause=0.1, delegation_id=f"d-{number}") for number in range(700)} == {None}
    assert talk.turns_until(Deferred, pause=0.1) == 61


def test_people_do_not_count() -> None:
    talk = Talk()
    assert {talk.turn("same", "same", caller_id=None) for _ in range(700)} == {None}


def test_message_before_our_reply_is_no_turn() -> None:
    talk = Talk()
    talk.turn()
    for _ in range(100):
        entry = talk.message(time=talk.micros() - 1)
        assert verdict_of(talk.rules(entry)) is None
        talk.answers(entry)
    assert talk.turns_until(Deferred, pause=0.1) == 60


def test_a_budget_of_zero_is_without_limit() -> None:
    talk = Talk(PeerBudget(per_minute=0, per_hour=0))
    assert {talk.turn() for _ in range(2000)} == {None}


def test_unlimited_minute_keeps_the_hourly_limit() -> None:
    talk = Talk(PeerBudget(per_minute=0, per_hour=5))
    assert talk.turns_until(Deferred, pause=0.1) == 6


def test_each_peer_has_its_own_budget() -> None:
    talk = Talk(PeerBudget(per_minute=1, per_hour=10))
    assert talk.turns_until(Deferred, pause=0.1) == 2
    assert talk.turn(caller_id="peer-2") is None


def test_repeated_check_charges_a_message_once() -> None:
    talk = Talk(PeerBudget(per_minute=10, per_hour=10))
    talk.turn()
    talk.now += 1
    entry = talk.message()
    # A backend that parks it, or a failure while the backend is out for all, costs no attempt.
    assert {verdict_of(talk.rules(entry)) for _ in range(50)} == {None}
    talk.answers(entry)
    assert talk.turns_until(Deferred, pause=0.1) == 9


def test_long_answers_are_not_kept_in_memory() -> None:
    talk = Talk(PeerBudget(per_minute=0, per_hour=0))
    talk.turn()
    tracemalloc.start()
    try:
        for number in range(100):
            talk.turn(answer="x" * 100_000, context_id=f"talk {number}")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000


async def test_flood_hides_no_earlier_loop_of_others(journal: Journal) -> None:
    part, platform = journal.of(WORKSPACE), FakePlatform()
    for number in range(5):
        platform.write("Ready.", caller="peer-1", message_id=f"loop {number}")
    for number in range(30):
        platform.write(f"flood {number}", caller="peer-2", context=f"talk {number}")
    async with Serving(platform, journal, echo):
        await platform.until(lambda: len(platform.sent) == 35)
    found = [(entry.caller_id, entry.parts, entry.raw) for entry, _ in part.exchanges(0, 5)]
    assert Counter(found) == {("peer-1", (), None): 5, ("peer-2", (), None): 5}


def restarted(talk: Talk, *, every: int, pause: float, most: int, text: str = "") -> list[tuple[int, Verdict]]:
    """Turns that are answered at once, with a new guard after *every* so many; the verdicts other than run."""
    others: list[tuple[int, Verdict]] = []
    for number in range(most):
        if number % every == 0:
            talk.restart()
        talk.now += pause
        entry = talk.message(text)
        while verdict_of(ruling := talk.rules(entry)) is Deferred:
            others.append((number, Deferred))
            talk.now = until(ruling) + 0.1
        if verdict_of(ruling) is Rejected:
            return [*others, (number, Rejected)]
        talk.past.append((talk.answers(entry, text), talk.micros()))
    return others


def test_restarts_do_not_hide_a_loop() -> None:
    seldom, often = (restarted(Talk(), every=every, pause=1.1, most=2000) for every in (5000, 40))
    assert often == seldom == [(601, Deferred), (1201, Rejected)]
    assert restarted(Talk(), every=2, pause=1.0, most=10, text="Ready.") == [(5, Rejected)]


def test_restarts_do_not_limit_an_orchestrator() -> None:
    assert {verdict for _, verdict in restarted(Talk(), every=40, pause=5.99, most=1900)} <= {Deferred}


# Identical exchanges


def test_sixth_identical_prompt_exchange_is_a_loop() -> None:
    talk = Talk()
    assert [talk.turn("Ready.", "Acknowledged.", pause=29) for _ in range(6)] == [None] * 5 + [Rejected]


def test_slow_repetition_is_no_loop() -> None:
    talk = Talk()
    assert {talk.turn("status?", "fine", pause=31) for _ in range(200)} == {None}


def test_new_answers_are_no_loop() -> None:
    talk = Talk()
    assert {talk.turn("next?", f"number {number}", pause=8) for number in range(100)} == {None}


@pytest.mark.parametrize("broken_by", ["another text", "a pause"])
def test_interruption_restarts_the_repeat_count(broken_by: str) -> None:
    talk = Talk()
    for _ in range(4):
        talk.turn("Ready.", "Acknowledged.")
    talk.turn(*(("Hm.", "What?") if broken_by == "another text" else ("Ready.", "Acknowledged.")), pause=31)
    left = 5 if broken_by == "another text" else 4
    verdicts = [talk.turn("Ready.", "Acknowledged.") for _ in range(left + 1)]
    assert verdicts == [None] * left + [Rejected]


def test_pause_after_a_loop_admits_the_peer() -> None:
    talk = Talk()
    for _ in range(6):
        talk.turn("Ready.", "Acknowledged.")
    assert talk.turn("Ready.", "Acknowledged.") is Rejected
    assert talk.turn("Ready.", "Acknowledged.", pause=31) is None


def test_delegations_are_ignored_between_repeats() -> None:
    talk = Talk()
    talk.turn("Ready.", "Acknowledged.")
    talk.turn("Ready.", "Acknowledged.")
    for number in range(5):
        talk.turn("Ready.", "Acknowledged.", delegation_id=f"d-{number}")
    verdicts = [talk.turn("Ready.", "Acknowledged.") for _ in range(4)]
    assert verdicts == [None] * 3 + [Rejected]


# Whole connections


@attrs.define
class Wire:
    """Platforms whose peers are one another: what one sends to a peer, that peer can read.

    Our own answers are marked, so that they come as answers; a foreign client's come as fresh messages.
    """

    platforms: dict[str, "WiredPlatform"] = attrs.field(factory=dict)
    foreign: bool = False


@attrs.define
class WiredPlatform(FakePlatform):
    """A platform as one workspace sees it."""

    name: str = ""
    wire: Wire = attrs.field(factory=Wire)

    def _take(self, outgoing: Outgoing) -> None:
        super()._take(outgoing)
        peer = self.wire.platforms.get(outgoing.caller_id or "")
        if peer is not None:
            text = "".join(part.text for part in outgoing.parts if isinstance(part, TextPart))
            kind = Kind.MESSAGE if self.wire.foreign else Kind.ANSWER
            peer.write(text, caller=self.name, context=outgoing.context_id, kind=kind)


def platform_of(wire: Wire, name: str) -> WiredPlatform:
    platform = wire.platforms[name] = WiredPlatform(name=name, wire=wire, has_stream=True)
    return platform


async def test_two_connectors_exchange_one_message_and_reply(journal: Journal) -> None:
    wire = Wire()
    ours, theirs = platform_of(wire, "ws-1"), platform_of(wire, "ws-2")
    ours.write("hello", caller="ws-2")
    async with Serving(ours, journal, echo), Serving(theirs, journal, echo, workspace_id="ws-2"):
        await asyncio.sleep(600)
    assert (len(ours.sent), len(theirs.sent)) == (1, 0)


async def test_a_triangle_of_our_clients_stops(journal: Journal) -> None:
    wire = Wire()
    names = ["ws-1", "ws-2", "ws-3"]
    platforms = [platform_of(wire, name) for name in names]
    runs: list[str] = []

    def passes_on(to: WiredPlatform, name: str) -> Callable[..., Any]:
        async def handler(request: Request, progress: Progress) -> Response:
            runs.append(name)
            return Response.from_text(request.text)

        return handler

    for platform, before in zip(platforms, [*names[2:], *names[:2]], strict=True):
        platform.write("round we go", caller=before)
    async with (
        Serving(platforms[0], journal, passes_on(platforms[1], "ws-1")),
        Serving(platforms[1], journal, passes_on(platforms[2], "ws-2"), workspace_id="ws-2"),
        Serving(platforms[2], journal, passes_on(platforms[0], "ws-3"), workspace_id="ws-3"),
    ):
        await asyncio.sleep(600)
    assert sorted(runs) == names
    assert [len(platform.sent) for platform in platforms] == [1, 1, 1]


@attrs.define
class Parrot(FakePlatform):
    """A foreign peer that meets each answer with a fresh message, *pause* seconds later."""

    pause: float = 1.0
    says: Callable[[int], str] = lambda number: "Ready."
    contexts: Callable[[int], str] = lambda number: "talk"

    def _take(self, outgoing: Outgoing) -> None:
        super()._take(outgoing)
        number = len(self.sent)
        write = lambda: self.write(self.says(number), caller=outgoing.caller_id, context=self.contexts(number))  # noqa: E731
        asyncio.get_running_loop().call_later(self.pause, write)


async def acknowledge(request: Request, progress: Progress) -> Response:
    return Response.from_text("Acknowledged.")


async def test_parrot_becomes_a_dead_letter(journal: Journal) -> None:
    platform = Parrot(has_stream=True)
    platform.write("Ready.", caller="peer-1", context="talk")
    async with Serving(platform, journal, acknowledge) as serving:
        await asyncio.sleep(3600)
    assert len(platform.sent) == 5
    assert serving.rows("state, reason")[-1] == ("dead", "loop: 5 identical exchanges in a row with peer-1")


async def test_restart_does_not_reset_a_parrot(journal: Journal) -> None:
    platform = Parrot(has_stream=True)
    platform.write("Ready.", caller="peer-1", context="talk")
    for answers in (2, 4):
        async with Serving(platform, journal, acknowledge):
            await platform.until(lambda answers=answers: len(platform.sent) == answers)  # type: ignore[misc]
    async with Serving(platform, journal, acknowledge) as serving:
        await asyncio.sleep(3600)
    assert len(platform.sent) == 5
    assert serving.rows("state, reason")[-1] == ("dead", "loop: 5 identical exchanges in a row with peer-1")


async def test_parrots_side_by_side_are_all_braked(journal: Journal) -> None:
    platform = SeveralParrots(has_stream=True)
    for number in range(3):
        platform.write("Ready.", caller="peer-1", context=f"talk-{number}")

    async def slow(request: Request, progress: Progress) -> Response:
        await asyncio.sleep(2)
        return await acknowledge(request, progress)

    async with Serving(platform, journal, slow, peer_budget=PeerBudget(per_minute=10, per_hour=20)) as serving:
        await asyncio.sleep(2 * 3600)
    assert len(platform.sent) <= 3 * 41
    assert [state for _, state in serving.rows()].count("dead") == 3


@attrs.define
class SeveralParrots(Parrot):
    """Each stays in its own conversation."""

    def _take(self, outgoing: Outgoing) -> None:
        FakePlatform._take(self, outgoing)
        write = lambda: self.write("Ready.", caller=outgoing.caller_id, context=outgoing.context_id)  # noqa: E731
        asyncio.get_running_loop().call_later(self.pause, write)


@attrs.define
class QuickParrot(Parrot):
    """Its next message is there before we hear that our answer was taken."""

    async def send(self, outgoing: Outgoing) -> None:
        await super().send(outgoing)
        await asyncio.sleep(0.05)


async def test_parrot_faster_than_our_confirmation_is_stopped(journal: Journal) -> None:
    platform = QuickParrot(has_stream=True, pause=0.01)
    platform.write("Ready.", caller="peer-1", context="talk")
    async with Serving(platform, journal, acknowledge) as serving:
        await asyncio.sleep(3600)
    assert len(platform.sent) == 5
    assert serving.rows("state, reason")[-1] == ("dead", "loop: 5 identical exchanges in a row with peer-1")


@pytest.mark.parametrize("contexts", [lambda number: "talk", lambda number: f"talk-{number}"])
async def test_polite_programs_are_slowed_without_loss(journal: Journal, contexts: Callable[[int], str]) -> None:
    platform = Parrot(has_stream=True, pause=0.1, says=lambda number: f"Ready {number}.", contexts=contexts)
    platform.write("Ready.", caller="peer-1", context="talk")
    async with Serving(platform, journal, acknowledge, poll_interval=1.0) as serving:
        await asyncio.sleep(170)
        assert len(platform.sent) == pytest.approx(61 + 60 * 2, abs=2)
        assert serving.rows("state, error")[-1] == ("received", "peer-1 has used up its 60 turns a minute")
    assert {state for _, state in serving.rows()} <= {"done", "received"}


async def test_deferred_conversation_leaves_others_counted(
    journal: Journal,
) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal, acknowledge) as serving:
        for number in range(80):
            platform.write(f"{number}", caller="peer-1", context=f"talk-{number}")
            await asyncio.sleep(0.2)
        assert len(platform.sent) == 61
        assert [state for _, state in serving.rows()].count("received") == 19
        # When the minute has passed, all of them are answered.
        await platform.until(lambda: len(platform.sent) == 80, seconds=120)


async def test_the_replay_of_a_loop_letter_runs(journal: Journal) -> None:
    platform = Parrot(has_stream=True)
    platform.write("Ready.", caller="peer-1", context="talk")
    async with Serving(platform, journal, acknowledge) as serving:
        await asyncio.sleep(120)
        (row_id,) = [row_id for row_id, state in serving.rows() if state == "dead"]
        platform.pause = float("inf")
        await journal.of("ws-1").replay(row_id)
        serving.connection.journal_changed()
        await asyncio.sleep(10)
    assert len(platform.sent) == 6
    assert serving.rows()[-1] == (row_id, "done")


async def test_burst_of_500_is_answered_at_once(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    for number in range(500):
        platform.write("same", caller="peer-1", context=f"talk-{number % 7}", age=1)
    async with Serving(platform, journal, acknowledge) as serving:
        await platform.until(lambda: len(platform.sent) == 500, seconds=50)
    assert {state for _, state in serving.rows()} == {"done"}
