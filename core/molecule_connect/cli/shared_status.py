"""``molecule status --journal URL``: which member serves which workspace, and what waits in each."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from molecule_connect.cli.shared import use_mirror
from molecule_connect.console.sanitize import ago, count, moment, one_line, span
from molecule_connect.mirrors import JournalMirror, MemberInfo, MemberState, WorkspaceOverview

_FINISHED = ("done", "dead")
# The database has 32-bit integers; this is the capacity of a member without a limit.
_UNLIMITED = (1 << 31) - 1


@attrs.frozen(kw_only=True)
class SharedStatus:
    """What the database knows.

    Attributes:
        where: The database.
        members: None if only one workspace was asked for.
        missing: The workspace that was asked for, if the database doesn't have it.
    """

    where: str
    members: Sequence[MemberState] | None
    workspaces: Sequence[WorkspaceOverview]
    missing: str = ""

    @property
    def held(self) -> Counter[str]:
        """The number of workspaces by session, which members only count from time to time."""
        return Counter(one.session for one in self.workspaces)

    @property
    def is_well(self) -> bool:
        """Whether each workspace has a living holder."""
        return bool(self.workspaces) and all(one.is_alive for one in self.workspaces)


def find_status(url: str, workspace_id: str | None) -> SharedStatus:
    """The status of one workspace, or of all.

    Raises:
        MirrorError: The database can't be used.
        ConfigError: The URL is invalid, or the plugin isn't installed.
    """

    async def read(mirror: JournalMirror) -> SharedStatus:
        if workspace_id is None:
            return SharedStatus(where=mirror.where, members=await mirror.members(), workspaces=await mirror.overview())
        found = await mirror.overview([workspace_id])
        return SharedStatus(where=mirror.where, members=None, workspaces=found, missing="" if found else workspace_id)

    return use_mirror(url, read)


def state_of(one: WorkspaceOverview) -> str:
    """``served``, ``free``, or ``lost`` if its holder doesn't respond."""
    if one.holder is None:
        return "free"
    return "served" if one.is_alive else "lost"


def lines(found: SharedStatus, now: float) -> Iterator[str]:
    """The status for people: a summary, the members, then each workspace, those first that nobody serves."""
    if found.missing:
        yield f"{found.missing}: the database {found.where} doesn't have it"
    if found.members is not None:
        yield from _summary(found, found.members, now)
    for one in sorted(found.workspaces, key=lambda one: one.is_alive):
        yield f"{one_line(one.workspace_id)}: {_workspace(one, now)}"


def values(found: SharedStatus) -> str:
    """The status as a JSON document."""
    held = found.held
    document = {
        "database": found.where,
        "members": None if found.members is None else [_member_values(one, held[one.session]) for one in found.members],
        "workspaces": [_workspace_values(one) for one in found.workspaces],
    }
    return json.dumps(document, indent=2)


def _summary(found: SharedStatus, members: Sequence[MemberState], now: float) -> Iterator[str]:
    states = [state_of(one) for one in found.workspaces]
    parts = [f"{states.count(state):,} {state}" for state in ("served", "free", "lost") if state in states]
    yield f"{found.where}: {count(len(states), 'workspace')}{': ' if parts else ''}{', '.join(parts)}"
    total: dict[str, int] = {}
    for one in found.workspaces:
        for state, number in one.states.items():
            total[state] = total.get(state, 0) + number
    oldest = min((one.oldest_waiting for one in found.workspaces if one.oldest_waiting is not None), default=None)
    yield f"messages: {_messages(total, oldest, now) or 'none waits'}"
    yield f"{count(len(members), 'member')}{':' if members else ''}"
    held = found.held
    for member in sorted(members, key=lambda member: (member.info.host, member.info.pid)):
        capacity, leases = member.info.capacity, count(held[member.session], "workspace")
        limit = "" if capacity == _UNLIMITED else f" of at most {capacity:,}" if capacity else ", stopping"
        yield f"  {_process(member.info)}: {leases}{limit}, for {_age(member.since, now)}"


def _workspace(one: WorkspaceOverview, now: float) -> str:
    since = _age(one.since, now)
    if one.holder is None:
        parts = [f"free for {since}"]
    elif one.is_alive:
        parts = [f"served by {_process(one.holder)} for {since}"]
    else:
        parts = [f"lost: {_process(one.holder)} doesn't respond"]
    parts.append("no copy yet" if one.changed is None else f"changed {ago(one.changed, now)}")
    if waiting := _messages(one.states, one.oldest_waiting, now):
        parts.append(waiting)
    return ", ".join(parts)


def _messages(states: Mapping[str, int], oldest: float | None, now: float) -> str:
    waiting = sum(number for state, number in states.items() if state not in _FINISHED)
    parts = []
    if waiting:
        parts.append(f"{waiting:,} waiting" + (f" (the oldest for {_age(oldest, now)})" if oldest is not None else ""))
    if dead := states.get("dead", 0):
        parts.append(count(dead, "dead letter"))
    return ", ".join(parts)


def _process(info: MemberInfo) -> str:
    return f"process {info.pid} on {one_line(info.host, 64)}"


def _age(since: float, now: float) -> str:
    # The clock of the database may be ahead of this machine's.
    return span(max(0.0, now - since))


def _member_values(member: MemberState, held: int) -> dict[str, Any]:
    capacity = member.info.capacity
    return {
        "host": member.info.host,
        "pid": member.info.pid,
        "workspaces": held,
        "capacity": None if capacity == _UNLIMITED else capacity,
        "since": moment(member.since),
    }


def _workspace_values(one: WorkspaceOverview) -> dict[str, Any]:
    holder = one.holder
    return {
        "workspace_id": one.workspace_id,
        "state": state_of(one),
        "well": one.is_alive,
        "host": None if holder is None else holder.host,
        "pid": None if holder is None else holder.pid,
        "since": moment(one.since),
        "changed": moment(one.changed),
        "messages": dict(one.states),
        "oldest_waiting": moment(one.oldest_waiting),
    }
