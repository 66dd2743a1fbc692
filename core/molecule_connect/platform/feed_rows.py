"""Classify the rows of the feed and read their content, in all shapes of both platform generations.

The shapes R1 to R12 are those of the platform contract, section (a). Rows are classified by facts that the platform
attests: ``activity_type``, ``source_id``, and whether the platform itself wrote the row. The sender chooses ``method``
and everything in ``request_body`` (``docs/security.md``). The contract leaves two cases open:

- An organization broadcast (``broadcast_receive``, R12) is history, because it expects no reply.
- A row that claims to be from a peer, but has no source, is unreadable, because the reply would go to a person.
"""

import asyncio
import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs

from molecule_connect.config.settings import WORKSPACE_ID
from molecule_connect.models import BLANK, Inbound, Kind, Page, Part, RowMark, TextPart, canonical_id, hashed_id
from molecule_connect.platform.clock import parse_time
from molecule_connect.platform.feed_pages import MalformedPageError, RawRow, read_head, read_rows
from molecule_connect.platform.parts import clean, fingerprint, first_text, read_manifest, read_part, read_parts

FEED_TYPE = "a2a_receive"
_TALK = frozenset({None, FEED_TYPE, "a2a_send", "delegation"})
_OWN_SUMMARIES = ("(queued for poll)", "(ingest)")
_PEER_METHODS = frozenset({"peer", "peer_agent", "delegate", "delegation", "delegate_result"})
_ANSWER_ROLES = frozenset({"agent", "assistant", "role_agent", "role_assistant"})
_KEYS = ("idempotencyKey", "idempotency_key")
_LARGE_ROW_KEPT = 4_096
# Seconds of work after which other tasks get a turn, which costs about 20 microseconds.
SLICE = 0.002
# The caller of a row with an unreadable source. It isn't a workspace id, so nothing is ever sent to it.
UNKNOWN_SENDER = "?"
# Ids from senders end up in environment variables, argument lists and logs.
MAX_ID_LENGTH = 1_024
_log = logging.getLogger(__name__)
_REQUEST_NAMESPACE = uuid.UUID("6ffdc3b7-5f0e-4c0e-9d5b-3a4e1f0c9a5e").bytes
_EMPTY: Mapping[str, Any] = {}


@attrs.frozen
class _Envelope:
    """The request body of a row. Members that are missing or have the wrong type are empty."""

    body: Mapping[str, Any]
    params: Mapping[str, Any]
    message: Mapping[str, Any]
    metadata: Mapping[str, Any]
    raw: str

    def first_id(self, *keys: str) -> str | None:
        return bounded_id(first_text(self.message, *keys) or first_text(self.params, *keys))

    @property
    def was_posted(self) -> bool:
        """Whether a sender posted it. The platform adds ``jsonrpc`` to every posted body, and not to its own."""
        return "jsonrpc" in self.body

    @property
    def molecule(self) -> Mapping[str, Any]:
        return _mapping(self.metadata.get("molecule"))

    @property
    def is_response(self) -> bool:
        """Whether it is a JSON-RPC response."""
        return not self.message and ("result" in self.body or ("error" in self.body and "jsonrpc" in self.body))


