"""``molecule journal``: backups, and workspaces that are handed to another state folder."""

import io
import json
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from molecule_connect.journal.journal import FILE_NAME
from molecule_connect.models import FilePart
from molecule_connect.worker.lease import lease

from .conftest import Result
from .test_messages import Book

Molecule = Callable[..., Result]


@pytest.fixture(name="molecule")
def on_paths(molecule: Molecule) -> Molecule:
    return lambda *words: molecule(*map(str, words))


@pytest.fixture
def book(tmp_path: Path) -> Book:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return Book(folder)


def _texts(folder: Path, molecule: Molecule, workspace: str = "ws_1") -> list[str]:
    shown = molecule("messages", "list", workspace, "--state-dir", folder, "--json")
    assert shown.code == 0, shown.stderr
    return sorted(one["row_id"] for one in json.loads(shown.stdout)["messages"])


def test_backup_of_a_served_journal_can_be_restored(book: Book, molecule: Molecule, tmp_path: Path) -> None:
    book.write("first", "hello")
    copy = tmp_path / "copy"
    with lease(book.folder, "ws_1"):
        assert molecule("journal", "backup", copy, "--state-dir", book.folder).code == 0
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    book.write("second", "later")
    restored = molecule("journal", "restore", copy, "--yes", "--state-dir", book.folder)
    assert restored.code == 0
    assert _texts(book.folder, molecule) == ["first"]
    (kept,) = book.folder.glob(f"{FILE_NAME}.replaced-*")
    assert str(kept) in restored.stdout


def test_backup_replaces_no_file(book: Book, molecule: Molecule, tmp_path: Path) -> None:
    book.write("first", "hello")
    (tmp_path / "copy").write_text("precious")
    refused = molecule("journal", "backup", tmp_path / "copy", "--state-dir", book.folder)
    assert refused.code == 2
    assert "exists already" in refused.stderr
    assert (tmp_path / "copy").read_text() == "precious"


def test_restore_waits_for_no_connector(book: Book, molecule: Molecule, tmp_path: Path) -> None:
    book.write("first", "hello")
    molecule("journal", "backup", tmp_path / "copy", "--state-dir", book.folder)
    with lease(book.folder, "ws_1"):
        refused = molecule("journal", "restore", tmp_path / "copy", "--yes", "--state-dir", book.folder)
    assert refused.code == 5
    assert _texts(book.folder, molecule) == ["first"]


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + b"\0" * 4096])
def test_restore_rejects_other_files(book: Book, molecule: Molecule, tmp_path: Path, content: bytes) -> None:
    book.write("first", "hello")
    (tmp_path / "other").write_bytes(content)
    refused = molecule("journal", "restore", tmp_path / "other", "--yes", "--state-dir", book.folder)
    assert refused.code == 2
    assert _texts(book.folder, molecule) == ["first"]


def test_restore_replaces_a_damaged_journal(book: Book, molecule: Molecule, tmp_path: Path) -> None:
    book.write("first", "hello")
    molecule("journal", "backup", tmp_path / "copy", "--state-dir", book.folder)
    (book.folder / FILE_NAME).write_bytes(b"damaged" * 1000)
    assert molecule("journal", "restore", tmp_path / "copy", "--yes", "--state-dir", book.folder).code == 0
    assert _texts(book.folder, molecule) == ["first"]
    (kept,) = book.folder.glob(f"{FILE_NAME}.replaced-*[0-9]")
    assert kept.read_bytes().startswith(b"damaged")


def _export(book: Book, molecule: Molecule, archive: Path, workspace: str = "ws_1") -> None:
    exported = molecule("journal", "export", workspace, archive, "--state-dir", book.folder)
    assert exported.code == 0, exported.stderr


def test_exported_workspace_arrives_with_everything(book: Book, molecule: Molecule, tmp_path: Path) -> None:
    for number in range(3):
        book.write(f"row-{number}", "hello")
    book.write("other", "hello", workspace="ws_2")
    book.kill("row-1", "no answer")
    received = book.folder / "ws_1" / "files" / "picture.png"
    received.parent.mkdir(parents=True)
    received.write_bytes(b"pixels")
    (book.folder / "ws_1.json").write_text('{"last_since_id": "row-0"}')
    (book.folder / "ws_1.token").write_text("tok_secret")
    sessions = Path("backends") / "claude-code" / "ws_1" / "sessions.json"
    (book.folder / sessions).parent.mkdir(parents=True)
    (book.folder / sessions).write_text("{}")
    archive, elsewhere = tmp_path / "ws_1.tar.gz", tmp_path / "elsewhere"
    _export(book, molecule, archive)
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    imported = molecule("journal", "import", archive, "--state-dir", elsewhere)
    assert imported.code == 0, imported.stderr
    assert "tok_secret" not in imported.stderr
    assert _texts(elsewhere, molecule) == ["row-0", "row-1", "row-2"]
    assert (elsewhere / "ws_1" / "files" / "picture.png").read_bytes() == b"pixels"
    assert (elsewhere / sessions).read_text() == "{}"
    assert (elsewhere / "ws_1.json").read_text() == '{"last_since_id": "row-0"}'
    assert stat.S_IMODE((elsewhere / "ws_1.token").stat().st_mode) == 0o600
    dead = molecule("messages", "list", "ws_1", "--state", "dead", "--state-dir", elsewhere, "--json")
    assert [one["reason"] for one in json.loads(dead.stdout)["messages"]] == ["no answer"]
    with closing(sqlite3.connect(elsewhere / FILE_NAME)) as db:
        assert db.execute("SELECT DISTINCT workspace_id FROM message").fetchall() == [("ws_1",)]


