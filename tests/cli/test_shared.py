"""Commands with ``--journal``: the tables in the database, and what they show from any machine."""

import asyncio
import contextlib
import json
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import pytest
from tests.mirrors.memory import CURRENT, DATABASES, Database, MemoryMirror

from molecule_connect.files import files_folder
from molecule_connect.journal.journal import FILE_NAME, Journal
from molecule_connect.mirrors import MemberInfo, Row
from molecule_connect.models import FilePart

from .conftest import Result
from .test_messages import Book

Molecule = Callable[..., Result]
URL = "memory://user:hunter2@test"


@pytest.fixture
def database() -> Iterator[Database]:
    """The database at ``URL``."""
    DATABASES["test"] = Database(time.time)
    yield DATABASES["test"]
    del DATABASES["test"]


@pytest.fixture
def book(tmp_path: Path) -> Book:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return Book(folder)


def test_init_creates_tables_once(molecule: Molecule, database: Database) -> None:
    database.schema = 0
    shown = molecule("journal", "status", "--journal", URL)
    assert shown.code == 1
    assert shown.stdout == (
        "memory: memory 1.0, no tables of molecule-connect -> run: molecule journal init --journal URL\n"
    )
    assert molecule("journal", "migrate", "--journal", URL).stderr == (
        "error: memory has no tables of molecule-connect\nwhat to do: run: molecule journal init --journal URL\n"
    )
    assert molecule("journal", "init", "--journal", URL).stdout == f"memory: created the tables, version {CURRENT}\n"
    again = molecule("journal", "init", "--journal", URL)
    assert (again.code, again.stdout) == (0, f"memory: nothing to do; the tables are of version {CURRENT}\n")


def test_migrate_upgrades_tables(molecule: Molecule, database: Database) -> None:
    database.schema = CURRENT - 1
    refused = molecule("journal", "init", "--journal", URL)
    assert refused.code == 2
    assert "what to do: run: molecule journal migrate --journal URL\n" in refused.stderr
    shown = molecule("journal", "status", "--journal", URL, "--json")
    assert (shown.code, json.loads(shown.stdout)["schema"]) == (1, CURRENT - 1)
    done = json.loads(molecule("journal", "migrate", "--journal", URL, "--json").stdout)
    assert done["done"] == [f"migrated the tables to version {CURRENT}"]
    assert done["schema"] == done["current_schema"] == CURRENT
    assert molecule("journal", "status", "--journal", URL).code == 0


def test_database_is_found_in_variable_and_list(molecule: Molecule, database: Database, tmp_path: Path) -> None:
    listing = tmp_path / "fleet.toml"
    listing.write_text(f'[[workspace]]\nid = "ws_1"\ntoken = "t"\n[journal]\nurl = "{URL}"\n')
    listing.chmod(0o600)
    for arguments, variable in (
        (["init"], URL),
        (["init", "--journal"], URL),
        (["status", "--journal"], URL),
        (["status", "--journal", "--json"], URL),
        (["init", "--config", str(listing)], ""),
        (["status", "--config", str(listing)], ""),
    ):
        result = molecule("journal", *arguments, MOLECULE_JOURNAL_URL=variable)
        assert (result.code, "memory" in result.stdout) == (0, True), result.stderr
        assert "hunter2" not in result.output


def test_variable_alone_leaves_status_local(molecule: Molecule, database: Database, tmp_path: Path) -> None:
    for words in (["journal", "status"], ["status"], ["messages", "list"]):
        result = molecule(*words, "--state-dir", str(tmp_path), MOLECULE_JOURNAL_URL=URL)
        assert str(tmp_path) in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["journal", "init"], 2, "no database given"),
        (["journal", "init", "--journal"], 2, "--journal needs a URL, because MOLECULE_JOURNAL_URL is not set"),
        (["journal", "init", "--journal", "ws_1"], 2, "--journal is not a URL"),
        (["journal", "init", "--journal", "other://user:hunter2@x"], 2, "no installed plugin keeps journals at other"),
        (["journal", "init", "--journal", "memory://user:hunter2@nowhere"], 2, "mirror memory failed: KeyError"),
    ],
)
def test_wrong_database_is_refused(molecule: Molecule, arguments: list[str], code: int, error: str) -> None:
    result = molecule(*arguments)
    assert result.code == code
    assert result.stderr.startswith(f"error: {error}")
    assert "\nwhat to do: " in result.stderr
    assert "hunter2" not in result.output


