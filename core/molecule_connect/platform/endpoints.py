"""One value per endpoint of the platform: what to ask and how to read the answer. No I/O.

Paths and bodies are those of the platform contract, section 2; ids are quoted into them.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import attrs

from molecule_connect.errors import ConfigError
from molecule_connect.models import FilePart, Inbound, Outgoing, Presence, WorkspaceInfo, WorkspaceStatus
from molecule_connect.platform.clock import format_time
from molecule_connect.platform.cooperative import Steps
from molecule_connect.platform.feed_rows import FEED_TYPE, read_history
from molecule_connect.platform.messages import attachment, attachments, notify_text, peer_envelope, to_json
from molecule_connect.platform.multipart import Multipart
from molecule_connect.platform.parts import read_file

T = TypeVar("T")
MIB = 1 << 20
PAGE_CAP = 32 * MIB
ROW_CAP = 128 * MIB
ANSWER_CAP = 8 * MIB
READ_TIMEOUT = 30.0
# The platform gives a push peer this long before it answers "queued" (contract, section (e)).
A2A_TIMEOUT = 90.0
UPLOAD_TIMEOUT = 60.0
PLUGIN_TIMEOUT = 60.0
PLUGIN_CAP = 100 * MIB
MAX_FILES = 64
_TEXT_CAP = 500


class Priority(enum.Enum):
    """Which connections and which share of the rate limit a request uses."""

    BEAT = "beat"
    REGISTER = "register"
    LOOK = "look"
    READ = "read"
    SEND = "send"
    STREAM = "stream"


class Form(enum.Enum):
    """What a good answer is made of."""

    JSON = "json"
    PAGE = "page"  # JSON that is read without loss, and refused above the operation's cap
    ROW = "row"  # a page of one row: of one above the cap, the beginning is the answer
    BYTES = "bytes"

    @property
    def may_be_cut(self) -> bool:
        """Whether what the cap leaves of an answer is one still."""
        return self in (Form.JSON, Form.ROW)


@attrs.frozen(kw_only=True)
class Reply:
    """A good answer of the platform, as far as an operation needs it.

    Attributes:
        json: The decoded body where the form is JSON; None when it was empty.
        began: A lower bound of the platform's clock when the request was made, in microseconds:
            its ``Date`` header less the request's duration. None when it did not tell.
        content_type: The type of a body that is no JSON, as the platform gave it.
        whole: False where the body is the beginning of one that was too large.
    """

    body: bytes = attrs.field(repr=False)
    json: Any = attrs.field(default=None, repr=False)
    status: int = 200
    began: int | None = None
    content_type: str = ""
    whole: bool = True


@attrs.frozen(kw_only=True)
class Operation(Generic[T]):
    """One request.

    Attributes:
        name: What errors call it.
        read: Makes the result of a good answer.
        steps: ``read`` in steps, for answers that may be large.
        accepts: Statuses outside 200 to 299 that ``read`` understands.
        is_optional: Platforms without the endpoint are in order; its absence is remembered.
        is_open: It is answered without a token too.
        files: Sent in place of ``body``, from the disk.
        to_peer: Its answer may take as long as the peer thinks, so that no answer must not mean a dead connection.
        timeout: Seconds between two pieces of the answer.
        cap: Most bytes of an answer that are read.
    """

    name: str
    method: str
    path: str
    read: Callable[[Reply], T] = attrs.field(eq=False, repr=False)
    steps: Callable[[Reply], Steps[T]] | None = attrs.field(default=None, eq=False, repr=False)
    params: tuple[tuple[str, str], ...] = ()
    body: bytes | None = attrs.field(default=None, repr=False)
    files: Multipart | None = attrs.field(default=None, repr=False)
    priority: Priority = Priority.READ
    form: Form = Form.JSON
    accepts: tuple[int, ...] = ()
    is_optional: bool = False
    is_open: bool = False
    to_peer: bool = False
    timeout: float = READ_TIMEOUT
    cap: int = ANSWER_CAP


def register(workspace_id: str, card: Mapping[str, Any], *, url: str = "") -> Operation[str | None]:
    """Says that this program answers for the workspace. Gives the token that was handed out, if one was.

    A *url* is what peers are told; the platform itself still waits to be asked.

    The delivery mode is always stated: without it the platform would fall back to push (contract 2.1).
    """
    body: dict[str, Any] = {"id": workspace_id, "delivery_mode": "poll", "agent_card": card}
    body |= {"url": url} if url else {}
    return _post("register", "/registry/register", body, _handed_out_token, priority=Priority.REGISTER, is_open=True)


def heartbeat(workspace_id: str, presence: Presence) -> Operation[None]:
    """One beat. ``runtime_state`` is left out unless wedged: any other value keeps the workspace degraded (2.2)."""
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
    return _post("heartbeat", "/registry/heartbeat", body, _nothing, priority=Priority.BEAT, is_open=True)


def workspace(workspace_id: str) -> Operation[WorkspaceInfo]:
    """The public card. It needs no token, and is the one way to tell a deleted workspace from a bad token (2.23)."""
    path = f"/workspaces/{_id(workspace_id)}"
    return _get("workspace", path, read_workspace, priority=Priority.LOOK, accepts=(404, 410), is_open=True)


def state(workspace_id: str) -> Operation[dict[str, Any]]:
    """Status, paused and deleted, by the workspace's own token."""
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
    """A page of the feed: oldest first after the row *since_id*, else newest first, before *before* (microseconds).

    With *people*, only rows without a source.
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
        form=Form.PAGE if limit > 1 else Form.ROW,
        cap=PAGE_CAP if limit > 1 else ROW_CAP,
    )


def history(
    workspace_id: str, *, peer_id: str | None = None, limit: int = 100, before: int | None = None
) -> Operation[tuple[Inbound, ...]]:
    """The newest messages with a peer, or with the person (None), newest first; *before* is in microseconds."""
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
    """A JSON-RPC envelope to a peer, by way of the platform. Gives its answer: a result, or a queued envelope."""
    path = f"/workspaces/{_id(peer_id)}/a2a"
    return _post("a2a", path, envelope, _json, priority=Priority.SEND, to_peer=True, timeout=A2A_TIMEOUT)


def notify(workspace_id: str, message: str, *, attachments: Sequence[FilePart] = ()) -> Operation[None]:
    """Text for the person in the canvas of the workspace, which must not be empty; *attachments* were uploaded."""
    path = f"/workspaces/{_id(workspace_id)}/notify"
    body: dict[str, Any] = {"message": message}
    body |= {"attachments": [attachment(file) for file in attachments]} if attachments else {}
    return _post("notify", path, body, _nothing, priority=Priority.SEND)


def answer(workspace_id: str, outgoing: Outgoing) -> Operation[Any]:
    """What carries *outgoing* to whom it is for: ``a2a`` to a peer, ``notify`` to a person."""
    if outgoing.caller_id is None:
        return notify(workspace_id, notify_text(outgoing.parts), attachments=attachments(outgoing.parts))
    return a2a(outgoing.caller_id, peer_envelope(outgoing))


def peers(workspace_id: str, query: str = "") -> Operation[list[dict[str, Any]]]:
    """The workspaces that this one may write to."""
    params = (("q", query),) if query else ()
    return _get("peers", f"/registry/{_id(workspace_id)}/peers", _objects, params=params)


def discover(peer_id: str) -> Operation[dict[str, Any]]:
    """Id, name and URL of a peer. The URL is for display alone: it may be anybody's (contract 2.5)."""
    return _get("discover", f"/registry/discover/{_id(peer_id)}", _object)


