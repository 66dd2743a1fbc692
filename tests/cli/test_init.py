"""``molecule init`` and ``connect --save``: afterwards, the commands need no flags."""

import asyncio
import os
import pty
import select
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from molecule_connect_sandbox.testing import Sandbox, Workspace

Molecule = Callable[..., Any]
PROGRAM = [sys.executable, "-m", "molecule_connect"]


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox.over_loopback() as sandbox:
        yield sandbox


@pytest.fixture
async def workspace(sandbox: Sandbox) -> Workspace:
    return await sandbox.workspace()


@pytest.fixture
def home(environ: dict[str, str]) -> Path:
    """The config home."""
    return Path(environ["HOME"]) / ".config" / "molecule"


@pytest.fixture
def initialize(molecule_process: Molecule, sandbox: Sandbox, workspace: Workspace, tmp_path: Path) -> Molecule:
    """Run ``molecule init`` for the workspace without a terminal."""
    file = tmp_path / "ws.token"
    file.write_text(workspace.token)
    file.chmod(0o600)

    async def run(*flags: str, **more: str) -> Any:
        given = (workspace.id, "--api-url", sandbox.url, "--token-file", str(file), "--backend", "parrot")
        return await asyncio.to_thread(molecule_process, "init", *given, *flags, **more)

    return run


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in folder.iterdir()}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def test_commands_need_no_flags_afterwards(
    initialize: Molecule, molecule_process: Molecule, home: Path, workspace: Workspace
) -> None:
    result = await initialize()

    assert result.code == 0, result.output
    assert "token accepted  ok" in result.stdout
    assert result.stdout.endswith("next: molecule connect\n")
    assert files(home) == ["config.toml", "token"]
    assert modes(home) == {0o600}
    assert workspace.token not in (home / "config.toml").read_text() + result.output
    assert (home / "token").read_text().strip() == workspace.token

    served = await asyncio.to_thread(molecule_process, "connect", "--once")
    doctor = await asyncio.to_thread(molecule_process, "doctor")
    status = await asyncio.to_thread(molecule_process, "status")
    messages = await asyncio.to_thread(molecule_process, "messages", "list")

    assert (served.code, doctor.code, messages.code) == (0, 0, 0), served.output + doctor.output + messages.output
    assert f"settings {home / 'config.toml'}" in served.stderr
    assert f"saved in {home / 'config.toml'}" in doctor.stdout
    assert status.stdout.startswith(f"{workspace.id}: ")


async def test_saved_file_works_as_a_list(initialize: Molecule, molecule_process: Molecule, home: Path) -> None:
    await initialize("--backend-opt", "suffix=?")

    served = await asyncio.to_thread(molecule_process, "connect", "--once", "--config", str(home / "config.toml"))

    assert served.code == 0, served.output


async def test_profiles_are_separate(
    initialize: Molecule, molecule_process: Molecule, sandbox: Sandbox, workspace: Workspace, home: Path
) -> None:
    other = await sandbox.workspace()
    await initialize()
    given = (other.id, "--api-url", sandbox.url, "--backend", "parrot", "--profile", "work")
    saved = await asyncio.to_thread(molecule_process, "init", *given, MOLECULE_WORKSPACE_TOKEN=other.token)

    assert saved.stdout.endswith("next: molecule connect --profile work\n")
    assert files(home) == ["config.toml", "profiles/work/config.toml", "profiles/work/token", "token"]
    for profile, name in (((), workspace.id), (("--profile", "work"), other.id)):
        served = await asyncio.to_thread(molecule_process, "connect", "--once", *profile)
        assert f"workspace {name}," in served.stderr
    both = await asyncio.to_thread(molecule_process, "status")
    one = await asyncio.to_thread(molecule_process, "status", "--profile", "work")
    by_variable = await asyncio.to_thread(molecule_process, "status", MOLECULE_PROFILE="work")
    assert (workspace.id in both.stdout, other.id in both.stdout) == (True, True)
    assert (workspace.id in one.stdout, other.id in one.stdout) == (False, True)
    assert one.stdout == by_variable.stdout


