"""No reply is sent twice: what is resent, refused or settled, whatever the platform and the network do."""

import asyncio
import json

import pytest
from tests.worker.kit import WORKSPACE, FakePlatform, Serving, other_process

from molecule_connect import events
from molecule_connect.errors import AuthError, Outcome, PermanentPlatformError, PlatformError, TransientPlatformError
from molecule_connect.journal.journal import Journal
from molecule_connect.models import DataPart, Kind, Progress, Request, Response

HOUR = 3600.0
PEER = "peer-1"
BOTH = pytest.mark.parametrize("caller", [None, PEER], ids=["person", "peer"])


def transient(status: int | None, **given: object) -> TransientPlatformError:
    """Not accepted, and it may be later."""
    outcome = Outcome.UNKNOWN if status and status >= 500 else Outcome.NOT_TAKEN
    given.setdefault("outcome", outcome)
    return TransientPlatformError(f"send: {status}", operation="send", status=status, **given)  # type: ignore[arg-type]


def final(status: int) -> PermanentPlatformError:
    """Refused in the platform's own words."""
    return PermanentPlatformError(f"send: {status} no", operation="send", status=status, body='{"error": "no"}')


def cut(outcome: Outcome = Outcome.UNKNOWN) -> TransientPlatformError:
    """The connection was cut."""
    return TransientPlatformError("send: cut", operation="send", outcome=outcome)


class Counting:
    """A backend that echoes, and counts."""

    def __init__(self, text: str = "") -> None:
        self.runs: list[str] = []
        self.text = text

    async def __call__(self, request: Request, progress: Progress) -> Response:
        self.runs.append(request.text)
        return Response.from_text(self.text or f"echo: {request.text}")


async def quiet(platform: FakePlatform, sent: int, *, seconds: float = 100.0) -> None:
    """Wait until *sent* answers are accepted, and then long enough for one too many."""
    await platform.until(lambda: len(platform.sent) >= sent)
    await asyncio.sleep(seconds)
    assert len(platform.sent) == sent


@BOTH
@pytest.mark.parametrize(
    "error",
    [
        transient(500),
        transient(502),
        transient(503, retry_after=2.0),
        transient(429, retry_after=30.0),
        transient(408),
        transient(425),
        transient(200, outcome=Outcome.UNKNOWN),
        transient(404, platform_said=False),
        transient(403, platform_said=False),
        AuthError("send: 401", operation="send", status=401, body=""),
        cut(Outcome.NOT_TAKEN),
        cut(Outcome.UNKNOWN),
        cut(Outcome.WRITTEN),
    ],
    ids=lambda error: f"{type(error).__name__} {error.status} {getattr(error, 'outcome', '')}",
)
async def test_transient_failure_resends_without_the_backend(
    journal: Journal, caller: str | None, error: PlatformError
) -> None:
    platform, backend = FakePlatform(fail_send=[error]), Counting()
    platform.write("one", caller=caller)
    platform.write("two", caller=caller)
    async with Serving(platform, journal, backend) as serving:
        await quiet(platform, 2)
    assert platform.answers() == ["echo: one", "echo: two"]
    assert backend.runs == ["one", "two"]
    assert [state for _, state in serving.rows()] == ["done", "done"]


@BOTH
@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 422, 200])
async def test_refused_reply_is_dead(journal: Journal, caller: str | None, status: int) -> None:
    platform, backend = FakePlatform(fail_send=[final(status)]), Counting()
    platform.write("one", caller=caller)
    platform.write("two", caller=caller)
    async with Serving(platform, journal, backend) as serving:
        await quiet(platform, 1)
    assert platform.answers() == ["echo: two"]
    assert backend.runs == ["one", "two"]
    assert serving.rows("state, reason") == [
        ("dead", f"the reply was not accepted: send: {status} no"),
        ("done", None),
    ]
    assert [event.row_id for event in serving.events.of(events.Dead)] == ["row-1"]


@pytest.mark.parametrize("status", [503, 429])
async def test_retry_after_is_at_most_five_minutes(journal: Journal, status: int) -> None:
    errors: list[PlatformError] = [transient(status, retry_after=100.0), transient(status, retry_after=86_400.0)]
    platform = FakePlatform(fail_send=errors)
    platform.write("one", caller=PEER)
    async with Serving(platform, journal):
        await quiet(platform, 1)
    first, second = (later - earlier for earlier, later in zip(platform.tried, platform.tried[1:], strict=False))
    assert (first, second) == pytest.approx((100, 300))


