"""Incidents 65 to 71, and what else becomes of the files of a chat."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.worker.kit import EPOCH, WORKSPACE, Disk, FakePlatform, Row, Serving, Upload, inbound, open_journal

from molecule_connect import events
from molecule_connect.errors import BackendError, PermanentPlatformError, TransientPlatformError
from molecule_connect.journal.inspect import Inspection
from molecule_connect.journal.journal import Journal
from molecule_connect.models import FilePart, Kind, Part, Progress, Request, Response, Signal, TextPart, UploadLimits
from molecule_connect.worker.file_quota import FolderLimits


class Reading:
    """A backend that keeps what it is given, with the bytes of the files at that moment."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.contents: list[list[bytes | None]] = []

    async def __call__(self, request: Request, progress: Progress) -> Response:
        files = [part for part in request.parts if isinstance(part, FilePart)]
        self.requests.append(request)
        self.contents.append([file.path.read_bytes() if file.path else None for file in files])
        return Response.from_text(f"saw {len(files)}")

    def files(self, number: int = -1) -> list[FilePart]:
        return [part for part in self.requests[number].parts if isinstance(part, FilePart)]


def transient(status: int | None = 503) -> TransientPlatformError:
    return TransientPlatformError("upload: not now", operation="upload", status=status)


def uploads(platform: FakePlatform, name: str = "a.txt", file_id: str = "f1", **given: Any) -> str:
    """A person uploads a file."""
    upload = platform.uploads.kept.setdefault(file_id, Upload(**given))
    return platform.show_upload(file_id, name, len(upload.content))


def named(file_id: str = "f1", name: str = "a.txt") -> FilePart:
    return FilePart(uri=f"platform-pending:{WORKSPACE}/{file_id}", name=name, mime_type="text/plain")


def says(platform: FakePlatform, *parts: Part, row_id: str = "message", **given: Any) -> None:
    """A person writes a message of these parts now."""
    platform._seq += 1
    item = inbound(row_id=row_id, time=platform.now(), seq=platform._seq, parts=parts, fingerprint=row_id, **given)
    platform.rows.append(Row(item=item, visible=asyncio.get_running_loop().time()))


def folder(journal: Journal) -> Path:
    return journal.path.parent / WORKSPACE / "files"


def on_disk(journal: Journal) -> list[Path]:
    return sorted(folder(journal).iterdir()) if folder(journal).exists() else []