def test_unreachable_database_is_one_error(molecule: Molecule, database: Database) -> None:
    database.is_down = True
    for words in (["journal", "init"], ["journal", "status"]):
        result = molecule(*words, "--journal", URL)
        assert result.code == 6
        assert result.stderr.startswith("error: memory can't be reached\nwhat to do: ")
        assert "Traceback" not in result.stderr


def test_left_workspace_is_local(molecule: Molecule, database: Database, book: Book) -> None:
    book.write("row-1", "hello")
    asyncio.run(MemoryMirror(database).add(["ws_1"]))
    place = ("--state-dir", str(book.folder))
    left = molecule("journal", "leave", "ws_1", "--journal", URL, *place)
    again = molecule("journal", "leave", "ws_1", "--journal", URL, *place)
    assert (left.code, again.code, database.leases) == (0, 0, {})
    served = f"ws_1 is served from {book.folder} alone"
    assert left.stdout.splitlines() == [f"{served} from now on", f"Serve it: molecule connect ws_1 {' '.join(place)}"]
    assert again.stdout.startswith(f"{served} already\n")
    assert book.state("row-1") == "received"
    unknown = molecule("journal", "leave", "ws_2", "--journal", URL, *place)
    assert unknown.code == 2
    assert "has no workspace ws_2" in unknown.stderr


MEMBER = MemberInfo(host="host-a\x1b[2J", pid=7, machine="", capacity=20, listing="")


def served(
    database: Database, *workspace_ids: str, info: MemberInfo = MEMBER, rows: Sequence[Row] = ()
) -> MemoryMirror:
    """A member takes the workspaces, and ships *rows* of each."""
    mirror = MemoryMirror(database)

    async def parts() -> AsyncIterator[Mapping[str, Sequence[Row]]]:
        yield dict.fromkeys(workspace_ids, rows)

    async def run() -> None:
        await mirror.add(workspace_ids)
        session = await mirror.begin(info, seconds=1000)
        epochs = {one.workspace_id: one.epoch for one in await mirror.take(session, workspace_ids)}
        if rows:
            await mirror.ship(session, epochs, parts())

    asyncio.run(run())
    return mirror


def message(key: str, state: str) -> Row:
    return Row(table="message", key=key, data=b"{}", body=b"[]", state=state, time=round((time.time() - 300) * 1e6))


def test_status_shows_who_serves_what(molecule: Molecule, database: Database) -> None:
    database.clock = lambda: time.time() - 600
    served(database, "ws_1", "ws_2", rows=[message("a", "received"), message("b", "running"), message("c", "dead")])
    well = molecule("status", "--journal", URL)
    assert well.code == 0
    assert well.stdout.splitlines() == [
        "memory: 2 workspaces: 2 served",
        "messages: 4 waiting (the oldest for 5 min), 2 dead letters",
        "1 member:",
        "  process 7 on host-a: 2 workspaces of at most 20, for 10 min",
        *(
            f"ws_{number}: served by process 7 on host-a for 10 min, changed 10 min ago,"
            " 2 waiting (the oldest for 5 min), 1 dead letter"
            for number in (1, 2)
        ),
    ]
    one = molecule("status", "ws_2", "--journal", URL)
    assert one.code == 0
    assert one.stdout.startswith("ws_2: served by process 7 on host-a")


