"""``molecule backends``, ``molecule try``, and commands that plugins add."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from tests.plugins.distributions import write_distribution

from molecule_connect.cli.root import BUILT_IN, MoleculeGroup
from molecule_connect.cli.workspaces import or_another
from molecule_connect.errors import ConfigError
from molecule_connect.plugins import discovery

from .conftest import BACKENDS

Molecule = Callable[..., Any]


def test_backends_are_listed_without_loading_them(molecule: Molecule) -> None:
    result = molecule("backends")

    assert result.code == 0
    lines = result.stdout.splitlines()
    assert any(line.split() == ["parrot", "fake-good", "1.0"] for line in lines)
    assert any(line.split()[:3] == ["broken", "fake-broken", "1.0"] for line in lines)


def test_install_line_names_this_interpreter(molecule: Molecule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "installed_backends", lambda **given: ())

    assert molecule("backends").stdout == (
        "no backend that answers messages is installed; "
        f'to install one: {shlex.quote(sys.executable)} -m pip install "molecule-connect[mock]"\n'
    )


def test_check_imports_each_and_names_what_fails(molecule: Molecule) -> None:
    result = molecule("backends", "--check")

    assert result.code == 2
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert lines["parrot"].endswith("ok")
    assert "SystemExit" in lines["broken"]
    assert "broken" in result.stderr
    assert "what to do: " in result.stderr


def test_check_reports_entry_point_of_module(molecule: Molecule, plugins: Path) -> None:
    (plugins / "fake_whole.py").write_text("")
    write_distribution(plugins, "fake-whole", entry_points={"molecule_connect.backends": {"whole": "fake_whole"}})

    result = molecule("backends", "--check")

    (line,) = (line for line in result.stdout.splitlines() if line.startswith("whole "))
    assert "the entry point of backend whole names a module -> an entry point names an attrs class" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[molecule_connect.backends]\njust a line\n", "line 2 is not name = module:attribute"),
        (b"[molecule_connect.backends\nlost = m:x\n", "line 1 starts a group without a closing bracket"),
        (b"lost = m:x\n", "line 1 stands before any [group]"),
        (b"[molecule_connect.backends]\n\xff = m:x\n", "it is not UTF-8"),
    ],
)
def test_check_names_malformed_distribution(molecule: Molecule, plugins: Path, text: bytes, words: str) -> None:
    write_distribution(plugins, "fake-malformed", entry_points={})
    (plugins / "fake_malformed-1.0.dist-info" / "entry_points.txt").write_bytes(text)

    checked, listed = molecule("backends", "--check"), molecule("backends")

    assert checked.code == 2
    assert f"fake-malformed 1.0  entry_points.txt is malformed: {words}\n" in checked.stdout
    assert any(line.startswith("parrot ") and line.endswith("ok") for line in checked.stdout.splitlines())
    assert "broken; the entry points of fake-malformed are malformed" in checked.stderr
    assert (listed.code, "malformed" in listed.output) == (0, False)


FACTORIES = """
import attrs
from molecule_connect import Response, hookimpl

class Empty:
    pass

@attrs.frozen(eq=False, kw_only=True)
class Picky:
    key: str

    @hookimpl
    async def handle_a2a(self, request):
        return Response.silent()

class Late:
    def __init__(self, config):
        self.folder = config.state_dir

    @hookimpl
    async def handle_a2a(self, request):
        return Response.silent()

    @hookimpl
    def close(self):
        print("closed")

def empty(config):
    return Empty()

async def late(config):
    return Late(config)

def keyed(config):
    return Late(config) if config.require("key") else None
"""


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("parrot", 0, "parrot  fake-good 1.0  ok"),
        ("late", 0, "closed\nlate  fake-factories 1.0  ok"),
        ("picky", 0, "ok so far, but not created: backend picky needs the option 'key'"),
        ("keyed", 0, "ok so far, but not created: backend keyed needs the option 'key'"),
        ("empty", 2, "does not implement handle_a2a"),
        ("unready", 2, "unready is not ready: backend unready: no login"),
        ("broken", 2, "SystemExit"),
        ("nosuch", 2, "no backend named 'nosuch'"),
    ],
)
def test_check_makes_the_one_that_is_named(molecule: Molecule, plugins: Path, name: str, code: int, words: str) -> None:
    (plugins / "fake_factories.py").write_text(FACTORIES)
    targets = {one: f"fake_factories:{one}" for one in ("empty", "late", "keyed")} | {"picky": "fake_factories:Picky"}
    write_distribution(plugins, "fake-factories", entry_points={"molecule_connect.backends": targets})

    result = molecule("backends", name, "--check")

    assert result.code == code
    assert words in result.output
    assert ("what to do: " in result.stderr) is (code != 0)


def test_the_options_of_one_backend_are_shown(molecule: Molecule) -> None:
    result = molecule("backends", "parrot")

    assert result.code == 0
    for words in ("Repeat each message.", "suffix=", "text put after it", "[default: !]", "times=", "how often"):
        assert words in result.stdout


def test_unknown_backend_lists_installed_ones(molecule: Molecule) -> None:
    result = molecule("backends", "nosuch")

    assert result.code == 2
    assert "parrot" in result.stderr


def test_try_prints_the_answer_alone_on_stdout(molecule: Molecule) -> None:
    result = molecule("try", "parrot", "hello", "--backend-opt", "times=2")

    assert (result.code, result.stdout) == (0, "hello!hello!\n")
    assert result.stderr == "... repeating\n"


def test_try_reads_its_message_from_stdin(molecule: Molecule) -> None:
    assert molecule("try", "parrot", stdin="from a pipe").stdout == "from a pipe!\n"


def test_try_needs_text_without_stdin() -> None:
    result = subprocess.run(
        ["sh", "-c", 'exec "$0" -m molecule_connect try parrot <&-', sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 2
    assert result.stderr.startswith("error: no text to send\nwhat to do: ")


STUCK = """
import attrs
from molecule_connect import Response, hookimpl

