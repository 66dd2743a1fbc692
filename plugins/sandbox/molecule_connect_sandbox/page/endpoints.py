"""The endpoints of the page: its files, and what they show and send."""

import asyncio
import base64
import hashlib
import importlib.resources
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from molecule_connect_sandbox.a2a import Proxy
from molecule_connect_sandbox.auth import Auth
from molecule_connect_sandbox.canvas import Canvas, read_form
from molecule_connect_sandbox.faults import KINDS
from molecule_connect_sandbox.page.conversation import PERSON, Conversations
from molecule_connect_sandbox.page.dead_letters import dead_letters
from molecule_connect_sandbox.page.guard import check_navigation, check_page, check_program
from molecule_connect_sandbox.page.peers import NEW_PEER, page_peer, page_peers, voices
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.responses import Refusal, json_response, read_object, to_json
from molecule_connect_sandbox.store import Workspace, is_uuid

ASSETS = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types sandbox"
)
SAFETY = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
# Files of agents are never HTML or SVG for the browser, which would run in the origin of the page.
FILE_SAFETY = {**SAFETY, "Content-Security-Policy": "default-src 'none'; sandbox", "Cache-Control": "no-store"}
PREVIEWED = ("image/png", "image/jpeg", "image/gif", "image/webp")
PAGE_SIZE, MAX_PAGE_SIZE = 50, 200
MAX_ROW = 20_000
TOP = 2**62
# Seconds: the least between two events of a stream, the most between two looks at the state, and until a comment that
# proves that the stream is alive.
PAUSE, LOOK, PING = 0.2, 2.0, 10.0


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else default


def _safe(response: Response, cache: str = "no-store") -> Response:
    response.headers.update({**SAFETY, "Cache-Control": cache})
    return response


