"""Install and run a service of systemd, for this user or for the machine."""

import os
import pwd
import re
import shlex
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs

from molecule_connect import files
from molecule_connect.config.load import parse_toml
from molecule_connect.errors import ConfigError
from molecule_connect.service import units
from molecule_connect.service.machine import Commands, Machine, Result
from molecule_connect.service.plan import HOMES, ServicePlan, is_in_a_home

_UNIT_MODE, _CONFIG_MODE = 0o644, 0o640
_VERSION = re.compile(r"\d+")
_FACTS = "LoadState,FragmentPath,ActiveState,SubState,Result,UnitFileState,MainPID,StatusText,ExecMainStatus,NRestarts"
# The lines of the journal in which the reason of a failed start is looked for.
_LAST_LINES = 20
# Keys of a list whose values are paths.
_PATH_KEYS = ("token_file", "ca_file", "client_cert", "client_key")
NO_SYSTEMD_HINT = (
    "in a container, run 'molecule connect' as its command; in WSL, set systemd=true in /etc/wsl.conf; elsewhere, keep "
    "it running with tmux or nohup (docs/operations.md); --no-start only writes the unit"
)


@attrs.frozen
class Systemd:
    """The systemd of this user, or of the machine with *system*."""

    machine: Machine
    commands: Commands
    system: bool = False

    def unit_path(self, name: str) -> Path:
        """Where the unit of a service is."""
        folder = self.machine.root / "etc/systemd/system"
        return (folder if self.system else self.machine.home / ".config/systemd/user") / f"{name}.service"

    # State

    def version(self, *, must_run: bool = True) -> int:
        """The version of systemd; 0 if it is unknown.

        Raises:
            ConfigError: It can't be reached, and *must_run* is set.
        """
        found = self._systemctl("show", "--property=Version", "--value")
        if found.code != 0 and must_run:
            if not self.machine.is_booted_with_systemd:
                raise ConfigError("systemd doesn't run on this machine", hint=NO_SYSTEMD_HINT)
            raise ConfigError(
                f"systemd can't be reached: {found.words}",
                hint="log in as this user directly (not with su or sudo), or install it for the machine with --system",
            )
        if found.code != 0 or not found.output:
            found = self.commands.run(["systemctl", "--version"])
        number = _VERSION.search(found.output)
        return int(number[0]) if number and found.code == 0 else 0

    def facts(self, name: str) -> dict[str, str]:
        """The state of a unit, as ``systemctl show`` prints it."""
        found = self._systemctl("show", f"{name}.service", f"--property={_FACTS}")
        pairs = (line.partition("=") for line in found.output.splitlines())
        return {key: value for key, _, value in pairs}

    def state_dir(self, name: str) -> Path:
        """The state folder of a service that ``install`` wrote.

        Raises:
            ConfigError: There is no such service.
        """
        facts = units.facts_of(self.written_unit(name))
        if not isinstance(facts.get("state_dir"), str):
            raise ConfigError(f"{self.unit_path(name)} was changed", hint="install it again")
        return self.machine.root / str(facts["state_dir"]).lstrip("/")

    def description(self, name: str) -> tuple[str, list[tuple[str, str]]]:
        """The state of a service, for people: a headline, and more facts with their titles."""
        facts = self.facts(name)
        parts = [f"{facts.get('ActiveState', 'unknown')} ({facts.get('SubState', 'unknown')})"]
        if pid := self.pid(name, facts):
            parts.append(f"process {pid}")
        starts = facts.get("UnitFileState") == "enabled"
        at = "at boot" if self.system or self.lingers() else "when you log in, until you log out"
        parts.append(f"starts {at}" if starts else "isn't started automatically")
        found = [("status", facts.get("StatusText", "") if pid else "")]
        if facts.get("Result", "success") != "success":
            found.append(("failed", f"{facts['Result']}, last exit code {facts.get('ExecMainStatus', 'unknown')}"))
        if facts.get("NRestarts", "0") != "0":
            found.append(("restarts", facts["NRestarts"]))
        found.append(("unit", str(self.unit_path(name))))
        return f"{name}: {', '.join(parts)}", [(title, value) for title, value in found if value]

    def pid(self, name: str, facts: Mapping[str, str] | None = None) -> int:
        """The main process of a service; 0 if it doesn't run."""
        text = (self.facts(name) if facts is None else facts).get("MainPID", "")
        return int(text) if text.isdecimal() else 0

    def written_unit(self, name: str) -> str:
        """The text of a unit that ``install`` wrote.

        Raises:
            ConfigError: There is none.
        """
        path = self.unit_path(name)
        try:
            text = path.read_text(errors="replace")
        except FileNotFoundError:
            other = "" if self.system else ", or pass --system for a service of the machine"
            raise ConfigError(
                f"there is no service {name} ({path} does not exist)",
                hint=f"install it with 'molecule service install', name another one with --name{other}",
            ) from None
        except OSError as exc:
            raise ConfigError(f"{path} cannot be read: {exc.strerror}", hint="check its permissions") from exc
        if not units.is_ours(text):
            raise ConfigError(
                f"{path} was not written by 'molecule service install'", hint="choose another name with --name"
            )
        return text

    # Changes

    def check_free(self, name: str) -> None:
        """Check that the name isn't that of another service.

        Raises:
            ConfigError: It is.
        """
        path = self.unit_path(name)
        if os.path.lexists(path):
            self.written_unit(name)
            return
        fragment = self.facts(name).get("FragmentPath", "")
        if fragment and Path(fragment) != path:
            raise ConfigError(
                f"there is another service {name} already: {fragment}", hint="choose another name with --name"
            )

    def write(self, plan: ServicePlan, text: str) -> bool:
        """Write the unit. Returns whether it changed."""
        path = self.unit_path(plan.name)
        try:
            if path.is_file() and path.read_text(errors="replace") == text:
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            files.replace(path, text.encode())
            path.chmod(_UNIT_MODE)
        except OSError as exc:
            raise ConfigError(f"{path} cannot be written: {exc.strerror}", hint="check its folder") from exc
        return True

    def start(self, name: str, *, enable: bool = False) -> None:
        """Start a service, or restart it after a change.

        Raises:
            ConfigError: It didn't start.
        """
        if enable:
            self._must("daemon-reload")
            self._must("enable", f"{name}.service")
        found = self._systemctl("restart" if enable else "start", f"{name}.service")
        if found.code != 0:
            error, hint = self._last_error(name)
            raise ConfigError(f"the service {name} did not start: {error or found.words.splitlines()[0]}", hint=hint)

    def stop(self, name: str) -> None:
        """Stop a service; it starts again at the next boot."""
        self._must("stop", f"{name}.service")

    def uninstall(self, name: str) -> None:
        """Stop and disable a service, and remove its unit. Without a running systemd, only remove the unit."""
        is_running = self._systemctl("show", "--property=Version", "--value").code == 0
        if is_running:
            self._must("disable", "--now", f"{name}.service")
        self.unit_path(name).unlink(missing_ok=True)
        if is_running:
            self._must("daemon-reload")
            self._systemctl("reset-failed", f"{name}.service")

    def reload(self, name: str) -> str:
        """Let a service read its settings again. Returns why it failed; empty if it didn't."""
        found = self._systemctl("reload", f"{name}.service")
        return "" if found.code == 0 else found.words.splitlines()[0]

    def become_logs(self, name: str, options: Sequence[str]) -> NoReturn:
        """Become ``journalctl`` for a service."""
        user = [] if self.system else ["--user"]
        try:
            self.commands.become(["journalctl", *user, "-u", f"{name}.service", *options])
        except FileNotFoundError:
            raise ConfigError("journalctl is not installed", hint=NO_SYSTEMD_HINT) from None

    # Sessions

    def lingers(self) -> bool:
        """Whether services of this user run without a session."""
        found = self.commands.run(["loginctl", "show-user", self.machine.user, "--property=Linger", "--value"])
        return found.code == 0 and found.output == "yes"

    def enable_linger(self) -> None:
        """Let services of this user run without a session, and start them at boot."""
        found = self.commands.run(["loginctl", "enable-linger", self.machine.user])
        if found.code != 0:
            raise ConfigError(
                f"loginctl enable-linger failed: {found.words}",
                hint=f"run: sudo loginctl enable-linger {shlex.quote(self.machine.user)}",
            )

    def _last_error(self, name: str) -> tuple[str, str]:
        """The last error in the journal of a service, and what to do about it."""
        user = [] if self.system else ["--user"]
        logs = ["journalctl", *user, "-u", f"{name}.service", "-n", str(_LAST_LINES)]
        lines = self.commands.run([*logs, "-o", "cat"]).output.splitlines()
        found = {}
        for line in lines:
            for start in ("error: ", "what to do: "):
                if start in line:
                    found[start] = line.partition(start)[2]
        return found.get("error: ", ""), found.get("what to do: ", f"see {shlex.join(logs)}")

    def _must(self, *arguments: str) -> Result:
        found = self._systemctl(*arguments)
        if found.code != 0:
            user = "" if self.system else "--user "
            raise ConfigError(
                f"systemctl {user}{' '.join(arguments)} failed: {found.words}", hint="see 'molecule service status'"
            )
        return found

    def _systemctl(self, *arguments: str) -> Result:
        if self.system:
            return self.commands.run(["systemctl", *arguments])
        environ = dict(self.machine.environ)
        runtime = self.machine.root / f"run/user/{self.machine.uid}"
        if not environ.get("XDG_RUNTIME_DIR") and runtime.is_dir():
            environ["XDG_RUNTIME_DIR"] = str(runtime)
        return self.commands.run(["systemctl", "--user", *arguments], environ=environ)


