"""Machines with clocks of their own, which can be stopped and killed at any step, around one database in memory.

Each machine has an event loop. The world runs the loops one iteration at a time, and moves its clock to the next timer
once all of them wait, so that a machine that isn't run is a machine that was stopped.
"""

import asyncio
import contextlib
import json
import random
import selectors
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from tests.mirrors.memory import Database, MemoryMirror
from tests.worker.kit import EPOCH, Disk, ThreadlessLoop, inbound

from molecule_connect import events
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.errors import MoleculeError
from molecule_connect.files import make_folder
from molecule_connect.flag import Flag
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import Conversation, State, StoredMessage, StoredReply
from molecule_connect.mirrors import Lease, MemberInfo, MemberState, MirrorUnreachableError, Row
from molecule_connect.models import Inbound, TextPart
from molecule_connect.platform.transports import Transports
from molecule_connect.runtime import Runtime, WorkspaceRunner
from molecule_connect.worker.fleet import Fleet
from molecule_connect.worker.sharing import LeaseLostError, SeatGate, SharedJournal, Sharing

PEER = "peer-1"
# Seconds that a send and a call of the database take at most, each way; and a running message when a worker stops.
SEND, CALL, GRACE = 0.3, 0.3, 3.0
# Seconds in which a machine without a fault has stored in the database that a reply was sent, and those that a
# retry can be away after a fault.
RECORDING, RETRYING = 1.5, 2.5


class _Stepping(selectors.DefaultSelector):
    """Ends each run of the loop after one iteration."""

    loop: asyncio.AbstractEventLoop
    timeout: float | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.timeout = timeout
        self.loop.stop()
        return super().select(0)


