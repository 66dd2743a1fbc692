"""A connector as a service: what it reports to its manager, and ``molecule service`` with recording programs."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from molecule_connect_sandbox.testing import Sandbox

from .kit import PROGRAM, Connector, clean_environ
from .test_many import block, write

ECHO_SOCKET = 'options = {cmd = "cat; echo \\" socket=$NOTIFY_SOCKET$WATCHDOG_USEC\\""}'


@attrs.define
class Manager:
    """Receives notifications like systemd."""

    socket: socket.socket
    path: str

    async def until(self, line: str) -> list[str]:
        """The notification with *line*; earlier ones are dropped."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30):
            while line not in (found := (await loop.sock_recv(self.socket, 4096)).decode().split("\n")):
                pass
        return found


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        yield Manager(receiver, str(tmp_path / "notify"))


async def reload(connector: Connector, state: Path) -> tuple[int, str]:
    """What ``ExecReload=`` of the unit runs."""
    assert connector.process is not None
    arguments = ("service", "reload", "--pid", str(connector.process.pid), "--state-dir", str(state))
    pipe = asyncio.subprocess.PIPE
    helper = await asyncio.create_subprocess_exec(*PROGRAM, *arguments, env=clean_environ(), stderr=pipe)
    _, error = await helper.communicate()
    assert helper.returncode is not None
    return helper.returncode, error.decode()


async def test_reports_to_the_service_manager(tmp_path: Path, manager: Manager) -> None:
    config, state = tmp_path / "fleet.toml", tmp_path / "state"
    variables = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "2000000"}
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        good = block(workspace, sandbox.url, 'backend = "exec"', ECHO_SOCKET)
        write(config, good)
        async with Connector.of_a_list(config, state, **variables) as connector:
            assert await manager.until("READY=1") == ["READY=1", f"STATUS=serving {workspace.id}"]
            await manager.until("WATCHDOG=1")
            # The backend's programs don't report to the manager.
            await sandbox.say(workspace, "hello")
            assert [answer.text for answer in await sandbox.answers(workspace, 1)] == ["hello socket="]
            assert await connector.stop() == 0
            await manager.until("STOPPING=1")


async def test_a_refused_list_fails_the_reload(tmp_path: Path, manager: Manager) -> None:
    config, state = tmp_path / "fleet.toml", tmp_path / "state"
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        write(config, block(workspace, sandbox.url))
        async with Connector.of_a_list(config, state, NOTIFY_SOCKET=manager.path) as connector:
            await manager.until("READY=1")
            assert await reload(connector, state) == (0, "")
            assert (await manager.until("READY=1"))[1] == f"STATUS=serving {workspace.id}"

            config.write_text("not toml")
            code, error = await reload(connector, state)
            assert code == 2
            assert "it is not TOML" in error
            await manager.until("RELOADING=1")
            status = (await manager.until("READY=1"))[1]
            assert status.startswith("STATUS=reload refused: it is not TOML")
            assert status.endswith(f"; serving {workspace.id}")

            # Other blocks are applied, but the reload still fails.
            write(config, block(workspace, sandbox.url), '[[workspace]]\nid = "a b"\n')
            code, error = await reload(connector, state)
            assert code == 2
            assert "workspace 2" in error

            write(config, block(workspace, sandbox.url))
            assert await reload(connector, state) == (0, "")
            assert await connector.stop() == 0
    assert [path.name for path in state.glob("*.reload")] == []


# The command line


@attrs.define
class Shell:
    """Runs ``molecule`` with programs of systemd that record how they were called."""

    home: Path
    environ: dict[str, str]

    def molecule(self, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "molecule_connect", *arguments],
            cwd=self.home,
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def calls(self) -> list[str]:
        return (self.home / "calls").read_text().splitlines()

    def save(self) -> Path:
        folder = self.home / ".config/molecule"
        folder.mkdir(parents=True)
        for name, text in (
            ("token", "tok-1234567"),
            ("config.toml", '[[workspace]]\nid = "ws_1"\ntoken_file = "token"\nbackend = "mock"\n'),
        ):
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(text)
        return folder / "config.toml"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("systemctl", "loginctl", "journalctl"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "$HOME/calls"\n')
        (programs / name).chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    path = f"{programs}:{os.environ['PATH']}"
    return Shell(home, {"PATH": path, "HOME": str(home), "LC_ALL": "C.UTF-8", "XDG_RUNTIME_DIR": str(tmp_path)})


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="units of systemd")


@linux_only
def test_installs_and_removes_a_service(shell: Shell) -> None:
    config = shell.save()
    installed = shell.molecule("service", "install")
    unit = shell.home / ".config/systemd/user/molecule-connect.service"
    assert (installed.returncode, installed.stderr) == (0, "")
    assert f"ExecStart={sys.executable} -P -m molecule_connect connect --config {config} " in installed.stdout
    assert unit.read_text().splitlines()[0] in installed.stdout
    assert "loginctl enable-linger" in installed.stdout
    assert "systemctl --user enable molecule-connect.service" in shell.calls
    assert "systemctl --user restart molecule-connect.service" in shell.calls
    if shutil.which("systemd-analyze"):
        verify = ["systemd-analyze", "--user", "verify", str(unit)]
        assert subprocess.run(verify, env=shell.environ, capture_output=True, timeout=60).returncode == 0

    assert shell.molecule("service", "stop").stdout == "molecule-connect is stopped\n"
    assert shell.molecule("service", "start").stdout == "molecule-connect is running\n"
    status = shell.molecule("service", "status")
    assert status.returncode == 1
    assert "no connector runs" in status.stdout
    assert shell.molecule("service", "logs", "-f", "-n", "7", "--since", "today").returncode == 0
    assert shell.calls[-1] == "journalctl --user -u molecule-connect.service -n 7 -f --since today"

    removed = shell.molecule("service", "uninstall")
    assert removed.returncode == 0
    assert not unit.exists()
    assert config.exists()
    assert "kept: " in removed.stdout
    again = shell.molecule("service", "uninstall")
    assert again.returncode == 2
    assert "there is no service molecule-connect" in again.stderr


@linux_only
def test_refuses_what_breaks_at_a_reboot(shell: Shell) -> None:
    variables = {"MOLECULE_WORKSPACE_TOKEN": "tok-7654321", "WORKSPACE_ID": "ws_1"}
    refused = shell.molecule("service", "install", **variables)
    assert refused.returncode == 2
    assert "MOLECULE_WORKSPACE_TOKEN" in refused.stderr
    assert "molecule init" in refused.stderr
    assert "tok-7654321" not in refused.stdout + refused.stderr
    config = shell.save()
    config.write_text(config.read_text() + 'options = {reply = "./relative"}\n')
    refused = shell.molecule("service", "install")
    assert refused.returncode == 2
    assert "relative" in refused.stderr
    assert not (shell.home / ".config/systemd").exists()


@linux_only
@pytest.mark.parametrize("command", ["start", "stop", "status", "logs", "reload", "uninstall"])
def test_commands_without_a_service_name_install(shell: Shell, command: str) -> None:
    done = shell.molecule("service", command)
    assert done.returncode == 2
    assert "there is no service molecule-connect" in done.stderr
    assert "molecule service install" in done.stderr
