"""Observers in this process, and real connectors with ``--http``."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from molecule_connect.observers import ObserverConfig, ProcessState
from molecule_connect_observe import HttpObserver
from molecule_connect_sandbox.testing import Sandbox, Workspace

PROGRAM = [sys.executable, "-m", "molecule_connect"]


@attrs.define
class FakeProcess:
    """A process whose state is given."""

    now: ProcessState = attrs.field(factory=ProcessState)

    def state(self) -> ProcessState:
        return self.now

    async def snapshot(self) -> ProcessState:
        return self.now


@attrs.define
class Notes:
    """The lines that an observer showed."""

    lines: list[tuple[str, str, str]] = attrs.field(factory=list)

    def __call__(self, level: str, text: str, hint: str) -> None:
        self.lines.append((level, text, hint))

    @property
    def port(self) -> int:
        """The port that the observer listens on."""
        found = re.search(r":(\d+)/healthz", self.lines[-1][1])
        assert found
        return int(found[1])


@contextlib.asynccontextmanager
async def observing(
    process: FakeProcess, *, host: str = "127.0.0.1", port: int = 0, deadline: int = 10
) -> AsyncIterator[tuple[HttpObserver, Notes]]:
    """An observer that serves *process*."""
    notes = Notes()
    observer = HttpObserver(ObserverConfig(host=host, port=port, process=process, note=notes), deadline=deadline)
    await observer.start()
    try:
        yield observer, notes
    finally:
        await observer.close()


async def get(port: int, path: str, host: str = "127.0.0.1", method: str = "GET") -> tuple[int, str]:
    """Status and body of a response."""
    head, body = await ask(port, f"{method} {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode(), host)
    return int(head.split()[1]), body


async def until_ready(port: int, code: int = 200) -> dict[str, Any]:
    """Wait until ``/readyz`` has this status code; its content."""
    async with asyncio.timeout(30):
        while (answer := await get(port, "/readyz"))[0] != code:  # noqa: ASYNC110 - another process decides
            await asyncio.sleep(0.05)
    content: dict[str, Any] = json.loads(answer[1])
    return content


async def ask(port: int, request: bytes, host: str = "127.0.0.1") -> tuple[str, str]:
    """Head and body of the response to *request*, whose connection the server closes."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return head, body


def promtool(*arguments: str, given: str = "") -> tuple[int, str]:
    """Run Prometheus's tool: its exit code and its output. Skips the test if it isn't installed."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt install prometheus")
    done = subprocess.run([program, *arguments], input=given, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Connector:
    """A ``molecule connect`` process inside ``async with``.

    Attributes:
        output: What it has written to stderr so far.
    """

    def __init__(self, *arguments: str, http: str = "127.0.0.1:0", **environ: str) -> None:
        ours = ("MOLECULE_", "WORKSPACE_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self._arguments = (*arguments, "--http", http) if http else arguments
        self._environ = {**inherited, **environ}
        self.output = ""

    @classmethod
    def of(cls, sandbox: Sandbox, workspace: Workspace, state: Path, *arguments: str, **options: str) -> "Connector":
        """One that serves *workspace*."""
        place = (workspace.id, "--api-url", sandbox.url, "--state-dir", str(state), *arguments)
        return cls(*place, **{"MOLECULE_WORKSPACE_TOKEN": workspace.token, **options})

    async def __aenter__(self) -> "Connector":
        self.process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            "connect",
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=self._environ,
        )
        self._reading = asyncio.get_running_loop().create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        await self.ended()

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.output += line.decode()

    def reload(self) -> None:
        """Have it read its list again."""
        self.process.send_signal(signal.SIGHUP)

    async def stop(self) -> int:
        """Stop it; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(30):
            await self._reading
            return await self.process.wait()

    async def port(self) -> int:
        """The port that it listens on."""
        return int((await self.says(r"http://\S+?:(\d+)/healthz"))[1])

    async def says(self, pattern: str) -> "re.Match[str]":
        """Wait until it has written something that matches *pattern*."""
        async with asyncio.timeout(30):
            while not (found := re.search(pattern, self.output)):  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.05)
        return found
