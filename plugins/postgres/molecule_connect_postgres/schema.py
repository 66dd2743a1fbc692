"""The tables, and how they are created and migrated."""

from collections.abc import Sequence

from psycopg import errors

from molecule_connect.mirrors import MirrorError
from molecule_connect_postgres.connections import Connection

# meta.oldest is the oldest version that a release must know to use the tables. member.held is as of the last renewal.
# A session's expiry is in one place, so that a renewal writes one row, however many leases the session has.
# row.key is at most 1,000 bytes, because an index entry is limited; long_key has the whole of a longer one.
# turn is the number of the last request that was obeyed (statements.py).
# The tables whose rows change often have space for new versions of a row beside the old ones.
TABLES = """
CREATE TABLE molecule_connect.meta (version integer NOT NULL, oldest integer NOT NULL);
INSERT INTO molecule_connect.meta VALUES (1, 1);
CREATE TABLE molecule_connect.member (
    session text PRIMARY KEY, host text NOT NULL, pid integer NOT NULL, machine text NOT NULL,
    capacity integer NOT NULL, listing text NOT NULL, held integer NOT NULL DEFAULT 0,
    since timestamptz NOT NULL DEFAULT clock_timestamp(), expires_at timestamptz NOT NULL,
    turn bigint NOT NULL DEFAULT 0
) WITH (fillfactor=50);
CREATE TABLE molecule_connect.lease (
    workspace_id text PRIMARY KEY,
    session text REFERENCES molecule_connect.member ON DELETE SET NULL,
    epoch bigint NOT NULL DEFAULT 0, since timestamptz NOT NULL DEFAULT clock_timestamp(),
    commits bigint NOT NULL DEFAULT 0, changed timestamptz, turn bigint NOT NULL DEFAULT 0
) WITH (fillfactor=50);
CREATE INDEX lease_free ON molecule_connect.lease (workspace_id) WHERE session IS NULL;
CREATE INDEX lease_session ON molecule_connect.lease (session) WHERE session IS NOT NULL;
CREATE TABLE molecule_connect.row (
    workspace_id text NOT NULL, tbl text NOT NULL, key bytea NOT NULL, long_key bytea,
    data bytea NOT NULL, body bytea, state text NOT NULL, time bigint NOT NULL,
    PRIMARY KEY (workspace_id, tbl, key)
);
CREATE INDEX row_state ON molecule_connect.row (workspace_id, state, time) WHERE state <> '';
"""

# Each script brings the tables to the next version. Processes of an older release continue to use the tables, unless
# the script raises meta.oldest.
SCRIPTS: tuple[str, ...] = (TABLES,)

# Held while the tables are created or migrated. Any number that other programs are unlikely to use.
_LOCK = 0x6D6F6C65637565
_CREATE = "run: molecule journal init --journal URL"
_MIGRATE = "run: molecule journal migrate --journal URL"
_UPDATE = "update molecule-connect on this machine"


async def version(connection: Connection) -> tuple[int, int]:
    """The version of the tables, and the oldest version that a release must know to use them; zeros if missing."""
    found = await connection.execute("SELECT to_regclass('molecule_connect.meta')")
    if await found.fetchone() == (None,):
        return 0, 0
    return await _read(connection)


async def _read(connection: Connection) -> tuple[int, int]:
    row = await (await connection.execute("SELECT version, oldest FROM molecule_connect.meta")).fetchone()
    return (row[0], row[1]) if row else (0, 0)


async def check(connection: Connection, where: str, current: int) -> None:
    """Check that this release can use the tables.

    Raises:
        MirrorError: They are missing, or of another version.
    """
    try:
        found, oldest = await _read(connection)
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        found = oldest = 0
    if not found:
        raise MirrorError(f"the database {where} has no tables of molecule-connect", hint=_CREATE)
    if found < current:
        raise MirrorError(f"the tables in {where} are of version {found}, not {current}", hint=_MIGRATE)
    refuse_newer(where, oldest, current)


def refuse_newer(where: str, oldest: int, current: int) -> None:
    """Check that this release isn't too old for the tables."""
    if oldest > current:
        raise MirrorError(
            f"the tables in {where} were changed by a newer molecule-connect"
            f" (they need version {oldest}, this one has {current})",
            hint=_UPDATE,
        )


async def install(connection: Connection, where: str, scripts: Sequence[str]) -> Sequence[str]:
    """Create or migrate the tables in the transaction that *connection* is in. Returns what was done.

    Raises:
        MirrorError: They are of a newer version.
    """
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    before, oldest = await version(connection)
    refuse_newer(where, oldest, len(scripts))
    done = []
    schema = await connection.execute("SELECT to_regnamespace('molecule_connect')")
    if await schema.fetchone() == (None,):
        # CREATE SCHEMA IF NOT EXISTS needs the right to create one also if it exists.
        await connection.execute("CREATE SCHEMA molecule_connect")
        done.append("created the schema molecule_connect")
    for number, script in enumerate(scripts, 1):
        if number > before:
            await connection.execute(script.encode())
            await connection.execute("UPDATE molecule_connect.meta SET version=%s", [number])
            done.append(
                f"migrated the tables to version {number}" if before else f"created the tables, version {number}"
            )
    return done
