"""The tables: created, migrated, missing, older, newer."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.mirrors.contract import LONG, member

from molecule_connect.mirrors import MirrorError
from molecule_connect_postgres import schema
from molecule_connect_postgres.testing import Cluster

from .kit import Server

MORE = "ALTER TABLE molecule_connect.member ADD COLUMN color text; CREATE TABLE molecule_connect.more (a int);"
BREAKING = f"{MORE} UPDATE molecule_connect.meta SET oldest=2;"


@pytest.fixture
async def empty(cluster: Cluster) -> AsyncIterator[Server]:
    """A database without the tables."""
    server = Server(cluster, cluster.database())
    yield server
    await server.aclose()


@pytest.fixture
def owner(empty: Server) -> Iterator[str]:
    """A user without the right to create schemas."""
    name = f"owner_{empty.database}"
    empty.execute(f"CREATE USER {name} PASSWORD 'x'")
    yield name
    empty.execute(f"DROP OWNED BY {name}")
    empty.execute(f"DROP USER {name}")


async def test_missing_tables_are_described_and_named(empty: Server) -> None:
    mirror = empty.mirror()
    info = await mirror.describe()
    assert (info.schema, info.current, info.workspaces, info.size) == (0, len(schema.SCRIPTS), 0, 0)
    assert info.server.startswith("PostgreSQL ")
    with pytest.raises(MirrorError, match="has no tables") as caught:
        await mirror.begin(member(), seconds=LONG)
    assert "molecule journal init" in caught.value.hint
    assert not caught.value.may_heal


async def test_installation_says_what_it_did(empty: Server) -> None:
    mirror = empty.mirror()
    assert await mirror.install() == ["created the schema molecule_connect", "created the tables, version 1"]
    assert await mirror.install() == []
    assert await mirror.begin(member(), seconds=LONG)


async def test_two_installations_agree(empty: Server) -> None:
    done = await asyncio.gather(*(empty.mirror().install() for _ in range(4)))
    assert sorted(map(len, done)) == [0, 0, 0, 2]


async def test_older_tables_are_migrated(empty: Server) -> None:
    old, new = empty.mirror(), empty.mirror(scripts=(*schema.SCRIPTS, MORE))
    await old.install()
    session = await old.begin(member(), seconds=LONG)
    with pytest.raises(MirrorError, match="of version 1, not 2") as caught:
        await new.members()
    assert "molecule journal migrate" in caught.value.hint
    assert (await new.describe()).schema == 1
    assert await new.install() == ["migrated the tables to version 2"]
    assert [state.session for state in await new.members()] == [session]
    assert empty.execute("SELECT color FROM molecule_connect.member") == [(None,)]


async def test_older_release_works_after_a_migration(empty: Server) -> None:
    old, new = empty.mirror(), empty.mirror(scripts=(*schema.SCRIPTS, MORE))
    await new.install()
    session = await old.begin(member(), seconds=LONG)
    assert [state.session for state in await new.members()] == [session]
    assert await old.install() == []
    assert (await new.describe()).schema == 2


async def test_too_old_release_is_refused(empty: Server) -> None:
    old, new = empty.mirror(), empty.mirror(scripts=(*schema.SCRIPTS, BREAKING))
    await new.install()
    for call in (old.members, old.install):
        with pytest.raises(MirrorError, match="newer molecule-connect") as caught:
            await call()
        assert caught.value.hint.startswith("update molecule-connect")
    assert (await old.describe()).schema == 2


async def test_failed_migration_changes_nothing(empty: Server) -> None:
    await empty.mirror().install()
    with pytest.raises(MirrorError, match="nonsense"):
        await empty.mirror(scripts=(*schema.SCRIPTS, f"{MORE} SELECT nonsense;")).install()
    assert (await empty.mirror().describe()).schema == 1
    assert empty.execute("SELECT to_regclass('molecule_connect.more')") == [(None,)]


async def test_user_without_the_right_is_told(empty: Server, owner: str) -> None:
    mirror = empty.mirror(empty.cluster.url(empty.database, user=owner, password="x"))
    with pytest.raises(MirrorError, match="permission denied for database") as caught:
        await mirror.install()
    assert "CREATE SCHEMA molecule_connect AUTHORIZATION" in caught.value.hint


async def test_schema_of_an_administrator_is_used(empty: Server, owner: str) -> None:
    mirror = empty.mirror(empty.cluster.url(empty.database, user=owner, password="x"))
    empty.execute(f"CREATE SCHEMA molecule_connect AUTHORIZATION {owner}")
    assert await mirror.install() == ["created the tables, version 1"]
    assert await mirror.begin(member(), seconds=LONG)
