"""Messages that an inbox sends on its own: to the person in the canvas, and to peers."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.errors import ConfigError, Outcome, PermanentPlatformError, TransientPlatformError
from molecule_connect.files import files_folder
from molecule_connect.journal.files import FileJournal
from molecule_connect.journal.inbox import InboxStore
from molecule_connect.models import FilePart, Outgoing, Part, TextPart
from molecule_connect.platform import endpoints
from molecule_connect.platform.messages import notify_fingerprint, question_envelope
from molecule_connect.platform.workspace_client import WorkspaceClient
from molecule_connect.runtime import Runtime
from molecule_connect.worker.clock import Clock
from molecule_connect.worker.uploads import Attachments


class InboxSender:
    """Sends for one workspace, and records what it sends in the journal so that echoes and answers are recognized."""

    def __init__(self, workspace_id: str, client: WorkspaceClient, runtime: Runtime) -> None:
        self._workspace_id, self._client = workspace_id, client
        self._store = InboxStore(runtime.journal)
        self._attachments = Attachments(
            client,
            FileJournal(runtime.journal, workspace_id, files_folder(runtime.state_dir, workspace_id)),
            Clock(client, runtime.journal.wall),
        )

    async def tell_user(self, text: str, files: Sequence[Path]) -> None:
        """See ``Inbox.tell_user``."""
        parts: list[Part] = [TextPart(text)] if text.strip() else []
        if not parts and not files:
            raise ConfigError("the message is empty", hint="pass a text or files")
        # Uploads appear in the feed, too. Recording them prevents that they are taken for the person's.
        parts += await self._attachments.put([FilePart(uri="", name=file.name, path=file) for file in files])
        outgoing = Outgoing(
            message_id=str(uuid.uuid4()), caller_id=None, context_id=None, in_reply_to="", parts=tuple(parts)
        )
        # Without the record, the echo would look as if another program spoke as this workspace.
        number = await self._store.record_notification(self._workspace_id, notify_fingerprint(outgoing.parts))
        try:
            await self._client.send(outgoing)
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
        request = endpoints.a2a(peer_id, question_envelope(message_id, text))
        request = attrs.evolve(request, timeout=max(request.timeout, timeout))
        await self._store.record_question(self._workspace_id, message_id, peer_id, text)
        try:
            async with asyncio.timeout(timeout):
                response = await self._client.call(request)
        except PermanentPlatformError:
            await self._store.close_question(self._workspace_id, message_id)
            raise
        if _is_answer(response):
            await self._store.close_question(self._workspace_id, message_id)
        return response

    async def delegate(self, peer_id: str, task: str) -> str:
        """See ``Inbox.delegate``."""
        key = str(uuid.uuid4())
        request = endpoints.delegate(self._workspace_id, peer_id, task, idempotency_key=key)
        await self._store.record_question(self._workspace_id, key, peer_id, task)
        try:
            response = await self._client.call(request)
        except PermanentPlatformError:
            await self._store.close_question(self._workspace_id, key)
            raise
        delegation_id = str(response.get("delegation_id") or "")
        if delegation_id:
            await self._store.record_delegation(self._workspace_id, key, delegation_id)
        return delegation_id


def _is_answer(response: Any) -> bool:
    """Whether a response contains the peer's answer or its error.

    A 502 with ``delivery_confirmed`` doesn't: the peer has the question, and its answer arrives later.
    """
    if not isinstance(response, Mapping) or response.get("delivery_confirmed") is True:
        return False
    return "result" in response or "error" in response