async def test_state_dir_is_saved(
    initialize: Molecule, molecule_process: Molecule, home: Path, tmp_path: Path, workspace: Workspace
) -> None:
    folder = tmp_path / "elsewhere"
    await initialize("--state-dir", str(folder))

    await asyncio.to_thread(molecule_process, "connect", "--once")
    status = await asyncio.to_thread(molecule_process, "status")
    listed = await asyncio.to_thread(molecule_process, "connect", "--once", "--config", str(home / "config.toml"))

    assert status.stdout.startswith(f"{workspace.id}: ")
    assert f"state {folder}" in listed.stderr
    assert not (home / "state").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--token-file", "{bad}"], "401"),
        (["--api-url", "http://127.0.0.1:1"], "cannot be reached"),
        (["--backend", "unready"], "no login"),
        (["--backend", "nosuch"], "no backend named 'nosuch'"),
    ],
    ids=["token", "address", "backend", "missing backend"],
)
async def test_failed_check_saves_nothing(
    initialize: Molecule, tmp_path: Path, home: Path, flags: list[str], words: str
) -> None:
    bad = tmp_path / "bad"
    bad.write_text("not-the-token-1234")
    bad.chmod(0o600)

    flags = [flag.format(bad=bad) for flag in flags]
    result = await initialize(*flags)

    assert result.code == 2
    assert words in result.stderr
    assert "nothing was saved" in result.stderr
    assert "--no-check" in result.stderr.splitlines()[-1]
    assert files(home) == []
    assert (await initialize(*flags, "--no-check")).code == 0
    assert files(home) == ["config.toml", "token"]


