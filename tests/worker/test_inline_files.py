"""Files whose bytes came in the message itself, as peers send them."""

import base64

from tests.inbox.test_mode import reader
from tests.worker.kit import FakePlatform, Serving
from tests.worker.test_downloads import Reading, folder, on_disk, says

from molecule_connect import events
from molecule_connect.journal.inspect import Inspection
from molecule_connect.journal.journal import Journal
from molecule_connect.models import FilePart, TextPart
from molecule_connect.worker.file_quota import FolderLimits


def inline(content: bytes = b"hello", name: str = "a.txt", mime_type: str = "text/plain") -> FilePart:
    encoded = base64.b64encode(content).decode()
    return FilePart(uri=f"data:{mime_type};base64,{encoded}", name=name, mime_type=mime_type)


async def test_backend_gets_inline_bytes_as_a_path(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        says(platform, TextPart("look"), inline(name="../../x y.txt"), caller_id="peer")
        await platform.until(lambda: len(platform.sent) == 1, seconds=5)

    (file,) = backend.files()
    assert backend.contents == [[b"hello"]]
    assert file.path is not None
    assert file.path.parent == folder(journal)
    assert file.path.name[32:] == "-x_y.txt"
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert (file.name, file.mime_type, file.size, file.unavailable) == ("../../x y.txt", "text/plain", 5, "")
    assert file.uri == inline().uri


async def test_reader_gets_inline_bytes_as_a_path(
    journal: Journal,
) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving:
        inbox = reader(serving)
        says(platform, TextPart("look"), inline(), inline(b"other"), caller_id="peer")
        message = await inbox.wait(60)
    assert message is not None
    paths = [part.path for part in message.parts if isinstance(part, FilePart)]
    assert [path and path.read_bytes() for path in paths] == [b"hello", b"other"]


async def test_restart_keeps_the_path(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving:
        says(platform, inline(), caller_id="peer")
        first = await reader(serving).wait(60, hold=0)
    async with Serving(platform, journal, None) as serving:
        second = await reader(serving).wait(60)
    assert first is not None
    assert second is not None
    assert first.parts == second.parts
    assert len(on_disk(journal)) == 1


async def test_invalid_inline_bytes_are_marked(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        broken = FilePart(uri="data:image/png;base64,a!", name="b.png")
        says(platform, broken, inline(), FilePart(uri="data:,a%20b", name="c.txt"), caller_id="peer")
        await platform.until(lambda: len(platform.sent) == 1, seconds=5)

    assert backend.contents == [[None, b"hello", b"a b"]]
    assert backend.files()[0].unavailable.startswith("its bytes cannot be read")
    assert len(on_disk(journal)) == 2


async def test_inline_files_obey_the_quota(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    one, other = inline(b"1" * 600), inline(b"2" * 600)
    async with Serving(platform, journal, backend, file_limits=FolderLimits(quota=1000)) as serving:
        for number, file in enumerate((one, other, one)):
            says(platform, file, row_id=f"row-{number}", caller_id="peer")
            await platform.until(lambda answered=number + 1: len(platform.sent) == answered)  # type: ignore[misc]
            assert len(on_disk(journal)) == 1
        assert any("to make room" in one.text or "was removed" in one.text for one in serving.events.of(events.Notice))
    assert backend.contents == [[b"1" * 600], [b"2" * 600], [b"1" * 600]]


async def test_inspection_shows_inline_paths(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        says(platform, inline(), row_id="here", caller_id="peer")
        await platform.until(lambda: len(platform.sent) == 1)
        with Inspection.open(journal.path.parent) as inspection:
            parts = inspection.message(inspection.find("here")).parts
    assert parts == tuple(backend.files())
    assert backend.files()[0].path == on_disk(journal)[0]
