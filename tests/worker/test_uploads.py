"""Files in an answer to a person: uploaded first, then attached, over restarts and failures once."""

import asyncio
from pathlib import Path

import pytest
from tests.worker.kit import EPOCH, WORKSPACE, FakePlatform, Serving, Upload, inbound, open_journal
from tests.worker.test_downloads import Reading, named, says, uploads

from molecule_connect import events
from molecule_connect.errors import Outcome, PermanentPlatformError, TransientPlatformError
from molecule_connect.journal.files import FileJournal
from molecule_connect.journal.journal import Journal
from molecule_connect.models import FilePart, Kind, Progress, Request, Response, TextPart, UploadLimits


class Drawing:
    """A backend that answers with files."""

    def __init__(self, *paths: Path) -> None:
        self.paths = paths
        self.requests: list[Request] = []

    async def __call__(self, request: Request, progress: Progress) -> Response:
        self.requests.append(request)
        files = [FilePart(uri="", name=path.name, path=path) for path in self.paths]
        return Response(parts=(TextPart("here"), *files))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(b"pixels")
    return path


def cut(status: int | None = None, outcome: Outcome = Outcome.UNKNOWN) -> TransientPlatformError:
    return TransientPlatformError("upload: cut", operation="upload", status=status, outcome=outcome)


def attached(platform: FakePlatform, number: int = -1) -> list[str]:
    return [part.uri.rpartition("/")[2] for part in platform.sent[number].parts if isinstance(part, FilePart)]


def notes(journal: Journal) -> int:
    return int(journal.reader.execute("SELECT count(*) FROM upload_note").fetchone()[0])


async def test_own_upload_is_attached_and_not_downloaded(journal: Journal, picture: Path) -> None:
    platform, backend = FakePlatform(), Drawing(picture)
    async with Serving(platform, journal, backend) as serving:
        platform.write("draw")
        await platform.until(lambda: len(platform.sent) == 1)
        await asyncio.sleep(200)

    assert attached(platform) == ["ours-0"]
    assert serving.events.of(events.Recorded) == []
    assert platform.answers() == ["here"]
    upload = platform.uploads.kept["ours-0"]
    assert (upload.content, upload.fetched, upload.acked) == (b"pixels", 0, 0)
    assert len(backend.requests) == 1
    assert notes(journal) == 0


async def test_peer_gets_file_names_without_upload(journal: Journal, picture: Path) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, Drawing(picture)):
        platform.write("draw", caller="peer-1")
        await platform.until(lambda: len(platform.sent) == 1)
    assert platform.uploads.taken == []


@pytest.mark.parametrize("outcome", [Outcome.UNKNOWN, Outcome.NOT_TAKEN])
async def test_failed_upload_is_retried_before_the_reply(journal: Journal, picture: Path, outcome: Outcome) -> None:
    platform = FakePlatform()
    platform.uploads.fail_take = [cut(503, outcome), cut(None, outcome)]
    async with Serving(platform, journal, Drawing(picture)):
        platform.write("draw")
        await platform.until(lambda: len(platform.sent) == 1)
    assert attached(platform) == ["ours-0"]
    assert notes(journal) == (2 if outcome is Outcome.UNKNOWN else 0)


async def test_upload_with_lost_response_is_recognized(journal: Journal, picture: Path) -> None:
    platform, backend = FakePlatform(), Drawing(picture)
    platform.uploads.cut_take = [cut()]
    async with Serving(platform, journal, backend):
        platform.write("draw")
        await platform.until(lambda: len(platform.sent) == 1)
        await asyncio.sleep(300)

    assert platform.uploads.taken == ["ours-0", "ours-1"]
    assert attached(platform) == ["ours-1"]
    assert [upload.fetched for upload in platform.uploads.kept.values()] == [0, 0]
    assert len(backend.requests) == 1


async def test_persons_equal_file_is_not_ours(journal: Journal, tmp_path: Path) -> None:
    files, rows, now = FileJournal(journal, WORKSPACE, tmp_path), journal.of(WORKSPACE), round(EPOCH * 1e6)
    written = await files.note([("a.png", 6)], at=now)
    both = [FilePart(uri=f"platform-pending:{WORKSPACE}/{one}", name="a.png", size=6) for one in ("ours", "theirs")]
    await rows.add(
        [inbound(row_id=part.uri, kind=Kind.UPLOAD, parts=(part,), caller_id=None) for part in both], now=now
    )
    assert files.due(9) == []

    await files.uploaded(both[:1], written, at=now)

    assert [file.file_id for file in files.due(9)] == ["theirs"]


async def test_note_matches_equal_files_for_an_hour(journal: Journal, tmp_path: Path) -> None:
    files, rows, now = FileJournal(journal, WORKSPACE, tmp_path), journal.of(WORKSPACE), round(EPOCH * 1e6)
    await files.note([("a.png", 6)], at=now)
    hour = 3600 * 1_000_000
    uploads = {
        "equal": ("a.png", 6, now + hour - 1),
        "late": ("a.png", 6, now + hour),
        "longer": ("a.png", 7, now),
        "other": ("b.png", 6, now),
    }
    for file_id, (name, size, at) in uploads.items():
        part = FilePart(uri=f"platform-pending:{WORKSPACE}/{file_id}", name=name, size=size)
        await rows.add([inbound(row_id=file_id, kind=Kind.UPLOAD, parts=(part,), time=at)], now=at)

    assert {file.file_id for file in files.due(9)} == {"late", "longer", "other"}


