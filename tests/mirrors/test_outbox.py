"""The copy of a workspace is what its journal says, however its rows are changed and whenever they are shipped."""

import asyncio
import contextlib
import copy
import functools
import json
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.mirrors.memory import Database, MemoryMirror
from tests.worker.kit import Disk, VirtualLoop, inbound, open_journal, other_process

from molecule_connect.errors import JournalError
from molecule_connect.files import make_folder
from molecule_connect.journal import copies, outbox, schema
from molecule_connect.journal.journal import FILE_NAME, Journal
from molecule_connect.journal.models import Conversation, StoredReply
from molecule_connect.journal.outbox import Start
from molecule_connect.journal.shipper import Shipper
from molecule_connect.mirrors import Lease, MemberInfo
from molecule_connect.models import FeedPosition, TextPart

EXAMPLES = int(os.environ.get("MOLECULE_MODEL_EXAMPLES", "30"))
INFO = MemberInfo(host="host", pid=1, machine="", capacity=9, listing="")
SHARED, OTHER, PLAIN = "ws-shared", "ws-other", "ws-plain"
# Columns whose values the journal understands.
MEANINGFUL: dict[str, Sequence[Any]] = {
    "kind": ("message", "echo"),
    "state": ("received", "answered", "done", "dead"),
    "time": (1, 2, 1_800_000_000_000_000),
}


@attrs.frozen
class Open:
    """A journal whose changes are shipped.

    Attributes:
        session: Has the leases.
    """

    journal: Journal
    shipper: Shipper
    mirror: MemoryMirror
    session: str

    async def begin(self, workspace_id: str) -> Start:
        (lease,) = await self.mirror.take(self.session, [workspace_id])
        return await self.shipper.begin(lease, has_file=lambda name: True)

    async def give_back(self, *workspace_ids: str) -> None:
        for name in workspace_ids:
            await self.shipper.flush(name)
            self.shipper.end(name)
        await self.mirror.release(self.session, workspace_ids)


@contextlib.asynccontextmanager
async def opened(
    folder: Path, database: Database, kind: type[MemoryMirror] = MemoryMirror, disk: Disk | None = None
) -> AsyncIterator[Open]:
    mirror = kind(database)
    make_folder(folder)
    async with (
        open_journal(folder, disk) as journal,
        journal.sharing(mirror, lost=lambda name: None, notice=lambda text, hint: None) as shipper,
    ):
        shipper.session = await mirror.begin(INFO, seconds=1e9)
        yield Open(journal, shipper, mirror, shipper.session)


async def read(journal: Journal, time: int) -> None:
    await journal.of(SHARED).set_position(FeedPosition(last_read=time))


def database() -> Database:
    return Database(asyncio.get_running_loop().time)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run an example of a property, on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(test)


@contextlib.contextmanager
def reading(journal: Journal) -> Iterator[sqlite3.Connection]:
    with other_process(journal.path) as db:
        yield db


