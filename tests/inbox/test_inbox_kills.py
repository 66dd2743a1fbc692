"""kill -9 before and after every commit and send of an inbox: each message is answered exactly once."""

import asyncio
import contextlib
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from tests.inbox.test_mode import LocalSession
from tests.worker.kit import EPOCH, WORKSPACE, Disk, open_journal
from tests.worker.test_kills import EXPECTED, Fuse, Mortal, dies, talk

from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.errors import ConfigError
from molecule_connect.flag import Flag
from molecule_connect.inbox.inbox import ChangeSignal, Inbox
from molecule_connect.models import Response
from molecule_connect.worker.worker import Worker, WorkerOptions


async def read(inbox: Inbox, fuse: Fuse) -> None:
    """Reply to each message after a short delay. The claim of a dead reader expires after 2 s."""
    while True:
        message = await inbox.wait(60, hold=2)
        await fuse.stay()
        if message is not None:
            await asyncio.sleep(0.1)
            await fuse.stay()
            with contextlib.suppress(ConfigError):
                await inbox.reply(message.activity_id, Response.from_text(f"echo: {message.text}"), patience=0)


async def live(folder: Path, platform: Mortal) -> None:
    """Run a worker and two readers until every message is finished."""
    loop, fuse = asyncio.get_running_loop(), platform.fuse
    disk = Disk(before=fuse.point, after=fuse.point)
    async with open_journal(folder, disk) as journal:
        stop = Flag()
        connection = Worker(
            WorkspaceSettings(workspace_id=WORKSPACE, backend="inbox"),
            platform=platform,
            handler=None,
            journal=journal,
            options=WorkerOptions(wall=lambda: EPOCH + loop.time()),
        )
        inboxes = [Inbox(journal, {WORKSPACE: LocalSession(connection=connection)}, ChangeSignal()) for _ in range(2)]
        serving = asyncio.ensure_future(connection.run(stop))
        reading = [asyncio.ensure_future(read(inbox, fuse)) for inbox in inboxes]
        await asyncio.sleep(1)
        if not any(row.item.row_id == "later" for row in platform.rows):
            platform.write("later", row_id="later")
        await asyncio.sleep(12)
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        stop.set()
        await serving


async def lives(folder: Path, *, newer: bool, kill_at: int) -> tuple[int, Mortal]:
    """Run, die at the given point, and run again. Returns the number of points."""
    platform, fuse = Mortal(newer=newer, send_delay=0.3), Fuse(kill_at)
    platform.fuse, platform.cut = fuse, {"echo: in doubt", "echo: cut"}
    talk(platform)
    if await dies(fuse, live(folder, platform)):
        platform.fuse = Fuse()
        await live(folder, platform)
    return fuse.passed, platform


@pytest.mark.timeout(300)  # a few hundred runs, each with its own journal
@pytest.mark.parametrize("newer", [True, False], ids=["newer", "older"])
async def test_inbox_killed_at_any_moment(tmp_path: Path, newer: bool) -> None:
    def folder() -> Path:
        return Path(tempfile.mkdtemp(dir=tmp_path))

    points, _ = await lives(folder(), newer=newer, kill_at=0)
    assert points > 60
    # Neighboring points differ little, so the generations share the work.
    for point in range(1 + newer, points + 1, 2):
        _, platform = await lives(folder(), newer=newer, kill_at=point)
        answered = {text.removeprefix("echo: ") for text in platform.answers()}
        assert answered == EXPECTED, f"killed at point {point}"
        to_people = Counter(sent.message_id for sent in platform.sent if sent.caller_id is None)
        assert max(to_people.values()) == 1, f"a person got a message twice, killed at point {point}"
        assert len({sent.message_id for sent in platform.sent}) == len(EXPECTED), f"killed at point {point}"
        assert not newer or len(platform.sent) == len(EXPECTED), f"killed at point {point}"
