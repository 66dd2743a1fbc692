"""The chat on a terminal: with a scripted prompt, and real processes on a pseudo-terminal."""

import asyncio
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest

from molecule_connect import events
from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.session import ChatOptions, Session
from molecule_connect_sandbox.terminal import Interrupted, Terminal

PROGRAM = [sys.executable, "-m", "molecule_connect_sandbox"]
LEFT, UP, DELETE = b"\x1b[D", b"\x1b[A", b"\x1b[3~"


class ScriptedPrompt:
    """Reads from a queue; None is Ctrl-D, an exception is raised."""

    def __init__(self) -> None:
        self.typed: asyncio.Queue[str | Interrupted | None] = asyncio.Queue()
        self.shown: asyncio.Queue[str] = asyncio.Queue()

    async def read(self) -> str | None:
        typed = await self.typed.get()
        if isinstance(typed, Interrupted):
            raise typed
        return typed

    async def show(self, text: str) -> None:
        self.shown.put_nowait(text)


@attrs.define
class Person:
    """Receives "answer" to every message."""

    said: "asyncio.Queue[str]" = attrs.field(factory=asyncio.Queue)

    async def say(self, text: str) -> None:
        self.said.put_nowait(text)

    async def hear(self) -> list[str]:
        return ["answer"]


class Chatting:
    """A terminal that runs inside ``async with``, for at most five seconds."""

    def __init__(self, *, patience: float = 60.0) -> None:
        self.prompt, self.person = ScriptedPrompt(), Person()
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        session: Any = Session(url="http://here", workspace_id="ws", person=self.person, events=self.events)  # type: ignore[arg-type]
        options = ChatOptions(backend="mock", sandbox=SandboxOptions())
        self.terminal = Terminal(options, session, self.prompt, patience=patience)

    async def __aenter__(self) -> "Chatting":
        self.running = asyncio.ensure_future(self.terminal.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        async with asyncio.timeout(5):
            await self.running

    def type(self, *lines: str | Interrupted | None) -> None:
        for line in lines:
            self.prompt.typed.put_nowait(line)

    def report(self, kind: Any, row_id: str, **given: Any) -> None:
        self.events.put_nowait(kind(workspace_id="ws", row_id=row_id, caller_id=None, context_id=None, **given))

    async def shown(self) -> str:
        async with asyncio.timeout(5):
            return await self.prompt.shown.get()


async def test_ctrl_d_waits_for_pending_replies(capsys: pytest.CaptureFixture[str]) -> None:
    async with Chatting() as chat:
        chat.type("one", "", "two", None)
        assert await chat.shown() == "(waiting for 2 messages; Ctrl-D or Ctrl-C ends at once)"
        chat.report(events.Delivered, "row-1")
        assert await chat.shown() == "mock> answer"
        assert not chat.running.done()
        chat.report(events.Answered, "row-2", seconds=0.1, text="", silent=True)
        assert await chat.shown() == "(mock sent no reply)"
    assert "left without an answer" not in capsys.readouterr().out


async def test_second_ctrl_d_reports_unanswered_messages(capsys: pytest.CaptureFixture[str]) -> None:
    async with Chatting() as chat:
        chat.type("one", None)
        await chat.shown()
        chat.type(None)
    assert "1 message left without an answer." in capsys.readouterr().out


async def test_ctrl_c_ends_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    async with Chatting() as chat:
        chat.type("one", Interrupted())
    assert "1 message left without an answer." in capsys.readouterr().out


async def test_ctrl_d_ignores_dead_letters() -> None:
    async with Chatting() as chat:
        chat.type("one", None)
        await chat.shown()
        chat.report(events.Dead, "row-1", reason="no")
        assert await chat.shown() == "error: dead letter: no"
        assert (await chat.shown()).startswith("what to do: ")


async def test_ctrl_d_with_nothing_pending_ends_chat(capsys: pytest.CaptureFixture[str]) -> None:
    async with Chatting() as chat:
        chat.type("one")
        await chat.person.said.get()
        chat.report(events.Delivered, "row-1")
        await chat.shown()
        chat.type(None)
    assert chat.prompt.shown.empty()


async def test_shows_slow_backend_and_progress() -> None:
    async with Chatting(patience=0.0) as chat:
        chat.type("one")
        assert await chat.shown() == "(mock is working; you can keep typing)"
        chat.report(events.Progressed, "row-1", text="reading\x1b[2J files\n")
        assert await chat.shown() == "(mock: reading[2J files)"
        chat.report(events.Delivered, "row-1")
        chat.type(None)


class Screen:
    """A chat on a pseudo-terminal."""

    def __init__(self, *arguments: str, **environ: str) -> None:
        self.keys, self.tty = pty.openpty()
        self.modes = termios.tcgetattr(self.tty)
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=self.tty,
            stdout=self.tty,
            stderr=self.tty,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", **environ},
        )
        self.shown = b""

    def until(self, text: bytes) -> None:
        while text not in self.shown:
            self.shown += os.read(self.keys, 4096)

    def skip(self, text: bytes) -> None:
        self.until(text)
        _, _, self.shown = self.shown.partition(text)

    def type(self, keys: bytes) -> None:
        os.write(self.keys, keys)


