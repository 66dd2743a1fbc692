"""The state folder is removed while a worker runs: it ends, and the next one answers nothing twice."""

import asyncio
import contextlib
import shutil
from pathlib import Path

import pytest
from tests.worker.kit import WORKSPACE, FakePlatform, Serving, open_journal

from molecule_connect.cli.errors import REFUSED, exit_code
from molecule_connect.errors import StateLostError, TransientPlatformError
from molecule_connect.journal.journal import FILE_NAME, Journal
from molecule_connect.worker.lease import lease


async def look(journal: Journal) -> None:
    """What a supervisor does once a second."""
    with contextlib.suppress(StateLostError):
        await journal.data_version()


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


async def test_removed_folder_ends_serving_and_is_restored(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    platform = FakePlatform()
    platform.write("before")
    async with open_journal(state) as journal, Serving(platform, journal) as serving:
        await platform.until(lambda: len(platform.sent) == 1)
        await asyncio.sleep(60)
        shutil.rmtree(state)
        await look(journal)
        await serving.ended()
    assert isinstance(serving.error, StateLostError)
    assert str(state / FILE_NAME) in str(serving.error)
    assert serving.error.hint
    assert exit_code(serving.error) == REFUSED
    assert "restored at" in caplog.text
    assert modes(state) == {"state": 0o700, FILE_NAME: 0o600, f"{WORKSPACE}.status": 0o600}
    platform.write("after")
    async with open_journal(state) as journal, Serving(platform, journal):
        await platform.until(lambda: len(platform.sent) == 2)
        await asyncio.sleep(60)
    assert platform.answers() == ["echo: before", "echo: after"]


async def test_starts_no_more_messages(state: Path) -> None:
    platform = FakePlatform()
    async with open_journal(state) as journal, Serving(platform, journal) as serving:
        await asyncio.sleep(60)
        shutil.rmtree(state)
        platform.write("after")
        await serving.ended()
    assert isinstance(serving.error, StateLostError)
    assert platform.sent == []


async def test_leaves_another_processs_journal_alone(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_journal(state) as journal, Serving(FakePlatform(), journal) as serving:
        await asyncio.sleep(60)
        (state / FILE_NAME).unlink()
        (state / FILE_NAME).write_text("of another process")
        await look(journal)
        await serving.ended()
    assert isinstance(serving.error, StateLostError)
    assert (state / FILE_NAME).read_text() == "of another process"
    assert "was not changed" in caplog.text


async def test_removed_lock_ends_only_its_workspace(journal: Journal) -> None:
    folder = journal.path.parent
    async with (
        Serving(FakePlatform(), journal, workspace_id="ws-2") as other,
        Serving(FakePlatform(), journal) as serving,
    ):
        await asyncio.sleep(60)
        (folder / f"{WORKSPACE}.lock").unlink()
        with lease(folder, WORKSPACE):
            await look(journal)
            await serving.ended()
        assert isinstance(serving.error, StateLostError)
        assert f"{WORKSPACE}.lock" in str(serving.error)
        other.platform.write("still served")
        await other.platform.until(lambda: len(other.platform.sent) == 1)


async def test_ends_while_registering_too(state: Path) -> None:
    platform = FakePlatform()
    platform.fail_register = [_unreachable() for _ in range(1000)]
    async with open_journal(state) as journal, Serving(platform, journal, patient=True) as serving:
        await asyncio.sleep(60)
        shutil.rmtree(state)
        await look(journal)
        await serving.ended()
    assert isinstance(serving.error, StateLostError)


def _unreachable() -> TransientPlatformError:
    return TransientPlatformError("register: cannot be reached", operation="register")
