"""Many workspaces in one process: one that breaks disturbs no other, and what concerns all is done once for each."""

import asyncio
from pathlib import Path

import attrs
import pytest

from molecule_connect import events
from molecule_connect.delivery.connection import Connection
from molecule_connect.delivery.fleet import Fleet
from molecule_connect.delivery.journal import Journal
from molecule_connect.errors import AuthError, TransientPlatformError
from molecule_connect.models import Progress, Request, Response
from molecule_connect.settings import ConnectionSettings

from .kit import EPOCH, Answering, Events, FakePlatform, echo, open_journal, other_process


@attrs.define
class Crew:
    """A fleet of one workspace per platform, and the wall clock that it lives by."""

    journal: Journal
    platforms: list[FakePlatform]
    handlers: dict[int, Answering] = attrs.field(factory=dict)
    jump: float = 0.0
    told: Events = attrs.field(factory=Events)
    stop: asyncio.Event = attrs.field(factory=asyncio.Event)

    def wall(self) -> float:
        return EPOCH + self.jump + asyncio.get_running_loop().time()

    def sail(self) -> "asyncio.Task[None]":
        """Run it."""
        connections = [self._connection(number, platform) for number, platform in enumerate(self.platforms)]
        fleet = Fleet(connections, self.journal, listener=self.told, wall=self.wall, random=lambda: 0.0)
        return asyncio.ensure_future(fleet.run(self.stop))

    def _connection(self, number: int, platform: FakePlatform) -> Connection:
        return Connection(
            ConnectionSettings(workspace_id=f"ws-{number}", backend="fake"),
            platform=platform,
            handler=self.handlers.get(number, echo),
            journal=self.journal,
            folder=self.journal.path.parent,
            listener=self.told,
            wall=self.wall,
        )

    def troubles(self, part: str) -> list[str]:
        """The workspaces whose *part* is in trouble."""
        return [event.workspace_id for event in self.told.of(events.Trouble) if event.part == part]


@pytest.fixture
def crew(journal: Journal) -> Crew:
    return Crew(journal, [FakePlatform() for _ in range(3)])


async def test_each_answers_for_its_own_workspace(crew: Crew) -> None:
    for number, platform in enumerate(crew.platforms):
        platform.write(f"for {number}", row_id="the same", caller="peer")
    sailing = crew.sail()
    await asyncio.sleep(60)
    assert [platform.answers() for platform in crew.platforms] == [[f"echo: for {number}"] for number in range(3)]
    crew.stop.set()
    await sailing


async def test_one_that_cannot_register_disturbs_none_and_is_raised_at_the_end(crew: Crew) -> None:
    crew.platforms[1].fail_register = [AuthError("register: 401", operation="register", status=401, body="")]
    sailing = crew.sail()
    await asyncio.sleep(60)
    for platform in crew.platforms:
        platform.write("hi", caller="peer")
    await asyncio.sleep(60)
    assert [len(platform.sent) for platform in crew.platforms] == [1, 0, 1]
    assert crew.troubles("connection") == ["ws-1"]
    crew.stop.set()
    with pytest.raises(AuthError):
        await sailing


async def test_one_that_breaks_like_a_bug_disturbs_none(crew: Crew) -> None:
    class Broken(FakePlatform):
        async def fetch(self, **query: object) -> None:  # type: ignore[override]
            raise ZeroDivisionError("a bug")

    crew.platforms[0] = Broken()
    sailing = crew.sail()
    await asyncio.sleep(60)
    crew.platforms[2].write("hi", caller="peer")
    await crew.platforms[2].until(lambda: len(crew.platforms[2].sent) == 1)
    assert crew.troubles("connection") == ["ws-0"]
    crew.stop.set()
    with pytest.raises(ZeroDivisionError):
        await sailing


async def test_it_ends_by_itself_when_none_is_left(crew: Crew) -> None:
    error = TransientPlatformError("register: 503", operation="register", status=503)
    for platform in crew.platforms:
        platform.fail_register = [error] * 5
    with pytest.raises(TransientPlatformError):
        await asyncio.wait_for(crew.sail(), 60)
    assert sorted(crew.troubles("connection")) == ["ws-0", "ws-1", "ws-2"]


