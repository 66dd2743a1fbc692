"""The chat: on a terminal, or in a pipe."""

import asyncio
from collections import deque

import click

from molecule_connect import events
from molecule_connect_sandbox.lines import read_lines
from molecule_connect_sandbox.session import ChatOptions, Session, describe_problem, session
from molecule_connect_sandbox.signals import stop_on_signal
from molecule_connect_sandbox.terminal import Terminal


class Piped:
    """Each line is a message; only the replies go to standard output."""

    def __init__(self, options: ChatOptions, session: Session) -> None:
        self._options = options
        self._session = session
        self._replies: deque[str] = deque()

    async def run(self) -> bool:
        """Send each line after the reply to the one before. Returns whether every message was answered."""
        good = True
        async for line in read_lines(self._options.stdin):
            if line.strip():
                good = await self._exchange(line) and good
        return good

    async def _exchange(self, line: str) -> bool:
        await self._session.person.say(line)
        while (event := await self._session.events.get()) is not None:
            if isinstance(event, events.Delivered | events.Notified):
                self._replies.extend(await self._session.person.hear())
                text = self._replies.popleft() if self._replies else ""
                # The notice about a dead letter arrives like a reply, but isn't one.
                if isinstance(event, events.Notified):
                    continue
                click.echo(text)
                return True
            if isinstance(event, events.Answered) and event.silent:
                return True
            if isinstance(event, events.Dead):
                click.echo(f"error: {line[:60]!r} is a dead letter: {event.reason}", err=True)
                click.echo(f"what to do: {self._options.hint}", err=True)
                return False
            if problem := describe_problem(event):
                click.echo(problem, err=True)
        return False


async def chat(options: ChatOptions) -> bool:
    """Chat until the input ends, on a terminal or in a pipe. Returns whether every message was answered.

    Raises:
        MoleculeError: The backend couldn't be connected, or the sandbox failed.
    """
    async with session(options) as connected:
        if not options.stdin.isatty():
            return await Piped(options, connected).run()
        # prompt_toolkit takes 0.25 s to import.
        from molecule_connect_sandbox.prompt import open_prompt

        return await Terminal(options, connected, open_prompt(options.stdin)).run()


async def run_chat(options: ChatOptions) -> bool:
    """Run ``chat`` until it ends, or until Ctrl-C or SIGTERM, which fails only in a pipe."""
    chatting = asyncio.ensure_future(chat(options))
    try:
        with stop_on_signal(chatting.cancel):
            good = await chatting
    except asyncio.CancelledError:
        good = options.stdin.isatty()
        if not good:
            click.echo("error: interrupted before every message was answered", err=True)
            click.echo("what to do: run it again with the messages that have no reply", err=True)
    if options.stdin.isatty():
        click.echo(f"Next: {options.next_command}")
        click.echo("      (a real workspace; MOLECULE_WORKSPACE_TOKEN holds its token)")
        click.echo("      molecule sandbox --serve   (this platform, for your own connectors)")
    return good