def test_status_is_not_well_without_living_holders(molecule: Molecule, database: Database) -> None:
    served(database, "ws_1", info=attrs.evolve(MEMBER, capacity=0))
    asyncio.run(MemoryMirror(database).add(["ws_2"]))
    free = molecule("status", "--journal", URL)
    assert free.code == 1
    assert "  process 7 on host-a: 1 workspace, stopping, for " in free.stdout
    assert free.stdout.splitlines()[-2].startswith("ws_2: free for ")
    assert free.stdout.splitlines()[-2].endswith("no copy yet")
    database.clock = lambda: time.time() + 1000
    lost = molecule("status", "--journal", URL)
    assert lost.code == 1
    assert lost.stdout.startswith("memory: 2 workspaces: 1 free, 1 lost\nmessages: none waits\n0 members\n")
    assert "ws_1: lost: process 7 on host-a doesn't respond, " in lost.stdout
    assert molecule("status", "ws_1", "--journal", URL).code == 1
    unknown = molecule("status", "ws_3", "--journal", URL)
    assert (unknown.code, unknown.stdout) == (1, "ws_3: the database memory doesn't have it\n")


def test_status_is_one_document(molecule: Molecule, database: Database) -> None:
    empty = molecule("status", "--journal", URL, "--json")
    assert (empty.code, json.loads(empty.stdout)["workspaces"]) == (1, [])
    served(database, "ws_1", rows=[message("a", "received")])
    asyncio.run(MemoryMirror(database).add(["ws_2"]))
    found = json.loads(molecule("status", "--journal", URL, "--json").stdout)
    assert [(one["host"], one["workspaces"], one["capacity"]) for one in found["members"]] == [("host-a\x1b[2J", 1, 20)]
    first, second = found["workspaces"]
    assert (first["state"], first["pid"], first["messages"]) == ("served", 7, {"received": 1})
    assert (second["state"], second["pid"], second["changed"]) == ("free", None, None)
    assert first.keys() == second.keys()


def copy_to(database: Database, book: Book, *workspace_ids: str) -> None:
    """The journal of *book* is that of a machine that serves the workspaces."""

    async def run() -> None:
        mirror = MemoryMirror(database)
        await mirror.add(workspace_ids)
        async with (
            Journal.open(book.folder, wall=time.time) as journal,
            journal.sharing(mirror, lost=lambda name: None, notice=lambda text, hint: None) as shipper,
        ):
            shipper.session = await mirror.begin(MEMBER, seconds=1000)
            for lease in await mirror.take(shipper.session, workspace_ids):
                await shipper.begin(lease, has_file=lambda name: True)
            await journal.writer.put(lambda db: None, durable=True)

    asyncio.run(run())


def test_messages_of_all_machines_are_listed(molecule: Molecule, database: Database, book: Book) -> None:
    for number, workspace in enumerate(["ws_2", "ws_1", "ws_2"]):
        book.write(f"row-{number}", f"text {number}", workspace=workspace)
    book.kill("row-0", "no luck", workspace="ws_2")
    copy_to(database, book, "ws_1", "ws_2")
    asyncio.run(MemoryMirror(database).add(["ws_3"]))

    found = molecule("messages", "list", "--journal", URL, "--json")
    assert found.code == 0
    listed = json.loads(found.stdout)["messages"]
    assert [one["row_id"] for one in listed] == ["row-2", "row-1", "row-0"]
    assert (
        listed == json.loads(molecule("messages", "list", "--state-dir", str(book.folder), "--json").stdout)["messages"]
    )
    assert molecule("messages", "list", "ws_1", "--journal", URL).stdout.count("text") == 1
    shown = molecule("messages", "show", "row-0", "--journal", URL)
    assert "text 0" in shown.stdout
    assert "no luck" in shown.stdout
    unknown = molecule("messages", "list", "ws_4", "--journal", URL)
    assert unknown.code == 2
    assert unknown.stderr.startswith("error: memory has no workspace 'ws_4'\n")


