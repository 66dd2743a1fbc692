"""The durations and categories in events, from which metrics and traces are made."""

import asyncio

import pytest
from tests.worker.kit import FakePlatform, Serving

from molecule_connect import events
from molecule_connect.errors import BackendError, Outcome, PermanentPlatformError, TransientPlatformError
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Kind, Progress, Request, Response


async def slow(request: Request, progress: Progress) -> Response:
    """Works for three seconds, then fails or replies."""
    await asyncio.sleep(3)
    if request.text.startswith("fail"):
        raise BackendError("no", retryable=request.text == "fail again")
    return Response.from_text("done")


async def test_events_have_the_seconds_of_each_step(journal: Journal) -> None:
    platform = FakePlatform(send_delay=0.5, has_stream=True)
    async with Serving(platform, journal, slow) as serving:
        platform.write("first", context="c", age=7)
        platform.write("second", context="c")
        await platform.until(lambda: len(serving.events.of(events.Delivered)) == 2)
    started, delivered = serving.events.of(events.Started), serving.events.of(events.Delivered)
    assert [event.queue_seconds for event in started] == pytest.approx([0, 3.5], abs=0.1)
    assert [event.seconds for event in serving.events.of(events.Answered)] == pytest.approx([3, 3], abs=0.01)
    assert [event.send_seconds for event in delivered] == pytest.approx([0.5, 0.5], abs=0.01)
    assert [event.reply_seconds for event in delivered] == pytest.approx([10.5, 7], abs=0.2)


async def test_failed_attempts_have_their_seconds(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal, slow) as serving:
        platform.write("fail again")
        platform.write("fail for good", context="other")
        await platform.until(lambda: len(serving.events.of(events.Started)) == 3)
        retrying, dead = serving.events.of(events.Retrying)[0], serving.events.of(events.Dead)[0]
        assert (retrying.handler_seconds, dead.handler_seconds) == pytest.approx((3, 3), abs=0.01)
        # From when the retry was due.
        assert serving.events.of(events.Started)[-1].queue_seconds == pytest.approx(0, abs=0.1)


async def test_dead_letters_have_a_category(journal: Journal) -> None:
    refused = PermanentPlatformError("send: 403 no", operation="send", status=403, body="")
    platform = FakePlatform(fail_send=[refused])
    platform.write("hi", row_id="refused")
    platform.write("fail for good", row_id="backend", context="other")
    platform.write("", row_id="unreadable", kind=Kind.UNREADABLE)
    async with Serving(platform, journal, slow) as serving:
        await platform.until(lambda: len(serving.events.of(events.Dead)) == 3)
    found = {event.row_id: event.category for event in serving.events.of(events.Dead)}
    assert found == {"refused": "reply_refused", "backend": "refused_by_backend", "unreadable": "unreadable"}
    assert set(found.values()) <= set(events.DEAD_CATEGORIES)


async def test_category_tells_failing_from_unconfirmed(journal: Journal) -> None:
    cut = TransientPlatformError("send: cut", operation="send", outcome=Outcome.UNKNOWN)
    platform = FakePlatform(cut_after=[cut] * 9, newer=False)
    platform.write("hi", row_id="unconfirmed", caller="peer-1")
    platform.write("fail again", row_id="failing", caller="peer-2")
    async with Serving(platform, journal, slow) as serving:
        await platform.until(lambda: len(serving.events.of(events.Dead)) == 2)
    found = {event.row_id: event.category for event in serving.events.of(events.Dead)}
    assert found == {"unconfirmed": "reply_unconfirmed", "failing": "attempts_used_up"}