async def test_message_gets_the_path_of_its_file(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        uploads(platform, content=b"hello", content_type="text/csv; charset=utf-8")
        says(platform, TextPart("look"), named())
        await platform.until(lambda: len(platform.sent) == 1)

    (file,) = backend.files()
    assert backend.contents == [[b"hello"]]
    assert file.uri == named().uri
    assert (file.name, file.mime_type, file.size, file.unavailable) == ("a.txt", "text/csv", 5, "")
    assert file.path is not None
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert [place.stat().st_mode & 0o777 for place in (folder(journal), folder(journal).parent)] == [0o700, 0o700]
    assert platform.uploads.kept["f1"].acked == 1


async def test_file_of_wrong_size_is_not_acknowledged(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        uploads(platform, content=b"the picture")
        upload = platform.uploads.kept["f1"]
        upload.content = b"<html>Sign in</html>"
        await platform.until(lambda: upload.fetched == 1)
        assert upload.acked == 0

        upload.content = b"the picture"
        says(platform, TextPart("look"), named())
        await platform.until(lambda: len(platform.sent) == 1)

    assert backend.contents == [[b"the picture"]]
    assert len(on_disk(journal)) == 1
    assert upload.acked == 1


async def test_endless_downloads_time_out(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, Reading()):
        for number in range(4):
            uploads(platform, file_id=f"slow{number}", seconds=1e6)
        await platform.until(lambda: platform.uploads.most == 4)
        uploads(platform, content=b"hello")
        await platform.until(lambda: platform.uploads.kept["f1"].acked == 1)


async def test_four_files_are_downloaded_at_once(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend) as serving:
        for number in range(10):
            uploads(platform, file_id=f"f{number}", seconds=1.0)
        says(platform, *(named(f"f{number}") for number in range(10)))
        await platform.until(lambda: len(platform.sent) == 1)

        assert serving.clock() < 1_800_000_000 + 10
    assert platform.uploads.most == 4
    assert [upload.fetched for upload in platform.uploads.kept.values()] == [1] * 10


async def test_three_files_are_downloaded_concurrently(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    platform.has_stream = True
    loop = asyncio.get_running_loop()
    async with Serving(platform, journal, backend) as serving:
        await platform.until(lambda: bool(serving.events.of(events.Registered)))
        began = loop.time()
        for number in range(3):
            uploads(platform, file_id=f"f{number}", seconds=0.12)
        says(platform, *(named(f"f{number}") for number in range(3)))
        platform.signal(Signal.ROW)
        while not backend.requests:  # noqa: ASYNC110 - to the millisecond
            await asyncio.sleep(0.001)
        assert loop.time() - began < 0.25


async def test_hanging_download_delays_only_its_message(
    journal: Journal,
) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend) as serving:
        uploads(platform, seconds=100.0)
        says(platform, TextPart("look"), named(), row_id="first")
        says(platform, TextPart("other"), row_id="other", context_id="another conversation")
        await platform.until(lambda: len(platform.sent) == 1, seconds=5)
        assert backend.requests[0].text == "other"

        began = serving.clock()
        await platform.until(lambda: len(platform.sent) == 2)
        assert 60 <= serving.clock() - began <= 66
        (late,) = backend.files()
        assert late.path is None
        assert late.unavailable == "it is not downloaded yet"

        await platform.until(lambda: platform.uploads.kept["f1"].acked == 1)
        says(platform, TextPart("again"), named(), row_id="second")
        await platform.until(lambda: len(platform.sent) == 3)
    assert backend.contents[-1] == [b"content"]


async def test_message_is_delivered_without_its_failed_file(
    journal: Journal,
) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        uploads(platform, name="broken.txt", fails=[transient()] * 9)
        uploads(platform, name="good.txt", file_id="f2")
        says(platform, TextPart("look"), named(name="broken.txt"), named("f2", "good.txt"))
        await platform.until(lambda: len(platform.sent) == 1)

        broken, good = backend.files()
        assert (broken.path, broken.unavailable) == (None, "upload: not now")
        assert good.path is not None
        await platform.until(lambda: platform.uploads.kept["f1"].acked == 1)
        says(platform, named(name="broken.txt"), row_id="second")
        await platform.until(lambda: len(platform.sent) == 2)
    assert backend.contents[-1] == [b"content"]


async def test_passing_download_failure_is_waited_for(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        uploads(platform, fails=[transient(), transient(None)])
        says(platform, named())
        await platform.until(lambda: len(platform.sent) == 1)
    assert backend.contents == [[b"content"]]
    assert len(on_disk(journal)) == 1


async def test_deleted_file_is_not_waited_for(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend) as serving:
        platform.show_upload("lost", "a.txt", 7)
        says(platform, TextPart("look"), named("lost"))
        await platform.until(lambda: len(platform.sent) == 1, seconds=10)

        assert backend.files()[0].unavailable == "the platform no longer has it"
        assert "no longer has it" in serving.events.of(events.Notice)[0].text
    assert on_disk(journal) == []


@pytest.mark.parametrize("fetched", [True, False])
async def test_restart_keeps_files_for_their_message(tmp_path: Path, fetched: bool) -> None:
    platform, backend = FakePlatform(), Reading()
    async with open_journal(tmp_path) as journal, Serving(platform, journal, backend):
        uploads(platform, seconds=0.0 if fetched else 1000.0)
        await platform.until(lambda: platform.uploads.kept["f1"].fetched == 1)
        await asyncio.sleep(1)

    platform.uploads.kept["f1"].seconds = 0.0
    async with open_journal(tmp_path) as journal, Serving(platform, journal, backend):
        says(platform, TextPart("look"), named())
        await platform.until(lambda: len(platform.sent) == 1)
        assert len(on_disk(journal)) == 1
    assert backend.contents == [[b"content"]]
    assert platform.uploads.kept["f1"].fetched == (1 if fetched else 2)


async def test_files_without_a_message_become_one(
    journal: Journal,
) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend) as serving:
        says(platform, TextPart("before"), context_id="talk")
        await platform.until(lambda: len(platform.sent) == 1)
        oldest = uploads(platform, name="a.png")
        await asyncio.sleep(50)
        uploads(platform, name="b.png", file_id="f2")
        began = serving.clock()
        await platform.until(lambda: len(platform.sent) == 2)

        assert 60 <= serving.clock() - began <= 70
        assert backend.requests[-1].message_id == oldest
        assert backend.requests[-1].context_id == "talk"
        assert [file.name for file in backend.files()] == ["a.png", "b.png"]
        assert all(file.path for file in backend.files())
        await asyncio.sleep(200)
        assert len(platform.sent) == 2

        says(platform, TextPart("that picture"), named(name="a.png"), row_id="later")
        await platform.until(lambda: len(platform.sent) == 3)
    assert backend.contents[-1] == [b"content"]


async def test_named_file_becomes_no_message(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        uploads(platform)
        await asyncio.sleep(55)
        says(platform, named())
        await asyncio.sleep(300)
    assert len(backend.requests) == 1


async def test_files_wait_for_the_first_read(
    tmp_path: Path,
) -> None:
    platform, backend = FakePlatform(), Reading()
    async with open_journal(tmp_path) as journal, Serving(platform, journal, backend):
        uploads(platform)
        await platform.until(lambda: platform.uploads.kept["f1"].acked == 1)
    await asyncio.sleep(3600)
    says(platform, TextPart("look"), named(), row_id="written meanwhile")
    async with open_journal(tmp_path) as journal, Serving(platform, journal, backend):
        await platform.until(lambda: len(platform.sent) == 1)
        await asyncio.sleep(100)
    assert [request.text for request in backend.requests] == ["look"]


@pytest.mark.parametrize("name", ["../../x", "a\0b", "n" * 300, ".", "..", "", "/etc/passwd", "a/b\n.txt"])
async def test_hostile_name_stays_in_the_folder(journal: Journal, name: str) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        uploads(platform, name=name)
        says(platform, named(name=name))
        await platform.until(lambda: len(platform.sent) == 1)
    (path,) = on_disk(journal)
    assert backend.files()[0].path == path
    assert len(path.name) <= 33 + 100
    assert backend.contents == [[b"content"]]


async def test_endless_body_leaves_no_file(journal: Journal) -> None:
    platform, backend = FakePlatform(limits=UploadLimits(per_file=1 << 20)), Reading()
    async with Serving(platform, journal, backend):
        uploads(platform, endless=True)
        says(platform, named())
        await platform.until(lambda: len(platform.sent) == 1, seconds=10)
    assert backend.files()[0].unavailable == "it is larger than 1 MiB"
    assert on_disk(journal) == []
    assert platform.uploads.kept["f1"].acked == 0


async def test_cancelled_download_leaves_no_file(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        uploads(platform, seconds=5000.0)
        await platform.until(lambda: platform.uploads.kept["f1"].fetched == 1)
        await asyncio.sleep(1)
    assert on_disk(journal) == []


@pytest.mark.parametrize(
    ("told", "announced_name", "kind"),
    [
        ("image/png", "x.txt", "image/png"),
        ("text/html\r\nX-Evil: 1", "x.png", "text/plain"),
        ("", "x.png", "text/plain"),
        ("a" * 200 + "/b", "x.png", "text/plain"),
    ],
)
async def test_invalid_media_type_is_ignored(journal: Journal, told: str, announced_name: str, kind: str) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        uploads(platform, name=announced_name, content_type=told)
        says(platform, named())
        await platform.until(lambda: len(platform.sent) == 1)
    assert backend.files()[0].mime_type == kind


async def test_acknowledged_file_is_stored(
    journal: Journal,
) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        uploads(platform)
        await platform.until(lambda: platform.uploads.kept["f1"].acked == 1)
        assert [path.read_bytes() for path in on_disk(journal)] == [b"content"]
        del platform.uploads.kept["f1"]
        says(platform, named())
        await platform.until(lambda: len(platform.sent) == 1)
    assert backend.contents == [[b"content"]]


async def test_raised_limit_admits_larger_files(journal: Journal) -> None:
    platform, backend = FakePlatform(limits=UploadLimits(per_file=3)), Reading()
    async with Serving(platform, journal, backend):
        uploads(platform)
        says(platform, named())
        await platform.until(lambda: len(platform.sent) == 1)
        assert backend.contents == [[None]]

        platform.limits = UploadLimits(per_file=100 << 20)
        uploads(platform, file_id="f2")
        says(platform, named("f2"), row_id="second")
        await platform.until(lambda: len(platform.sent) == 2)
    assert backend.contents[-1] == [b"content"]


async def test_failed_acknowledgement_is_retried(journal: Journal) -> None:
    platform = FakePlatform()
    platform.uploads.fail_ack = [transient(), transient(None)]
    async with Serving(platform, journal):
        uploads(platform)
        await platform.until(lambda: platform.uploads.kept["f1"].acked == 1)
        assert len(on_disk(journal)) == 1
    assert platform.uploads.kept["f1"].fetched == 1


async def test_unannounced_file_is_downloaded(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    platform.uploads.kept["orphan"] = Upload(content=b"orphan")
    async with Serving(platform, journal, backend):
        says(platform, named("orphan"))
        await platform.until(lambda: len(platform.sent) == 1)
    assert backend.contents == [[b"orphan"]]


async def test_files_of_answered_messages_are_not_downloaded(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        uploads(platform)
        says(platform, named(), kind=Kind.HISTORY)
        await asyncio.sleep(300)
    assert backend.requests == []


async def test_partial_files_of_earlier_processes_are_removed(tmp_path: Path) -> None:
    place = tmp_path / WORKSPACE / "files"
    place.mkdir(parents=True)
    (place / ("0" * 32 + "-half.bin")).write_bytes(b"half")
    (place / "notes of the operator").write_text("mine")
    async with open_journal(tmp_path) as journal, Serving(FakePlatform(), journal):
        await asyncio.sleep(1)
    assert [path.name for path in on_disk(journal)] == ["notes of the operator"]


@pytest.mark.parametrize("until", ["fetched", "stored"])
async def test_uncommitted_file_is_downloaded_again(tmp_path: Path, until: str) -> None:
    """A full disk stands in for a kill: what was fetched is not in the journal."""
    platform, backend, disk = FakePlatform(), Reading(), Disk()
    async with open_journal(tmp_path, disk) as journal, Serving(platform, journal, backend):
        uploads(platform)
        await platform.until(lambda: "manifest-f1" in {row[0] for row in rows(journal)})
        disk.full = until == "fetched"
        await asyncio.sleep(8)
        disk.full = False
        says(platform, named())
        await platform.until(lambda: len(platform.sent) == 1)
        await platform.until(lambda: platform.uploads.kept["f1"].acked == 1)
        assert len(on_disk(journal)) == 1
    assert backend.contents == [[b"content"]]


def rows(journal: Journal) -> list[tuple[str]]:
    found: list[tuple[str]] = journal.reader.execute("SELECT row_id FROM message").fetchall()
    return found


async def test_old_files_of_finished_messages_are_removed(journal: Journal) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        if request.text == "slow":
            raise BackendError("later", retry_after=12 * 3600.0)
        return Response.from_text(f"{[part.unavailable for part in request.parts if isinstance(part, FilePart)]}")

    room = FolderLimits(kept_for=1800.0)
    async with Serving(platform, journal, handler, file_limits=room, poll_interval=60.0) as serving:
        uploads(platform, name="done.txt")
        uploads(platform, name="open.txt", file_id="f2")
        says(platform, TextPart("quick"), named(), row_id="a")
        says(platform, TextPart("slow"), named("f2"), row_id="b", context_id="else")
        await platform.until(lambda: len(platform.sent) == 1)
        await asyncio.sleep(3 * 3600)

        assert [path.name[33:] for path in on_disk(journal)] == ["open.txt"]
        told = [notice.text for notice in serving.events.of(events.Notice)]
        assert "1 file of finished messages was removed: files are kept for 0.0208333 days" in told
        says(platform, TextPart("again"), named(), row_id="c", context_id="third")
        await platform.until(lambda: len(platform.sent) == 2)
    assert "removed from this machine after" in platform.answers()[1]


async def test_quota_removes_the_oldest_finished_files(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend, file_limits=FolderLimits(quota=15)) as serving:
        for number in range(3):
            uploads(platform, name=f"{number}.txt", file_id=f"f{number}")
            says(platform, named(f"f{number}"), row_id=f"m{number}")
            await until_sent(platform, number + 1)
        assert sorted(path.name[33:] for path in on_disk(journal)) == ["1.txt", "2.txt"]
        told = [notice.text for notice in serving.events.of(events.Notice)]
        assert "1 file of finished messages was removed: the folder holds 0 MiB" in told
        says(platform, named("f0"), row_id="again")
        await until_sent(platform, 4)
    assert backend.files()[0].unavailable == "it was removed from this machine to make room"


async def test_full_folder_of_open_messages_is_reported(journal: Journal) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        raise BackendError("later", retry_after=12 * 3600.0)

    async with Serving(platform, journal, handler, file_limits=FolderLimits(quota=10)) as serving:
        uploads(platform)
        uploads(platform, file_id="f2", name="b.txt")
        says(platform, named(), named("f2"))
        await asyncio.sleep(100)
        trouble = next(one for one in serving.events.of(events.Trouble) if one.part == "files")
    assert "is full" in trouble.reason
    assert len(on_disk(journal)) == 1


async def until_sent(platform: FakePlatform, count: int) -> None:
    await platform.until(lambda: len(platform.sent) == count)


async def test_refused_file_is_reported_with_the_reason(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    refused = PermanentPlatformError("upload: 403 not yours", operation="upload", status=403, body="")
    async with Serving(platform, journal, backend):
        uploads(platform, fails=[refused])
        says(platform, named())
        await platform.until(lambda: len(platform.sent) == 1, seconds=10)
    assert backend.files()[0].unavailable == "upload: 403 not yours"


async def test_once_waits_for_files(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    platform.uploads.kept["f1"] = Upload()
    platform.show_upload("f1", "a.txt", 7)
    async with Serving(platform, journal, backend, once=True) as serving:
        await serving.ended()
    assert backend.contents == [[b"content"]]


async def test_clock_set_back_delays_no_file(tmp_path: Path) -> None:
    loop, back = asyncio.get_running_loop(), [0.0]
    platform, backend = FakePlatform(), Reading()

    def wall() -> float:
        return EPOCH + loop.time() - back[0]

    async with (
        Journal.open(tmp_path, wall=wall, opener=Disk().open) as journal,
        Serving(platform, journal, backend, wall=wall),
    ):
        uploads(platform, fails=[transient()])
        uploads(platform, name="b.txt", file_id="f2")
        await platform.until(lambda: not platform.uploads.kept["f1"].fails)
        back[0] = 24 * 3600.0
        await platform.until(lambda: platform.uploads.kept["f1"].acked == 1, seconds=120)
        await platform.until(lambda: len(platform.sent) == 1, seconds=300)
    assert backend.contents == [[b"content", b"content"]]


async def test_journal_shows_the_paths_of_files(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        uploads(platform)
        says(platform, named(), named("lost"))
        await platform.until(lambda: len(platform.sent) == 1)
        with Inspection.open(journal.path.parent) as inspection:
            here, lost = inspection.message(inspection.find("message")).parts
    assert isinstance(here, FilePart)
    assert isinstance(lost, FilePart)
    assert here.path == on_disk(journal)[0]
    assert lost.unavailable == "the platform no longer has it"
