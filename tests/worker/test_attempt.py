"""When the backend fails: attempts, waits, notices to the caller, and reports to the operator."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
from tests.worker.kit import EPOCH, FakePlatform, Serving

from molecule_connect import events
from molecule_connect.backoff import Backoff
from molecule_connect.errors import BackendError, PermanentPlatformError
from molecule_connect.journal.journal import Journal
from molecule_connect.models import DataPart, FilePart, Progress, Request, Response, TextPart

# Nothing but the message itself is awaited for hours: these need few beats and reads.
CALM = {"heartbeat_interval": 600.0, "safety_interval": 600.0, "poll_interval": 600.0}


@attrs.define
class Backend:
    """Does what it is told, call by call; the last thing it was told is repeated.

    Attributes:
        calls: When it was called, with which message and which attempt.
    """

    does: list[Callable[[], Awaitable[Response]] | Exception | Response]
    calls: list[tuple[float, str, int]] = attrs.field(factory=list)

    async def __call__(self, request: Request, progress: Progress) -> Response:
        self.calls.append((asyncio.get_running_loop().time(), request.text, request.attempt))
        step = self.does.pop(0) if len(self.does) > 1 else self.does[0]
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, Response) else await step()

    def pauses(self) -> list[float]:
        times = [when for when, *_ in self.calls]
        return [after - before for before, after in itertools.pairwise(times)]


OUT = BackendError("the model is out")
FINE = Response.from_text("fine")


async def test_second_attempt_answers_a_failed_message(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend([OUT, FINE])
    platform.write("hi")
    async with Serving(platform, journal, backend) as serving:
        await platform.until(lambda: len(platform.sent) == 1)
    assert platform.answers() == ["fine"]
    assert [attempt for *_, attempt in backend.calls] == [1, 2]
    (retrying,) = serving.events.of(events.Retrying)
    assert (retrying.what, retrying.reason) == ("answering", "the model is out")


async def test_failed_backend_names_the_command_to_try(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend([BackendError("bad option", retryable=False)])
    platform.write("hi")
    settings: dict[str, Any] = {
        "options": {"cmd": "secret-1", "two words": "secret-2"},
        "middleware": ("audit",),
        "middleware_options": {"audit.file": "secret-3"},
    }
    async with Serving(platform, journal, backend, **settings) as serving:
        await platform.until(lambda: bool(serving.events.of(events.Dead)))
    (dead,) = serving.events.of(events.Dead)
    assert dead.hint == (
        "'molecule try fake --backend-opt cmd=... --backend-opt 'two words'=... --use audit"
        " --use-opt audit.file=... hello'"
        ", with the same values for ..., runs the backend on its own"
    )


async def test_report_of_a_failing_backend_names_the_command(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend([OUT])
    for peer in ("peer-1", "peer-2", "peer-3"):
        platform.write("hi", caller=peer)
    async with Serving(platform, journal, backend, options={"cmd": "secret"}) as serving:
        await platform.until(lambda: any(one.part == "backend" for one in serving.events.of(events.Trouble)))
    hint = next(one.hint for one in serving.events.of(events.Trouble) if one.part == "backend")
    assert "; 'molecule try fake --backend-opt cmd=... hello', with the same values" in hint


@pytest.mark.parametrize(("random", "waits"), [(0.0, (2.5, 15, 60)), (1.0, (5, 30, 120))])
async def test_four_attempts_with_jittered_delays(journal: Journal, random: float, waits: tuple[float, ...]) -> None:
    platform, backend = FakePlatform(), Backend([OUT])
    platform.write("hi", row_id="act-12345678")
    async with Serving(platform, journal, backend) as serving:
        serving.connection._dispatcher._attempts._jitter = Backoff(random=lambda: random)
        await asyncio.sleep(300)
    assert [attempt for *_, attempt in backend.calls] == [1, 2, 3, 4]
    assert backend.pauses() == pytest.approx(waits, abs=0.01)
    assert platform.answers() == ["This message could not be answered (reference act-1234)."]
    assert serving.rows("state, reason") == [("dead", "no answer after 4 attempts: the model is out")]
    assert serving.events.of(events.Dead)[0].reason == "no answer after 4 attempts: the model is out"


async def test_a_notice_is_no_delivery(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend([OUT])
    platform.write("hi")
    async with Serving(platform, journal, backend) as serving:
        await platform.until(lambda: bool(serving.events.of(events.Notified)), 300)
    assert [event.error for event in serving.events.of(events.Notified)] == [""]
    assert len(serving.events.of(events.Dead)) == 1
    assert serving.events.of(events.Delivered) == []


async def test_refused_notice_emits_one_dead_event(journal: Journal) -> None:
    refused = PermanentPlatformError("send: 403 no", operation="send", status=403, body="")
    platform, backend = FakePlatform(fail_send=[refused]), Backend([OUT])
    platform.write("hi")
    async with Serving(platform, journal, backend) as serving:
        await platform.until(lambda: bool(serving.events.of(events.Notified)), 300)
    assert ["403" in event.error for event in serving.events.of(events.Notified)] == [True]
    assert len(serving.events.of(events.Dead)) == 1
    ((state, reason),) = serving.rows("state, reason")
    assert state == "dead"
    assert reason.startswith(
        "no answer after 4 attempts: the model is out (the caller could not be notified: send: 403 no"
    )


@pytest.mark.parametrize("error", [ValueError("odd"), TimeoutError(), KeyError("x"), RuntimeError("\udcff")])
async def test_any_exception_counts_as_retryable(journal: Journal, error: Exception) -> None:
    platform, backend = FakePlatform(), Backend([error, error, FINE])
    platform.write("hi")
    async with Serving(platform, journal, backend):
        await platform.until(lambda: len(platform.sent) == 1)
    assert platform.answers() == ["fine"]


async def test_long_errors_are_cut(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend([BackendError("x" * (1 << 20), retryable=False)])
    platform.write("hi")
    async with Serving(platform, journal, backend) as serving:
        await platform.until(lambda: bool(serving.events.of(events.Dead)))
        await asyncio.sleep(31)
        assert len(serving.events.of(events.Dead)[0].reason) == 2000
        assert len(platform.beats[-1].sample_error) <= 2000
    assert len(serving.rows("reason")[0][0]) == 2000


async def test_synchronous_error_fails_the_attempt(journal: Journal) -> None:
    platform, calls = FakePlatform(), []

    def handler(request: Request, progress: Progress) -> Awaitable[Response]:
        calls.append(request.attempt)
        raise TypeError("no coroutine")

    platform.write("hi")
    async with Serving(platform, journal, handler) as serving:
        await asyncio.sleep(300)
    assert calls == [1, 2, 3, 4]
    assert serving.error is None


async def test_self_cancelled_handler_fails_the_attempt(journal: Journal) -> None:
    async def gives_up() -> Response:
        raise asyncio.CancelledError

    platform, backend = FakePlatform(), Backend([gives_up, FINE])
    platform.write("hi")
    async with Serving(platform, journal, backend):
        await platform.until(lambda: len(platform.sent) == 1)
    assert platform.answers() == ["fine"]


async def test_permanent_error_ends_the_attempts(journal: Journal) -> None:
    platform = FakePlatform()
    backend = Backend([BackendError("no such file", retryable=False, retry_after=5.0)])
    platform.write("hi")
    async with Serving(platform, journal, backend) as serving:
        await asyncio.sleep(300)
    assert len(backend.calls) == 1
    assert serving.rows("state, reason") == [("dead", "no such file")]
    assert len(platform.sent) == 1


async def test_retry_after_costs_no_attempts(journal: Journal) -> None:
    platform = FakePlatform()
    parked: list[Any] = [BackendError("usage limit", retry_after=100.0) for _ in range(20)]
    backend = Backend([*parked, FINE])
    platform.write("first")
    platform.write("second")
    async with Serving(platform, journal, backend) as serving:
        await asyncio.sleep(150)
        assert serving.rows("state, attempt, error")[0] == ("received", 0, "usage limit")
        await platform.until(lambda: len(platform.sent) == 2)
    assert {attempt for *_, attempt in backend.calls} == {1}
    assert [text for _, text, _ in backend.calls] == ["first"] * 21 + ["second"]
    assert all(pause == pytest.approx(100, abs=0.5) for pause in backend.pauses()[:20])


@pytest.mark.parametrize("seconds", [0.0, -5.0, float("nan")])
async def test_retry_after_zero_does_not_spin(journal: Journal, seconds: float) -> None:
    platform, backend = FakePlatform(), Backend([BackendError("busy", retry_after=seconds)])
    platform.write("hi")
    async with Serving(platform, journal, backend):
        await asyncio.sleep(20)
    assert 10 <= len(backend.calls) <= 21


async def test_retry_after_is_at_most_a_month(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend([BackendError("no more", retry_after=float("inf"))])
    platform.write("hi")
    async with Serving(platform, journal, backend) as serving:
        await asyncio.sleep(20)
        parked_until = serving.rows("not_before")[0][0]
    assert parked_until == pytest.approx(EPOCH + 31 * 24 * 3600, abs=60)


async def test_unprintable_error_fails_only_its_message(journal: Journal) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    platform, backend = FakePlatform(), Backend([MuteError(), FINE])
    platform.write("hi")
    async with Serving(platform, journal, backend) as serving:
        await platform.until(lambda: len(platform.sent) == 1)
    assert serving.error is None
    assert platform.answers() == ["fine"]


@pytest.mark.parametrize("usage", [{"cost_usd": 1.0}, "1 dollar"])
async def test_odd_usage_fails_only_its_message(journal: Journal, usage: Any) -> None:
    platform, backend = FakePlatform(), Backend([BackendError("busy", usage=usage), FINE])
    platform.write("hi")
    async with Serving(platform, journal, backend) as serving:
        await platform.until(lambda: len(platform.sent) == 1)
    assert serving.error is None
    assert platform.answers() == ["fine"]


@pytest.mark.parametrize("caller", ["peer-1", None])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_reply_with_nan_fails_only_its_message(journal: Journal, number: float, caller: str | None) -> None:
    platform, backend = FakePlatform(), Backend([Response(parts=(DataPart({"rate": number}),))])
    platform.write("hi", caller=caller)
    async with Serving(platform, journal, backend) as serving:
        await platform.until(lambda: len(platform.sent) == 1)
        await asyncio.sleep(10)
    assert serving.error is None
    assert serving.rows("state") == [("dead",)]
    assert "cannot be written as JSON" in serving.rows("reason")[0][0]


@pytest.mark.parametrize(
    "part",
    [DataPart({"when": object()}), DataPart({1, 2}), TextPart(b"bytes"), FilePart(uri=object())],  # type: ignore[arg-type]
)
async def test_unstorable_reply_fails_only_its_message(journal: Journal, part: Any) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        return Response(parts=(TextPart("here:"), part)) if request.text == "odd" else FINE

    platform.write("odd", caller="peer-1")
    platform.write("plain", caller="peer-2")
    async with Serving(platform, journal, handler) as serving:
        await platform.until(lambda: len(platform.sent) == 2)
        await asyncio.sleep(60)
    assert serving.error is None
    assert sorted(out.parts[0].text for out in platform.sent if isinstance(out.parts[0], TextPart)) == [
        "This message could not be answered (reference row-1).",
        "fine",
    ]
    assert serving.rows("state") == [("dead",), ("done",)]


async def test_a_circular_answer_fails_its_message_alone(journal: Journal) -> None:
    circle: list[Any] = []
    circle.append(circle)
    platform, backend = FakePlatform(), Backend([Response(parts=(DataPart(circle),))])
    platform.write("odd", caller="peer-1")
    async with Serving(platform, journal, backend) as serving:
        await asyncio.sleep(60)
    assert serving.error is None
    assert serving.rows("state") == [("dead",)]


async def test_failing_message_delays_only_its_conversation(journal: Journal) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        if request.text == "poison":
            raise OUT
        return Response.from_text(request.text)

    platform.write("poison", caller="peer-1", context="a", age=2)
    platform.write("behind", caller="peer-1", context="a", age=1)
    platform.write("beside", caller="peer-1", context="b")
    async with Serving(platform, journal, handler) as serving:
        await asyncio.sleep(1)
        assert platform.answers() == ["beside"]
        await asyncio.sleep(300)
    assert platform.answers()[1:] == ["This message could not be answered (reference row-1).", "behind"]
    assert serving.rows() == [("row-1", "dead"), ("row-2", "done"), ("row-3", "done")]


# Notices


async def test_conversation_gets_one_notice_in_ten_minutes(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend([BackendError("no", retryable=False)])
    async with Serving(platform, journal, backend) as serving:
        for minutes in (0, 4, 9, 11):
            await asyncio.sleep(minutes * 60 - (asyncio.get_running_loop().time() if minutes else 0))
            platform.write(str(minutes), caller="peer-1")
            await asyncio.sleep(10)
        platform.write("another conversation", caller="peer-1", context="other")
        await asyncio.sleep(10)
    assert [out.in_reply_to for out in platform.sent] == ["row-1", "row-4", "row-5"]
    assert {state for _, state in serving.rows()} == {"dead"}


async def test_refused_notice_keeps_the_failure_reason(journal: Journal) -> None:
    refused = PermanentPlatformError("a2a: 403", operation="a2a", status=403, body="")
    platform, backend = FakePlatform(fail_send=[refused]), Backend([BackendError("no such file", retryable=False)])
    platform.write("hi", caller="peer-1")
    async with Serving(platform, journal, backend) as serving:
        await asyncio.sleep(60)
    assert serving.rows("state, reason") == [("dead", "no such file (the caller could not be notified: a2a: 403)")]


async def test_a_replayed_message_gets_four_new_attempts(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend([OUT, OUT, OUT, OUT, OUT, FINE])
    platform.write("hi")
    async with Serving(platform, journal, backend) as serving:
        await asyncio.sleep(300)
        await journal.of("ws-1").replay("row-1")
        serving.connection.journal_changed()
        await asyncio.sleep(60)
    assert [attempt for *_, attempt in backend.calls] == [1, 2, 3, 4, 1, 2]
    assert platform.answers()[-1] == "fine"
    assert serving.rows() == [("row-1", "done")]


async def test_failed_replay_sends_no_second_notice(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend([BackendError("no", retryable=False)])
    platform.write("hi")
    async with Serving(platform, journal, backend) as serving:
        for minutes in (2, 4, 12, 14):
            await asyncio.sleep(minutes * 60 - asyncio.get_running_loop().time())
            await journal.of("ws-1").replay("row-1")
            serving.connection.journal_changed()
        await asyncio.sleep(60)
    assert len(backend.calls) == 5
    assert platform.answers() == ["This message could not be answered (reference row-1)."] * 2
    assert serving.rows("state, reason") == [("dead", "no")]


async def test_silence_ends_a_message_and_sends_nothing(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend([Response.silent(), FINE])
    platform.write("one")
    platform.write("two")
    async with Serving(platform, journal, backend) as serving:
        await asyncio.sleep(60)
    assert platform.answers() == ["fine"]
    assert serving.rows() == [("row-1", "done"), ("row-2", "done")]
    assert [event.silent for event in serving.events.of(events.Answered)] == [True, False]


# Progress and the deadline


async def test_progress_reaches_events_heartbeat_and_journal(journal: Journal) -> None:
    platform, release = FakePlatform(), asyncio.Event()

    async def handler(request: Request, progress: Progress) -> Response:
        progress("reading the log")
        await asyncio.sleep(2)
        await progress(Response(parts=(TextPart("half way"),), final=False))
        await release.wait()
        return FINE

    platform.write("hi")
    async with Serving(platform, journal, handler) as serving:
        await asyncio.sleep(31)
        assert [event.text for event in serving.events.of(events.Progressed)] == ["reading the log", "half way"]
        assert platform.beats[-1].current_task == "half way"
        assert serving.rows("progress") == [("half way",)]
        release.set()
    assert serving.rows("state, progress") == [("done", None)]


async def test_progress_is_stored_once_a_second(journal: Journal) -> None:
    platform = FakePlatform()
    seen: list[str] = []

    async def handler(request: Request, progress: Progress) -> Response:
        for number in range(21):
            progress(f"step {number}")
            await asyncio.sleep(0.1)
            seen.extend(row[0] for row in serving.rows("progress"))
        return FINE

    platform.write("hi")
    async with Serving(platform, journal, handler) as serving:
        await platform.until(lambda: len(platform.sent) == 1)
    assert len(set(seen)) <= 3
    assert len(serving.events.of(events.Progressed)) == 21


async def test_message_text_is_the_first_current_task(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend([lambda: asyncio.sleep(90, FINE)])
    platform.write("count the stars")
    async with Serving(platform, journal, backend):
        await asyncio.sleep(31)
        assert (platform.beats[-1].current_task, platform.beats[-1].active_tasks) == ("count the stars", 1)
        await asyncio.sleep(90)
        assert (platform.beats[-1].current_task, platform.beats[-1].active_tasks) == ("", 0)


async def test_hour_without_progress_fails_the_attempt(journal: Journal) -> None:
    platform, backend = FakePlatform(), Backend([asyncio.Event().wait, FINE])  # type: ignore[list-item]
    platform.write("hi")
    async with Serving(platform, journal, backend, **CALM) as serving:
        await asyncio.sleep(3590)
        assert serving.rows("state, attempt") == [("running", 1)]
        await platform.until(lambda: len(platform.sent) == 1, seconds=60)
    assert serving.events.of(events.Retrying)[0].reason == "no progress for 3600 s"
    assert platform.answers() == ["fine"]


@pytest.mark.parametrize("told", ["still at it", "", Response(final=False)])
async def test_progress_puts_the_deadline_off(journal: Journal, told: Any) -> None:
    platform, calls = FakePlatform(), []

    async def handler(request: Request, progress: Progress) -> Response:
        calls.append(request.attempt)
        for _ in range(5):
            await asyncio.sleep(3500)
            progress(told)
        return FINE

    platform.write("hi")
    async with Serving(platform, journal, handler, **CALM):
        await asyncio.sleep(5 * 3501)
    assert calls == [1]
    assert platform.answers() == ["fine"]


async def test_stuck_call_keeps_its_slot(
    journal: Journal,
) -> None:
    platform, release = FakePlatform(), asyncio.Event()

    async def handler(request: Request, progress: Progress) -> Response:
        # As the host waits for a plain function: not to be interrupted.
        while request.text == "stuck" and not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return Response.from_text(request.text)

    platform.write("stuck", caller="peer-1", age=1)
    platform.write("behind", caller="peer-1")
    async with Serving(platform, journal, handler, **CALM) as serving:
        platform.write("beside", caller="peer-2")
        await asyncio.sleep(3 * 3600)
        assert platform.answers() == ["beside"]
        assert platform.beats[-1].sample_error == "1 calls of the backend have not returned"
        assert platform.beats[-1].active_tasks == 1
        assert serving.rows()[:2] == [("row-1", "running"), ("row-2", "received")]
        release.set()
        await platform.until(lambda: len(platform.sent) == 3)
        await asyncio.sleep(601)
        assert platform.beats[-1].sample_error == ""
    # What it brought in the end is its answer: it is not asked twice.
    assert platform.answers() == ["beside", "stuck", "behind"]