async def test_replaces_saved_settings_only_with_force(initialize: Molecule, home: Path, workspace: Workspace) -> None:
    await initialize()
    before = (home / "config.toml").read_bytes()

    refused = await initialize("--backend-opt", "suffix=?")
    assert refused.code == 2
    assert f"it is for workspace {workspace.id}" in refused.stderr
    assert "--force" in refused.stderr.splitlines()[-1]
    assert (home / "config.toml").read_bytes() == before

    assert (await initialize("--backend-opt", "suffix=?", "--force")).code == 0
    assert 'suffix = "?"' in (home / "config.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["WORKSPACE_ID", "--token-file", "--api-url", "--backend"]),
        (["ws_1"], ["--token-file", "MOLECULE_WORKSPACE_TOKEN"]),
        (["--token-file", "{file}", "--backend", "parrot"], ["WORKSPACE_ID", "--api-url"]),
        (["a/b", "--token-file", "{file}"], ["workspace id"]),
        (["ws_1", "--token-file", "/nowhere"], ["/nowhere"]),
        (["ws_1", "--token-file", "{file}", "--profile", "../x"], ["profile"]),
        (["ws_1", "--token-file", "{file}", "--api-url", "http://far.example"], ["--insecure"]),
    ],
)
def test_missing_or_wrong_value_is_named(
    molecule: Molecule, tmp_path: Path, home: Path, arguments: list[str], words: list[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("some-token-1234")
    file.chmod(0o600)

    result = molecule("init", *(argument.format(file=file) for argument in arguments))

    assert result.code == 2
    assert [word for word in words if word not in result.stderr] == []
    assert result.stderr.splitlines()[-1].startswith("what to do: ")
    assert not home.exists()


def test_token_of_several_lines_is_refused(molecule: Molecule, home: Path) -> None:
    result = molecule("init", "ws_1", "--no-check", MOLECULE_WORKSPACE_TOKEN='a-token-1\n[[workspace]]\nid = "x"')

    assert result.code == 2
    assert "MOLECULE_WORKSPACE_TOKEN" in result.stderr
    assert not home.exists()


def test_names_variables_that_take_precedence(molecule: Molecule, tmp_path: Path) -> None:
    given = {"MOLECULE_WORKSPACE_TOKEN": "some-token-1234", "MOLECULE_WORKSPACES": "[]", "WORKSPACE_ID": "ws_2"}

    result = molecule("init", "ws_1", "--no-check", **given)

    assert result.code == 0
    assert "MOLECULE_WORKSPACES is set" in result.stderr
    assert "WORKSPACE_ID is set to ws_2" in result.stderr


async def test_connect_saves_what_it_was_started_with(
    molecule_process: Molecule, sandbox: Sandbox, workspace: Workspace, home: Path
) -> None:
    given = (workspace.id, "--api-url", sandbox.url, "--backend", "parrot", "--grace", "7", "--profile", "work")
    token = {"MOLECULE_WORKSPACE_TOKEN": workspace.token}

    first = await asyncio.to_thread(molecule_process, "connect", *given, "--once", "--save", **token)
    again = await asyncio.to_thread(
        molecule_process, "connect", "--once", "--profile", "work", "--grace", "9", "--save"
    )

    assert (first.code, again.code) == (0, 0), first.output + again.output
    assert "'molecule connect --profile work' is enough" in first.stderr
    assert files(home / "profiles") == ["work/config.toml", "work/token"]
    text = (home / "profiles" / "work" / "config.toml").read_text()
    assert "grace = 9" in text
    assert "once" not in text
    assert workspace.token not in text


async def test_connect_saves_nothing_after_a_failed_check(
    molecule_process: Molecule, sandbox: Sandbox, workspace: Workspace, home: Path
) -> None:
    given = (workspace.id, "--api-url", sandbox.url, "--backend", "parrot", "--save")

    result = await asyncio.to_thread(molecule_process, "connect", *given, MOLECULE_WORKSPACE_TOKEN="not-the-token-1")

    assert result.code == 2
    assert "ERROR   token accepted: state: 401" in result.stderr
    assert files(home) == []
    assert await sandbox.beats(workspace) == []


async def test_connect_replaces_no_other_workspace(
    initialize: Molecule, molecule_process: Molecule, sandbox: Sandbox, home: Path
) -> None:
    await initialize()
    other = await sandbox.workspace()
    before = (home / "config.toml").read_bytes()
    given = (other.id, "--api-url", sandbox.url, "--backend", "parrot", "--save", "--once")

    result = await asyncio.to_thread(molecule_process, "connect", *given, MOLECULE_WORKSPACE_TOKEN=other.token)

    assert result.code == 2
    assert "--save --profile NAME" in result.stderr
    assert (home / "config.toml").read_bytes() == before


@pytest.mark.parametrize("flags", [["--dry-run"], ["--config", "{config}"]])
def test_save_needs_one_workspace_that_is_served(molecule: Molecule, tmp_path: Path, flags: list[str]) -> None:
    config = tmp_path / "list.toml"
    config.write_text('[[workspace]]\nid = "a"\ntoken = "some-token-1"\nbackend = "parrot"\n')
    config.chmod(0o600)
    one = {"WORKSPACE_ID": "ws_1", "MOLECULE_WORKSPACE_TOKEN": "some-token-1"}

    result = molecule(
        "connect", "--save", "--backend", "parrot", *(flag.format(config=config) for flag in flags), **one
    )

    assert result.code == 2
    assert "--save can't be combined with" in result.stderr


async def test_saved_token_is_not_sent_elsewhere(initialize: Molecule, molecule_process: Molecule) -> None:
    await initialize()

    for command in (("connect", "--once"), ("doctor",)):
        result = await asyncio.to_thread(molecule_process, *command, "--api-url", "http://127.0.0.1:1")
        assert "the saved token is for" in result.output
        assert "cannot be reached" not in result.output


def test_other_workspace_uses_no_saved_settings(molecule: Molecule) -> None:
    molecule("init", "ws_1", "--no-check", MOLECULE_WORKSPACE_TOKEN="some-token-1")

    connect, doctor = molecule("connect", "ws_other"), molecule("doctor", "ws_other")

    assert "no workspace token was given" in connect.stderr
    assert "and not used" in connect.stderr
    assert "and not used" in doctor.stdout
    assert "FAIL  no workspace token was given" in doctor.stdout


@pytest.mark.parametrize("command", ["connect", "doctor", "status", "messages list", "journal status"])
def test_exposed_settings_stop_every_command(molecule: Molecule, home: Path, command: str) -> None:
    saved = molecule("init", "ws_1", "--no-check", MOLECULE_WORKSPACE_TOKEN="some-token-1")
    assert saved.code == 0
    (home / "config.toml").chmod(0o666)

    result = molecule(*command.split())

    assert result.code != 0
    assert "open to others" in result.output
    assert "chmod 600" in result.output


class Terminal:
    """A ``molecule init`` on a terminal of its own."""

    def __init__(self, environ: dict[str, str], *arguments: str) -> None:
        self.output = ""
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.execve(PROGRAM[0], [*PROGRAM, "init", *arguments], {**environ, "TERM": "xterm"})

    def expect(self, words: str, *, seconds: float = 30) -> Self:
        """Wait until it has written *words* after the last ones."""
        while words not in self.output:
            ready, _, _ = select.select([self._descriptor], [], [], seconds)
            piece = self._read() if ready else ""
            assert piece, f"it never wrote {words!r}:\n{self.output}"
            self.output += piece
        self.output = self.output.partition(words)[2]
        return self

    def type(self, text: str) -> Self:
        os.write(self._descriptor, text.encode())
        return self

    def wait(self, *, typing: str = "") -> int:
        """Its exit code, or the negative number of the signal that killed it.

        Args:
            typing: Typed until it ends. Python misses a Ctrl-C just before it reads.
        """
        piece = " "
        while piece:
            if typing and not select.select([self._descriptor], [], [], 0.2)[0]:
                self.type(typing)
                continue
            piece = self._read()
            self.output += piece
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._descriptor)

    def _read(self) -> str:
        try:
            return os.read(self._descriptor, 1 << 16).decode()
        except OSError:  # the other side was closed
            return ""


@pytest.fixture
def terminal(environ: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str, **more: str) -> Terminal:
        opened.append(Terminal({**environ, **more}, *arguments))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


async def test_asks_on_a_terminal_and_lets_correct(
    terminal: Callable[..., Terminal], sandbox: Sandbox, workspace: Workspace, home: Path
) -> None:
    def talk() -> Terminal:
        it = terminal()
        it.expect("Address of the platform [http://localhost:8080]: ").type("no address\n")
        it.expect("is not an API address").expect("Address of the platform").type(f"{sandbox.url}\n")
        it.expect("Workspace id: ").type("a/b\n").expect("cannot be a workspace id")
        it.expect("Workspace id: ").type(f"{workspace.id}\n")
        it.expect("Workspace token (not shown): ").type("not-the-token-1\n")
        it.expect("Backend (broken, ").expect(": ").type("parot\n").expect("no backend named 'parot'")
        it.expect("Backend (broken, ").expect(": ").type("exec\n")
        it.expect("Option cmd (").expect(": ").type("cat\n")
        it.expect("401").expect("[correct]: ").type("\n")
        it.expect(f"[{sandbox.url}]: ").type("\n").expect(f"Workspace id [{workspace.id}]: ").type("\n")
        it.expect("Enter keeps it): ").type(f"{workspace.token}\n").expect("[exec]: ").type("\n")
        it.expect("[cat]: ").type("\n")
        return it.expect("next: molecule connect")

    it = await asyncio.to_thread(talk)

    assert it.wait() == 0
    assert workspace.token not in it.output
    assert (home / "token").read_text().strip() == workspace.token
    assert 'cmd = "cat"' in (home / "config.toml").read_text()


async def test_token_is_not_echoed(terminal: Callable[..., Terminal], workspace: Workspace) -> None:
    def talk() -> Terminal:
        it = terminal(workspace.id, "--api-url", "http://127.0.0.1:1", "--backend", "parrot")
        it.expect("(not shown): ").type("some-secret-token-1\n")
        return it.expect("[correct]: ").type("quit\n")

    it = await asyncio.to_thread(talk)

    assert it.wait() == 1
    assert "nothing was saved" in it.output
    assert "some-secret" not in it.output


@pytest.mark.parametrize("ending", ["ctrl-c", "ctrl-d", "kill", "hang-up"])
def test_interrupted_questions_write_nothing(terminal: Callable[..., Terminal], home: Path, ending: str) -> None:
    it = terminal("ws_1", "--api-url", "http://127.0.0.1:1", "--no-check")
    it.expect("(not shown): ").type("some-secret-token-1\n").expect("Backend (")

    if ending in ("ctrl-c", "ctrl-d"):
        # A second Ctrl-C may arrive while the interpreter exits.
        assert it.wait(typing={"ctrl-c": "\x03", "ctrl-d": "\x04"}[ending]) in (130, -signal.SIGINT)
    else:
        number = signal.SIGKILL if ending == "kill" else signal.SIGHUP
        os.kill(it.pid, number)
        assert it.wait() == -number
    assert not home.exists()


def test_asks_before_it_replaces_settings(terminal: Callable[..., Terminal], home: Path) -> None:
    given = ("ws_1", "--api-url", "http://127.0.0.1:1", "--backend", "parrot", "--no-check")
    token = {"MOLECULE_WORKSPACE_TOKEN": "some-token-1234"}
    assert terminal(*given, **token).wait() == 0
    before = (home / "config.toml").read_bytes()

    declined = terminal(*given, "--grace", "7", **token)
    declined.expect("Replace it? [y/N]: ").type("\n")
    assert declined.wait() == 1
    assert (home / "config.toml").read_bytes() == before

    accepted = terminal(*given, "--grace", "7", **token)
    accepted.expect("it is for workspace ws_1").expect("[y/N]: ").type("y\n")
    assert accepted.wait() == 0
    assert "grace = 7" in (home / "config.toml").read_text()
