"""kill -9 at each step of files that come and go: none is lost, shown twice, or taken away from who needs it."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import attrs
import pytest
from tests.worker.kit import EPOCH, WORKSPACE, Disk, Row, Upload, inbound, open_journal
from tests.worker.test_kills import Fuse, Mortal, dies

from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.files import files_folder
from molecule_connect.flag import Flag
from molecule_connect.models import FilePart, Progress, Request, Response, TextPart
from molecule_connect.worker.worker import Worker, WorkerOptions


class MortalWithFiles(Mortal):
    """Dies around each request for a file, too."""

    async def fetch_file(self, file_id: str, sink: IO[bytes], *, cap: int) -> str:
        await self.fuse.stay()
        kind = await super().fetch_file(file_id, sink, cap=cap)
        await self.fuse.stay()
        self.fuse.point()
        return kind

    async def acknowledge_file(self, file_id: str) -> None:
        await self.fuse.stay()
        self.fuse.point()
        await super().acknowledge_file(file_id)
        self.fuse.point()

    async def upload(self, files: Sequence[FilePart]) -> tuple[FilePart, ...]:
        await self.fuse.stay()
        self.fuse.point()
        taken = await super().upload(files)
        await self.fuse.stay()
        self.fuse.point()
        return taken


@attrs.define
class Artist:
    """Reads what it is sent, and answers "draw" with a picture."""

    picture: Path
    fuse: Fuse
    read: list[tuple[str, bytes | None]] = attrs.field(factory=list)

    async def __call__(self, request: Request, progress: Progress) -> Response:
        await self.fuse.stay()
        for part in request.parts:
            if isinstance(part, FilePart):
                self.read.append((part.name, part.path.read_bytes() if part.path else None))
        await asyncio.sleep(0.2)
        await self.fuse.stay()
        drawn = (FilePart(uri="", name="drawn.png", path=self.picture),) if request.text == "draw" else ()
        return Response(parts=(TextPart(request.text or "files"), *drawn))


def talk(platform: MortalWithFiles) -> None:
    """A file with its message, one without, and a wish for a picture."""
    for name in ("named", "alone"):
        platform.uploads.kept[name] = Upload(content=name.encode())
        platform.show_upload(name, f"{name}.txt", len(name))
    part = FilePart(uri=f"platform-pending:{WORKSPACE}/named", name="named.txt")
    item = inbound(row_id="look", time=platform.now(), seq=99, parts=(TextPart("look"), part), fingerprint="look")
    platform.rows.append(Row(item=item, visible=0.0))
    platform.write("draw", context="another")


async def live(folder: Path, platform: MortalWithFiles, backend: Artist) -> None:
    """One life of the connector, until all that it knows is over."""
    loop = asyncio.get_running_loop()
    disk = Disk(before=backend.fuse.point, after=backend.fuse.point)
    async with open_journal(folder, disk) as journal:
        stop = Flag()
        connection = Worker(
            WorkspaceSettings(workspace_id=WORKSPACE, backend="fake", poll_interval=5.0),
            platform=platform,
            handler=backend,
            journal=journal,
            options=WorkerOptions(wall=lambda: EPOCH + loop.time()),
        )
        serving = asyncio.ensure_future(connection.run(stop))
        await asyncio.sleep(70)
        stop.set()
        await serving


async def lives(folder: Path, kill_at: int) -> tuple[int, MortalWithFiles, Artist]:
    """Live, die at a point, and live again. Returns how many points there were."""
    platform, fuse = MortalWithFiles(), Fuse(kill_at)
    platform.fuse, platform.cut = fuse, set()
    talk(platform)
    picture = folder / "drawn.png"
    picture.write_bytes(b"drawn")
    backend = Artist(picture, fuse)
    if await dies(fuse, live(folder, platform, backend)):
        platform.fuse = backend.fuse = Fuse()
        await live(folder, platform, backend)
    return fuse.passed, platform, backend


@pytest.mark.timeout(300)  # some hundred lives, each with a journal of its own
async def test_killed_process_loses_no_file(tmp_path: Path) -> None:
    def folder() -> Path:
        return Path(tempfile.mkdtemp(dir=tmp_path))

    points, _, _ = await lives(folder(), 0)
    assert points > 30
    for point in range(1, points + 1):
        place = folder()
        _, platform, backend = await lives(place, point)
        told = f"killed at point {point}"
        assert Counter(platform.answers()) == Counter(["look", "draw", "files"]), told
        assert set(backend.read) == {("named.txt", b"named"), ("alone.txt", b"alone")}, told
        sent = next(out for out in platform.sent if len(out.parts) == 2)
        attached = sent.parts[1]
        assert isinstance(attached, FilePart), told
        drawn = platform.uploads.kept[attached.uri.rpartition("/")[2]]
        assert (drawn.content, drawn.fetched, drawn.acked) == (b"drawn", 0, 0), told
        assert [platform.uploads.kept[name].acked for name in ("named", "alone")] != [0, 0], told
        kept = files_folder(place, WORKSPACE)
        assert sorted(path.read_bytes() for path in kept.iterdir()) == [b"alone", b"named"], told
