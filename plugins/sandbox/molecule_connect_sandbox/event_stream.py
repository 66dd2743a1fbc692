"""The event stream."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from molecule_connect_sandbox.faults import Fault, Faults
from molecule_connect_sandbox.responses import to_json

# The platform drops events for a listener that has this many unread ones.
BUFFER = 64


class Listener:
    """An open stream. Events beyond ``BUFFER`` unread ones are dropped."""

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()
        self.closed = False
        self.wakeup = asyncio.Event()

    def offer(self, event: bytes) -> None:
        """Queue an event, or drop it if the buffer is full."""
        if len(self.waiting) < BUFFER:
            self.waiting.append(event)
            self.wakeup.set()

    def close(self) -> None:
        """End the stream."""
        self.closed = True
        self.wakeup.set()


class Broadcaster:
    """All open streams, by workspace."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._listeners: dict[str, set[Listener]] = {}

    def listen(self, workspace_id: str) -> Listener:
        """Add a listener; ``leave`` removes it."""
        listener = Listener()
        self._listeners.setdefault(workspace_id, set()).add(listener)
        return listener

    def leave(self, workspace_id: str, listener: Listener) -> None:
        """Remove a listener."""
        listeners = self._listeners.get(workspace_id, set())
        listeners.discard(listener)
        if not listeners:
            self._listeners.pop(workspace_id, None)

    def count(self, workspace_id: str) -> int:
        """The number of open streams of a workspace."""
        return len(self._listeners.get(workspace_id, ()))

    def publish(self, workspace_id: str, kind: str, data: str | dict[str, Any]) -> None:
        """Send an event to all listeners of a workspace. *data* is an object, or JSON text."""
        listeners = self._listeners.get(workspace_id)
        if not listeners:
            return
        text = data if isinstance(data, str) else to_json(data)
        stamp = int(self._now() * 1000)
        event = f'data: {{"type":"{kind}","timestamp":{stamp},"data":{text}}}\n\n'.encode()
        for listener in listeners:
            listener.offer(event)

    def recheck_faults(self) -> None:
        """Make every stream check the active faults."""
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.wakeup.set()

    def close(self) -> None:
        """End all streams."""
        for listeners in list(self._listeners.values()):
            for listener in list(listeners):
                listener.close()


class EventStream:
    """The response of ``GET /workspaces/:id/events/stream``."""

    def __init__(self, broadcaster: Broadcaster, faults: Faults, workspace_id: str) -> None:
        self._broadcaster = broadcaster
        self._faults = faults
        self._workspace_id = workspace_id
        self._opened = time.monotonic()
        self._spared: Fault | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        listener = self._broadcaster.listen(self._workspace_id)
        gone = asyncio.create_task(_until_disconnected(receive, listener))
        try:
            await self._run(listener, scope, send)
        finally:
            gone.cancel()
            self._broadcaster.leave(self._workspace_id, listener)

    async def _run(self, listener: Listener, scope: Scope, send: Send) -> None:
        path = scope["path"]
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        silent = self._faults.strike("stream-silent", path=path, method="GET")
        await send(_piece(b"" if silent else b": ping\n\n"))
        while not listener.closed:
            if await self._dropped(listener, path):
                scope["state"]["abort"]()
                return
            quiet = silent or self._faults.is_on("stream-stall", path)
            while listener.waiting and not listener.closed:
                event = listener.waiting.popleft()
                if not quiet:
                    await send(_piece(event))
        await send(_piece(b"", more=False))

    async def _dropped(self, listener: Listener, path: str) -> bool:
        """Wait for events. Returns whether to cut the stream instead."""
        fault = self._faults.is_on("stream-drop", path)
        left = None
        if fault is not None and fault is not self._spared:
            left = max(self._opened, fault.since) + fault.seconds - time.monotonic()
        try:
            async with asyncio.timeout(left):
                await listener.wakeup.wait()
        except TimeoutError:
            struck = self._faults.strike("stream-drop", path=path, method="GET")
            self._spared = None if struck else fault
            return struck is not None
        listener.wakeup.clear()
        return False


def _piece(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def _until_disconnected(receive: Receive, listener: Listener) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    listener.close()
