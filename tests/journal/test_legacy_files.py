"""Files in a journal that an earlier release wrote: nothing of them is lost, and each belongs to its sender."""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from molecule_connect.journal import files as file_rows
from molecule_connect.journal import legacy_files
from molecule_connect.journal.inspect import Inspection
from molecule_connect.journal.journal import FILE_NAME
from molecule_connect.journal.models import dump_parts
from molecule_connect.journal.schema import TABLES, open_file
from molecule_connect.models import FilePart

WORKSPACE = "ws-1"


class Old:
    """A journal of the first version in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self.db = sqlite3.connect(self.path, isolation_level=None)
        self.db.executescript(TABLES + "PRAGMA user_version=1")

    def message(
        self, row_id: str, *parts: FilePart, caller: str | None = None, kind: str = "message", body: bool = True
    ) -> None:
        self.db.execute(
            "INSERT INTO message (workspace_id, row_id, kind, state, time, seq, place, caller_id, message_id,"
            " idempotency_key, method, fingerprint, parts, size, changed)"
            " VALUES (?,?,?,'done',0,0,0,?,?,?,'','',?,0,0)",
            (WORKSPACE, row_id, kind, caller, row_id, row_id, dump_parts(parts) if body else None),
        )
        for part in parts:
            self.db.execute("INSERT OR IGNORE INTO file_use VALUES (?,?,?)", (WORKSPACE, old_id(part), row_id))

    def file(self, part: FilePart, state: str = "here", *, row_id: str | None = None) -> None:
        path = f"{part.name}-on-disk" if state == "here" else None
        self.db.execute(
            "INSERT INTO file (workspace_id, file_id, uri, row_id, name, mime_type, size, time, arrived, state, path,"
            " changed) VALUES (?,?,?,?,?,'',7,0,0,?,?,0)",
            (WORKSPACE, old_id(part), part.uri[:100], row_id, part.name, state, path),
        )


def old_id(part: FilePart) -> str:
    if not part.uri.startswith("data:"):
        return part.uri.rpartition("/")[2]
    told = f"{part.uri}\0{part.name}".encode()
    return "inline:" + hashlib.blake2b(told, digest_size=16).hexdigest()


def pending(file_id: str) -> FilePart:
    return FilePart(uri=f"platform-pending:{WORKSPACE}/{file_id}", name=file_id)


@contextlib.contextmanager
def migrated(old: Old) -> Iterator[sqlite3.Connection]:
    old.db.close()
    old.path.chmod(0o600)
    with contextlib.closing(open_file(old.path)) as db:
        for _ in range(2):
            legacy_files.adopt(db, WORKSPACE)
        yield db


def files(db: sqlite3.Connection) -> dict[str, tuple[object, ...]]:
    rows = db.execute("SELECT file_id, caller_id, state, path, named FROM file").fetchall()
    return {row[0]: tuple(row[1:]) for row in rows}


def test_each_row_gets_its_own_inline_files(tmp_path: Path) -> None:
    old, part, other = Old(tmp_path), FilePart(uri="data:,x", name="x"), FilePart(uri="data:,y", name="y")
    old.file(part)
    old.file(other, "failed")
    old.message("first", other, part, caller="one")
    old.message("second", part, caller="other")
    old.message("person", part)

    with migrated(old) as db:
        found = files(db)

    assert found == {
        "inline:0:first": ("one", "failed", None, 1),
        "inline:1:first": ("one", "here", "x-on-disk", 1),
        "inline:0:second": ("other", "waiting", None, 1),
        "inline:0:person": (None, "waiting", None, 1),
    }
    (tmp_path / WORKSPACE / "files").mkdir(parents=True)
    (tmp_path / WORKSPACE / "files" / "x-on-disk").write_text("x")
    with Inspection.open(tmp_path) as inspection:
        parts = inspection.message(inspection.find("first")).parts
    assert [part.path for part in parts if isinstance(part, FilePart)] == [
        None,
        tmp_path / WORKSPACE / "files" / "x-on-disk",
    ]


def test_forgotten_message_still_counts_its_inline_file(tmp_path: Path) -> None:
    old, part = Old(tmp_path), FilePart(uri="data:,x", name="x")
    old.file(part)
    old.message("over", part, caller="one", body=False)

    with migrated(old) as db:
        assert files(db) == {old_id(part): ("one", "here", "x-on-disk", 1)}


def test_forgets_peer_files_without_a_persons_message(tmp_path: Path) -> None:
    old = Old(tmp_path)
    for file_id in ("fake", "both"):
        old.file(pending(file_id), "waiting")
    old.file(pending("forged"), "waiting", row_id="forged manifest")
    old.file(pending("theirs"), row_id="manifest")
    old.file(pending("ours"), "ours")
    old.message("peer", *map(pending, ("fake", "both", "theirs", "ours")), caller="one")
    old.message("person", pending("both"))
    old.message("echo", pending("ours"), kind="echo")
    old.message("forged manifest", caller="one", kind="upload")
    old.message("manifest", kind="upload")

    with migrated(old) as db:
        assert files(db) == {
            "both": (None, "waiting", None, 1),
            "theirs": (None, "here", "theirs-on-disk", 0),
            "ours": (None, "ours", None, 1),
        }
        # It becomes the person's message after all.
        assert [file.file_id for file in file_rows.unnamed(db, WORKSPACE)] == ["theirs"]
