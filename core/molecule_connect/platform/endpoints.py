"""The endpoints of the platform: each function returns a request and how to read its response. No I/O.

Paths and bodies are those of the platform contract, section 2.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import attrs

from molecule_connect.errors import ConfigError, Outcome, TransientPlatformError
from molecule_connect.models import (
    FilePart,
    Inbound,
    Outgoing,
    Presence,
    UploadLimits,
    WorkspaceInfo,
    WorkspaceStatus,
)
from molecule_connect.platform.clock import format_time
from molecule_connect.platform.feed_pages import MalformedPageError
from molecule_connect.platform.feed_rows import FEED_TYPE, read_history
from molecule_connect.platform.messages import (
    attachment,
    attachments,
    notify_text,
    peer_envelope,
    question_envelope,
    to_json,
)
from molecule_connect.platform.multipart import Multipart
from molecule_connect.platform.parts import read_file

T = TypeVar("T")
MIB = 1 << 20
PAGE_CAP = 32 * MIB
ROW_CAP = 128 * MIB
ANSWER_CAP = 8 * MIB
READ_TIMEOUT = 30.0
# The platform waits this long for a push peer, and then answers "queued" (contract, section (e)).
A2A_TIMEOUT = 90.0
# The longest message that newer platforms accept (contract, section (e)).
A2A_CAP = 64 * MIB
UPLOAD_TIMEOUT = 60.0
PLUGIN_TIMEOUT = 60.0
PLUGIN_CAP = 100 * MIB
MAX_FILES = 64
_TEXT_CAP = 500


class Priority(enum.Enum):
    """Determines the connections and the share of the rate limit that a request uses."""

    HEARTBEAT = "heartbeat"
    REGISTER = "register"
    LOOKUP = "lookup"
    READ = "read"
    SEND = "send"
    STREAM = "stream"


class BodyFormat(enum.Enum):
    """The body of a 2xx response."""

    JSON = "json"
    PAGE = "page"  # JSON with exact numbers; rejected above the operation's cap
    ROW = "row"  # a page of one row; above the cap, its beginning is enough
    BYTES = "bytes"

    @property
    def may_be_cut(self) -> bool:
        """Whether a response above the cap is usable."""
        return self in (BodyFormat.JSON, BodyFormat.ROW)


@attrs.frozen(kw_only=True)
class Reply:
    """A successful response.

    Attributes:
        json: The decoded body if the format is JSON; None if it was empty.
        earliest: A lower bound of the platform's clock at the time of the request, in microseconds: the ``Date`` header
            minus the duration of the request. None without that header.
        content_type: The ``Content-Type`` header.
        is_whole: False if the body is only the beginning of one that was too large.
    """

    body: bytes = attrs.field(repr=False)
    json: Any = attrs.field(default=None, repr=False)
    status: int = 200
    earliest: int | None = None
    content_type: str = ""
    is_whole: bool = True


def _send_always() -> None:
    """No check."""


@attrs.frozen(kw_only=True)
class Operation(Generic[T]):
    """A request to one endpoint.

    Attributes:
        name: Its name in errors.
        read: Returns the result for a successful response.
        accepts: Statuses outside of 200 to 299 that ``read`` understands.
        is_optional: The platform may lack the endpoint. That is remembered for an hour.
        is_open: The endpoint also works without a token.
        files: Sent from the disk instead of ``body``.
        headers: Sent in addition to those of all requests.
        to_peer: The response may take as long as the peer works, so a slow one doesn't mean a dead connection.
        timeout: Seconds between two pieces of the response.
        cap: Most bytes that are read of the response.
        check: Called right before the request is written. If it raises, nothing is sent.
    """

    name: str
    method: str
    path: str
    read: Callable[[Reply], T] = attrs.field(eq=False, repr=False)
    params: tuple[tuple[str, str], ...] = ()
    body: bytes | None = attrs.field(default=None, repr=False)
    files: Multipart | None = attrs.field(default=None, repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    priority: Priority = Priority.READ
    body_format: BodyFormat = BodyFormat.JSON
    accepts: tuple[int, ...] = ()
    is_optional: bool = False
    is_open: bool = False
    to_peer: bool = False
    timeout: float = READ_TIMEOUT
    cap: int = ANSWER_CAP
    check: Callable[[], None] = attrs.field(default=_send_always, eq=False, repr=False)


def register(workspace_id: str, card: Mapping[str, Any], *, url: str = "") -> Operation[str | None]:
    """Register the workspace in poll mode. Returns the new token if the platform issued one.

    The delivery mode is always sent: the platform's default is push (contract 2.1).

    Args:
        url: The address that the platform shows to peers. The platform itself doesn't use it in poll mode.
    """
    body: dict[str, Any] = {"id": workspace_id, "delivery_mode": "poll", "agent_card": card}
    body |= {"url": url} if url else {}
    return _post("register", "/registry/register", body, _new_token, priority=Priority.REGISTER, is_open=True)


def heartbeat(workspace_id: str, presence: Presence) -> Operation[None]:
    """Send a heartbeat. It has no ``runtime_state`` unless wedged: other values keep the workspace degraded (2.2)."""
    body: dict[str, Any] = {
        "workspace_id": workspace_id,
        "active_tasks": presence.active_tasks,
        "current_task": presence.current_task[:_TEXT_CAP],
        "uptime_seconds": presence.uptime_seconds,
        "error_rate": presence.error_rate,
        "sample_error": (presence.wedged or presence.sample_error)[:_TEXT_CAP],
    }
    body |= {"runtime_state": "wedged"} if presence.wedged else {}
    body |= {"monthly_spend": presence.monthly_spend_cents} if presence.monthly_spend_cents else {}
    return _post("heartbeat", "/registry/heartbeat", body, _nothing, priority=Priority.HEARTBEAT, is_open=True)


def workspace(workspace_id: str) -> Operation[WorkspaceInfo]:
    """Get status and card. Works without a token, so it can tell a deleted workspace from a bad token (2.23)."""
    path = f"/workspaces/{_id(workspace_id)}"
    return _get("workspace", path, read_workspace, priority=Priority.LOOKUP, accepts=(404, 410), is_open=True)


def state(workspace_id: str) -> Operation[dict[str, Any]]:
    """Get status, paused and deleted with the workspace's own token."""
    return _get("state", f"/workspaces/{_id(workspace_id)}/state", _object, is_optional=True)


