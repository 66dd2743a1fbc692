"""The two streams that the SDK's server runs on, over lines; what the session is known to be is noted on the way."""

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

from molecule_connect_mcp import harmless
from molecule_connect_mcp.refusals import refusal_of, refusal_of_id
from molecule_connect_mcp.stdio import LineReader, LineWriter

_log = logging.getLogger(__name__)
# How long answers under way are waited for when the host has closed its side; one that waits itself is not.
LINGER = 5.0
_WAITING = "wait_for_message"
# A host that asks one of these may still choose the other era, or has not finished its handshake.
_OPENINGS = frozenset({"initialize", "ping", "server/discover"})


class Talk:
    """What is known of the session: whether it is open for notifications, who the host is, what is unanswered."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.begun = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self.host = ""
        self._pending: dict[types.RequestId, str] = {}

    def heard(self, message: types.JSONRPCMessage) -> None:
        """Something came from the host."""
        if isinstance(message, types.JSONRPCRequest):
            params = message.params or {}
            if params.get("name") != _WAITING:
                self._pending[message.id] = message.method
                self.idle.clear()
            self._introduced(params)
            if message.method not in _OPENINGS:
                self.open.set()
        elif isinstance(message, types.JSONRPCNotification):
            if message.method == "notifications/initialized":
                self.open.set()
            elif message.method == "notifications/cancelled":
                cancelled = (message.params or {}).get("requestId")
                if isinstance(cancelled, int | str):
                    self._settled(cancelled)

    def said(self, message: types.JSONRPCMessage) -> None:
        """Something was written to the host."""
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            self.begun.set()
            if self._settled(message.id) == "server/discover" and isinstance(message, types.JSONRPCResponse):
                self.open.set()

    def _settled(self, request_id: types.RequestId | None) -> str | None:
        method = None if request_id is None else self._pending.pop(request_id, None)
        if not self._pending:
            self.idle.set()
        return method

    def _introduced(self, params: dict[str, Any]) -> None:
        meta = params.get("_meta")
        told = params.get("clientInfo") or (meta.get(types.CLIENT_INFO_META_KEY) if isinstance(meta, dict) else None)
        if not self.host and isinstance(told, dict):
            self.host = harmless.name(" ".join(str(told.get(key) or "") for key in ("name", "version")))


class _Stream:
    async def aclose(self) -> None:
        """The SDK closes its streams; the lines outlive them."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class Incoming(_Stream):
    """What the host says."""

    def __init__(self, lines: LineReader, talk: Talk, outgoing: "Outgoing") -> None:
        self._lines, self._talk, self._outgoing = lines, talk, outgoing

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage:
        while True:
            line = await self._lines.next()
            if line is None:
                await self._linger()
                raise StopAsyncIteration
            if not line.strip():
                continue
            try:
                message = _read(line)
            except ValidationError as exc:
                # The SDK drops a line that is no message, and the host would wait for its answer.
                await self._outgoing.refuse(refusal_of(line, exc))
                continue
            if isinstance(message, types.JSONRPCNotification) and (refusal := refusal_of_id(line)) is not None:
                await self._outgoing.refuse(refusal)
                continue
            self._talk.heard(message)
            return SessionMessage(message)

    async def receive(self) -> SessionMessage:
        """The next message.

        Raises:
            anyio.EndOfStream: The host has closed its side.
        """
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise anyio.EndOfStream from None

    async def _linger(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                await self._talk.idle.wait()


class Outgoing(_Stream):
    """What the host is told."""

    def __init__(self, lines: LineWriter, talk: Talk) -> None:
        self._lines, self._talk = lines, talk

    async def send(self, item: SessionMessage, /) -> None:
        """Returns once it is written.

        Raises:
            anyio.BrokenResourceError: Nobody reads any more.
        """
        content = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        try:
            await self._lines.line(content.encode(errors="replace"))
        except BrokenPipeError:
            raise anyio.BrokenResourceError from None
        self._talk.said(item.message)

    async def refuse(self, refusal: dict[str, Any] | None) -> None:
        """Send an error of ``refusals``, if there is one."""
        if refusal is None:
            return
        _log.warning("a request of the host was refused: %s", refusal["error"]["message"])
        with contextlib.suppress(BrokenPipeError):
            await self._lines.line(json.dumps(refusal).encode())

    async def notify(self, method: str, params: dict[str, Any]) -> bool:
        """Tell the host something it did not ask for. False: nobody reads any more."""
        note = types.JSONRPCNotification(jsonrpc="2.0", method=method, params=params)
        try:
            await self.send(SessionMessage(message=note))
        except anyio.BrokenResourceError:
            return False
        return True


def _read(line: bytes) -> types.JSONRPCMessage:
    """The message that *line* is.

    Raises:
        ValidationError: It is none.
    """
    try:
        return types.jsonrpc_message_adapter.validate_json(line.decode(errors="replace"), by_name=False)
    except ValidationError:
        # Half a surrogate pair, as JavaScript writes a text that was cut within an emoji, is no reason for no answer.
        try:
            mended = json.dumps(json.loads(line), ensure_ascii=False).encode(errors="replace")
        except (ValueError, RecursionError):
            mended = b""
        if b"\\u" not in line or not mended:
            raise
        return types.jsonrpc_message_adapter.validate_json(mended, by_name=False)
