"""The chat in a pipe, with a real connection and with scripted ones."""

import asyncio
import io
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import httpx
import pytest

from molecule_connect import (
    BackendError,
    BackendNotFoundError,
    MoleculeError,
    Request,
    Response,
    WorkspaceSettings,
    events,
    hookimpl,
)
from molecule_connect_sandbox.chat import chat
from molecule_connect_sandbox.lines import read_lines
from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.session import ChatOptions, clean

OPTIONS = SandboxOptions(admin_token="admin")


@attrs.frozen(eq=False)
class Shout:
    """Answers in capitals; rejects messages that start with "no", sends no reply to "hush"."""

    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        if request.text.startswith("no"):
            raise BackendError("will not", retryable=False)
        return Response.silent() if request.text == "hush" else Response.from_text(request.text.upper())


async def chat_with(backend: str | object, text: str, **more: Any) -> bool:
    return await chat(ChatOptions(backend=backend, sandbox=OPTIONS, stdin=io.StringIO(text), **more))


async def test_answers_lines_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert await chat_with(Shout(), "one\n\ntwo\r\nthree")
    assert capsys.readouterr() == ("ONE\nTWO\nTHREE\n", "")


async def test_reports_dead_letters_and_continues(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not await chat_with(Shout(), "one\nno way\nno more\ntwo\n")
    out, err = capsys.readouterr()
    assert out == "ONE\nTWO\n"
    lines = err.splitlines()
    assert lines[::2] == [f"error: '{line}' is a dead letter: will not" for line in ("no way", "no more")]
    assert all(line.startswith("what to do: ") for line in lines[1::2])


async def test_silent_response_counts_as_reply(capsys: pytest.CaptureFixture[str]) -> None:
    assert await chat_with(Shout(), "hush\none\n")
    assert capsys.readouterr().out == "ONE\n"


async def test_warns_of_misspelt_option_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert await chat_with("mock", "one\n", backend_options={"replay": "got %s"})
    out, err = capsys.readouterr()
    assert out == "echo: one\n"
    assert err.startswith("warning: ")
    assert "did you mean 'reply'?" in err


async def test_empty_input_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert await chat_with(Shout(), "\n")
    assert capsys.readouterr() == ("", "")


async def test_removes_nul_from_messages(capsys: pytest.CaptureFixture[str]) -> None:
    assert await chat_with(Shout(), "a\x00b\n")
    assert capsys.readouterr().out == "AB\n"


async def test_unknown_backend_raises() -> None:
    with pytest.raises(BackendNotFoundError):
        await chat_with("nowhere-to-be-found", "one\n")


async def test_early_end_of_connection_raises() -> None:
    async def connect(settings: WorkspaceSettings, **given: Any) -> None:
        return

    with pytest.raises(MoleculeError, match="ended before registration"):
        await chat_with("mock", "one\n", connect=connect)


async def test_broken_connection_ends_chat_with_its_error() -> None:
    async def connect(settings: WorkspaceSettings, *, listener: Callable[[Any], None], **given: Any) -> None:
        listener(events.Registered(workspace_id="ws-1"))
        await asyncio.sleep(0)
        raise MoleculeError("broken")

    with pytest.raises(MoleculeError, match="broken"):
        await chat_with("mock", "one\n", connect=connect)


async def test_passes_settings_to_connect() -> None:
    given: dict[str, Any] = {}

    async def connect(settings: WorkspaceSettings, **more: Any) -> None:
        given.update(more, settings=settings)
        headers = {"Authorization": f"Bearer {settings.token}"}
        async with httpx.AsyncClient(base_url=settings.api_url, trust_env=False) as client:
            given["state"] = (await client.get(f"/workspaces/{settings.workspace_id}/state", headers=headers)).json()
        more["listener"](events.Registered(workspace_id="ws-1"))
        await asyncio.Event().wait()

    assert await chat_with("mock", "", connect=connect, backend_options={"reply": "x"})
    assert (given["settings"].backend, given["settings"].options) == ("mock", {"reply": "x"})
    assert given["state"]["status"] == "awaiting_agent"
    assert not given["state_dir"].exists()


def test_clean_removes_control_characters() -> None:
    assert clean("a\x1b[2Jb\r\n\tc\x07") == "a[2Jb\n\tc"


async def collect(descriptor: int) -> list[str]:
    with os.fdopen(descriptor) as stream:
        return [line async for line in read_lines(stream)]


async def test_reads_lines_as_they_arrive() -> None:
    readable, writable = os.pipe()
    with os.fdopen(readable) as stream:
        lines = read_lines(stream)
        for text in ("one", "two"):
            waiting: Awaitable[str] = asyncio.ensure_future(anext(lines))
            await asyncio.sleep(0)
            threading.Thread(target=os.write, args=(writable, f"{text}\n".encode())).start()
            async with asyncio.timeout(5):
                assert await waiting == text
        os.write(writable, "ü\nno end".encode())
        os.close(writable)
        assert [line async for line in lines] == ["ü", "no end"]


async def test_waiting_for_line_leaves_loop_free() -> None:
    readable, writable = os.pipe()
    os.write(writable, b"one\n")
    with os.fdopen(readable) as stream:
        lines = read_lines(stream)
        assert await anext(lines) == "one"
        waiting = asyncio.ensure_future(anext(lines))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    os.close(writable)


async def test_reads_plain_files_and_dev_null(tmp_path: Any) -> None:
    file = tmp_path / "messages"
    file.write_text("one\ntwo\n")
    assert await collect(os.open(file, os.O_RDONLY)) == ["one", "two"]
    assert await collect(os.open(os.devnull, os.O_RDONLY)) == []
