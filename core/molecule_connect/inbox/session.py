"""One workspace of an open inbox: its connection while no other process has it, and its ways to speak first."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from molecule_connect import events
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.errors import (
    ConfigError,
    JournalError,
    LeaseError,
    MoleculeError,
    Outcome,
    PermanentPlatformError,
    StateLostError,
    TransientPlatformError,
)
from molecule_connect.files import files_folder
from molecule_connect.journal.files import FileJournal
from molecule_connect.journal.inbox import InboxStore
from molecule_connect.models import FilePart, Outgoing, Part, TextPart
from molecule_connect.platform import endpoints
from molecule_connect.platform.client import AsyncPlatformClient
from molecule_connect.platform.messages import question_envelope
from molecule_connect.platform.workspace_client import WorkspaceClient
from molecule_connect.runtime import Notices, Runtime
from molecule_connect.worker.clock import Clock
from molecule_connect.worker.lease import Holder, holder
from molecule_connect.worker.status_file import SavedStatus, read_status
from molecule_connect.worker.uploads import Attachments
from molecule_connect.worker.worker import Worker

# Seconds between two tries to take a workspace over from another process.
TRY_AGAIN = 3.0
# A process that has just taken a workspace tells within moments how it serves it.
SETTLES, SETTLE_PAUSE = 2.0, 0.05
# A process that tells nothing for so many seconds does not move.
SILENT = 90.0
# What keeps messages from arriving, or answers from being sent.
_DEAF = ("register", "intake", "sending", "journal", "connection")


class InboxDesk:
    """Implements what ``Inbox`` needs of a workspace, and what a fleet runs.

    Attributes:
        ring: Called when something happened that a reader may wait for.
        ended: What ended it for good.
    """

    def __init__(
        self, settings: WorkspaceSettings, client: AsyncPlatformClient, runtime: Runtime, *, presence: bool
    ) -> None:
        self.workspace_id = settings.workspace_id
        self.client = client
        self.ring: Callable[[], None] = lambda: None
        self.ended: MoleculeError | None = None
        self._began = asyncio.get_running_loop().time()
        # Registering goes on beside the reader, for as long as it takes.
        self._settings = attrs.evolve(settings, patient=True, backend="inbox")
        self._runtime = attrs.evolve(runtime, listener=self._tell)
        self._listener = runtime.listener
        self._presence = presence
        self._store = InboxStore(runtime.journal)
        self._platform = WorkspaceClient(client, say=Notices(settings.workspace_id, runtime.listener))
        self._attachments = Attachments(
            self._platform,
            FileJournal(runtime.journal, self.workspace_id, files_folder(runtime.state_dir, self.workspace_id)),
            Clock(self._platform, runtime.journal.wall),
        )
        self._connection: Worker | None = None
        self._troubles: dict[str, str] = {}
        # Why it is not being served until the next try.
        self._failure = ""

    # For the fleet

    async def run(self, stop: asyncio.Event) -> None:
        """Serve the workspace, or wait until the process that does is gone, until *stop* is set.

        Raises:
            MoleculeError: As ``Worker.run`` does; ``ended`` keeps it.
        """
        lost: list[StateLostError] = []
        try:
            with self._runtime.journal.watched(lost.append):
                while not stop.is_set():
                    if await self._serve(stop):
                        return
                    if lost:
                        raise lost[0]
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(TRY_AGAIN):
                            await stop.wait()
        except MoleculeError as exc:
            self.ended = exc
            raise
        except Exception as exc:  # a bug ends the workspace, and is raised when the inbox is closed
            self.ended = MoleculeError(f"{type(exc).__name__}: {exc}", hint="this is a bug; please report it")
            raise
        finally:
            self.ring()

    async def _serve(self, stop: asyncio.Event) -> bool:
        """False: another process has the workspace."""
        if holder(self._runtime.state_dir, self.workspace_id) is not None:
            return False
        self._failure = ""
        # A reader is told at once that the token is refused, and may be the one who can replace it.
        self._connection = self._runtime.worker(
            self._settings,
            self.client,
            None,
            presence=self._presence,
            retries_refusals=False,
            asked_at=self._began,
        )
        try:
            await self._connection.run(stop)
        except LeaseError:
            return False
        except StateLostError:
            raise
        except JournalError as exc:
            # A full disk, or a file that is locked for long, is so for a while.
            self._failure = f"journal: {exc}"
            return False
        finally:
            self._connection = None
            self._troubles.clear()
        return True

    def clock_jumped(self) -> None:
        """The machine slept."""
        if self._connection is not None:
            self._connection.clock_jumped()

    def journal_changed(self) -> None:
        """Another program changed the journal."""
        if self._connection is not None:
            self._connection.journal_changed()

    def _tell(self, event: events.Event) -> None:
        if isinstance(event, events.Trouble):
            self._troubles[event.part] = event.reason
        elif isinstance(event, events.Recovered):
            self._troubles.pop(event.part, None)
        elif isinstance(event, events.MessageEvent):
            self.ring()
        self._listener(event)

    # For the inbox

    @property
    def trouble(self) -> str:
        """Why nothing arrives or is sent; empty while all is well."""
        if self._connection is not None:
            return _words(self._troubles)
        folder = self._runtime.state_dir
        found = holder(folder, self.workspace_id)
        if found is None:
            return self._failure
        status = _status_of(folder, self.workspace_id, found)
        if status is None:
            return ""
        if not status.inbox:
            return _served_otherwise(self.workspace_id, found, status)
        if self._store.wall - status.written > SILENT:
            return f"process {found.pid} on {found.host}, which serves {self.workspace_id}, does not move"
        return _words({ailment.part: ailment.reason for ailment in status.ailments})

    def changed(self) -> None:
        """A reader changed something in the journal."""
        self.journal_changed()
        self.ring()

    async def tell_user(self, text: str, files: Sequence[Path]) -> None:
        """See ``Inbox.tell_user``."""
        parts: list[Part] = [TextPart(text)] if text.strip() else []
        if not parts and not files:
            raise ConfigError("there is nothing to say", hint="give a text, or files")
        # Uploads come back in the feed too, and must not be taken for the person's.
        parts += await self._attachments.put([FilePart(uri="", name=file.name, path=file) for file in files])
        outgoing = Outgoing(
            message_id=str(uuid.uuid4()), caller_id=None, context_id=None, in_reply_to="", parts=tuple(parts)
        )
        # Its echo must not look as if somebody else spoke as this workspace.
        number = await self._store.record_notification(self.workspace_id, self._platform.fingerprint(outgoing))
        try:
            await self._platform.send(outgoing)
        except PermanentPlatformError:
            await self._store.forget_notification(number)
            raise
        except TransientPlatformError as exc:
            if exc.outcome is Outcome.NOT_TAKEN:
                await self._store.forget_notification(number)
            raise

    async def ask(self, peer_id: str, text: str, *, timeout: float) -> Any:
        """See ``Inbox.ask``."""
        message_id = str(uuid.uuid4())
        operation = endpoints.a2a(peer_id, question_envelope(message_id, text))
        operation = attrs.evolve(operation, timeout=max(operation.timeout, timeout))
        await self._store.record_question(self.workspace_id, message_id, peer_id, text)
        try:
            async with asyncio.timeout(timeout):
                told = await self.client.call(operation)
        except PermanentPlatformError:
            await self._store.close_question(self.workspace_id, message_id)
            raise
        if isinstance(told, Mapping) and ("result" in told or "error" in told) and not _was_delivered(told):
            await self._store.close_question(self.workspace_id, message_id)
        return told

    async def delegate(self, peer_id: str, task: str) -> str:
        """See ``Inbox.delegate``."""
        key = str(uuid.uuid4())
        operation = endpoints.delegate(self.workspace_id, peer_id, task, idempotency_key=key)
        await self._store.record_question(self.workspace_id, key, peer_id, task)
        try:
            told = await self.client.call(operation)
        except PermanentPlatformError:
            await self._store.close_question(self.workspace_id, key)
            raise
        delegation_id = str(told.get("delegation_id") or "")
        if delegation_id:
            await self._store.record_delegation(self.workspace_id, key, delegation_id)
        return delegation_id


async def refuse_a_backend(folder: Path, workspace_id: str) -> None:
    """LeaseError if another process on this machine answers for the workspace with a backend."""
    until = asyncio.get_running_loop().time() + SETTLES
    while (found := holder(folder, workspace_id)) is not None:
        status = _status_of(folder, workspace_id, found)
        if status is not None and status.inbox:
            return
        if status is not None:
            raise LeaseError(
                _served_otherwise(workspace_id, found, status),
                hint="stop that process, or start it with --backend inbox and read along",
            )
        if asyncio.get_running_loop().time() >= until:
            return
        await asyncio.sleep(SETTLE_PAUSE)


def _status_of(folder: Path, workspace_id: str, found: Holder) -> SavedStatus | None:
    """What the holder of the lease itself has told; an earlier process's file does not count."""
    status = read_status(folder, workspace_id)
    return status if status is not None and (status.pid, status.host) == (found.pid, found.host) else None


def _served_otherwise(workspace_id: str, found: Holder, status: SavedStatus) -> str:
    return (
        f"{workspace_id} is served by process {found.pid} on {found.host} with the backend {status.backend},"
        " which answers its messages itself"
    )


def _was_delivered(told: Mapping[str, Any]) -> bool:
    """Whether it is the 502 that says that the peer has the question; its answer comes later."""
    return told.get("delivery_confirmed") is True


def _words(troubles: Mapping[str, str]) -> str:
    return "; ".join(f"{part}: {reason}" for part, reason in troubles.items() if part in _DEAF)