async def test_a_backend_that_blocks_one_holds_up_no_other(crew: Crew) -> None:
    async def endless(request: Request, progress: Progress) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    crew.handlers[0] = endless
    for platform in crew.platforms:
        for number in range(10):
            platform.write(f"{number}", caller=f"peer-{number}")
    sailing = crew.sail()
    await asyncio.sleep(60)
    assert [len(platform.sent) for platform in crew.platforms] == [0, 10, 10]
    assert all(len(platform.beats) == 3 for platform in crew.platforms)
    crew.stop.set()
    await sailing
    states = crew.journal.reader.execute("SELECT DISTINCT state FROM message WHERE workspace_id='ws-0'").fetchall()
    assert states == [("received",)]


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 6.0])
async def test_clocks_that_jump_apart_cause_one_beat_and_one_read_for_each(crew: Crew, jump: float) -> None:
    sailing = crew.sail()
    await asyncio.sleep(45)
    before = [(len(platform.beats), len(platform.fetches)) for platform in crew.platforms]
    crew.jump = jump
    await asyncio.sleep(1.1)
    for platform, (beats, fetches) in zip(crew.platforms, before, strict=True):
        assert len(platform.beats) == beats + 1
        assert 1 <= len(platform.fetches) - fetches <= 2
    await asyncio.sleep(300)
    assert all(len(platform.beats) <= 14 for platform in crew.platforms)
    crew.stop.set()
    await sailing


async def test_clocks_that_drift_by_little_cause_nothing(crew: Crew) -> None:
    sailing = crew.sail()
    for _ in range(102):
        await asyncio.sleep(0.9)
        crew.jump += 0.5
    assert all(len(platform.beats) == 4 for platform in crew.platforms)
    crew.stop.set()
    await sailing


async def test_a_clock_that_is_set_back_freezes_no_retry(crew: Crew) -> None:
    busy = TransientPlatformError("a2a: 429", operation="a2a", status=429, retry_after=20.0)
    crew.platforms[0].fail_send = [busy]
    crew.platforms[0].write("hi", caller="peer")
    sailing = crew.sail()
    await asyncio.sleep(5)
    crew.jump = -3600.0
    await asyncio.sleep(60)
    assert crew.platforms[0].answers() == ["echo: hi"]
    crew.stop.set()
    await sailing


async def test_what_another_process_replays_is_run_within_two_seconds(crew: Crew) -> None:
    crew.platforms[0].write("hi", caller="peer")
    sailing = crew.sail()
    await asyncio.sleep(5)
    assert len(crew.platforms[0].sent) == 1
    with other_process(crew.journal.path) as other:
        other.execute("UPDATE message SET state='received', attempt=0, replay=replay+1, answer=NULL")
    await asyncio.sleep(2)
    assert len(crew.platforms[0].sent) == 2
    crew.stop.set()
    await sailing


async def test_a_stop_drains_all_at_once(crew: Crew) -> None:
    async def slow(request: Request, progress: Progress) -> Response:
        await asyncio.sleep(10)
        return await echo(request, progress)

    crew.handlers = dict.fromkeys(range(3), slow)
    for platform in crew.platforms:
        platform.write("hi", caller="peer")
    sailing = crew.sail()
    await asyncio.sleep(2)
    crew.stop.set()
    began = asyncio.get_running_loop().time()
    await sailing
    assert asyncio.get_running_loop().time() - began < 12
    assert [platform.answers() for platform in crew.platforms] == [["echo: hi"]] * 3


async def test_a_journal_that_cannot_be_asked_ends_nothing(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        crew = Crew(journal, [FakePlatform()])
        sailing = crew.sail()
        await asyncio.sleep(5)
        with other_process(journal.path) as other:
            other.execute("BEGIN EXCLUSIVE")
            other.execute("ROLLBACK")
        await asyncio.sleep(30)
        assert not sailing.done()
        crew.stop.set()
        await sailing