@attrs.frozen(kw_only=True)
class PageReader:
    """Reads one page of the feed.

    Attributes:
        limit: The limit of the request.
        known: Whether a row is in the journal. Such a row is marked, but its content isn't read.
        earliest: A lower bound of the platform's clock at the time of the request, in microseconds.
    """

    workspace_id: str
    limit: int
    known: Callable[[str], bool]
    earliest: int | None = None

    async def read(self, text: str, *, size: int, is_whole: bool = True) -> Page:
        """Return the page in *text*, which has *size* bytes.

        Other tasks run meanwhile: a sender can make a page take a second.

        Args:
            is_whole: False for the beginning of a page with a single row that is too large.

        Raises:
            MalformedPageError: It is not a JSON array, or a row that is too large is cut off before its id and time.
        """
        loop, rows = asyncio.get_running_loop(), []
        until = loop.time() + SLICE
        for row in self._rows(text, is_whole):
            rows.append(row)
            if loop.time() >= until:
                await asyncio.sleep(0)
                until = loop.time() + SLICE
        return Page(
            marks=tuple(mark for mark, _ in rows if mark is not None),
            items=tuple(content for _, content in rows if content is not None),
            count=len(rows),
            limit=self.limit,
            size=size,
            earliest=self.earliest,
        )

    def _rows(self, text: str, is_whole: bool) -> Iterator[tuple[RowMark | None, Inbound | None]]:
        """Yield the mark of each row, None for a row without an id; and its content, None for a known row."""
        if not is_whole:
            large = _read_large_row(text)
            yield RowMark(large.row_id, large.time), None if self.known(large.row_id) else large
            return
        for row in read_rows(text):
            row_id = _id(row.fields.get("id")) if row else None
            if row is None or row_id is None:
                yield None, None
            else:
                content = None
                if not self.known(row_id):
                    content = read_row(row, row_id=row_id, workspace_id=self.workspace_id)
                yield RowMark(row_id, parse_time(row.fields.get("created_at"))), content


def read_row(row: RawRow, *, row_id: str, workspace_id: str) -> Inbound:
    """Classify *row*. Never raises: a row that can't be read is ``UNREADABLE`` and keeps its whole text."""
    try:
        inbound = classify(row.fields, row_id=row_id, workspace_id=workspace_id, raw=row.text_of("request_body"))
        if not row.deep or inbound.kind is not Kind.MESSAGE:
            return inbound if inbound.kind is not Kind.UNREADABLE else attrs.evolve(inbound, raw=row.text)
    except RecursionError:
        pass
    return Inbound(
        row_id=row_id,
        kind=Kind.UNREADABLE,
        time=parse_time(row.fields.get("created_at")),
        caller_id=_source(row.fields.get("source_id")),
        message_id=row_id,
        idempotency_key=row_id,
        raw=row.text,
        reason="it is nested too deeply",
    )


def _read_large_row(text: str) -> Inbound:
    row = read_head(text)
    row_id = _id(row.fields.get("id")) if row else None
    time = parse_time(row.fields.get("created_at")) if row else None
    if row is None or row_id is None or time is None:
        # Reading can't continue without them.
        raise MalformedPageError("a row is too large to be read, and does not begin with its id and time", cut=True)
    return Inbound(
        row_id=row_id,
        kind=Kind.UNREADABLE,
        time=time,
        caller_id=_source(row.fields.get("source_id", UNKNOWN_SENDER)),
        message_id=row_id,
        idempotency_key=row_id,
        raw=row.text[:_LARGE_ROW_KEPT],
        reason="it is too large to be read: over 128 MiB; only its beginning is kept",
    )


def read_history(rows: Iterable[Mapping[str, Any]], *, workspace_id: str) -> tuple[Inbound, ...]:
    """Return the messages in both directions among *rows*, without uploads, logs and empty messages."""
    talk = (row for row in rows if first_text(row, "activity_type", "type") in _TALK)
    found = (classify(row, row_id=str(row.get("id") or ""), workspace_id=workspace_id) for row in talk)
    return tuple(one for one in found if one.parts and one.kind is not Kind.UPLOAD)


