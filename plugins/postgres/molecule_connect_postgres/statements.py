"""The SQL of sessions, leases and copies. All times are by the clock of the database.

A request can reach the server after its connection was given up, and after requests that were sent later. Therefore
those that must not be carried out late have a number (``turn``) that grows, and only the highest is obeyed.

Transactions that wait for locks take those of sessions before those of leases, and leases by id, so that they don't
deadlock. Taking leases waits for none: a transaction of another process may hold one for seconds.
"""

# ruff: noqa: S608 - composed of constants

BEGIN = """
INSERT INTO molecule_connect.member (session, host, pid, machine, capacity, listing, expires_at)
VALUES (%(session)s, %(host)s, %(pid)s, %(machine)s, %(capacity)s, %(listing)s,
    clock_timestamp() + make_interval(secs => %(seconds)s))
"""

# Of processes that were killed. Those with leases are still needed to see who had them.
REMOVE_MEMBERS = """
DELETE FROM molecule_connect.member WHERE session IN (
    SELECT session FROM molecule_connect.member AS m
    WHERE expires_at < clock_timestamp() - interval '1 hour'
        AND NOT EXISTS (SELECT FROM molecule_connect.lease AS l WHERE l.session = m.session)
    ORDER BY session FOR UPDATE SKIP LOCKED)
"""

TURN = "UPDATE molecule_connect.member SET turn=%(turn)s WHERE session = %(session)s AND turn < %(turn)s"

_IS_TURN = "EXISTS (SELECT FROM molecule_connect.member WHERE session = %(session)s AND turn = %(turn)s)"

# The leases are read after the commit: those that were taken until then are gone, and others can't be taken any more.
RENEW = """
UPDATE molecule_connect.member
SET host=%(host)s, pid=%(pid)s, machine=%(machine)s, capacity=%(capacity)s, listing=%(listing)s,
    held=(SELECT count(*) FROM molecule_connect.lease AS l WHERE l.session = %(session)s),
    expires_at=clock_timestamp() + make_interval(secs => %(seconds)s), turn=greatest(turn, %(turn)s)
WHERE session = %(session)s RETURNING session
"""

LEASES = "SELECT workspace_id, epoch, commits FROM molecule_connect.lease WHERE session = %(session)s"

RELEASE_ALL = """
UPDATE molecule_connect.lease SET session=NULL, since=clock_timestamp() WHERE workspace_id IN (
    SELECT workspace_id FROM molecule_connect.lease WHERE session = %(session)s
    ORDER BY workspace_id FOR NO KEY UPDATE)
"""

RELEASE = f"""
UPDATE molecule_connect.lease SET session=NULL, since=clock_timestamp() WHERE workspace_id IN (
    SELECT workspace_id FROM molecule_connect.lease
    WHERE session = %(session)s AND workspace_id = ANY(%(ids)s::text[]) AND {_IS_TURN}
    ORDER BY workspace_id FOR NO KEY UPDATE)
"""

END = "DELETE FROM molecule_connect.member WHERE session = %(session)s"

MEMBERS = """
SELECT session, held, extract(epoch FROM since)::float8, host, pid, machine, capacity, listing
FROM molecule_connect.member WHERE expires_at > clock_timestamp()
"""

ADD = """
INSERT INTO molecule_connect.lease (workspace_id) SELECT unnest(%(ids)s::text[]) ON CONFLICT DO NOTHING
"""

# Both ranges are read in the order of an index, so that a look reads no more than the limit of many free leases.
FREE = """
(SELECT workspace_id FROM molecule_connect.lease WHERE session IS NULL AND workspace_id >= %(near)s
ORDER BY workspace_id LIMIT %(limit)s)
UNION ALL
(SELECT workspace_id FROM molecule_connect.lease WHERE session IS NULL AND workspace_id < %(near)s
ORDER BY workspace_id LIMIT %(limit)s)
"""

FREE_OR_EXPIRED = f"""
(SELECT workspace_id FROM molecule_connect.member JOIN molecule_connect.lease USING (session)
WHERE expires_at <= clock_timestamp() LIMIT %(limit)s)
UNION ALL
{FREE}
"""

# A session that ended is locked until the commit, and can't be renewed before. One that is being renewed is skipped. A
# row that changed since the statement began is tested again under its lock.
TAKE = """
WITH own AS MATERIALIZED (
    SELECT session FROM molecule_connect.member
    WHERE session = %(session)s AND expires_at > clock_timestamp() FOR SHARE SKIP LOCKED
), released AS MATERIALIZED (
    SELECT workspace_id FROM molecule_connect.lease WHERE session IS NULL AND workspace_id = ANY(%(ids)s::text[])
    FOR NO KEY UPDATE SKIP LOCKED
), expired AS MATERIALIZED (
    SELECT workspace_id FROM molecule_connect.lease AS l JOIN molecule_connect.member AS m USING (session)
    WHERE workspace_id = ANY(%(ids)s::text[]) AND expires_at <= clock_timestamp()
    FOR SHARE OF m SKIP LOCKED FOR NO KEY UPDATE OF l SKIP LOCKED
)
UPDATE molecule_connect.lease AS l SET session=own.session, epoch=epoch+1, since=clock_timestamp(), turn=0
FROM own, (SELECT workspace_id FROM released UNION ALL SELECT workspace_id FROM expired) AS free
WHERE l.workspace_id = free.workspace_id
RETURNING l.workspace_id, epoch, commits
"""

