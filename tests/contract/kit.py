"""The barest platform that the field has: a queue that is emptied by each read, and almost nothing else."""

import asyncio
import json
from typing import Any

import attrs
import httpx


@attrs.define
class BarestPlatform:
    """Register, heartbeat and a2a answer 200 with an empty body; every path that it does not know is a bodiless 404.

    Attributes:
        register: Statuses of the next registers; 200 when it is used up.
        activity: Statuses of the next reads; 200 when it is used up.
    """

    workspace_id: str = "ws-target"
    register: list[int] = attrs.field(factory=list)
    activity: list[int] = attrs.field(factory=list)
    queue: list[dict[str, Any]] = attrs.field(factory=list)
    beats: list[dict[str, Any]] = attrs.field(factory=list)
    registers: list[dict[str, Any]] = attrs.field(factory=list)
    sent: list[tuple[str, dict[str, Any]]] = attrs.field(factory=list)
    paths: list[str] = attrs.field(factory=list)
    reads: int = 0
    changed: asyncio.Event = attrs.field(factory=asyncio.Event)

    def put(self, text: str, *, row_id: str, source: str | None) -> None:
        """A row with no more than the field's barest platforms give."""
        self.queue.append(
            {
                "id": row_id,
                "workspace_id": self.workspace_id,
                "activity_type": "a2a_receive",
                "source_id": source,
                "method": "message/send",
                "request_body": {"params": {"message": {"parts": [{"type": "text", "text": text}]}}},
            }
        )

    async def until(self, condition: Any) -> None:
        """Wait until *condition* holds; looks after each request."""
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.changed.set()
        path = request.url.path
        self.paths.append(path)
        body = json.loads(request.content) if request.content else {}
        if path == "/registry/register":
            self.registers.append(body)
            return httpx.Response(self.register.pop(0) if self.register else 200)
        if path == "/registry/heartbeat":
            self.beats.append(body)
            return httpx.Response(200)
        if path == f"/workspaces/{self.workspace_id}/activity":
            self.reads += 1
            if self.activity and (status := self.activity.pop(0)) != 200:
                return httpx.Response(status)
            rows, self.queue = self.queue, []
            return httpx.Response(200, json=rows)
        if path.endswith("/a2a"):
            self.sent.append((path, body))
            return httpx.Response(200)
        return httpx.Response(404)