def classify(row: Mapping[str, Any], *, row_id: str, workspace_id: str, raw: str | None = None) -> Inbound:
    """Classify *row* for the workspace *workspace_id*.

    Args:
        raw: The JSON text of the row's ``request_body``.
    """
    envelope = _open(row.get("request_body"), raw or "{}")
    source = _source(row.get("source_id"))
    method = bounded_id(first_text(row, "method") or first_text(envelope.body, "method")) or ""
    kind, parts, reason = _classify_content(row, envelope, method=method, source=source, workspace_id=workspace_id)
    message_id = envelope.first_id("messageId", "message_id")
    key = bounded_id(
        first_text(envelope.message, *_KEYS)
        or first_text(envelope.metadata, *_KEYS)
        or first_text(_mapping(envelope.params.get("metadata")), *_KEYS)
    )
    seq = row.get("seq")
    return Inbound(
        row_id=row_id,
        kind=kind,
        time=parse_time(row.get("created_at")),
        seq=seq if isinstance(seq, int) and not isinstance(seq, bool) and abs(seq) < 2**63 else None,
        caller_id=_callee(row, workspace_id) if kind is Kind.RESULT else source,
        context_id=envelope.first_id("contextId", "context_id"),
        task_id=envelope.first_id("taskId", "task_id"),
        message_id=message_id or row_id,
        sender_key=key or message_id,
        idempotency_key=request_key(workspace_id, source, row_id),
        method=method or "message/send",
        parts=parts,
        raw=envelope.raw,
        fingerprint=fingerprint(parts),
        delegation_id=bounded_id(
            first_text(envelope.metadata, "delegation_id")
            or first_text(envelope.body, "delegation_id")
            or (first_text(_mapping(row.get("response_body")), "delegation_id") if kind is Kind.RESULT else None)
        ),
        reason=reason,
    )


def request_key(workspace_id: str, caller_id: str | None, row_id: str) -> str:
    """Return the idempotency key of a message, which is unique and the same each time its row is read.

    The sender chooses no part of it, so a caller can't use up the key of another caller's message.
    """
    return hashed_id(_REQUEST_NAMESPACE, json.dumps([workspace_id, caller_id, row_id]))


def bounded_id(text: str | None) -> str | None:
    """Cut *text* to 1,024 characters, with a warning. A hash replaces the end, so that ids stay distinct."""
    if text is None or len(text) <= MAX_ID_LENGTH:
        return text
    _log.warning("shortened an id of a row from %d to %d characters; its sender chose it", len(text), MAX_ID_LENGTH)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    return f"{text[: MAX_ID_LENGTH - len(digest) - 1]}~{digest}"


# Kind, parts and reason.
_Classified = tuple[Kind, tuple[Part, ...], str]


def _classify_content(
    row: Mapping[str, Any], envelope: _Envelope, *, method: str, source: str | None, workspace_id: str
) -> _Classified:
    """Return kind, parts and reason. The order of the checks makes the kinds disjoint."""
    if source is not None and WORKSPACE_ID.match(source) is None:
        return Kind.UNREADABLE, (), "its source_id is not a workspace id (1 to 128 letters, digits, '.', '_' or '-')"
    activity = first_text(row, "activity_type", "type")
    if activity not in (None, FEED_TYPE):
        return (Kind.OWN if source == workspace_id else Kind.HISTORY), _parts_of(envelope), f"activity {activity}"
    if source is None and (found := _platform_row(row, envelope, method=method, workspace_id=workspace_id)):
        return found
    if source == workspace_id:
        response = row.get("response_body")
        # Rows that were posted to a polling workspace have no response, so the platform wrote this one.
        if method == "delegate_result" and response is not None:
            return Kind.RESULT, _reply_parts(response) or _parts_of(envelope), ""
        return Kind.OWN, _parts_of(envelope), ""
    return _posted_row(row, envelope, method=method, source=source)


def _platform_row(row: Mapping[str, Any], envelope: _Envelope, *, method: str, workspace_id: str) -> _Classified | None:
    """Classify a row without a source that the platform wrote; None if it didn't."""
    if method == "notify" and row.get("request_body") is None:
        response = row.get("response_body")
        # Without its text, an echo can't be matched to a reply, and it isn't a message of a person either.
        return (Kind.HISTORY if response is None else Kind.ECHO), _reply_parts(response), ""
    if method == "chat_upload_receive" and not envelope.was_posted:
        return Kind.UPLOAD, read_manifest(envelope.body, workspace_id), ""
    return None


