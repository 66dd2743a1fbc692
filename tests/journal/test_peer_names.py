"""Names of peers in the journal."""

import contextlib
import sqlite3
from pathlib import Path

from tests.worker.kit import WORKSPACE, open_journal

from molecule_connect.journal.inspect import Inspection
from molecule_connect.journal.journal import FILE_NAME, Journal
from molecule_connect.journal.peer_names import LONGEST_NAME, MOST_NAMES
from molecule_connect.journal.schema import TABLES


async def test_keeps_names_for_other_programs(journal: Journal, tmp_path: Path) -> None:
    own = journal.of(WORKSPACE)
    own.add_peer_names({"a": "Ops", "b": "half \ud83d"})
    own.add_peer_names({"a": "Operations"})
    await journal.data_version()

    with Inspection.open(tmp_path) as looked:
        assert looked.peer_names(WORKSPACE) == own.peer_names() == {"a": "Operations", "b": "half ?"}
        assert looked.peer_names("ws-2") == {}


async def test_names_are_bounded(journal: Journal) -> None:
    own = journal.of(WORKSPACE)
    own.add_peer_names({f"p{number}": "x" * 1000 for number in range(MOST_NAMES + 50)})
    await journal.data_version()

    names = own.peer_names()
    assert len(names) == MOST_NAMES
    assert set(map(len, names.values())) == {LONGEST_NAME}


async def test_old_journals_get_the_table(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as db:
        db.executescript(TABLES + "PRAGMA user_version=1;")
    with Inspection.open(tmp_path) as looked:
        assert looked.peer_names(WORKSPACE) == {}

    async with open_journal(tmp_path) as journal:
        journal.of(WORKSPACE).add_peer_names({"a": "Ops"})
        await journal.data_version()
        assert journal.of(WORKSPACE).peer_names() == {"a": "Ops"}
