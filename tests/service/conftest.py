"""A machine in a folder, and programs that only record how they were run."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest

from molecule_connect.service.installing import Order
from molecule_connect.service.machine import Machine, Result
from molecule_connect.service.plan import ServicePlan

Ran = tuple[str, ...]


class BecameError(Exception):
    """The process was replaced by a program."""


@attrs.define
class FakeCommands:
    """Answers programs by the first pattern that fits the command line; all others succeed without output."""

    answers: dict[str, Result] = attrs.field(factory=dict)
    ran: list[Ran] = attrs.field(factory=list)
    environs: list[Mapping[str, str] | None] = attrs.field(factory=list)
    on_run: Callable[[Ran], None] = lambda command: None

    def run(
        self, command: Sequence[str], *, environ: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Result:
        self.ran.append(tuple(command))
        self.environs.append(environ)
        self.on_run(tuple(command))
        line = " ".join(command)
        return next((result for pattern, result in self.answers.items() if re.search(pattern, line)), Result(code=0))

    def become(self, command: Sequence[str]) -> NoReturn:
        self.ran.append(tuple(command))
        raise BecameError

    def lines(self, program: str) -> list[str]:
        """The arguments of each run of *program*."""
        return [" ".join(command[1:]) for command in self.ran if command[0] == program]


@pytest.fixture
def commands() -> FakeCommands:
    return FakeCommands({"--property=Version": Result(code=0, output="252.39-1~deb12u2")})


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    home, python = tmp_path / "home/ann", tmp_path / "opt/venv/bin/python"
    for folder in (home, python.parent, tmp_path / "run/systemd/system", tmp_path / "project"):
        folder.mkdir(parents=True)
    python.touch()
    return Machine(
        platform="linux",
        user="ann",
        uid=1000,
        home=home,
        python=python,
        code=(tmp_path / "opt/venv",),
        cwd=tmp_path / "project",
        root=tmp_path,
        environ={"PATH": "/usr/bin:bin:/bin", "HOME": str(home)},
    )


def save(machine: Machine, text: str = "", *, folder: Path | None = None, token: str = "tok-1234567") -> Path:
    """Settings as ``molecule init`` saves them. Returns the file."""
    folder = folder or machine.home / ".config/molecule"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = {
        "token": token,
        "config.toml": f'[[workspace]]\nid = "ws_1"\ntoken_file = "token"\nbackend = "mock"\n{text}',
    }
    for name, content in files.items():
        (folder / name).write_text(content)
        (folder / name).chmod(0o600)
    return folder / "config.toml"


@attrs.define
class Told:
    """What an installation said, and how its question is answered; None if no one can answer."""

    lines: list[str] = attrs.field(factory=list)
    asked: list[str] = attrs.field(factory=list)

    def order(self, answer: bool | None = None, **more: Any) -> Order:
        def confirm(question: str) -> bool:
            self.asked.append(question)
            return bool(answer)

        more = {"name": "molecule-connect", **more}
        return Order(say=self.lines.append, confirm=None if answer is None else confirm, **more)


@pytest.fixture
def told() -> Told:
    return Told()


def a_plan(**more: Any) -> ServicePlan:
    values: dict[str, Any] = {
        "name": "molecule-connect",
        "system": False,
        "python": Path("/usr/bin/python3"),
        "config": Path("/home/ann/.config/molecule/config.toml"),
        "state_dir": Path("/home/ann/.config/molecule/state"),
        "cwd": Path("/home/ann/project"),
        "environment": {"PATH": "/usr/bin:/bin"},
        "stop_seconds": 30.0,
    }
    return ServicePlan(**{**values, **more})
