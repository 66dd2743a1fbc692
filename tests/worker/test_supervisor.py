"""Several workspaces in one process: an error in one doesn't affect the others."""

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
class Workspaces:
    """A supervisor with one workspace per platform, and its wall clock."""

    journal: Journal
    platforms: list[FakePlatform]
    handlers: dict[int, Answering] = attrs.field(factory=dict)
    jump: float = 0.0
    events: Events = attrs.field(factory=Events)
    stop: asyncio.Event = attrs.field(factory=asyncio.Event)
    supervisor: Supervisor = attrs.field(init=False)

    def wall(self) -> float:
        return EPOCH + self.jump + asyncio.get_running_loop().time()

    def start(self) -> "asyncio.Task[None]":
        """Start it."""
        workers = [self.worker(number) for number in range(len(self.platforms))]
        self.supervisor = Supervisor(workers, self.journal, listener=self.events, wall=self.wall, random=lambda: 0.0)
        return asyncio.ensure_future(self.supervisor.run(self.stop))

    def worker(self, number: int) -> Worker:
        """A new worker of one workspace."""
        return Worker(
            WorkspaceSettings(workspace_id=f"ws-{number}", backend="fake"),
            platform=self.platforms[number],
            handler=self.handlers.get(number, echo),
            journal=self.journal,
            listener=self.events,
            options=WorkerOptions(wall=self.wall),
        )

    def troubles(self, part: str) -> list[str]:
        """The workspaces with a problem of *part*."""
        return [event.workspace_id for event in self.events.of(events.Trouble) if event.part == part]


@pytest.fixture
def workspaces(journal: Journal) -> Workspaces:
    return Workspaces(journal, [FakePlatform() for _ in range(3)])


async def test_each_member_answers_its_own_workspace(workspaces: Workspaces) -> None:
    for number, platform in enumerate(workspaces.platforms):
        platform.write(f"for {number}", row_id="the same", caller="peer")
    running = workspaces.start()
    await asyncio.sleep(60)
    assert [platform.answers() for platform in workspaces.platforms] == [[f"echo: for {number}"] for number in range(3)]
    workspaces.stop.set()
    await running


async def test_failed_registration_disturbs_no_other(workspaces: Workspaces) -> None:
    workspaces.platforms[1].fail_register = [AuthError("register: 401", operation="register", status=401, body="")]
    running = workspaces.start()
    await asyncio.sleep(60)
    for platform in workspaces.platforms:
        platform.write("hi", caller="peer")
    await asyncio.sleep(60)
    assert [len(platform.sent) for platform in workspaces.platforms] == [1, 0, 1]
    assert workspaces.troubles("connection") == ["ws-1"]
    workspaces.stop.set()
    await running


async def test_bug_in_one_disturbs_no_other(workspaces: Workspaces) -> None:
    class Broken(FakePlatform):
        async def fetch(self, **query: object) -> None:  # type: ignore[override]
            raise ZeroDivisionError("a bug")

    workspaces.platforms[0] = Broken()
    running = workspaces.start()
    await asyncio.sleep(60)
    workspaces.platforms[2].write("hi", caller="peer")
    await workspaces.platforms[2].until(lambda: len(workspaces.platforms[2].sent) == 1)
    assert workspaces.troubles("connection") == ["ws-0"]
    workspaces.stop.set()
    with pytest.raises(ZeroDivisionError):
        await running


async def test_refused_workspaces_count_when_all_have_ended(workspaces: Workspaces) -> None:
    refused = ConfigError("no backend named 'x'")
    del workspaces.platforms[1:]
    running = workspaces.start()
    workspaces.supervisor.refused = {"ws-9": refused}
    await asyncio.sleep(60)
    workspaces.stop.set()
    await running

    error = TransientPlatformError("register: 503", operation="register", status=503)
    workspaces.platforms[0].fail_register = [error] * 5
    workspaces.stop = asyncio.Event()
    running = workspaces.start()
    workspaces.supervisor.refused = {"ws-9": refused}
    with pytest.raises(FleetError, match="2 of 2 workspaces ended with an error") as caught:
        await asyncio.wait_for(running, 60)
    assert caught.value.errors == {"ws-9": refused, "ws-0": error}