async def test_resend_delays_double_to_five_minutes(journal: Journal) -> None:
    platform = FakePlatform(fail_send=[transient(429) for _ in range(14)])
    platform.write("one", caller=PEER)
    async with Serving(platform, journal):
        await platform.until(lambda: len(platform.sent) == 1, 3 * HOUR)
    waits = [later - earlier for earlier, later in zip(platform.tried, platform.tried[1:], strict=False)]
    for number, wait in enumerate(waits):
        nominal = min(300.0, 2.0**number)
        assert nominal / 2 - 0.1 <= wait <= nominal + 0.1


async def test_budget_refusal_is_retried_every_ten_minutes(journal: Journal) -> None:
    platform = FakePlatform(fail_send=[transient(402, platform_said=True) for _ in range(3)])
    platform.write("one", caller=PEER)
    async with Serving(platform, journal):
        await platform.until(lambda: len(platform.sent) == 1)
    waits = [later - earlier for earlier, later in zip(platform.tried, platform.tried[1:], strict=False)]
    assert [round(wait, -1) for wait in waits] == [600, 600, 600]


async def almost_a_day_later(journal: Journal) -> None:
    """The answers that are stored are 23.5 hours old."""
    with other_process(journal.path) as db:
        db.execute("UPDATE message SET answered_at = answered_at - ?", (23.5 * HOUR * 1e6,))


@BOTH
async def test_reply_is_given_up_after_a_day(journal: Journal, caller: str | None) -> None:
    platform = FakePlatform(fail_send=[transient(429) for _ in range(30)])
    platform.write("one", caller=caller)
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: len(platform.tried) == 5)
        await almost_a_day_later(journal)
        await asyncio.sleep(HOUR / 3)
        assert serving.events.of(events.Dead) == []
        await asyncio.sleep(HOUR / 3)
        assert "24 hours" in serving.rows("reason")[0][0]
        platform.fail_send.clear()
        platform.write("two", caller=caller)
        await platform.until(lambda: len(platform.sent) == 1)
    assert platform.answers() == ["echo: two"]


async def test_unreadable_feed_causes_no_send_storm(journal: Journal) -> None:
    platform = FakePlatform(cut_after=[cut()])
    platform.write("one")
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: len(platform.sent) == 1)
        platform.fail_fetch = [transient(503) for _ in range(20_000)]
        await almost_a_day_later(journal)
        before = len(platform.fetches)
        await platform.until(lambda: bool(serving.events.of(events.Dead)), HOUR)
        # The intake itself tries every half a minute.
        assert len(platform.fetches) - before < 150
        assert len(platform.tried) == 1
        platform.fail_fetch.clear()


# Message ids


@pytest.mark.parametrize("newer", [True, False])
async def test_resend_to_a_peer_is_identical(journal: Journal, newer: bool) -> None:
    platform = FakePlatform(newer=newer, cut_after=[cut(), cut()])
    platform.write("one", caller=PEER)
    async with Serving(platform, journal):
        await platform.until(lambda: len(platform.tried) == 3)
        await asyncio.sleep(900)
    assert len(platform.tried) == 3
    assert len({sent.message_id for sent in platform.sent}) == 1
    assert len(platform.sent) == (1 if newer else 3)


async def test_each_reply_has_its_own_id(journal: Journal) -> None:
    platform = FakePlatform()
    for number in range(3):
        platform.write(f"{number}", caller=PEER, context="c", message_id=f"id-{number}")
    async with Serving(platform, journal):
        await quiet(platform, 3)
    assert len({sent.message_id for sent in platform.sent}) == 3
    assert [sent.in_reply_to for sent in platform.sent] == ["id-0", "id-1", "id-2"]
    assert {(sent.caller_id, sent.context_id) for sent in platform.sent} == {(PEER, "c")}


# Of unknown outcome: a peer