@attrs.frozen(eq=False)
class Stuck:
    @hookimpl
    async def handle_a2a(self, request):
        return Response.from_text("answered")

    @hookimpl
    def close(self):
        raise RuntimeError("still open")
"""
PATIENT = """
import asyncio
import attrs
from molecule_connect import hookimpl

@attrs.frozen(eq=False)
class Patient:
    @hookimpl
    async def handle_a2a(self, request, progress):
        try:
            await progress("waiting")
            await asyncio.Event().wait()
        finally:
            print("stopped", flush=True)

    @hookimpl
    def close(self):
        print("closed", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_try_stops_backend_on_signal(environ: dict[str, str], plugins: Path, number: signal.Signals) -> None:
    (plugins / "fake_patient.py").write_text(PATIENT)
    write_distribution(
        plugins, "fake-patient", entry_points={"molecule_connect.backends": {"patient": "fake_patient:Patient"}}
    )
    command = [sys.executable, "-m", "molecule_connect", "try", "patient", "hello"]
    pipe = subprocess.PIPE

    with subprocess.Popen(command, env=environ, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "... waiting\n"
        process.send_signal(number)
        said, told = process.communicate(timeout=60)

    assert (said, told.strip(), process.returncode) == ("stopped\nclosed\n", "error: interrupted", 128 + number)


def test_try_prints_reply_despite_close_error(molecule: Molecule, plugins: Path) -> None:
    (plugins / "fake_stuck.py").write_text(STUCK)
    write_distribution(plugins, "fake-stuck", entry_points={"molecule_connect.backends": {"stuck": "fake_stuck:Stuck"}})

    result = molecule("try", "stuck", "hello")

    assert (result.code, result.stdout) == (1, "answered\n")
    assert "error: backend stuck could not be closed: RuntimeError: still open\nwhat to do: " in result.stderr


def test_try_says_what_a_failed_backend_said(molecule: Molecule) -> None:
    result = molecule("try", "parrot", "fail")

    assert (result.code, result.stdout) == (1, "")
    assert "error: the parrot is asleep\nwhat to do: " in result.stderr


def test_try_names_the_failing_line(molecule: Molecule, plugins: Path) -> None:
    result = molecule("try", "parrot", "crash")

    line = BACKENDS.splitlines().index('            raise RuntimeError("not a parrot")') + 1
    assert result.code == 1
    assert result.stderr.splitlines()[-2:] == [
        "error: RuntimeError: not a parrot",
        f"what to do: look at {plugins / 'fake_backends.py'}:{line}, where the backend raised it",
    ]
    assert "Traceback" not in result.stderr


def test_try_reports_an_unready_backend(molecule: Molecule) -> None:
    result = molecule("try", "unready", "hello")

    assert result.code == 2
    assert "no login" in result.stderr


def test_plugin_command_sets_exit_code(molecule: Molecule) -> None:
    assert molecule("dance").stdout == "dancing\n"
    assert molecule("dance", "--code", "5").code == 5


def test_built_in_command_wins_over_plugin(molecule: Molecule) -> None:
    assert "Serve a workspace" in molecule("connect", "--help").stdout


@pytest.mark.parametrize(("name", "words"), [("shatter", "SystemExit"), ("stone", "not a click command")])
def test_broken_plugin_command_fails_alone(molecule: Molecule, name: str, words: str) -> None:
    result = molecule(name)

    assert result.code == 2
    assert words in result.stderr
    assert "fake-broken 1.0" in result.stderr
    assert "what to do: " in result.stderr
    assert molecule("--help").code == 0


def test_unknown_command_suggests_the_nearest(molecule: Molecule) -> None:
    result = molecule("conect")

    assert result.code == 2
    assert "'connect'" in result.stderr
    assert "what to do: see 'molecule --help'" in result.stderr


class CoreAlone(MoleculeGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(BUILT_IN)


@pytest.mark.parametrize("name", ["mcp", "sandbox"])
def test_missing_command_has_install_hint(name: str) -> None:
    group = CoreAlone("molecule")
    with pytest.raises(ConfigError, match=f"'{name}' is not installed") as missing:
        group.resolve_command(click.Context(group), [name, "--check"])
    assert f'pip install "molecule-connect[{name}]"' in missing.value.hint


def test_inbox_is_not_suggested_as_backend() -> None:
    assert "--backend shout" in or_another(("inbox", "shout"))
    assert or_another(("inbox",)) == ""