def check_access(caller_id: str, target_id: str) -> Operation[bool]:
    """Whether *caller_id* may write to *target_id*."""
    body = {"caller_id": caller_id, "target_id": target_id}
    return _post("check-access", "/registry/check-access", body, lambda reply: _object(reply).get("allowed") is True)


def update_card(workspace_id: str, card: Mapping[str, Any]) -> Operation[None]:
    """Replaces the card that peers and people see."""
    return _post("update-card", "/registry/update-card", {"workspace_id": workspace_id, "agent_card": card}, _nothing)


def delegate(
    workspace_id: str, target_id: str, task: str, *, idempotency_key: str | None = None
) -> Operation[dict[str, Any]]:
    """Hands *task* to a peer. Gives ``delegation_id`` and ``status``."""
    body = {"target_id": target_id, "task": task}
    body |= {"idempotency_key": idempotency_key} if idempotency_key else {}
    return _post("delegate", f"/workspaces/{_id(workspace_id)}/delegate", body, _object, priority=Priority.SEND)


def delegations(workspace_id: str) -> Operation[list[dict[str, Any]]]:
    """The newest fifty delegations of the workspace."""
    return _get("delegations", f"/workspaces/{_id(workspace_id)}/delegations", _objects)


def secrets(workspace_id: str) -> Operation[dict[str, Any]]:
    """Name and value of each secret of the workspace. Never log the result."""
    return _get("secrets", f"/workspaces/{_id(workspace_id)}/secrets/values", _object)


def events(workspace_id: str) -> Operation[None]:
    """The event stream."""
    path = f"/workspaces/{_id(workspace_id)}/events/stream"
    return _get("events", path, _nothing, priority=Priority.STREAM, is_optional=True)


