"""The chat: on a terminal, or in a pipe."""

import asyncio
from collections import deque

import click

from molecule_connect import events
from molecule_connect_sandbox.keyboard import open_keyboard
from molecule_connect_sandbox.lines import read_lines
from molecule_connect_sandbox.session import ChatOptions, Session, session, trouble
from molecule_connect_sandbox.signals import stopping
from molecule_connect_sandbox.terminal import Terminal


class Piped:
    """One message a line, one after the other; answers alone go to standard output."""

    def __init__(self, options: ChatOptions, session: Session) -> None:
        self._options = options
        self._session = session
        self._heard: deque[str] = deque()

    async def run(self) -> bool:
        """Whether every message was answered."""
        good = True
        async for line in read_lines(self._options.stdin):
            if line.strip():
                good = await self._exchange(line) and good
        return good

    async def _exchange(self, line: str) -> bool:
        await self._session.person.say(line)
        while (event := await self._session.told.get()) is not None:
            if isinstance(event, events.Delivered | events.Notified):
                self._heard.extend(await self._session.person.hear())
                text = self._heard.popleft() if self._heard else ""
                # The notice that a message was given up arrives in its turn, and is not an answer.
                if isinstance(event, events.Notified):
                    continue
                click.echo(text)
                return True
            if isinstance(event, events.Answered) and event.silent:
                return True
            if isinstance(event, events.Dead):
                click.echo(f"error: {line[:60]!r} was given up: {event.reason}", err=True)
                click.echo(f"what to do: {self._options.next_step}", err=True)
                return False
            if told := trouble(event):
                click.echo(told, err=True)
        return False


async def chat(options: ChatOptions) -> bool:
    """Chat until the messages end, on a terminal or in a pipe; whether every message was answered.

    Raises:
        MoleculeError: The backend could not be connected, or the sandbox failed.
    """
    async with session(options) as connected:
        if not options.stdin.isatty():
            return await Piped(options, connected).run()
        with open_keyboard(options.stdin) as keyboard:
            return await Terminal(options, connected, keyboard).run()


async def run_chat(options: ChatOptions) -> bool:
    """``chat``, until Ctrl-C or SIGTERM at the latest: a clean end on a terminal, messages without answer in a pipe."""
    chatting = asyncio.ensure_future(chat(options))
    try:
        with stopping(chatting.cancel):
            good = await chatting
    except asyncio.CancelledError:
        good = options.stdin.isatty()
        if not good:
            click.echo("error: interrupted before every message was answered", err=True)
            click.echo("what to do: run it again with the messages that have no answer", err=True)
    if options.stdin.isatty():
        click.echo(f"Next: molecule connect WORKSPACE_ID --backend {options.name}   (a real workspace)")
        click.echo("      molecule sandbox --serve   (this platform, for connectors of your own)")
    return good
