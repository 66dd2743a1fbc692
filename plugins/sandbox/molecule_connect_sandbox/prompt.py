"""The input line of the chat; replies appear above it."""

import os
import sys
from typing import TextIO

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.input import create_input
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.utils import is_dumb_terminal

from molecule_connect_sandbox.lines import read_lines
from molecule_connect_sandbox.terminal import Interrupted, Prompt

PROMPT = "you> "


class LinePrompt:
    """A prompt without line editing, for dumb terminals and redirected output."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines = read_lines(stream)

    async def read(self) -> str | None:
        click.echo(PROMPT, nl=False)
        try:
            return await anext(self._lines)
        except StopAsyncIteration:
            self._lines = read_lines(self._stream)
            click.echo()
            return None

    async def show(self, text: str) -> None:
        click.echo(f"\n{text}\n{PROMPT}", nl=False)


class EditingPrompt:
    """A prompt with line editing and history; pasted lines become one message."""

    def __init__(self, stream: TextIO) -> None:
        output = Vt100_Output.from_pty(sys.stdout, term=os.environ.get("TERM"))
        # Cursor position requests delay the exit, and cause a warning on terminals that don't answer them.
        output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            [("ansicyan", PROMPT)],
            input=create_input(stream),
            output=output,
            enable_suspend=True,
            interrupt_exception=Interrupted,
        )

    async def read(self) -> str | None:
        try:
            text: str = await self._session.prompt_async(set_exception_handler=False, handle_sigint=False)
        except EOFError:
            return None
        return text

    async def show(self, text: str) -> None:
        await run_in_terminal(lambda: click.echo(text))


def open_prompt(stream: TextIO) -> Prompt:
    """The best prompt for *stream*, a terminal."""
    if is_dumb_terminal() or not sys.stdout.isatty():
        return LinePrompt(stream)
    return EditingPrompt(stream)
