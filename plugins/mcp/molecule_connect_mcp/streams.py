"""The message streams that the SDK's server runs on, and the state of the session with the host."""

import asyncio
import contextlib
import json
import logging
from types import TracebackType
from typing import Any, Self

import anyio
import mcp_types as types
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from molecule_connect_mcp import sanitize
from molecule_connect_mcp.request_errors import error_response, invalid_id_response
from molecule_connect_mcp.stdio import LineReader, LineWriter

_log = logging.getLogger(__name__)
# How long to wait for pending requests after the host closed its side, in seconds.
PENDING_TIMEOUT = 5.0
# This tool may wait for minutes, so its calls don't count as pending.
_WAITING_TOOL = "wait_for_message"
# After one of these the host may still choose the other protocol era, or hasn't finished its handshake.
_OPENING_METHODS = frozenset({"initialize", "ping", "server/discover"})


class HostSession:
    """The state of the session, derived from the messages in both directions.

    Attributes:
        accepts_notifications: Set once the host accepts notifications.
        responded: Set once the host received its first response.
        idle: Set while no request is pending.
        name: The name and version of the host; empty until it is known.
    """

    def __init__(self) -> None:
        self.accepts_notifications = asyncio.Event()
        self.responded = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self.name = ""
        self._pending: dict[types.RequestId, str] = {}

    def received(self, message: types.JSONRPCMessage) -> None:
        """Update the state with a message from the host."""
        if isinstance(message, types.JSONRPCRequest):
            params = message.params or {}
            if params.get("name") != _WAITING_TOOL:
                self._pending[message.id] = message.method
                self.idle.clear()
            self._read_name(params)
            if message.method not in _OPENING_METHODS:
                self.accepts_notifications.set()
        elif isinstance(message, types.JSONRPCNotification):
            if message.method == "notifications/initialized":
                self.accepts_notifications.set()
            elif message.method == "notifications/cancelled":
                cancelled = (message.params or {}).get("requestId")
                if isinstance(cancelled, int | str):
                    self._finish(cancelled)

    def sent(self, message: types.JSONRPCMessage) -> None:
        """Update the state with a message that was written to the host."""
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            self.responded.set()
            if self._finish(message.id) == "server/discover" and isinstance(message, types.JSONRPCResponse):
                self.accepts_notifications.set()

    def _finish(self, request_id: types.RequestId | None) -> str | None:
        method = None if request_id is None else self._pending.pop(request_id, None)
        if not self._pending:
            self.idle.set()
        return method

    def _read_name(self, params: dict[str, Any]) -> None:
        meta = params.get("_meta")
        info = params.get("clientInfo") or (meta.get(types.CLIENT_INFO_META_KEY) if isinstance(meta, dict) else None)
        if not self.name and isinstance(info, dict):
            self.name = sanitize.name(" ".join(str(info.get(key) or "") for key in ("name", "version")))


class _Stream:
    async def aclose(self) -> None:
        """Do nothing: the SDK closes its streams, but the lines are still needed."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class Incoming(_Stream):
    """The messages from the host."""

    def __init__(self, lines: LineReader, session: HostSession, outgoing: "Outgoing") -> None:
        self._lines, self._session, self._outgoing = lines, session, outgoing

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage:
        while True:
            line = await self._lines.next()
            if line is None:
                await self._wait_for_pending()
                raise StopAsyncIteration
            if not line.strip():
                continue
            try:
                message = _parse(line)
            except ValidationError as exc:
                # The SDK drops invalid lines, and the host would wait for a response.
                await self._outgoing.send_error(error_response(line, exc))
                continue
            if isinstance(message, types.JSONRPCNotification) and (error := invalid_id_response(line)) is not None:
                await self._outgoing.send_error(error)
                continue
            self._session.received(message)
            return SessionMessage(message)

    async def receive(self) -> SessionMessage:
        """Return the next message.

        Raises:
            anyio.EndOfStream: The host has closed its side.
        """
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise anyio.EndOfStream from None

    async def _wait_for_pending(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PENDING_TIMEOUT):
                await self._session.idle.wait()


class Outgoing(_Stream):
    """The messages to the host."""

    def __init__(self, lines: LineWriter, session: HostSession) -> None:
        self._lines, self._session = lines, session

    async def send(self, item: SessionMessage, /) -> None:
        """Write a message, and return once it is written.

        Raises:
            anyio.BrokenResourceError: The host has stopped reading.
        """
        content = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        try:
            await self._lines.write(content.encode(errors="replace"))
        except BrokenPipeError:
            raise anyio.BrokenResourceError from None
        self._session.sent(item.message)

    async def send_error(self, response: dict[str, Any] | None) -> None:
        """Write an error response from ``request_errors``; do nothing for None."""
        if response is None:
            return
        _log.warning("rejected a request of the host: %s", response["error"]["message"])
        with contextlib.suppress(BrokenPipeError):
            await self._lines.write(json.dumps(response).encode())

    async def notify(self, method: str, params: dict[str, Any]) -> bool:
        """Send a notification. Returns False if the host has stopped reading."""
        notification = types.JSONRPCNotification(jsonrpc="2.0", method=method, params=params)
        try:
            await self.send(SessionMessage(message=notification))
        except anyio.BrokenResourceError:
            return False
        return True


def _parse(line: bytes) -> types.JSONRPCMessage:
    """Parse a JSON-RPC message.

    Raises:
        ValidationError: *line* isn't one.
    """
    try:
        return types.jsonrpc_message_adapter.validate_json(line.decode(errors="replace"), by_name=False)
    except ValidationError:
        # JavaScript writes a text that was cut within an emoji with a lone surrogate; replace it.
        try:
            repaired = json.dumps(json.loads(line), ensure_ascii=False).encode(errors="replace")
        except (ValueError, RecursionError):
            repaired = b""
        if b"\\u" not in line or not repaired:
            raise
        return types.jsonrpc_message_adapter.validate_json(repaired, by_name=False)