def activity(
    workspace_id: str,
    read: Callable[[Reply], T],
    *,
    since_id: str | None,
    before: int | None,
    limit: int,
    people: bool = False,
) -> Operation[T]:
    """Get a page of the feed: after the row *since_id*, oldest first; or before a time, newest first.

    Args:
        before: Microseconds since 1970.
        people: Only rows without a source.
    """
    params = [("type", FEED_TYPE), ("limit", str(limit))]
    params += [("source", "canvas")] if people else []
    params += [("since_id", since_id)] if since_id is not None else []
    params += [("before_ts", format_time(before))] if before is not None else []
    return Operation(
        name="activity",
        method="GET",
        path=f"/workspaces/{_id(workspace_id)}/activity",
        params=tuple(params),
        read=read,
        body_format=BodyFormat.PAGE if limit > 1 else BodyFormat.ROW,
        cap=PAGE_CAP if limit > 1 else ROW_CAP,
    )


def history(
    workspace_id: str, *, peer_id: str | None = None, limit: int = 100, before: int | None = None
) -> Operation[tuple[Inbound, ...]]:
    """Get messages with a peer, or with people (None), newest first. *before* is in microseconds since 1970."""
    params = [("limit", str(limit))]
    params += [("type", FEED_TYPE), ("source", "canvas")] if peer_id is None else [("peer_id", peer_id)]
    params += [("before_ts", format_time(before))] if before is not None else []
    return _get(
        "history",
        f"/workspaces/{_id(workspace_id)}/activity",
        lambda reply: read_history(_objects(reply), workspace_id=workspace_id),
        params=tuple(params),
        cap=PAGE_CAP,
    )


def a2a(peer_id: str, envelope: Mapping[str, Any]) -> Operation[Any]:
    """Send a JSON-RPC envelope to a peer, through the platform. Returns its response, or the platform's "queued"."""
    path = f"/workspaces/{_id(peer_id)}/a2a"
    return _post("a2a", path, envelope, _json, priority=Priority.SEND, to_peer=True, timeout=A2A_TIMEOUT)


def question(
    peer_id: str,
    text: str,
    *,
    message_id: str,
    context_id: str | None = None,
    timeout: float = A2A_TIMEOUT,
) -> Operation[dict[str, Any]]:
    """Ask a peer. Returns its JSON-RPC response unchanged, even an error; empty for an empty response."""
    operation = a2a(peer_id, question_envelope(message_id, text, context_id=context_id))
    return attrs.evolve(operation, read=_json_rpc, accepts=(200,), timeout=timeout, cap=A2A_CAP)


def notify(workspace_id: str, message: str, *, attachments: Sequence[FilePart] = ()) -> Operation[None]:
    """Show a text, which must not be empty, in the workspace's canvas. *attachments* are uploaded files."""
    path = f"/workspaces/{_id(workspace_id)}/notify"
    body: dict[str, Any] = {"message": message}
    body |= {"attachments": [attachment(file) for file in attachments]} if attachments else {}
    return _post("notify", path, body, _nothing, priority=Priority.SEND)