def upload_files(workspace_id: str, files: Sequence[FilePart]) -> Operation[tuple[FilePart, ...]]:
    """Puts files that lie on this machine (``path``) into the workspace's chat. Gives them as the platform names them.

    Attach the result to a ``notify``. Each file comes back as a row of the workspace's own feed (2.12).

    Raises:
        ConfigError: More than 64, none, or one that cannot be read or is empty.
    """
    if not 0 < len(files) <= MAX_FILES:
        raise ConfigError(f"{len(files)} files cannot be sent at once: 1 to {MAX_FILES} can")

    def read(reply: Reply) -> tuple[FilePart, ...]:
        listed = _object(reply).get("files")
        found = [read_file(item) for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        return tuple(file for file in found if file is not None)

    return Operation(
        name="upload",
        method="POST",
        path=f"/workspaces/{_id(workspace_id)}/chat/uploads",
        read=read,
        files=Multipart.of(files),
        priority=Priority.SEND,
        timeout=UPLOAD_TIMEOUT,
    )


def upload_content(workspace_id: str, file_id: str) -> Operation[bytes]:
    """The bytes of a file that was uploaded in the chat."""
    path = f"/workspaces/{_id(workspace_id)}/pending-uploads/{_id(file_id)}/content"
    return _get("upload-content", path, _bytes, form=Form.BYTES, cap=ROW_CAP)


def upload_ack(workspace_id: str, file_id: str) -> Operation[None]:
    """Tells the platform that it may forget the file. A 404 means that it already has."""
    return _post("upload-ack", f"/workspaces/{_id(workspace_id)}/pending-uploads/{_id(file_id)}/ack", None, _nothing)


def upload_limits() -> Operation[dict[str, Any]]:
    """Bytes per file and per request, and files per message; platforms of 2026-05 do not tell."""
    return _get("upload-limits", "/uploads/limits", _object, is_optional=True)


def plugin_download(workspace_id: str, name: str, source: str | None = None) -> Operation[bytes]:
    """A plugin of the workspace as a gzip tar; *source* where it is not the platform's own (2.16)."""
    path = f"/workspaces/{_id(workspace_id)}/plugins/{_id(name)}/download"
    params = (("source", source),) if source else ()
    return _get("plugin", path, _bytes, params=params, form=Form.BYTES, cap=PLUGIN_CAP, timeout=PLUGIN_TIMEOUT)


def plugin_report(workspace_id: str, source: str, sha256: str | None = None) -> Operation[None]:
    """Tells the platform of an installed plugin. It refuses this for external workspaces (2.16)."""
    body = {"source": source} | ({"sha256": sha256} if sha256 else {})
    return _post("plugin-report", f"/workspaces/{_id(workspace_id)}/plugins", body, _nothing)


def read_workspace(reply: Reply) -> WorkspaceInfo:
    """Status, name and card. 410 is removed, 404 and an answer that tells nothing are unknown."""
    fields = _object(reply)
    said, name, card, hint = (fields.get(key) for key in ("status", "name", "agent_card", "hint"))
    status = WorkspaceStatus.ACTIVE if isinstance(said, str) and said else WorkspaceStatus.UNKNOWN
    if said in ("paused", "removed"):
        status = WorkspaceStatus(said)
    if reply.status == 410 and (fields or not reply.body):
        status = WorkspaceStatus.REMOVED
    if reply.status != 200 and status is not WorkspaceStatus.REMOVED:
        # A page, or nothing, is from something before the platform, or from one without this endpoint.
        error = fields.get("error")
        is_absent = reply.status == 404 and isinstance(error, str) and bool(error.strip())
        return WorkspaceInfo(status=WorkspaceStatus.UNKNOWN, is_absent=is_absent)
    return WorkspaceInfo(
        status=status,
        name=name if isinstance(name, str) else "",
        card=card if isinstance(card, dict) else None,
        hint=" ".join(hint.split()) if isinstance(hint, str) else "",
        is_certain="id" in fields or "removed_at" in fields or said == "removed",
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


def _json(reply: Reply) -> Any:
    return reply.json


def _object(reply: Reply) -> dict[str, Any]:
    return reply.json if isinstance(reply.json, dict) else {}


def _objects(reply: Reply) -> list[dict[str, Any]]:
    return [item for item in reply.json if isinstance(item, dict)] if isinstance(reply.json, list) else []


def _handed_out_token(reply: Reply) -> str | None:
    token = _object(reply).get("auth_token")
    return token.strip() or None if isinstance(token, str) else None
