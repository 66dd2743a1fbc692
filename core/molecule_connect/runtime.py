"""What serves one workspace (its client, its plugins, its connection), and what the blocks of a process share."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol, Self

import attrs

from molecule_connect import events
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.errors import CloseError, ConfigError
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Handler
from molecule_connect.platform.address import parse_address
from molecule_connect.platform.client import AsyncPlatformClient
from molecule_connect.platform.credentials import Credentials
from molecule_connect.platform.transports import Transports
from molecule_connect.platform.workspace_client import WorkspaceClient
from molecule_connect.plugins.manager import PluginHost, create_host
from molecule_connect.worker.ports import Pace
from molecule_connect.worker.worker import Worker, WorkerOptions


@attrs.frozen(kw_only=True)
class Ground:
    """What all blocks of a process stand on. It outlives them."""

    state_dir: Path
    transports: Transports
    journal: Journal
    listener: events.Listener


class Block:
    """One workspace and all that is its own. Made by ``build``, or by ``run`` where that was not called.

    Attributes:
        client: Its way to the platform; there once it is built.
        connection: What reads, answers and beats; there once it is built.
    """

    client: AsyncPlatformClient
    connection: Worker

    def __init__(self, settings: WorkspaceSettings, ground: Ground) -> None:
        self.settings = settings
        self.workspace_id = settings.workspace_id
        self._ground = ground
        self._stack = AsyncExitStack()
        self._host: PluginHost | None = None
        self._began = asyncio.get_running_loop().time()

    async def build(self) -> Self:
        """Make client, plugins and connection; no request.

        Raises:
            ConfigError: The settings cannot work.
        """
        settings, ground = self.settings.check(), self._ground
        async with AsyncExitStack() as stack:
            self.client = client_of(settings, ground)
            stack.push_async_callback(self.client.aclose)
            token = self.client.credentials.current()
            self._host = await stack.enter_async_context(
                plugin_host(settings, token, ground.state_dir, ground.listener)
            )
            self.connection = connection_of(
                settings, self.client, ground, handler=self._host.handler, asked_at=self._began
            )
            self._stack = stack.pop_all()
        return self

    async def check(self) -> list[str]:
        """What the plugins say stands in the way of serving."""
        return await self._host.check() if self._host else []

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until *stop* is set and all has drained, then close the plugins and the client.

        Raises:
            MoleculeError: As ``Worker.run`` and ``build`` do.
            CloseError: All went well until a plugin could not be closed.
        """
        if self._host is None:
            await self.build()
        if self._host is not None:
            await report_permissions(self._host, self.workspace_id, self._ground.listener)
            if self._host.advice:
                notice(self.workspace_id, self._ground.listener)(self._host.advice)
        async with self._stack:
            await self.connection.run(stop)

    async def aclose(self) -> None:
        """Close what was built; nothing where ``run`` has done so."""
        await self._stack.aclose()

    def clock_jumped(self) -> None:
        """The machine slept."""
        if self._host is not None:
            self.connection.clock_jumped()

    def journal_changed(self) -> None:
        """Another program changed the journal."""
        if self._host is not None:
            self.connection.journal_changed()


def credentials_of(settings: WorkspaceSettings, state_dir: Path | None) -> Credentials:
    """The tokens of one workspace; one that the platform handed out lies in *state_dir*."""
    return Credentials(
        settings.workspace_id,
        origin=parse_address(settings.api_url, insecure=settings.insecure).origin,
        token=settings.token,
        source=settings.token_source,
        token_file=settings.token_file,
        state_dir=state_dir,
    )


@asynccontextmanager
async def plugin_host(
    settings: WorkspaceSettings,
    token: str,
    state_dir: Path | None,
    listener: events.Listener,
    *,
    state_root: Path | None = None,
) -> AsyncIterator[PluginHost]:
    """The plugins of one workspace, closed at the end. They keep *token* from the programs that they start.

    Without *state_dir* nothing is written; *state_root* is then the folder that a start would use.

    Raises:
        ConfigError: A plugin cannot be made.
        CloseError: All went well until one could not be closed.
    """
    say = notice(settings.workspace_id, listener)
    host = await create_host(
        workspace_id=settings.workspace_id,
        backend=settings.backend,
        options=settings.options,
        middleware=settings.middleware,
        middleware_options=settings.middleware_options,
        strict=settings.strict,
        listed=settings.entry > 0,
        state_dir=state_dir,
        state_root=state_root,
        warn=say,
        secrets=[token],
    )
    try:
        yield host
    finally:
        failed = await host.close()
        for error in failed:
            say(str(error))
    if failed:
        raise failed[0] if isinstance(failed[0], CloseError) else CloseError(str(failed[0]))


async def report_permissions(host: PluginHost, workspace_id: str, listener: events.Listener) -> None:
    """Emit what the plugins of *host* may do on this machine."""
    for line in await host.describe():
        listener(events.Described(workspace_id=workspace_id, text=line))


class NoticeSink(Protocol):
    """Takes a text for the operator, and what to do about it."""

    def __call__(self, text: str, hint: str = "") -> None: ...


def notice(workspace_id: str, listener: events.Listener) -> NoticeSink:
    """Passes texts to *listener* as notices of one workspace."""
    return lambda text, hint="": listener(events.Notice(workspace_id=workspace_id, text=text, hint=hint))


def client_of(settings: WorkspaceSettings, ground: Ground) -> AsyncPlatformClient:
    """The workspace's own way to its platform."""
    credentials = credentials_of(settings, ground.state_dir)
    if settings.adopt_token and settings.token is not None:
        # Where it can't be kept it is used all the same, and found again at the next start.
        with contextlib.suppress(ConfigError):
            credentials.keep(settings.token)
    return AsyncPlatformClient(
        settings.api_url,
        workspace_id=settings.workspace_id,
        credentials=credentials,
        org_id=settings.org_id,
        insecure=settings.insecure,
        tls=settings.tls,
        transports=ground.transports,
    )


@attrs.frozen
class ClientPace(Pace):
    """The pace that a client's platform allows for the intervals of *settings*."""

    settings: WorkspaceSettings
    client: AsyncPlatformClient

    def safety_interval(self, *, trusted: bool) -> float:
        """See ``Pace``."""
        return self.client.pacer.safety_interval(self.settings.safety_interval, trusted=trusted)

    def poll_interval(self) -> float:
        """See ``Pace``."""
        return self.client.pacer.poll_interval() if self.is_limited else 0.0

    def read_rest(self) -> float:
        """See ``Pace``."""
        return self.client.pacer.read_rest()

    def heartbeat_interval(self) -> float:
        """See ``Pace``."""
        return self.client.pacer.beat_interval(self.settings.heartbeat_interval)

    @property
    def is_limited(self) -> bool:
        """See ``Pace``."""
        return self.client.pacer.is_limited

    @property
    def is_queued(self) -> bool:
        """See ``Pace``."""
        return self.client.is_queued


def connection_of(
    settings: WorkspaceSettings,
    client: AsyncPlatformClient,
    ground: Ground,
    *,
    handler: Handler | None,
    presence: bool = True,
    retries_refusals: bool = True,
    asked_at: float | None = None,
) -> Worker:
    """The worker that serves the workspace. See ``Worker`` and ``WorkerOptions``."""
    return Worker(
        settings,
        platform=WorkspaceClient(client, say=notice(settings.workspace_id, ground.listener)),
        handler=handler,
        journal=ground.journal,
        listener=ground.listener,
        options=WorkerOptions(
            pace=ClientPace(settings, client),
            presence=presence,
            retries_refusals=retries_refusals,
            asked_at=asked_at,
        ),
    )
