"""Format a request for the command, as JSON or text. Names may be added, but are never removed."""

import json
import re
from typing import Any

from molecule_connect import DataPart, FilePart, Part, Request

LONGEST_NAME = 200
_NOT_PLAIN = re.compile(r"[^\w.-]")


def as_json(request: Request, *, raw: bool = False) -> bytes:
    """*request* as a line of JSON in UTF-8, without empty fields. ``raw`` is included on request."""
    fields = {
        "workspace_id": request.workspace_id,
        "message_id": request.message_id,
        "idempotency_key": request.idempotency_key,
        "caller_id": request.caller_id,
        "task_id": request.task_id,
        "context_id": request.context_id,
        "method": request.method,
        "attempt": request.attempt,
        "trace": request.trace,
        "text": request.text,
        "parts": [_part(part) for part in request.parts],
        "raw": request.raw if raw else None,
    }
    return json.dumps(_filled(fields), ensure_ascii=False, default=str).encode(errors="replace") + b"\n"


def as_text(request: Request) -> bytes:
    """The text of *request*, or, if it has none, a line per file; see ``_line``."""
    if request.text.strip():
        return request.text.encode(errors="replace")
    lines = [_line(part) + "\n" for part in request.parts if isinstance(part, FilePart)]
    return "".join(lines).encode(errors="replace") or request.text.encode(errors="replace")


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, DataPart):
        return {"type": "data", "data": part.data}
    if isinstance(part, FilePart):
        fields = {
            "type": "file",
            "uri": part.uri,
            "name": part.name,
            "mime_type": part.mime_type,
            "size": part.size,
            "path": None if part.path is None else str(part.path),
            "unavailable": part.unavailable,
        }
        return _filled(fields)
    return {"type": "text", "text": part.text}


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, "", [])}


def _line(file: FilePart) -> str:
    """The path of *file*, or ``unavailable:`` and its name if it isn't on this machine.

    The sender chose name and uri, so they must not look like a path: a command that opens each line as a file would
    open ``/etc/passwd``.
    """
    if file.path is not None:
        return str(file.path)
    return f"unavailable:{_NOT_PLAIN.sub('_', file.name)[:LONGEST_NAME] or 'unnamed'}"
