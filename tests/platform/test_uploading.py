"""Files on their way to and from the platform, against the sandbox's own reading of a form."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
from tests.platform.kit import Connect, Script, raw_server

from molecule_connect.errors import (
    ConfigError,
    Outcome,
    PageTooLargeError,
    PermanentPlatformError,
    TransientPlatformError,
)
from molecule_connect.files import pending_id
from molecule_connect.models import FilePart, UploadLimits
from molecule_connect.platform import endpoints
from molecule_connect.platform.multipart import PIECE, Multipart
from molecule_connect.platform.responses import EndpointAbsentError
from molecule_connect.platform.workspace_client import WorkspaceClient
from molecule_connect_sandbox.testing import Sandbox, Workspace


@attrs.frozen
class Place:
    """A workspace of a sandbox and a client of it."""

    sandbox: Sandbox
    workspace: Workspace
    client: WorkspaceClient

    async def content(self, file: FilePart) -> bytes:
        """What the platform keeps of *file*."""
        return await self.client.call(endpoints.upload_content(self.workspace.id, id_of(file)))


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with Sandbox.in_process() as sandbox:
        workspace = await sandbox.workspace()
        async with WorkspaceClient(
            sandbox.url, workspace_id=workspace.id, token=workspace.token, transport=sandbox.transport
        ) as client:
            yield Place(sandbox, workspace, client)


def file(path: Path, content: bytes = b"x", **given: Any) -> FilePart:
    path.write_bytes(content)
    return FilePart(uri="", path=path, **given)


def id_of(file: FilePart) -> str:
    file_id = pending_id(file.uri)
    assert file_id is not None
    return file_id


async def test_uploaded_files_are_unchanged(place: Place, tmp_path: Path) -> None:
    big = bytes(range(256)) * (PIECE // 100)
    files = [file(tmp_path / "b.png", big), file(tmp_path / "a b.txt", b"text", mime_type="text/markdown")]

    png, text = await place.client.call(endpoints.upload_files(place.workspace.id, files))

    assert (png.name, png.mime_type, png.size) == ("b.png", "image/png", len(big))
    assert (text.name, text.mime_type, text.size) == ("a_b.txt", "text/markdown", 4)
    assert await place.content(png) == big
    assert await place.content(text) == b"text"


async def test_uploads_can_be_attached_to_notify(place: Place, tmp_path: Path) -> None:
    uploaded = await place.client.call(endpoints.upload_files(place.workspace.id, [file(tmp_path / "a.txt")]))

    await place.client.call(endpoints.notify(place.workspace.id, "see here", attachments=uploaded))

    shown = next(row for row in await place.sandbox.rows(place.workspace) if row["method"] == "notify")
    (part,) = shown["response_body"]["parts"]
    assert part["file"] == {"uri": uploaded[0].uri, "name": "a.txt", "mimeType": "text/plain", "size": 1}


def test_a_type_beyond_measure_is_not_sent(tmp_path: Path) -> None:
    form = Multipart.of([file(tmp_path / "x", mime_type="text/" + "p" * 1000), file(tmp_path / "y", name="//[a.pdf")])

    assert [one.mime_type for one in form.files] == ["application/octet-stream", "application/pdf"]


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "n" * 300])
def test_rejects_path_without_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be sent"):
        Multipart.of([FilePart(uri="", path=tmp_path / name)])


async def test_names_cannot_inject_headers(place: Place, tmp_path: Path) -> None:
    hostile = file(tmp_path / "x", name='a"\r\nX-Evil: 1\r\n\r\n.txt', mime_type="text/plain\r\nX-Evil: 1")

    (taken,) = await place.client.call(endpoints.upload_files(place.workspace.id, [hostile]))

    assert taken.name == "a___X-Evil__1____.txt"
    assert taken.mime_type == "application/octet-stream"


@pytest.mark.parametrize("kind", ["missing", "folder", "empty"])
def test_invalid_files_fail_before_any_request(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if kind == "folder":
        path.mkdir()
    if kind == "empty":
        path.touch()

    with pytest.raises(ConfigError, match="'a'"):
        endpoints.upload_files("ws", [FilePart(uri="", path=path)])


@pytest.mark.parametrize("count", [0, 65])
def test_a_form_holds_one_to_64_files(count: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{count} files"):
        endpoints.upload_files("ws", [file(tmp_path / "a")] * count)


def test_form_length_is_known_in_advance(tmp_path: Path) -> None:
    form = Multipart.of([file(tmp_path / "a", b"abc"), file(tmp_path / "b", b"d")])

    assert form.length == sum(map(len, form.pieces()))


def test_file_size_changes_while_sending(tmp_path: Path) -> None:
    form = Multipart.of([file(tmp_path / "a", b"abc")])

    (tmp_path / "a").write_bytes(b"abcdef")
    assert b"".join(form.pieces()).count(b"abcdef") == 0
    (tmp_path / "a").write_bytes(b"ab")
    with pytest.raises(ConfigError, match="shorter"):
        list(form.pieces())


async def test_file_removed_before_sending_raises(place: Place, tmp_path: Path) -> None:
    operation = endpoints.upload_files(place.workspace.id, [file(tmp_path / "a")])
    (tmp_path / "a").unlink()

    with pytest.raises(ConfigError, match="cannot be sent"):
        await place.client.call(operation)


async def test_upload_is_fetched_and_acknowledged(place: Place, tmp_path: Path) -> None:
    workspace, sink = place.client, io.BytesIO()
    (taken,) = await workspace.upload([file(tmp_path / "a.png", b"picture")])

    kind = await workspace.fetch_file(id_of(taken), sink, cap=100)
    await workspace.acknowledge_file(id_of(taken))
    await workspace.acknowledge_file(id_of(taken))

    assert (sink.getvalue(), kind) == (b"picture", "image/png")


async def test_a_file_over_the_cap_is_cut(place: Place, tmp_path: Path) -> None:
    workspace, sink = place.client, io.BytesIO()
    (taken,) = await workspace.upload([file(tmp_path / "a", b"x" * 1000)])

    with pytest.raises(PageTooLargeError):
        await workspace.fetch_file(id_of(taken), sink, cap=999)
    assert len(sink.getvalue()) <= 999


async def test_missing_file_writes_nothing(place: Place) -> None:
    sink = io.BytesIO()

    with pytest.raises(PermanentPlatformError) as told:
        await place.client.fetch_file("00000000-0000-4000-8000-000000000000", sink, cap=100)
    assert told.value.status == 404
    assert sink.getvalue() == b""


async def test_incident_71_cap_is_the_platforms() -> None:
    caps = {}
    for generation in ("2026-05", "2026-08"):
        async with Sandbox.in_process(platform=generation) as sandbox:
            workspace = await sandbox.workspace()
            async with WorkspaceClient(
                sandbox.url, workspace_id=workspace.id, token=workspace.token, transport=sandbox.transport
            ) as client:
                caps[generation] = await client.upload_limits()

    assert caps["2026-05"] == UploadLimits(per_file=25 << 20, per_request=50 << 20)
    assert caps["2026-08"] == UploadLimits(per_file=100 << 20, per_request=100 << 20)


@pytest.mark.parametrize(
    "answer", [httpx.Response(200, html="<html>the canvas</html>"), httpx.Response(403, html="<html>the edge</html>")]
)
async def test_foreign_page_gives_default_limits(connect: Connect, answer: httpx.Response) -> None:
    assert await connect(Script(answer)).upload_limits() == UploadLimits()


@pytest.mark.parametrize("status", [429, 503])
async def test_busy_platform_is_asked_again(connect: Connect, status: int) -> None:
    asking = connect(Script(httpx.Response(status), httpx.Response(200, json={"per_file_bytes": 7})))
    with pytest.raises(TransientPlatformError):
        await asking.upload_limits()
    assert (await asking.upload_limits()).per_file == 7


async def test_limits_are_read_once_an_hour() -> None:
    now = [0.0]
    async with Sandbox.in_process() as sandbox:
        workspace = await sandbox.workspace()
        async with WorkspaceClient(
            sandbox.url,
            workspace_id=workspace.id,
            token=workspace.token,
            transport=sandbox.transport,
            clock=lambda: now[0],
        ) as client:
            for seconds in (0.0, 3599.0, 3600.0):
                now[0] = seconds
                await client.upload_limits()
        asked = await sandbox.requests()
    assert asked["GET", "/uploads/limits"] == 2


async def serve_pieces(writer: asyncio.StreamWriter, *, size: int | None, pieces: int | None) -> None:
    """An answer that says it has *size* bytes, and goes on for so many pieces of 64 KiB, or for ever."""
    length = f"Content-Length: {size}" if size is not None else "Transfer-Encoding: chunked"
    writer.write(f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".encode())
    sent = 0
    while pieces is None or sent < pieces:
        writer.write((b"10000\r\n" if size is None else b"") + b"x" * 65536 + (b"\r\n" if size is None else b""))
        await writer.drain()
        sent += 1
    await asyncio.Event().wait()


@pytest.mark.parametrize("size", [None, 1 << 40])
async def test_incident_69_endless_body_is_cut(size: int | None) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await serve_pieces(writer, size=size, pieces=None)

    sink = io.BytesIO()
    async with raw_server(talk) as url, WorkspaceClient(url, workspace_id="ws-1", token="t") as client:
        with pytest.raises(PageTooLargeError):
            await client.fetch_file("f1", sink, cap=1 << 20)
    assert len(sink.getvalue()) <= 1 << 20


async def test_incident_69_hanging_body_times_out() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await serve_pieces(writer, size=1 << 20, pieces=1)

    operation = attrs.evolve(endpoints.upload_content("ws-1", "f1"), timeout=0.05)
    async with raw_server(talk) as url, WorkspaceClient(url, workspace_id="ws-1", token="t") as client:
        with pytest.raises(TransientPlatformError):
            await client.call(operation, sink=io.BytesIO())


async def test_short_body_is_no_file() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort")

    async with raw_server(talk) as url, WorkspaceClient(url, workspace_id="ws-1", token="t") as client:
        with pytest.raises(TransientPlatformError):
            await client.fetch_file("f1", io.BytesIO(), cap=100)


async def test_missing_upload_endpoint_is_remembered(connect: Connect, tmp_path: Path) -> None:
    script = Script(httpx.Response(404, text="404 page not found"))
    workspace = connect(script)

    for _ in range(2):
        with pytest.raises(EndpointAbsentError):
            await workspace.upload([file(tmp_path / "a")])

    assert len(script.requests) == 1


async def test_incomplete_upload_list_is_unknown_outcome(connect: Connect, tmp_path: Path) -> None:
    workspace = connect(Script(httpx.Response(200, json={"files": []})))

    with pytest.raises(TransientPlatformError) as told:
        await workspace.upload([file(tmp_path / "a")])
    assert told.value.outcome is Outcome.UNKNOWN
