"""From settings to a served workspace: the one place that knows platform, plugins and delivery alike."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from molecule_connect import events, state_folder
from molecule_connect.delivery.connection import Connection
from molecule_connect.delivery.fleet import Fleet
from molecule_connect.delivery.journal import Journal
from molecule_connect.errors import CloseError, ConfigError
from molecule_connect.platform.address import parse_address
from molecule_connect.platform.client import AsyncPlatformClient
from molecule_connect.platform.credentials import Credentials
from molecule_connect.platform.transports import AsyncTransport, Transports
from molecule_connect.platform.workspace import WorkspaceClient
from molecule_connect.plugins.host import PluginHost, create_host
from molecule_connect.settings import DEFAULT_API_URL, ConnectionSettings, PeerBudget

# Reads and beats of a fleet share the connections to their platform.
WORKSPACES_PER_READER = 8


async def connect(
    workspace_id: str = "",
    *,
    backend: str | object = None,
    api_url: str = DEFAULT_API_URL,
    token: str | None = None,
    token_file: Path | None = None,
    org_id: str | None = None,
    backend_options: Mapping[str, str | list[str]] | None = None,
    middleware: Sequence[str | object] = (),
    middleware_options: Mapping[str, str | list[str]] | None = None,
    strict: bool = False,
    poll_interval: float | None = None,
    heartbeat_interval: float = 30.0,
    safety_interval: float = 30.0,
    since_secs: float = 30.0,
    concurrency: int = 8,
    grace: float = 20.0,
    peer_budget: PeerBudget | None = None,
    max_cost_per_day: float | None = None,
    agent_name: str | None = None,
    once: bool = False,
    unpause: bool = False,
    insecure: bool = False,
    state_dir: Path | None = None,
    listener: events.Listener = events.ignore,
    transport: AsyncTransport | None = None,
) -> None:
    """Answer for one workspace until cancelled, which stops it like SIGTERM: what runs is finished within *grace*.

    Args:
        backend: The name of an installed backend, or any object with a ``handle_a2a`` hook.
        poll_interval: Seconds between reads where the platform has no event stream; None eases from 1 to 5.
        once: Read to the end, answer all of it, and return.
        state_dir: Where the journal lies; None: where ``molecule connect`` would keep it.
        transport: Stands in for the network.

    Raises:
        ConfigError: Something is missing or makes no sense; before any request.
        AuthError: The platform refused the token.
        PermanentPlatformError, TransientPlatformError: Registering failed.
        WorkspaceDeletedError: The workspace is gone.
        LeaseError: Another process on this machine serves it.
        JournalError: The journal cannot be used.
        CloseError: All went well until a plugin could not be closed.
    """
    settings = ConnectionSettings(
        workspace_id=workspace_id,
        api_url=api_url,
        org_id=org_id,
        token=token,
        token_file=token_file,
        backend=backend,
        options=backend_options or {},
        middleware=tuple(middleware),
        middleware_options=middleware_options or {},
        strict=strict,
        poll_interval=poll_interval,
        heartbeat_interval=heartbeat_interval,
        safety_interval=safety_interval,
        since_secs=since_secs,
        concurrency=concurrency,
        grace=grace,
        peer_budget=peer_budget or PeerBudget(),
        max_cost_per_day=max_cost_per_day,
        agent_name=agent_name,
        once=once,
        unpause=unpause,
        insecure=insecure,
    ).check()
    folder = state_folder.resolve(state_dir, os.environ, home=Path.home())
    stop = asyncio.Event()
    serving = asyncio.ensure_future(
        serve([settings], state_dir=folder, listener=listener, stop=stop, transport=transport)
    )
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        if not serving.done():
            stop.set()
            await serving
        raise


async def serve(
    settings: Sequence[ConnectionSettings],
    *,
    state_dir: Path,
    listener: events.Listener,
    stop: asyncio.Event,
    transport: AsyncTransport | None = None,
) -> None:
    """Serve workspaces until *stop* is set and all have drained, or none is left.

    Raises:
        MoleculeError: As ``connect`` does.
    """
    async with AsyncExitStack() as stack:
        readers = 2 + len(settings) // WORKSPACES_PER_READER
        transports = Transports(transport=transport, readers=readers, say=_notice(settings[0], listener))
        stack.push_async_callback(transports.aclose)
        clients = [_client(one.check(), transports, state_dir) for one in settings]
        for client in clients:
            stack.push_async_callback(client.aclose)
        hosts = [
            await stack.enter_async_context(_host(one, client.credentials.current(), state_dir, listener))
            for one, client in zip(settings, clients, strict=True)
        ]
        _refuse_problems([problem for host in hosts for problem in await host.check()])
        journal = await stack.enter_async_context(Journal.open(state_dir, wall=time.time))
        connections = [
            _connection(one, client, host, journal, state_dir, listener)
            for one, client, host in zip(settings, clients, hosts, strict=True)
        ]
        await Fleet(connections, journal, listener=listener).run(stop)


async def rehearse(
    settings: Sequence[ConnectionSettings], *, state_dir: Path | None, listener: events.Listener
) -> list[str]:
    """Build everything, ask the plugins for problems, close it again: no request, no state. Returns the problems.

    Raises:
        ConfigError: Something is missing or makes no sense.
    """
    problems: list[str] = []
    for one in settings:
        address = parse_address(one.check().api_url, insecure=one.insecure)
        token = _credentials(one, address.origin, state_dir).current()
        async with _host(one, token, state_dir, listener) as host:
            problems += await host.check()
    return problems


def _credentials(settings: ConnectionSettings, origin: str, state_dir: Path | None) -> Credentials:
    return Credentials(
        settings.workspace_id,
        origin=origin,
        token=settings.token,
        source=settings.token_source,
        token_file=settings.token_file,
        state_dir=state_dir,
    )


def _client(settings: ConnectionSettings, transports: Transports, state_dir: Path) -> AsyncPlatformClient:
    address = parse_address(settings.api_url, insecure=settings.insecure)
    return AsyncPlatformClient(
        settings.api_url,
        workspace_id=settings.workspace_id,
        credentials=_credentials(settings, address.origin, state_dir),
        org_id=settings.org_id,
        insecure=settings.insecure,
        transports=transports,
    )


@asynccontextmanager
async def _host(
    settings: ConnectionSettings, token: str, state_dir: Path | None, listener: events.Listener
) -> AsyncIterator[PluginHost]:
    say = _notice(settings, listener)
    host = await create_host(
        workspace_id=settings.workspace_id,
        backend=settings.backend,
        options=settings.options,
        middleware=settings.middleware,
        middleware_options=settings.middleware_options,
        strict=settings.strict,
        state_dir=state_dir,
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


def _notice(settings: ConnectionSettings, listener: events.Listener) -> Callable[[str], None]:
    return lambda text: listener(events.Notice(workspace_id=settings.workspace_id, text=text))


def _refuse_problems(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError(f"the backend is not ready: {'; '.join(problems)}", hint="mend that, then start again")


def _connection(
    settings: ConnectionSettings,
    client: AsyncPlatformClient,
    host: PluginHost,
    journal: Journal,
    state_dir: Path,
    listener: events.Listener,
) -> Connection:
    pacer = client.pacer

    def pace(trusted: bool) -> tuple[float, float]:
        return pacer.safety_interval(settings.safety_interval, trusted=trusted), pacer.beat_interval(
            settings.heartbeat_interval
        )

    return Connection(
        settings,
        platform=WorkspaceClient(client, say=_notice(settings, listener)),
        handler=host.handler,
        journal=journal,
        folder=state_dir,
        listener=listener,
        pace=pace,
    )
