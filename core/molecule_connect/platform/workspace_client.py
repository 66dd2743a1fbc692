"""WorkspaceClient: the platform as a worker uses it."""

import functools
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import IO, Any, Protocol

import attrs

from molecule_connect.errors import AuthError, ConfigError, PermanentPlatformError, TransientPlatformError
from molecule_connect.models import (
    FilePart,
    Outgoing,
    Part,
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


class Gate(Protocol):
    """Whether this machine serves the workspace, so that replies may be sent and files be deleted."""

    @property
    def is_open(self) -> bool: ...

    @property
    def reason(self) -> str: ...


# The platform's operator may change the limits at any time.
LIMITS_SECONDS = 3600.0
_BUSY = (402, 408, 425, 429)


def _peer_name(peer: Mapping[str, Any]) -> tuple[str, str]:
    """Id and name of a peer in the registry."""
    peer_id, name = peer.get("id"), peer.get("name")
    return canonical_id(peer_id) if isinstance(peer_id, str) else "", name if isinstance(name, str) else ""


def _check_gate(gate: Gate, operation: str) -> None:
    if not gate.is_open:
        raise TransientPlatformError(f"{operation}: not sent, because {gate.reason}", operation=operation)


def _content_type(reply: Reply) -> str:
    return reply.content_type


class WorkspaceClient(AsyncPlatformClient):
    """A client with the methods of ``worker.ports.Platform``, which documents them."""

    _has_reported_token = False
    _limits: tuple[float, UploadLimits] | None = None
    # Set for a workspace that other machines may take over.
    gate: Gate | None = None

    async def send(self, outgoing: Outgoing) -> None:
        await self.call(self._gated(endpoints.reply(self.workspace_id, outgoing)))

    def _gated(self, operation: Operation[Any]) -> Operation[Any]:
        if self.gate is None:
            return operation
        return attrs.evolve(operation, check=functools.partial(_check_gate, self.gate, operation.name))

    def fingerprint(self, caller_id: str | None, parts: tuple[Part, ...]) -> str | None:
        return notify_fingerprint(parts) if caller_id is None else None

    async def workspace(self) -> WorkspaceInfo:
        """Return status and card of the workspace, or status unknown if the platform refuses.

        Raises:
            TransientPlatformError: A retry may return them.
        """
        try:
            return await self.call(endpoints.workspace(self.workspace_id))
        except (AuthError, PermanentPlatformError):
            return WorkspaceInfo(status=WorkspaceStatus.UNKNOWN)

    async def register(self, card: dict[str, Any]) -> str:
        """Register. A new token is stored before this returns."""
        try:
            token = await self.call(endpoints.register(self.workspace_id, card))
        except AuthError as exc:
            exc.hint = f"workspace {self.workspace_id}, token from {self.credentials.source}: {exc.hint}"
            raise
        except TransientPlatformError as exc:
            if exc.status == 500 and not exc.hint:
                # The platform answers an invalid id with 500 "registration failed" (contract 2.1).
                exc.hint = f"if it persists, the workspace id may be wrong: run 'molecule doctor {self.workspace_id}'"
            raise
        if token is None:
            return ""
        try:
            self.credentials.keep(token)
        except ConfigError as exc:
            return f"{exc}; {exc.hint}"
        if self._has_reported_token:
            return ""
        self._has_reported_token = True
        return (
            "the platform issued a token, because the workspace is new or had none; "
            f"it is kept in {self.credentials.kept_path or 'memory only'}"
        )

    async def heartbeat(self, presence: Presence) -> None:
        await self.call(endpoints.heartbeat(self.workspace_id, presence))

    async def peer_names(self) -> dict[str, str]:
        peers = await self.call(endpoints.peers(self.workspace_id))
        return dict(map(_peer_name, peers))

    async def peer_name(self, peer_id: str) -> str:
        peer = await self.call(endpoints.discover(peer_id))
        return _peer_name(peer)[1]

    async def upload_limits(self) -> UploadLimits:
        """Return the limits of uploads, read once an hour; see ``ports.Files``."""
        if self._limits is None or self._limits[0] <= self._clock():
            try:
                limits = await self.call(endpoints.upload_limits())
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
        content: Operation[Any] = endpoints.upload_content(self.workspace_id, file_id)
        mime_type: str = await self.call(attrs.evolve(content, read=_content_type, cap=cap), sink=sink)
        return mime_type

    async def acknowledge_file(self, file_id: str) -> None:
        # The platform deletes it, and another machine that serves the workspace may need it.
        await self.call(self._gated(endpoints.upload_ack(self.workspace_id, file_id)))

    async def upload(self, files: Sequence[FilePart]) -> tuple[FilePart, ...]:
        return await self.call(endpoints.upload_files(self.workspace_id, files))

    async def signals(self) -> AsyncGenerator[Signal, None]:
        async with self.open(endpoints.events(self.workspace_id)) as pieces:
            yield Signal.OPENED
            async for data in read_events(pieces):
                yield signal_of(data)
