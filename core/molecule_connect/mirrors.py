"""Mirrors: plugins that keep a copy of journals in a database, so that several machines can serve the same workspaces.

An entry point of the group ``molecule_connect.mirrors`` is named like the scheme of a URL, and names a class or
function that is called with that URL and returns a ``JournalMirror``. ``--journal URL`` uses it.

A *member* is a process that serves workspaces. It keeps a *session*, which ends unless it is renewed in time, by the
database's clock. The leases of its workspaces belong to the session: a lease is free if it has no holder, or if the
session of its holder has ended. Each time a lease is taken, its *epoch* grows by one. A member only changes the copy of
a workspace in a transaction that checks that it still has the lease of that epoch.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from typing import Protocol

import attrs

from molecule_connect.errors import MoleculeError


class MirrorError(MoleculeError):
    """The database refused an operation, for example because its tables are missing. A retry doesn't help."""


class MirrorUnreachableError(MirrorError):
    """The database can't be reached, or doesn't respond. The outcome of an operation is unknown."""

    @property
    def may_heal(self) -> bool:
        return True


class SessionEndedError(MirrorError):
    """The database doesn't know the session any more; all its leases are lost."""


@attrs.frozen(kw_only=True)
class MemberInfo:
    """A process that serves workspaces, as it describes itself.

    Attributes:
        host: Name of the machine.
        machine: Identifies the running machine, as seen by its processes: two processes with the same text can tell
            by their pids whether the other one still runs. Empty if unknown.
        capacity: Workspaces that it can serve at most; 0 while it is stopping.
        listing: Identifies the set of workspaces that it is configured for.
    """

    host: str
    pid: int
    machine: str
    capacity: int
    listing: str


@attrs.frozen(kw_only=True)
class MemberState:
    """A member with a running session.

    Attributes:
        session: Identifies the session.
        held: Number of leases that it had at its last renewal.
        since: When the session began, in seconds since 1970 by the database's clock.
    """

    session: str
    info: MemberInfo
    held: int
    since: float


@attrs.frozen(kw_only=True)
class Lease:
    """A lease that the session has.

    Attributes:
        commits: Number of transactions that changed the workspace's copy.
    """

    workspace_id: str
    epoch: int
    commits: int


@attrs.frozen(kw_only=True)
class Row:
    """A row of a table of the journal, in the form in which it is stored.

    Attributes:
        key: Identifies the row in its table and workspace.
        data: The columns; None if the row was deleted.
        body: The texts of a message, which rarely change; None leaves the stored ones unchanged.
        state: Of a message to be handled, such as "received" or "dead"; empty for other rows.
        time: Of a message, in microseconds since 1970; 0 for other rows.
    """

    table: str
    key: str
    data: bytes | None
    body: bytes | None = None
    state: str = ""
    time: int = 0


@attrs.frozen(kw_only=True)
class WorkspaceOverview:
    """One workspace in the database. Times are seconds since 1970 by the database's clock.

    Attributes:
        session: Of its holder; empty if it is free.
        holder: The member that has the lease; None if it is free.
        is_alive: Whether the holder's session runs.
        since: When the lease was taken or released last.
        changed: When its copy last changed; None if it has none.
        states: Number of messages by state.
        oldest_waiting: Time of the oldest message that is not finished; None if all are.
    """

    workspace_id: str
    session: str
    holder: MemberInfo | None
    is_alive: bool
    since: float
    changed: float | None
    states: Mapping[str, int]
    oldest_waiting: float | None


@attrs.frozen(kw_only=True)
class MirrorInfo:
    """The tables in the database.

    Attributes:
        where: Host, port and database, without a password.
        schema: Version of the tables; 0 if they are missing.
        current: The version that this release needs.
        workspaces: Number of workspaces.
        size: Of the tables, in bytes.
    """

    where: str
    server: str
    schema: int
    current: int
    workspaces: int
    size: int


class JournalMirror(Protocol):
    """A copy of journals in a database. Its methods are called by one task at a time, except where noted.

    All methods raise ``MirrorUnreachableError`` or ``MirrorError``. After the former, a later call connects again.

    Attributes:
        where: Host, port and database, without a password, for messages to the operator.
    """

    where: str

    async def aclose(self) -> None:
        """Close all connections. Running calls raise ``MirrorUnreachableError``."""

    # The session and its leases. The other methods may run at the same time.

    async def begin(self, info: MemberInfo, *, seconds: float) -> str:
        """Begin a session that ends after *seconds* without ``renew``. Returns its id."""

    async def renew(self, session: str, info: MemberInfo, *, seconds: float) -> Sequence[Lease]:
        """Extend the session, also after it ended, to *seconds* from now.

        Returns:
            The leases that it still has: as of a moment after which nobody else can take one of them.

        Raises:
            SessionEndedError: It was removed.
        """

    async def end(self, session: str) -> None:
        """End the session and release its leases."""

    async def members(self) -> Sequence[MemberState]:
        """The members with a running session."""

    async def add(self, workspace_ids: Collection[str]) -> None:
        """Add the leases of workspaces that the database doesn't know yet."""

    async def free(self, *, near: str, limit: int, expired: bool) -> Sequence[str]:
        """Up to *limit* workspaces whose leases are free, by id: those from *near* on, then the others.

        Args:
            expired: Also leases whose holder didn't release them before its session ended.
        """

    async def take(self, session: str, workspace_ids: Collection[str]) -> Sequence[Lease]:
        """Take those leases of *workspace_ids* that are still free, for a session that runs. Returns them."""

    async def release(self, session: str, workspace_ids: Collection[str]) -> None:
        """Release leases that the session has."""

    # The copy. Another task may call these at the same time as the methods above.

    async def ship(
        self, session: str, epochs: Mapping[str, int], rows: AsyncIterator[Mapping[str, Sequence[Row]]]
    ) -> Mapping[str, int]:
        """Change the copies of workspaces, in one transaction. Rows of workspaces whose lease is lost are ignored.

        Args:
            epochs: Of the lease of each workspace that has rows.
            rows: Rows by workspace, in parts of some megabytes.

        Returns:
            The new number of ``Lease.commits`` of each workspace whose lease the session still has.
        """

    def load(self, workspace_id: str) -> AsyncGenerator[Sequence[Row], None]:
        """The copy of one workspace, as of one moment, in parts of some megabytes.

        May run several times at the same time, and needs no session.
        """

    # For the operator

    async def describe(self) -> MirrorInfo:
        """The tables, also if they are missing or of another version."""

    async def install(self) -> Sequence[str]:
        """Create or migrate the tables. Returns what was done, in one line each; nothing if they are current."""

    async def overview(self, workspace_ids: Collection[str] | None = None) -> Sequence[WorkspaceOverview]:
        """The given workspaces, or all, ordered by id."""

    async def delete(self, session: str, workspace_id: str) -> None:
        """Delete a workspace, whose lease the session has, from the database.

        Raises:
            MirrorError: The lease was lost.
        """
