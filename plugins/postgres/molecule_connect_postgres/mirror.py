"""PostgresMirror: sessions, leases, and the copies of journals."""

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import attrs

from molecule_connect.mirrors import (
    Lease,
    MemberInfo,
    MemberState,
    MirrorError,
    MirrorInfo,
    Row,
    SessionEndedError,
    WorkspaceOverview,
)
from molecule_connect_postgres import schema, statements
from molecule_connect_postgres.connections import Connection, Database, Limits, Link, Request

# Bytes of rows that load() passes on at a time.
_PART_SIZE = 4 << 20
# Connections of loads that are kept until the next renewal.
_MOST_IDLE = 4
# Bytes of rows that are sent in one message with the statements of a transaction.
_MESSAGE_SIZE = 1 << 20
# Workspaces that are added in one statement.
_BATCH = 10_000
_MEMBER = ("host", "pid", "machine", "capacity", "listing")


@attrs.frozen(kw_only=True)
class AllLimits:
    """Time limits of all operations: on sessions and leases, of ``ship``, of ``load``, and for the operator."""

    session: Limits = attrs.field(default=Limits(answer=5))
    ship: Limits = attrs.field(default=Limits(answer=30, lock=15, idle=10))
    load: Limits = attrs.field(default=Limits(answer=30))
    operator: Limits = attrs.field(default=Limits(answer=120, lock=30, idle=10))


