"""The chat on a terminal."""

import asyncio

import click

from molecule_connect import events
from molecule_connect_sandbox.keyboard import CLEAR, Keyboard
from molecule_connect_sandbox.session import ChatOptions, Session, clean, trouble

# An answer that takes longer than this, in seconds, is said to be waited for.
PATIENCE = 1.0


class Terminal:
    """A prompt; answers are shown above it as they come."""

    def __init__(
        self, options: ChatOptions, session: Session, keyboard: Keyboard, *, patience: float = PATIENCE
    ) -> None:
        self._options = options
        self._session = session
        self._keyboard = keyboard
        self._patience = patience
        self._said = 0
        self._settled: set[str] = set()
        self._ending = False

    @property
    def pending(self) -> int:
        """How many messages have neither an answer nor been given up."""
        return max(0, self._said - len(self._settled))

    async def run(self) -> bool:
        """Until the person ends it and what was asked is answered, or ends it twice; always True."""
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
            left = self.pending
            click.echo(CLEAR + (f"{messages(left)} left without an answer.\n" if left else ""), nl=False)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return True

    async def _read(self) -> None:
        while True:
            line = await self._keyboard.line()
            if line is None:
                if self._ending or not self.pending:
                    return
                self._ending = True
                self._keyboard.above(f"(waiting for {messages(self.pending)}; Ctrl-D or Ctrl-C ends at once)")
            elif line.strip():
                await self._say(line)

    async def _say(self, line: str) -> None:
        self._said += 1
        await self._session.person.say(line)
        asyncio.get_running_loop().call_later(self._patience, self._remind, self._said)

    def _remind(self, number: int) -> None:
        if number > len(self._settled) and not self._ending:
            self._keyboard.above(f"({self._options.name} is at work; you can write on meanwhile)")

    async def _show(self) -> None:
        while (event := await self._session.told.get()) is not None:
            for text in await self._texts(event):
                self._keyboard.above(text)
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
                return [f"({name} chose to say nothing)"]
            case events.Progressed(text=text):
                return [f"({name}: {clean(text).strip()})"]
            case events.Dead(row_id=row_id, reason=reason):
                self._settled.add(row_id)
                return [f"error: given up: {clean(reason)}", f"what to do: {self._options.next_step}"]
        told = clean(trouble(event))
        return [told] if told else []


def messages(count: int) -> str:
    """How many, in words."""
    return "1 message" if count == 1 else f"{count} messages"
