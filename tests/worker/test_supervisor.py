"""Many workspaces in one process: one that breaks disturbs no other, and what concerns all is done once for each."""

import asyncio
from pathlib import Path

import attrs
import pytest
from tests.worker.kit import EPOCH, Answering, Events, FakePlatform, echo, open_journal, other_process

from molecule_connect import events
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.errors import AuthError, ConfigError, FleetError, TransientPlatformError
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Progress, Request, Response
from molecule_connect.worker.supervisor import Supervisor
from molecule_connect.worker.worker import Worker, WorkerOptions


@attrs.define
class Crew:
    """A fleet of one workspace per platform, and the wall clock that it lives by."""

    journal: Journal
    platforms: list[FakePlatform]
    handlers: dict[int, Answering] = attrs.field(factory=dict)
    jump: float = 0.0
    told: Events = attrs.field(factory=Events)
    stop: asyncio.Event = attrs.field(factory=asyncio.Event)
    fleet: Supervisor = attrs.field(init=False)

    def wall(self) -> float:
        return EPOCH + self.jump + asyncio.get_running_loop().time()

    def sail(self) -> "asyncio.Task[None]":
        """Run it."""
        connections = [self.connection(number) for number in range(len(self.platforms))]
        self.fleet = Supervisor(connections, self.journal, listener=self.told, wall=self.wall, random=lambda: 0.0)
        return asyncio.ensure_future(self.fleet.run(self.stop))

    def connection(self, number: int) -> Worker:
        """A new connection of one workspace."""
        return Worker(
            WorkspaceSettings(workspace_id=f"ws-{number}", backend="fake"),
            platform=self.platforms[number],
            handler=self.handlers.get(number, echo),
            journal=self.journal,
            listener=self.told,
            options=WorkerOptions(wall=self.wall),
        )

    def troubles(self, part: str) -> list[str]:
        """The workspaces whose *part* is in trouble."""
        return [event.workspace_id for event in self.told.of(events.Trouble) if event.part == part]


@pytest.fixture
def crew(journal: Journal) -> Crew:
    return Crew(journal, [FakePlatform() for _ in range(3)])


async def test_each_member_answers_its_own_workspace(crew: Crew) -> None:
    for number, platform in enumerate(crew.platforms):
        platform.write(f"for {number}", row_id="the same", caller="peer")
    sailing = crew.sail()
    await asyncio.sleep(60)
    assert [platform.answers() for platform in crew.platforms] == [[f"echo: for {number}"] for number in range(3)]
    crew.stop.set()
    await sailing


async def test_failed_registration_disturbs_no_other(crew: Crew) -> None:
    crew.platforms[1].fail_register = [AuthError("register: 401", operation="register", status=401, body="")]
    sailing = crew.sail()
    await asyncio.sleep(60)
    for platform in crew.platforms:
        platform.write("hi", caller="peer")
    await asyncio.sleep(60)
    assert [len(platform.sent) for platform in crew.platforms] == [1, 0, 1]
    assert crew.troubles("connection") == ["ws-1"]
    crew.stop.set()
    await sailing


async def test_bug_in_one_disturbs_no_other(crew: Crew) -> None:
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


async def test_refused_workspaces_count_when_all_have_ended(crew: Crew) -> None:
    refused = ConfigError("no backend named 'x'")
    del crew.platforms[1:]
    sailing = crew.sail()
    crew.fleet.refused = {"ws-9": refused}
    await asyncio.sleep(60)
    crew.stop.set()
    await sailing

    error = TransientPlatformError("register: 503", operation="register", status=503)
    crew.platforms[0].fail_register = [error] * 5
    crew.stop = asyncio.Event()
    sailing = crew.sail()
    crew.fleet.refused = {"ws-9": refused}
    with pytest.raises(FleetError, match="2 of 2 workspaces ended with an error") as caught:
        await asyncio.wait_for(sailing, 60)
    assert caught.value.errors == {"ws-9": refused, "ws-0": error}


async def test_names_all_errors_when_all_have_ended(crew: Crew) -> None:
    error = TransientPlatformError("register: 503", operation="register", status=503)
    for platform in crew.platforms:
        platform.fail_register = [error] * 5
    with pytest.raises(FleetError, match="3 of 3 workspaces ended with an error: ws-0: register: 503; ws-1") as caught:
        await asyncio.wait_for(crew.sail(), 60)
    assert caught.value.errors == dict.fromkeys(["ws-0", "ws-1", "ws-2"], error)
    assert sorted(crew.troubles("connection")) == ["ws-0", "ws-1", "ws-2"]


async def test_raises_the_error_of_the_only_one(crew: Crew) -> None:
    del crew.platforms[1:]
    error = AuthError("register: 401", operation="register", status=401, body="")
    crew.platforms[0].fail_register = [error]
    with pytest.raises(AuthError) as caught:
        await asyncio.wait_for(crew.sail(), 60)
    assert caught.value is error
    assert crew.troubles("connection") == []


