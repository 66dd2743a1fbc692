"""One private server per process of the tests; an empty database per test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from molecule_connect_postgres import PostgresMirror
from molecule_connect_postgres.testing import Cluster, find_server

from .kit import Server


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if find_server() is None:
        pytest.skip("PostgreSQL isn't installed (Debian package: postgresql)")
    with Cluster.running() as running:
        yield running


@pytest.fixture
async def server(cluster: Cluster) -> AsyncIterator[Server]:
    """A new database with the tables."""
    server = Server(cluster, cluster.database())
    await server.mirror().install()
    yield server
    await server.aclose()


@pytest.fixture
def connect(server: Server) -> Callable[..., PostgresMirror]:
    return server.mirror


@pytest.fixture
def lapse(server: Server) -> Callable[[str], Awaitable[Any]]:
    async def lapse(session: str) -> None:
        await asyncio.to_thread(server.lapse, session)

    return lapse