class PostgresMirror:
    """A ``JournalMirror`` in the PostgreSQL database at *url*.

    Raises:
        MirrorError: The URL is malformed.
    """

    def __init__(self, url: str, *, limits: AllLimits | None = None, scripts: Sequence[str] = schema.SCRIPTS) -> None:
        self._database = Database.at(url)
        self._limits = limits or AllLimits()
        self._scripts = scripts
        self._session = self._link()
        self._shipping = self._link()
        # Of loads that are complete. A takeover loads many workspaces, and a connection takes longer than most copies.
        self._idle: list[Link] = []
        self.where = self._database.where

    def __repr__(self) -> str:
        return f"<PostgresMirror {self.where}>"

    def _link(self, *, check: bool = True) -> Link:
        async def prepare(connection: Connection) -> None:
            if check:
                await schema.check(connection, self.where, len(self._scripts))

        return self._database.link(prepare)

    async def aclose(self) -> None:
        """Close all connections. Running calls raise ``MirrorUnreachableError``."""
        self._database.close()

    async def _transact(self, statements: str, values: Mapping[str, Any]) -> list[list[tuple[Any, ...]]]:
        """Execute statements on sessions and leases in a transaction."""
        limits = self._limits.session
        async with self._session.use(limits) as connection:
            return await connection.transact(limits, (statements, {"turn": time.monotonic_ns(), **values}))

    async def begin(self, info: MemberInfo, *, seconds: float) -> str:
        """Begin a session that ends after *seconds* without ``renew``. Returns its id."""
        session = str(uuid.uuid4())
        values = {"session": session, "seconds": seconds, **attrs.asdict(info)}
        await self._transact(f"{statements.BEGIN}; {statements.REMOVE_MEMBERS}", values)
        return session

    async def renew(self, session: str, info: MemberInfo, *, seconds: float) -> Sequence[Lease]:
        """Extend the session to *seconds* from now. Returns the leases that it still has.

        Raises:
            SessionEndedError: It was removed.
        """
        while self._idle:
            self._idle.pop().close()
        values = {"session": session, "seconds": seconds, **attrs.asdict(info)}
        renewed, found = await self._transact(f"{statements.RENEW}; COMMIT; {statements.LEASES}", values)
        if not renewed:
            raise SessionEndedError(f"the session was removed from the database {self.where}")
        return _leases(found)

    async def end(self, session: str) -> None:
        """End the session and release its leases."""
        await self._transact(f"{statements.TURN}; {statements.RELEASE_ALL}; {statements.END}", {"session": session})

    async def members(self) -> Sequence[MemberState]:
        """The members with a running session."""
        (found,) = await self._transact(statements.MEMBERS, {})
        return [
            MemberState(session=session, info=_info(values), held=held, since=since)
            for session, held, since, *values in found
        ]

    async def add(self, workspace_ids: Collection[str]) -> None:
        """Add the leases of workspaces that the database doesn't know yet."""
        # Sorted, so that members that add the same ones at the same time don't deadlock.
        names = sorted(workspace_ids)
        for start in range(0, len(names), _BATCH):
            await self._transact(statements.ADD, {"ids": names[start : start + _BATCH]})

    async def free(self, *, near: str, limit: int, expired: bool) -> Sequence[str]:
        """Up to *limit* workspaces whose leases are free, by id: those from *near* on, then the others.

        Args:
            expired: Also leases whose holder didn't release them before its session ended.
        """
        statement = statements.FREE_OR_EXPIRED if expired else statements.FREE
        (found,) = await self._transact(statement, {"near": near, "limit": limit})
        return [name for (name,) in found][:limit]

    async def take(self, session: str, workspace_ids: Collection[str]) -> Sequence[Lease]:
        """Take those leases of *workspace_ids* that are still free, for a session that runs. Returns them."""
        (taken,) = await self._transact(statements.TAKE, {"session": session, "ids": list(workspace_ids)})
        return _leases(taken)

    async def release(self, session: str, workspace_ids: Collection[str]) -> None:
        """Release leases that the session has."""
        values = {"session": session, "ids": list(workspace_ids)}
        await self._transact(f"{statements.TURN}; {statements.RELEASE}", values)

    async def ship(
        self, session: str, epochs: Mapping[str, int], rows: AsyncIterator[Mapping[str, Sequence[Row]]]
    ) -> Mapping[str, int]:
        """Change the copies of workspaces, in one transaction. Rows of workspaces whose lease is lost are ignored.

        Returns:
            The new number of ``Lease.commits`` of each workspace whose lease the session still has.
        """
        limits = self._limits.ship
        fence = {
            "session": session,
            "names": _array(list(epochs)),
            "epochs": _array(list(epochs.values())),
            "turn": time.monotonic_ns(),
        }
        first: Mapping[str, Sequence[Row]] = await anext(rows, {})
        second = await anext(rows, None)
        async with self._shipping.use(limits) as connection:
            if second is None and _size(first) <= _MESSAGE_SIZE:
                (kept,) = await connection.transact(limits, *_in_one_message(first, fence))
                return dict(kept)
            # Several messages. The server ends the transaction if one doesn't arrive in time.
            (kept,) = await connection.begin(limits, (statements.FENCE, fence))
            part: Mapping[str, Sequence[Row]] | None = first
            while part is not None:
                for statement, arrays in _changes(part):
                    self._shipping.extend(limits.answer)
                    await connection.execute(statement.encode(), {**fence, **arrays})
                self._shipping.extend(limits.answer)
                part, second = second, await anext(rows, None)
            self._shipping.extend(limits.answer)
            await connection.run(("COMMIT", {}))
        return dict(kept)

    async def load(self, workspace_id: str) -> AsyncGenerator[Sequence[Row], None]:
        """The copy of one workspace, as of one moment, in parts of some megabytes. Closed with ``aclose``."""
        link = self._idle.pop() if self._idle else self._link()
        is_complete = False
        found: AsyncGenerator[tuple[Any, ...], None] | None = None
        try:
            async with link.use(self._limits.load) as connection:
                # The rows arrive as they are read: before that, they are in the network's buffers.
                rows = connection.cursor(binary=True).stream(statements.LOAD, [workspace_id])
                found = cast("AsyncGenerator[tuple[Any, ...], None]", rows)
            while part := await self._part(link, found):
                yield part
            is_complete = True
        finally:
            if is_complete and len(self._idle) < _MOST_IDLE:
                self._idle.append(link)
            else:
                # First, because psycopg would ask the server to cancel, and wait.
                link.close()
            if found is not None:
                await found.aclose()

    async def _part(self, link: Link, found: AsyncGenerator[tuple[Any, ...], None]) -> Sequence[Row]:
        part, size = list[Row](), 0
        async with link.use(self._limits.load):
            async for table, key, data, body, state, time in found:
                name = key.decode("utf-8", "surrogatepass")
                part.append(Row(table=table, key=name, data=data, body=body, state=state, time=time))
                size += len(key) + len(data) + len(body or b"")
                if size >= _PART_SIZE:
                    break
        return part

    async def describe(self) -> MirrorInfo:
        """The tables, also if they are missing or of another version."""
        async with self._operating(check=False) as connection:
            version, _ = await schema.version(connection)
            workspaces = size = 0
            if version:
                found = await connection.execute(statements.SIZES)
                workspaces, size = await found.fetchone() or (0, 0)
            server = connection.info.parameter_status("server_version") or "unknown"
        return MirrorInfo(
            where=self.where,
            server=f"PostgreSQL {server}",
            schema=version,
            current=len(self._scripts),
            workspaces=workspaces,
            size=size,
        )

    async def install(self) -> Sequence[str]:
        """Create or migrate the tables. Returns what was done, in one line each; nothing if they are current."""
        async with self._operating(check=False) as connection:
            await connection.begin(self._limits.operator)
            done = await schema.install(connection, self.where, self._scripts)
            await connection.run(("COMMIT", {}))
        return done

    async def overview(self, workspace_ids: Collection[str] | None = None) -> Sequence[WorkspaceOverview]:
        """The given workspaces, or all, ordered by id."""
        ids = None if workspace_ids is None else list(workspace_ids)
        async with self._operating() as connection:
            found = await connection.execute(statements.OVERVIEW, {"ids": ids})
            return [_overview(values) for values in await found.fetchall()]

    async def delete(self, session: str, workspace_id: str) -> None:
        """Delete a workspace, whose lease the session has, from the database.

        Raises:
            MirrorError: The lease was lost.
        """
        async with self._operating() as connection:
            await connection.begin(self._limits.operator)
            # Until the commit, nobody can take it.
            lease = await (await connection.execute(statements.LOCK_LEASE, [workspace_id])).fetchone()
            if lease != (session,):
                raise MirrorError(
                    f"the lease of {workspace_id} was lost",
                    hint="another machine may have taken it: remove it from the lists of the others, and try again",
                )
            await connection.execute(statements.DELETE_ROWS, [workspace_id])
            await connection.execute(statements.DELETE_LEASE, [workspace_id])
            await connection.run(("COMMIT", {}))

    @contextlib.asynccontextmanager
    async def _operating(self, *, check: bool = True) -> AsyncIterator[Connection]:
        """A new connection, which doesn't hold up sessions and leases."""
        link = self._link(check=check)
        try:
            async with link.use(self._limits.operator) as connection:
                yield connection
        finally:
            link.close()


