"""A sandbox and connectors as processes of their own, and what they cost."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

ADMIN = "bench-admin"
TICKS = os.sysconf("SC_CLK_TCK")


@attrs.frozen
class Workspace:
    """A workspace, and the token to serve it with."""

    id: str
    token: str = attrs.field(repr=False)


@attrs.define
class Rig:
    """A running sandbox and the connection to it."""

    url: str
    process: "subprocess.Popen[str]"

    def call(self, method: str, path: str, body: Any = None, token: str = ADMIN, **headers: str) -> Any:
        """One request; its JSON."""
        where = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=90)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent |= {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        answer = connection.getresponse()
        raw = answer.read()
        connection.close()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {raw[:200]!r}")
        return json.loads(raw) if raw else None

    def workspace(self, parent: Workspace | None = None) -> Workspace:
        """A new external workspace."""
        body = {"name": uuid.uuid4().hex, "tier": 1, "runtime": "external", "external": True, "delivery_mode": "poll"}
        if parent is not None:
            body["parent_id"] = parent.id
        made = self.call("POST", "/workspaces", body)
        return Workspace(made["id"], made["connection"]["auth_token"])

    def say(self, to: Workspace, text: str, sender: Workspace | None) -> str:
        """A peer, or a person, writes; the message's id."""
        message_id = str(uuid.uuid4())
        message = {"role": "user", "messageId": message_id, "parts": [{"kind": "text", "text": text}]}
        body = {"jsonrpc": "2.0", "id": "1", "method": "message/send", "params": {"message": message}}
        path = f"/workspaces/{to.id}/a2a"
        if sender is None:
            self.call("POST", path, body)
        else:
            self.call("POST", path, body, sender.token, X_Workspace_ID=sender.id)
        return message_id

    def write_at_once(self, to: Workspace, senders: list[Workspace], count: int) -> None:
        """*count* messages become readable in one moment."""
        rows = []
        for number in range(count):
            message = {
                "role": "user",
                "messageId": str(uuid.uuid4()),
                "parts": [{"kind": "text", "text": f"message {number}"}],
            }
            envelope = {"jsonrpc": "2.0", "id": "1", "method": "message/send", "params": {"message": message}}
            rows.append(
                {
                    "activity_type": "a2a_receive",
                    "source_id": senders[number % len(senders)].id,
                    "target_id": to.id,
                    "method": "message/send",
                    "request_body": envelope,
                }
            )
        self.call("POST", f"/sandbox/workspaces/{to.id}/rows", {"rows": rows})

    def answers(self, workspace: Workspace, count: int = 0) -> list[dict[str, Any]]:
        """What the workspace said; waits for *count*."""
        found: list[dict[str, Any]] = self.call(
            "GET", f"/sandbox/workspaces/{workspace.id}/answers?count={count}&timeout=60"
        )
        return found

    def requests(self) -> int:
        """Requests that were answered so far, without our own."""
        counts = self.call("GET", "/sandbox/requests")["requests"]
        return sum(int(entry[-1]) for entry in counts if not str(entry[1]).startswith("/sandbox"))

    def sent(self, path: str = "/a2a") -> int:
        """Requests for a path that ends so: messages and replies of peers, or with ``/notify`` replies to people."""
        counts = self.call("GET", "/sandbox/requests")["requests"]
        return sum(int(entry[-1]) for entry in counts if str(entry[1]).endswith(path))


@contextlib.contextmanager
def rig(*options: str) -> Iterator[Rig]:
    """A sandbox in a process of its own."""
    command = [sys.executable, "-m", "molecule_connect", "sandbox", "--serve", "--admin-token", ADMIN, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environ())
    try:
        if process.stdout is None:
            raise RuntimeError("the sandbox has no stdout")
        yield Rig(process.stdout.readline().strip(), process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def start_connector(
    sandbox: Rig, workspace: Workspace, state: Path, *options: str, **environment: str
) -> "subprocess.Popen[bytes]":
    """``molecule connect`` in a process of its own."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "molecule_connect", "connect", workspace.id, "--api-url", sandbox.url),
            *("--state-dir", str(state), *(options or ("--backend", "mock"))),
        ],
        env={**_environ(), **environment, "MOLECULE_WORKSPACE_TOKEN": workspace.token},
        stderr=subprocess.DEVNULL,
    )


def write_list(sandbox: Rig, workspaces: list[Workspace], folder: Path) -> Path:
    """A settings file with *workspaces*, answered by the mock backend."""
    config = folder / "fleet.toml"
    blocks = (f'[[workspace]]\nid = "{one.id}"\ntoken = "{one.token}"\n' for one in workspaces)
    config.touch(0o600)
    config.write_text(f'[defaults]\napi_url = "{sandbox.url}"\nbackend = "mock"\n' + "".join(blocks))
    return config


def start_list(config: Path, state: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """``molecule connect`` with the workspaces of a settings file, in a process of its own."""
    program = [sys.executable, "-m", "molecule_connect", "connect", "--config", str(config), "--log-format", "json"]
    return subprocess.Popen(
        [*program, "--state-dir", str(state)], env={**_environ(), **environment}, stderr=subprocess.DEVNULL
    )


@contextlib.contextmanager
def connector(
    sandbox: Rig, workspace: Workspace, *options: str, **environment: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """A connector that is online, until the block ends."""
    with tempfile.TemporaryDirectory() as state:
        process = start_connector(sandbox, workspace, Path(state), *options, **environment)
        try:
            sandbox.call("GET", f"/sandbox/workspaces/{workspace.id}/beats?count=1&timeout=30")
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(40)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mib(pid: int) -> float:
    """Resident memory of a process."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def wait_until(condition: Any, seconds: float) -> float:
    """Wait until *condition* holds; the seconds that it took."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > seconds:
            raise RuntimeError("it takes too long")
        time.sleep(0.05)
    return time.perf_counter() - began


def _environ() -> dict[str, str]:
    names = ("MOLECULE_", "WORKSPACE_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(names)}
