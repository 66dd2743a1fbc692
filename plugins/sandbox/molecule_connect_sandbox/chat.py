"""The chat: a backend, connected to a sandbox, and a person who writes to it."""

import asyncio
import contextlib
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import IO, Any

import attrs
import click

import molecule_connect
from molecule_connect import MoleculeError, events
from molecule_connect_sandbox.lines import read_lines
from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.person import Person
from molecule_connect_sandbox.ready import ready_workspace
from molecule_connect_sandbox.server import running_server
from molecule_connect_sandbox.signals import stopping

Connect = Callable[..., Awaitable[None]]
# How long a backend may go on with what it has begun when the chat ends, in seconds.
GRACE = 5.0
CLEAR = "\r\x1b[K"
PROMPT = "you> "


@attrs.frozen(kw_only=True)
class ChatOptions:
    """Who is chatted with. ``connect`` serves the workspace, ``stdin`` is where messages come from."""

    backend: str | object
    backend_options: Mapping[str, str | list[str]] = attrs.field(factory=dict, repr=False)
    sandbox: SandboxOptions
    connect: Connect | None = None
    stdin: IO[str] = attrs.field(factory=lambda: sys.stdin)

    @property
    def name(self) -> str:
        """What the backend is called on the screen."""
        return self.backend if isinstance(self.backend, str) else type(self.backend).__name__

    @property
    def next_step(self) -> str:
        """What to do about a message that was given up."""
        if not isinstance(self.backend, str):
            return "the reason is the backend's own: mend it there"
        return (
            f"mend what the reason names ('molecule backends {self.name}' lists the options); "
            f"'molecule try {self.name} TEXT' asks the backend alone"
        )


@attrs.frozen(kw_only=True)
class Session:
    """A connected backend. ``told`` gives what the connection tells; it ends with None when the connection does."""

    url: str
    workspace_id: str
    person: Person
    told: "asyncio.Queue[Any]"


@contextlib.asynccontextmanager
async def session(options: ChatOptions) -> AsyncIterator[Session]:
    """A sandbox, a workspace, and the backend connected to it.

    Raises:
        MoleculeError: The backend could not be connected, or its connection broke.
    """
    connect = options.connect or molecule_connect.connect
    told: asyncio.Queue[Any] = asyncio.Queue()
    with tempfile.TemporaryDirectory(prefix="molecule-sandbox-") as state, running_server(options.sandbox) as server:
        workspace = ready_workspace(server.app.state.platform)
        serving = asyncio.ensure_future(
            connect(
                workspace.id,
                backend=options.backend,
                backend_options=options.backend_options,
                api_url=server.url,
                token=workspace.token,
                state_dir=Path(state),
                grace=GRACE,
                listener=told.put_nowait,
            )
        )
        serving.add_done_callback(lambda _: told.put_nowait(None))
        try:
            async with Person.at(server.url, workspace, options.sandbox.admin_token) as person:
                await _registered(told, serving)
                yield Session(url=server.url, workspace_id=workspace.id, person=person, told=told)
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving


async def _registered(told: "asyncio.Queue[Any]", serving: "asyncio.Future[None]") -> None:
    while (event := await told.get()) is not None:
        if isinstance(event, events.Registered):
            return
        if isinstance(event, events.Notice):
            click.echo(clean(trouble(event)), err=True)
    await serving
    raise MoleculeError("the connection ended before it had begun", hint="try molecule connect --dry-run")


class Piped:
    """One message a line, one after the other; answers alone go to standard output."""

    def __init__(self, options: ChatOptions, session: Session) -> None:
        self._options = options
        self._session = session
        self._dead: set[str] = set()
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
            if isinstance(event, events.Delivered):
                self._heard.extend(await self._session.person.hear())
                text = self._heard.popleft() if self._heard else ""
                # The short notice that a message was given up comes in its turn, and is no answer.
                if event.row_id in self._dead:
                    continue
                click.echo(text)
                return True
            if isinstance(event, events.Answered) and event.silent:
                return True
            if isinstance(event, events.Dead):
                self._dead.add(event.row_id)
                click.echo(f"error: {line[:60]!r} was given up: {event.reason}", err=True)
                click.echo(f"what to do: {self._options.next_step}", err=True)
                return False
            if told := trouble(event):
                click.echo(told, err=True)
        return False


