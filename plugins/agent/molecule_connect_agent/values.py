"""The results of the clients."""

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
    """The state of the workspace on the platform.

    Attributes:
        workspace_id: The workspace.
        status: ``online``, ``degraded``, ``paused``, ``removed``, or another word of the platform.
        paused: It is paused, and its messages are kept.
        deleted: It and its token were deleted.
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
        id: For ``call_peer`` and ``delegate``.
        name: Its display name.
        url: The address that it claims; often empty, and never verified.
        role: Its purpose, in its own words.
        tier: 2 if the platform doesn't say.
        status: As in ``WorkspaceState``; ``unknown`` if the platform doesn't say.
        agent_card: Its description of itself.
    """

    id: str
    name: str = ""
    url: str = ""
    role: str = ""
    tier: int = 2
    status: str = "unknown"
    # A dict can't be hashed, but peers can be in sets.
    agent_card: Mapping[str, object] = attrs.field(factory=dict, hash=False)


@attrs.frozen
class Delegation:
    """A task that was delegated to a peer.

    Attributes:
        id: Its id on the platform.
        target_id: The peer that has the task.
        status: ``delegated``, ``pending``, ``dispatched``, ``queued``, ``completed``, ``failed`` or ``stuck``.
        source_id: The workspace that delegated it.
        summary: The start of the task.
        error: The reason of a failure.
        response_preview: The start of the peer's response.
        created_at: In the platform's format.
        direction: Set by newer platforms; else empty.
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
        """Whether the task waits for a peer that polls. The platform reports it as completed anyway."""
        return '"status":"queued"' in self.response_preview.replace(" ", "")


@attrs.frozen
class Message:
    """A message, reply or result that arrived for the workspace.

    Attributes:
        workspace_id: The receiver.
        kind: A ``message`` waits for a reply; an ``answer`` is a peer's reply to a message of this workspace; a
            ``result`` is that of a delegation.
        activity_id: The platform's id of its record, which is the same each time it is read.
        message_id: Set by the sender, at most 1,024 characters; not always unique.
        caller_id: The peer that wrote it, or None for a person in the canvas. For a result, the peer that has the task.
        context_id: Its conversation, if the sender names one.
        in_reply_to: For an answer, the message id of the question. Set only if this client sent the question to that
            peer; empty for questions of an earlier process.
        delegation_id: For a result, the delegation that this workspace opened. For a message, what the sender claims.
        parts: Text, files and data.
        created_at: By the platform's clock; None if unknown.
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
