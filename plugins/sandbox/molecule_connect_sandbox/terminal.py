"""The chat on a terminal."""

import asyncio
from typing import Protocol

import attrs
import click

from molecule_connect import events
from molecule_connect_sandbox.session import ChatOptions, Session, clean, describe_problem

# Say that the backend is working when a reply takes longer than this, in seconds.
PATIENCE = 1.0


class Interrupted(Exception):  # noqa: N818
    """Ctrl-C was pressed."""


class Prompt(Protocol):
    """Reads messages from a terminal."""

    async def read(self) -> str | None:
        """Show the prompt and return the next message, or None on Ctrl-D. Can be called again after that.

        Raises:
            Interrupted: Ctrl-C was pressed.
        """

    async def show(self, text: str) -> None:
        """Print *text* above the input line."""


@attrs.frozen
class _Reminder:
    """The message of this number was sent ``patience`` seconds ago."""

    number: int


class Terminal:
    """A prompt; replies are shown above it as they arrive."""

    def __init__(self, options: ChatOptions, session: Session, prompt: Prompt, *, patience: float = PATIENCE) -> None:
        self._options = options
        self._session = session
        self._prompt = prompt
        self._patience = patience
        self._sent = 0
        self._settled: set[str] = set()
        self._ending = False

    @property
    def pending(self) -> int:
        """The number of messages without a reply that aren't dead letters either."""
        return max(0, self._sent - len(self._settled))

    async def run(self) -> bool:
        """Chat until Ctrl-D, then wait for pending replies; a second Ctrl-D or Ctrl-C ends at once. Returns True."""
        generation = self._options.sandbox.platform
        click.echo(f"A local platform ({generation}) at {self._session.url}; {self._options.name} answers.")
        click.echo("Write a message and press Enter. Ctrl-D ends the chat.")
        tasks = {asyncio.ensure_future(self._show()), asyncio.ensure_future(self._read())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            if self.pending:
                click.echo(f"{count_messages(self.pending)} left without an answer.")
        for result in results:
            if isinstance(result, Exception):
                raise result
        return True

    async def _read(self) -> None:
        while True:
            try:
                text = await self._prompt.read()
            except Interrupted:
                return
            if text is None:
                if self._ending or not self.pending:
                    return
                self._ending = True
                waiting = count_messages(self.pending)
                await self._prompt.show(f"(waiting for {waiting}; Ctrl-D or Ctrl-C ends at once)")
            elif text.strip():
                await self._send(text)

    async def _send(self, text: str) -> None:
        self._sent += 1
        await self._session.person.say(text)
        reminder = _Reminder(self._sent)
        asyncio.get_running_loop().call_later(self._patience, self._session.events.put_nowait, reminder)

    async def _show(self) -> None:
        while (event := await self._session.events.get()) is not None:
            for text in await self._texts(event):
                await self._prompt.show(text)
            if self._ending and not self.pending:
                return

    async def _texts(self, event: object) -> list[str]:
        name = self._options.name
        match event:
            case events.Delivered(row_id=row_id) | events.Notified(row_id=row_id):
                texts = [f"{name}> {clean(text)}" for text in await self._session.person.hear()]
                self._settled.add(row_id)
                return texts
            case events.Answered(silent=True, row_id=row_id):
                self._settled.add(row_id)
                return [f"({name} sent no reply)"]
            case events.Progressed(text=text):
                return [f"({name}: {clean(text).strip()})"]
            case events.Dead(row_id=row_id, reason=reason):
                self._settled.add(row_id)
                return [f"error: dead letter: {clean(reason)}", f"what to do: {self._options.hint}"]
            case _Reminder(number):
                late = number > len(self._settled) and not self._ending
                return [f"({name} is working; you can keep typing)"] if late else []
        problem = clean(describe_problem(event))
        return [problem] if problem else []


def count_messages(count: int) -> str:
    """The number of messages, in words."""
    return "1 message" if count == 1 else f"{count} messages"