class SteppedLoop(ThreadlessLoop):
    """An event loop that runs one iteration at a time, by a given clock. Work for threads is done at once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._stepping = _Stepping()
        self._stepping.loop = self
        self._given = clock
        super().__init__(self._stepping)

    def time(self) -> float:
        return self._given()

    def step(self) -> float | None:
        """Run one iteration. Returns for how many seconds it would have waited before; None for ever."""
        self.run_forever()
        return self._stepping.timeout


class Dead(BaseException):
    """The process was killed: nothing that it does after this has an effect."""


@attrs.frozen(kw_only=True)
class Send:
    """A reply that arrived at the platform."""

    text: str
    machine: str
    life: int
    epoch: int
    time: float


@attrs.define
class Platform:
    """Takes replies, and checks each of them against the database at the moment when it arrives.

    Attributes:
        refuses: It takes none.
    """

    world: "World"
    refuses: bool = False
    rows: dict[str, list[Inbound]] = attrs.field(factory=lambda: defaultdict(list))
    sends: dict[str, list[Send]] = attrs.field(factory=lambda: defaultdict(list))

    def write(self, workspace: str) -> str:
        """A peer writes to *workspace*. Returns the id of the row."""
        number = len(self.rows[workspace])
        row_id = f"{workspace}:{number}"
        time = round((EPOCH + self.world.now) * 1e6)
        self.rows[workspace].append(inbound("hi", row_id=row_id, time=time, seq=number, caller_id=PEER))
        return row_id

    def send(self, life: "Life", workspace: str, epoch: int, row_id: str, text: str) -> None:
        """A reply arrives."""
        if life.is_dead:
            raise Dead
        world, sent = self.world, self.sends[row_id]
        now = Send(text=text, machine=life.machine.name, life=life.number, epoch=epoch, time=world.now)
        lease = world.database.leases[workspace]
        session = world.database.sessions.get(lease.session)
        if session is None or session.expires <= world.now or lease.session != life.wire.session:
            world.fail(f"{row_id} was sent without a lease: {now}")
        elif lease.epoch != epoch:
            world.fail(f"{row_id} was sent with a lease of another epoch ({lease.epoch}): {now}")
        state, stored = world.stored(workspace, row_id)
        if state not in (State.ANSWERED.value, State.DONE.value) or text not in stored:
            world.fail(f"{row_id} was sent before the database had its reply ({state}, {stored}): {now}")
        if state == State.DONE.value:
            world.fail(f"{row_id} was sent although the database says that it was: {now}")
        for before in sent:
            if before.text != text:
                world.fail(f"{row_id} was answered twice: {before} {now}")
            if not world.may_have_lost(before):
                world.fail(f"{row_id} was sent twice: {before} {now}")
        sent.append(now)


class Wire(MemoryMirror):
    """A machine's way to the database: slow, and cut off at times.

    Attributes:
        session: The session that it began last.
        lost_answers: The number of calls whose answers don't arrive.
    """

    def __init__(self, world: "World", life: "Life") -> None:
        super().__init__(world.database)
        self._world, self._life = world, life
        self.session = ""
        self.lost_answers = 0

    async def _request(self) -> None:
        await self._pass()

    async def _answer(self) -> None:
        if self.lost_answers:
            self.lost_answers -= 1
            raise MirrorUnreachableError("the answer was lost")
        await self._pass()

    async def _pass(self) -> None:
        if self._life.is_dead:
            raise Dead
        machine = self._life.machine
        if machine.is_cut:
            await asyncio.sleep(self._world.random.choice([0.1, 1.0, 4.0]))
            raise MirrorUnreachableError("the connection was cut")
        await asyncio.sleep(self._world.random.choice([0.0, 0.0, 0.01, CALL]))
        if machine.is_cut:
            raise MirrorUnreachableError("the connection was cut")

    async def begin(self, info: MemberInfo, *, seconds: float) -> str:
        await self._request()
        self.session = session = await super().begin(info, seconds=seconds)
        await self._answer()
        return session

    async def renew(self, session: str, info: MemberInfo, *, seconds: float) -> Sequence[Lease]:
        await self._request()
        leases = await super().renew(session, info, seconds=seconds)
        await self._answer()
        return leases

    async def end(self, session: str) -> None:
        await self._request()
        if session == self.session:
            self._world.check_release(self._life, self._held(session))
        await super().end(session)
        await self._answer()

    async def members(self) -> Sequence[MemberState]:
        await self._request()
        members = await super().members()
        await self._answer()
        return members

    async def add(self, workspace_ids: Collection[str]) -> None:
        await self._request()
        await super().add(workspace_ids)
        await self._answer()

    async def free(self, *, near: str, limit: int, expired: bool) -> Sequence[str]:
        await self._request()
        free = await super().free(near=near, limit=limit, expired=expired)
        await self._answer()
        return free

    async def take(self, session: str, workspace_ids: Collection[str]) -> Sequence[Lease]:
        await self._request()
        leases = await super().take(session, workspace_ids)
        for lease in leases:
            self._world.taken(lease)
        await self._answer()
        return leases

    async def release(self, session: str, workspace_ids: Collection[str]) -> None:
        await self._request()
        self._world.check_release(self._life, self._held(session) & set(workspace_ids))
        await super().release(session, workspace_ids)
        await self._answer()

    async def ship(
        self, session: str, epochs: Mapping[str, int], rows: AsyncIterator[Mapping[str, Sequence[Row]]]
    ) -> Mapping[str, int]:
        await self._request()
        commits = await super().ship(session, epochs, rows)
        await self._answer()
        return commits

    async def load(self, workspace_id: str) -> AsyncGenerator[Sequence[Row], None]:
        await self._request()
        async for part in super().load(workspace_id):
            yield part
            await self._answer()

    def _held(self, session: str) -> set[str]:
        return {name for name, lease in self._world.database.leases.items() if lease.session == session}


class Runner(WorkspaceRunner):
    """A runner whose worker reads, answers and sends in the simplest way, with the real journal."""

    def __init__(self, life: "Life", workspace_id: str, runtime: Runtime) -> None:
        super().__init__(WorkspaceSettings(workspace_id=workspace_id, backend="fake"), runtime)
        self.life = life

    async def _serve(self, stop: Flag) -> None:
        assert self._seat is not None
        assert self._seat.lease is not None
        assert self._runtime.sharing is not None
        gate = SeatGate(self._runtime.sharing.gate, self._seat)
        worker = ModelWorker(self.life, self.workspace_id, gate, self._seat.lease.epoch)
        self.worker = self._host = worker  # type: ignore[assignment]
        await worker.run(stop)

    def fail(self) -> None:
        """End the worker with an error of its own."""
        if self._host is not None:
            self.worker.lose(MoleculeError("an error of its own"))  # type: ignore[arg-type]


class ModelWorker:
    """Answers the messages of one peer in order."""

    def __init__(self, life: "Life", workspace_id: str, gate: SeatGate, epoch: int) -> None:
        self._life, self._workspace_id, self._gate, self._epoch = life, workspace_id, gate, epoch
        self._world = life.machine.world
        self._journal = life.journal.of(workspace_id)
        # A send is never cut off by the end of the grace period.
        self._is_sending = False
        self._is_draining, self._is_lost = Flag(), Flag()
        self._error: MoleculeError | None = None

    def lose(self, error: MoleculeError) -> None:
        self._error = error
        self._is_lost.set() if isinstance(error, LeaseLostError) else self._is_draining.set()

    async def run(self, stop: Flag) -> None:
        await self._journal.recover()
        work = asyncio.ensure_future(self._work())
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, self._is_draining, self._is_lost)]
        try:
            await asyncio.wait([work, *waits], return_when=asyncio.FIRST_COMPLETED)
            self._is_draining.set()
            await asyncio.wait([work, waits[-1]], timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
            while self._is_sending and not self._is_lost.is_set():  # noqa: ASYNC110 - the time is virtual
                await asyncio.sleep(0.01)
        finally:
            for task in (work, *waits):
                task.cancel()
            await asyncio.gather(work, *waits, return_exceptions=True)
            await self._journal.requeue_running()
        if self._error is not None:
            raise self._error
        if not work.cancelled():
            work.result()

    async def _work(self) -> None:
        while not self._is_draining.is_set():
            rows = self._world.platform.rows[self._workspace_id]
            await self._journal.add(rows, now=0)
            message = self._journal.next(Conversation(PEER, None))
            if message is None or not self._gate.is_open:
                await asyncio.sleep(0.2)
            elif message.state is State.RUNNING:
                await self._journal.requeue(message, counts=False)
            elif message.state is State.ANSWERED:
                await self._send(message)
            else:
                await self._answer(message)

    async def _answer(self, message: StoredMessage) -> None:
        running = await self._journal.start(message)
        if running is None:
            return
        await asyncio.sleep(self._world.random.choice([0.0, 0.1, 1.0]))
        reply = StoredReply(parts=(TextPart(self._world.new_text(self._life)),))
        answered = await self._journal.store_reply(running, reply, at=message.time, send_print=None)
        if answered is not None:
            await self._send(answered)

    async def _send(self, message: StoredMessage) -> None:
        assert message.reply is not None
        if not self._gate.is_open or self._world.platform.refuses:
            await asyncio.sleep(self._world.random.choice([0.0, 0.01, 0.2]))
            return
        text = message.reply.text
        self._world.platform.send(self._life, self._workspace_id, self._epoch, message.row_id, text)
        self._is_sending = True
        await asyncio.sleep(self._world.random.choice([0.0, 0.01, SEND]))
        self._journal.mark_sent(message, at=1)
        self._is_sending = False


@attrs.define(eq=False)
class Life:
    """A process of a machine, from its start to its end."""

    machine: "Machine"
    number: int
    is_dead: bool = False
    loop: SteppedLoop = attrs.field(init=False)
    wire: Wire = attrs.field(init=False)
    journal: Journal = attrs.field(init=False)
    sharing: Sharing | None = None
    runners: dict[str, tuple[Runner, Flag, "asyncio.Task[None]"]] = attrs.field(factory=dict)
    away: set[str] = attrs.field(factory=set)
    reloads: "list[asyncio.Task[None]]" = attrs.field(factory=list)
    stop: Flag = attrs.field(factory=Flag)
    task: "asyncio.Task[None]" = attrs.field(init=False)
    _runtime: Runtime = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        world, machine = self.machine.world, self.machine
        # A process that starts after a reboot has another clock.
        offset = world.random.choice([0.0, 1000.0])
        self.loop = SteppedLoop(lambda: offset + world.now * machine.rate)
        self.loop.set_exception_handler(self._unexpected)
        self.wire = Wire(world, self)
        self.task = self.loop.create_task(self._live())

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self.is_dead:
            self.machine.world.fail(f"{self.machine.name}: {context.get('message')} {context.get('exception')!r}")

    def _alive(self) -> None:
        if self.is_dead:
            raise Dead

    async def _live(self) -> None:
        world, machine = self.machine.world, self.machine
        make_folder(machine.folder)
        disk = Disk(before=self._alive)
        async with Journal.open(machine.folder, wall=lambda: EPOCH + world.now, opener=disk.open) as self.journal:
            shared = SharedJournal(mirror=self.wire, machine=machine.boot, clock=self.loop.time)
            sharing = self.sharing = Sharing(shared, self.journal, notice=self._notice, choice=world.random.choice)
            async with sharing.running(world.workspaces):
                self._runtime = Runtime(
                    state_dir=machine.folder,
                    transports=Transports(),
                    journal=self.journal,
                    listener=events.ignore,
                    fleet=Fleet(dict),
                    sharing=sharing,
                )
                for workspace in world.workspaces:
                    self.serve(workspace)
                await self.stop.wait()
                sharing.stop()
                for _, stop, _ in self.runners.values():
                    stop.set()
                await asyncio.gather(*(task for _, _, task in self.runners.values()))

    def _notice(self, text: str, hint: str) -> None:
        if self.machine.world.says is not None:
            self.machine.world.says(f"{self.machine.world.now:.2f} {self.machine.name}: {text}")

    def serve(self, workspace: str) -> None:
        """Start to serve a workspace. It is started again after errors."""
        runner, stop = Runner(self, workspace, self._runtime), Flag()
        self.runners[workspace] = runner, stop, self.loop.create_task(self._run(workspace, runner, stop))

    async def _run(self, workspace: str, runner: Runner, stop: Flag) -> None:
        while not stop.is_set():
            with contextlib.suppress(MoleculeError):
                await runner.run(stop)

    async def reload(self, workspace: str, seconds: float) -> None:
        """The workspace is removed from the list of this process, and added again after a while."""
        assert self.sharing is not None
        world = self.machine.world
        if workspace in self.away or self.stop.is_set() or workspace not in self.runners:
            return
        self.away.add(workspace)
        _, stop, task = self.runners[workspace]
        self.sharing.change(set(world.workspaces) - self.away)
        stop.set()
        await task
        await asyncio.sleep(seconds)
        self.away.discard(workspace)
        if not self.stop.is_set():
            self.sharing.change(set(world.workspaces) - self.away)
            self.serve(workspace)

    def fail(self, workspace: str) -> None:
        """The worker of a workspace ends with an error of its own."""
        if workspace in self.runners:
            self.runners[workspace][0].fail()

    def kill(self) -> None:
        """End at once. Afterwards, no file is open and no task left."""
        self.is_dead = True
        for _ in range(50):
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            self.loop.step()
            if not tasks:
                break
        self.loop.close()


@attrs.define(eq=False)
class Machine:
    """A machine with its own disk and clock.

    Attributes:
        rate: How fast its clock goes, against that of the database.
        boot: What identifies it until it is restarted; empty if that isn't known.
        fuse: The number of iterations after which ``blow`` is called.
    """

    name: str
    world: "World"
    folder: Path
    rate: float = 1.0
    boot: str = ""
    is_cut: bool = False
    is_stopped: bool = False
    life: Life | None = None
    lives: int = 0
    fuse: int = 0
    starts_again: bool = False
    blow: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Start its process, unless it runs; after its end, if it is stopping."""
        if self.life is None:
            self.lives += 1
            self.life = Life(self, self.lives)
        elif self.life.stop.is_set():
            self.starts_again = True

    def kill(self, *, wipe: bool) -> None:
        """Kill its process, and perhaps lose its disk."""
        self.is_stopped = False
        if self.life is not None:
            self.world.fault(self, 0.0)
            self.life.kill()
            self.life = None
        if wipe and self.folder.exists():
            for path in self.folder.iterdir():
                if path.is_file():
                    path.unlink()

    def drive(self) -> float:
        """Run its process until it waits. Returns for how long, in seconds of the world's clock."""
        for _ in range(20_000):
            if self.life is None or self.is_stopped:
                return float("inf")
            wait = self.life.loop.step()
            if self.fuse:
                self.fuse -= 1
                if not self.fuse:
                    self.blow()
                    continue
            if self.life.task.done():
                self.ended()
            elif wait is None:
                return float("inf")
            elif wait > 0:
                return wait / self.rate
        raise AssertionError(f"{self.name} never waits")

    def ended(self) -> None:
        """Its process has ended by itself."""
        assert self.life is not None
        if (error := self.life.task.exception()) is not None:
            self.world.fail(f"{self.name} ended with {error!r}")
        self.life.kill()
        self.life = None
        if self.starts_again:
            self.starts_again = False
            self.start()


