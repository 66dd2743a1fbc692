"""Connections to PostgreSQL: how they are opened, bounded in time, and closed after an error."""

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import attrs
import psycopg
from psycopg import errors, waiting
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict

from molecule_connect.mirrors import MirrorError, MirrorUnreachableError

# Statements, separated by semicolons, and their values.
Request = tuple[str, Mapping[str, Any]]
_T = TypeVar("_T")

# Parameters of a connection, each with its environment variable. A dead server is noticed within some 10 s.
_DEFAULTS = {
    "application_name": ("molecule-connect", "PGAPPNAME"),
    "connect_timeout": ("3", "PGCONNECT_TIMEOUT"),
    "target_session_attrs": ("read-write", "PGTARGETSESSIONATTRS"),
    "client_encoding": ("UTF8", ""),
    "keepalives_idle": ("5", ""),
    "keepalives_interval": ("2", ""),
    "keepalives_count": ("3", ""),
    "tcp_user_timeout": ("10000", ""),
}
# So that the server also notices a dead client, and its connections don't accumulate.
_KEEPALIVES = (
    "SELECT set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false),"
    " set_config('tcp_keepalives_count', '3', false)"
)
_BEGIN = (
    "BEGIN; SET LOCAL statement_timeout=%(answer)s; SET LOCAL lock_timeout=%(lock)s;"
    " SET LOCAL idle_in_transaction_session_timeout=%(idle)s"
)
_BAD_URL_HINT = (
    "use postgresql://USER@HOST:PORT/DATABASE, with special characters as %XX,"
    " and a password in ~/.pgpass or PGPASSWORD"
)
# Refusals that a retry doesn't change. They have no SQLSTATE while a connection is opened.
_REFUSALS = (
    ("password authentication failed|no password supplied", "check the user, and the password in ~/.pgpass"),
    ("no pg_hba.conf entry", "allow the user and this machine in the server's pg_hba.conf"),
    (r"database .* does not exist", "create the database with createdb, or correct the URL"),
    (r"role .* (does not exist|is not permitted to log in)", "create the user with createuser, or correct the URL"),
    ("permission denied for database", "GRANT CONNECT ON DATABASE ... TO the user"),
    ("not support SSL|certificate verify failed|root certificate|not match host", "check sslmode and sslrootcert"),
    ("invalid .* value|invalid connection option", _BAD_URL_HINT),
)  # fmt: skip
_STANDBY_HINT = "connect to the primary server; if several hosts are in the URL, the writable one is found"
# SQLSTATE classes of errors that can end by themselves: connection, rollback, resources, locks, operator, system.
_PASSING = ("08", "25", "40", "53", "55", "57", "58")


@attrs.frozen(kw_only=True)
class Limits:
    """Time limits of a kind of operation, in seconds.

    Attributes:
        answer: Until the answer to one step, such as a part of the rows, arrives.
        lock: Until a lock of another transaction is released.
        idle: Until the server ends a transaction whose client is silent. Its locks are held until then.
    """

    answer: float
    lock: float = 3
    idle: float = 3