async def test_blocked_backend_delays_no_other(crew: Crew) -> None:
    async def endless(request: Request, progress: Progress) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    crew.handlers[0] = endless
    for platform in crew.platforms:
        for number in range(10):
            platform.write(f"{number}", caller=f"peer-{number}")
    sailing = crew.sail()
    await asyncio.sleep(61)
    assert [len(platform.sent) for platform in crew.platforms] == [0, 10, 10]
    assert all(len(platform.beats) == 3 for platform in crew.platforms)
    crew.stop.set()
    await sailing
    states = crew.journal.reader.execute("SELECT DISTINCT state FROM message WHERE workspace_id='ws-0'").fetchall()
    assert states == [("received",)]


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 6.0])
async def test_clock_jump_causes_one_heartbeat_and_read(crew: Crew, jump: float) -> None:
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


async def test_small_clock_drift_causes_nothing(crew: Crew) -> None:
    sailing = crew.sail()
    for _ in range(102):
        await asyncio.sleep(0.9)
        crew.jump += 0.5
    assert all(len(platform.beats) == 4 for platform in crew.platforms)
    crew.stop.set()
    await sailing


async def test_clock_set_back_delays_no_retry(crew: Crew) -> None:
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


async def test_replay_by_another_process_runs_soon(crew: Crew) -> None:
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


async def test_stop_drains_all_at_once(crew: Crew) -> None:
    crew.handlers = dict.fromkeys(range(3), slow_echo)
    for platform in crew.platforms:
        platform.write("hi", caller="peer")
    sailing = crew.sail()
    await asyncio.sleep(2)
    crew.stop.set()
    began = asyncio.get_running_loop().time()
    await sailing
    assert asyncio.get_running_loop().time() - began < 12
    assert [platform.answers() for platform in crew.platforms] == [["echo: hi"]] * 3


async def slow_echo(request: Request, progress: Progress) -> Response:
    await asyncio.sleep(10)
    return await echo(request, progress)


async def test_removed_one_drains_without_disturbing_others(crew: Crew) -> None:
    crew.handlers[0] = slow_echo
    sailing = crew.sail()
    for platform in crew.platforms:
        platform.write("hi", caller="peer")
    await asyncio.sleep(2)
    await crew.fleet.change([], gone=["ws-0", "ws-unknown"])
    assert crew.platforms[0].answers() == ["echo: hi"]
    assert crew.fleet.running == {"ws-1", "ws-2"}
    crew.platforms[0].write("too late", caller="peer")
    crew.platforms[1].write("in time", caller="peer")
    await asyncio.sleep(60)
    assert [len(platform.sent) for platform in crew.platforms] == [1, 2, 1]
    assert [event.workspace_id for event in crew.told.of(events.Stopped)] == ["ws-0"]
    assert [len(platform.cards) for platform in crew.platforms] == [1, 1, 1]
    crew.stop.set()
    await sailing


async def test_changed_one_drains_before_it_restarts(crew: Crew) -> None:
    crew.handlers[0] = slow_echo
    newcomer = crew.platforms.pop()
    sailing = crew.sail()
    crew.platforms[0].write("hi", caller="peer")
    await asyncio.sleep(2)
    crew.platforms.append(newcomer)
    changing = asyncio.ensure_future(crew.fleet.change([crew.connection(0), crew.connection(2)]))
    await asyncio.sleep(1)
    assert crew.fleet.running == {"ws-0", "ws-1", "ws-2"}
    assert [len(platform.cards) for platform in crew.platforms] == [1, 1, 1]
    crew.platforms[0].write("for the next", caller="peer")
    await changing
    await asyncio.sleep(30)
    assert crew.platforms[0].answers() == ["echo: hi", "echo: for the next"]
    assert [len(platform.cards) for platform in crew.platforms] == [2, 1, 1]
    crew.stop.set()
    await sailing


async def test_continues_while_the_only_one_changes(crew: Crew) -> None:
    del crew.platforms[1:]
    crew.handlers[0] = slow_echo
    crew.platforms[0].write("hi", caller="peer")
    sailing = crew.sail()
    await asyncio.sleep(2)
    await crew.fleet.change([crew.connection(0)])
    await asyncio.sleep(1)
    assert not sailing.done()
    assert len(crew.platforms[0].cards) == 2
    crew.stop.set()
    await sailing


async def test_stop_during_a_change_starts_nothing(crew: Crew) -> None:
    crew.handlers[0] = slow_echo
    crew.platforms[0].write("hi", caller="peer")
    sailing = crew.sail()
    await asyncio.sleep(2)
    changing = asyncio.ensure_future(crew.fleet.change([crew.connection(0)]))
    await asyncio.sleep(1)
    crew.stop.set()
    await sailing
    await changing
    assert [len(platform.cards) for platform in crew.platforms] == [1, 1, 1]
    assert crew.platforms[0].answers() == ["echo: hi"]


async def test_ended_member_can_be_started_again(crew: Crew) -> None:
    crew.platforms[0].fail_register = [AuthError("register: 401", operation="register", status=401, body="")]
    sailing = crew.sail()
    await asyncio.sleep(5)
    assert crew.fleet.running == {"ws-1", "ws-2"}
    await crew.fleet.change([crew.connection(0)])
    await asyncio.sleep(5)
    assert crew.fleet.running == {"ws-0", "ws-1", "ws-2"}
    crew.stop.set()
    await sailing


async def test_unreadable_data_version_ends_nothing(tmp_path: Path) -> None:
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