def test_file_of_another_machine_has_no_path(molecule: Molecule, database: Database, book: Book) -> None:
    book.write("row-1", FilePart(uri="data:text/plain,x", name="a.pdf"))
    (folder := files_folder(book.folder, "ws_1")).mkdir(parents=True)
    (folder / "a.pdf").write_text("content")
    with contextlib.closing(sqlite3.connect(book.folder / FILE_NAME)) as db, db:
        db.execute("UPDATE file SET state='here', path='a.pdf', size=7")
    copy_to(database, book, "ws_1")
    assert str(folder / "a.pdf") in molecule("messages", "show", "row-1", "--state-dir", str(book.folder)).stdout
    shown = molecule("messages", "show", "row-1", "--journal", URL).stdout
    assert "it is on the machine that fetched it" in shown


def test_messages_are_only_changed_where_they_are_served(molecule: Molecule, database: Database, book: Book) -> None:
    for number in (1, 2):
        book.write(f"row-{number}", "text", workspace=f"ws_{number}")
        book.kill(f"row-{number}", "no luck", workspace=f"ws_{number}")
    copy_to(database, book, "ws_1", "ws_2")
    one = molecule("messages", "replay", "row-1", "--journal", URL)
    assert one.code == 2
    assert "what to do: on host-a, run: molecule messages replay row-1 --workspace ws_1\n" in one.stderr
    both = molecule("messages", "replay", "--all-dead", "--reason", "no luck", "--journal", URL)
    assert both.code == 2
    command = "on host-a, run: molecule messages replay --all-dead --reason 'no luck' --workspace"
    assert f"what to do: {command} ws_1; {command} ws_2\n" in both.stderr
    database.clock = lambda: time.time() + 1000
    lost = molecule("messages", "drop", "row-2", "--journal", URL)
    assert lost.code == 2
    assert "no machine serves ws_2 at the moment" in lost.stderr
    followed = molecule("messages", "list", "--follow", "--journal", URL)
    assert followed.code == 2
    assert book.state("row-1") == "dead"


def test_copies_leave_nothing_on_disk(molecule: Molecule, database: Database, book: Book, tmp_path: Path) -> None:
    book.write("row-1", "text")
    copy_to(database, book, "ws_1")
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    try:
        assert molecule("messages", "list", "--journal", URL).code == 0
    finally:
        tempfile.tempdir = None
    assert list(scratch.iterdir()) == []


def test_doctor_checks_database(molecule: Molecule, database: Database, tmp_path: Path) -> None:
    place = ("doctor", "ws_1", "--state-dir", str(tmp_path / "state"), "--api-url", "http://127.0.0.1:9")

    def row(*arguments: str, **variables: str) -> str:
        found = molecule(*place, *arguments, **variables).stdout.splitlines()
        return " ".join(next((line for line in found if line.startswith("database")), "").split())

    assert row() == ""
    assert row("--journal", URL) == f"database ok memory: memory 1.0, tables of version {CURRENT}"
    database.schema = 0
    hint = "run: molecule journal init --journal URL"
    assert row(MOLECULE_JOURNAL_URL=URL) == f"database FAIL memory: no tables of molecule-connect -> {hint}"
    database.is_down = True
    assert row("--journal", URL).startswith("database FAIL memory can't be reached -> ")


def test_config_check_reports_unknown_database(molecule: Molecule, database: Database, tmp_path: Path) -> None:
    listing = tmp_path / "fleet.toml"
    for url, code in ((URL, 0), ("other://user:hunter2@x", 2)):
        listing.write_text(f'[[workspace]]\nid = "ws_1"\nbackend = "parrot"\ntoken = "t"\n[journal]\nurl = "{url}"\n')
        listing.chmod(0o600)
        result = molecule("config", "check", str(listing))
        assert result.code == code, result.output
        assert "hunter2" not in result.output
    assert f"{listing}: [journal]: no installed plugin keeps journals at other:// addresses" in result.stderr
