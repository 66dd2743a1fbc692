"""What the clients for people's own agents give back."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import attrs

from molecule_connect import Part, TextPart

DEFAULT_HEARTBEAT_INTERVAL = 30.0
DEFAULT_STATE_POLL_INTERVAL = 30.0
DEFAULT_URL_CACHE_TTL = 300.0
REMOVED = "removed"


@attrs.frozen
class WorkspaceState:
    """How the platform sees the workspace.

    Attributes:
        workspace_id: Whose state it is.
        status: The platform's word: ``online``, ``degraded``, ``paused``, ``removed``, ...
        paused: Somebody paused it; messages are kept for it.
        deleted: It is gone for good, and its token with it.
    """

    workspace_id: str
    status: str
    paused: bool = False
    deleted: bool = False

    @property
    def should_stop(self) -> bool:
        """Whether the agent should stop its work: the workspace was paused or removed."""
        return self.paused or self.deleted


@attrs.frozen
class PeerInfo:
    """Another workspace that this one may write to.

    Attributes:
        id: What ``call_peer`` and ``delegate`` take.
        name: As people read it.
        url: Where it says that it listens; often empty, and never proved.
        role: What it is for, in its own words.
        tier: 2 where the platform does not tell.
        status: The platform's word, as in ``WorkspaceState``; ``unknown`` where it does not tell.
        agent_card: What it tells of itself.
    """

    id: str
    name: str = ""
    url: str = ""
    role: str = ""
    tier: int = 2
    status: str = "unknown"
    # A card is no key; peers are put in sets and dicts all the same.
    agent_card: Mapping[str, object] = attrs.field(factory=dict, hash=False)


@attrs.frozen
class Delegation:
    """A task that was handed to a peer.

    Attributes:
        id: The platform's id of it.
        target_id: Who has the task.
        status: ``delegated``, ``pending``, ``dispatched``, ``queued``, ``completed``, ``failed`` or ``stuck``.
        source_id: Who gave it.
        summary: The beginning of the task.
        error: Why it failed.
        response_preview: The beginning of the peer's answer.
        created_at: As the platform writes it.
        direction: Who delegated, as newer platforms tell it; else empty.
    """

    id: str
    target_id: str
    status: str
    source_id: str = ""
    summary: str = ""
    error: str = ""
    response_preview: str = ""
    created_at: str = ""
    direction: str = ""

    @property
    def is_queued(self) -> bool:
        """Whether the peer fetches its messages: then the platform calls it completed as soon as it waits there."""
        return '"status":"queued"' in self.response_preview.replace(" ", "")


@attrs.frozen
class Message:
    """Something that arrived for the workspace.

    Attributes:
        workspace_id: For whom it is.
        kind: A ``message`` waits for a reply; an ``answer`` is a peer's to something that this workspace wrote; a
            ``result`` is that of a delegation.
        activity_id: The platform's id of its record; the same each time that it is read.
        message_id: Chosen by the sender, at most 1,024 characters; not always unique.
        caller_id: The peer that wrote it, or None for a person in the canvas. For a result, the peer that has the task.
        context_id: The conversation that it belongs to, where the sender names one.
        in_reply_to: The message id of the question that an answer is for. Set only if this client sent that question
            to that peer; empty for questions of an earlier process.
        delegation_id: For a result, the delegation that this workspace opened. For a message, what the sender claims.
        parts: Its pieces: text, files, data.
        created_at: By the platform's clock; None where it does not tell.
    """

    workspace_id: str
    kind: Literal["message", "answer", "result"]
    activity_id: str
    message_id: str
    caller_id: str | None = None
    context_id: str | None = None
    in_reply_to: str = ""
    delegation_id: str | None = None
    parts: tuple[Part, ...] = ()
    created_at: datetime | None = None

    @property
    def text(self) -> str:
        """The text parts, joined in order without a separator."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))
