"""Conversations as the page shows them: rows of feeds as messages of a person, a peer or the agent."""

import asyncio
import base64
import binascii
import json
import re
from typing import Any
from urllib.parse import quote

import attrs

from molecule_connect_sandbox.canvas import safe_name
from molecule_connect_sandbox.forger import DEEP, DEEP_MARK
from molecule_connect_sandbox.page.markdown import to_html
from molecule_connect_sandbox.platform import Platform

PERSON = "person"
MAX_TEXT = 200_000
MAX_FILES = 100
MAX_ID = 200
CACHED = 2000
_DATA_URI = re.compile(r"data:(?P<type>[^,;]*)[^,]*?(?P<base64>;base64)?,", re.IGNORECASE)
_PENDING = re.compile(r"platform-pending:(?P<workspace>[0-9a-fA-F-]{36})/(?P<file>[0-9a-fA-F-]{36})")
# The text in place of a message that failed, which connectors send. It has no other mark on the wire.
_NOTICE = re.compile(r"This message could not be answered \(reference [0-9A-Za-z-]{1,36}\)\.")


@attrs.frozen(kw_only=True)
class File:
    """A file of a message. ``source`` is where its content is: ``upload``, ``inline``, ``link`` or empty."""

    name: str
    type: str
    size: int | None
    source: str
    address: str


@attrs.frozen(kw_only=True)
class Content:
    """What a row says.

    Attributes:
        reply_to: The id of the message that it answers, which connectors name to peers.
        cut: The number of characters that were left out.
    """

    message_id: str | None
    reply_to: str | None
    text: str
    html: str | None
    cut: int
    files: tuple[File, ...]