class Connection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection that is closed when an operation is cancelled: its state is unknown then."""

    async def wait(self, gen: PQGen[_T], interval: float = 0.1, *rest: Any, **options: Any) -> _T:
        # psycopg would ask the server to cancel, and wait for up to 10 s.
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval, *rest, **options)
        except asyncio.CancelledError:
            self.pgconn.finish()
            raise

    async def run(self, *requests: Request) -> list[list[tuple[Any, ...]]]:
        """Execute statements, which are sent in one message. Returns the rows of those that have some.

        The server doesn't wait for this process between them. Otherwise it would hold its locks while the process is
        stopped: the time limit for idle transactions doesn't apply in the middle of a pipeline.
        """
        cursor = psycopg.AsyncClientCursor(self)
        text = "; ".join(cursor.mogrify(statement.encode(), values) for statement, values in requests)
        await cursor.execute(text.encode())
        return [await each.fetchall() async for each in cursor.results() if each.description]

    async def begin(self, limits: Limits, *requests: Request) -> list[list[tuple[Any, ...]]]:
        """Begin a transaction with statements, in one message.

        The limits end with it, so that connections can be shared by a pooler.
        """
        return await self.run(
            (_BEGIN, {name: round(value * 1000) for name, value in attrs.asdict(limits).items()}), *requests
        )

    async def transact(self, limits: Limits, *requests: Request) -> list[list[tuple[Any, ...]]]:
        """Execute statements in a transaction, in one message."""
        return await self.begin(limits, *requests, ("COMMIT", {}))


@attrs.define(eq=False)
class Link:
    """Opens a connection when one is needed, and closes it after any error. Used by one task at a time."""

    _connect: Callable[[], Awaitable[Connection]]
    _where: str
    _links: "set[Link]"
    connection: Connection | None = attrs.field(default=None, init=False)
    _timeout: asyncio.Timeout | None = attrs.field(default=None, init=False)

    @contextlib.asynccontextmanager
    async def use(self, limits: Limits) -> AsyncIterator[Connection]:
        """An open connection, for ``limits.answer`` seconds.

        Raises:
            MirrorUnreachableError: There was no answer in time, or the connection was lost.
            MirrorError: The server refused an operation.
        """
        self._links.add(self)
        timeout = asyncio.timeout(limits.answer)
        try:
            async with timeout:
                self._timeout = timeout
                self.connection = self.connection or await self._connect()
                yield self.connection
        except BaseException as error:
            self.close()
            if isinstance(error, psycopg.Error):
                raise translated(error, self._where) from None
            if isinstance(error, TimeoutError) and timeout.expired():
                raise MirrorUnreachableError(f"the database {self._where} doesn't respond") from None
            raise
        finally:
            self._timeout = None

    def extend(self, seconds: float) -> None:
        """Give the running operation *seconds* from now."""
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + seconds)

    def close(self) -> None:
        """Close the connection, which rolls a transaction back."""
        self._links.discard(self)
        if self.connection is not None:
            self.connection.pgconn.finish()
            self.connection = None

    def abort(self) -> None:
        """Close the connection; a running operation fails."""
        if self._timeout is None:
            self.close()
        else:
            self.extend(0)


@attrs.define(eq=False)
class Database:
    """Where connections lead to.

    Attributes:
        where: Host, port and database.
    """

    _parameters: dict[str, Any] = attrs.field(repr=False)
    where: str
    _links: set[Link] = attrs.field(factory=set, init=False, repr=False)
    _is_closed: bool = attrs.field(default=False, init=False)

    @classmethod
    def at(cls, url: str) -> "Database":
        """The database at *url*.

        Raises:
            MirrorError: The URL is malformed.
        """
        # Its warnings repeat the errors that it raises.
        logging.getLogger("psycopg").setLevel(logging.ERROR)
        parameters = _parsed(url)
        defaults = {
            name: value
            for name, (value, variable) in _DEFAULTS.items()
            if name not in parameters and variable not in os.environ
        }
        return cls({**defaults, **parameters}, _where(parameters))

    def link(self, prepare: Callable[[Connection], Awaitable[None]]) -> Link:
        """A link whose connections are passed to *prepare* once they are open."""

        async def connect() -> Connection:
            if self._is_closed:
                raise MirrorUnreachableError(f"the connection to the database {self.where} was closed")
            connection = await Connection.connect("", autocommit=True, prepare_threshold=None, **self._parameters)
            try:
                await connection.execute(_KEEPALIVES)
                await prepare(connection)
            except BaseException:
                connection.pgconn.finish()
                raise
            return connection

        return Link(connect, self.where, self._links)

    def close(self) -> None:
        """Close all connections. Running operations fail."""
        self._is_closed = True
        for link in list(self._links):
            link.abort()


def _parsed(url: str) -> dict[str, Any]:
    # libpq's message can contain a part of the password.
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.Error:
        raise MirrorError("the URL of the database is malformed", hint=_BAD_URL_HINT) from None
    # Part of a password with "@", "/" or ":" in it would be taken for a host, port or database, and shown.
    shown = "".join(str(parameters.get(name, "")) for name in ("host", "hostaddr", "dbname"))
    if "@" in shown or not re.fullmatch(r"[\d,]*", str(parameters.get("port", ""))):
        raise MirrorError("the URL of the database is malformed", hint=_BAD_URL_HINT)
    return parameters


def _where(parameters: dict[str, Any]) -> str:
    def known(name: str, variable: str, default: str) -> str:
        return str(parameters.get(name) or os.environ.get(variable) or default)

    service = known("service", "PGSERVICE", "")
    hosts = known("host", "PGHOST", "") or known(
        "hostaddr", "PGHOSTADDR", f"service {service}" if service else "socket"
    )
    user = known("user", "PGUSER", "")
    return f"{hosts}:{known('port', 'PGPORT', '5432')}/{known('dbname', 'PGDATABASE', user)}"


def translated(error: psycopg.Error, where: str) -> MirrorError:
    """The error to raise instead of psycopg's."""
    text = error.diag.message_primary or str(error).partition("\n")[0].removeprefix("connection failed: ")
    state = error.sqlstate or ""
    if isinstance(error, errors.ReadOnlySqlTransaction) or "session is read-only" in text:
        return MirrorUnreachableError(f"the database {where} is read-only", hint=_STANDBY_HINT)
    if isinstance(error, errors.InsufficientPrivilege) and "for database" in text:
        return MirrorError(
            f"the database {where} refuses an operation: {text}",
            hint="let its owner run: CREATE SCHEMA molecule_connect AUTHORIZATION user",
        )
    if isinstance(error, errors.InsufficientPrivilege):
        return MirrorError(
            f"the database {where} refuses an operation: {text}",
            hint="use the user that ran molecule journal init, or grant its rights on the schema molecule_connect",
        )
    if isinstance(error, errors.UndefinedTable | errors.UndefinedColumn | errors.InvalidSchemaName):
        return MirrorError(
            f"the tables in {where} were removed or changed: {text}", hint="see: molecule journal status --journal URL"
        )
    if not state:
        for pattern, hint in _REFUSALS:
            if re.search(pattern, text):
                return MirrorError(f"the database {where} can't be used: {text}", hint=hint)
    if state.startswith(_PASSING) or (
        not state and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    ):
        return MirrorUnreachableError(f"the database {where} can't be reached: {text}")
    return MirrorError(f"the database {where} refuses an operation: {text}")
