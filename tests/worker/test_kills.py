"""No message is lost and no reply is sent twice: kill -9 before and after every commit and every send."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path

import attrs
import pytest
from tests.worker.kit import EPOCH, WORKSPACE, Disk, FakePlatform, open_journal, other_process

from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.errors import Outcome, TransientPlatformError
from molecule_connect.flag import Flag
from molecule_connect.journal.journal import FILE_NAME
from molecule_connect.models import Outgoing, Page, Presence, Progress, Request, Response, TextPart
from molecule_connect.worker.worker import Worker, WorkerOptions


class Killed(BaseException):
    """The process is dead: nothing that it does after this reaches anybody."""


@attrs.define
class Fuse:
    """Kills at the *at*-th point that is passed; 0: never."""

    at: int = 0
    passed: int = 0
    blown: asyncio.Event = attrs.field(factory=asyncio.Event)

    def point(self) -> None:
        """A moment at which the process may die."""
        self.alive()
        self.passed += 1
        if self.passed == self.at:
            self.blown.set()
            raise Killed

    def alive(self) -> None:
        """The dead write nothing."""
        if self.blown.is_set():
            raise Killed

    async def stay(self) -> None:
        """The dead say nothing."""
        if self.blown.is_set():
            await asyncio.Event().wait()


class Mortal(FakePlatform):
    """A platform that a dying process talks to. The answers to ``cut`` arrive, and nobody is told."""

    fuse: Fuse
    cut: set[str]

    async def send(self, outgoing: Outgoing) -> None:
        await self.fuse.stay()
        self.fuse.point()
        await super().send(outgoing)
        await self.fuse.stay()
        self.fuse.point()
        text = "".join(part.text for part in outgoing.parts if isinstance(part, TextPart))
        if text in self.cut:
            self.cut.remove(text)
            raise TransientPlatformError("send: cut", operation="send", outcome=Outcome.UNKNOWN)

    async def fetch(self, **query: object) -> Page:
        await self.fuse.stay()
        return await super().fetch(**query)  # type: ignore[arg-type]

    async def heartbeat(self, presence: Presence) -> None:
        await self.fuse.stay()
        await super().heartbeat(presence)


@attrs.define
class Backend:
    """Takes its time, and looks into the journal for a stored answer that makes its work needless."""

    file: Path
    fuse: Fuse
    runs: Counter[str] = attrs.field(factory=Counter)
    needless: list[str] = attrs.field(factory=list)

    async def __call__(self, request: Request, progress: Progress) -> Response:
        await self.fuse.stay()
        self.runs[request.text] += 1
        with other_process(self.file) as db:
            answered = db.execute(
                "SELECT count(*) FROM message WHERE message_id=? AND answer IS NOT NULL", (request.message_id,)
            ).fetchone()[0]
        if answered:
            self.needless.append(request.text)
        await asyncio.sleep(0.2)
        await self.fuse.stay()
        return Response.from_text(f"echo: {request.text}")


EXPECTED = {
    "a person",
    "the same conversation",
    "in doubt",
    "a peer",
    "the same peer",
    "another context",
    "cut",
    "later",
}


def talk(platform: FakePlatform) -> None:
    """What is written: by people and peers, in several conversations."""
    platform.write("a person", age=3)
    platform.write("the same conversation", age=2)
    platform.write("in doubt", context="another")
    platform.write("a peer", caller="peer-1", age=4)
    platform.write("the same peer", caller="peer-1")
    platform.write("another context", caller="peer-1", context="c")
    platform.write("cut", caller="peer-2")


async def live(folder: Path, platform: FakePlatform, backend: Backend) -> None:
    """One life of the connector, until all that it knows is over."""
    loop = asyncio.get_running_loop()
    disk = Disk(before=backend.fuse.point, after=backend.fuse.point)
    async with open_journal(folder, disk) as journal:
        stop = Flag()
        connection = Worker(
            WorkspaceSettings(workspace_id=WORKSPACE, backend="fake"),
            platform=platform,
            handler=backend,
            journal=journal,
            options=WorkerOptions(wall=lambda: EPOCH + loop.time()),
        )
        serving = asyncio.ensure_future(connection.run(stop))
        await asyncio.sleep(1)
        if not any(row.item.row_id == "later" for row in platform.rows):
            platform.write("later", row_id="later")
        await asyncio.sleep(14)
        stop.set()
        await serving


async def lives(folder: Path, *, newer: bool, kill_at: int) -> tuple[int, Mortal, Backend]:
    """Live, die at a point, and live again. Returns how many points there were."""
    platform, fuse = Mortal(newer=newer, send_delay=0.3), Fuse(kill_at)
    platform.fuse, platform.cut = fuse, {"echo: in doubt", "echo: cut"}
    talk(platform)
    backend = Backend(folder / FILE_NAME, fuse)
    if await dies(fuse, live(folder, platform, backend)):
        platform.fuse = backend.fuse = Fuse()
        await live(folder, platform, backend)
    return fuse.passed, platform, backend


async def dies(fuse: Fuse, life: Coroutine[None, None, None]) -> bool:
    """Run *life* to its end, or until *fuse* ends it; nothing of a dead process moves after that."""
    others = asyncio.all_tasks()
    living = asyncio.ensure_future(life)
    dying = asyncio.ensure_future(fuse.blown.wait())
    await asyncio.wait({living, dying}, return_when=asyncio.FIRST_COMPLETED)
    dying.cancel()
    if not fuse.blown.is_set():
        await living
        return False
    while moving := asyncio.all_tasks() - others:
        for task in moving:
            task.cancel()
        await asyncio.wait(moving, timeout=0.01)
        for task in moving:
            if task.done() and not task.cancelled():
                task.exception()
    return True


@pytest.mark.timeout(300)  # some hundred lives, each with a journal of its own
@pytest.mark.parametrize("newer", [True, False], ids=["newer", "older"])
async def test_whatever_moment_the_process_dies_at(tmp_path: Path, newer: bool) -> None:
    def folder() -> Path:
        return Path(tempfile.mkdtemp(dir=tmp_path))

    points, _, _ = await lives(folder(), newer=newer, kill_at=0)
    assert points > 60
    for point in range(1, points + 1):
        _, platform, backend = await lives(folder(), newer=newer, kill_at=point)
        answered = Counter(text.removeprefix("echo: ") for text in platform.answers())
        assert set(answered) == EXPECTED, f"killed at point {point}"
        to_people = Counter(sent.message_id for sent in platform.sent if sent.caller_id is None)
        assert max(to_people.values()) == 1, f"a person was told twice, killed at point {point}"
        # An older platform takes a peer's message again; that it is the same one is all that we can do.
        accepted = {sent.message_id for sent in platform.sent}
        assert len(accepted) == len(EXPECTED), f"killed at point {point}"
        assert not newer or len(platform.sent) == len(EXPECTED), f"killed at point {point}"
        assert backend.needless == [], f"killed at point {point}"
        assert max(backend.runs.values()) <= 2, f"killed at point {point}"
