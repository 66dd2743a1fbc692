"""From the platform's JSON to the values of ``values``; whatever is missing or of another type has a stand-in."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from molecule_connect.errors import WorkspaceDeletedError
from molecule_connect.models import Inbound, Kind, canonical_id
from molecule_connect.platform.parts import first_text
from molecule_connect_agent.values import REMOVED, Delegation, Message, PeerInfo, WorkspaceState

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KINDS: Mapping[Kind, Literal["message", "answer", "result"]] = {
    Kind.MESSAGE: "message",
    Kind.ANSWER: "answer",
    Kind.RESULT: "result",
}


def read_state(fields: Mapping[str, Any], *, workspace_id: str) -> WorkspaceState:
    """What ``/state`` tells. A status of paused or removed counts, whatever the other members say."""
    status = first_text(fields, "status") or "unknown"
    deleted = fields.get("deleted") is True or status == REMOVED
    return WorkspaceState(
        workspace_id=_workspace(fields, "workspace_id") or workspace_id,
        status=REMOVED if deleted else status,
        paused=fields.get("paused") is True or status == "paused",
        deleted=deleted,
    )


def removed_state(workspace_id: str) -> WorkspaceState:
    """The state of a workspace that the platform no longer has."""
    return WorkspaceState(workspace_id=workspace_id, status=REMOVED, deleted=True)


def deleted_error(workspace_id: str) -> WorkspaceDeletedError:
    """What to raise where there is nothing to do for such a workspace."""
    return WorkspaceDeletedError(
        f"workspace {workspace_id} was deleted on the platform", hint="make a new one there, and use its id and token"
    )


def read_peers(items: Iterable[Mapping[str, Any]]) -> list[PeerInfo]:
    """The peers that have an id."""
    return [_peer(item) for item in items if first_text(item, "id")]


def read_delegation(fields: Mapping[str, Any], *, source_id: str = "", target_id: str = "") -> Delegation:
    """A delegation, as it is begun or listed."""
    return Delegation(
        id=first_text(fields, "delegation_id", "id") or "",
        source_id=_workspace(fields, "source_id") or source_id,
        target_id=_workspace(fields, "target_id") or target_id,
        status=first_text(fields, "status") or "unknown",
        summary=first_text(fields, "summary") or "",
        error=first_text(fields, "error") or "",
        response_preview=first_text(fields, "response_preview") or "",
        created_at=first_text(fields, "created_at") or "",
        direction=first_text(fields, "direction") or "",
    )


def read_secrets(fields: Mapping[str, Any]) -> dict[str, str]:
    """The secrets; one that is null is left out."""
    return {
        name: value if isinstance(value, str) else str(value) for name, value in fields.items() if value is not None
    }


def read_message(inbound: Inbound, *, workspace_id: str) -> Message | None:
    """A row that somebody may want to read or answer, else None."""
    kind = _KINDS.get(inbound.kind)
    if kind is None:
        return None
    return Message(
        workspace_id=workspace_id,
        kind=kind,
        activity_id=inbound.row_id,
        caller_id=inbound.caller_id,
        context_id=inbound.context_id,
        message_id=inbound.message_id,
        in_reply_to=inbound.reason if kind == "answer" else "",
        delegation_id=inbound.delegation_id,
        parts=inbound.parts,
        created_at=_moment(inbound.time),
    )


def _moment(microseconds: int | None) -> datetime | None:
    try:
        return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:  # an offset can lead out of the years 1 to 9999
        return None


def _workspace(fields: Mapping[str, Any], member: str) -> str:
    return canonical_id(first_text(fields, member) or "")


def _peer(item: Mapping[str, Any]) -> PeerInfo:
    tier, card = item.get("tier"), item.get("agent_card")
    return PeerInfo(
        id=_workspace(item, "id"),
        name=first_text(item, "name") or "",
        url=first_text(item, "url") or "",
        role=first_text(item, "role") or "",
        tier=tier if isinstance(tier, int) and not isinstance(tier, bool) and tier else 2,
        status=first_text(item, "status") or "unknown",
        agent_card=card if isinstance(card, dict) else {},
    )
