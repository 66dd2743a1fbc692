"""Real connectors: ``molecule connect`` as a process of its own, against a sandbox over loopback."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any, Self

from molecule_connect_sandbox.testing import Sandbox, Workspace

PROGRAM = [sys.executable, "-m", "molecule_connect"]


class Connector:
    """A ``molecule connect`` process inside ``async with``; it is stopped at the end of the block.

    Attributes:
        output: What it wrote to stderr, once it has ended.
    """

    def __init__(self, sandbox: Sandbox, workspace: Workspace, state: Path, *arguments: str, **environ: str) -> None:
        self._sandbox = sandbox
        self._workspace = workspace
        self._state = state
        self._arguments = arguments or ("--backend", "mock")
        self._environ = environ
        self.process: asyncio.subprocess.Process | None = None
        self.output = ""

    async def start(self) -> Self:
        """Start it; returns at once."""
        self.process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            "connect",
            self._workspace.id,
            *("--api-url", self._sandbox.url, "--state-dir", str(self._state)),
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**clean_environ(), "MOLECULE_WORKSPACE_TOKEN": self._workspace.token, **self._environ},
        )
        return self

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; its exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.ended()

    async def ended(self, seconds: float = 30) -> int:
        """Wait for the end; its exit code."""
        assert self.process is not None
        async with asyncio.timeout(seconds):
            out, err = await self.process.communicate()
        assert out == b""
        self.output += err.decode()
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


async def registered(sandbox: Sandbox, workspace: Workspace) -> None:
    """Wait until the workspace is online."""
    beats: list[dict[str, Any]] = await sandbox.beats(workspace, 1, timeout=20)
    assert beats
