"""Lines that a person types, while other lines are shown above them."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import IO, Protocol

import click

from molecule_connect_sandbox.lines import read_lines

CLEAR = "\r\x1b[K"
PROMPT = "you> "


class Keyboard(Protocol):
    """Where a person types."""

    async def line(self) -> str | None:
        """Show the prompt; the next line, or None at Ctrl-D. It may be asked again after that."""

    def above(self, text: str) -> None:
        """Show *text* above what is being typed."""


class PlainKeyboard:
    """The terminal's own line editing: what is being typed is not known here."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lines = read_lines(stream)
        self._asking = False

    async def line(self) -> str | None:
        click.echo(PROMPT, nl=False)
        self._asking = True
        try:
            return await anext(self._lines)
        except StopAsyncIteration:
            self._lines = read_lines(self._stream)
            return None
        finally:
            self._asking = False

    def above(self, text: str) -> None:
        click.echo(f"{CLEAR}{text}\n{PROMPT if self._asking else ''}", nl=False)


class ReadlineKeyboard:
    """Arrows, history and the rest of readline, which knows only blocking reads: each line has a daemon thread."""

    def __init__(self, readline: ModuleType) -> None:
        self._readline = readline
        self._asking = False

    @contextlib.contextmanager
    def at(self, terminal: int) -> Iterator["ReadlineKeyboard"]:
        """Use it; at the end *terminal* is as it was, also where a line was being typed."""
        import termios

        before = termios.tcgetattr(terminal)
        # One pasted text would be one line, but the terminal would stay in that mode where the chat ends in a line.
        self._readline.parse_and_bind("set enable-bracketed-paste off")
        self._readline.set_pre_input_hook(self._begin)
        try:
            yield self
        finally:
            self._readline.set_pre_input_hook(None)
            with contextlib.suppress(termios.error):  # a terminal that was closed
                termios.tcsetattr(terminal, termios.TCSANOW, before)

    async def line(self) -> str | None:
        loop = asyncio.get_running_loop()
        typed: asyncio.Future[str | None] = loop.create_future()

        def settle(line: str | None) -> None:
            if not typed.done():
                typed.set_result(line)

        def read() -> None:
            line = self._ask()
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, line)

        threading.Thread(target=read, name="keyboard", daemon=True).start()
        return await typed

    def _ask(self) -> str | None:
        try:
            return input(PROMPT)
        except (EOFError, OSError, ValueError):
            return None
        finally:
            self._asking = False

    def _begin(self) -> None:
        # Readline has shown the prompt; before that, whoever showed it too would show it twice.
        self._asking = True

    def above(self, text: str) -> None:
        line = f"{PROMPT}{self._readline.get_line_buffer()}" if self._asking else ""
        click.echo(f"{CLEAR}{text}\n{line}", nl=False)


@contextlib.contextmanager
def open_keyboard(stream: IO[str]) -> Iterator[Keyboard]:
    """The best that *stream*, a terminal, allows: ``input`` edits lines only where both ends are the process's own."""
    try:
        import readline
    except ImportError:
        yield PlainKeyboard(stream)
        return
    if stream is not sys.stdin or not sys.stdout.isatty():
        yield PlainKeyboard(stream)
        return
    with ReadlineKeyboard(readline).at(stream.fileno()) as keyboard:
        yield keyboard
