"""A molecule of its own process, with plugins that exist only there."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner
from tests.plugins.distributions import write_distribution

from molecule_connect.cli.root import cli

PROGRAM = "import sys; sys.argv[0] = 'molecule'; from molecule_connect.cli import main; main()"
TOKEN = "tok_Zx81-secret-value"

BACKENDS = '''
from typing import Annotated
import attrs
from molecule_connect import BackendError, Response, hookimpl

@attrs.frozen(eq=False, kw_only=True)
class Parrot:
    """Repeat each ``message``."""

    suffix: Annotated[str, "text put after it"] = "!"
    times: Annotated[int, "how often"] = 1

    @hookimpl
    async def handle_a2a(self, request, progress):
        await progress("repeating")
        if request.text == "fail":
            raise BackendError("the parrot is asleep")
        if request.text == "crash":
            raise RuntimeError("not a parrot")
        return Response.from_text((request.text + self.suffix) * self.times)

@attrs.frozen(eq=False)
class Unready:
    @hookimpl
    def check(self):
        return ["no login"]

    @hookimpl
    def describe(self):
        yield "unready may: do nothing"

    @hookimpl
    async def handle_a2a(self, request):
        return Response.silent()
'''
COMMANDS = '''
import click

@click.command()
@click.option("--code", type=int, default=0)
def dance(code):
    """Dance."""
    click.echo("dancing")
    click.get_current_context().exit(code)

not_a_command = "text"
'''


@attrs.frozen
class Result:
    """How a run of molecule ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


Molecule = Callable[..., Result]


@pytest.fixture
def token() -> str:
    """A token that no output may hold: ``molecule`` looks."""
    return TOKEN


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with a distribution of good plugins and one of broken ones."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "fake_backends.py").write_text(BACKENDS)
    (folder / "fake_commands.py").write_text(COMMANDS)
    (folder / "fake_broken.py").write_text("raise SystemExit(7)\n")
    write_distribution(
        folder,
        "fake-good",
        entry_points={
            "molecule_connect.backends": {"parrot": "fake_backends:Parrot", "unready": "fake_backends:Unready"},
            "molecule_connect.commands": {"dance": "fake_commands:dance", "connect": "fake_commands:dance"},
            "molecule_connect.mirrors": {"memory": "tests.mirrors.memory:create"},
        },
    )
    write_distribution(
        folder,
        "fake-broken",
        entry_points={
            "molecule_connect.backends": {"broken": "fake_broken:Backend"},
            "molecule_connect.commands": {"shatter": "fake_broken:command", "stone": "fake_commands:not_a_command"},
        },
    )
    return folder


@pytest.fixture
def environ(tmp_path: Path, plugins: Path) -> dict[str, str]:
    """An environment in which nothing of the person who runs the tests is set."""
    home = tmp_path / "home"
    home.mkdir()
    return {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(plugins), "LC_ALL": "C.UTF-8"}


@pytest.fixture
def molecule(environ: dict[str, str], plugins: Path, monkeypatch: pytest.MonkeyPatch) -> Molecule:
    """Run ``molecule`` in this process; keywords are more of the environment, ``stdin`` is what it reads."""
    monkeypatch.syspath_prepend(plugins)

    def run(*arguments: str, stdin: str = "", **more: str) -> Result:
        for name in [name for name in sys.modules if name.startswith("fake_")]:
            del sys.modules[name]
        inherited = dict.fromkeys(os.environ)
        done = CliRunner(env={**inherited, **environ, **more}).invoke(
            cli, arguments, input=stdin, prog_name="molecule", catch_exceptions=False
        )
        assert TOKEN not in done.output
        return Result(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def molecule_process(environ: dict[str, str], tmp_path: Path) -> Molecule:
    """The same in a process of its own: slower, and nothing can be hidden."""

    def run(*arguments: str, stdin: str = "", **more: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env={**environ, **more},
            cwd=tmp_path,
            timeout=30,
            check=False,
        )
        assert TOKEN not in done.stdout + done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    return run
