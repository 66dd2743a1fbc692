"""The leases that this process shares with other machines: its session, and which workspaces it serves."""

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.errors import JournalError, MoleculeError
from molecule_connect.flag import Flag
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.outbox import BOOT, Start
from molecule_connect.journal.shipper import Shipper
from molecule_connect.mirrors import (
    JournalMirror,
    Lease,
    MemberInfo,
    MemberState,
    MirrorError,
    MirrorUnreachableError,
    SessionEndedError,
)
from molecule_connect.worker.balance import balance

# Seconds that a session lasts without being renewed, between renewals, and between looks for free leases.
SESSION, RENEW_INTERVAL, LOOK_INTERVAL = 15.0, 5.0, 1.0
# Seconds before the end of a session from which on nothing is sent: for the drift of the clocks, and for requests that
# are on their way.
MARGIN = 2.0
# Seconds for which the last changes of a workspace may take to reach the mirror before its lease is released.
FLUSH_TIMEOUT = 5.0
# Seconds after which a free lease is taken by any member, and how many free ones are looked at.
UNCLAIMED_AFTER, FREE_AT_ONCE = 10.0, 500
# Copies that are loaded at the same time: each needs a connection to the database.
CONCURRENT_LOADS = 4
# The capacity of a process without a limit; the database has 32-bit integers.
UNLIMITED = (1 << 31) - 1
NOT_RENEWED = "its lease was not renewed in time"


class LeaseLostError(MoleculeError):
    """Another machine has taken the workspace over, so this one must not send anything more for it."""


def uptime() -> float:
    """Seconds by a clock that never jumps and goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def describe_machine() -> str:
    """Identifies this machine until it restarts, and the namespace of its pids; empty if that's unknown."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return ""
    return f"{socket.gethostname()}/{BOOT}/{namespace}" if BOOT else ""


@attrs.frozen(kw_only=True)
class SharedJournal:
    """The database through which machines share workspaces.

    Attributes:
        capacity: Number of workspaces that this process serves at most; 0 for all.
        machine: See ``MemberInfo.machine``.
        clock: Seconds, by a clock like ``uptime``.
    """

    mirror: JournalMirror
    capacity: int = 0
    machine: str = attrs.field(factory=describe_machine)
    clock: Callable[[], float] = uptime


class Seat:
    """The place of one workspace in this process, with or without a lease.

    Attributes:
        lease: None without one.
        leaving: Set when the lease has to be given back, because another member is to serve the workspace.
        lost: Set when another member has taken the lease.
    """

    def __init__(self, workspace_id: str) -> None:
        self.workspace_id = workspace_id
        self.lease: Lease | None = None
        self.since = 0.0
        self.leaving = Flag()
        self.lost = Flag()
        self.granted = Flag()

    def grant(self, lease: Lease, now: float) -> None:
        """The lease was taken at *now*."""
        self.lease, self.since = lease, now
        self.leaving.clear()
        self.lost.clear()
        self.granted.set()

    def lose(self) -> None:
        """The lease was lost."""
        if self.lease is not None:
            self.lost.set()

    def clear(self) -> None:
        """The workspace is not served any more."""
        self.lease = None
        self.granted.clear()


