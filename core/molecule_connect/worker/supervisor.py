"""Many workspaces over one journal in one process: one that breaks disturbs no other, and the set may change."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

import attrs

from molecule_connect import events
from molecule_connect.errors import CloseError, FleetError, JournalError, MoleculeError
from molecule_connect.journal.journal import Journal

TICK = 1.0
STARTS_A_SECOND = 100
# The clocks drift apart by more than this only when the machine slept, or somebody set the clock.
SLEPT = 5.0


class Member(Protocol):
    """One workspace that a fleet runs. A ``Worker`` is one."""

    @property
    def workspace_id(self) -> str: ...

    async def run(self, stop: asyncio.Event) -> None: ...

    def clock_jumped(self) -> None: ...

    def journal_changed(self) -> None: ...


@attrs.define(eq=False)
class _Berth:
    member: Member
    stop: asyncio.Event
    task: "asyncio.Task[None]"


class Supervisor:
    """Runs members side by side, one for each workspace.

    Attributes:
        refused: What keeps other workspaces from being run at all.
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
        self._berths: dict[str, _Berth] = {}
        self._moved = asyncio.Event()
        self._stopping = False
        self._changes = 0
        self._turn = asyncio.Lock()
        self.refused: Mapping[str, MoleculeError] = {}

    @property
    def running(self) -> frozenset[str]:
        """The workspaces whose members have not ended."""
        return frozenset(name for name, berth in self._berths.items() if not berth.task.done())

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until *stop* is set and all have drained, or none is left.

        What a member ends with is raised once none is left, or when it is a bug; after a *stop* that others drained
        for, it has been told, and that is enough. The same goes for what is in ``refused``.

        Raises:
            MoleculeError: What ended the only one.
            FleetError: Several have ended, and not all of them well.
        """
        loop = asyncio.get_running_loop()
        helpers = [loop.create_task(self._watch(), name="fleet"), loop.create_task(self._stop_on(stop))]
        try:
            for member in self._first:
                self._start(member, len(self._first))
            while self._changes or self.running:
                self._moved.clear()
                await self._moved.wait()
        finally:
            self._stopping = True
            tasks = [*helpers, *(berth.task for berth in self._berths.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._judge(was_asked=stop.is_set())

    async def change(self, members: Sequence[Member], *, gone: Collection[str] = ()) -> None:
        """Run *members* from now on, each once an earlier one of its workspace has drained; drain *gone* for good."""
        with self._changing():
            await asyncio.gather(
                *(self._replace(member, len(members)) for member in members), *(self._remove(name) for name in gone)
            )

    async def _replace(self, member: Member, together: int) -> None:
        await self._remove(member.workspace_id)
        if not self._stopping:
            self._start(member, together)

    async def _remove(self, workspace_id: str) -> None:
        berth = self._berths.get(workspace_id)
        if berth is not None:
            berth.stop.set()
            # What it ends with has been told.
            await asyncio.gather(berth.task, return_exceptions=True)
            if not self._stopping:
                del self._berths[workspace_id]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """While it lasts, a fleet without members is not over."""
        self._changes += 1
        try:
            yield
        finally:
            self._changes -= 1
            self._moved.set()

    def _start(self, member: Member, together: int) -> None:
        stop = asyncio.Event()
        work = self._run(member, stop, together)
        task = asyncio.get_running_loop().create_task(work, name=f"workspace {member.workspace_id}")
        task.add_done_callback(lambda _: self._moved.set())
        self._berths[member.workspace_id] = _Berth(member, stop, task)

    async def _run(self, member: Member, stop: asyncio.Event, together: int) -> None:
        if together > 1:
            await self._wait_for_its_turn(stop)
        try:
            await member.run(stop)
        except Exception as exc:  # it ends this workspace alone
            if self._count > 1:
                hint = getattr(exc, "hint", "")
                self._listener(
                    events.Trouble(workspace_id=member.workspace_id, part="connection", reason=str(exc), hint=hint)
                )
            raise

    async def _wait_for_its_turn(self, stop: asyncio.Event) -> None:
        """Let workspaces that start together start one after the other.

        A busy loop delays the next start too. With a fixed time for each they would pile up, and time out.
        """
        async with self._turn:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * self._random() / STARTS_A_SECOND):
                    await stop.wait()

    async def _stop_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stopping = True
        for berth in self._berths.values():
            berth.stop.set()

    def _judge(self, *, was_asked: bool) -> None:
        """Raise what the members ended with, as far as nobody was told of it or can do without."""
        ended = {name: exc for name, berth in self._berths.items() if (exc := berth.task.exception()) is not None}
        if was_asked and len(ended) < len(self._berths):
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
        return len(self._berths.keys() | self.refused.keys())

    async def _watch(self) -> None:
        """Once a second: did the machine sleep, and did another program change the journal?"""
        loop = asyncio.get_running_loop()
        drift, version = self._wall() - loop.time(), await self._data_version()
        while True:
            await asyncio.sleep(TICK)
            previous, drift = drift, self._wall() - loop.time()
            if abs(drift - previous) > SLEPT:
                for member in self._members():
                    member.clock_jumped()
            before, version = version, await self._data_version()
            if version != before:
                for member in self._members():
                    member.journal_changed()

    def _members(self) -> list[Member]:
        return [berth.member for berth in self._berths.values() if not berth.task.done()]

    async def _data_version(self) -> int | None:
        try:
            return await self._journal.data_version()
        except JournalError:
            return None


def _is_bug(error: BaseException) -> bool:
    return isinstance(error, CloseError) or not isinstance(error, MoleculeError)
