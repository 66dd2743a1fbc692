"""What the operator reads when the database can't be used, and that it contains no password."""

import traceback
from collections.abc import Iterator

import pytest
from tests.mirrors.contract import LONG, member, message, shipped, taken

from molecule_connect.mirrors import MirrorError, MirrorUnreachableError
from molecule_connect_postgres import PostgresMirror
from molecule_connect_postgres.testing import PASSWORD, SUPERUSER, Cluster

from .kit import Server

SECRET = "hunter2"


def shown(error: BaseException) -> str:
    """All that a log could contain of *error*."""
    return "".join(traceback.format_exception(error)) + repr(error) + getattr(error, "hint", "")


async def refused(mirror: PostgresMirror) -> MirrorError:
    with pytest.raises(MirrorError) as caught:
        await mirror.members()
    assert "\n" not in str(caught.value)
    assert SECRET not in shown(caught.value) + repr(mirror) + mirror.where
    return caught.value


@pytest.fixture
def reader(server: Server) -> Iterator[str]:
    """A user without any rights; its password is SECRET."""
    name = f"reader_{server.database}"
    server.execute(f"CREATE USER {name} PASSWORD '{SECRET}'")
    yield name
    server.execute(f"DROP OWNED BY {name}")
    server.execute(f"DROP USER {name}")


async def test_missing_server_may_come_back(server: Server) -> None:
    error = await refused(server.mirror(f"postgresql://u:{SECRET}@127.0.0.1:1/db"))
    assert isinstance(error, MirrorUnreachableError)
    assert str(error).startswith("the database 127.0.0.1:1/db can't be reached: ")
    assert "refused" in str(error)


async def test_unknown_host_is_unreachable(server: Server) -> None:
    error = await refused(server.mirror(f"postgresql://u:{SECRET}@nowhere.invalid/db"))
    assert isinstance(error, MirrorUnreachableError)
    assert "nowhere.invalid:5432/db" in str(error)


async def test_wrong_password_is_refused(cluster: Cluster, server: Server) -> None:
    error = await refused(server.mirror(cluster.url(server.database, password=SECRET)))
    assert not error.may_heal
    assert "password authentication failed" in str(error)
    assert "~/.pgpass" in error.hint


async def test_unknown_user_is_refused(cluster: Cluster, server: Server) -> None:
    error = await refused(server.mirror(cluster.url(server.database, user="nobody_here", password=SECRET)))
    # PostgreSQL doesn't tell strangers which users exist.
    assert not error.may_heal
    assert "password authentication failed" in str(error)


async def test_unknown_database_is_refused(cluster: Cluster, server: Server) -> None:
    error = await refused(server.mirror(cluster.url("missing")))
    assert not error.may_heal
    assert 'database "missing" does not exist' in str(error)
    assert "createdb" in error.hint


async def test_missing_rights_are_named(cluster: Cluster, server: Server, reader: str) -> None:
    error = await refused(server.mirror(cluster.url(server.database, user=reader, password=SECRET)))
    assert not error.may_heal
    assert "permission denied for schema molecule_connect" in str(error)
    assert "grant its rights" in error.hint


async def test_read_only_server_is_named(server: Server) -> None:
    server.execute(f"ALTER DATABASE {server.database} SET default_transaction_read_only = on")
    error = await refused(server.mirror())
    assert isinstance(error, MirrorUnreachableError)
    assert str(error) == f"the database {server.mirror().where} is read-only"
    assert "primary" in error.hint

    mirror = server.mirror(f"{server.url}?target_session_attrs=any")
    with pytest.raises(MirrorUnreachableError, match="read-only"):
        await mirror.begin(member(), seconds=LONG)


async def test_server_without_tls_is_named(server: Server) -> None:
    error = await refused(server.mirror(f"{server.url}?sslmode=require"))
    assert not error.may_heal
    assert "SSL" in str(error)
    assert "sslmode" in error.hint


async def test_too_many_connections_may_end(cluster: Cluster, server: Server, reader: str) -> None:
    server.execute(f"ALTER USER {reader} CONNECTION LIMIT 0")
    error = await refused(server.mirror(cluster.url(server.database, user=reader, password=SECRET)))
    assert isinstance(error, MirrorUnreachableError)
    assert "too many connections" in str(error)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:%zz{SECRET}@h/db",
        f"postgresql://u:x@{SECRET}@h/db",
        f"postgresql://u:{SECRET}/x@h/db",
        f"postgresql://u:x/{SECRET}@h/db",
        f"postgresql://h/db?passwort={SECRET}",
        f"postgresql://h:{SECRET}/db",
    ],
)
def test_malformed_url_is_not_shown(url: str) -> None:
    with pytest.raises(MirrorError, match="malformed") as caught:
        PostgresMirror(url)
    assert SECRET not in shown(caught.value)
    assert "~/.pgpass" in caught.value.hint


@pytest.mark.parametrize(
    ("url", "where"),
    [
        (f"postgresql://u:{SECRET}@db.example.com/molecule", "db.example.com:5432/molecule"),
        (f"postgres://u:{SECRET}@a:1,b:2/molecule?password={SECRET}", "a,b:1,2/molecule"),
        (f"postgresql:///molecule?host=/run/postgresql&password={SECRET}", "/run/postgresql:5432/molecule"),
        ("postgresql://?service=production", "service production"),
    ],
)
def test_where_names_host_port_and_database(url: str, where: str) -> None:
    mirror = PostgresMirror(url)
    assert mirror.where.startswith(where)
    assert SECRET not in repr(mirror) + repr(vars(mirror)) + mirror.where


async def test_removed_tables_are_named(server: Server) -> None:
    mirror = server.mirror()
    session = await taken(mirror, "ws_1")
    await shipped(mirror, session, 1, {"ws_1": [message("a")]})
    server.execute("DROP SCHEMA molecule_connect CASCADE")
    with pytest.raises(MirrorError, match="were removed") as caught:
        await shipped(mirror, session, 1, {"ws_1": [message("a")]})
    assert not caught.value.may_heal
    with pytest.raises(MirrorError, match="has no tables"):
        await shipped(mirror, session, 1, {"ws_1": [message("a")]})


async def test_text_that_postgresql_cannot_store_is_refused(server: Server) -> None:
    mirror = server.mirror()
    with pytest.raises(MirrorError, match="NUL"):
        await mirror.add(["ws\0"])
    assert await mirror.members() == []


def test_kit_connects_as_superuser(cluster: Cluster) -> None:
    assert cluster.execute("SELECT current_user") == [(SUPERUSER,)]
    assert PASSWORD in cluster.url("db")
