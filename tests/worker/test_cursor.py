"""The cursor file: read once, shared with other programs, replaced atomically."""

import asyncio
import json
from pathlib import Path

import pytest
from tests.worker.kit import WORKSPACE, FakePlatform, Serving, echo

from molecule_connect import events
from molecule_connect.errors import JournalError
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Progress, Request, Response
from molecule_connect.worker.cursor import CursorFile


def content(folder: Path) -> dict[str, object]:
    value = json.loads((folder / f"{WORKSPACE}.json").read_text())
    assert isinstance(value, dict)
    return value


@pytest.fixture
def file(tmp_path: Path) -> CursorFile:
    return CursorFile(tmp_path, WORKSPACE)


def test_round_trip_in_a_private_file(file: CursorFile) -> None:
    assert file.save("row-1")
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert CursorFile(file.folder, WORKSPACE).load() == ("row-1", "")
    assert json.loads(file.path.read_text()) == {"workspace_id": WORKSPACE, "last_since_id": "row-1"}


def test_keeps_other_programs_members(file: CursorFile) -> None:
    file.path.write_text('{"workspace_id": "ws-1", "last_since_id": "a", "theirs": {"deep": [1]}}')
    assert file.load() == ("a", "")
    assert file.save("b")
    assert content(file.folder) == {"workspace_id": "ws-1", "last_since_id": "b", "theirs": {"deep": [1]}}


def test_writes_only_a_new_cursor(file: CursorFile) -> None:
    assert not file.save(None)
    assert not file.save("")
    assert not file.path.exists()
    assert file.save("a")
    assert not file.save("a")


@pytest.mark.parametrize(
    "junk",
    [
        *(b"", b"{", b"[]", b"null", b"\xff\xfe", b'"row"', b'{"last_since_id": 5}', b'{"last_since_id": ["row-1"]}'),
        *(b'{"last_since_id": false}', b'{"last_since_id": 0}', b'{"last_since_id": "no id"}', b"[" * 100_000),
    ],
)
def test_renames_an_invalid_file_with_a_warning(file: CursorFile, junk: bytes) -> None:
    file.path.write_bytes(junk)
    cursor, warning = file.load()
    assert cursor is None
    assert "ws-1.json.unreadable" in warning
    assert (file.folder / "ws-1.json.unreadable").read_bytes() == junk
    assert file.save("row-1")
    assert content(file.folder)["last_since_id"] == "row-1"


@pytest.mark.parametrize("value", ['""', "null"])
def test_an_empty_cursor_is_none(file: CursorFile, value: str) -> None:
    file.path.write_text(f'{{"last_since_id": {value}}}')
    assert file.load() == (None, "")


def test_similar_ids_have_separate_files(tmp_path: Path) -> None:
    for end in ("1", "2"):
        CursorFile(tmp_path, f"6f1c2b1e-8a44-{end}").save(end)
    assert [CursorFile(tmp_path, f"6f1c2b1e-8a44-{end}").load()[0] for end in ("1", "2")] == ["1", "2"]


def test_failed_write_keeps_the_old_file(file: CursorFile) -> None:
    file.save("a")
    file.path.unlink()
    file.path.mkdir()
    (file.path / "in the way").touch()
    with pytest.raises(JournalError, match=r"ws-1\.json"):
        file.save("b")
    assert sorted(path.name for path in file.folder.iterdir()) == ["ws-1.json"]


# A whole worker


async def test_first_start_continues_after_another_program(journal: Journal) -> None:
    platform = FakePlatform()
    for number in range(5):
        platform.write(f"{number}", row_id=f"row-{number}", caller="peer", age=1000 - number)
    CursorFile(journal.path.parent, WORKSPACE).save("row-2")
    async with Serving(platform, journal):
        await platform.until(lambda: len(platform.sent) == 2)
        await asyncio.sleep(60)
    assert platform.answers() == ["echo: 3", "echo: 4"]
    assert platform.fetches[0]["since_id"] == "row-2"


async def test_expired_cursor_falls_back_to_since_secs(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("old", caller="peer", age=1000)
    platform.write("new", caller="peer", age=5)
    CursorFile(journal.path.parent, WORKSPACE).save("gone")
    async with Serving(platform, journal):
        await asyncio.sleep(60)
    assert platform.answers() == ["echo: new"]


async def test_file_is_ignored_beside_a_journal(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("one", row_id="one", caller="peer", age=5)
    async with Serving(platform, journal):
        await asyncio.sleep(60)
    platform.write("two", row_id="two", caller="peer")
    (journal.path.parent / "ws-1.json").write_text('{"last_since_id": "two"}')
    async with Serving(platform, journal):
        await asyncio.sleep(10)
    assert platform.answers() == ["echo: one", "echo: two"]
    assert content(journal.path.parent)["last_since_id"] == "two"


async def test_invalid_file_costs_no_message(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("one", row_id="one", caller="peer", age=5)
    async with Serving(platform, journal):
        await asyncio.sleep(60)
    (journal.path.parent / "ws-1.json").write_text("garbage")
    platform.write("two", row_id="two", caller="peer")
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
    assert len(serving.events.of(events.Notice)) == 1
    assert platform.answers() == ["echo: one", "echo: two"]
    assert content(journal.path.parent)["last_since_id"] == "two"


async def test_stays_before_an_unfinished_message(journal: Journal) -> None:
    release = asyncio.Event()

    async def handler(request: Request, progress: Progress) -> Response:
        if request.text == "slow":
            await release.wait()
        return await echo(request, progress)

    platform = FakePlatform()
    platform.write("first", row_id="first", caller="peer-1", age=3)
    platform.write("slow", row_id="slow", caller="peer-2", age=2)
    platform.write("last", row_id="last", caller="peer-3", age=1)
    async with Serving(platform, journal, handler):
        await platform.until(lambda: len(platform.sent) == 2)
        await asyncio.sleep(5)
        assert content(journal.path.parent)["last_since_id"] == "first"
        release.set()
        await asyncio.sleep(2)
        assert content(journal.path.parent)["last_since_id"] == "last"


async def test_failed_write_is_reported_and_stops_nothing(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("one", caller="peer")
    in_the_way = journal.path.parent / "ws-1.json"
    async with Serving(platform, journal) as serving:
        await platform.until(in_the_way.exists)
        in_the_way.unlink()
        in_the_way.mkdir()
        (in_the_way / "x").touch()
        platform.write("between", caller="peer")
        await asyncio.sleep(10)
        assert [event.part for event in serving.events.of(events.Trouble)] == ["cursor file"]
        platform.write("two", caller="peer")
        await platform.until(lambda: len(platform.sent) == 3)
    assert serving.error is None


@pytest.mark.parametrize("since_secs", [0.0, 30.0, 3600.0])
async def test_deleted_row_looks_back_ten_minutes(journal: Journal, since_secs: float) -> None:
    (journal.path.parent / f"{WORKSPACE}.json").write_text('{"last_since_id": "a-row-that-was-deleted"}')
    platform = FakePlatform()
    for age in (3000, 700, 590, 100):
        platform.write(f"{age}", caller="peer-1", age=age)
    async with Serving(platform, journal, since_secs=since_secs):
        await asyncio.sleep(120)
    expected = ["590", "100"] if since_secs < 3600 else ["3000", "700", "590", "100"]
    assert platform.answers() == [f"echo: {age}" for age in expected]
