"""Files in an inbox: readers get paths, and their attachments reach the person."""

import asyncio
from pathlib import Path

import pytest
from tests.inbox.test_inbox import FakeSession
from tests.inbox.test_mode import reader
from tests.worker.kit import WORKSPACE, FakePlatform, Serving, open_journal
from tests.worker.test_downloads import named, says, uploads

from molecule_connect.errors import ConfigError
from molecule_connect.inbox.inbox import ChangeSignal, Inbox
from molecule_connect.journal.journal import Journal
from molecule_connect.models import FilePart, Response, TextPart


async def test_file_path_available_in_another_process(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None), open_journal(tmp_path) as elsewhere:
        uploads(platform, content=b"hello")
        says(platform, TextPart("look"), named())
        message = await Inbox(elsewhere, {WORKSPACE: FakeSession()}, ChangeSignal()).wait(60)
    assert message is not None
    (file,) = (part for part in message.parts if isinstance(part, FilePart))
    assert file.path is not None
    assert file.path.read_bytes() == b"hello"


async def test_message_waits_for_its_file_with_timeout(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving:
        inbox = reader(serving)
        uploads(platform, seconds=10_000)
        says(platform, TextPart("with a file"), named())
        says(platform, TextPart("without"), row_id="other")
        arrivals = inbox.arrivals()
        assert (await anext(arrivals)).text == "without"
        first = await inbox.wait(30)
        assert first is not None
        assert first.text == "without"
        assert await inbox.wait(30) is None
        late = await inbox.wait(60)
        assert late is not None
        assert late.text == "with a file"
        (file,) = (part for part in late.parts if isinstance(part, FilePart))
        assert (file.path, file.unavailable) == (None, "it is not downloaded yet")
        assert (await anext(arrivals)).text == "with a file"


async def test_file_without_message_becomes_a_message(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving:
        arrivals = reader(serving).arrivals()
        uploads(platform, content=b"picture")
        says(platform, TextPart("about something else"))
        assert (await anext(arrivals)).text == "about something else"
        alone = await anext(arrivals)
        (file,) = (part for part in alone.parts if isinstance(part, FilePart))
        assert file.path is not None


async def test_files_of_a_reply_reach_the_person(journal: Journal, tmp_path: Path) -> None:
    platform, picture = FakePlatform(), tmp_path / "picture.png"
    picture.write_bytes(b"png")
    async with Serving(platform, journal, None) as serving:
        inbox = reader(serving)
        platform.write("draw me a sheep")
        message = await inbox.wait(60)
        assert message is not None
        response = Response(parts=(TextPart("here"), FilePart(uri="", name="picture.png", path=picture)))
        assert await inbox.reply(message.activity_id, response) == "delivered"
        await asyncio.sleep(120)
        assert inbox.peek() == []
    (sent,) = platform.sent
    (file,) = (part for part in sent.parts if isinstance(part, FilePart))
    assert file.uri.startswith("platform-pending:")
    assert platform.uploads.kept["ours-0"].content == b"png"


async def test_reply_with_missing_file_refused(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving:
        inbox = reader(serving)
        platform.write("draw me a sheep")
        message = await inbox.wait(60)
        assert message is not None
        for name in ("missing.png", "n" * 300, "a\0b", "\ud800"):
            missing = FilePart(uri="", name="x", path=tmp_path / name)
            with pytest.raises(ConfigError, match=r"cannot be sent: there is no such file"):
                await inbox.reply(message.activity_id, Response(parts=(missing,)))
        assert len(inbox.peek()) == 1