def reply(workspace_id: str, outgoing: Outgoing) -> Operation[Any]:
    """Send a reply: ``a2a`` to a peer, ``notify`` to a person."""
    operation: Operation[Any]
    if outgoing.caller_id is None:
        operation = notify(workspace_id, notify_text(outgoing.parts), attachments=attachments(outgoing.parts))
    else:
        operation = a2a(outgoing.caller_id, peer_envelope(outgoing))
    return attrs.evolve(operation, headers=(("traceparent", outgoing.trace),)) if outgoing.trace else operation


def peers(workspace_id: str, query: str = "") -> Operation[list[dict[str, Any]]]:
    """List the workspaces that this one may write to."""
    params = (("q", query),) if query else ()
    return _get("peers", f"/registry/{_id(workspace_id)}/peers", _objects, params=params)


def discover(peer_id: str) -> Operation[dict[str, Any]]:
    """Get id, name and URL of a peer. The URL is unverified (contract 2.5): never send the token there."""
    return _get("discover", f"/registry/discover/{_id(peer_id)}", _object)


def check_access(caller_id: str, target_id: str) -> Operation[bool]:
    """Check whether *caller_id* may write to *target_id*."""
    body = {"caller_id": caller_id, "target_id": target_id}
    return _post("check-access", "/registry/check-access", body, lambda reply: _object(reply).get("allowed") is True)


def update_card(workspace_id: str, card: Mapping[str, Any]) -> Operation[None]:
    """Replace the card that peers and people see."""
    return _post("update-card", "/registry/update-card", {"workspace_id": workspace_id, "agent_card": card}, _nothing)


def delegate(
    workspace_id: str, target_id: str, task: str, *, idempotency_key: str | None = None
) -> Operation[dict[str, Any]]:
    """Delegate *task* to a peer. Returns ``delegation_id`` and ``status``."""
    body = {"target_id": target_id, "task": task}
    body |= {"idempotency_key": idempotency_key} if idempotency_key else {}
    return _post("delegate", f"/workspaces/{_id(workspace_id)}/delegate", body, _object, priority=Priority.SEND)


def delegations(workspace_id: str) -> Operation[list[dict[str, Any]]]:
    """List the newest 50 delegations of the workspace."""
    return _get("delegations", f"/workspaces/{_id(workspace_id)}/delegations", _objects)


def secrets(workspace_id: str) -> Operation[dict[str, Any]]:
    """Get names and values of the workspace's secrets. Never log the result."""
    return _get("secrets", f"/workspaces/{_id(workspace_id)}/secrets/values", _object)


def events(workspace_id: str) -> Operation[None]:
    """Open the event stream."""
    path = f"/workspaces/{_id(workspace_id)}/events/stream"
    return _get("events", path, _nothing, priority=Priority.STREAM, is_optional=True)