def _posted_row(row: Mapping[str, Any], envelope: _Envelope, *, method: str, source: str | None) -> _Classified:
    """Classify a row that a person or a peer posted."""
    if envelope.is_response:
        return Kind.ANSWER, _result_parts(envelope.body), bounded_id(first_text(envelope.body, "id")) or ""
    parts = _parts_of(envelope)
    if _is_answer(envelope):
        return Kind.ANSWER, parts, bounded_id(first_text(envelope.molecule, "in_reply_to")) or ""
    if row.get("response_body") is not None or str(row.get("status")).lower() == "error":
        return Kind.HISTORY, parts, first_text(row, "error_detail") or ""
    if source is None and (method in _PEER_METHODS or "delegation_id" in envelope.metadata):
        return Kind.UNREADABLE, parts, "a peer wrote it, but the row does not say which"
    parts = parts or _summary_parts(row)
    return (Kind.MESSAGE, parts, "") if parts else (Kind.UNREADABLE, (), BLANK)


def _source(value: object) -> str | None:
    """Return the attested sender, or None for a person. An invalid id is kept: it must not pass for a person."""
    if value is None or value == "":
        return None
    return canonical_id(_id(value) or "")[:MAX_ID_LENGTH] or UNKNOWN_SENDER


def _callee(row: Mapping[str, Any], workspace_id: str) -> str | None:
    """Return the peer that a delegation result is from. Platforms of 2026-05 don't name it in the row."""
    target = _source(row.get("target_id"))
    return target if target != workspace_id else None


def _open(body: object, raw: str) -> _Envelope:
    if isinstance(body, str):
        text = clean(body)
        try:
            inner = json.loads(text)
        except (ValueError, RecursionError):
            inner = None
        if isinstance(inner, dict | list):
            body, raw = inner, text
    opened = {"parts": body} if isinstance(body, list | str) else _mapping(body)
    params = _mapping(opened.get("params"))
    message = _mapping(params.get("message")) or _mapping(opened.get("message"))
    if not message and "role" in opened:
        message = opened
    return _Envelope(opened, params, message, _mapping(message.get("metadata")), raw)


def _parts_of(envelope: _Envelope) -> tuple[Part, ...]:
    """Return the parts from the first place that has any, in the order of all known clients."""
    for place in (envelope.message, envelope.params, envelope.body):
        for name in ("parts", "content"):
            parts = read_parts(place.get(name))
            if parts:
                return parts
    for place in (envelope.params, envelope.body):
        text = first_text(place, "message", "text")
        if text is not None:
            return (TextPart(text),)
    return ()


def _summary_parts(row: Mapping[str, Any]) -> tuple[Part, ...]:
    summary = first_text(row, "summary")
    if summary is None or not summary.strip() or summary.endswith(_OWN_SUMMARIES):
        return ()
    return (TextPart(summary),)


def _reply_parts(reply: object) -> tuple[Part, ...]:
    """Return the parts of a ``response_body``: ``result`` (notify) or ``text`` (delegate_result), then ``parts``."""
    if not isinstance(reply, dict):
        return read_parts(reply)
    text = next((reply[key] for key in ("result", "text") if reply.get(key)), None)
    parts = read_parts(reply.get("parts"))
    if isinstance(text, str):
        return (TextPart(clean(text)), *parts)
    return parts or ((read_part(text),) if text else ())


def _result_parts(body: Mapping[str, Any]) -> tuple[Part, ...]:
    """Return the parts of a JSON-RPC response: of the message, the status or the artifacts, else the whole result."""
    result = body.get("result") if "result" in body else body.get("error")
    if not isinstance(result, dict):
        return read_parts(result)
    status = _mapping(result.get("status"))
    for place in (result, _mapping(result.get("message")), _mapping(status.get("message"))):
        if parts := read_parts(place.get("parts")):
            return parts
    artifacts = result.get("artifacts")
    found = (
        part
        for artifact in (artifacts if isinstance(artifacts, list) else ())
        for part in read_parts(_mapping(artifact).get("parts"))
    )
    return tuple(found) or (read_part(result),)


def _is_answer(envelope: _Envelope) -> bool:
    role = envelope.message.get("role")
    return (isinstance(role, str) and role.lower() in _ANSWER_ROLES) or envelope.molecule.get("auto") is True


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _EMPTY


def _id(value: object) -> str | None:
    if isinstance(value, str):
        return clean(value) or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