@contextmanager
def on_a_terminal(*arguments: str, **environ: str) -> Iterator[Screen]:
    screen = Screen(*arguments, **environ)
    try:
        yield screen
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(screen.keys)
        os.close(screen.tty)


def test_edits_lines_recalls_history_restores_terminal() -> None:
    with on_a_terminal() as screen:
        screen.until(b"you> ")
        screen.type(b"hxllo" + 4 * LEFT + DELETE + b"e\r")
        screen.until(b"mock> echo: hello\r\n")
        screen.until(b"you> ")
        screen.type(UP + b"!\r")
        screen.until(b"mock> echo: hello!\r\n")
        screen.type(b"half a line")
        screen.until(b"half a line")
        screen.process.send_signal(signal.SIGINT)
        screen.until(b"Next: molecule connect")
        assert screen.process.wait(40) == 0
        assert termios.tcgetattr(screen.tty) == screen.modes


def test_chat_ends_with_a_complete_command() -> None:
    options = ("--backend", "exec", "--backend-opt", "cmd=tr a-z A-Z", "--backend-opt", "api_key=hidden")
    given = ChatOptions(
        backend="exec",
        backend_options={"cmd": "tr a-z A-Z", "exit_codes": ["3:silent", "4:retry"], "api_key": "hidden"},
        sandbox=SandboxOptions(),
    )
    assert given.next_command == (
        "molecule connect WORKSPACE_ID --api-url https://your-platform.example --backend exec"
        " --backend-opt cmd='tr a-z A-Z' --backend-opt exit_codes=3:silent --backend-opt exit_codes=4:retry"
        " --backend-opt api_key=..."
    )
    assert "'molecule try exec --backend-opt cmd=... --backend-opt exit_codes=..." in given.hint
    with on_a_terminal(*options[:4]) as screen:
        screen.until(b"you> ")
        screen.type(b"\x04")
        screen.until(b"--backend exec --backend-opt cmd='tr a-z A-Z'")
        assert screen.process.wait(40) == 0


def test_pasted_lines_are_one_message() -> None:
    with on_a_terminal() as screen:
        screen.until(b"you> ")
        screen.type(b"\x1b[200~one\ntwo\x1b[201~\r")
        screen.skip(b"mock> echo: one\r\ntwo\r\n")
        screen.until(b"you> ")
        screen.type(b"\x03")
        assert screen.process.wait(40) == 0
        assert termios.tcgetattr(screen.tty) == screen.modes


def test_dumb_terminal_gets_no_escape_sequences() -> None:
    with on_a_terminal(TERM="dumb") as screen:
        screen.until(b"you> ")
        screen.type(b"hello\n")
        screen.until(b"mock> echo: hello\r\n")
        assert b"\x1b" not in screen.shown


def test_ctrl_d_shows_the_pending_reply(tmp_path: Any) -> None:
    go = tmp_path / "go"
    command = f"while [ ! -e {go} ]; do sleep 0.05; done; cat"
    with on_a_terminal("--backend", "exec", "--backend-opt", f"cmd={command}") as screen:
        screen.until(b"you> ")
        screen.type(b"hello\r")
        screen.skip(b"(exec is working")
        # While a line is printed, the terminal is not in the editor's mode.
        screen.until(b"you> ")
        screen.type(b"\x04")
        screen.until(b"(waiting for 1 message; Ctrl-D or Ctrl-C ends at once)")
        go.touch()
        screen.until(b"exec> hello")
        screen.until(b"Next: molecule connect")
        assert screen.process.wait(40) == 0


def test_closed_terminal_ends_chat_and_backend_processes(tmp_path: Any) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with on_a_terminal("--backend", "exec", "--backend-opt", f"cmd=sleep 60 >{fifo}") as screen:
        screen.until(b"you> ")
        screen.type(b"hello\r")
        with fifo.open("rb") as held:
            screen.process.send_signal(signal.SIGHUP)
            assert held.read() == b""
        screen.process.wait(40)


def test_reads_lines_without_terminal_for_output(tmp_path: Any) -> None:
    keys, tty = pty.openpty()
    with subprocess.Popen(PROGRAM, stdin=tty, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        os.write(keys, b"hello\n\x04")
        out, _ = process.communicate(timeout=40)
    os.close(keys)
    os.close(tty)
    assert process.returncode == 0
    assert "mock> echo: hello" in out
