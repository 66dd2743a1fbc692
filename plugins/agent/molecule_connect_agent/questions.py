"""Which message or delegation was sent to which peer."""

from typing import Any

import attrs

from molecule_connect import Inbound, Kind, canonical_id

MOST_QUESTIONS = 10_000


class Questions:
    """The messages and delegations that this client sent, so that only their receiver can answer them.

    The newest 10,000 of each kind are kept, in memory.
    """

    def __init__(self) -> None:
        self._asked: dict[tuple[str, str], None] = {}
        self._delegated: dict[str, str] = {}

    def ask(self, peer_id: str, message_id: str) -> None:
        """Note that the message is about to be sent to the peer."""
        self._asked[canonical_id(peer_id), message_id] = None
        _trim(self._asked)

    def delegate(self, peer_id: str, delegation_id: str) -> None:
        """Note that the platform accepted the delegation. The message that carries it has the delegation's id."""
        self.ask(peer_id, delegation_id)
        self._delegated[delegation_id] = canonical_id(peer_id)
        _trim(self._delegated)

    def without_false_claims(self, row: Inbound) -> Inbound:
        """*row*; if it is a reply, without the ids of messages and delegations that its peer did not receive."""
        if row.kind is not Kind.ANSWER:
            return row
        peer, delegation = row.caller_id, row.delegation_id
        is_delegated = delegation is not None and self._was_asked(peer, delegation)
        reason = row.reason if self._was_asked(peer, row.reason) else ""
        return attrs.evolve(row, reason=reason, delegation_id=delegation if is_delegated else None)

    def callee(self, delegation_id: str) -> str | None:
        """The peer that has the delegation, or None if this client did not open it."""
        return self._delegated.get(delegation_id)

    def _was_asked(self, peer_id: str | None, message_id: str) -> bool:
        """Whether the message was sent to this peer."""
        return peer_id is not None and (peer_id, message_id) in self._asked


def _trim(known: dict[Any, Any]) -> None:
    if len(known) > MOST_QUESTIONS:
        del known[next(iter(known))]
