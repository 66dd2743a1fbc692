"""Real connectors: ``molecule connect`` as a process of its own, against a sandbox over loopback."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from molecule_connect_sandbox.testing import Sandbox, Workspace

PROGRAM = [sys.executable, "-m", "molecule_connect"]
PIECE = 1 << 16


class Connector:
    """A ``molecule connect`` process inside ``async with``; it is stopped at the end of the block.

    Attributes:
        output: What it has written to stderr so far.
        program: The words that its command line begins with.
    """

    program = PROGRAM

    def __init__(self, sandbox: Sandbox, workspace: Workspace, state: Path, *arguments: str, **environ: str) -> None:
        arguments = arguments or ("--backend", "mock")
        token = {} if "--token-file" in arguments else {"MOLECULE_WORKSPACE_TOKEN": workspace.token}
        address = (workspace.id, "--api-url", sandbox.url, "--state-dir", str(state))
        self._prepare((*address, *arguments), {**token, **environ})

    @classmethod
    def of_a_list(cls, config: Path, state: Path, *arguments: str, **environ: str) -> Self:
        """One that serves the workspaces of a file."""
        connector = cls.__new__(cls)
        connector._prepare(("--config", str(config), "--state-dir", str(state), *arguments), environ)
        return connector

    def _prepare(self, arguments: tuple[str, ...], environ: dict[str, str]) -> None:
        self._arguments = arguments
        self._environ = {**clean_environ(), **environ}
        self._reading: asyncio.Task[None] | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.output = ""

    async def start(self) -> Self:
        """Start it; returns at once."""
        self.process = await asyncio.create_subprocess_exec(
            *self.program,
            "connect",
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environ,
        )
        self._reading = asyncio.get_running_loop().create_task(self._read())
        return self

    async def _read(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        while piece := await self.process.stderr.read(PIECE):
            self.output += piece.decode()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def says(self, words: str, *, since: int = 0, seconds: float = 30) -> None:
        """Wait until it has written *words*, *since* so many characters."""
        try:
            await until(lambda: words in self.output[since:], seconds)
        except TimeoutError:
            raise AssertionError(f"it never said {words!r}:\n{self.output[since:]}") from None

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; its exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.ended()

    async def ended(self, seconds: float = 30) -> int:
        """Wait for the end; its exit code."""
        assert self.process is not None
        assert self.process.stdout is not None
        assert self._reading is not None
        async with asyncio.timeout(seconds):
            out = await self.process.stdout.read()
            await self._reading
            await self.process.wait()
        assert out == b""
        assert self.process.returncode is not None
        return self.process.returncode

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        if self.process is not None and self.process.returncode is None:
            await self.stop()


def clean_environ() -> dict[str, str]:
    """The environment without what would steer a connector."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MOLECULE_", "WORKSPACE_"))}


def exec_options(command: str, **options: str) -> tuple[str, ...]:
    """The flags that answer with a shell command."""
    given = {"cmd": command, **options}
    words = [word for key, value in given.items() for word in ("--backend-opt", f"{key}={value}")]
    return ("--backend", "exec", *words)


@contextlib.contextmanager
def mounted(place: Path, size: str) -> Iterator[Path]:
    """A file system in memory, of *size* like "16m". Skips the test where nothing can be mounted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as exc:
        pytest.skip(f"nothing can be mounted here: {exc}")
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def registered(sandbox: Sandbox, workspace: Workspace) -> None:
    """Wait until the workspace is online."""
    beats: list[dict[str, Any]] = await sandbox.beats(workspace, 1)
    assert beats


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until *condition* holds; it is looked at twenty times a second."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - other processes make it true
            await asyncio.sleep(0.05)


async def asked(sandbox: Sandbox, path: str) -> int:
    """How many requests for a path that ends so have been answered or cut."""
    return sum(count for (_, asked), count in (await sandbox.requests()).items() if asked.endswith(path))


async def until_asked(sandbox: Sandbox, path: str, seconds: float = 30) -> None:
    """Wait until a request for a path that ends so has been answered or cut."""
    async with asyncio.timeout(seconds):
        while not await asked(sandbox, path):  # noqa: ASYNC110 - another process asks
            await asyncio.sleep(0.05)


def message_row(text: str, *, sender: Workspace | None = None, **message: Any) -> dict[str, Any]:
    """A row of a feed, for ``Sandbox.add_rows``: many messages in one moment, and ones that no platform would take."""
    parts = [{"kind": "text", "text": text}]
    told = {"role": "user", "messageId": str(uuid.uuid4()), "parts": parts, **message}
    body = {"jsonrpc": "2.0", "id": "1", "method": "message/send", "params": {"message": told}}
    return {"source_id": sender and sender.id, "method": "message/send", "request_body": body}