async def test_names_all_errors_when_all_have_ended(workspaces: Workspaces) -> None:
    error = TransientPlatformError("register: 503", operation="register", status=503)
    for platform in workspaces.platforms:
        platform.fail_register = [error] * 5
    with pytest.raises(FleetError, match="3 of 3 workspaces ended with an error: ws-0: register: 503; ws-1") as caught:
        await asyncio.wait_for(workspaces.start(), 60)
    assert caught.value.errors == dict.fromkeys(["ws-0", "ws-1", "ws-2"], error)
    assert sorted(workspaces.troubles("connection")) == ["ws-0", "ws-1", "ws-2"]


async def test_raises_the_error_of_the_only_one(workspaces: Workspaces) -> None:
    del workspaces.platforms[1:]
    error = AuthError("register: 401", operation="register", status=401, body="")
    workspaces.platforms[0].fail_register = [error]
    with pytest.raises(AuthError) as caught:
        await asyncio.wait_for(workspaces.start(), 60)
    assert caught.value is error
    assert workspaces.troubles("connection") == []


async def test_blocked_backend_delays_no_other(workspaces: Workspaces) -> None:
    async def endless(request: Request, progress: Progress) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    workspaces.handlers[0] = endless
    for platform in workspaces.platforms:
        for number in range(10):
            platform.write(f"{number}", caller=f"peer-{number}")
    running = workspaces.start()
    await asyncio.sleep(61)
    assert [len(platform.sent) for platform in workspaces.platforms] == [0, 10, 10]
    assert all(len(platform.beats) == 3 for platform in workspaces.platforms)
    workspaces.stop.set()
    await running
    states = workspaces.journal.reader.execute(
        "SELECT DISTINCT state FROM message WHERE workspace_id='ws-0'"
    ).fetchall()
    assert states == [("received",)]


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 6.0])
async def test_clock_jump_causes_one_heartbeat_and_read(workspaces: Workspaces, jump: float) -> None:
    running = workspaces.start()
    await asyncio.sleep(45)
    before = [(len(platform.beats), len(platform.fetches)) for platform in workspaces.platforms]
    workspaces.jump = jump
    await asyncio.sleep(1.1)
    for platform, (beats, fetches) in zip(workspaces.platforms, before, strict=True):
        assert len(platform.beats) == beats + 1
        assert 1 <= len(platform.fetches) - fetches <= 2
    await asyncio.sleep(300)
    assert all(len(platform.beats) <= 14 for platform in workspaces.platforms)
    workspaces.stop.set()
    await running


async def test_small_clock_drift_causes_nothing(workspaces: Workspaces) -> None:
    running = workspaces.start()
    for _ in range(102):
        await asyncio.sleep(0.9)
        workspaces.jump += 0.5
    assert all(len(platform.beats) == 4 for platform in workspaces.platforms)
    workspaces.stop.set()
    await running


async def test_clock_set_back_delays_no_retry(workspaces: Workspaces) -> None:
    busy = TransientPlatformError("a2a: 429", operation="a2a", status=429, retry_after=20.0)
    workspaces.platforms[0].fail_send = [busy]
    workspaces.platforms[0].write("hi", caller="peer")
    running = workspaces.start()
    await asyncio.sleep(5)
    workspaces.jump = -3600.0
    await asyncio.sleep(60)
    assert workspaces.platforms[0].answers() == ["echo: hi"]
    workspaces.stop.set()
    await running


async def test_replay_by_another_process_runs_soon(workspaces: Workspaces) -> None:
    workspaces.platforms[0].write("hi", caller="peer")
    running = workspaces.start()
    await asyncio.sleep(5)
    assert len(workspaces.platforms[0].sent) == 1
    with other_process(workspaces.journal.path) as other:
        other.execute("UPDATE message SET state='received', attempt=0, replay=replay+1, answer=NULL")
    await asyncio.sleep(2)
    assert len(workspaces.platforms[0].sent) == 2
    workspaces.stop.set()
    await running


async def test_stop_drains_all_at_once(workspaces: Workspaces) -> None:
    workspaces.handlers = dict.fromkeys(range(3), slow_echo)
    for platform in workspaces.platforms:
        platform.write("hi", caller="peer")
    running = workspaces.start()
    await asyncio.sleep(2)
    workspaces.stop.set()
    began = asyncio.get_running_loop().time()
    await running
    assert asyncio.get_running_loop().time() - began < 12
    assert [platform.answers() for platform in workspaces.platforms] == [["echo: hi"]] * 3


