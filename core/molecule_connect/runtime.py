"""Build and run one workspace: its client, its plugins and its worker, and the objects that workspaces share."""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self

import attrs

from molecule_connect import events
from molecule_connect.backoff import Backoff
from molecule_connect.config.saved import SavedToken
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.config.tokens import SAVED_SOURCE
from molecule_connect.errors import CloseError, ConfigError, JournalError, LeaseError, PlatformError, StateLostError
from molecule_connect.files import files_folder
from molecule_connect.flag import Flag
from molecule_connect.journal.backlog import Backlog
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.outbox import Start
from molecule_connect.mirrors import MirrorError, MirrorUnreachableError
from molecule_connect.models import Handler
from molecule_connect.observers import Tracer, WorkspaceState
from molecule_connect.platform.address import parse_address
from molecule_connect.platform.credentials import Credentials
from molecule_connect.platform.transports import Transports
from molecule_connect.platform.workspace_client import WorkspaceClient
from molecule_connect.plugins.manager import PluginHost, create_host
from molecule_connect.worker.fleet import Fleet
from molecule_connect.worker.sharing import LeaseLostError, Seat, SeatGate, Sharing
from molecule_connect.worker.worker import Worker, WorkerOptions

# Time for which a machine leaves a workspace to the others after it could not serve it.
_AWAY = Backoff(first=20.0, cap=600.0)


@attrs.define
class Notices:
    """Emits notices for the operator, in the name of one workspace."""

    workspace_id: str
    listener: events.Listener

    def __call__(self, text: str, hint: str = "") -> None:
        self.listener(events.Notice(workspace_id=self.workspace_id, text=text, hint=hint))


@attrs.frozen(kw_only=True)
class Runtime:
    """The objects that all workspaces of a process share.

    Attributes:
        sharing: The leases that are shared with other machines; None if the workspaces are served from this one only.
        requests: The requests of each workspace, see ``AsyncPlatformClient.requests``.
        tracer: Traces the messages; None for no traces.
    """

    state_dir: Path
    transports: Transports
    journal: Journal
    listener: events.Listener
    fleet: Fleet
    sharing: Sharing | None = None
    requests: defaultdict[str, Counter[tuple[str, int]]] = attrs.field(factory=lambda: defaultdict(Counter))
    tracer: Tracer | None = None

    def client(self, settings: WorkspaceSettings) -> WorkspaceClient:
        """The platform client of one workspace."""
        credentials = credentials_of(settings, self.state_dir)
        if settings.adopt_token and settings.token is not None:
            # If it can't be stored, it is used anyway, and read again at the next start.
            with contextlib.suppress(ConfigError):
                credentials.keep(settings.token)
        client = WorkspaceClient(
            settings.api_url,
            workspace_id=settings.workspace_id,
            credentials=credentials,
            org_id=settings.org_id,
            insecure=settings.insecure,
            tls=settings.tls,
            transports=self.transports,
        )
        # A restart of the workspace continues the counts.
        client.requests = self.requests[settings.workspace_id]
        return client

    def worker(
        self,
        settings: WorkspaceSettings,
        client: WorkspaceClient,
        handler: Handler | None,
        options: WorkerOptions,
    ) -> Worker:
        """The worker of one workspace, at the pace of *client*. See ``Worker``."""
        return Worker(
            settings,
            platform=client,
            handler=handler,
            journal=self.journal,
            listener=self.listener,
            options=attrs.evolve(options, pace=client.rate_limiter, fleet=self.fleet, tracer=self.tracer),
        )