_FENCED = """
    SELECT l.workspace_id FROM unnest(%(names)s::text[], %(epochs)s::bigint[]) AS held (workspace_id, epoch)
    JOIN molecule_connect.lease AS l USING (workspace_id, epoch) WHERE session = %(session)s
"""

# Until the commit, nobody can take these leases.
FENCE = f"""
UPDATE molecule_connect.lease SET commits=commits+1, changed=clock_timestamp(), turn=%(turn)s
WHERE workspace_id IN ({_FENCED} AND turn < %(turn)s ORDER BY workspace_id FOR NO KEY UPDATE OF l)
RETURNING workspace_id, commits
"""

_SHORT = "CASE WHEN octet_length(key) > 1000 THEN substr(key, 1, 1000) || sha256(key) ELSE key END"
_LONG = "CASE WHEN octet_length(key) > 1000 THEN key END"

_COLUMNS = (
    "%(ids)b::text[], %(tables)b::text[], %(keys)b::bytea[], %(data)b::bytea[], %(bodies)b::bytea[],"
    " %(states)b::text[], %(times)b::bigint[]"
)


def _upsert(fenced: str) -> str:
    # Without a body, the stored one stays as it is.
    return f"""
INSERT INTO molecule_connect.row AS stored (workspace_id, tbl, key, long_key, data, body, state, time)
SELECT workspace_id, tbl, {_SHORT}, {_LONG}, data, body, state, time
FROM unnest({_COLUMNS}) AS new (workspace_id, tbl, key, data, body, state, time)
WHERE workspace_id IN ({fenced})
ON CONFLICT (workspace_id, tbl, key) DO UPDATE
SET data=excluded.data, body=coalesce(excluded.body, stored.body), state=excluded.state, time=excluded.time
"""


UPSERT = _upsert(f"{_FENCED} AND turn = %(turn)s")

# In one statement, which the server plans faster than two.
FENCE_AND_UPSERT = f"""
WITH fenced AS ({FENCE}), upserted AS ({_upsert("SELECT workspace_id FROM fenced")})
SELECT workspace_id, commits FROM fenced
"""

# Always a statement of its own: it must see the rows of a transaction that the fence has waited for.
REMOVE = f"""
DELETE FROM molecule_connect.row AS stored USING (
    SELECT workspace_id, tbl, {_SHORT} AS key
    FROM unnest(%(ids)b::text[], %(tables)b::text[], %(keys)b::bytea[]) AS old (workspace_id, tbl, key)
    WHERE workspace_id IN ({_FENCED} AND turn = %(turn)s)) AS old
WHERE (stored.workspace_id, stored.tbl, stored.key) = (old.workspace_id, old.tbl, old.key)
"""

LOAD = """
SELECT tbl, coalesce(long_key, key), data, body, state, time FROM molecule_connect.row WHERE workspace_id = %s
ORDER BY tbl, time, key
"""

SIZES = """
SELECT (SELECT count(*) FROM molecule_connect.lease),
    (SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
     WHERE relkind = 'r' AND relnamespace = 'molecule_connect'::regnamespace)
"""

OVERVIEW = """
SELECT workspace_id, l.session, expires_at > clock_timestamp(), extract(epoch FROM l.since)::float8,
    extract(epoch FROM changed)::float8, states, oldest / 1e6::float8, host, pid, machine, capacity, listing
FROM molecule_connect.lease AS l LEFT JOIN molecule_connect.member AS m USING (session) CROSS JOIN LATERAL (
    SELECT json_object_agg(state, rows) AS states, min(oldest) AS oldest FROM (
        SELECT state, count(*) AS rows, min(time) FILTER (WHERE state NOT IN ('done', 'dead')) AS oldest
        FROM molecule_connect.row AS r WHERE r.workspace_id = l.workspace_id AND state <> '' GROUP BY state) AS by_state
    ) AS messages
WHERE %(ids)s::text[] IS NULL OR workspace_id = ANY(%(ids)s::text[])
ORDER BY workspace_id
"""

LOCK_LEASE = "SELECT session FROM molecule_connect.lease WHERE workspace_id = %s FOR UPDATE"

DELETE_ROWS = "DELETE FROM molecule_connect.row WHERE workspace_id = %s"

DELETE_LEASE = "DELETE FROM molecule_connect.lease WHERE workspace_id = %s"
