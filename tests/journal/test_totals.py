"""The sums that the live view shows."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.worker.kit import EPOCH, WORKSPACE, FakePlatform, Serving

from molecule_connect import events
from molecule_connect.errors import BackendError
from molecule_connect.journal import inspect
from molecule_connect.journal.inspect import Inspection
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import State
from molecule_connect.journal.totals import Totals, midnight
from molecule_connect.models import Progress, Request, Response, TextPart, Usage


async def paid(request: Request, progress: Progress) -> Response:
    usage = Usage(input_tokens=1, output_tokens=1, cost_usd=0.25)
    match request.text:
        case "fail":
            raise BackendError("cannot", retryable=False, usage=usage)
        case "free":
            return Response.from_text("done")
        case "silent":
            return Response.silent()
    return Response(parts=(TextPart("done"),), usage=usage)


def totals(folder: Path, since: float = 0.0) -> Totals:
    with Inspection.open(folder) as journal:
        return journal.totals(WORKSPACE, since)


async def test_totals_count_messages_and_costs(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    for number, text in enumerate(("fail", "free", "paid", "silent", "fail")):
        platform.write(text, context=f"c{number}")
    async with Serving(platform, journal, paid) as serving:
        await platform.until(lambda: sum(state in ("done", "dead") for _, state in serving.rows()) == 5)
        platform.write("waits", row_id="later", context="other", late=1.0)

    assert totals(tmp_path) == Totals(unfinished=0, handled=3, failed=2, cost_usd=0.75)
    assert totals(tmp_path, EPOCH + 24 * 3600) == Totals()
    assert [event.cost_usd for event in serving.events.of(events.Spent)] == [0.25] * 3


async def test_discarded_dead_letters_no_longer_count(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    platform.write("fail")
    async with Serving(platform, journal, paid) as serving:
        await platform.until(lambda: serving.rows("state") == [("dead",)])
    with Inspection.open(tmp_path) as looked:
        keys = [one.key for one in looked.summaries(states=[State.DEAD])]
    inspect.drop(tmp_path, keys, time.time())

    assert totals(tmp_path) == Totals(cost_usd=0.25)


async def test_waiting_messages_count_as_unfinished(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    own = journal.of(WORKSPACE)
    platform.write()
    page = await platform.fetch(limit=5, known=own.is_known)
    await own.add(page.items, now=round(EPOCH * 1e6))

    assert totals(tmp_path) == Totals(unfinished=1)


@pytest.fixture
def zone() -> Iterator[None]:
    os.environ["TZ"] = "Asia/Kathmandu"
    time.tzset()
    yield
    del os.environ["TZ"]
    time.tzset()


def test_days_begin_at_local_midnight(zone: None) -> None:
    # 2027-01-15 00:10 in Kathmandu (UTC+5:45) is still the 14th in UTC.
    moment = 1_799_950_200.0
    assert time.strftime("%d %H:%M", time.localtime(midnight(moment))).endswith("00:00")
    assert 0 <= moment - midnight(moment) < 24 * 3600
    assert midnight(moment) % 900 == 0