async def test_slow_peer_gets_one_reply(journal: Journal) -> None:
    platform = FakePlatform(send_delay=90.0, cut_after=[cut(Outcome.WRITTEN)], newer=False)
    platform.write("one", caller=PEER)
    platform.write("two", caller=PEER)
    async with Serving(platform, journal) as serving:
        await quiet(platform, 2)
    assert platform.answers() == ["echo: one", "echo: two"]
    assert [event.confirmed for event in serving.events.of(events.Delivered)] == [False, True]


async def test_failing_heartbeats_allow_a_resend(journal: Journal) -> None:
    platform = FakePlatform(send_delay=90.0, fail_send=[cut(Outcome.WRITTEN)], newer=False)
    platform.write("one", caller=PEER)
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: len(platform.beats) == 1)
        platform.fail_beat = [transient(503) for _ in range(8)]
        await quiet(platform, 1)
    assert len(platform.tried) == 2
    assert [event.confirmed for event in serving.events.of(events.Delivered)] == [True]


@pytest.mark.parametrize("outcome", [Outcome.UNKNOWN, Outcome.NOT_TAKEN])
async def test_partly_written_reply_is_sent_again(journal: Journal, outcome: Outcome) -> None:
    platform = FakePlatform(send_delay=90.0, fail_send=[cut(outcome)])
    platform.write("one", caller=PEER)
    async with Serving(platform, journal):
        await quiet(platform, 1)
    assert platform.answers() == ["echo: one"]


@pytest.mark.parametrize("error", [cut(), cut(Outcome.WRITTEN), transient(500), transient(504)], ids=str)
async def test_peer_gets_at_most_five_copies(journal: Journal, error: PlatformError) -> None:
    platform = FakePlatform(newer=False, cut_after=[error] * 300, fail_beat=[transient(503) for _ in range(3_000)])
    platform.write("one", caller=PEER)
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: bool(serving.events.of(events.Dead)))
        platform.cut_after.clear()
        assert len(platform.sent) == 5
        ((reason,),) = serving.rows("reason")
        assert "sent 5 times" in reason
        await serving.connection._journal.replay("row-1")
        serving.connection.journal_changed()
        await quiet(platform, 6)
    assert serving.rows() == [("row-1", "done")]
    assert len({sent.message_id for sent in platform.sent}) == 2
    # The stored answer, once more: the backend is not asked again.
    assert [event.text for event in serving.events.of(events.Answered)] == ["echo: one"] * 2


async def test_person_gets_at_most_five_copies(journal: Journal) -> None:
    platform = FakePlatform(cut_after=[cut()] * 300, echo_delay=1e9)
    platform.write("one")
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: bool(serving.events.of(events.Dead)))
    assert len(platform.sent) == 5


async def test_echo_of_the_last_copy_settles(journal: Journal) -> None:
    platform = FakePlatform(fail_send=[cut()] * 4, cut_after=[cut()])
    platform.write("one")
    async with Serving(platform, journal) as serving:
        await quiet(platform, 1)
    assert serving.rows() == [("row-1", "done")]


@pytest.mark.parametrize(
    "error",
    [transient(502), transient(503), transient(500, platform_said=True), transient(200, outcome=Outcome.UNKNOWN)],
    ids=str,
)
async def test_sends_that_never_arrived_are_not_limited(journal: Journal, error: PlatformError) -> None:
    platform = FakePlatform(fail_send=[error] * 9)
    platform.write("one", caller=PEER)
    async with Serving(platform, journal):
        await quiet(platform, 1)
    assert len(platform.tried) == 10


# Of unknown outcome: a person


@pytest.mark.parametrize("error", [cut(), cut(Outcome.WRITTEN), transient(500)], ids=str)
async def test_reply_with_an_echo_is_not_repeated(journal: Journal, error: PlatformError) -> None:
    platform = FakePlatform(cut_after=[error])
    platform.write("one")
    async with Serving(platform, journal) as serving:
        await quiet(platform, 1)
    assert serving.rows() == [("row-1", "done")]
    assert len(platform.tried) == 1


async def test_reply_without_an_echo_is_sent_again(journal: Journal) -> None:
    platform = FakePlatform(fail_send=[cut()])
    platform.write("one")
    async with Serving(platform, journal):
        await quiet(platform, 1)
    first, second = platform.tried
    assert second - first == pytest.approx(5)
    reads = [fetch["at"] for fetch in platform.fetches if first < fetch["at"] <= second]
    assert second - reads[-1] <= 1