def in_journal(journal: Journal, workspace_id: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of each table in the order of the journal, without numbers that it assigns and empty columns."""
    found = {}
    with reading(journal) as db:
        db.row_factory = sqlite3.Row
        for table in outbox.KEYS:
            rowid = "" if table in ("file_use", "peer_name", "cost") else " ORDER BY rowid"
            rows = db.execute(f"SELECT * FROM {table} WHERE workspace_id=?{rowid}", (workspace_id,)).fetchall()
            found[table] = [
                {
                    name: value
                    for name, value in dict(row).items()
                    if name not in ("workspace_id", "arrival", "note") and value is not None
                }
                for row in rows
            ]
    return found


def in_copy(database: Database, workspace_id: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {table: [] for table in outbox.KEYS}
    for row in database.rows.get(workspace_id, {}).values():
        assert row.data is not None
        values = json.loads(row.data)
        if row.table == "message":
            assert row.body is not None
            texts = zip(("parts", "raw"), json.loads(row.body), strict=True)
            values |= {name: value for name, value in texts if value is not None}
            assert row.state == (values["state"] if values["kind"] == "message" else "")
            assert row.time == values["time"]
        found[row.table].append(values)
    return found


def counted(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Counter[str]]:
    return {table: Counter(json.dumps(row, sort_keys=True) for row in found) for table, found in rows.items()}


def test_all_tables_of_workspaces_are_shipped(tmp_path: Path) -> None:
    with contextlib.closing(schema.open_file(tmp_path / FILE_NAME)) as db:
        assert set(copies.copied_tables(db)) == set(outbox.KEYS)


# Any change, at any time

text = st.sampled_from(["", "a", "\0", "a\0b", "'\"", "\\", "[1]", "null", "\u2028\U0001f600", "ü", "1", "1.0"])
number = st.sampled_from([0, 1, -1, 7, 1 << 40, (1 << 62) + 1])
real = st.sampled_from([0.0, 0.1, -1.5, 1e300, 1_800_000_000.123456])
workspace = st.sampled_from([SHARED, SHARED, SHARED, OTHER, PLAIN])


@attrs.frozen
class Change:
    """One statement.

    Attributes:
        seed: Chooses the values.
    """

    verb: str
    table: str
    workspace_id: str
    values: Sequence[Any]
    elsewhere: bool

    def __call__(self, db: sqlite3.Connection) -> None:
        info = [row for row in db.execute(f"PRAGMA table_info({self.table})") if row[1] not in ("arrival", "note")]
        values = {row[1]: self._value(row[1], row[2], bool(row[3])) for row in info}
        values["workspace_id"] = self.workspace_id
        columns = outbox.KEYS[self.table]
        where = {name: values[name] for name in ("workspace_id", *columns) if name in values}
        which = " AND ".join(f"{name} IS ?" for name in where)
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        match self.verb:
            case "insert":
                db.execute(f"INSERT OR IGNORE INTO {self.table} ({names}) VALUES ({marks})", list(values.values()))
            case "replace":
                db.execute(f"REPLACE INTO {self.table} ({names}) VALUES ({marks})", list(values.values()))
            case "upsert":
                updates = ", ".join(f"{name}=excluded.{name}" for name in values)
                db.execute(
                    f"INSERT INTO {self.table} ({names}) VALUES ({marks}) ON CONFLICT DO UPDATE SET {updates}",
                    list(values.values()),
                )
            case "update":
                changed = {name: value for name, value in values.items() if name not in where} or where
                updates = ", ".join(f"{name}=?" for name in changed)
                policy = ("", "OR IGNORE", "OR REPLACE")[self.values[0][1] % 3]
                db.execute(
                    f"UPDATE {policy} {self.table} SET {updates} WHERE {which}", [*changed.values(), *where.values()]
                )
            case "update state":
                db.execute("UPDATE message SET state='done', answer='x' WHERE workspace_id=?", [self.workspace_id])
            case "delete":
                db.execute(f"DELETE FROM {self.table} WHERE {which}", list(where.values()))
            case "move":
                db.execute(
                    f"UPDATE OR IGNORE {self.table} SET workspace_id=? WHERE workspace_id=?",
                    (SHARED, self.workspace_id),
                )

    def _value(self, name: str, kind: str, is_needed: bool) -> Any:
        choice = self.values[sum(map(ord, name)) % len(self.values)]
        if name in MEANINGFUL and (self.table == "message" or name == "time"):
            return MEANINGFUL[name][choice[1] % len(MEANINGFUL[name])]
        if choice[3] and not is_needed:
            return None
        return {"TEXT": choice[0], "INTEGER": choice[1], "REAL": choice[2]}[kind]


def write(texts: str) -> Callable[[Journal], Coroutine[Any, Any, None]]:
    """What a worker does with one message, with all that follows from it."""

    async def act(journal: Journal) -> None:
        part = journal.of(SHARED)
        row_id = texts or "row"
        conversation = Conversation("peer", None)
        item = inbound(f"text {texts}", row_id=row_id, caller_id="peer", parts=(TextPart(f"text {texts}"),))
        await part.add([item], now=1)
        message = part.next(conversation)
        if message is not None and message.state.value == "received":
            running = await part.start(message)
            assert running is not None
            part.progress(running, "half")
            part.add_spend("peer", 0.1, row_id=row_id)
            reply = StoredReply(parts=(TextPart(texts),))
            storing = asyncio.ensure_future(part.store_reply(running, reply, at=1, send_print="print"))
            # While the mirror can't be reached, it fails when the journal is closed.
            storing.add_done_callback(lambda storing: storing.cancelled() or storing.exception())
            await asyncio.sleep(0.01)
            if storing.done() and (answered := storing.result()) is not None:
                part.mark_sent(answered, at=2)
        await part.set_position(FeedPosition(watermark=row_id, watermark_time=1 << 61))
        part.add_peer_names({"peer": texts})
        await journal.writer.put(lambda db: None)

    return act


async def prune(journal: Journal) -> None:
    await journal.of(SHARED).prune(1 << 61)


async def trouble(database: Database, what: str) -> None:
    match what:
        case "down":
            database.is_down = True
        case "up":
            database.is_down = False
        case "lost":
            database.lost_acknowledgements += 1
        case "wait":
            await asyncio.sleep(3.0)


changes = st.builds(
    Change,
    st.sampled_from(["insert", "insert", "replace", "upsert", "update", "update state", "delete", "move"]),
    st.sampled_from([*outbox.KEYS, "message", "message", "told"]),
    workspace,
    st.lists(st.tuples(text, number, real, st.booleans()), min_size=3, max_size=3),
    st.booleans(),
)
acts = st.one_of(
    changes,
    changes,
    text.map(lambda texts: ("write", texts)),
    st.just(("prune", "")),
    st.sampled_from(["down", "up", "up", "lost", "wait"]).map(lambda what: ("trouble", what)),
)
SPENT = Change("insert", "spend", SHARED, [("a", 1, 0.1, False)] * 3, elsewhere=False)
MOVED = Change("insert", "message", PLAIN, [("a", 1, 0.1, False)] * 3, elsewhere=False)


@pytest.mark.timeout(0 if EXAMPLES > 100 else 120)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(acts=st.lists(acts, max_size=25), pool=st.booleans())
@example(acts=[("trouble", "down"), SPENT, attrs.evolve(SPENT, verb="upsert"), ("trouble", "up")], pool=False)
@example(acts=[MOVED, attrs.evolve(MOVED, verb="move")], pool=False)
def test_copy_equals_journal_after_any_changes(
    tmp_path: Path, acts: Sequence[Change | tuple[str, str]], pool: bool
) -> None:
    run(_copy_and_load(Path(tempfile.mkdtemp(dir=tmp_path)), acts, pool))


async def _copy_and_load(folder: Path, acts: Sequence[Change | tuple[str, str]], pool: bool) -> None:
    shared_with = database()
    async with opened(folder / "one", shared_with) as one, opened(folder / "two", shared_with) as two:
        for name in (SHARED, OTHER) if pool else (SHARED,):
            await one.begin(name)
        for act in acts:
            await _act(one.journal, shared_with, act)
        shared_with.is_down = False
        with reading(one.journal) as db:
            noted = {row[0] for row in db.execute("SELECT workspace_id FROM outbox")}
        names = (SHARED, OTHER) if pool else (SHARED,)
        assert noted <= set(names)
        await one.give_back(*names)
        for name in names:
            assert counted(in_copy(shared_with, name)) == counted(in_journal(one.journal, name))
        for name in names:
            has_copy = shared_with.leases[name].commits > 0
            assert await two.begin(name) is (Start.LOADED if has_copy else Start.SEEDED)
            before, after = in_journal(one.journal, name), in_journal(two.journal, name)
            assert counted(after) == counted(before)
            places = [(row["time"], row["seq"]) for row in after["message"]]
            assert places == sorted(places)
            for table in ("told", "upload_note"):
                times = [row["time"] for row in after[table]]
                assert times == sorted(times)
        shared_with.lost_acknowledgements = 0
        await two.give_back(*names)
        for name in names:
            assert counted(in_copy(shared_with, name)) == counted(in_journal(two.journal, name))


async def _act(journal: Journal, shared_with: Database, act: Change | tuple[str, str]) -> None:
    if isinstance(act, Change):
        if act.elsewhere:
            with other_process(journal.path) as db:
                act(db)
        else:
            await journal.writer.put(act)
        return
    verb, value = act
    if verb == "write":
        await write(value)(journal)
    elif verb == "prune":
        await prune(journal)
    else:
        await trouble(shared_with, value)


# How a lease begins


@pytest.mark.parametrize(
    ("known", "lease", "has_changes", "start"),
    [
        pytest.param(None, (1, 0), False, Start.SEEDED, id="first"),
        pytest.param(None, (2, 1), False, Start.LOADED, id="new machine"),
        pytest.param((1, 5), (2, 5), False, Start.KEPT, id="restart"),
        pytest.param((1, 5), (2, 5), True, Start.KEPT, id="restart with changes"),
        pytest.param((1, 5), (2, 6), True, Start.KEPT, id="killed after a commit"),
        pytest.param((1, 5), (2, 6), False, Start.LOADED, id="backup of one commit ago"),
        pytest.param((1, 5), (2, 7), True, Start.LOADED, id="backup of two commits ago"),
        pytest.param((1, 5), (3, 5), True, Start.LOADED, id="another machine had it"),
        pytest.param((1, 5), (3, 9), False, Start.LOADED, id="another machine changed it"),
        pytest.param((4, 5), (4, 5), False, Start.AHEAD, id="database restored"),
        pytest.param((4, 5), (5, 4), False, Start.AHEAD, id="database lost a commit"),
        pytest.param((4, 5), (6, 0), False, Start.AHEAD, id="database lost the copy"),
        pytest.param((4, 5), (1, 0), False, Start.AHEAD, id="deleted from the database"),
        # Others took the lease, and stored nothing: replacing the journal by an empty copy would lose everything.
        pytest.param((1, 0), (3, 0), True, Start.SEEDED, id="never stored"),
        pytest.param((1, 0), (2, 1), True, Start.KEPT, id="killed after the first commit"),
    ],
)
def test_start_depends_on_last_lease(
    tmp_path: Path, known: tuple[int, int] | None, lease: tuple[int, int], has_changes: bool, start: Start
) -> None:
    with contextlib.closing(schema.open_file(tmp_path / FILE_NAME)) as db:
        if known is not None:
            db.execute("INSERT INTO shared VALUES (?, 'memory', ?, ?, 'boot')", (SHARED, *known))
        if has_changes:
            db.execute("INSERT INTO outbox (workspace_id, tbl, key, body) VALUES (?, 'spend', '[]', 0)", (SHARED,))
        given = Lease(workspace_id=SHARED, epoch=lease[0], commits=lease[1])
        assert outbox.find_start(db, given, "memory", boot="boot") is start
        elsewhere = outbox.find_start(db, given, "another", boot="boot")
        assert elsewhere is (Start.LOADED if lease[1] else Start.SEEDED)


@pytest.mark.parametrize("boot", ["another", ""])
def test_last_commit_may_be_lost_with_the_power(tmp_path: Path, boot: str) -> None:
    with contextlib.closing(schema.open_file(tmp_path / FILE_NAME)) as db:
        db.execute("INSERT INTO shared VALUES (?, 'memory', 1, 5, ?)", (SHARED, boot and "boot"))
        db.execute("INSERT INTO outbox (workspace_id, tbl, key, body) VALUES (?, 'spend', '[]', 0)", (SHARED,))
        complete, missing = (Lease(workspace_id=SHARED, epoch=2, commits=number) for number in (5, 6))
        assert outbox.find_start(db, complete, "memory", boot=boot) is Start.KEPT
        assert outbox.find_start(db, missing, "memory", boot=boot) is Start.LOADED


@pytest.mark.parametrize("is_replaced", [False, True], ids=["restored", "replaced"])
async def test_journal_behind_a_restored_copy_is_replaced(tmp_path: Path, is_replaced: bool) -> None:
    """One machine gives the database back what it lost; another one has an epoch that the database lost, too."""
    shared_with = database()
    async with opened(tmp_path / "one", shared_with) as one, opened(tmp_path / "two", shared_with) as two:
        await one.begin(SHARED)
        await read(one.journal, 1)
        await one.give_back(SHARED)
        backup = copy.deepcopy((shared_with.leases, shared_with.rows))
        for last, machine in enumerate((two, one, two, one), 2):
            await machine.begin(SHARED)
            await read(machine.journal, last)
            await machine.give_back(SHARED)
        shared_with.leases, shared_with.rows = ({}, {}) if is_replaced else backup
        assert await one.begin(SHARED) is Start.AHEAD
        await read(one.journal, 6)
        await one.give_back(SHARED)
        assert await two.begin(SHARED) is Start.LOADED
        assert two.journal.of(SHARED).position() == FeedPosition(last_read=6)


async def test_restored_copy_loses_what_was_deleted_since(tmp_path: Path) -> None:
    shared_with = database()
    async with opened(tmp_path, shared_with) as one:
        await one.begin(SHARED)
        await one.journal.of(SHARED).add([inbound("old", row_id="row")], now=1)
        await one.journal.writer.put(insert)
        await one.give_back(SHARED)
        backup = copy.deepcopy((shared_with.leases, shared_with.rows))
        await one.begin(SHARED)
        await one.journal.writer.put(lambda db: db.execute("DELETE FROM message"))
        await one.give_back(SHARED)
        shared_with.leases, shared_with.rows = backup
        assert await one.begin(SHARED) is Start.AHEAD
        await one.shipper.flush(SHARED)
        assert counted(in_copy(shared_with, SHARED)) == counted(in_journal(one.journal, SHARED))


async def test_cloned_folder_gets_later_changes(tmp_path: Path) -> None:
    shared_with = database()
    async with opened(tmp_path / "one", shared_with) as one:
        await one.begin(SHARED)
        await write("a")(one.journal)
        await one.shipper.flush(SHARED)
        make_folder(tmp_path / "two")
        copies.back_up(one.journal.path, tmp_path / "two" / FILE_NAME)
        await write("b")(one.journal)
        await write("c")(one.journal)
        await one.give_back(SHARED)
        async with opened(tmp_path / "two", shared_with) as two:
            assert await two.begin(SHARED) is Start.LOADED
            assert counted(in_journal(two.journal, SHARED)) == counted(in_journal(one.journal, SHARED))


async def test_own_changes_survive_a_kill(tmp_path: Path) -> None:
    shared_with = database()
    async with opened(tmp_path, shared_with) as one:
        await one.begin(SHARED)
        await write("a")(one.journal)
        await one.shipper.flush(SHARED)
        shared_with.is_down = True
        await write("b")(one.journal)
        before = in_journal(one.journal, SHARED)
    shared_with.is_down = False
    async with opened(tmp_path, shared_with) as again:
        shared_with.leases[SHARED].session = ""
        assert await again.begin(SHARED) is Start.KEPT
        await again.shipper.flush(SHARED)
        assert counted(in_copy(shared_with, SHARED)) == counted(before) == counted(in_journal(again.journal, SHARED))


@pytest.mark.parametrize("table", outbox.KEYS)
def test_missing_column_of_a_copy_is_null(tmp_path: Path, table: str) -> None:
    # Empty columns aren't shipped.
    with contextlib.closing(schema.open_file(tmp_path / FILE_NAME)) as db:
        assert not [
            name for _, name, _, required, default, _ in copies.table_info(db, table) if default and not required
        ]


async def test_copy_that_cannot_be_stored_is_an_error_of_the_journal(tmp_path: Path) -> None:
    # As if the disk became full.
    shared_with = database()
    async with opened(tmp_path / "one", shared_with) as one:
        await one.begin(SHARED)
        await write("a")(one.journal)
        await one.give_back(SHARED)
    for place, row in shared_with.rows[SHARED].items():
        if row.table == "message":
            shared_with.rows[SHARED][place] = attrs.evolve(row, data=b"{}")
    async with opened(tmp_path / "two", shared_with) as two:
        with pytest.raises(JournalError, match="NOT NULL"):
            await two.begin(SHARED)


# Durable operations


def insert(db: sqlite3.Connection, workspace_id: str = SHARED) -> None:
    db.execute("INSERT INTO spend VALUES (?, hex(randomblob(4)), 1)", (workspace_id,))


async def test_durable_operations_wait_for_the_mirror(tmp_path: Path) -> None:
    shared_with = database()
    async with opened(tmp_path, shared_with) as one:
        await one.begin(SHARED)
        shared_with.is_down = True
        durable = one.journal.writer.put(insert, durable=True)
        await one.journal.writer.put(insert)
        await asyncio.sleep(60)
        assert not durable.done()
        shared_with.is_down = False
        await durable
        assert counted(in_copy(shared_with, SHARED)) == counted(in_journal(one.journal, SHARED))


async def test_only_a_journal_without_mirror_is_flushed(tmp_path: Path) -> None:
    disk = Disk()
    async with opened(tmp_path, database(), disk=disk) as one:
        await one.begin(SHARED)
        await one.journal.writer.put(insert, durable=True)
        assert disk.flushes == 0
    async with open_journal(tmp_path, disk) as journal:
        await journal.writer.put(insert, durable=True)
        assert disk.flushes == 1


async def test_slow_mirror_delays_no_other_operation(tmp_path: Path) -> None:
    shared_with = database()
    async with opened(tmp_path, shared_with) as one:
        await one.begin(SHARED)
        shared_with.is_down = True
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(20):
            await one.journal.writer.put(insert)
        assert loop.time() == began


async def test_closing_fails_waiting_operations(tmp_path: Path) -> None:
    shared_with = database()
    async with opened(tmp_path, shared_with) as one:
        await one.begin(SHARED)
        shared_with.is_down = True
        durable = one.journal.writer.put(insert, durable=True)
        await asyncio.sleep(1)
    with pytest.raises(JournalError, match="closed"):
        await durable


async def test_flush_waits_for_changes_from_before_the_lease(tmp_path: Path) -> None:
    class Slow(MemoryMirror):
        async def ship(self, *args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(1)
            return await super().ship(*args, **kwargs)

    shared_with = database()
    async with opened(tmp_path, shared_with, Slow) as one:
        await one.begin(OTHER)
        await one.journal.writer.put(insert)
        # The number of the last change is in the mirror, but not the changes of a workspace that begins with it.
        await one.begin(SHARED)
        await one.give_back(SHARED)
        assert counted(in_copy(shared_with, SHARED)) == counted(in_journal(one.journal, SHARED))
        assert any(in_copy(shared_with, SHARED)["spend"])


async def test_forgotten_changes_keep_nobody_waiting(tmp_path: Path) -> None:
    shared_with = database()
    async with opened(tmp_path, shared_with) as one:
        await one.begin(OTHER)
        await one.begin(SHARED)
        await one.give_back(SHARED)
        shared_with.is_down = True
        await one.journal.writer.put(functools.partial(insert, workspace_id=OTHER))
        await one.journal.writer.put(insert)
        durable = one.journal.writer.put(lambda db: None, durable=True)
        await asyncio.sleep(1)
        # A copy replaces the changes of the workspace, which were the newest.
        with other_process(one.journal.path) as db:
            db.execute("DELETE FROM outbox WHERE workspace_id=?", (SHARED,))
        shared_with.is_down = False
        await durable


async def test_bug_in_a_mirror_keeps_no_result_waiting(tmp_path: Path) -> None:
    shared_with = database()
    failed = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.set())

    class Buggy(MemoryMirror):
        async def ship(self, *args: Any, **kwargs: Any) -> Any:
            if not failed.is_set():
                raise ValueError
            return await super().ship(*args, **kwargs)

    async with opened(tmp_path, shared_with, Buggy) as one:
        await one.begin(SHARED)
        await one.journal.writer.put(insert, durable=True)
        assert failed.is_set()


async def test_lease_taken_again_gets_nothing_of_the_earlier_one(tmp_path: Path) -> None:
    shared_with = database()
    arrived, goes_on = asyncio.Event(), asyncio.Event()

    class Slow(MemoryMirror):
        async def ship(self, *args: Any, **kwargs: Any) -> Any:
            commits = await super().ship(*args, **kwargs)
            if not arrived.is_set():
                arrived.set()
                await goes_on.wait()
            return commits

    async with opened(tmp_path, shared_with, Slow) as one:
        await one.begin(SHARED)
        await one.journal.writer.put(insert)
        await arrived.wait()
        one.shipper.end(SHARED)
        lease = shared_with.leases[SHARED]
        lease.session, lease.epoch, lease.commits = "", lease.epoch + 1, lease.commits + 5
        assert await one.begin(SHARED) is Start.LOADED
        goes_on.set()
        await one.shipper.flush(SHARED)
        await one.journal.writer.put(lambda db: None)
        known = outbox.shared(one.journal.reader, SHARED)
        assert known is not None
        assert (known.epoch, known.commits) == (lease.epoch, lease.commits)
