"""Runs the workers of one process over one journal: an error in one ends only that one, and the set may change."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

import attrs

from molecule_connect import events
from molecule_connect.errors import CloseError, FleetError, JournalError, MoleculeError
from molecule_connect.flag import Flag
from molecule_connect.journal.journal import Journal

CHECK_INTERVAL = 1.0
STARTS_PER_SECOND = 100
# If the wall clock and the loop's clock diverge by more than this, in seconds, the machine slept or a clock was set.
CLOCK_JUMP = 5.0


class Member(Protocol):
    """Serves one workspace: a ``Worker``, or an object that wraps one."""

    @property
    def workspace_id(self) -> str: ...

    async def run(self, stop: Flag) -> None: ...

    def clock_jumped(self) -> None: ...

    def journal_changed(self) -> None: ...


@attrs.define(eq=False)
class _Running:
    member: Member
    stop: Flag
    task: "asyncio.Task[None]"


class Supervisor:
    """Runs members side by side, one per workspace.

    Attributes:
        refused: Why other workspaces of the list can't be run.
    """

    def __init__(
        self,
        members: Sequence[Member],
        journal: Journal,
        *,
        listener: events.Listener = events.ignore,
        wall: Callable[[], float] = time.time,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._first = tuple(members)
        self._journal = journal
        self._listener = listener
        self._wall = wall
        self._random = random
        # By workspace; includes members that have ended.
        self._members: dict[str, _Running] = {}
        self._member_ended = asyncio.Event()
        self._stopping = False
        self._changes = 0
        self._start_turn = asyncio.Lock()
        self.refused: Mapping[str, MoleculeError] = {}

    @property
    def running(self) -> frozenset[str]:
        """The workspaces whose members have not ended."""
        return frozenset(name for name, running in self._members.items() if not running.task.done())

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until *stop* is set and all members have drained, or until all have ended.

        Errors of members, and those in ``refused``, are raised at the end. After a *stop* for which at least one member
        drained, only bugs are
        raised: the others were reported when they happened.

        Raises:
            MoleculeError: The error of the only workspace.
            FleetError: The errors of several.
        """
        loop = asyncio.get_running_loop()
        helpers = [loop.create_task(self._watch(), name="supervisor"), loop.create_task(self._stop_on(stop))]
        try:
            for member in self._first:
                self._start(member, len(self._first))
            while self._changes or self.running:
                self._member_ended.clear()
                await self._member_ended.wait()
        finally:
            self._stopping = True
            tasks = [*helpers, *(running.task for running in self._members.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._raise_errors(stopped=stop.is_set())

    async def change(self, members: Sequence[Member], *, gone: Collection[str] = ()) -> None:
        """Add *members*, each after an earlier one of its workspace has drained; drain and remove *gone*."""
        with self._changing():
            await asyncio.gather(
                *(self._replace(member, len(members)) for member in members), *(self._remove(name) for name in gone)
            )

    async def _replace(self, member: Member, together: int) -> None:
        await self._remove(member.workspace_id)
        if not self._stopping:
            self._start(member, together)

    async def _remove(self, workspace_id: str) -> None:
        running = self._members.get(workspace_id)
        if running is not None:
            running.stop.set()
            # Its error was reported when it ended.
            await asyncio.gather(running.task, return_exceptions=True)
            if not self._stopping:
                del self._members[workspace_id]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Keep ``run`` from returning inside the block, although no member may run."""
        self._changes += 1
        try:
            yield
        finally:
            self._changes -= 1
            self._member_ended.set()

    def _start(self, member: Member, together: int) -> None:
        stop = Flag()
        work = self._run(member, stop, together)
        task = asyncio.get_running_loop().create_task(work, name=f"workspace {member.workspace_id}")
        task.add_done_callback(self._on_end)
        self._members[member.workspace_id] = _Running(member, stop, task)

    def _on_end(self, task: "asyncio.Task[None]") -> None:
        self._member_ended.set()

    async def _run(self, member: Member, stop: Flag, together: int) -> None:
        if together > 1:
            await self._wait_for_turn(stop)
        try:
            await member.run(stop)
        except Exception as exc:
            if self._count > 1:
                hint = getattr(exc, "hint", "")
                self._listener(
                    events.Trouble(workspace_id=member.workspace_id, part="connection", reason=str(exc), hint=hint)
                )
            raise

    async def _wait_for_turn(self, stop: Flag) -> None:
        """Start members one after the other: starts at fixed times would pile up on a busy loop, and time out."""
        async with self._start_turn:
            await stop.wait(2 * self._random() / STARTS_PER_SECOND)

    async def _stop_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stopping = True
        for running in self._members.values():
            running.stop.set()

    def _raise_errors(self, *, stopped: bool) -> None:
        ended = {name: exc for name, one in self._members.items() if (exc := one.task.exception()) is not None}
        if stopped and len(ended) < len(self._members):
            failed = {name: exc for name, exc in ended.items() if _is_bug(exc)}
        else:
            failed = {**self.refused, **ended}
        bug = next((exc for exc in failed.values() if not isinstance(exc, MoleculeError)), None)
        if bug is not None:
            raise bug
        if failed and self._count == 1:
            raise next(iter(failed.values()))
        if failed:
            raise FleetError(failed, of=self._count)

    @property
    def _count(self) -> int:
        return len(self._members.keys() | self.refused.keys())

    async def _watch(self) -> None:
        """Notify the members when the clock jumped, and when another program changed the journal."""
        loop = asyncio.get_running_loop()
        offset, version = self._wall() - loop.time(), await self._data_version()
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            previous, offset = offset, self._wall() - loop.time()
            if abs(offset - previous) > CLOCK_JUMP:
                for member in self._running_members():
                    member.clock_jumped()
            before, version = version, await self._data_version()
            if version != before:
                try:
                    for member in self._running_members():
                        member.journal_changed()
                except JournalError:
                    version = before  # notify them again at the next check

    def _running_members(self) -> list[Member]:
        return [running.member for running in self._members.values() if not running.task.done()]

    async def _data_version(self) -> int | None:
        try:
            return await self._journal.data_version()
        except JournalError:
            return None


def _is_bug(error: BaseException) -> bool:
    return isinstance(error, CloseError) or not isinstance(error, MoleculeError)
