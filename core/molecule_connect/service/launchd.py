"""Install and run an agent of launchd, on macOS."""

import plistlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs

from molecule_connect import files
from molecule_connect.errors import ConfigError
from molecule_connect.service import units
from molecule_connect.service.machine import Commands, Machine, Result
from molecule_connect.service.plan import ServicePlan


@attrs.frozen
class Launchd:
    """The launchd of this user. An agent runs while its user is logged in."""

    machine: Machine
    commands: Commands

    def plist_path(self, name: str) -> Path:
        """Where the definition of an agent is."""
        return self.machine.home / "Library/LaunchAgents" / f"{name}.plist"

    def log_path(self, name: str) -> Path:
        """The file with the output of an agent."""
        return self.machine.home / "Library/Logs" / f"{name}.log"

    def written(self, name: str) -> dict[str, Any]:
        """The definition of an agent that ``install`` wrote.

        Raises:
            ConfigError: There is none.
        """
        path = self.plist_path(name)
        try:
            document = plistlib.loads(path.read_bytes())
        except FileNotFoundError:
            raise ConfigError(
                f"there is no service {name} ({path} does not exist)",
                hint="install it with 'molecule service install', or name another one with --name",
            ) from None
        except (OSError, plistlib.InvalidFileException, ValueError) as exc:
            raise ConfigError(f"{path} cannot be read: {exc}", hint="remove it, then install again") from exc
        arguments = document.get("ProgramArguments") if isinstance(document, dict) else None
        if not isinstance(arguments, list) or "molecule_connect" not in arguments:
            raise ConfigError(
                f"{path} was not written by 'molecule service install'", hint="choose another name with --name"
            )
        return dict(document)

    def state_dir(self, name: str) -> Path:
        """The state folder of an agent that ``install`` wrote.

        Raises:
            ConfigError: There is no such agent.
        """
        arguments = self.written(name)["ProgramArguments"]
        if "--state-dir" not in arguments[:-1]:
            raise ConfigError(f"{self.plist_path(name)} was changed", hint="install it again")
        return Path(arguments[arguments.index("--state-dir") + 1])

    def description(self, name: str) -> tuple[str, list[tuple[str, str]]]:
        """The state of an agent, for people: a headline, and more facts with their titles."""
        kept = [line for line in self._facts(name) if line.startswith(("state =", "runs =", "last exit code ="))]
        pid = self.pid(name)
        parts = [*(line.replace(" = ", " ") for line in kept), *([f"process {pid}"] if pid else [])]
        files_ = [("definition", str(self.plist_path(name))), ("log", str(self.log_path(name)))]
        return f"{name}: {', '.join(parts) or 'not loaded'}", files_

    def pid(self, name: str) -> int:
        """The process of an agent; 0 if it doesn't run."""
        found = [line.removeprefix("pid = ") for line in self._facts(name) if line.startswith("pid = ")]
        return int(found[0]) if found and found[0].isdecimal() else 0

    def _facts(self, name: str) -> list[str]:
        """The lines of the first level of ``launchctl print``."""
        lines = self._launchctl("print", self._target(name)).output.splitlines()
        return [line.strip() for line in lines if line.startswith("\t") and not line.startswith("\t\t")]

    def reload(self, name: str) -> str:
        """Let an agent read its settings again. Returns why it failed; its log says whether they were refused."""
        found = self._launchctl("kill", "SIGHUP", self._target(name))
        return "" if found.code == 0 else found.words

    def write(self, plan: ServicePlan) -> None:
        """Write the definition of an agent."""
        path, log = self.plist_path(plan.name), self.log_path(plan.name)
        if path.exists():
            self.written(plan.name)
        try:
            for folder in (path.parent, log.parent):
                folder.mkdir(parents=True, exist_ok=True)
            files.replace(path, units.plist(plan, str(log)))
            path.chmod(0o644)
        except OSError as exc:
            raise ConfigError(f"{path} cannot be written: {exc.strerror}", hint="check its folder") from exc

    def start(self, name: str) -> None:
        """Load and start an agent, again after a change.

        Raises:
            ConfigError: launchd refused it.
        """
        self._launchctl("bootout", self._target(name))
        self._must("enable", self._target(name))
        self._must("bootstrap", self._domain, str(self.plist_path(name)))

    def stop(self, name: str) -> None:
        """Stop an agent, until the next login or start."""
        self._must("bootout", self._target(name))

    def uninstall(self, name: str) -> None:
        """Stop an agent and remove its definition."""
        self._launchctl("bootout", self._target(name))
        self.plist_path(name).unlink(missing_ok=True)

    def become_logs(self, name: str, options: Sequence[str]) -> NoReturn:
        """Become ``tail`` for the output of an agent."""
        self.commands.become(["tail", *options, str(self.log_path(name))])

    @property
    def _domain(self) -> str:
        return f"gui/{self.machine.uid}"

    def _target(self, name: str) -> str:
        return f"{self._domain}/{name}"

    def _must(self, *arguments: str) -> None:
        found = self._launchctl(*arguments)
        if found.code != 0:
            raise ConfigError(f"launchctl {' '.join(arguments)} failed: {found.words}", hint="see 'launchctl print'")

    def _launchctl(self, *arguments: str) -> Result:
        return self.commands.run(["launchctl", *arguments])
