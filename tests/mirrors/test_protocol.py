"""No reply is sent without a lease, none is lost and none is sent twice, whatever happens to machines and database."""

import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.mirrors.model import Machine, World

EXAMPLES = int(os.environ.get("MOLECULE_MODEL_EXAMPLES", "30"))
# Seconds after the last fault within which all workspaces are served.
HEALED = 30.0
# Seconds in which the messages of a play are answered one after the other.
BACKLOG = 120


@attrs.frozen
class Write:
    """A peer writes."""

    workspace: int

    def happen(self, world: World) -> None:
        world.platform.write(world.workspaces[self.workspace % len(world.workspaces)])


@attrs.frozen
class Down:
    """The database is down."""

    seconds: float

    def happen(self, world: World) -> None:
        world.database.is_down = True
        world.fault(None, self.seconds)
        world.later(self.seconds, lambda: setattr(world.database, "is_down", False))


@attrs.frozen
class Refuse:
    """The platform refuses replies, which are sent again and again."""

    seconds: float

    def happen(self, world: World) -> None:
        world.platform.refuses = True
        world.later(self.seconds, lambda: setattr(world.platform, "refuses", False))


@attrs.frozen
class Lost:
    """The database commits, and its acknowledgement doesn't arrive."""

    machine: int
    count: int = 1

    def happen(self, world: World) -> None:
        machine = _machine(world, self.machine)
        if machine.life is not None:
            machine.life.wire.lost_answers = self.count
            world.fault(machine, 1.0)


@attrs.frozen
class Cut:
    """A machine can't reach the database."""

    machine: int
    seconds: float

    def happen(self, world: World) -> None:
        machine = _machine(world, self.machine)
        machine.is_cut = True
        world.fault(machine, self.seconds)
        world.later(self.seconds, lambda: setattr(machine, "is_cut", False))


@attrs.frozen
class Pause:
    """A process is stopped after some iterations of its loop, and continues later."""

    machine: int
    seconds: float
    steps: int = 1

    def happen(self, world: World) -> None:
        machine = _machine(world, self.machine)

        def stop() -> None:
            machine.is_stopped = True
            world.fault(machine, self.seconds)
            world.later(self.seconds, lambda: setattr(machine, "is_stopped", False))

        machine.fuse, machine.blow = self.steps, stop


@attrs.frozen
class Kill:
    """A process is killed after some iterations of its loop, and starts again later.

    Attributes:
        wipe: The disk is lost.
        reboot: Nobody can tell that the earlier process has ended.
    """

    machine: int
    seconds: float
    steps: int = 1
    wipe: bool = False
    reboot: bool = False

    def happen(self, world: World) -> None:
        machine = _machine(world, self.machine)

        def kill() -> None:
            machine.kill(wipe=self.wipe)
            machine.boot = "" if self.reboot else machine.name
            world.later(self.seconds, machine.start)

        machine.fuse, machine.blow = self.steps, kill


@attrs.frozen
class Restart:
    """A process is asked to stop, and starts again later."""

    machine: int
    seconds: float

    def happen(self, world: World) -> None:
        machine = _machine(world, self.machine)
        if machine.life is not None:
            machine.life.stop.set()
        world.later(self.seconds, machine.start)


@attrs.frozen
class Reload:
    """A workspace is removed from the list of a machine, and added again later."""

    machine: int
    workspace: int
    seconds: float

    def happen(self, world: World) -> None:
        life = _machine(world, self.machine).life
        if life is not None:
            workspace = world.workspaces[self.workspace % len(world.workspaces)]
            life.reloads.append(life.loop.create_task(life.reload(workspace, self.seconds)))
            # The workspace may drain first.
            world.later(self.seconds / 0.95 + 20.0, lambda: None)


@attrs.frozen
class Fail:
    """A worker ends with an error of its own."""

    machine: int
    workspace: int

    def happen(self, world: World) -> None:
        life = _machine(world, self.machine).life
        if life is not None:
            life.fail(world.workspaces[self.workspace % len(world.workspaces)])