class Terminal:
    """A prompt; answers are shown as they come."""

    def __init__(self, options: ChatOptions, session: Session) -> None:
        self._options = options
        self._session = session

    async def run(self) -> bool:
        """Until the person ends it; always True."""
        told, generation = self._session, self._options.sandbox.platform
        click.echo(f"A local platform ({generation}) at {told.url}; {self._options.name} answers.")
        click.echo("Write a message and press Enter. Ctrl-D ends the chat.")
        showing = asyncio.ensure_future(self._show())
        reading = asyncio.ensure_future(self._read())
        try:
            await asyncio.wait({showing, reading}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (showing, reading):
                task.cancel()
            results = await asyncio.gather(showing, reading, return_exceptions=True)
            click.echo(CLEAR, nl=False)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return True

    async def _read(self) -> None:
        self._line("")
        async for line in read_lines(self._options.stdin):
            if line.strip():
                await self._session.person.say(line)
                self._line("", status="…")
            else:
                self._line("")

    async def _show(self) -> None:
        while (event := await self._session.told.get()) is not None:
            if isinstance(event, events.Delivered):
                for text in await self._session.person.hear():
                    self._line(f"{self._options.name}> {clean(text)}\n")
            elif isinstance(event, events.Answered) and event.silent:
                self._line(f"{self._options.name} chose to say nothing\n")
            elif isinstance(event, events.Progressed):
                self._line("", status=clean(event.text).replace("\n", " "))
            elif isinstance(event, events.Dead):
                self._line(f"error: given up: {clean(event.reason)}\nwhat to do: {self._options.next_step}\n")
            elif told := trouble(event):
                self._line(f"{clean(told)}\n")

    def _line(self, text: str, status: str = "") -> None:
        """Show *text* above the prompt; *status* stands in the prompt's line until the next answer."""
        click.echo(f"{CLEAR}{text}{f'[{status[:60]}] ' if status else ''}{PROMPT}", nl=False)


def trouble(event: Any) -> str:
    """What an event says that a person has to know, or nothing."""
    if isinstance(event, events.Retrying):
        return f"{event.what} failed, again in {event.seconds:.0f} s: {event.reason}"
    if isinstance(event, events.Trouble):
        return f"{event.part}: {event.reason}"
    if isinstance(event, events.Notice):
        return f"warning: {event.text}" + (f"; {event.hint}" if event.hint else "")
    return ""


def clean(text: str) -> str:
    """*text* without what a terminal would act on."""
    return "".join(char for char in text if char in "\n\t" or char.isprintable())


async def chat(options: ChatOptions) -> bool:
    """Chat until the messages end, on a terminal or in a pipe; whether every message was answered.

    Raises:
        MoleculeError: The backend could not be connected, or the sandbox failed.
    """
    async with session(options) as connected:
        front = Terminal if options.stdin.isatty() else Piped
        return await front(options, connected).run()


async def run_chat(options: ChatOptions) -> bool:
    """``chat``, until Ctrl-C or SIGTERM at the latest: a clean end on a terminal, messages without answer in a pipe."""
    chatting = asyncio.ensure_future(chat(options))
    try:
        with stopping(chatting.cancel):
            good = await chatting
    except asyncio.CancelledError:
        good = options.stdin.isatty()
    if options.stdin.isatty():
        click.echo(f"Next: molecule connect WORKSPACE_ID --backend {options.name}   (a real workspace)")
        click.echo("      molecule sandbox --serve   (this platform, for connectors of your own)")
    return good