class WorkspaceRunner:
    """Builds and runs the client, the plugins and the worker of one workspace.

    Attributes:
        client: Set by ``build``.
        worker: Set by ``build``.
    """

    client: WorkspaceClient
    worker: Worker

    def __init__(self, settings: WorkspaceSettings, runtime: Runtime) -> None:
        self.settings = settings
        self.workspace_id = settings.workspace_id
        self._runtime = runtime
        self._is_open = False
        self._host: PluginHost | None = None
        self._created_at = asyncio.get_running_loop().time()
        # Whether it had a lease, and hasn't read the feed since.
        self._is_unread = False
        # Where the workspace has its lease, if machines share it.
        self._seat: Seat | None = None

    async def build(self) -> Self:
        """Create the client, the plugins and the worker. Makes no request.

        Raises:
            ConfigError: A setting is invalid, or a plugin can't be created.
        """
        settings, runtime = self.settings.check(), self._runtime
        self.client = runtime.client(settings)
        self._is_open = True
        try:
            token = self.client.credentials.current()
            self._host = await open_plugins(settings, token, runtime.state_dir, runtime.listener)
            gate = SeatGate(runtime.sharing.gate, self._seat) if runtime.sharing and self._seat else None
            self.client.gate = gate
            # Another machine may have a token that isn't refused.
            options = WorkerOptions(asked_at=self._created_at, gate=gate, retries_refusals=gate is None)
            self.worker = runtime.worker(settings, self.client, self._host.handler, options)
        except BaseException:
            await self._close_after_error()
            raise
        return self

    async def find_problems(self) -> list[str]:
        """Build, then return the problems that the plugins report.

        Raises:
            ConfigError: See ``build``.
        """
        await self.build()
        return await self._host.check() if self._host else []

    async def run(self, stop: Flag) -> None:
        """Serve until *stop* is set and all messages in progress have finished, then close everything.

        Calls ``build`` first if necessary. A workspace that machines share is served whenever this one has its lease.

        Raises:
            MoleculeError: See ``Worker.run`` and ``build``.
            CloseError: Only closing a plugin failed.
        """
        if self._runtime.sharing is None:
            await self._serve(stop)
            return
        await self._discard()
        failures = 0
        while not stop.is_set():
            try:
                with self._runtime.sharing.seat(self.workspace_id) as seat:
                    while await _first(stop, seat.granted.wait()):
                        await self._serve_shared(self._runtime.sharing, seat, stop)
                        failures = 0
            except (MirrorError, JournalError, PlatformError, ConfigError, LeaseError) as exc:
                # Another machine may not have this problem.
                is_final = isinstance(exc, PlatformError | ConfigError | LeaseError) and not self.settings.patient
                if is_final or isinstance(exc, StateLostError):
                    raise
                Notices(self.workspace_id, self._runtime.listener)(str(exc), exc.hint)
                failures = 1 if isinstance(exc, MirrorError) else failures + 1
                await stop.wait(_AWAY.delay(failures))

    async def _serve_shared(self, sharing: Sharing, seat: Seat, stop: Flag) -> None:
        """Serve until *stop* is set, the lease is to be given back, or it is lost."""
        notices, ended = Notices(self.workspace_id, self._runtime.listener), Flag()
        self._seat = seat
        if not self._is_unread:
            self._created_at, self._is_unread = asyncio.get_running_loop().time(), True
        watch = asyncio.ensure_future(self._watch_seat(seat, stop, ended))
        try:
            if seat.lease is not None:
                start = await sharing.start(seat.lease, files_folder(self._runtime.state_dir, self.workspace_id))
                if start is Start.LOADED:
                    notices(
                        f"took {self.workspace_id} over from another machine, with all of its messages",
                        "what a backend keeps on the disk of a machine, such as sessions of Claude Code, begins anew",
                    )
                if start is Start.AHEAD:
                    notices(
                        f"the database lost messages of {self.workspace_id} that it had confirmed; it gets them again",
                        "if it was restored from a backup, start the machine first that served the workspace last",
                    )
                # Replies are sent again from the journal, and the mirror must know them before.
                if await _first(ended, sharing.flush(seat)):
                    await self._serve(ended)
        except (LeaseLostError, MirrorUnreachableError) as exc:
            notices(str(exc), exc.hint)
        except CloseError:
            # It was reported. The next lease begins with a new backend.
            if stop.is_set():
                raise
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await self._discard()
            await sharing.give_back(seat)
            self._seat = None

    async def _watch_seat(self, seat: Seat, stop: Flag, ended: Flag) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, seat.leaving, seat.lost)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            ended.set()
            await seat.lost.wait()
            if self._host is not None:
                self.worker.lose(LeaseLostError(f"another machine has taken {self.workspace_id} over"))
        finally:
            for wait in waits:
                wait.cancel()

    async def _serve(self, stop: Flag) -> None:
        if self._host is None:
            await self.build()
        if self._host is not None:
            await report_permissions(self._host, self.workspace_id, self._runtime.listener)
            if self._host.advice:
                Notices(self.workspace_id, self._runtime.listener)(self._host.advice)
        try:
            await self.worker.run(stop)
        except BaseException:
            await self._close_after_error()
            raise
        finally:
            self._is_unread = not self.worker.has_read
        await self.aclose()

    async def aclose(self) -> None:
        """Close everything that was built, unless ``run`` did.

        Raises:
            CloseError: Closing a plugin failed.
        """
        if self._is_open:
            self._is_open = False
            try:
                if self._host is not None:
                    await close_plugins(self._host, Notices(self.workspace_id, self._runtime.listener))
            finally:
                await self.client.aclose()

    async def _discard(self) -> None:
        """Close everything that was built: each lease begins with a new worker."""
        try:
            await self.aclose()
        finally:
            self._host = None

    async def _close_after_error(self) -> None:
        with contextlib.suppress(CloseError):
            await self.aclose()

    @property
    def has_read(self) -> bool:
        """See ``Worker.has_read``. True while another machine serves the workspace."""
        if self._host is None:
            return self._runtime.sharing is not None
        return self.worker.has_read

    @property
    def stalled_for(self) -> float:
        """See ``Worker.stalled_for``."""
        return 0.0 if self._host is None else self.worker.stalled_for

    def state(self, *, up: bool, backlog: Backlog | None = None) -> WorkspaceState:
        """The state of the workspace. See ``Worker.state``."""
        requests = dict(self._runtime.requests[self.workspace_id])
        if self._host is not None:
            return self.worker.state(up=up, backlog=backlog, requests=requests)
        settings = self.settings
        return WorkspaceState(
            workspace_id=self.workspace_id,
            backend=settings.backend_name,
            labels=settings.labels,
            up=up,
            unready="ended" if not up else "" if self._runtime.sharing else "starting",
            requests=requests,
        )

    def clock_jumped(self) -> None:
        """The machine was suspended."""
        if self._host is not None:
            self.worker.clock_jumped()

    def journal_changed(self) -> None:
        """Another program changed the journal."""
        if self._host is not None:
            self.worker.journal_changed()