Event = Write | Down | Refuse | Lost | Cut | Pause | Kill | Restart | Reload | Fail
Plan = Sequence[tuple[float, Event]]


def _machine(world: World, number: int) -> Machine:
    return world.machines[number % len(world.machines)]


def play(folder: Path, plan: Plan, *, seed: int = 0, rates: Sequence[float] = (1.0, 1.0), workspaces: int = 2) -> World:
    """Let the events of *plan* happen, each after a wait in seconds; then everything heals."""
    names = tuple(f"ws-{number}" for number in range(workspaces))
    world = World(Path(tempfile.mkdtemp(dir=folder)), random.Random(seed), names, tuple(rates))
    try:
        for machine in world.machines:
            machine.start()
        world.chat()
        for seconds, event in plan:
            world.run(seconds)
            event.happen(world)
        world.is_quiet = True
        for machine in world.machines:
            machine.fuse = 0
        while world.pending:
            world.run(max(world.pending) - world.now + 0.1)
        for machine in world.machines:
            machine.start()
        for name in names:
            world.platform.write(name)
        healed = world.now
        world.run(HEALED)
        served = {
            row_id.partition(":")[0]
            for row_id, sends in world.platform.sends.items()
            if any(send.time >= healed for send in sends)
        }
        assert served == set(names), f"not served since {healed}: {world.database.leases}"
        for _ in range(BACKLOG):
            if world.is_done:
                break
            world.run(1.0)
        rows = {item.row_id for items in world.platform.rows.values() for item in items}
        assert {row_id for row_id, sends in world.platform.sends.items() if sends} == rows
        assert world.is_done
    finally:
        world.close()
    return world


seconds = st.integers(0, 80).map(lambda tenths: tenths / 10)
long = st.sampled_from([0.1, 1.0, 3.0, 6.0, 14.0, 20.0, 60.0])
number = st.integers(0, 2)
steps = st.integers(1, 200)
plans = st.lists(
    st.tuples(
        seconds,
        st.one_of(
            st.builds(Write, number),
            st.builds(Down, long),
            st.builds(Refuse, long),
            st.builds(Lost, number, st.integers(1, 3)),
            st.builds(Cut, number, long),
            st.builds(Pause, number, long, steps),
            st.builds(Kill, number, long, steps, st.booleans(), st.booleans()),
            st.builds(Restart, number, long),
            st.builds(Reload, number, number, long),
            st.builds(Fail, number, number),
        ),
    ),
    max_size=14,
)
rates = st.lists(st.sampled_from([0.95, 0.98, 1.0, 1.02, 1.05]), min_size=2, max_size=3)


@pytest.mark.timeout(0 if EXAMPLES > 100 else 120)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(plan=plans, seed=st.integers(0, 1 << 16), rates=rates, workspaces=st.integers(1, 3))
# A process is killed while a reply waits for the database, and keeps its journal.
@example(
    plan=[(3.0, Write(0)), (1.0, Cut(0, 3.0)), (2.5, Kill(0, 1.0)), (1.5, Write(0))], seed=0, rates=[1.0], workspaces=1
)
# A workspace is removed from the list of a machine that is taking its lease.
@example(plan=[(0.35, Reload(0, 0, 0.1))] * 8, seed=3, rates=[1.0, 1.0], workspaces=2)
# Leases are given back while the database is down.
@example(
    plan=[(10.0, Write(0)), (0.3, Down(7.0)), (0.1, Fail(0, 0)), (0.0, Fail(1, 0))],
    seed=2,
    rates=[1.0, 1.0],
    workspaces=2,
)
def test_no_reply_is_lost_or_sent_twice(
    tmp_path: Path, plan: Plan, seed: int, rates: Sequence[float], workspaces: int
) -> None:
    play(tmp_path, plan, seed=seed, rates=rates, workspaces=workspaces)
