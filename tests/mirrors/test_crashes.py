"""A message that kills every machine is given up: each machine remembers the runs that the mirror doesn't know."""

import os
from pathlib import Path

import pytest
from tests.mirrors.test_outbox import SHARED, database, opened
from tests.worker.kit import inbound

from molecule_connect.journal.models import Conversation
from molecule_connect.journal.outbox import Start
from molecule_connect.models import FeedPosition

SENDER = Conversation(None, "context")


@pytest.mark.parametrize("is_known", [False, True], ids=["unknown to the mirror", "known to the mirror"])
async def test_cut_short_run_counts_after_another_machine(tmp_path: Path, is_known: bool) -> None:
    shared_with = database()
    async with opened(tmp_path / "one", shared_with) as one:
        await one.begin(SHARED)
        messages = one.journal.of(SHARED)
        if not is_known:
            one.mirror.is_cut = True
        await messages.add([inbound("row", context_id=SENDER.context_id)], now=0)
        if is_known:
            await one.shipper.flush(SHARED)
            one.mirror.is_cut = True
        message = messages.next(SENDER)
        assert message is not None
        # Here the process is killed.
        await messages.start(message)
    shared_with.sessions.clear()
    async with opened(tmp_path / "two", shared_with) as two:
        await two.begin(SHARED)
        await two.journal.of(SHARED).set_position(two.journal.of(SHARED).position())
        await two.give_back(SHARED)
    async with opened(tmp_path / "one", shared_with) as one:
        assert await one.begin(SHARED) is Start.LOADED
        messages = one.journal.of(SHARED)
        await messages.recover()
        message = messages.next(SENDER)
        assert message is not None
        assert message.crash_count == 1
        await one.shipper.flush(SHARED)
        (row,) = [row for row in shared_with.rows[SHARED].values() if row.table == "message"]
        assert row.body is not None


async def test_leftovers_of_a_killed_load_are_removed(tmp_path: Path) -> None:
    shared_with = database()
    async with opened(tmp_path / "one", shared_with) as one:
        await one.begin(SHARED)
        await one.journal.of(SHARED).set_position(FeedPosition(watermark="row"))
        await one.give_back(SHARED)
    async with opened(tmp_path / "two", shared_with) as two:
        old, new = tmp_path / "two" / ".load.old", tmp_path / "two" / ".load.new"
        for folder in (old, new):
            folder.mkdir()
        os.utime(old, (0, 0))
        assert await two.begin(SHARED) is Start.LOADED
        assert not old.exists()
        assert new.exists()