async def test_restart_does_not_repeat_an_upload(tmp_path: Path, picture: Path) -> None:
    platform, backend = FakePlatform(), Drawing(picture)
    platform.fail_send = [cut(503, Outcome.NOT_TAKEN)]
    async with open_journal(tmp_path) as journal, Serving(platform, journal, backend, grace=0.0):
        platform.write("draw")
        await platform.until(lambda: bool(platform.tried))
        await asyncio.sleep(0.01)
    picture.unlink()  # noqa: ASYNC240
    async with open_journal(tmp_path) as journal, Serving(platform, journal, backend):
        await platform.until(lambda: len(platform.sent) == 1)

    assert platform.uploads.taken == ["ours-0"]
    assert attached(platform) == ["ours-0"]
    assert len(backend.requests) == 1


async def test_echo_settles_a_reply_with_files(journal: Journal, picture: Path) -> None:
    platform = FakePlatform(cut_after=[TransientPlatformError("cut", operation="notify", outcome=Outcome.UNKNOWN)])
    async with Serving(platform, journal, Drawing(picture)) as serving:
        platform.write("draw")
        await platform.until(lambda: bool(serving.events.of(events.Delivered)))
        await asyncio.sleep(60)
    assert len(platform.sent) == 1
    assert not [notice for notice in serving.events.of(events.Notice) if "somebody else" in notice.text]


@pytest.mark.parametrize("wrong", ["gone", "empty", "too large", "folder", "nul", "long", "half a pair"])
async def test_unfit_file_becomes_a_line(journal: Journal, picture: Path, tmp_path: Path, wrong: str) -> None:
    platform = FakePlatform(limits=UploadLimits(per_file=100))
    names = {"nul": "bad.png\0", "long": "bad.png" * 40, "half a pair": "bad.png\ud800"}
    bad = tmp_path / names.get(wrong, "bad.png")
    if wrong == "empty":
        bad.touch()
    if wrong == "too large":
        bad.write_bytes(b"x" * 101)
    if wrong == "folder":
        bad.mkdir()
    async with Serving(platform, journal, Drawing(bad, picture)):
        platform.write("draw")
        await platform.until(lambda: len(platform.sent) == 1)

    assert attached(platform) == ["ours-0"]
    assert "The file bad.png" in platform.answers()[0]
    assert "could not be attached: it " in platform.answers()[0]
    assert len(platform.answers()[0]) < 300


async def test_refused_upload_becomes_a_line(journal: Journal, picture: Path) -> None:
    platform = FakePlatform()
    platform.uploads.fail_take = [
        PermanentPlatformError("upload: 403 no uploads here", operation="upload", status=403, body="")
    ]
    async with Serving(platform, journal, Drawing(picture)):
        platform.write("draw")
        await platform.until(lambda: len(platform.sent) == 1)
    assert "could not be attached: upload: 403 no uploads here" in platform.answers()[0]


async def test_failing_upload_does_not_block_the_text(journal: Journal, picture: Path) -> None:
    platform = FakePlatform()
    platform.uploads.fail_take = [cut(500) for _ in range(100)]
    async with Serving(platform, journal, Drawing(picture)) as serving:
        platform.write("draw")
        began = serving.clock()
        await platform.until(lambda: len(platform.sent) == 1)
        assert 900 <= serving.clock() - began <= 1500
    assert "could not be attached" in platform.answers()[0]


async def test_many_files_take_several_requests(journal: Journal, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.bin" for number in range(70)]
    for path in paths:
        path.write_bytes(b"x")
    platform = FakePlatform()
    async with Serving(platform, journal, Drawing(*paths)):
        platform.write("draw")
        await platform.until(lambda: len(platform.sent) == 1)
    assert len(attached(platform)) == len(set(platform.uploads.taken)) == 70


async def test_returned_file_is_a_new_upload(journal: Journal) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        return Response(parts=request.parts)

    platform.uploads.kept["f1"] = Upload(content=b"theirs")
    async with Serving(platform, journal, handler):
        platform.show_upload("f1", "a.txt", 6)
        await platform.until(lambda: len(platform.sent) == 1)
    assert attached(platform) == ["ours-1"]
    assert platform.uploads.kept["ours-1"].content == b"theirs"


async def test_file_named_by_a_person_is_downloaded(journal: Journal, picture: Path) -> None:
    platform, backend = FakePlatform(), Reading()
    files = FileJournal(journal, WORKSPACE, journal.path.parent / WORKSPACE / "files")
    async with Serving(platform, journal, backend):
        # An upload of ours whose outcome nobody knows, and a person's that equals it.
        await files.note([("picture.png", 6)], at=round(EPOCH * 1e6))
        uploads(platform, "picture.png", content=b"pixels")
        await platform.until(lambda: files_known(journal) == ["ours"])
        says(platform, TextPart("look"), named(name="picture.png"))
        await platform.until(lambda: len(platform.sent) == 1, seconds=10)
        await asyncio.sleep(200)

    assert backend.contents == [[b"pixels"]]
    assert (platform.uploads.kept["f1"].fetched, platform.uploads.kept["f1"].acked) == (1, 0)


async def test_own_file_a_person_names_is_available(journal: Journal, picture: Path) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, Drawing(picture)):
        platform.write("draw")
        await platform.until(lambda: len(platform.sent) == 1)
    backend = Reading()
    async with Serving(platform, journal, backend):
        says(platform, TextPart("this one?"), named("ours-0", "picture.png"))
        await platform.until(lambda: len(platform.sent) == 2, seconds=10)
        await asyncio.sleep(200)
    assert backend.contents == [[b"pixels"]]
    assert platform.uploads.kept["ours-0"].acked == 0


def files_known(journal: Journal) -> list[str]:
    return [row[0] for row in journal.reader.execute("SELECT state FROM file")]
