"""What an MCP host waits for: the server's first answer, and a message that is pushed."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from benchmarks.rig import Rig, Workspace, memory_mib, rig, wait_until

STARTS = 7
PUSHES = 60
# Longer than arrivals that come together are waited for.
PAUSE = 0.2
ABOUT = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}


def mcp() -> None:
    """How long ``molecule mcp`` takes to answer ``initialize``, and from a message that can be read to its push."""
    with rig() as sandbox:
        times = []
        for _ in range(STARTS):
            began = time.perf_counter()
            with _server(sandbox, sandbox.workspace()) as process:
                _initialize(process)
                times.append((time.perf_counter() - began) * 1000)
        print(f"mcp: start to initialize {statistics.median(times[1:]):.0f} ms")
        workspace = sandbox.workspace()
        with _server(sandbox, workspace) as process:
            _initialize(process)
            _write(process, {"method": "notifications/initialized"})
            wait_until(lambda: bool(sandbox.call("GET", f"/sandbox/workspaces/{workspace.id}/beats")), 30)
            latencies = sorted(_pushed(sandbox, workspace, process, number) for number in range(PUSHES))
            memory = memory_mib(process.pid)
        p50, p99 = statistics.median(latencies), latencies[int(PUSHES * 0.99) - 1]
        print(f"mcp: visible to push p50 {p50:.1f} ms, p99 {p99:.1f} ms; {memory:.0f} MiB")


@contextlib.contextmanager
def _server(sandbox: Rig, workspace: Workspace) -> "Iterator[subprocess.Popen[bytes]]":
    with tempfile.TemporaryDirectory() as folder:
        environ = {
            **os.environ,
            "PLATFORM_URL": sandbox.url,
            "WORKSPACE_ID": workspace.id,
            "MOLECULE_WORKSPACE_TOKEN": workspace.token,
            "MOLECULE_STATE_DIR": folder,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "molecule_connect", "mcp"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environ,
        )
        try:
            yield process
        finally:
            process.communicate()


def _initialize(process: "subprocess.Popen[bytes]") -> None:
    _write(process, {"id": 1, "method": "initialize", "params": ABOUT})
    _read(process)


def _pushed(sandbox: Rig, workspace: Workspace, process: "subprocess.Popen[bytes]", number: int) -> float:
    """Milliseconds from the row's time to the line."""
    time.sleep(PAUSE)
    sandbox.say(workspace, f"message {number}", None)
    told = _read(process)["params"]["meta"]["ts"]
    return (time.time() - datetime.fromisoformat(told).timestamp()) * 1000


def _write(process: "subprocess.Popen[bytes]", message: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
    process.stdin.flush()


def _read(process: "subprocess.Popen[bytes]") -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())