def test_order_of_messages_survives_an_import(book: Book, molecule: Molecule, tmp_path: Path) -> None:
    elsewhere = Book(tmp_path / "elsewhere")
    elsewhere.folder.mkdir(mode=0o700)
    elsewhere.write("theirs", "hello", workspace="ws_9")
    names = [f"row-{number}" for number in (5, 3, 9, 1)]
    for name in names:
        book.write(name, "hello")
    _export(book, molecule, tmp_path / "a")
    assert molecule("journal", "import", tmp_path / "a", "--state-dir", elsewhere.folder).code == 0
    with closing(sqlite3.connect(elsewhere.folder / FILE_NAME)) as db:
        found = db.execute("SELECT row_id FROM message WHERE workspace_id='ws_1' ORDER BY arrival").fetchall()
    assert [row[0] for row in found] == names
    assert _texts(elsewhere.folder, molecule, "ws_9") == ["theirs"]


def test_served_workspace_is_not_exported(book: Book, molecule: Molecule, tmp_path: Path) -> None:
    book.write("first", "hello")
    with lease(book.folder, "ws_1"):
        refused = molecule("journal", "export", "ws_1", tmp_path / "a", "--state-dir", book.folder)
    assert refused.code == 5
    assert not (tmp_path / "a").exists()


def test_failed_export_leaves_the_workspace_here(book: Book, molecule: Molecule, tmp_path: Path) -> None:
    book.write("first", "hello")
    refused = molecule("journal", "export", "ws_1", tmp_path / "missing" / "a", "--state-dir", book.folder)
    assert refused.code == 2
    shown = molecule("journal", "status", "--json", "--state-dir", book.folder)
    assert json.loads(shown.stdout)["workspaces"][0]["exported_to"] is None


def test_unknown_workspace_cannot_be_exported(book: Book, molecule: Molecule, tmp_path: Path) -> None:
    book.write("first", "hello")
    refused = molecule("journal", "export", "ws_2", tmp_path / "a", "--state-dir", book.folder)
    assert refused.code == 2
    assert "ws_1" in refused.stderr
    assert not (book.folder / "ws_2.lock").exists()


def test_import_replaces_only_an_exported_workspace(book: Book, molecule: Molecule, tmp_path: Path) -> None:
    book.write("first", "hello")
    _export(book, molecule, tmp_path / "a")
    other = Book(tmp_path / "other")
    other.folder.mkdir(mode=0o700)
    other.write("theirs", "hello")
    refused = molecule("journal", "import", tmp_path / "a", "--state-dir", other.folder)
    assert refused.code == 2
    assert _texts(other.folder, molecule) == ["theirs"]
    assert molecule("journal", "import", tmp_path / "a", "--state-dir", book.folder).code == 0
    assert _texts(book.folder, molecule) == ["first"]
    shown = molecule("journal", "status", "--json", "--state-dir", book.folder)
    assert json.loads(shown.stdout)["workspaces"][0]["exported_to"] is None


def _archive(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"readme": b"hello"},
        {"manifest.json": b"[]"},
        {"manifest.json": b'{"format": 1, "workspace_id": "../ws"}'},
        {"manifest.json": b'{"format": 1, "workspace_id": "ws_1"}'},
        {"manifest.json": b'{"format": 1, "workspace_id": "ws_1"}', "folder/../../escaped": b"x"},
        {"manifest.json": b'{"format": 1, "workspace_id": "ws_1"}', "journal.sqlite3": b"not a journal"},
    ],
)
def test_import_rejects_other_archives(molecule: Molecule, tmp_path: Path, members: dict[str, bytes]) -> None:
    archive = _archive(tmp_path / "archive", **members)
    refused = molecule("journal", "import", archive, "--state-dir", tmp_path / "new" / "state")
    assert refused.code == 2
    assert "Traceback" not in refused.stderr
    assert not list(tmp_path.rglob("escaped"))


def test_import_rejects_garbage(molecule: Molecule, tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"garbage")
    assert molecule("journal", "import", tmp_path / "archive", "--state-dir", tmp_path / "state").code == 2
    assert molecule("journal", "import", tmp_path / "missing", "--state-dir", tmp_path / "state").code == 2


def test_move_takes_a_workspace_along(book: Book, molecule: Molecule, tmp_path: Path) -> None:
    book.write("first", "hello", FilePart(uri="platform-pending:ws_1/f1", name="a.txt"))
    target = tmp_path / "target"
    moved = molecule("journal", "move", "ws_1", target, "--state-dir", book.folder)
    assert moved.code == 0, moved.stderr
    assert _texts(target, molecule) == ["first"]
    shown = molecule("journal", "status", "--json", "--state-dir", book.folder)
    assert json.loads(shown.stdout)["workspaces"][0]["exported_to"] == f"{target}/"
    back = molecule("journal", "move", "ws_1", book.folder, "--state-dir", target)
    assert back.code == 0, back.stderr


def test_move_to_a_used_folder_changes_nothing(book: Book, molecule: Molecule, tmp_path: Path) -> None:
    book.write("first", "hello")
    other = Book(tmp_path / "other")
    other.folder.mkdir(mode=0o700)
    other.write("theirs", "hello")
    assert molecule("journal", "move", "ws_1", other.folder, "--state-dir", book.folder).code == 2
    shown = molecule("journal", "status", "--json", "--state-dir", book.folder)
    assert json.loads(shown.stdout)["workspaces"][0]["exported_to"] is None
