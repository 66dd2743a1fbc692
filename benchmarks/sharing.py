"""A large fleet in virtual time: the real balancing code, and a model of the database that counts its work."""

import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import attrs

from molecule_connect.mirrors import MemberInfo, MemberState
from molecule_connect.worker.balance import balance

WORKSPACES, PROCESSES, CAPACITY = 100_000, 200, 1000
# Seconds between looks that are compared.
LOOKS = (1.0, 2.0)
MESSAGES_PER_SECOND = 1000
# Stored, started, answered, and accepted by the platform. At this rate, the messages of a process share none of them.
COMMITS_PER_MESSAGE = 4
# All in seconds. Times that are drawn at random are at most this long.
START_WITHIN = 10.0
RENEW_EVERY, SESSION = 5.0, 15.0
STATEMENT, DRAIN = 0.02, 2.0
UNCLAIMED_AFTER = 10.0
# Free workspaces that a member reads at a look at least, to notice those that nobody takes.
WATCHED = 20
LOST = 0.1
AWAY = 120.0


@attrs.define(eq=False)
class _Pool:
    """Free workspaces, from which random ones are drawn."""

    items: list[str] = attrs.field(factory=list)
    places: dict[str, int] = attrs.field(factory=dict)

    def add(self, workspace_id: str) -> None:
        self.places[workspace_id] = len(self.items)
        self.items.append(workspace_id)

    def remove(self, workspace_id: str) -> None:
        place, last = self.places.pop(workspace_id), self.items.pop()
        if last != workspace_id:
            self.items[place] = last
            self.places[last] = place


@attrs.define(eq=False)
class Database:
    """The tables of sessions and leases, and the work that they cause by kind of statement."""

    clock: "Clock"
    waits: list[float] = attrs.field(factory=list)
    free: _Pool = attrs.field(factory=_Pool)
    freed: dict[str, float] = attrs.field(factory=dict)
    sessions: dict[str, MemberState] = attrs.field(factory=dict)
    held: dict[str, set[str]] = attrs.field(factory=dict)
    statements: Counter[str] = attrs.field(factory=Counter)
    read: Counter[str] = attrs.field(factory=Counter)
    written: Counter[str] = attrs.field(factory=Counter)

    def count(self, kind: str, *, read: int = 0, written: int = 0) -> None:
        self.statements[kind] += 1
        self.read[kind] += read
        self.written[kind] += written

    def members(self) -> Sequence[MemberState]:
        self.count("members", read=len(self.sessions))
        return tuple(self.sessions.values())

    def some_free(self, limit: int) -> Sequence[str]:
        found = self.clock.random.sample(self.free.items, min(limit, len(self.free.items)))
        self.count("free", read=len(found))
        return found

    def take(self, session: str, workspace_ids: Sequence[str]) -> Sequence[str]:
        taken = [each for each in workspace_ids if each in self.free.places]
        for workspace_id in taken:
            self.free.remove(workspace_id)
            self.waits.append(self.clock.now - self.freed.pop(workspace_id))
        self.count("take", read=len(workspace_ids), written=len(taken) + 1)
        self._changed(session, taken, ())
        return taken

    def release(self, session: str, workspace_ids: Sequence[str]) -> None:
        self.count("release", read=len(workspace_ids), written=len(workspace_ids) + 1)
        self._changed(session, (), workspace_ids)

    def end(self, session: str) -> None:
        self._changed(session, (), tuple(self.held[session]))
        del self.sessions[session], self.held[session]

    def _changed(self, session: str, taken: Sequence[str], released: Sequence[str]) -> None:
        held = self.held[session]
        held.update(taken)
        held.difference_update(released)
        for workspace_id in released:
            self.free.add(workspace_id)
            self.freed[workspace_id] = self.clock.now
        self.sessions[session] = attrs.evolve(self.sessions[session], held=len(held))


@attrs.define(eq=False)
class Clock:
    """Virtual time."""

    random: random.Random
    now: float = 0.0
    _due: list[tuple[float, int, Callable[[], None]]] = attrs.field(factory=list)
    _numbers: "itertools.count[int]" = attrs.field(factory=itertools.count)

    def call_in(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._numbers), call))

    def run(self, until: float) -> None:
        while self._due and self._due[0][0] <= until:
            self.now, _, call = heapq.heappop(self._due)
            call()
        self.now = until


