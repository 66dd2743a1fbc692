"""A database for mirrors in memory, with a clock that tests move."""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from urllib.parse import urlsplit

import attrs

from molecule_connect.mirrors import (
    Lease,
    MemberInfo,
    MemberState,
    MirrorError,
    MirrorInfo,
    MirrorUnreachableError,
    Row,
    SessionEndedError,
    WorkspaceOverview,
)

CURRENT = 2


@attrs.define
class _Session:
    info: MemberInfo
    since: float
    expires: float


@attrs.define
class _Lease:
    session: str = ""
    epoch: int = 0
    commits: int = 0
    since: float = 0.0
    changed: float | None = None


@attrs.define
class Database:
    """What all mirrors of it see.

    Attributes:
        clock: Its clock, in seconds.
        schema: Version of its tables; 0 if they are missing.
        is_down: Calls fail.
        lost_acknowledgements: Transactions that are committed, but whose caller is told that the connection was cut.
    """

    clock: Callable[[], float]
    schema: int = CURRENT
    is_down: bool = False
    lost_acknowledgements: int = 0
    sessions: dict[str, _Session] = attrs.field(factory=dict)
    leases: dict[str, _Lease] = attrs.field(factory=dict)
    rows: dict[str, dict[tuple[str, str], Row]] = attrs.field(factory=dict)

    def check(self, *, needs_tables: bool = True) -> None:
        if self.is_down:
            raise MirrorUnreachableError("memory can't be reached")
        if needs_tables and not self.schema:
            raise MirrorError("memory has no tables", hint="run: molecule journal init --journal URL")

    def is_free(self, lease: _Lease) -> bool:
        session = self.sessions.get(lease.session)
        return session is None or session.expires <= self.clock()


