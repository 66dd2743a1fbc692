"""Files that a sender names or sends to harm others: each caller only ever uses up its own turn and its own room."""

import asyncio
from collections.abc import Iterable

import attrs
import pytest
from tests.inbox.test_mode import reader
from tests.worker.kit import EPOCH, WORKSPACE, Events, FakePlatform, Serving, Upload, inbound, status_of
from tests.worker.test_downloads import Reading, folder, named, on_disk, says, transient, until_sent, uploads
from tests.worker.test_inline_files import inline

from molecule_connect import events
from molecule_connect.errors import BackendError
from molecule_connect.journal.files import FileJournal
from molecule_connect.journal.incoming_files import MOST_FILES, MOST_INLINE, NOT_THEIRS, accepted
from molecule_connect.journal.inspect import Inspection
from molecule_connect.journal.journal import Journal
from molecule_connect.models import FilePart, Kind, Part, Progress, Request, Response, TextPart
from molecule_connect.worker.clock import Clock
from molecule_connect.worker.file_folder import FileFolder
from molecule_connect.worker.file_quota import FolderLimits, FolderQuota, NoRoomError

TOO_MANY = "a message may have at most 64 files"


def count(journal: Journal, table: str) -> int:
    return int(journal.reader.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def files_of(parts: Iterable[Part]) -> list[FilePart]:
    return [part for part in parts if isinstance(part, FilePart)]


class Holding(Reading):
    """A backend that never finishes messages whose text is "hold"."""

    async def __call__(self, request: Request, progress: Progress) -> Response:
        response = await super().__call__(request, progress)
        if request.text == "hold":
            raise BackendError("later", retry_after=12 * 3600.0)
        return response


class HangingAcknowledgements(FakePlatform):
    async def acknowledge_file(self, file_id: str) -> None:
        await asyncio.sleep(1000)


# How many files a message brings


async def test_message_has_at_most_64_files(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    fakes = [named(f"fake-{number}") for number in range(20_000)]
    async with Serving(platform, journal, backend):
        says(platform, TextPart("look"), *fakes, TextPart("end"), row_id="flood", raw="as it came")
        await until_sent(platform, 1)

    *first, marker = backend.files()
    assert [file.uri for file in first] == [fake.uri for fake in fakes[:64]]
    assert (marker.uri, marker.name, marker.unavailable) == ("", "19,936 more files", TOO_MANY)
    assert (backend.requests[0].text, backend.requests[0].raw) == ("lookend", "as it came")
    assert (count(journal, "file"), count(journal, "file_use")) == (MOST_FILES, MOST_FILES)


async def test_readers_and_the_journal_show_the_marker(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving:
        says(platform, *(named(f"fake-{number}") for number in range(65)), row_id="flood")
        message = await reader(serving).wait(120)
        with Inspection.open(journal.path.parent) as inspection:
            shown = inspection.message(inspection.find("flood")).parts
    assert message is not None
    for parts in (message.parts, shown):
        assert (files_of(parts)[-1].name, files_of(parts)[-1].unavailable) == ("1 more file", TOO_MANY)


@pytest.mark.parametrize("caller", [None, "peer"])
async def test_file_flood_delays_no_other_file(journal: Journal, caller: str | None) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend) as serving:
        uploads(platform, content=b"hello")
        for number in range(20):
            fakes = (named(f"{number}-{fake}") for fake in range(1000))
            says(platform, *fakes, row_id=f"flood-{number}", context_id=f"c{number}", caller_id=caller)
        says(platform, TextPart("mine"), named(), row_id="mine", context_id="mine")
        await platform.until(lambda: any(request.text == "mine" for request in backend.requests))

        assert serving.clock() - EPOCH < 10
    mine = next(number for number, request in enumerate(backend.requests) if request.text == "mine")
    assert backend.contents[mine] == [b"hello"]


async def test_slow_downloads_delay_no_inline_file(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend) as serving:
        for number in range(10):
            uploads(platform, file_id=f"slow-{number}", seconds=200.0)
        await platform.until(lambda: platform.uploads.most == 4)
        says(platform, inline(), caller_id="peer")
        await until_sent(platform, 1)
        assert serving.clock() - EPOCH < 10
    assert backend.contents == [[b"hello"]]


async def test_hanging_acknowledgements_delay_no_download(journal: Journal) -> None:
    platform, backend = HangingAcknowledgements(), Reading()
    async with Serving(platform, journal, backend) as serving:
        for number in range(6):
            uploads(platform, file_id=f"first-{number}")
        await platform.until(lambda: len(on_disk(journal)) == 6)
        uploads(platform, content=b"hello")
        says(platform, named())
        await until_sent(platform, 1)
        assert serving.clock() - EPOCH < 20
    assert backend.contents == [[b"hello"]]


async def test_peers_take_turns(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        for number in range(10):
            many = (inline(b"x", name=str(n)) for n in range(64))
            says(platform, *many, row_id=f"flood-{number}", context_id=f"{number}", caller_id="flooder")
        says(platform, TextPart("quiet"), inline(), row_id="quiet", caller_id="quiet")
        await until_sent(platform, 11)
    assert [request.message_id for request in backend.requests].index("quiet") < 5


async def test_message_is_rechecked_for_its_files_only(journal: Journal) -> None:
    platform, backend, looked = FakePlatform(), Reading(), []

    def trace(sql: str) -> None:
        looked.append("FROM file_use u CROSS JOIN file f" in sql)

    async with Serving(platform, journal, backend):
        uploads(platform, file_id="slow", seconds=50.0)
        says(platform, named("slow"), row_id="waits", context_id="waits")
        await asyncio.sleep(5)
        journal.reader.set_trace_callback(trace)
        for number in range(64):
            uploads(platform, file_id=f"f{number}")
        says(platform, *(named(f"f{number}") for number in range(64)))
        await until_sent(platform, 1)
        journal.reader.set_trace_callback(None)
    assert sum(looked) <= 2


async def test_many_unnamed_files_become_several_messages(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        for number in range(70):
            uploads(platform, name="n" * 300, file_id=f"f{number}")
        await until_sent(platform, 2)
    assert [len(request.parts) for request in backend.requests] == [64, 6]
    assert all(content == b"content" for contents in backend.contents for content in contents)


# What a peer may name


@pytest.mark.parametrize("announced", [True, False])
async def test_peer_cannot_claim_a_persons_upload(journal: Journal, announced: bool) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        if announced:
            uploads(platform, content=b"secret")
        else:
            platform.uploads.kept["f1"] = Upload(content=b"secret")
        says(platform, TextPart("mine?"), named(), row_id="thief", caller_id="peer")
        await until_sent(platform, 1)
        (stolen,) = backend.files()
        assert (stolen.path, stolen.unavailable) == (None, NOT_THEIRS)

        await asyncio.sleep(200)
    if announced:
        # It is still the person's message, a minute later.
        assert [request.caller_id for request in backend.requests] == ["peer", None]
        assert backend.contents[-1] == [b"secret"]
    else:
        assert (platform.uploads.kept["f1"].fetched, platform.uploads.kept["f1"].acked) == (0, 0)


@pytest.mark.parametrize("kind", [Kind.ANSWER, Kind.RESULT])
@pytest.mark.parametrize("caller", ["peer", WORKSPACE, None])
async def test_no_answer_or_result_names_an_upload(journal: Journal, kind: Kind, caller: str | None) -> None:
    platform = FakePlatform()
    platform.uploads.kept["f1"] = Upload(content=b"secret")
    async with Serving(platform, journal, None):
        says(platform, named(), kind=kind, caller_id=caller, row_id="theirs")
        await asyncio.sleep(100)
    assert platform.uploads.kept["f1"].fetched == 0
    assert count(journal, "file_use") == 0


async def test_peer_cannot_claim_a_waiting_file(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        says(platform, named(), row_id="before", caller_id="peer")
        await until_sent(platform, 1)
        uploads(platform)
        await asyncio.sleep(55)
        says(platform, TextPart("look"), named(), row_id="theirs")
        await until_sent(platform, 2)
        await asyncio.sleep(200)
    assert [request.caller_id for request in backend.requests] == ["peer", None]
    assert backend.contents[-1] == [b"content"]


async def test_the_first_announcement_of_an_upload_counts(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        uploads(platform)
        forged = inbound(
            row_id="forged",
            kind=Kind.UPLOAD,
            time=platform.now(),
            seq=99,
            parts=(FilePart(uri=named().uri, name="other.txt", size=1 << 60),),
        )
        platform.rows.append(type(platform.rows[-1])(item=forged, visible=0.0))
        says(platform, named())
        await until_sent(platform, 1)
    assert backend.contents == [[b"content"]]


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:1/x", "https://x/y", "file:///etc/passwd", "DATA:,x", "http://[", "//["]
)
@pytest.mark.parametrize("caller", [None, "peer"])
async def test_no_other_address_is_fetched(journal: Journal, uri: str, caller: str | None) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend):
        says(platform, FilePart(uri=uri, name=uri), caller_id=caller)
        await until_sent(platform, 1)
    assert backend.files() == [FilePart(uri=uri, name=uri)]
    assert count(journal, "file") == 0


# Room on the disk


async def test_equal_files_of_two_callers_are_separate(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    limits = FolderLimits(quota=1000)
    async with Serving(platform, journal, backend, file_limits=limits):
        for number, caller in enumerate(("one", "other")):
            says(platform, inline(b"x" * 200), caller_id=caller, row_id=caller)
            await until_sent(platform, number + 1)
        assert len(on_disk(journal)) == 2
        for number in range(5):
            says(platform, inline(b"%d" % number * 700), caller_id="one", row_id=f"more-{number}")
            await until_sent(platform, number + 3)
        with Inspection.open(journal.path.parent) as inspection:
            (kept,) = files_of(inspection.message(inspection.find("other")).parts)
    assert backend.contents[1] == [b"x" * 200]
    assert kept.path is None or kept.path.read_bytes() == b"x" * 200


async def test_peer_cannot_displace_a_persons_file(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend, file_limits=FolderLimits(quota=4000)) as serving:
        uploads(platform, content=b"p" * 3500)
        says(platform, named())
        await until_sent(platform, 1)
        for number in range(20):
            says(platform, inline(b"%02d" % number * 200), caller_id="peer", row_id=f"peer-{number}")
            await until_sent(platform, number + 2)
        sizes = sorted(path.stat().st_size for path in on_disk(journal))
        told = [notice.text for notice in serving.events.of(events.Notice)]
    assert sizes == [400, 3500]
    assert backend.contents[-1] == [b"19" * 200]
    assert len(told) == 1
    assert told[0].endswith("(files of peer)")


async def test_peers_have_shares_of_the_quota(journal: Journal) -> None:
    files, events_, size = FileJournal(journal, WORKSPACE, folder(journal)), Events(), 25 << 20
    room = FolderQuota(
        files,
        FileFolder(folder(journal)),
        FolderLimits(quota=16 * size),
        status=status_of(journal, events_),
        clock=Clock(FakePlatform(), journal.wall),
    )

    async def store(caller: str | None, number: int) -> None:
        item = inbound(row_id=f"{caller}-{number}", parts=(inline(),), caller_id=caller)
        await journal.of(WORKSPACE).add([item], now=0)
        (file,) = files.due(9, caller)
        try:
            await room.make(attrs.evolve(file, size=size), largest=size)
            await files.stored(file, path=item.row_id, size=size, mime_type="")
        finally:
            await files.not_fetched(file, "", not_before=None, state="failed")
            room.release(file)

    for caller in "abc":
        for number in range(4):
            await store(caller, number)
    for caller, words in (("a", "of one workspace may use 100 MiB"), ("d", "of other workspaces may use 300 MiB")):
        with pytest.raises(NoRoomError, match=words):
            await store(caller, 5)
    for number in range(4):
        await store(None, number)
    with pytest.raises(NoRoomError, match="is full: it holds 400 MiB"):
        await store(None, 5)

    # Once messages are finished, the peer that uses most gives way.
    await journal.writer.put(lambda db: db.execute("UPDATE message SET state='done' WHERE row_id IN ('a-0', 'b-0')"))
    await asyncio.sleep(1)
    await store("d", 6)
    await store("d", 7)
    assert files.usage(0) == {None: 4 * size, "a": 3 * size, "b": 3 * size, "c": 4 * size, "d": 2 * size}


async def test_refused_file_is_stored_later(journal: Journal) -> None:
    platform, backend = FakePlatform(), Holding()
    async with Serving(platform, journal, backend, file_limits=FolderLimits(quota=4000)) as serving:
        says(platform, TextPart("hold"), inline(b"x" * 2900), caller_id="peer", row_id="holds", context_id="a")
        await platform.until(lambda: len(backend.requests) == 1)
        says(platform, inline(b"y" * 200), caller_id="peer", row_id="refused", context_id="b")
        await until_sent(platform, 1)
        (refused,) = backend.files()
        assert "the files of one workspace may use" in refused.unavailable
        assert [trouble for trouble in serving.events.of(events.Trouble) if trouble.part == "files"] == []

        uploads(platform, content=b"p" * 900)
        says(platform, named(), row_id="person")
        await until_sent(platform, 2)
        assert backend.contents[-1] == [b"p" * 900]

        await journal.writer.put(lambda db: db.execute("UPDATE message SET state='done' WHERE row_id='holds'"))
        says(platform, inline(b"z" * 200), caller_id="peer", row_id="later", context_id="b")
        await until_sent(platform, 3)
    assert backend.contents[-1] == [b"z" * 200]


async def test_file_beyond_the_share_is_refused(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend, file_limits=FolderLimits(quota=4000)) as serving:
        says(platform, inline(b"x" * 3500), inline(b"small"), caller_id="peer")
        await until_sent(platform, 1)
        assert serving.clock() - EPOCH < 10
    refused, small = backend.files()
    assert "the files of one workspace may use" in refused.unavailable
    assert small.path is not None


async def test_peers_files_are_removed_before_peoples(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend, file_limits=FolderLimits(quota=1000)):
        uploads(platform, content=b"1" * 300)
        says(platform, named(), row_id="first")
        await until_sent(platform, 1)
        says(platform, inline(b"x" * 600), caller_id="peer", row_id="peer")
        await until_sent(platform, 2)
        uploads(platform, content=b"2" * 600, file_id="f2")
        says(platform, named("f2"), row_id="second")
        await until_sent(platform, 3)
        assert sorted(path.stat().st_size for path in on_disk(journal)) == [300, 600]
        assert {path.read_bytes()[:1] for path in on_disk(journal)} == {b"1", b"2"}


def test_inline_bytes_are_limited() -> None:
    half = FilePart(uri="data:," + "x" * (MOST_INLINE * 4 // 3 - 100), name="half")
    large = FilePart(uri="data:," + "x" * (MOST_INLINE * 4 // 3 + 100), name="large")

    first, second, third, fourth = files_of(accepted(inbound(parts=(half, large, half, half))).parts)

    assert first == third == half
    assert (second.uri, second.unavailable) == ("", "it has 25 MiB, more than the limit of 25 MiB")
    assert "the files inside its message" in fourth.unavailable


def test_tiny_files_have_a_minimum_size() -> None:
    limits = FolderLimits()
    assert limits.of_peer(MOST_INLINE) // limits.least == 1 << 14


async def test_failing_files_of_a_peer_are_throttled(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend) as serving:
        broken = [FilePart(uri="data:image/png;base64,a!", name=f"{number}\n" * 200) for number in range(64)]
        says(platform, *broken, caller_id="peer")
        await until_sent(platform, 1)
        (told,) = serving.events.of(events.Notice)
    assert len(told.text) < 300
    assert all(file.unavailable.startswith("its bytes cannot be read") for file in backend.files())


# What must not end the worker


async def test_an_unexpected_error_fails_its_file_alone(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    platform.uploads.fail_ack = [ValueError("no such thing")]  # type: ignore[list-item]
    async with Serving(platform, journal, backend) as serving:
        uploads(platform, fails=[ValueError("embedded null byte")])
        uploads(platform, file_id="f2")
        says(platform, named(), named("f2"))
        await until_sent(platform, 1)
        await asyncio.sleep(100)
        with Inspection.open(journal.path.parent) as inspection:
            broken, good = files_of(inspection.message(inspection.find("message")).parts)
        told = [notice.text for notice in serving.events.of(events.Notice)]
    assert serving.error is None
    assert backend.contents == [[None, b"content"]]
    assert broken.unavailable.startswith(
        "this is a bug in molecule-connect, please report it: ValueError: embedded null"
    )
    assert "kit.py" in broken.unavailable
    assert good.path is not None
    assert [text for text in told if "acknowledged" in text]


@pytest.mark.parametrize("name", ["//[draft] plan.pdf", "http://[", "a\0b.pdf", "\ud800.pdf", "x" * 5000 + ".pdf"])
async def test_uri_as_a_name_stays_a_name(journal: Journal, name: str) -> None:
    platform, backend = FakePlatform(), Reading()
    platform.uploads.kept["f1"] = Upload(content_type="")
    async with Serving(platform, journal, backend):
        says(platform, FilePart(uri=named().uri, name=name), inline(b"hi", name=name, mime_type=""))
        await until_sent(platform, 1)
    assert backend.contents == [[b"content", b"hi"]]
    kind = "application/pdf" if name.endswith(".pdf") else "application/octet-stream"
    assert [file.mime_type for file in backend.files()] == [kind, kind]


async def test_failure_of_one_file_affects_no_other(journal: Journal) -> None:
    platform, backend = FakePlatform(), Reading()
    async with Serving(platform, journal, backend) as serving:
        uploads(platform, fails=[transient()] * 100)
        says(platform, named(), row_id="fails", context_id="a")
        says(platform, inline(), caller_id="peer", row_id="peer")
        await until_sent(platform, 1)
        assert serving.clock() - EPOCH < 5
    assert backend.contents[0] == [b"hello"]
