"""A database with mirrors, and transactions that stand still."""

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs
import psycopg

from molecule_connect_postgres import PostgresMirror
from molecule_connect_postgres.connections import Limits
from molecule_connect_postgres.mirror import AllLimits
from molecule_connect_postgres.testing import Cluster

# For tests in which the limit is reached.
SHORT = AllLimits(session=Limits(answer=0.5), ship=Limits(answer=0.5), load=Limits(answer=0.5))


@attrs.define(eq=False)
class Server:
    """A database of the cluster, and what is connected to it."""

    cluster: Cluster
    url: str
    _mirrors: list[PostgresMirror] = attrs.field(factory=list, init=False)
    _connections: list[psycopg.AsyncConnection[Any]] = attrs.field(factory=list, init=False)

    @property
    def database(self) -> str:
        return urlsplit(self.url).path[1:]

    def mirror(self, url: str = "", **options: Any) -> PostgresMirror:
        mirror = PostgresMirror(url or self.url, **options)
        self._mirrors.append(mirror)
        return mirror

    def execute(self, statement: str, values: Any = ()) -> list[Any]:
        return self.cluster.execute(statement, values, database=self.database)

    def lapse(self, session: str) -> None:
        """End the time of a session."""
        self.execute("UPDATE molecule_connect.member SET expires_at=clock_timestamp() WHERE session=%s", [session])

    async def transaction(self) -> "Transaction":
        """An open transaction, whose statements the test chooses."""
        connection = await psycopg.AsyncConnection.connect(self.url)
        self._connections.append(connection)
        return Transaction(connection)

    async def until_waiting(self, statement: str = "") -> None:
        """Wait until a connection waits for a lock."""
        query = (
            "SELECT pid FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE %s"
        )
        async with asyncio.timeout(30):
            pattern = [f"%{statement}%"]
            while not await asyncio.to_thread(self.execute, query, pattern):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def connections(self) -> int:
        """How many connections mirrors have to the database."""
        ((count,),) = self.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname=current_database() AND application_name='molecule-connect'"
        )
        return int(count)

    async def until_connections(self, count: int) -> None:
        async with asyncio.timeout(30):
            while await asyncio.to_thread(self.connections) != count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def aclose(self) -> None:
        for mirror in self._mirrors:
            await mirror.aclose()
        for connection in self._connections:
            await connection.close()


@attrs.frozen
class Transaction:
    _connection: psycopg.AsyncConnection[Any]

    async def run(self, statement: str, values: Mapping[str, Any]) -> list[Any]:
        cursor = await self._connection.execute(statement.encode(), values)
        return await cursor.fetchall() if cursor.description else []

    async def commit(self) -> None:
        await self._connection.commit()