async def _first(stop: Flag, step: Coroutine[Any, Any, object]) -> bool:
    """Wait for *step*. False: *stop* was set before."""
    stopping, stepping = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(step)
    try:
        await asyncio.wait([stopping, stepping], return_when=asyncio.FIRST_COMPLETED)
        if stepping.done():
            stepping.result()
    finally:
        stopping.cancel()
        stepping.cancel()
    return not stop.is_set()


def credentials_of(settings: WorkspaceSettings, state_dir: Path | None) -> Credentials:
    """The tokens of one workspace. *state_dir* may contain one that a registration returned."""
    token_file: Path | SavedToken | None = settings.token_file
    if settings.token_file is not None and settings.settings_file is not None and settings.token_source == SAVED_SOURCE:
        token_file = SavedToken(settings.token_file, settings.settings_file, settings.workspace_id, settings.api_url)
    return Credentials(
        settings.workspace_id,
        origin=parse_address(settings.api_url, insecure=settings.insecure).origin,
        token=settings.token,
        source=settings.token_source,
        token_file=token_file,
        state_dir=state_dir,
    )


async def open_plugins(
    settings: WorkspaceSettings,
    token: str,
    state_dir: Path | None,
    listener: events.Listener,
    *,
    state_root: Path | None = None,
) -> PluginHost:
    """Create the plugins of one workspace. *token* is kept out of the programs that they start.

    Args:
        state_dir: None to write nothing; *state_root* is then the folder that a start would use.

    Raises:
        ConfigError: A plugin can't be created.
    """
    return await create_host(
        workspace_id=settings.workspace_id,
        backend=settings.backend,
        options=settings.options,
        middleware=settings.middleware,
        middleware_options=settings.middleware_options,
        strict=settings.strict,
        listed=settings.entry > 0,
        state_dir=state_dir,
        state_root=state_root,
        warn=Notices(settings.workspace_id, listener),
        secrets=[token],
    )


async def close_plugins(host: PluginHost, notify: Notices) -> None:
    """Close the plugins, and report their errors.

    Raises:
        CloseError: Closing a plugin failed.
    """
    failed = await host.close()
    for error in failed:
        notify(str(error))
    if failed:
        raise failed[0] if isinstance(failed[0], CloseError) else CloseError(str(failed[0]))


async def report_permissions(host: PluginHost, workspace_id: str, listener: events.Listener) -> None:
    """Emit the plugins' descriptions of their permissions on this machine."""
    for line in await host.describe():
        listener(events.Described(workspace_id=workspace_id, text=line))