def upload_files(workspace_id: str, files: Sequence[FilePart]) -> Operation[tuple[FilePart, ...]]:
    """Upload local files (``path``) to the workspace's chat. Returns them with the platform's addresses.

    Attach the result to a ``notify``. Each file also appears as a row in the workspace's own feed (2.12). Reading the
    response raises TransientPlatformError if the platform lists fewer files than were sent.

    Raises:
        ConfigError: There are none or more than 64, or one is empty or can't be read.
    """
    if not 0 < len(files) <= MAX_FILES:
        raise ConfigError(f"{len(files)} files cannot be sent at once: 1 to {MAX_FILES} can")

    def read(reply: Reply) -> tuple[FilePart, ...]:
        listed = _object(reply).get("files")
        found = [read_file(item) for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        uploaded = tuple(file for file in found if file is not None)
        if len(uploaded) != len(files):
            raise TransientPlatformError(
                f"upload: {len(files)} files were sent, and the platform lists {len(uploaded)}",
                operation="upload",
                status=reply.status,
                outcome=Outcome.UNKNOWN,
            )
        return uploaded

    return Operation(
        name="upload",
        method="POST",
        path=f"/workspaces/{_id(workspace_id)}/chat/uploads",
        read=read,
        files=Multipart.of(files),
        priority=Priority.SEND,
        # A platform without uploads says so at once, and isn't asked again for each reply.
        is_optional=True,
        timeout=UPLOAD_TIMEOUT,
    )


def upload_content(workspace_id: str, file_id: str) -> Operation[bytes]:
    """Get the content of an uploaded file."""
    path = f"/workspaces/{_id(workspace_id)}/pending-uploads/{_id(file_id)}/content"
    return _get("upload-content", path, _bytes, body_format=BodyFormat.BYTES, cap=ROW_CAP)


def upload_ack(workspace_id: str, file_id: str) -> Operation[None]:
    """Tell the platform that it may delete an uploaded file. 404 means that it already did."""
    path = f"/workspaces/{_id(workspace_id)}/pending-uploads/{_id(file_id)}/ack"
    return _post("upload-ack", path, None, _nothing, accepts=(404,))


def upload_limits() -> Operation[UploadLimits]:
    """Get the maximum sizes of uploads. Platforms of 2026-05 lack this endpoint."""

    def read(reply: Reply) -> UploadLimits:
        fields, defaults = _object(reply), UploadLimits()
        return UploadLimits(
            per_file=_positive(fields.get("per_file_bytes")) or defaults.per_file,
            per_request=_positive(fields.get("per_request_bytes")) or defaults.per_request,
        )

    return _get("upload-limits", "/uploads/limits", read, is_optional=True)


def plugin_download(workspace_id: str, name: str, source: str | None = None) -> Operation[bytes]:
    """Download a plugin of the workspace as a gzip tar, from *source* if it isn't the platform's own (2.16)."""
    path = f"/workspaces/{_id(workspace_id)}/plugins/{_id(name)}/download"
    params = (("source", source),) if source else ()
    return _get(
        "plugin", path, _bytes, params=params, body_format=BodyFormat.BYTES, cap=PLUGIN_CAP, timeout=PLUGIN_TIMEOUT
    )


def plugin_report(workspace_id: str, source: str, sha256: str | None = None) -> Operation[None]:
    """Report an installed plugin. The platform refuses this for external workspaces (2.16)."""
    body = {"source": source} | ({"sha256": sha256} if sha256 else {})
    return _post("plugin-report", f"/workspaces/{_id(workspace_id)}/plugins", body, _nothing)


def read_workspace(reply: Reply) -> WorkspaceInfo:
    """Read status, name and card. A 410 means removed; a 404 or a response without them means unknown."""
    fields = _object(reply)
    state, name, card, hint = (fields.get(key) for key in ("status", "name", "agent_card", "hint"))
    status = WorkspaceStatus.ACTIVE if isinstance(state, str) and state else WorkspaceStatus.UNKNOWN
    if state in ("paused", "removed"):
        status = WorkspaceStatus(state)
    if reply.status == 410 and (fields or not reply.body):
        status = WorkspaceStatus.REMOVED
    if reply.status != 200 and status is not WorkspaceStatus.REMOVED:
        # Without the platform's JSON it is from a proxy, or from a platform without this endpoint.
        error = fields.get("error")
        is_absent = reply.status == 404 and isinstance(error, str) and bool(error.strip())
        return WorkspaceInfo(status=WorkspaceStatus.UNKNOWN, is_absent=is_absent)
    return WorkspaceInfo(
        status=status,
        name=name if isinstance(name, str) else "",
        card=card if isinstance(card, dict) else None,
        hint=" ".join(hint.split()) if isinstance(hint, str) else "",
        is_certain="id" in fields or "removed_at" in fields or state == "removed",
    )


def _get(name: str, path: str, read: Callable[[Reply], T], **more: Any) -> Operation[T]:
    return Operation(name=name, method="GET", path=path, read=read, **more)


def _post(name: str, path: str, body: Any, read: Callable[[Reply], T], **more: Any) -> Operation[T]:
    encoded = None if body is None else to_json(body, operation=name)
    return Operation(name=name, method="POST", path=path, read=read, body=encoded, **more)


def _id(value: str) -> str:
    return quote(value, safe="") if value.strip(".") else value.replace(".", "%2E")


def _nothing(reply: Reply) -> None:
    return None


def _bytes(reply: Reply) -> bytes:
    return reply.body


def _positive(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _json(reply: Reply) -> Any:
    return reply.json


def _object(reply: Reply) -> dict[str, Any]:
    return reply.json if isinstance(reply.json, dict) else {}


def _json_rpc(reply: Reply) -> dict[str, Any]:
    if reply.json is not None and not isinstance(reply.json, dict):
        raise MalformedPageError("the response is not a JSON object")
    return reply.json or {}


def _objects(reply: Reply) -> list[dict[str, Any]]:
    return [item for item in reply.json if isinstance(item, dict)] if isinstance(reply.json, list) else []


def _new_token(reply: Reply) -> str | None:
    token = _object(reply).get("auth_token")
    return token.strip() or None if isinstance(token, str) else None