async def test_echo_after_four_seconds_settles(journal: Journal) -> None:
    platform = FakePlatform(cut_after=[cut()], echo_delay=4.0)
    platform.write("one")
    async with Serving(platform, journal):
        await quiet(platform, 1)


async def test_missing_echo_costs_one_more_send(journal: Journal) -> None:
    platform = FakePlatform(cut_after=[cut()], echo_delay=1e9)
    platform.write("one")
    platform.write("two")
    async with Serving(platform, journal):
        await quiet(platform, 3)
    assert platform.answers() == ["echo: one", "echo: one", "echo: two"]


async def test_late_echo_settles_after_another_failure(journal: Journal) -> None:
    platform = FakePlatform(echo_delay=8.0, cut_after=[cut()])
    platform.write("one")
    async with Serving(platform, journal):
        await platform.until(lambda: len(platform.sent) == 1)
        # Not there yet after five seconds, so it is sent again; by the time that this fails, it is there.
        platform.fail_send = [transient(429, retry_after=20.0)]
        await quiet(platform, 1)
    assert len(platform.tried) == 2


async def test_of_several_identical_answers_each_arrives_once(journal: Journal) -> None:
    # Two never arrive, two arrive without a word, two are accepted.
    platform = FakePlatform(send_delay=0.5, fail_send=[cut(), cut()], cut_after=[cut(), cut()])
    for number in range(6):
        platform.write("hi", context=f"context-{number}")
    async with Serving(platform, journal):
        await quiet(platform, 6)
    assert len(platform.tried) == 8


async def test_restart_settles_a_persons_reply(journal: Journal) -> None:
    platform, backend = FakePlatform(cut_after=[cut()]), Counting()
    platform.write("one")
    async with Serving(platform, journal, backend):
        await platform.until(lambda: len(platform.sent) == 1)
    async with Serving(platform, journal, backend) as serving:
        await quiet(platform, 1)
    assert backend.runs == ["one"]
    assert serving.rows() == [("row-1", "done")]


async def test_foreign_reply_is_reported_once(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("one")
    async with Serving(platform, journal) as serving:
        await quiet(platform, 1, seconds=60)
        assert serving.events.of(events.Notice) == []
        for number in range(3):
            platform.write(f"who said that? {number}", kind=Kind.ECHO)
        await asyncio.sleep(60)
        (notice,) = serving.events.of(events.Notice)
    assert "another program" in notice.text


async def test_an_earlier_programs_answers_are_no_concern(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("before us", kind=Kind.ECHO, age=20)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
    assert serving.events.of(events.Notice) == []


# Too long


LONG = "x" * 300_000


@BOTH
@pytest.mark.parametrize("status", [400, 413])
async def test_refused_long_reply_is_shortened_once(journal: Journal, caller: str | None, status: int) -> None:
    platform = FakePlatform(fail_send=[final(status)])
    platform.write("one", caller=caller)
    async with Serving(platform, journal, Counting(LONG)) as serving:
        await quiet(platform, 1)
    (text,) = platform.answers()
    assert 90_000 < len(text) <= 100_000
    assert text.startswith("xxx")
    assert "shortened" in text[-100:]
    assert serving.rows() == [("row-1", "done")]
    assert [event.text for event in serving.events.of(events.Notice)] == []


@pytest.mark.parametrize("status", [400, 413])
async def test_refused_shortened_reply_is_dead(journal: Journal, status: int) -> None:
    platform = FakePlatform(fail_send=[final(status), final(status)])
    platform.write("one", caller=PEER)
    async with Serving(platform, journal, Counting("ü" * 1_200_000)) as serving:
        await platform.until(lambda: bool(serving.events.of(events.Dead)))
    assert len(platform.tried) == 2


async def test_refused_short_reply_is_not_shortened(journal: Journal) -> None:
    platform = FakePlatform(fail_send=[final(413)])
    platform.write("one", caller=PEER)
    async with Serving(platform, journal, Counting("x" * 50_000)) as serving:
        await platform.until(lambda: bool(serving.events.of(events.Dead)))
    assert len(platform.tried) == 1


async def test_shortened_reply_is_settled_by_its_echo(journal: Journal) -> None:
    platform = FakePlatform(fail_send=[final(413)], cut_after=[cut()])
    platform.write("one")
    async with Serving(platform, journal, Counting(LONG)) as serving:
        await quiet(platform, 1)
    assert serving.events.of(events.Notice) == []


# A platform without notify


def absent(status: int) -> TransientPlatformError:
    return transient(status, platform_said=False, outcome=Outcome.NOT_TAKEN)


@pytest.mark.parametrize("status", [404, 405])
async def test_absent_notify_makes_the_reply_dead(journal: Journal, status: int) -> None:
    platform = FakePlatform(fail_send=[absent(status), absent(status)])
    platform.write("one")
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: bool(serving.events.of(events.Dead)), 60)
        platform.write("two")
        await platform.until(lambda: len(serving.events.of(events.Dead)) == 2, 60)
        assert len(platform.tried) == 2
        await asyncio.sleep(HOUR)
        platform.write("three")
        await quiet(platform, 1, seconds=60)
    assert "has no notify" in serving.rows("reason")[0][0]
    assert platform.answers() == ["echo: three"]


async def test_stop_after_notify_404_settles_the_message(journal: Journal) -> None:
    platform = FakePlatform(fail_send=[absent(404), absent(404)], send_delay=0.2)
    platform.write("one")
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: len(platform.tried) == 1)
    assert serving.rows("state, reason")[0][0] == "dead"
    assert json.loads((journal.path.parent / f"{WORKSPACE}.json").read_text())["last_since_id"] == "row-1"