@attrs.define(eq=False)
class Process:
    """A member.

    Attributes:
        taken: When it took each of its leases.
        moves: Number of leases that it gave to other members.
    """

    clock: Clock
    database: Database
    session: str
    look_every: float
    taken: dict[str, float] = attrs.field(factory=dict)
    draining: set[str] = attrs.field(factory=set)
    moves: int = 0
    is_killed: bool = False
    _info: MemberInfo = attrs.field(init=False)
    _expiry: float = 0.0
    _unclaimed: int = 0

    def start(self) -> None:
        self._info = MemberInfo(host=self.session, pid=1, machine="", capacity=CAPACITY, listing="all")
        self.database.sessions[self.session] = MemberState(session=self.session, info=self._info, held=0, since=0.0)
        self.database.held[self.session] = set()
        self._renew()
        self._look()

    def _renew(self) -> None:
        if self.is_killed:
            return
        self.database.count("renew", read=len(self.taken), written=1)
        self._expiry = self.clock.now + SESSION
        self.clock.call_in(SESSION, self._expire)
        self.clock.call_in(RENEW_EVERY, self._renew)

    def _expire(self) -> None:
        if self.clock.now >= self._expiry and self.session in self.database.sessions:
            self.database.end(self.session)

    def _look(self) -> None:
        if self.is_killed:
            return
        now = self.clock.now
        members = self.database.members()
        plan = balance(
            self.session,
            self._info,
            members,
            workspaces=WORKSPACES,
            held={workspace_id: now - taken for workspace_id, taken in self.taken.items()},
            releasing=self.draining,
            unclaimed=self._unclaimed,
        )
        free = self.database.some_free(max(plan.take, WATCHED))
        self._unclaimed = sum(now - self.database.freed[each] > UNCLAIMED_AFTER for each in free)
        if plan.take and free:
            chosen = free[: plan.take]
            self.clock.call_in(self.clock.random.random() * STATEMENT, partial(self._take, chosen))
        for workspace_id in plan.release:
            self.draining.add(workspace_id)
            self.clock.call_in(self.clock.random.random() * DRAIN, partial(self._release, workspace_id))
        self.clock.call_in(self.look_every * self.clock.random.uniform(0.9, 1.1), self._look)

    def _take(self, workspace_ids: Sequence[str]) -> None:
        if not self.is_killed:
            self.taken |= dict.fromkeys(self.database.take(self.session, workspace_ids), self.clock.now)

    def _release(self, workspace_id: str) -> None:
        if not self.is_killed:
            self.database.release(self.session, [workspace_id])
            self.draining.remove(workspace_id)
            del self.taken[workspace_id]
            self.moves += 1


@attrs.define(eq=False)
class Fleet:
    """All processes that were ever started."""

    clock: Clock
    database: Database
    look_every: float
    processes: list[Process] = attrs.field(factory=list)

    def start(self, count: int) -> None:
        for _ in range(count):
            process = Process(self.clock, self.database, f"s{len(self.processes):03}", self.look_every)
            self.processes.append(process)
            self.clock.call_in(self.clock.random.random() * START_WITHIN, process.start)

    def kill(self, count: int) -> None:
        running = [process for process in self.processes if not process.is_killed]
        for process in self.clock.random.sample(running, count):
            process.is_killed = True

    def spread(self) -> int:
        counts = [state.held for state in self.database.sessions.values()]
        return max(counts) - min(counts)

    def watch(self, what: str, *, seconds: float, members: int) -> None:
        """Run for *seconds*, and print when everything was served and balanced among *members*."""
        began, moves = self.clock.now, sum(process.moves for process in self.processes)
        served = balanced = None
        while self.clock.now < began + seconds:
            self.clock.run(self.clock.now + 0.1)
            after = self.clock.now - began
            is_complete = len(self.database.sessions) == members and not self.database.free.items
            if is_complete and served is None:
                served = after
            is_balanced = is_complete and self.spread() <= 1
            balanced = (balanced or after) if is_balanced else None
        moved = sum(process.moves for process in self.processes) - moves
        waits = sorted(self.database.waits)
        self.database.waits.clear()
        print(
            f"sharing: {what}: all served after {_seconds(served)}, balanced after {_seconds(balanced)}, "
            f"{moved} moves; imbalance {self.spread()} at the end; "
            f"a lease was free for at most {waits[-1]:.1f} s, 99 % for at most {waits[len(waits) * 99 // 100]:.1f} s"
        )


def sharing() -> None:
    """100,000 workspaces on 200 processes: what the database does, and how long it takes to share them."""
    for look_every in LOOKS:
        began = time.perf_counter()
        clock = Clock(random.Random(1))
        database = Database(clock)
        for number in range(WORKSPACES):
            database.free.add(f"w{number}")
            database.freed[f"w{number}"] = 0.0
        fleet = Fleet(clock, database, look_every)
        print(f"sharing: {WORKSPACES} workspaces, {PROCESSES} processes of {CAPACITY}, a look every {look_every:.0f} s")
        fleet.start(PROCESSES)
        fleet.watch("cold start", seconds=120, members=PROCESSES)
        _work(database, "cold start", seconds=120)
        clock.run(clock.now + 60)
        _work(database, "idle", seconds=60)
        lost = round(PROCESSES * LOST)
        fleet.kill(lost)
        fleet.watch(f"{lost} processes killed", seconds=AWAY, members=PROCESSES - lost)
        _work(database, "after the kill", seconds=AWAY)
        fleet.start(lost)
        fleet.watch(f"{lost} processes added", seconds=120, members=PROCESSES)
        _work(database, "after they were added", seconds=120)
        ships = MESSAGES_PER_SECOND * COMMITS_PER_MESSAGE
        print(f"sharing: {MESSAGES_PER_SECOND} messages/s add {ships} transactions/s")
        print(f"sharing: simulated in {time.perf_counter() - began:.0f} s")


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f} s"


def _work(database: Database, what: str, *, seconds: float) -> None:
    """Print the statements and rows per second by kind, and begin to count anew."""
    total = database.statements.total() / seconds
    print(f"sharing: {what}: {total:.0f} statements/s, by kind with rows read and written per second:")
    for kind, count in sorted(database.statements.items()):
        read, written = database.read[kind] / seconds, database.written[kind] / seconds
        print(f"  {kind:8} {count / seconds:8.1f} {read:10.0f} {written:8.0f}")
    for counter in (database.statements, database.read, database.written):
        counter.clear()