def _in_one_message(part: Mapping[str, Sequence[Row]], fence: Mapping[str, Any]) -> list[Request]:
    """The statements that check the leases and change the rows of *part*."""
    changes = {
        statement: {**fence, **{name: _array(array) for name, array in arrays.items()}}
        for statement, arrays in _changes(part)
    }
    upsert = changes.pop(statements.UPSERT, None)
    first = (statements.FENCE, fence) if upsert is None else (statements.FENCE_AND_UPSERT, upsert)
    return [first, *changes.items()]


def _changes(part: Mapping[str, Sequence[Row]]) -> Iterable[tuple[str, dict[str, list[Any]]]]:
    """The statements that change the rows of *part*, with their arrays."""
    # A statement can change a row only once.
    last: dict[tuple[str, str, str], Row] = {}
    for name, rows in part.items():
        for row in rows:
            earlier = last.get((name, row.table, row.key))
            if earlier and row.data is not None and row.body is None:
                last[name, row.table, row.key] = attrs.evolve(row, body=earlier.body)
            else:
                last[name, row.table, row.key] = row
    kept = {key: row for key, row in last.items() if row.data is not None}
    if kept:
        yield (
            statements.UPSERT,
            {
                **_keys(kept),
                "data": [row.data for row in kept.values()],
                "bodies": [row.body for row in kept.values()],
                "states": [row.state for row in kept.values()],
                "times": [row.time for row in kept.values()],
            },
        )
    if len(kept) < len(last):
        yield statements.REMOVE, _keys(last.keys() - kept.keys())


def _keys(rows: Iterable[tuple[str, str, str]]) -> dict[str, list[Any]]:
    keys = list(rows)
    return {
        "ids": [name for name, _, _ in keys],
        "tables": [table for _, table, _ in keys],
        "keys": [key.encode("utf-8", "surrogatepass") for _, _, key in keys],
    }


def _array(values: Collection[bytes | None] | Collection[str] | Collection[int]) -> str:
    """An array in PostgreSQL's syntax. psycopg makes it in five times the time."""
    return f"{{{','.join(map(_element, values))}}}"


def _element(value: bytes | str | int | None) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    if isinstance(value, int):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _size(part: Mapping[str, Sequence[Row]]) -> int:
    return sum(len(row.data or b"") + len(row.body or b"") for rows in part.values() for row in rows)


def _leases(found: Iterable[tuple[Any, ...]]) -> list[Lease]:
    return [Lease(workspace_id=name, epoch=epoch, commits=commits) for name, epoch, commits in found]


def _info(values: Sequence[Any]) -> MemberInfo:
    return MemberInfo(**dict(zip(_MEMBER, values, strict=True)))


def _overview(values: Sequence[Any]) -> WorkspaceOverview:
    name, session, is_alive, since, changed, states, oldest, *holder = values
    return WorkspaceOverview(
        workspace_id=name,
        session=session or "",
        holder=_info(holder) if session else None,
        is_alive=bool(is_alive),
        since=since,
        changed=changed,
        states=states or {},
        oldest_waiting=oldest,
    )