async def slow_echo(request: Request, progress: Progress) -> Response:
    await asyncio.sleep(10)
    return await echo(request, progress)


async def test_removed_one_drains_without_disturbing_others(workspaces: Workspaces) -> None:
    workspaces.handlers[0] = slow_echo
    running = workspaces.start()
    for platform in workspaces.platforms:
        platform.write("hi", caller="peer")
    await asyncio.sleep(2)
    await workspaces.supervisor.change([], gone=["ws-0", "ws-unknown"])
    assert workspaces.platforms[0].answers() == ["echo: hi"]
    assert workspaces.supervisor.running == {"ws-1", "ws-2"}
    workspaces.platforms[0].write("too late", caller="peer")
    workspaces.platforms[1].write("in time", caller="peer")
    await asyncio.sleep(60)
    assert [len(platform.sent) for platform in workspaces.platforms] == [1, 2, 1]
    assert [event.workspace_id for event in workspaces.events.of(events.Stopped)] == ["ws-0"]
    assert [len(platform.cards) for platform in workspaces.platforms] == [1, 1, 1]
    workspaces.stop.set()
    await running


async def test_changed_one_drains_before_it_restarts(workspaces: Workspaces) -> None:
    workspaces.handlers[0] = slow_echo
    newcomer = workspaces.platforms.pop()
    running = workspaces.start()
    workspaces.platforms[0].write("hi", caller="peer")
    await asyncio.sleep(2)
    workspaces.platforms.append(newcomer)
    changing = asyncio.ensure_future(workspaces.supervisor.change([workspaces.worker(0), workspaces.worker(2)]))
    await asyncio.sleep(1)
    assert workspaces.supervisor.running == {"ws-0", "ws-1", "ws-2"}
    assert [len(platform.cards) for platform in workspaces.platforms] == [1, 1, 1]
    workspaces.platforms[0].write("for the next", caller="peer")
    await changing
    await asyncio.sleep(30)
    assert workspaces.platforms[0].answers() == ["echo: hi", "echo: for the next"]
    assert [len(platform.cards) for platform in workspaces.platforms] == [2, 1, 1]
    workspaces.stop.set()
    await running


async def test_continues_while_the_only_one_changes(workspaces: Workspaces) -> None:
    del workspaces.platforms[1:]
    workspaces.handlers[0] = slow_echo
    workspaces.platforms[0].write("hi", caller="peer")
    running = workspaces.start()
    await asyncio.sleep(2)
    await workspaces.supervisor.change([workspaces.worker(0)])
    await asyncio.sleep(1)
    assert not running.done()
    assert len(workspaces.platforms[0].cards) == 2
    workspaces.stop.set()
    await running


async def test_stop_during_a_change_starts_nothing(workspaces: Workspaces) -> None:
    workspaces.handlers[0] = slow_echo
    workspaces.platforms[0].write("hi", caller="peer")
    running = workspaces.start()
    await asyncio.sleep(2)
    changing = asyncio.ensure_future(workspaces.supervisor.change([workspaces.worker(0)]))
    await asyncio.sleep(1)
    workspaces.stop.set()
    await running
    await changing
    assert [len(platform.cards) for platform in workspaces.platforms] == [1, 1, 1]
    assert workspaces.platforms[0].answers() == ["echo: hi"]


async def test_ended_member_can_be_started_again(workspaces: Workspaces) -> None:
    workspaces.platforms[0].fail_register = [AuthError("register: 401", operation="register", status=401, body="")]
    running = workspaces.start()
    await asyncio.sleep(5)
    assert workspaces.supervisor.running == {"ws-1", "ws-2"}
    await workspaces.supervisor.change([workspaces.worker(0)])
    await asyncio.sleep(5)
    assert workspaces.supervisor.running == {"ws-0", "ws-1", "ws-2"}
    workspaces.stop.set()
    await running


async def test_unreadable_data_version_ends_nothing(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        workspaces = Workspaces(journal, [FakePlatform()])
        running = workspaces.start()
        await asyncio.sleep(5)
        with other_process(journal.path) as other:
            other.execute("BEGIN EXCLUSIVE")
            other.execute("ROLLBACK")
        await asyncio.sleep(30)
        assert not running.done()
        workspaces.stop.set()
        await running