def parse_row(wire: str) -> dict[str, Any] | None:
    """A row as JSON; None if it is nested deeper than Python's parser goes."""
    try:
        row = json.loads(wire.replace(DEEP, f'"{DEEP_MARK}"'))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def parts_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of the message in *row*, in the order of precedence of other readers."""
    if row.get("method") == "notify" and row.get("target_id") is None:
        body = _object(row.get("response_body"))
        files = body.get("parts")
        result = body.get("result")
        text = [{"text": result}] if isinstance(result, str) else []
        return text + [part for part in files if isinstance(part, dict)] if isinstance(files, list) else text
    body = _object(row.get("request_body"))
    params = _object(body.get("params"))
    for parts in (_object(params.get("message")).get("parts"), params.get("parts"), body.get("parts")):
        if isinstance(parts, list):
            return [part for part in parts if isinstance(part, dict)]
    summary = row.get("summary")
    return [{"text": summary}] if isinstance(summary, str) else []


def inline_content(part: dict[str, Any]) -> bytes | None:
    """The content of a file that the message itself contains; None if it doesn't, or it can't be decoded."""
    file = _file_of(part)
    encoded, uri = file.get("bytes"), file.get("uri")
    try:
        if isinstance(encoded, str):
            return base64.b64decode(encoded)
        if isinstance(uri, str) and (match := _DATA_URI.match(uri)) and match["base64"]:
            return base64.b64decode(uri[match.end() :])
    except (binascii.Error, ValueError):
        return None
    return None


def _file_of(part: dict[str, Any]) -> dict[str, Any]:
    return part["file"] if isinstance(part.get("file"), dict) else part


def _is_file(part: dict[str, Any]) -> bool:
    file = _file_of(part)
    return isinstance(file.get("uri"), str) or isinstance(file.get("bytes"), str)


def _file(part: dict[str, Any], workspace_id: str, row_id: str, number: int) -> File:
    file = _file_of(part)
    uri, name, size = file.get("uri"), file.get("name"), file.get("size")
    kind = file.get("mimeType") or file.get("mime_type")
    pending = _PENDING.fullmatch(uri) if isinstance(uri, str) else None
    source = address = ""
    if pending is not None:
        source = "upload"
        address = f"/_sandbox/workspaces/{pending['workspace']}/files/{pending['file']}"
    elif isinstance(file.get("bytes"), str) or (isinstance(uri, str) and _DATA_URI.match(uri)):
        source, address = "inline", f"/_sandbox/workspaces/{workspace_id}/rows/{quote(row_id, safe='')}/files/{number}"
    elif isinstance(uri, str) and uri.startswith(("http://", "https://")):
        source, address = "link", uri[:2000]
    return File(
        name=name[:200] if isinstance(name, str) and name else "file",
        type=kind[:100] if isinstance(kind, str) else "",
        size=size if isinstance(size, int) and not isinstance(size, bool) else None,
        source=source,
        address=address,
    )


def read_content(row: dict[str, Any]) -> Content:
    """The text and the files of *row*. Slow for a long text."""
    text, files = "", []
    for number, part in enumerate(parts_of(row)):
        if isinstance(part.get("text"), str):
            # Without a separator, as other readers join them.
            text += part["text"]
        elif _is_file(part):
            files.append(_file(part, str(row.get("workspace_id")), str(row.get("id")), number))
        elif "data" in part:
            text += f"\n\n```json\n{json.dumps(part['data'], ensure_ascii=False, indent=2)}\n```\n\n"
    text = text.strip("\n")
    message = _object(_object(_object(row.get("request_body")).get("params")).get("message"))
    mark = _object(_object(message.get("metadata")).get("molecule"))
    return Content(
        message_id=_identifier(message.get("messageId")),
        reply_to=_identifier(mark.get("in_reply_to")),
        text=text[:MAX_TEXT],
        html=to_html(text),
        cut=max(0, len(text) - MAX_TEXT),
        files=tuple(files[:MAX_FILES]),
    )


def _identifier(value: Any) -> str | None:
    return value if isinstance(value, str) and len(value) <= MAX_ID else None


def _read_wire(wire: str) -> Content | None:
    row = parse_row(wire)
    try:
        return None if row is None else read_content(row)
    except RecursionError:
        return None


class Conversations:
    """Reads conversations from the database."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._cached: dict[str, Content | None] = {}

    async def page(self, workspace_id: str, voice: str, *, after: int, before: int, limit: int) -> list[dict[str, Any]]:
        """The messages between a workspace and a person or peer, oldest first; with *after* 0 the newest ones.

        Rows that the platform doesn't show to readers yet are included.
        """
        if voice == PERSON:
            where = (
                "workspace_id = ? AND source_id IS NULL AND activity_type = 'a2a_receive' AND "
                "(target_id = workspace_id AND method IS NOT 'chat_upload_receive' "
                "OR target_id IS NULL AND method = 'notify')"
            )
            values: tuple[Any, ...] = (workspace_id,)
        else:
            where = (
                "activity_type = 'a2a_receive' AND "
                "(workspace_id = ? AND source_id = ? OR workspace_id = ? AND source_id = ?)"
            )
            values = (workspace_id, voice, voice, workspace_id)
        order = "ASC" if after else "DESC"
        rows = self._platform.store.db.execute(
            f"SELECT seq, id, workspace_id, target_id, visible_at, created_at, wire FROM activity "  # noqa: S608
            f"WHERE {where} AND seq > ? AND seq < ? ORDER BY seq {order} LIMIT ?",
            (*values, after, before, limit),
        ).fetchall()
        contents = await self._read([(row[1], row[-1]) for row in rows])
        shown = [self._message(voice, row, contents[row[1]]) for row in rows]
        return shown if after else shown[::-1]

    async def _read(self, rows: list[tuple[str, str]]) -> dict[str, Content | None]:
        """The content of each row by its id, parsed once.

        In a thread: a hostile text takes 0.3 s to render, during which connectors need the event loop.
        """
        new = {row_id: wire for row_id, wire in rows if row_id not in self._cached}
        contents = {row_id: self._cached[row_id] for row_id, _ in rows if row_id not in new}
        if new:
            contents |= await asyncio.to_thread(lambda: {row_id: _read_wire(wire) for row_id, wire in new.items()})
        self._cached |= contents
        while len(self._cached) > CACHED:
            del self._cached[next(iter(self._cached))]
        return contents

    def _message(self, voice: str, row: tuple[Any, ...], content: Content | None) -> dict[str, Any]:
        seq, _, home, target, visible_at, created_at, _ = row
        from_agent = target is None if voice == PERSON else home == voice
        return {
            "seq": seq,
            "message_id": content.message_id if content else None,
            "reply_to": content.reply_to if content else None,
            "from": "agent" if from_agent else PERSON if voice == PERSON else "peer",
            "time": created_at // 1000,
            "late": visible_at > self._platform.now(),
            "unreadable": content is None,
            "text": content.text if content else "",
            "html": content.html if content and (from_agent or voice != PERSON) else None,
            "cut": content.cut if content else 0,
            "notice": bool(content and from_agent and _NOTICE.fullmatch(content.text.strip())),
            "files": [attrs.asdict(file) for file in content.files] if content else [],
        }

    def inline_file(self, workspace_id: str, row_id: str, number: int) -> tuple[str, str, bytes] | None:
        """Name, type and content of a file that a message contains; None if there is none."""
        found = self._platform.store.db.execute(
            "SELECT wire FROM activity WHERE workspace_id = ? AND id = ?", (workspace_id, row_id)
        ).fetchone()
        row = parse_row(found[0]) if found else None
        parts = parts_of(row) if row else []
        content = inline_content(parts[number]) if number < len(parts) else None
        if row is None or content is None:
            return None
        file = _file(parts[number], workspace_id, row_id, number)
        return safe_name(file.name), file.type, content
