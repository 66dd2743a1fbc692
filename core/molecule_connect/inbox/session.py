"""One workspace of an open inbox: served by this process unless another one serves it."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import attrs

from molecule_connect import events
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.errors import JournalError, LeaseError, MoleculeError, StateLostError
from molecule_connect.flag import Flag
from molecule_connect.inbox.inbox import ChangeSignal
from molecule_connect.inbox.sender import InboxSender
from molecule_connect.platform.workspace_client import WorkspaceClient
from molecule_connect.runtime import Runtime
from molecule_connect.worker.lease import Holder, holder
from molecule_connect.worker.status_file import SavedStatus, read_status
from molecule_connect.worker.worker import Worker, WorkerOptions

# Seconds between two attempts to take over from another process.
TAKEOVER_INTERVAL = 3.0
# A process that has just acquired the lease writes its status file within this time, in seconds.
STATUS_TIMEOUT, STATUS_POLL_INTERVAL = 2.0, 0.05
# Treat the serving process as hung after this long without a status update, in seconds.
HUNG_AFTER = 90.0
# Problems of these parts keep messages from arriving, or replies from being sent.
_REPORTED_PARTS = ("register", "intake", "sending", "journal", "connection")


class InboxSession:
    """Runs the worker of a workspace for an inbox, and reports its problems.

    Attributes:
        sender: Sends to people and peers.
        ended: The error that ended the workspace permanently.
    """

    def __init__(
        self,
        settings: WorkspaceSettings,
        client: WorkspaceClient,
        runtime: Runtime,
        changes: ChangeSignal,
        *,
        presence: bool,
    ) -> None:
        self.workspace_id = settings.workspace_id
        self.client = client
        self.sender = InboxSender(settings.workspace_id, client, runtime)
        self.ended: MoleculeError | None = None
        # Readers don't wait for the registration, so it is retried for as long as it takes.
        self._settings = attrs.evolve(settings, patient=True, backend="inbox")
        self._runtime = attrs.evolve(runtime, listener=self._handle_event)
        self._listener = runtime.listener
        self._changes = changes
        self._presence = presence
        self._created_at = asyncio.get_running_loop().time()
        self._worker: Worker | None = None
        self._problems: dict[str, str] = {}
        # Why this process stopped serving, until the next attempt.
        self._failure = ""

    async def run(self, stop: Flag) -> None:
        """Serve the workspace, or wait for the process that does to end, until *stop* is set.

        Raises:
            MoleculeError: See ``Worker.run``. It is also stored in ``ended``.
        """
        lost: list[StateLostError] = []
        try:
            with self._runtime.journal.watched(lost.append):
                while not stop.is_set():
                    if await self._serve(stop):
                        return
                    if lost:
                        raise lost[0]
                    await stop.wait(TAKEOVER_INTERVAL)
        except MoleculeError as exc:
            self.ended = exc
            raise
        except Exception as exc:  # a bug ends the workspace, and is raised when the inbox is closed
            self.ended = MoleculeError(f"{type(exc).__name__}: {exc}", hint="this is a bug; please report it")
            raise
        finally:
            self._changes.notify()

    async def _serve(self, stop: Flag) -> bool:
        """Serve until *stop* is set. Returns False if serving is to be attempted again later."""
        if holder(self._runtime.state_dir, self.workspace_id) is not None:
            return False
        self._failure = ""
        # A refused token isn't retried: the reader gets the error, and may be the one who can replace the token.
        options = WorkerOptions(presence=self._presence, retries_refusals=False, asked_at=self._created_at)
        self._worker = self._runtime.worker(self._settings, self.client, None, options)
        try:
            await self._worker.run(stop)
        except LeaseError:
            return False
        except StateLostError:
            raise
        except JournalError as exc:
            # A full disk or a locked file may recover.
            self._failure = f"journal: {exc}"
            return False
        finally:
            self._worker = None
            self._problems.clear()
        return True

    def clock_jumped(self) -> None:
        """Notify the worker that the machine was suspended."""
        if self._worker is not None:
            self._worker.clock_jumped()

    def journal_changed(self) -> None:
        """Notify the worker that a reader or another program changed the journal."""
        if self._worker is not None:
            self._worker.journal_changed()

    def _handle_event(self, event: events.Event) -> None:
        if isinstance(event, events.Trouble):
            self._problems[event.part] = event.reason
        elif isinstance(event, events.Recovered):
            self._problems.pop(event.part, None)
        elif isinstance(event, events.MessageEvent):
            self._changes.notify()
        self._listener(event)

    @property
    def trouble(self) -> str:
        """The problems that keep messages from arriving or replies from being sent; empty if there are none."""
        if self._worker is not None:
            return _describe(self._problems)
        folder, journal = self._runtime.state_dir, self._runtime.journal
        found = holder(folder, self.workspace_id)
        if found is None:
            return self._failure
        status = _status_of(folder, self.workspace_id, found)
        if status is None:
            return ""
        if not status.inbox:
            return _served_by_backend(self.workspace_id, found, status)
        if journal.wall() - status.written > HUNG_AFTER:
            return f"process {found.pid} on {found.host}, which serves {self.workspace_id}, does not respond"
        return _describe({ailment.part: ailment.reason for ailment in status.ailments})


async def require_no_backend(folder: Path, workspace_id: str) -> None:
    """Check that no other process on this machine serves the workspace with a backend.

    Raises:
        LeaseError: One does.
    """
    deadline = asyncio.get_running_loop().time() + STATUS_TIMEOUT
    while (found := holder(folder, workspace_id)) is not None:
        status = _status_of(folder, workspace_id, found)
        if status is not None and status.inbox:
            return
        if status is not None:
            raise LeaseError(
                _served_by_backend(workspace_id, found, status),
                hint="stop that process, or restart it with --backend inbox to share its inbox",
            )
        if asyncio.get_running_loop().time() >= deadline:
            return
        await asyncio.sleep(STATUS_POLL_INTERVAL)


def _status_of(folder: Path, workspace_id: str, found: Holder) -> SavedStatus | None:
    """The status file of the process that holds the lease. A file of an earlier process doesn't count."""
    status = read_status(folder, workspace_id)
    return status if status is not None and (status.pid, status.host) == (found.pid, found.host) else None


def _served_by_backend(workspace_id: str, found: Holder, status: SavedStatus) -> str:
    return (
        f"{workspace_id} is served by process {found.pid} on {found.host} with the backend {status.backend},"
        " which answers its messages itself"
    )


def _describe(problems: Mapping[str, str]) -> str:
    return "; ".join(f"{part}: {reason}" for part, reason in problems.items() if part in _REPORTED_PARTS)