@attrs.frozen
class SystemAccount:
    """The user of a system service, its folders, and its copy of the settings.

    Args:
        find: Like ``pwd.getpwnam``.
        chown: Like ``os.chown``.
        homes: The folders whose contents the service can't see.
    """

    machine: Machine
    commands: Commands
    name: str
    find: Callable[[str], Any] = pwd.getpwnam
    chown: Callable[[Path, int, int], None] = os.chown
    homes: Sequence[Path] = HOMES

    @property
    def home(self) -> Path:
        """Its home, with the state folder."""
        return self.machine.root / "var/lib" / self.name

    @property
    def config_folder(self) -> Path:
        """The folder of the copied settings."""
        return self.machine.root / "etc/molecule-connect" / self.name

    def create(self) -> None:
        """Create the user, unless it exists, and its folders.

        Raises:
            ConfigError: The name is that of another user, or it can't be created.
        """
        home = f"/var/lib/{self.name}"
        user = self._find()
        if user is None:
            command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", home]
            done = self.commands.run([*command, "--shell", "/usr/sbin/nologin", self.name])
            user = self._find()
            if done.code != 0 or user is None:
                raise ConfigError(f"the user {self.name} can't be created: {done.words}", hint="create it yourself")
        elif user.pw_dir != home or user.pw_uid == 0:
            raise ConfigError(
                f"there is a user {self.name} already, with the home {user.pw_dir}",
                hint="choose another name with --name",
            )
        for folder in (self.home, self.home / "state", self.home / "work"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not folder.is_symlink():
                self.chown(folder, user.pw_uid, user.pw_gid)

    def take_settings(self, config: Path) -> Path:
        """The settings for the service: *config*, or a copy of it and the files that it names, if it is in a home.

        Raises:
            ConfigError: A file can't be copied.
        """
        user = self._find()
        if not is_in_a_home(config.resolve(), self.homes) or user is None:
            return config
        content, owner = _read(config, None)
        document = parse_toml(content, str(config))
        _make_private(self.config_folder, self.chown, user.pw_gid)
        for relative in _named_files(document, config, self.homes):
            copied, _ = _read(config.parent / relative, owner)
            target = self.config_folder / relative
            _make_private(target.parent, self.chown, user.pw_gid)
            self._write(target, copied, user.pw_gid)
        self._write(self.config_folder / "config.toml", content, user.pw_gid)
        return Path("/etc/molecule-connect") / self.name / "config.toml"

    def _write(self, path: Path, content: bytes, group: int) -> None:
        try:
            files.replace(path, content)
            self.chown(path, 0, group)
            path.chmod(_CONFIG_MODE)
        except OSError as exc:
            raise ConfigError(f"{path} cannot be written: {exc.strerror}", hint="check its folder") from exc

    def _find(self) -> Any:
        try:
            return self.find(self.name)
        except KeyError:
            return None


def _make_private(folder: Path, chown: Callable[[Path, int, int], None], group: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o750)
    chown(folder, 0, group)


def _named_files(document: Mapping[str, Any], config: Path, homes: Sequence[Path]) -> list[Path]:
    """The files that a list names, relative to its folder.

    Raises:
        ConfigError: One of them can't be copied to another folder.
    """
    entries = document.get("workspace")
    tables = [document.get("defaults"), *(entries if isinstance(entries, list) else [])]
    named = []
    for table in [table for table in tables if isinstance(table, dict)]:
        token = table.get("token")
        named += [table.get(key) for key in _PATH_KEYS] + [token.get("file") if isinstance(token, dict) else None]
    texts = dict.fromkeys(text for text in named if isinstance(text, str) and text)
    found, kept = [], []
    for text in texts:
        path = Path(text)
        if not path.is_absolute() and ".." not in path.parts and "$" not in text and not text.startswith("~"):
            found.append(path)
        elif not path.is_absolute() or is_in_a_home(path, homes):
            kept.append(text)
    if "include" in document:
        kept.append("other files with include")
    if kept:
        raise ConfigError(
            f"{config} names {kept[0]}, which the service can't read",
            hint="put all its files outside of homes, such as in /etc/molecule-connect, with mode 640 and the group of "
            "the service, and pass that file with --config",
        )
    return found


def _read(path: Path, owner: int | None) -> tuple[bytes, int]:
    """The content of *path* and its owner, who must be *owner*: root must not copy a file that a link leads to."""
    try:
        with os.fdopen(files.open_file(path, os.O_RDONLY, of_anyone=True), "rb") as file:
            status: os.stat_result = os.fstat(file.fileno())
            if owner is not None and status.st_uid != owner:
                raise ConfigError(
                    f"{path} belongs to {files.user_name(status.st_uid)}, and the file that names it to another user",
                    hint="give both to the same user",
                )
            if status.st_mode & (stat.S_IWOTH | stat.S_IROTH):
                raise ConfigError(
                    f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o})", hint=f"run: chmod 600 {path}"
                )
            return file.read(), status.st_uid
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}", hint="check the path") from exc
