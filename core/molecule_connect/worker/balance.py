"""How members share workspaces: the decision of one member at one look at the database. No I/O, no clock."""

import math
from collections.abc import Collection, Iterable, Mapping

import attrs

from molecule_connect.mirrors import MemberInfo, MemberState

# A lease that was held for less than this, in seconds, is not given to another member.
SETTLED = 60.0
# Leases that a member takes at one look while most are free: after a cold start, the others appear before the first
# members have too many.
COLD_START_TAKE = 50


@attrs.frozen(kw_only=True)
class Plan:
    """What a member does until its next look.

    Attributes:
        take: Number of free leases that it may take.
        release: Workspaces that it drains and then releases.
    """

    take: int = 0
    release: tuple[str, ...] = ()


@attrs.frozen
class _Claim:
    session: str
    capacity: int
    held: int


def balance(
    session: str,
    info: MemberInfo,
    members: Iterable[MemberState],
    *,
    workspaces: int,
    held: Mapping[str, float],
    releasing: Collection[str] = (),
    unclaimed: int = 0,
) -> Plan:
    """Decide what a member takes and releases.

    Members of the same listing get equal shares, as far as their capacities allow. Shares differ by one if they must:
    members that hold more get the larger ones, so that nothing moves without need. A member exceeds its share only for
    workspaces that nobody takes.

    Args:
        session: Of the member that decides.
        info: Its description, which may be newer than in *members*.
        members: All members with a running session, as seen a moment ago.
        workspaces: Number of workspaces in its listing.
        held: How long it has held each of its leases, in seconds.
        releasing: Those of *held* that it drains already.
        unclaimed: Number of workspaces of its listing that have been free for so long that no member with a
            smaller share seems to want them.
    """
    kept = {workspace_id: seconds for workspace_id, seconds in held.items() if workspace_id not in releasing}
    if info.capacity == 0:
        return Plan(release=tuple(sorted(kept)))
    others = [
        _Claim(member.session, member.info.capacity, member.held)
        for member in members
        if member.session != session and member.info.listing == info.listing
    ]
    shares = _shares(workspaces, [*others, _Claim(session, info.capacity, len(kept))])
    wanted = shares[session] - len(kept)
    if unclaimed:
        wanted = max(wanted, math.ceil(unclaimed / (1 + sum(other.held < other.capacity for other in others))))
    if wanted >= 0:
        is_cold = 2 * (len(held) + sum(other.held for other in others)) < workspaces
        room = info.capacity - len(held)
        return Plan(take=max(0, min(wanted, room, COLD_START_TAKE if is_cold else room)))
    missing = sum(max(0, shares[other.session] - other.held) for other in others)
    return Plan(release=_latest(kept, min(-wanted, missing)))


def _shares(workspaces: int, claims: Iterable[_Claim]) -> dict[str, int]:
    """Divide *workspaces*: those whose capacity is below an equal share get that, the others share the rest."""
    waiting = sorted(claims, key=lambda claim: claim.capacity, reverse=True)
    shares: dict[str, int] = {}
    left = workspaces
    while waiting and waiting[-1].capacity <= left // len(waiting):
        full = waiting.pop()
        shares[full.session] = full.capacity
        left -= full.capacity
    if waiting:
        share, larger = divmod(left, len(waiting))
        # All members above the larger share are equal here, so that the order is the same while they drain.
        waiting.sort(key=lambda claim: (-min(claim.held, share + 1), claim.session))
        shares |= {claim.session: share + (number < larger) for number, claim in enumerate(waiting)}
    return shares


def _latest(kept: Mapping[str, float], count: int) -> tuple[str, ...]:
    """Up to *count* settled workspaces, those taken last first: another machine may still have their local state."""
    settled = [(seconds, workspace_id) for workspace_id, seconds in kept.items() if seconds >= SETTLED]
    return tuple(workspace_id for _, workspace_id in sorted(settled)[:count])