class MemoryMirror:
    """A ``JournalMirror`` of a ``Database``.

    Attributes:
        is_cut: Its machine can't reach the database.
        refuses_loads: The database refuses to read copies, as it does new connections after a change of the password.
    """

    where = "memory"

    def __init__(self, database: Database) -> None:
        self._db = database
        self.is_cut = self.refuses_loads = False

    def _check(self, *, needs_tables: bool = True) -> None:
        self._db.check(needs_tables=needs_tables)
        if self.is_cut:
            raise MirrorUnreachableError("the connection was cut")

    async def aclose(self) -> None:
        pass

    async def begin(self, info: MemberInfo, *, seconds: float) -> str:
        self._check()
        now = self._db.clock()
        self._db.sessions[session := uuid.uuid4().hex] = _Session(info, now, now + seconds)
        return session

    async def renew(self, session: str, info: MemberInfo, *, seconds: float) -> Sequence[Lease]:
        self._check()
        found = self._db.sessions.get(session)
        if found is None:
            raise SessionEndedError("the session has ended")
        found.info, found.expires = info, self._db.clock() + seconds
        return [
            Lease(workspace_id=name, epoch=one.epoch, commits=one.commits)
            for name, one in self._db.leases.items()
            if one.session == session
        ]

    async def end(self, session: str) -> None:
        self._check()
        self._db.sessions.pop(session, None)
        for lease in self._db.leases.values():
            if lease.session == session:
                lease.session = ""

    async def members(self) -> Sequence[MemberState]:
        self._check()
        now = self._db.clock()
        return [
            MemberState(
                session=session,
                info=one.info,
                since=one.since,
                held=sum(lease.session == session for lease in self._db.leases.values()),
            )
            for session, one in self._db.sessions.items()
            if one.expires > now
        ]

    async def add(self, workspace_ids: Collection[str]) -> None:
        self._check()
        for name in workspace_ids:
            self._db.leases.setdefault(name, _Lease())

    async def free(self, *, near: str, limit: int, expired: bool) -> Sequence[str]:
        self._check()
        found = [
            name for name, one in self._db.leases.items() if not one.session or (expired and self._db.is_free(one))
        ]
        return sorted(found, key=lambda name: (name < near, name))[:limit]

    async def take(self, session: str, workspace_ids: Collection[str]) -> Sequence[Lease]:
        self._check()
        own = self._db.sessions.get(session)
        if own is None or own.expires <= self._db.clock():
            return []
        taken = []
        for name in workspace_ids:
            lease = self._db.leases.setdefault(name, _Lease())
            if self._db.is_free(lease):
                lease.session, lease.epoch, lease.since = session, lease.epoch + 1, self._db.clock()
                taken.append(Lease(workspace_id=name, epoch=lease.epoch, commits=lease.commits))
        return taken

    async def release(self, session: str, workspace_ids: Collection[str]) -> None:
        self._check()
        for name in workspace_ids:
            if (lease := self._db.leases.get(name)) is not None and lease.session == session:
                lease.session, lease.since = "", self._db.clock()

    async def ship(
        self, session: str, epochs: Mapping[str, int], rows: AsyncIterator[Mapping[str, Sequence[Row]]]
    ) -> Mapping[str, int]:
        self._check()
        parts = [part async for part in rows]
        self._check()
        commits: dict[str, int] = {}
        for name, epoch in epochs.items():
            lease = self._db.leases.get(name)
            if lease is not None and lease.session == session and lease.epoch == epoch:
                lease.commits, lease.changed = lease.commits + 1, self._db.clock()
                commits[name] = lease.commits
        for part in parts:
            for name in part.keys() & commits.keys():
                self._store(name, part[name])
        if self._db.lost_acknowledgements:
            self._db.lost_acknowledgements -= 1
            raise MirrorUnreachableError("the connection was cut")
        return commits

    def _store(self, workspace_id: str, rows: Sequence[Row]) -> None:
        stored = self._db.rows.setdefault(workspace_id, {})
        for row in rows:
            place = (row.table, row.key)
            if row.data is None:
                stored.pop(place, None)
            elif row.body is None and place in stored:
                stored[place] = attrs.evolve(row, body=stored[place].body)
            else:
                stored[place] = row

    async def load(self, workspace_id: str) -> AsyncGenerator[Sequence[Row], None]:
        self._check()
        if self.refuses_loads:
            raise MirrorError("password authentication failed")
        yield sorted(self._db.rows.get(workspace_id, {}).values(), key=lambda row: row.time)

    async def describe(self) -> MirrorInfo:
        self._check(needs_tables=False)
        return MirrorInfo(
            where=self.where,
            server="memory 1.0",
            schema=self._db.schema,
            current=CURRENT,
            workspaces=len(self._db.leases),
            size=sum(len(row.data or b"") for rows in self._db.rows.values() for row in rows.values()),
        )

    async def install(self) -> Sequence[str]:
        self._check(needs_tables=False)
        before, self._db.schema = self._db.schema, CURRENT
        if before == CURRENT:
            return []
        return [f"{'migrated the tables to' if before else 'created the tables,'} version {CURRENT}"]

    async def overview(self, workspace_ids: Collection[str] | None = None) -> Sequence[WorkspaceOverview]:
        self._check()
        return [
            self._overview(name) for name in sorted(self._db.leases) if workspace_ids is None or name in workspace_ids
        ]

    def _overview(self, workspace_id: str) -> WorkspaceOverview:
        lease, states = self._db.leases[workspace_id], dict[str, int]()
        rows = [row for row in self._db.rows.get(workspace_id, {}).values() if row.state]
        for row in rows:
            states[row.state] = states.get(row.state, 0) + 1
        waiting = [row.time / 1e6 for row in rows if row.state not in ("done", "dead")]
        session = self._db.sessions.get(lease.session)
        return WorkspaceOverview(
            workspace_id=workspace_id,
            session=lease.session,
            holder=None if session is None else session.info,
            is_alive=not self._db.is_free(lease),
            since=lease.since,
            changed=lease.changed,
            states=states,
            oldest_waiting=min(waiting, default=None),
        )

    async def delete(self, session: str, workspace_id: str) -> None:
        self._check()
        if self._db.leases[workspace_id].session != session:
            raise MirrorError(f"the lease of {workspace_id} was lost")
        del self._db.leases[workspace_id]
        self._db.rows.pop(workspace_id, None)


# By the name in memory://NAME, for mirrors that are created by their URL.
DATABASES: dict[str, Database] = {}


def create(url: str) -> MemoryMirror:
    """The mirror of one of ``DATABASES``."""
    return MemoryMirror(DATABASES[urlsplit(url).hostname or ""])
