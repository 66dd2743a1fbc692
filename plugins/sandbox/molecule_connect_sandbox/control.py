"""The endpoints under ``/sandbox/``: change faults, inspect and edit state."""

import asyncio
import json
from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from molecule_connect_sandbox.auth import Auth
from molecule_connect_sandbox.cleanup import sweep
from molecule_connect_sandbox.forger import DEEP, DEEP_MARK
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.responses import Refusal, json_response, raw_json_response, read_object, to_json
from molecule_connect_sandbox.rows import Row

MAX_WAIT = 60.0
_FIELDS = tuple(field.name for field in attrs.fields(Row) if field.name not in ("workspace_id", "late"))


def parse_answer(home: str, text: str) -> dict[str, Any] | None:
    """The message that a workspace sent, from its row in the feed of *home*; None if the row isn't a message."""
    row = json.loads(text.replace(DEEP, f'"{DEEP_MARK}"'))
    to_person = row["source_id"] is None
    if to_person and not isinstance(row.get("response_body"), dict):
        return None
    if to_person:
        message = row["response_body"]
        said = [message.get("result")]
    else:
        message = _object(_object(_object(row.get("request_body")).get("params")).get("message"))
        parts = message.get("parts")
        said = [_object(part).get("text") for part in parts] if isinstance(parts, list) else []
    return {
        "to": None if to_person else home,
        "text": "".join(text for text in said if isinstance(text, str)),
        "message_id": None if to_person else message.get("messageId"),
        "message": message,
        "row_id": row["id"],
        "created_at": row["created_at"],
    }


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


class Control:
    """The control endpoints; they require the control token."""

    def __init__(self, platform: Platform, auth: Auth) -> None:
        self._platform = platform
        self._auth = auth

    def routes(self) -> list[Route]:
        """The routes of these endpoints."""
        one = "/sandbox/workspaces/{id}"
        return [
            Route("/sandbox/faults", self.faults, methods=["GET", "PUT", "DELETE"]),
            Route("/sandbox/requests", self.requests, methods=["GET", "DELETE"]),
            Route("/sandbox/sweep", self.sweep, methods=["POST"]),
            Route(f"{one}/answers", self.answers, methods=["GET"]),
            Route(f"{one}/rows", self.rows, methods=["GET"]),
            Route(f"{one}/rows", self.add_rows, methods=["POST"]),
            Route(f"{one}/rows", self.prune, methods=["DELETE"]),
            Route(f"{one}/beats", self.beats, methods=["GET"]),
            Route(f"{one}/streams", self.streams, methods=["GET"]),
            Route(f"{one}/secrets", self.secrets, methods=["PUT"]),
        ]

    async def faults(self, request: Request) -> Response:
        """List the active faults. PUT ``{"faults": [...]}`` replaces them, DELETE removes them."""
        self._auth.control(request)
        faults = self._platform.faults
        if request.method == "PUT":
            texts = (await read_object(request)).get("faults")
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise Refusal(400, "faults must be a list of strings")
            self._platform.set_faults(texts)
        elif request.method == "DELETE":
            self._platform.set_faults(())
        return json_response({"faults": faults.texts})

    async def requests(self, request: Request) -> Response:
        """Request counts as ``[method, path, status, count]``; status 0 means cut. DELETE resets them."""
        self._auth.control(request)
        counts = [[*key, count] for key, count in sorted(self._platform.requests.items())]
        if request.method == "DELETE":
            self._platform.requests.clear()
        return json_response({"requests": counts})

    async def sweep(self, request: Request) -> Response:
        """Run the periodic cleanup now."""
        self._auth.control(request)
        sweep(self._platform)
        return json_response({"status": "swept"})

    async def _wait(self, request: Request, ready: Any) -> None:
        """Wait until *ready* holds, or for ``timeout`` seconds."""
        try:
            async with asyncio.timeout(min(float(request.query_params.get("timeout", "10")), MAX_WAIT)):
                while not ready():
                    await self._platform.changes.wait()
        except TimeoutError:
            return

    def _wanted(self, request: Request) -> int:
        text = request.query_params.get("count", "0")
        return int(text) if text.isdigit() else 0

    async def answers(self, request: Request) -> Response:
        """The messages that a workspace sent, in order. ``count=N`` waits for N of them."""
        self._auth.control(request)
        workspace_id, wanted = request.path_params["id"], self._wanted(request)

        def ready() -> bool:
            return len(self._platform.rows.answers(workspace_id)) >= wanted and len(self._sent(workspace_id)) >= wanted

        await self._wait(request, ready)
        return json_response(self._sent(workspace_id))

    def _sent(self, workspace_id: str) -> list[dict[str, Any]]:
        answers = (parse_answer(*found) for found in self._platform.rows.answers(workspace_id))
        return [one for one in answers if one is not None]

    async def rows(self, request: Request) -> Response:
        """All rows of a feed, including late ones. ``count=N`` waits for N of them."""
        self._auth.control(request)
        workspace_id, wanted = request.path_params["id"], self._wanted(request)
        await self._wait(request, lambda: len(self._platform.rows.all(workspace_id)) >= wanted)
        return raw_json_response(f"[{','.join(text for text, _ in self._platform.rows.all(workspace_id))}]")

    async def add_rows(self, request: Request) -> Response:
        """Write rows, ``{"rows": [{...}]}``, without validating their content."""
        self._auth.control(request)
        given = (await read_object(request, cap=256 * 1024 * 1024)).get("rows")
        if not isinstance(given, list):
            raise Refusal(400, "rows must be a list")
        rows = [self._row(request.path_params["id"], fields) for fields in given]
        for row in rows:
            self._platform.log(row, then=self._platform.publish_activity)
        return json_response({"ids": [row.id for row in rows]}, 201)

    def _row(self, workspace_id: str, fields: Any) -> Row:
        if not isinstance(fields, dict) or not set(fields) <= set(_FIELDS):
            raise Refusal(400, f"a row has the fields {', '.join(_FIELDS)}")
        bodies = {
            key: None if fields[key] is None else to_json(fields[key])
            for key in ("request_body", "response_body")
            if key in fields
        }
        return Row(workspace_id=workspace_id, **{**fields, **bodies})

    async def prune(self, request: Request) -> Response:
        """Delete the row ``row_id``, or all but the newest ``keep``."""
        self._auth.control(request)
        query = request.query_params
        keep = query.get("keep", "0")
        count = self._platform.rows.prune(
            request.path_params["id"], row_id=query.get("row_id"), keep=int(keep) if keep.isdigit() else 0
        )
        return json_response({"pruned": count})

    async def beats(self, request: Request) -> Response:
        """The newest heartbeats, as received. ``count=N`` waits for N of them."""
        self._auth.control(request)
        workspace_id, wanted = request.path_params["id"], self._wanted(request)
        await self._wait(request, lambda: len(self._platform.heartbeats.get(workspace_id, ())) >= wanted)
        return json_response(list(self._platform.heartbeats.get(workspace_id, ())))

    async def streams(self, request: Request) -> Response:
        """The number of open event streams of a workspace."""
        self._auth.control(request)
        return json_response({"open": self._platform.events.count(request.path_params["id"])})

    async def secrets(self, request: Request) -> Response:
        """Set secrets of a workspace."""
        self._auth.control(request)
        body = await read_object(request)
        self._platform.store.set_secrets(request.path_params["id"], {key: str(value) for key, value in body.items()})
        return json_response({"status": "set"})
