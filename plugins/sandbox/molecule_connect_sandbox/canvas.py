"""The canvas of a workspace: ``notify`` and uploads."""

import re
import uuid
from typing import Any
from urllib.parse import quote

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from molecule_connect_sandbox.a2a import storable
from molecule_connect_sandbox.auth import Auth
from molecule_connect_sandbox.generation import MIB
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.responses import Refusal, json_response, read_object, to_json
from molecule_connect_sandbox.rows import Row
from molecule_connect_sandbox.store import is_uuid

MAX_FILES = 64
NAME_LENGTH = 100
EXTENSION_LENGTH = 16
SUMMARY_LENGTH = 80
UPLOAD_LIFE = 24 * 3600 * 1_000_000
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def safe_name(name: str | None) -> str:
    """A file name as the platform stores it: sanitized and shortened; a short extension is kept."""
    plain = _UNSAFE.sub("_", (name or "").rpartition("/")[2])
    if len(plain) > NAME_LENGTH:
        _, dot, rest = plain.rpartition(".")
        extension = dot + rest if dot and len(dot + rest) <= EXTENSION_LENGTH else ""
        plain = plain[: NAME_LENGTH - len(extension)] + extension
    return "file" if plain in ("", ".", "..") else plain


class Canvas:
    """The endpoints of the canvas."""

    def __init__(self, platform: Platform, auth: Auth) -> None:
        self._platform = platform
        self._auth = auth

    def routes(self) -> list[Route]:
        """The routes of these endpoints."""
        upload = "/workspaces/{id}/pending-uploads/{file_id}"
        routes = [
            Route("/workspaces/{id}/notify", self.notify, methods=["POST"]),
            Route("/workspaces/{id}/chat/uploads", self.upload, methods=["POST"]),
            Route(f"{upload}/content", self.content, methods=["GET"]),
            Route(f"{upload}/ack", self.acknowledge, methods=["POST"]),
        ]
        if self._platform.generation.acked_upload_stays:
            routes.append(Route("/uploads/limits", self.limits, methods=["GET"]))
        return routes

    async def notify(self, request: Request) -> Response:
        """Show a text in the canvas; writes a row to the workspace's own feed."""
        workspace_id = self._auth.workspace(request)
        body = await read_object(request)
        message, attachments = body.get("message"), body.get("attachments") or []
        if not isinstance(message, str) or not message:
            raise Refusal(400, "message is required")
        if not isinstance(attachments, list):
            raise Refusal(400, "invalid request body")
        for number, file in enumerate(attachments):
            if not isinstance(file, dict) or not file.get("uri") or not file.get("name"):
                raise Refusal(400, f"attachment[{number}]: uri and name are required")
        workspace = self._platform.store.workspace(workspace_id)
        if workspace is None or workspace.removed:
            raise Refusal(404, "workspace not found")
        self._show(workspace_id, message, attachments)
        return json_response({"status": "sent"})

    def _show(self, workspace_id: str, message: str, attachments: list[dict[str, Any]]) -> None:
        shown: dict[str, Any] = {"message": message}
        kept: dict[str, Any] = {"result": message}
        if attachments:
            known = ("uri", "name", "mimeType", "size")
            files = [{key: file[key] for key in known if key in file} for file in attachments]
            shown["attachments"] = files
            kept["parts"] = [{"kind": "file", "file": file} for file in files]
        text = storable(to_json(kept))
        self._platform.events.publish(workspace_id, "AGENT_MESSAGE", storable(to_json(shown)) or to_json(shown))
        if text is not None:
            summary = f"Agent message: {message[:SUMMARY_LENGTH]}"
            self._platform.log(Row(workspace_id=workspace_id, method="notify", summary=summary, response_body=text))

    async def upload(self, request: Request) -> Response:
        """Accept files from the canvas; writes a row for each."""
        workspace_id = self._auth.workspace(request)
        if self._platform.store.workspace(workspace_id) is None:
            raise Refusal(404, "workspace not found")
        form = await read_form(request, self._platform.generation.upload_request_cap)
        try:
            files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
            if not files:
                raise Refusal(400, "no files field in request")
            return json_response({"files": await self.accept(workspace_id, files)})
        finally:
            await form.close()

    async def accept(self, workspace_id: str, files: list[UploadFile]) -> list[dict[str, Any]]:
        """Store uploaded files and write a row for each. Returns them as parts and attachments name them.

        Raises:
            Refusal: There are too many, or one is empty or too large.
        """
        if len(files) > MAX_FILES:
            raise Refusal(400, f"too many files (limit {MAX_FILES})")
        cap = self._platform.generation.upload_file_cap
        stored = [await _accept(workspace_id, file, cap) for file in files]
        if any(not content for _, content in stored):
            raise Refusal(500, "could not stage files")
        self._stage(workspace_id, stored)
        return [{key: file[key] for key in ("uri", "name", "mimeType", "size")} for file, _ in stored]

    def _stage(self, workspace_id: str, stored: list[tuple[dict[str, Any], bytes]]) -> None:
        platform = self._platform
        expires = platform.now() + UPLOAD_LIFE
        platform.store.db.executemany(
            "INSERT INTO uploads (id, workspace_id, name, mime_type, content, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
            [(f["file_id"], workspace_id, f["name"], f["mimeType"], content, expires) for f, content in stored],
        )
        rows = [
            Row(
                workspace_id=workspace_id,
                target_id=workspace_id,
                method="chat_upload_receive",
                summary=f"chat_upload_receive: {file['name']}",
                request_body=to_json(file),
                late=True,
            )
            for file, _ in stored
        ]
        platform.log(*rows, then=platform.publish_activity)

    def _pending(self, request: Request) -> tuple[str, str, bytes, int | None]:
        """Name, type, content and acknowledgement time of the upload in the path."""
        workspace_id, file_id = self._auth.workspace(request), request.path_params["file_id"]
        if not is_uuid(file_id):
            raise Refusal(400, "invalid file_id")
        platform = self._platform
        row = platform.store.db.execute(
            "SELECT name, mime_type, content, acked_at, workspace_id FROM uploads WHERE id = ? AND expires_at > ?",
            (file_id, platform.now()),
        ).fetchone()
        stays = platform.generation.acked_upload_stays
        if row is None or (row[3] is not None and not stays):
            ends = " or expired" if stays else ", expired, or already acked"
            raise Refusal(404, f"pending upload not found{ends}")
        if row[4] != workspace_id:
            raise Refusal(404, "pending upload not found")
        return row[0], row[1], row[2], row[3]

    async def content(self, request: Request) -> Response:
        """Return the content of an upload."""
        name, mime_type, content, _ = self._pending(request)
        disposition = f"attachment; filename=\"{name}\"; filename*=UTF-8''{quote(name)}"
        return Response(content, headers={"Content-Type": mime_type, "Content-Disposition": disposition})

    async def acknowledge(self, request: Request) -> Response:
        """Acknowledge an upload."""
        acked_at = self._pending(request)[3]
        if acked_at is None:
            self._platform.store.db.execute(
                "UPDATE uploads SET acked_at = ? WHERE id = ?", (self._platform.now(), request.path_params["file_id"])
            )
        return json_response({"acked": True})

    async def limits(self, request: Request) -> Response:
        """Return the upload limits."""
        generation = self._platform.generation
        return json_response(
            {
                "per_file_bytes": generation.upload_file_cap,
                "per_request_bytes": generation.upload_request_cap,
                "max_attachments_per_message": 10,
            }
        )


async def read_form(request: Request, cap: int, *, max_text: int = MIB) -> FormData:
    """The multipart form of a request of at most *cap* bytes, with fields of at most *max_text* bytes.

    Raises:
        Refusal: It isn't one.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refusal(400, "malformed multipart body")
    if int(request.headers.get("content-length", "0")) > cap:
        raise Refusal(400, "malformed multipart body")
    try:
        return await request.form(max_files=MAX_FILES + 1, max_part_size=max_text)
    except HTTPException as exc:
        many = "Too many files" in str(exc.detail)
        raise Refusal(400, f"too many files (limit {MAX_FILES})" if many else "malformed multipart body") from exc


async def _accept(workspace_id: str, file: UploadFile, cap: int) -> tuple[dict[str, Any], bytes]:
    name, size = safe_name(file.filename), file.size or 0
    if size > cap:
        raise Refusal(413, "file exceeds per-file cap", filename=name, size=size, max=cap)
    file_id = str(uuid.uuid4())
    about = {
        "file_id": file_id,
        "name": name,
        "mimeType": file.content_type or "application/octet-stream",
        "size": size,
        "uri": f"platform-pending:{workspace_id}/{file_id}",
    }
    return about, await file.read()
