"""Reads the platform's JSON into values. Members that are missing or of another type get a default."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from molecule_connect import Inbound, Kind, WorkspaceDeletedError, canonical_id
from molecule_connect_agent.values import REMOVED, Delegation, Message, PeerInfo, WorkspaceState

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KINDS: Mapping[Kind, Literal["message", "answer", "result"]] = {
    Kind.MESSAGE: "message",
    Kind.ANSWER: "answer",
    Kind.RESULT: "result",
}


def read_state(fields: Mapping[str, Any], *, workspace_id: str) -> WorkspaceState:
    """The response of ``/state``. A status of paused or removed takes precedence over the other members."""
    status = _text(fields, "status") or "unknown"
    deleted = fields.get("deleted") is True or status == REMOVED
    return WorkspaceState(
        workspace_id=_workspace(fields, "workspace_id") or workspace_id,
        status=REMOVED if deleted else status,
        paused=fields.get("paused") is True or status == "paused",
        deleted=deleted,
    )


def removed_state(workspace_id: str) -> WorkspaceState:
    """The state of a deleted workspace."""
    return WorkspaceState(workspace_id=workspace_id, status=REMOVED, deleted=True)


def deleted_error(workspace_id: str) -> WorkspaceDeletedError:
    """The error for a deleted workspace."""
    return WorkspaceDeletedError(
        f"workspace {workspace_id} was deleted on the platform", hint="make a new one there, and use its id and token"
    )


def read_peers(items: Iterable[Mapping[str, Any]]) -> list[PeerInfo]:
    """The peers that have an id."""
    return [_peer(item) for item in items if _text(item, "id")]


def read_delegation(fields: Mapping[str, Any], *, source_id: str = "", target_id: str = "") -> Delegation:
    """A delegation, from the response to a new one or from the list."""
    return Delegation(
        id=_text(fields, "delegation_id", "id") or "",
        source_id=_workspace(fields, "source_id") or source_id,
        target_id=_workspace(fields, "target_id") or target_id,
        status=_text(fields, "status") or "unknown",
        summary=_text(fields, "summary") or "",
        error=_text(fields, "error") or "",
        response_preview=_text(fields, "response_preview") or "",
        created_at=_text(fields, "created_at") or "",
        direction=_text(fields, "direction") or "",
    )


def read_secrets(fields: Mapping[str, Any]) -> dict[str, str]:
    """The secrets, without those that are null."""
    return {
        name: value if isinstance(value, str) else str(value) for name, value in fields.items() if value is not None
    }


def read_message(inbound: Inbound, *, workspace_id: str) -> Message | None:
    """*inbound* as a message, or None if it isn't for an agent."""
    kind = KINDS.get(inbound.kind)
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


def _text(fields: Mapping[str, Any], *members: str) -> str | None:
    """The first of *members* that is a text and not empty."""
    values = (fields.get(member) for member in members)
    return next((value.replace("\0", "") for value in values if value and isinstance(value, str)), None)


def _moment(microseconds: int | None) -> datetime | None:
    try:
        return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:  # the offset leads to a year after 9999
        return None


def _workspace(fields: Mapping[str, Any], member: str) -> str:
    return canonical_id(_text(fields, member) or "")


def _peer(item: Mapping[str, Any]) -> PeerInfo:
    tier, card = item.get("tier"), item.get("agent_card")
    return PeerInfo(
        id=_workspace(item, "id"),
        name=_text(item, "name") or "",
        url=_text(item, "url") or "",
        role=_text(item, "role") or "",
        tier=tier if isinstance(tier, int) and not isinstance(tier, bool) and tier else 2,
        status=_text(item, "status") or "unknown",
        agent_card=card if isinstance(card, dict) else {},
    )
