"""Migration of the position of the older inbox program."""

from pathlib import Path

import pytest

from molecule_connect.inbox import legacy_cursor
from molecule_connect.journal.journal import Journal
from molecule_connect.models import FeedPosition

LONG, ALIKE = "12345678-aaaa", "12345678-bbbb"


@pytest.mark.parametrize(
    ("name", "others", "is_its_own"),
    [
        ("", set(), True),
        ("", {"another"}, False),
        (f"_{LONG}", {ALIKE}, True),
        ("_12345678", {"another"}, True),
        ("_12345678", {ALIKE}, False),
        (f"_{ALIKE}", set(), False),
    ],
)
async def test_position_migrates_to_its_own_workspace(
    journal: Journal, tmp_path: Path, name: str, others: set[str], is_its_own: bool
) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / f"{legacy_cursor.NAME}{name}").write_text("row-7\n")
    taken = await legacy_cursor.migrate(journal, tmp_path, LONG, [tmp_path / "none", folder], others=others)
    assert taken == ("row-7" if is_its_own else None)
    assert journal.of(LONG).position() == (FeedPosition(watermark="row-7") if is_its_own else FeedPosition())


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"two\nlines", b"../../etc", b"x" * 200])
async def test_invalid_position_is_ignored(journal: Journal, tmp_path: Path, content: bytes) -> None:
    (tmp_path / legacy_cursor.NAME).write_bytes(content)
    assert await legacy_cursor.migrate(journal, tmp_path, LONG, [tmp_path], others=()) is None


async def test_existing_journal_or_cursor_takes_precedence(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / legacy_cursor.NAME).write_text("row-7")
    await journal.of(LONG).set_position(FeedPosition(watermark="row-9"))
    (tmp_path / f"{ALIKE}.json").write_text("{}")
    assert await legacy_cursor.migrate(journal, tmp_path, LONG, [tmp_path], others=()) is None
    assert await legacy_cursor.migrate(journal, tmp_path, ALIKE, [tmp_path], others=()) is None
    assert journal.of(LONG).position() == FeedPosition(watermark="row-9")


def test_looks_in_the_documented_folders(tmp_path: Path) -> None:
    found = legacy_cursor.folders({"CONFIGS_DIR": "/some/where"}, home=tmp_path)
    assert found == [Path("/some/where"), Path("/configs"), tmp_path / ".molecule-workspace"]
    assert legacy_cursor.folders({"CONFIGS_DIR": ""}, home=tmp_path) == found[1:]
