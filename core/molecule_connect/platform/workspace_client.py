"""WorkspaceClient: the platform as a worker uses it."""

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import IO, Any

import attrs

from molecule_connect.errors import AuthError, ConfigError, PermanentPlatformError, TransientPlatformError
from molecule_connect.models import (
    FilePart,
    Outgoing,
    Page,
    Presence,
    Signal,
    UploadLimits,
    WorkspaceInfo,
    WorkspaceStatus,
    canonical_id,
)
from molecule_connect.platform import endpoints
from molecule_connect.platform.client import AsyncPlatformClient
from molecule_connect.platform.endpoints import Operation, Reply
from molecule_connect.platform.event_stream import read_events, signal_of
from molecule_connect.platform.messages import notify_fingerprint

# The platform's operator may change the limits at any time.
LIMITS_SECONDS = 3600.0
_BUSY = (402, 408, 425, 429)


def _say_nothing(text: str) -> None:
    pass


def _peer_name(peer: Mapping[str, Any]) -> tuple[str, str]:
    """Id and name of a peer in the registry."""
    peer_id, name = peer.get("id"), peer.get("name")
    return canonical_id(peer_id) if isinstance(peer_id, str) else "", name if isinstance(name, str) else ""


def _content_type(reply: Reply) -> str:
    return reply.content_type


class WorkspaceClient:
    """Implements ``worker.ports.Platform``, which documents the methods.

    Args:
        client: Closed by ``aclose``.
        say: Receives notices for the operator.
    """

    def __init__(
        self,
        client: AsyncPlatformClient,
        *,
        say: Callable[[str], None] = _say_nothing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._say = client, say
        self._id = client.workspace_id
        self._has_reported_token = False
        self._clock = clock
        self._limits: tuple[float, UploadLimits] | None = None

    async def aclose(self) -> None:
        """Close the client."""
        await self._client.aclose()

    async def fetch(
        self,
        *,
        since_id: str | None = None,
        before: int | None = None,
        limit: int,
        known: Callable[[str], bool],
        people: bool = False,
    ) -> Page:
        return await self._client.fetch(since_id=since_id, before=before, limit=limit, known=known, people=people)

    def now(self) -> int | None:
        return self._client.now()

    async def send(self, outgoing: Outgoing) -> None:
        await self._client.call(endpoints.reply(self._id, outgoing))

    def fingerprint(self, outgoing: Outgoing) -> str:
        return notify_fingerprint(outgoing.parts)

    async def workspace(self) -> WorkspaceInfo:
        """Return status and card of the workspace, or status unknown if the platform refuses.

        Raises:
            TransientPlatformError: A retry may return them.
        """
        try:
            return await self._client.call(endpoints.workspace(self._id))
        except (AuthError, PermanentPlatformError):
            return WorkspaceInfo(status=WorkspaceStatus.UNKNOWN)

    async def register(self, card: dict[str, Any]) -> None:
        """Register. A new token is stored before this returns."""
        try:
            token = await self._client.call(endpoints.register(self._id, card))
        except AuthError as exc:
            exc.hint = f"workspace {self._id}, token from {self._client.credentials.source}: {exc.hint}"
            raise
        except TransientPlatformError as exc:
            if exc.status == 500 and not exc.hint:
                # The platform answers an invalid id with 500 "registration failed" (contract 2.1).
                exc.hint = f"if it persists, the workspace id may be wrong: run 'molecule doctor {self._id}'"
            raise
        if token is None:
            return
        try:
            self._client.credentials.keep(token)
        except ConfigError as exc:
            self._say(f"{exc}; {exc.hint}")
            return
        if not self._has_reported_token:
            self._has_reported_token = True
            self._say(
                "the platform issued a token, because the workspace is new or had none; "
                f"it is kept in {self._client.credentials.kept_path or 'memory only'}"
            )

    async def heartbeat(self, presence: Presence) -> None:
        await self._client.call(endpoints.heartbeat(self._id, presence))

    async def peer_names(self) -> dict[str, str]:
        peers = await self._client.call(endpoints.peers(self._id))
        return dict(map(_peer_name, peers))

    async def peer_name(self, peer_id: str) -> str:
        peer = await self._client.call(endpoints.discover(peer_id))
        return _peer_name(peer)[1]

    async def upload_limits(self) -> UploadLimits:
        """Return the limits of uploads, read once an hour; see ``ports.Files``."""
        if self._limits is None or self._limits[0] <= self._clock():
            try:
                limits = await self._client.call(endpoints.upload_limits())
            except AuthError:
                raise
            except PermanentPlatformError:
                limits = UploadLimits()
            except TransientPlatformError as exc:
                if exc.status is None or exc.status >= 500 or exc.status in _BUSY:
                    raise
                # A proxy may answer with a page of its own if the platform lacks the endpoint.
                limits = UploadLimits()
            self._limits = (self._clock() + LIMITS_SECONDS, limits)
        return self._limits[1]

    async def fetch_file(self, file_id: str, sink: IO[bytes], *, cap: int) -> str:
        content: Operation[Any] = endpoints.upload_content(self._id, file_id)
        mime_type: str = await self._client.call(attrs.evolve(content, read=_content_type, cap=cap), sink=sink)
        return mime_type

    async def acknowledge_file(self, file_id: str) -> None:
        await self._client.call(endpoints.upload_ack(self._id, file_id))

    async def upload(self, files: Sequence[FilePart]) -> tuple[FilePart, ...]:
        return await self._client.call(endpoints.upload_files(self._id, files))

    async def signals(self) -> AsyncGenerator[Signal, None]:
        async with self._client.open(endpoints.events(self._id)) as pieces:
            yield Signal.OPENED
            async for data in read_events(pieces):
                yield signal_of(data)