class Gate:
    """Whether replies may be sent: only while nobody else can have taken the leases of this process.

    Nor while changes can't be stored: if this process loses its leases, another one would send the reply again.

    Attributes:
        shipper: Stores changes; None before the process takes part.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.shipper: Shipper | None = None
        self._until = float("-inf")
        self._was_open = self._was_seen_closed = False
        self._followers: set[Flag] = set()
        # Why the session could not be renewed.
        self.renewal = NOT_RENEWED

    @property
    def is_open(self) -> bool:
        """Whether a reply may be sent now."""
        is_open = self._clock() < self._until and self._store_error is None
        self._was_seen_closed |= not is_open
        return is_open

    @property
    def reason(self) -> str:
        """Why no reply may be sent."""
        if self._store_error is not None:
            return f"changes can't be stored in the database: {self._store_error}"
        return f"it isn't certain that no other machine has taken the workspace over: {self.renewal}"

    @property
    def _store_error(self) -> Exception | None:
        return None if self.shipper is None else self.shipper.error

    def open_until(self, until: float) -> None:
        """The leases are valid until *until*."""
        self._until = until
        self.check()

    def check(self) -> None:
        """Tell the followers if the gate opened or closed, also if it was only closed for a moment."""
        is_open = self.is_open
        if is_open is not self._was_open or (is_open and self._was_seen_closed):
            self._was_open = is_open
            for follower in self._followers:
                follower.set()
        self._was_seen_closed &= not is_open

    async def changes(self) -> AsyncIterator[bool]:
        """Whether the gate is open, now and after each change."""
        changed = Flag()
        self._followers.add(changed)
        try:
            while True:
                changed.clear()
                yield self.is_open
                await changed.wait()
        finally:
            self._followers.discard(changed)


class SeatGate:
    """Whether replies of one workspace may be sent: until its present lease is lost or given back."""

    def __init__(self, gate: Gate, seat: Seat) -> None:
        self._gate = gate
        self._seat = seat
        self._lease = seat.lease

    @property
    def _is_over(self) -> bool:
        return self._seat.lease is not self._lease or self._seat.lost.is_set()

    @property
    def is_open(self) -> bool:
        """Whether a reply may be sent now."""
        return self._gate.is_open and not self._is_over

    @property
    def reason(self) -> str:
        """Why no reply may be sent."""
        return "another machine has taken the workspace over" if self._is_over else self._gate.reason

    def changes(self) -> AsyncIterator[bool]:
        """See ``Gate.changes``."""
        return self._gate.changes()


class Sharing:
    """Keeps the session of this process, and gives leases to its workspaces.

    Args:
        notice: Called with a text and a hint for the operator.
    """

    def __init__(
        self,
        shared: SharedJournal,
        journal: Journal,
        *,
        notice: Callable[[str, str], None],
        choice: Callable[[Sequence[str]], str] = random.choice,
    ) -> None:
        self._mirror = shared.mirror
        self._journal = journal
        self._notice = notice
        self._clock = shared.clock
        self._choice = choice
        self._info = MemberInfo(
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=shared.machine,
            capacity=shared.capacity or UNLIMITED,
            listing="",
        )
        self._workspaces: frozenset[str] = frozenset()
        self._seats: dict[str, Seat] = {}
        # Those of its workspaces that it can't serve at present.
        self._away: set[str] = set()
        self._is_listing_known = False
        self._shipper: Shipper
        # One call at a time on the session's connection.
        self._calling = asyncio.Lock()
        self._loading = asyncio.Semaphore(CONCURRENT_LOADS)
        self._session = ""
        self._renewed_at = float("-inf")
        # Since when the mirror has been reachable without a failure.
        self._reachable_since = float("inf")
        self._free_since: dict[str, float] = {}
        self._poked = Flag()
        self._are_added = False
        self.gate = Gate(shared.clock)

    @contextlib.asynccontextmanager
    async def running(self, workspace_ids: Collection[str]) -> AsyncIterator[None]:
        """Take part inside the block. At its end, all leases are released.

        Raises:
            MirrorError: The database can't be used.
        """
        self.change(workspace_ids)
        with contextlib.suppress(MirrorUnreachableError):
            # One that is unreachable may be starting; wrong tables or credentials don't heal.
            await self._mirror.add(self._workspaces)
            self._are_added = True
        async with self._journal.sharing(self._mirror, lost=self._lost, notice=self._notice) as self._shipper:
            self.gate.shipper = self._shipper
            task = asyncio.get_running_loop().create_task(self._run(), name="sharing")
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                # The mirror doesn't have all changes of leases that are left. They end with the session.
                if self._session and not self._shipper.leased:
                    with contextlib.suppress(MirrorError):
                        await self._mirror.end(self._session)

    def change(self, workspace_ids: Collection[str]) -> None:
        """The process is configured for these workspaces."""
        self._workspaces = frozenset(workspace_ids)
        self._is_listing_known = self._are_added = False
        self._poked.set()

    def stop(self) -> None:
        """Take no more leases: the process is stopping, and others are to take over."""
        self._describe(capacity=0)

    def _describe(self, **changes: Any) -> None:
        self._info = attrs.evolve(self._info, **changes)
        self._renewed_at = float("-inf")
        self._poked.set()

    # Seats

    @contextlib.contextmanager
    def seat(self, workspace_id: str) -> Iterator[Seat]:
        """The seat of a workspace that can be served inside the block; afterwards, others are to serve it."""
        seat = self._seats[workspace_id] = Seat(workspace_id)
        self._set_away(workspace_id, is_away=False)
        try:
            yield seat
        finally:
            if self._seats.get(workspace_id) is seat:
                del self._seats[workspace_id]
                self._set_away(workspace_id, is_away=True)

    def _set_away(self, workspace_id: str, *, is_away: bool) -> None:
        if is_away is not (workspace_id in self._away):
            self._away ^= {workspace_id}
            self._is_listing_known = False
        self._poked.set()

    async def start(self, lease: Lease, folder: Path) -> Start:
        """Make the journal's part of a workspace current, after its lease was taken.

        Args:
            folder: For the files of its messages.

        Raises:
            JournalError: The journal can't be used.
            MirrorError: The copy can't be read.
        """
        async with self._loading:
            return await self._shipper.begin(lease, has_file=lambda name: (folder / name).exists())

    async def flush(self, seat: Seat) -> None:
        """Wait until the mirror has all changes of a workspace, or its lease is lost.

        Raises:
            JournalError: The journal can't be used.
        """
        await self._shipper.flush(seat.workspace_id)

    async def give_back(self, seat: Seat) -> None:
        """Release the lease of a workspace that isn't served any more, once the mirror has all of its changes.

        If that takes too long, it is released later.
        """
        try:
            if not seat.lost.is_set():
                with contextlib.suppress(TimeoutError, JournalError, MirrorError):
                    async with asyncio.timeout(FLUSH_TIMEOUT):
                        await self._shipper.flush(seat.workspace_id)
                        self._shipper.end(seat.workspace_id)
                        async with self._calling:
                            await self._mirror.release(self._session, [seat.workspace_id])
        finally:
            if seat.lost.is_set():
                self._shipper.end(seat.workspace_id)
            seat.clear()
            self._renewed_at = float("-inf")
            self._poked.set()

    def _lost(self, workspace_id: str) -> None:
        if (seat := self._seats.get(workspace_id)) is not None:
            seat.lose()

    # The session

    async def _run(self) -> None:
        while True:
            self._poked.clear()
            try:
                async with self._calling:
                    await self._step()
            except SessionEndedError:
                # Perhaps with the tables, which were created anew.
                self._session, self._are_added = "", False
                self.gate.open_until(float("-inf"))
                for seat in self._seats.values():
                    seat.lose()
                for name in self._shipper.leased - self._served():
                    self._shipper.end(name)
            except MirrorError as exc:
                self._reachable_since = float("inf")
                if self.gate.renewal != str(exc):
                    self._notice(str(exc), exc.hint)
                self.gate.renewal = str(exc)
            except Exception as exc:  # a bug must not make all workspaces deaf
                self._reachable_since = float("inf")
                context = {"message": "sharing workspaces failed", "exception": exc}
                asyncio.get_running_loop().call_exception_handler(context)
            else:
                self.gate.renewal = NOT_RENEWED
            self.gate.check()
            await self._poked.wait(LOOK_INTERVAL)

    async def _step(self) -> None:
        if not self._is_listing_known and self._info.capacity:
            self._is_listing_known = True
            served = "\n".join(sorted(self._workspaces - self._away))
            self._describe(listing=hashlib.sha256(served.encode()).hexdigest()[:16])
        if not self._are_added:
            workspaces = self._workspaces
            await self._mirror.add(workspaces)
            self._are_added = workspaces == self._workspaces
        if not self._session:
            await self._begin()
        if self._clock() - self._renewed_at >= RENEW_INTERVAL:
            await self._renew()
        self._reachable_since = min(self._reachable_since, self._clock())
        await self._look()

    async def _begin(self) -> None:
        self._session = self._shipper.session = await self._mirror.begin(self._info, seconds=SESSION)

    def _is_dead(self, member: MemberState) -> bool:
        """Whether the process of a member has ended without releasing its leases."""
        if not self._info.machine or member.info.machine != self._info.machine:
            return False
        try:
            os.kill(member.info.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return member.info.pid == self._info.pid

    async def _renew(self) -> None:
        asked_at = self._clock()
        leases = {
            lease.workspace_id: lease for lease in await self._mirror.renew(self._session, self._info, seconds=SESSION)
        }
        for seat in self._seats.values():
            if seat.lease is not None and getattr(leases.get(seat.workspace_id), "epoch", None) != seat.lease.epoch:
                seat.lose()
        self._renewed_at = asked_at
        self.gate.open_until(asked_at + SESSION - MARGIN)
        await self._release_leftovers(leases)

    def _served(self) -> frozenset[str]:
        return frozenset(name for name, seat in self._seats.items() if seat.lease is not None)

    async def _release_leftovers(self, leases: Collection[str]) -> None:
        """Release leases that no workspace needs: given back without success, or taken without an acknowledgement."""
        for name in self._shipper.leased - self._served():
            if name not in leases or not await self._shipper.is_behind(name):
                self._shipper.end(name)
        if leftovers := set(leases) - self._served() - self._shipper.leased:
            await self._mirror.release(self._session, leftovers)

    async def _look(self) -> None:
        # Seats can be removed while the database is asked.
        now, seats = self._clock(), dict(self._seats)
        waiting = [name for name, seat in seats.items() if seat.lease is None]
        held = {name: now - seat.since for name, seat in seats.items() if seat.lease is not None}
        members = await self._mirror.members()
        for member in members:
            if member.session != self._session and self._is_dead(member):
                await self._mirror.end(member.session)
        found: Sequence[str] = ()
        if waiting and self._info.capacity:
            may_expire = now - self._reachable_since >= SESSION
            found = await self._mirror.free(near=self._choice(waiting), limit=FREE_AT_ONCE, expired=may_expire)
        free = [name for name in found if name in self._seats and self._seats[name].lease is None]
        self._free_since = {name: self._free_since.get(name, now) for name in free}
        plan = balance(
            self._session,
            self._info,
            members,
            workspaces=len(self._workspaces - self._away),
            held=held,
            releasing=[name for name in held if seats[name].leaving.is_set()],
            unclaimed=sum(now - since > UNCLAIMED_AFTER for since in self._free_since.values()),
        )
        for name in plan.release:
            seats[name].leaving.set()
        if plan.take and free:
            for lease in await self._mirror.take(self._session, free[: plan.take]):
                self._free_since.pop(lease.workspace_id, None)
                if (seat := self._seats.get(lease.workspace_id)) is not None:
                    seat.grant(lease, self._clock())
            # The others are to see at once how many it has.
            self._renewed_at = float("-inf")
            self._poked.set()
