"""Machines that share workspaces through a database in memory, in virtual time."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
from tests.mirrors.memory import Database, MemoryMirror

from molecule_connect import events
from molecule_connect.app import deploy
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.config.workspaces import Listing
from molecule_connect.models import Request, Response
from molecule_connect.plugins.hookspecs import hookimpl
from molecule_connect.worker.sharing import SharedJournal
from molecule_connect_sandbox.testing import Sandbox, Workspace


@attrs.frozen(eq=False)
class Parrot:
    """Answers with the name of its machine."""

    machine: "Machine"

    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        return Response.from_text(f"{self.machine.name}: {request.text}")

    @hookimpl
    def close(self) -> None:
        if self.machine.fails_to_close:
            raise ValueError("not closed")


@attrs.define
class Machine:
    """A machine with its own disk.

    Attributes:
        fails_to_close: Its backends can't be closed.
        bad_tokens: The platform refuses its tokens of these workspaces.
        token_file: Has the token of its workspace.
    """

    name: str
    folder: Path
    database: Database
    sandbox: Sandbox
    workspaces: list[Workspace]
    said: list[str] = attrs.field(factory=list)
    fails_to_close: bool = False
    bad_tokens: frozenset[str] = frozenset()
    token_file: Path | None = None
    since_secs: float = 30.0
    mirror: MemoryMirror = attrs.field(init=False)
    stop: asyncio.Event = attrs.field(factory=asyncio.Event)

    @asynccontextmanager
    async def running(self, *, alone: bool = False) -> AsyncIterator["Machine"]:
        """Serve inside the block.

        Args:
            alone: Without the database.
        """
        self.folder.mkdir(exist_ok=True, mode=0o700)
        listing = Listing(
            settings=tuple(
                WorkspaceSettings(
                    workspace_id=one.id,
                    token=None if self.token_file else "refused" if one.id in self.bad_tokens else one.token,
                    token_file=self.token_file,
                    since_secs=self.since_secs,
                    api_url=self.sandbox.url,
                    backend=Parrot(self),
                    patient=True,
                )
                for one in self.workspaces
            )
        )
        self.stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.mirror = MemoryMirror(self.database)
        shared = SharedJournal(mirror=self.mirror, machine=self.name, clock=loop.time)
        async with deploy(
            listing,
            self.folder,
            self.listen,
            transport=self.sandbox.transport,
            shared=None if alone else shared,
        ) as deployment:
            task = asyncio.ensure_future(deployment.run(self.stop))
            try:
                yield self
            finally:
                self.stop.set()
                await task

    def keep_token(self, token: str) -> Path:
        """Read the token from a file, which has *token* from now on."""
        self.token_file = self.folder.with_suffix(".token")
        self.token_file.touch(0o600)
        self.token_file.write_text(token)
        return self.token_file

    def listen(self, event: events.Event) -> None:
        if isinstance(event, events.Notice | events.Trouble):
            self.said.append(getattr(event, "text", "") or getattr(event, "reason", ""))


@attrs.define
class World:
    """A platform, a database, and machines."""

    sandbox: Sandbox
    folder: Path
    database: Database
    workspaces: list[Workspace]

    def machine(self, name: str) -> Machine:
        return Machine(name, self.folder / name, self.database, self.sandbox, self.workspaces)

    async def answers(self, workspace: Workspace, count: int) -> list[str]:
        return [answer.text for answer in await self.sandbox.answers(workspace, count)]

    def held(self) -> list[int]:
        """The number of workspaces that each machine serves."""
        holders = [lease.session for lease in self.database.leases.values() if lease.session]
        return sorted(Counter(holders).values())


@asynccontextmanager
async def world(folder: Path, workspaces: int = 1) -> AsyncIterator[World]:
    async with Sandbox.in_process() as sandbox:
        found = [await sandbox.workspace() for _ in range(workspaces)]
        yield World(sandbox, folder, Database(asyncio.get_running_loop().time), found)


async def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the time is virtual
            await asyncio.sleep(0.1)


async def test_second_machine_continues_after_first(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        (workspace,) = here.workspaces
        one, two = here.machine("one"), here.machine("two")
        async with one.running():
            await here.sandbox.say(workspace, "a")
            assert await here.answers(workspace, 1) == ["one: a"]
        await here.sandbox.say(workspace, "b")
        async with two.running():
            assert await here.answers(workspace, 2) == ["one: a", "two: b"]
        async with one.running():
            await here.sandbox.say(workspace, "c")
            assert await here.answers(workspace, 3) == ["one: a", "two: b", "one: c"]
        assert any("took" in line for line in two.said)


async def test_unreachable_machine_is_replaced_and_sends_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        (workspace,) = here.workspaces
        async with here.machine("one").running() as one:
            await here.sandbox.say(workspace, "a")
            assert await here.answers(workspace, 1) == ["one: a"]
            async with here.machine("two").running():
                one.mirror.is_cut = True
                await here.sandbox.say(workspace, "b")
                assert await here.answers(workspace, 2) == ["one: a", "two: b"]
                one.mirror.is_cut = False
                await until(lambda: any("has taken" in line for line in one.said))
                await here.sandbox.say(workspace, "c")
                assert len(await here.answers(workspace, 3)) == 3


async def test_workspace_that_returns_is_served_again(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        (workspace,) = here.workspaces
        async with here.machine("one").running() as one:
            await here.sandbox.say(workspace, "a")
            await here.answers(workspace, 1)
            async with here.machine("two").running():
                one.mirror.is_cut = True
                await here.sandbox.say(workspace, "b")
                await here.answers(workspace, 2)
                one.mirror.is_cut = False
                await until(lambda: any("has taken" in line for line in one.said))
            await here.sandbox.say(workspace, "c")
            assert await here.answers(workspace, 3) == ["one: a", "two: b", "one: c"]


async def test_results_wait_while_database_is_down(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        (workspace,) = here.workspaces
        async with here.machine("one").running() as one:
            await here.sandbox.say(workspace, "a")
            await here.answers(workspace, 1)
            here.database.is_down = True
            await here.sandbox.say(workspace, "b")
            await asyncio.sleep(60)
            assert await here.answers(workspace, 0) == ["one: a"]
            assert any("memory can't be reached" in line for line in one.said)
            assert any("changes can't be stored in the database" in line for line in one.said)
            here.database.is_down = False
            assert await here.answers(workspace, 2) == ["one: a", "one: b"]
        assert here.database.leases[workspace.id].epoch == 1


async def test_workspaces_are_shared_evenly(tmp_path: Path) -> None:
    async with world(tmp_path, 4) as here, here.machine("one").running():
        await until(lambda: here.held() == [4])
        async with here.machine("two").running():
            await until(lambda: here.held() == [2, 2])
            for workspace in here.workspaces:
                await here.sandbox.say(workspace, "a")
                assert len(await here.answers(workspace, 1)) == 1
        await until(lambda: here.held() == [4])


async def unserved(here: World, workspace: Workspace, seconds: float) -> float:
    """For how many of the next seconds nobody has the lease of a workspace."""
    free = 0.0
    for _ in range(round(seconds * 10)):
        await asyncio.sleep(0.1)
        free += 0.1 * (not here.database.leases[workspace.id].session)
    return free


async def test_refused_load_is_repeated(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        (workspace,) = here.workspaces
        async with here.machine("one").running():
            await here.sandbox.say(workspace, "a")
            await here.answers(workspace, 1)
        async with here.machine("two").running() as two:
            two.mirror.refuses_loads = True
            await until(lambda: any("password" in line for line in two.said))
            two.mirror.refuses_loads = False
            await here.sandbox.say(workspace, "b")
            assert await here.answers(workspace, 2) == ["one: a", "two: b"]


async def test_setting_that_was_wrong_for_a_while_is_read_again(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        (workspace,) = here.workspaces
        two = here.machine("two")
        token_file = two.keep_token(workspace.token)
        async with two.running():
            await until(lambda: here.held() == [1])
            two.mirror.is_cut = True
            async with here.machine("one").running():
                await here.sandbox.say(workspace, "a")
                assert await here.answers(workspace, 1) == ["one: a"]
                two.mirror.is_cut = False
                token_file.unlink()
            await until(lambda: any("token" in line for line in two.said))
            two.keep_token(workspace.token)
            await here.sandbox.say(workspace, "b")
            assert await here.answers(workspace, 2) == ["one: a", "two: b"]


async def test_first_read_goes_back_to_the_first_try(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        (workspace,) = here.workspaces
        two = here.machine("two")
        two.since_secs = 0.0
        two.keep_token("refused")
        async with two.running():
            await until(lambda: any("401" in line for line in two.said))
            await here.sandbox.say(workspace, "a")
            # The platform has a clock of its own, which counts whole seconds.
            time.sleep(1.1)  # noqa: ASYNC251
            two.keep_token(workspace.token)
            assert await here.answers(workspace, 1) == ["two: a"]


async def test_machine_whose_backend_cannot_be_closed_serves_again(tmp_path: Path) -> None:
    async with world(tmp_path, 2) as here, here.machine("one").running() as one:
        await until(lambda: here.held() == [2])
        one.fails_to_close = True
        async with here.machine("two").running():
            await until(lambda: here.held() == [1, 1])
            assert any("not closed" in line for line in one.said)
        await until(lambda: here.held() == [2])
        one.fails_to_close = False


async def test_workspace_goes_to_a_machine_with_a_good_token(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        (workspace,) = here.workspaces
        two = here.machine("two")
        two.bad_tokens = frozenset({workspace.id})
        async with two.running():
            await until(lambda: any("401" in line for line in two.said))
            async with here.machine("one").running():
                await here.sandbox.say(workspace, "a")
                assert await here.answers(workspace, 1) == ["one: a"]


async def test_workspace_stays_where_it_can_be_served(tmp_path: Path) -> None:
    async with world(tmp_path, 2) as here:
        two = here.machine("two")
        two.bad_tokens = frozenset(one.id for one in here.workspaces)
        async with here.machine("one").running(), two.running():
            await until(lambda: any("401" in line for line in two.said))
            assert await unserved(here, here.workspaces[0], 1200) < 20
            assert await unserved(here, here.workspaces[1], 1200) < 20
