"""What answers cost: added up in the journal, told in the heartbeat, and limited by the day."""

import asyncio
from decimal import Decimal

import pytest

from molecule_connect import events
from molecule_connect.delivery.journal.journal import Journal
from molecule_connect.errors import BackendError
from molecule_connect.models import Progress, Request, Response, Usage

from ..kit import EPOCH, WORKSPACE, FakePlatform, Serving

DAY = 24 * 3600


def test_what_a_cost_may_be_written_as_counts_and_what_is_no_amount_is_nothing() -> None:
    dear = Usage(input_tokens=None, output_tokens=7.0, cost_usd=Decimal("0.25"))
    assert (dear.input_tokens, dear.output_tokens, dear.cost_usd) == (0, 7, 0.25)
    assert isinstance(dear.cost_usd, float)
    assert [Usage(cost_usd=cost).cost_usd for cost in (None, float("nan"), float("inf"))] == [0, 0, 0]
    with pytest.raises(TypeError):
        Usage(cost_usd=[1.0])  # type: ignore[arg-type]


async def dear(request: Request, progress: Progress) -> Response:
    """Every answer costs a dollar."""
    return Response.from_text(request.text, usage=Usage(cost_usd=1.0))


async def test_when_the_day_is_used_up_messages_wait_for_the_next_one_and_it_is_said(journal: Journal) -> None:
    midnight = DAY - EPOCH % DAY
    await asyncio.sleep(midnight - 600)
    platform = FakePlatform()
    async with Serving(platform, journal, dear, max_cost_per_day=2.0, concurrency=1) as serving:
        for number in range(3):
            platform.write(f"{number}", caller="peer")
        await platform.until(lambda: len(platform.sent) == 2)
        await asyncio.sleep(60)
        assert platform.answers() == ["0", "1"]
        [trouble] = serving.events.of(events.Trouble)
        assert (trouble.part, trouble.reason) == ("budget", "2.00 of 2.00 US dollars a day are spent")
        await platform.until(lambda: len(platform.sent) == 3, seconds=DAY)
        assert asyncio.get_running_loop().time() >= midnight
        assert [event.part for event in serving.events.of(events.Recovered)] == ["budget"]
    assert serving.rows("state, attempt") == [("done", 1)] * 3


async def test_with_a_higher_limit_the_next_start_takes_up_what_waits_for_the_next_day(journal: Journal) -> None:
    platform = FakePlatform()
    for number in range(3):
        platform.write(f"{number}", caller="peer", age=3 - number)
    for limit, answered in ((1.0, 1), (2.0, 2), (2.0, 2), (None, 3)):
        async with Serving(platform, journal, dear, max_cost_per_day=limit) as serving:
            await asyncio.sleep(60)
        assert platform.answers() == ["0", "1", "2"][:answered]
    assert serving.rows("state, attempt") == [("done", 1)] * 3


async def test_a_try_that_failed_and_an_answer_that_is_silence_cost_what_they_cost(journal: Journal) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        if request.text == "fail":
            raise BackendError("no", retryable=False, usage=Usage(cost_usd=0.25))
        return Response.silent(usage=Usage(cost_usd=0.5))

    async with Serving(platform, journal, handler) as serving:
        platform.write("fail", caller="peer")
        platform.write("hush", caller="other")
        await platform.until(lambda: {state for _, state in serving.rows()} == {"done", "dead"})
        assert journal.of(WORKSPACE).spend() == 0.75
        await asyncio.sleep(31)
        assert platform.beats[-1].monthly_spend_cents == 75


async def test_what_other_workspaces_and_other_days_spent_does_not_count(journal: Journal) -> None:
    journal.of("other").spent(Usage(cost_usd=5.0))
    ours = journal.of(WORKSPACE)
    ours.spent(Usage(cost_usd=1.5))
    ours.spent(Usage(cost_usd=float("nan")))
    ours.spent(None)
    await journal.data_version()
    assert (ours.spend(), ours.spend(month=True)) == (1.5, 1.5)
    await asyncio.sleep(DAY)
    assert (ours.spend(), ours.spend(month=True)) == (0.0, 1.5)


async def test_a_backend_that_asks_for_time_is_told_in_the_heartbeat_while_it_waits(journal: Journal) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        raise BackendError("usage limit reached", retry_after=7200)

    async with Serving(platform, journal, handler) as serving:
        platform.write("hi", caller="peer")
        await asyncio.sleep(3600)
        assert platform.beats[-1].sample_error == "1 messages wait for the backend: usage limit reached"
        assert platform.beats[-1].wedged == ""
    assert serving.rows("state, attempt") == [("received", 0)]