class Page:
    """The endpoints of the page. ``/_sandbox/`` serves only the page and programs of the same user."""

    def __init__(self, platform: Platform, auth: Auth, proxy: Proxy, canvas: Canvas) -> None:
        self._platform = platform
        self._auth = auth
        self._proxy = proxy
        self._canvas = canvas
        self._conversations = Conversations(platform)
        self._heard: dict[str, int] = {}
        self._seen = 0

    def routes(self) -> list[Route]:
        """The routes of these endpoints."""
        one = "/_sandbox/workspaces/{id}"
        return [
            Route("/", self.index, methods=["GET"]),
            Route("/_sandbox/assets/{name}", self.asset, methods=["GET"]),
            Route("/_sandbox/state", self.state, methods=["GET"]),
            Route("/_sandbox/events", self.events, methods=["GET"]),
            Route("/_sandbox/faults", self.faults, methods=["GET", "PUT"]),
            Route(f"{one}/messages", self.messages, methods=["GET"]),
            Route(f"{one}/messages", self.send, methods=["POST"]),
            Route(f"{one}/rows", self.rows, methods=["GET"]),
            Route(f"{one}/dead-letters", self.dead_letters, methods=["GET"]),
            Route(f"{one}/files/{{file_id}}", self.upload, methods=["GET"]),
            Route(f"{one}/rows/{{row_id}}/files/{{number:int}}", self.inline_file, methods=["GET"]),
        ]

    async def index(self, request: Request) -> Response:
        """The page."""
        check_program(request)
        return _file(request, "index.html", "text/html; charset=utf-8")

    async def asset(self, request: Request) -> Response:
        """The style sheet, the script or the icon of the page."""
        check_program(request)
        name = request.path_params["name"]
        if name not in ASSETS:
            raise Refusal(404, "no such file")
        return _file(request, name, ASSETS[name])

    async def state(self, request: Request) -> Response:
        """The workspaces and the active faults."""
        check_page(request)
        return _safe(json_response(self._state()))

    async def events(self, request: Request) -> Response:
        """Stream the state: at once, and after each change."""
        check_page(request)
        return _safe(StreamingResponse(self._states(), media_type="text/event-stream"))

    async def _states(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        last, sent_at = "", loop.time()
        while not self._platform.is_stopping:
            text = to_json(self._state())
            if text != last:
                yield f"event: state\ndata: {text}\n\n"
                last, sent_at = text, loop.time()
            elif loop.time() - sent_at > PING:
                yield ": still here\n\n"
                sent_at = loop.time()
            await asyncio.sleep(PAUSE)
            if text == to_json(self._state()):
                try:
                    async with asyncio.timeout(LOOK):
                        await self._platform.changes.wait()
                except TimeoutError:
                    continue

    def _state(self) -> dict[str, Any]:
        store = self._platform.store
        hidden = page_peers(self._platform)
        self._listen()
        found = [one for one in store.workspaces("status != 'removed'") if one.id not in hidden]
        return {
            "boot": self._platform.boot,
            "platform": self._platform.generation.name,
            "top": self._seen,
            "faults": self._platform.faults.texts,
            "workspaces": [self._workspace(one) for one in found],
        }

    def _listen(self) -> None:
        """Find the newest message of each agent to a person."""
        rows = self._platform.store.db.execute(
            "SELECT workspace_id, max(seq), method = 'notify' AND target_id IS NULL AND source_id IS NULL AS told "
            "FROM activity WHERE seq > ? GROUP BY workspace_id, told",
            (self._seen,),
        )
        for workspace_id, seq, told in rows.fetchall():
            self._seen = max(self._seen, seq)
            if told:
                self._heard[workspace_id] = seq

    def _workspace(self, one: Workspace) -> dict[str, Any]:
        beats = self._platform.heartbeats.get(one.id)
        return {
            "id": one.id,
            "name": one.name,
            "status": one.status,
            "wedged": bool(beats and beats[-1].get("runtime_state") == "wedged"),
            "error": one.sample_error[:500],
            "error_rate": one.error_rate,
            "tasks": one.active_tasks,
            "task": one.current_task[:500],
            "beat": None if one.last_beat is None else one.last_beat // 1000,
            "push": one.delivery_mode != "poll",
            "heard": self._heard.get(one.id, 0),
        }

    def _existing(self, request: Request) -> Workspace:
        workspace = self._platform.store.workspace(request.path_params["id"])
        if workspace is None or workspace.removed:
            raise Refusal(404, "this workspace does not exist any more", hint="choose another one")
        return workspace

    async def messages(self, request: Request) -> Response:
        """Messages with ``as``: ``person``, ``peer`` or the id of a peer. ``after`` and ``before`` are row numbers."""
        check_page(request)
        workspace, voice = self._existing(request), request.query_params.get("as", PERSON)
        if voice == NEW_PEER:
            voice = page_peer(self._platform, workspace, create=False)
        limit = min(_number(request, "limit", PAGE_SIZE), MAX_PAGE_SIZE)
        found = await self._conversations.page(
            workspace.id, voice, after=_number(request, "after", 0), before=_number(request, "before", TOP), limit=limit
        )
        reply = {"messages": found, "more": len(found) == limit}
        return _safe(json_response({**reply, "voices": voices(self._platform, self._auth, workspace)}))

    async def send(self, request: Request) -> Response:
        """Send a message: the form fields ``text``, ``as`` and ``files``."""
        check_page(request)
        workspace, generation = self._existing(request), self._platform.generation
        form = await read_form(request, generation.upload_request_cap, max_text=generation.a2a_cap)
        try:
            text, voice = form.get("text", ""), form.get("as", PERSON)
            files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
            if not isinstance(text, str) or not isinstance(voice, str):
                raise Refusal(400, "text and as are texts")
            # Browsers send line endings of forms as CRLF. The platform accepts U+0000, but doesn't store such messages.
            text = text.replace("\r\n", "\n").replace("\x00", "")
            if not text.strip() and not files:
                raise Refusal(400, "the message is empty")
            caller = self._caller(workspace, voice)
            parts: list[dict[str, Any]] = [{"kind": "text", "text": text}] if text.strip() else []
            if caller is None:
                self._check_size(parts)
                accepted = await self._canvas.accept(workspace.id, files) if files else []
                parts += [{"kind": "file", "file": file} for file in accepted]
            else:
                parts += [await _inline(file) for file in files]
        finally:
            await form.close()
        self._check_size(parts)
        message_id = str(uuid.uuid4())
        message = {"role": "user", "messageId": message_id, "parts": parts}
        body = {"jsonrpc": "2.0", "id": message_id, "method": "message/send", "params": {"message": message}}
        self._proxy.deliver(workspace.id, caller, body)
        return _safe(json_response({"as": caller or PERSON, "message_id": message_id}, 201))

    def _caller(self, workspace: Workspace, voice: str) -> str | None:
        if voice == PERSON:
            return None
        caller = page_peer(self._platform, workspace, create=True) if voice == NEW_PEER else voice
        known = self._platform.store.workspace(caller)
        if known is None or known.removed or caller == workspace.id:
            raise Refusal(404, "this peer does not exist any more", hint="choose another one to speak as")
        if not self._auth.may_talk(caller, workspace.id):
            raise Refusal(403, f"{known.name} may not write to {workspace.name}", hint="only relatives may")
        return caller

    def _check_size(self, parts: list[dict[str, Any]]) -> None:
        cap = self._platform.generation.a2a_cap - 1024
        if len(to_json(parts).encode()) > cap:
            mib = self._platform.generation.a2a_cap // 2**20
            raise Refusal(413, f"the message is larger than {mib} MiB", hint="shorten it, or send a file as a person")

    async def rows(self, request: Request) -> Response:
        """Raw rows of the feed, newest first, before the row number ``before``."""
        check_page(request)
        workspace = self._existing(request)
        limit = min(_number(request, "limit", PAGE_SIZE), MAX_PAGE_SIZE)
        found = self._platform.store.db.execute(
            "SELECT seq, created_at, visible_at, method, activity_type, source_id, target_id, length(wire), "
            "substr(wire, 1, ?) FROM activity WHERE workspace_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?",
            (MAX_ROW, workspace.id, _number(request, "before", TOP), limit),
        ).fetchall()
        now = self._platform.now()
        rows = [
            {
                "seq": seq,
                "time": created // 1000,
                "late": visible > now,
                "method": (method or "")[:100],
                "type": kind[:100],
                "source": workspace.id if (source, target, method) == (None, None, "notify") else source,
                "cut": max(0, length - MAX_ROW),
                "wire": wire,
            }
            for seq, created, visible, method, kind, source, target, length, wire in found
        ]
        return _safe(json_response({"rows": rows, "more": len(rows) == limit}))

    async def dead_letters(self, request: Request) -> Response:
        """The messages that were given up: by the connectors of this machine, and by the platform."""
        check_page(request)
        return _safe(json_response(await dead_letters(self._platform, self._existing(request))))

    async def faults(self, request: Request) -> Response:
        """The kinds of faults and the active ones. PUT ``{"faults": [...]}`` replaces these."""
        check_page(request)
        if request.method == "PUT":
            texts = (await read_object(request)).get("faults")
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise Refusal(400, "faults must be a list of strings")
            self._platform.set_faults(texts)
        kinds = [
            {"name": kind.name, "argument": kind.argument, "default": kind.default, "help": kind.help}
            for kind in KINDS.values()
        ]
        return _safe(json_response({"faults": self._platform.faults.texts, "kinds": kinds}))

    async def upload(self, request: Request) -> Response:
        """Download an uploaded file of a workspace."""
        check_navigation(request)
        workspace_id, file_id = request.path_params["id"], request.path_params["file_id"]
        found = self._platform.store.db.execute(
            "SELECT name, mime_type, content FROM uploads WHERE workspace_id = ? AND id = ?", (workspace_id, file_id)
        )
        row = found.fetchone() if is_uuid(file_id) else None
        if row is None:
            raise Refusal(404, "this file was deleted: the platform keeps uploads for a day, and an hour once read")
        return _download(*row)

    async def inline_file(self, request: Request) -> Response:
        """Download a file that a message contains."""
        check_navigation(request)
        path = request.path_params
        found = self._conversations.inline_file(path["id"], path["row_id"], path["number"])
        if found is None:
            raise Refusal(404, "there is no such file in this message")
        return _download(*found)


async def _inline(file: UploadFile) -> dict[str, Any]:
    """A file as part of a message: peers can't upload to a canvas."""
    encoded = base64.b64encode(await file.read()).decode()
    about = {"name": file.filename or "file", "mimeType": file.content_type or "application/octet-stream"}
    return {"kind": "file", "file": {**about, "size": file.size or 0, "bytes": encoded}}


def _file(request: Request, name: str, media_type: str) -> Response:
    content = importlib.resources.files("molecule_connect_sandbox.page").joinpath("assets", name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
    if request.headers.get("if-none-match") == tag:
        response = Response(status_code=304)
    else:
        response = Response(content, headers={"Content-Type": media_type})
    response.headers["ETag"] = tag
    return _safe(response, "no-cache")


def _download(name: str, kind: str, content: bytes) -> Response:
    """A file to save. The name was sanitized when it was stored."""
    media_type = kind if kind in PREVIEWED else "application/octet-stream"
    disposition = f'attachment; filename="{name}"'
    return Response(content, headers={**FILE_SAFETY, "Content-Type": media_type, "Content-Disposition": disposition})
