"""The machine that a service is installed on, and the programs that are run for it."""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn, Protocol, Self

import attrs

from molecule_connect.config.state_dir import home_dir

_NOT_FOUND = 127
_TIMEOUT = 120


@attrs.frozen(kw_only=True)
class Machine:
    """The machine, this user, and this Python environment.

    Attributes:
        platform: ``sys.platform``.
        user: The name of the user.
        uid: The effective user id.
        home: The user's home directory.
        python: The interpreter of this environment. Not resolved: the link in a virtual environment selects it.
        code: Folders that the interpreter loads code from.
        root: Where ``/etc``, ``/var/lib`` and ``/run`` are.
        environ: The variables of this process.
    """

    platform: str
    user: str
    uid: int
    home: Path
    python: Path
    code: tuple[Path, ...]
    cwd: Path
    root: Path = Path("/")
    environ: Mapping[str, str] = attrs.field(repr=False)

    @classmethod
    def this(cls) -> Self:
        """The machine, user and environment of this process."""
        uid = os.geteuid()
        try:
            user = pwd.getpwuid(uid).pw_name
        except KeyError:
            user = str(uid)
        package = Path(__file__).resolve().parents[1]
        return cls(
            platform=sys.platform,
            user=user,
            uid=uid,
            home=home_dir(),
            python=Path(sys.executable or ""),
            code=(Path(sys.prefix), Path(sys.base_prefix), package),
            cwd=Path.cwd(),
            environ=dict(os.environ),
        )

    @property
    def is_booted_with_systemd(self) -> bool:
        """Whether systemd is the init of this machine."""
        return (self.root / "run/systemd/system").is_dir()


@attrs.frozen(kw_only=True)
class Result:
    """How a program ended: its exit status, and its standard output and error, without white space at the ends."""

    code: int
    output: str = ""
    error: str = ""

    @property
    def words(self) -> str:
        """The error if there is one, else the output, else the exit status."""
        return self.error or self.output or f"exit status {self.code}"


class Commands(Protocol):
    """Runs programs of the machine."""

    def run(
        self, command: Sequence[str], *, environ: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Result:
        """Run a program and wait for its end. A program that doesn't exist ends with status 127."""
        ...

    def become(self, command: Sequence[str]) -> NoReturn:
        """Replace this process by a program."""
        ...


class SystemCommands:
    """Runs real programs. Implements ``Commands``."""

    def run(
        self, command: Sequence[str], *, environ: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Result:
        """See ``Commands.run``."""
        try:
            done = subprocess.run(  # noqa: S603 - no shell
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                env=environ,
                cwd=cwd,
                timeout=_TIMEOUT,
                check=False,
            )
        except FileNotFoundError as exc:
            return Result(code=_NOT_FOUND, error=f"{command[0]}: {exc.strerror}")
        except (OSError, subprocess.TimeoutExpired) as exc:
            return Result(code=1, error=f"{command[0]}: {getattr(exc, 'strerror', '') or 'it did not end in time'}")
        return Result(code=done.returncode, output=done.stdout.strip(), error=done.stderr.strip())

    def become(self, command: Sequence[str]) -> NoReturn:
        """See ``Commands.become``."""
        sys.stdout.flush()
        sys.stderr.flush()
        program = shutil.which(command[0])
        if program is None:
            raise FileNotFoundError(command[0])
        os.execv(program, list(command))  # noqa: S606 - no shell
