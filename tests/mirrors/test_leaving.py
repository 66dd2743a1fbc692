"""A workspace that leaves the database: its messages are on one machine, and nowhere else."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from tests.mirrors.memory import Database, MemoryMirror
from tests.mirrors.test_sharing import Machine, world
from tests.worker.kit import other_process

from molecule_connect.errors import ConfigError, LeaseError
from molecule_connect.journal.copies import describe
from molecule_connect.journal.journal import FILE_NAME
from molecule_connect.mirrors import MemberInfo, MirrorError, MirrorUnreachableError
from molecule_connect.worker.lease import lease
from molecule_connect.worker.leaving import leave
from molecule_connect.worker.sharing import SESSION

OTHER = MemberInfo(host="host-7", pid=7, machine="", capacity=1, listing="")


@attrs.define
class BrokenMirror(MemoryMirror):
    """Its connection breaks at one call: before it, or before the caller knows of its success."""

    _db: Database
    calls_left: int
    is_done: bool
    is_cut: bool = False
    refuses_loads: bool = False

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name not in ("begin", "renew", "end", "overview", "take", "ship", "delete"):
            return found

        async def call(*args: Any, **options: Any) -> Any:
            self.calls_left -= 1
            if self.calls_left:
                return await found(*args, **options)
            if self.is_done:
                await found(*args, **options)
            self.is_cut = True
            raise MirrorUnreachableError("the connection was cut")

        return call


async def leaving(machine: Machine, workspace_id: str, mirror: MemoryMirror | None = None) -> bool:
    machine.folder.mkdir(exist_ok=True, mode=0o700)
    found = mirror or MemoryMirror(machine.database)
    return await leave(machine.folder, workspace_id, found, notice=lambda text, hint: None)


async def test_changes_are_stored_before_the_copy_is_deleted(tmp_path: Path) -> None:
    class Keeping(MemoryMirror):
        async def ship(self, *given: Any) -> Mapping[str, int]:
            await asyncio.sleep(1)
            return await super().ship(*given)

        async def delete(self, session: str, workspace_id: str) -> None:
            raise MirrorUnreachableError("the connection was cut")

    async with world(tmp_path) as here:
        (workspace,) = here.workspaces
        one = here.machine("one")
        async with one.running():
            await here.sandbox.say(workspace, "a")
            await here.answers(workspace, 1)
        # As if the process had been killed before it could store its last change.
        with other_process(one.folder / FILE_NAME) as db:
            db.execute("INSERT INTO spend VALUES (?, '2026-01-01', 1.0)", (workspace.id,))
        with pytest.raises(MirrorUnreachableError):
            await leaving(one, workspace.id, Keeping(here.database))
        assert ("spend", '["2026-01-01"]') in here.database.rows[workspace.id]


async def test_machine_that_left_continues_alone(tmp_path: Path) -> None:
    async with world(tmp_path, 2) as here:
        workspace, other = here.workspaces
        one, two = here.machine("one"), here.machine("two")
        for machine, text in ((one, "a"), (two, "b")):
            async with machine.running():
                await here.sandbox.say(workspace, text)
                await here.sandbox.say(other, text)
                for each in here.workspaces:
                    await here.answers(each, "ab".index(text) + 1)
        assert await leaving(one, workspace.id)
        assert list(here.database.leases) == list(here.database.rows) == [other.id]
        one.workspaces = [workspace]
        async with one.running(alone=True):
            await here.sandbox.say(workspace, "c")
            assert await here.answers(workspace, 3) == ["one: a", "two: b", "one: c"]
        assert not await leaving(one, workspace.id)


async def test_new_machine_can_get_workspace(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        (workspace,) = here.workspaces
        async with here.machine("one").running():
            await here.sandbox.say(workspace, "a")
            await here.answers(workspace, 1)
        new = here.machine("new")
        assert await leaving(new, workspace.id)
        async with new.running(alone=True):
            await here.sandbox.say(workspace, "b")
            assert await here.answers(workspace, 2) == ["one: a", "new: b"]


@pytest.mark.parametrize("is_done", [False, True])
async def test_interrupted_leave_can_be_repeated(tmp_path: Path, is_done: bool) -> None:
    async with world(tmp_path) as here:
        (workspace,) = here.workspaces
        calls = 0
        while True:
            calls += 1
            one, two = here.machine(f"one-{calls}"), here.machine(f"two-{calls}")
            async with one.running():
                await here.sandbox.say(workspace, "a")
                await here.answers(workspace, 2 * calls - 1)
            async with two.running():
                await here.sandbox.say(workspace, "b")
                await here.answers(workspace, 2 * calls)
            broken = BrokenMirror(here.database, calls, is_done)
            try:
                await leaving(one, workspace.id, broken)
            except MirrorUnreachableError:
                await asyncio.sleep(SESSION)
                await leaving(one, workspace.id)
            assert not here.database.leases
            assert not await leaving(one, workspace.id)
            (found,) = describe(one.folder / FILE_NAME).workspaces
            assert (found.messages, found.unfinished) == (2 * calls, 0)
            if broken.calls_left > 0:
                break
            # The next round begins with everything that this one had.
            here.folder = tmp_path / f"{calls}"
            here.folder.mkdir()
            one.folder.rename(here.folder / f"one-{calls + 1}")
        assert calls > 5


async def test_served_workspace_can_not_leave(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        (workspace,) = here.workspaces
        async with here.machine("one").running() as one:
            await here.sandbox.say(workspace, "a")
            await here.answers(workspace, 1)
            with pytest.raises(LeaseError):
                await leaving(one, workspace.id)
            with pytest.raises(MirrorError, match=r"is served by process \d+ on "):
                await leaving(here.machine("two"), workspace.id)
        mirror = MemoryMirror(here.database)
        await mirror.take(await mirror.begin(OTHER, seconds=15), [workspace.id])
        with pytest.raises(MirrorError, match="is served by process 7 on host-7"):
            await leaving(one, workspace.id)
        assert workspace.id in here.database.rows


@pytest.mark.parametrize("step", ["take", "delete"])
async def test_lease_that_is_lost_meanwhile_stops_it(tmp_path: Path, step: str) -> None:
    async with world(tmp_path) as here:
        (workspace,) = here.workspaces
        one = here.machine("one")
        async with one.running():
            await here.sandbox.say(workspace, "a")
            await here.answers(workspace, 1)

        class Slow(MemoryMirror):
            """Its machine sleeps at one step, while another one serves the workspace."""

            async def take(self, *args: Any) -> Any:
                taken = await super().take(*args)
                if step == "take":
                    await self.sleep()
                return taken

            async def delete(self, *args: Any) -> None:
                if step == "delete":
                    await self.sleep()
                await super().delete(*args)

            async def sleep(self) -> None:
                self.is_asleep = True
                await asyncio.sleep(SESSION)
                other = await super().begin(OTHER, seconds=SESSION)
                await super().take(other, [workspace.id])

            async def renew(self, *args: Any, **options: Any) -> Any:
                return () if getattr(self, "is_asleep", False) else await super().renew(*args, **options)

        with pytest.raises(MirrorError, match="was lost"):
            await leaving(one, workspace.id, Slow(here.database))
        assert here.database.rows[workspace.id]
        # Another machine may serve it.
        with pytest.raises(ConfigError, match="is shared with other machines"):
            async with one.running(alone=True):
                await asyncio.sleep(1)


async def test_outdated_journal_is_not_taken_for_current(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        (workspace,) = here.workspaces
        one, two = here.machine("one"), here.machine("two")
        for machine in (one, two):
            async with machine.running():
                await here.sandbox.say(workspace, "a")
                await here.answers(workspace, 1 + (machine is two))
        assert await leaving(two, workspace.id)
        with pytest.raises(MirrorError, match="left from another machine"):
            await leaving(one, workspace.id)
        with pytest.raises(ConfigError, match="has no workspace ws_unknown"):
            await leaving(one, "ws_unknown")
        with lease(one.folder, workspace.id):
            pass