@attrs.define(eq=False)
class World:
    """A database, a platform, and machines, in virtual time."""

    folder: Path
    random: random.Random
    workspaces: tuple[str, ...] = ("ws-a", "ws-b")
    rates: tuple[float, ...] = (1.0, 1.0)
    now: float = 0.0
    says: Callable[[str], None] | None = None
    is_quiet: bool = False
    failures: list[str] = attrs.field(factory=list)
    epochs: dict[str, int] = attrs.field(factory=dict)
    faults: list[tuple[str, float, float]] = attrs.field(factory=list)
    database: Database = attrs.field(init=False)
    platform: Platform = attrs.field(init=False)
    machines: list[Machine] = attrs.field(init=False)
    _timers: list[tuple[float, int, Callable[[], None]]] = attrs.field(factory=list)
    _texts: int = 0

    def __attrs_post_init__(self) -> None:
        self.database = Database(lambda: self.now)
        self.platform = Platform(self)
        self.machines = [
            Machine(f"m{number}", self, self.folder / f"m{number}", rate=rate, boot=f"m{number}")
            for number, rate in enumerate(self.rates)
        ]

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while not self.failures:
            wait = min(machine.drive() for machine in self.machines)
            self._timers.sort(key=lambda timer: timer[:2])
            then = min(self.now + wait, self._timers[0][0] if self._timers else end, end)
            if then >= end:
                self.now = end
                break
            self.now = max(self.now, then)
            while self._timers and self._timers[0][0] <= self.now:
                self._timers.pop(0)[2]()
        if self.failures:
            raise AssertionError("\n".join(self.failures))

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something after a while."""
        self._timers.append((self.now + seconds, len(self._timers), call))

    @property
    def is_done(self) -> bool:
        """Whether the database says that all messages were answered."""
        rows = [(name, item.row_id) for name, items in self.platform.rows.items() for item in items]
        return all(self.stored(name, row_id)[0] == State.DONE.value for name, row_id in rows)

    def chat(self) -> None:
        """Peers write from time to time, until ``is_quiet``."""
        if not self.is_quiet:
            self.platform.write(self.random.choice(self.workspaces))
            self.later(self.random.choice([0.2, 0.5, 2.0, 8.0]), self.chat)

    @property
    def pending(self) -> list[float]:
        """When something is going to happen."""
        return [when for when, _, _ in self._timers]

    def close(self) -> None:
        """End all processes."""
        for machine in self.machines:
            if machine.life is not None:
                machine.life.kill()
                machine.life = None

    # Faults

    def fault(self, machine: Machine | None, seconds: float) -> None:
        """From now on, a machine, or all of them, may not store what they did for a while."""
        for one in self.machines if machine is None else [machine]:
            self.faults.append((one.name, self.now, self.now + seconds))

    def may_have_lost(self, send: Send) -> bool:
        """Whether a fault may have kept a machine from storing that it sent a reply."""
        return any(
            name == send.machine and since <= send.time + RECORDING and send.time <= until + RETRYING
            for name, since, until in self.faults
        )

    # What must hold

    def fail(self, text: str) -> None:
        """Something happened that must not."""
        self.failures.append(f"at {self.now:.3f}: {text}")

    def taken(self, lease: Lease) -> None:
        """A lease was taken."""
        if lease.epoch <= self.epochs.get(lease.workspace_id, 0):
            self.fail(f"the epoch of {lease} was there before")
        self.epochs[lease.workspace_id] = lease.epoch

    def check_release(self, life: Life, workspace_ids: Collection[str]) -> None:
        """A process that isn't killed gives leases back: the database has everything that it did."""
        for workspace in workspace_ids:
            epoch = self.database.leases[workspace].epoch
            for row_id, sends in self.platform.sends.items():
                if row_id.startswith(f"{workspace}:") and sends:
                    last = sends[-1]
                    is_own = (last.machine, last.life, last.epoch) == (life.machine.name, life.number, epoch)
                    if is_own and self.stored(workspace, row_id)[0] != State.DONE.value:
                        self.fail(f"{workspace} was released before the database knew that {row_id} was sent: {last}")

    def stored(self, workspace: str, row_id: str) -> tuple[str, str]:
        """The state and the reply of a message in the database."""
        row = self.database.rows.get(workspace, {}).get(("message", json.dumps([row_id])))
        if row is None or row.data is None:
            return "", ""
        data = json.loads(row.data)
        return data["state"], data["answer"] or ""

    def new_text(self, life: Life) -> str:
        """A reply that was never given before."""
        self._texts += 1
        return f"<{life.machine.name}.{life.number}.{self._texts}>"