async def test_notify_404_is_retried_at_once(journal: Journal) -> None:
    platform = FakePlatform(fail_send=[absent(404)])
    platform.write("one")
    async with Serving(platform, journal):
        await quiet(platform, 1)
    assert len(platform.tried) == 2


async def test_notify_404_with_failing_feed_is_transient(journal: Journal) -> None:
    platform = FakePlatform(send_delay=0.2)
    platform.write("one", age=1)
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: len(platform.tried) == 1)
        platform.fail_fetch = [absent(404) for _ in range(100)]
        platform.fail_send = [absent(404) for _ in range(100)]
        await asyncio.sleep(60)
        platform.fail_fetch.clear()
        platform.fail_send.clear()
        await quiet(platform, 1)
    assert serving.events.of(events.Dead) == []


async def test_absent_notify_does_not_affect_peers(journal: Journal) -> None:
    platform = FakePlatform(fail_send=[absent(404) for _ in range(5)])
    platform.write("one", caller=PEER)
    async with Serving(platform, journal):
        await quiet(platform, 1)


# The conversation


async def test_waiting_reply_delays_only_its_conversation(journal: Journal) -> None:
    platform = FakePlatform(fail_send=[transient(429, retry_after=200.0)])
    platform.write("slow", caller=PEER, context="a", age=1)
    platform.write("after", caller=PEER, context="a")
    async with Serving(platform, journal):
        await platform.until(lambda: len(platform.tried) == 1)
        for number in range(5):
            platform.write(f"{number}", caller=PEER, context=f"b{number}")
        await platform.until(lambda: len(platform.sent) == 5, 30)
        await platform.until(lambda: len(platform.sent) == 7)
    assert platform.answers()[5:] == ["echo: slow", "echo: after"]


async def test_silence_sends_nothing(journal: Journal) -> None:
    async def silent(request: Request, progress: Progress) -> Response:
        return Response.silent()

    platform = FakePlatform()
    platform.write("one")
    async with Serving(platform, journal, silent) as serving:
        await platform.until(lambda: serving.rows() == [("row-1", "done")])
    assert platform.tried == []


@pytest.mark.parametrize("depth", [300, 950, 5000])
async def test_reply_nested_too_deeply_becomes_a_notice(journal: Journal, depth: int) -> None:
    data: list[object] = []
    for _ in range(depth):
        data = [data]

    async def deep(request: Request, progress: Progress) -> Response:
        return Response(parts=(DataPart(data),)) if request.text == "one" else Response.from_text("fine")

    platform = FakePlatform()
    platform.write("one", caller=PEER)
    platform.write("two", caller=PEER)
    async with Serving(platform, journal, deep) as serving:
        await quiet(platform, 2)
    assert "could not be answered" in platform.answers()[0]
    assert platform.answers()[1] == "fine"
    assert serving.error is None
