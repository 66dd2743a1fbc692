"""What a service runs: always files and absolute paths, so that it starts the same way after a reboot."""

import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from molecule_connect.config.load import WORKSPACES_VARIABLE, WorkspaceList, parse_file
from molecule_connect.config.saved import read_saved
from molecule_connect.config.settings import SCHEMA, WorkspaceSettings
from molecule_connect.config.state_dir import preview_state_dir
from molecule_connect.config.tokens import TOKEN_VARIABLE, read_token_file
from molecule_connect.config.values import parse_path
from molecule_connect.config.workspaces import WorkspacesError
from molecule_connect.errors import ConfigError
from molecule_connect.service.machine import Machine

DEFAULT_NAME = "molecule-connect"
# Also the name of a user, and of folders.
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}(?<!-)")
# Seconds that a stop may take beyond the grace period.
STOP_MARGIN = 10.0
# Settings of the shell that every program that uses the network needs. A password in them would be readable for all.
_NETWORK = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Emptied at a reboot, or by a cleaner.
_TEMPORARY = ("/tmp", "/var/tmp", "/run", "/var/run", "/dev/shm", "/private/tmp", "/private/var/tmp")  # noqa: S108
_TEMPORARY_TYPES = ("tmpfs", "ramfs")
# What ProtectHome=yes hides.
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_IN_PROGRAMS = re.compile(r"[\x00-\x1f\x7f'\"\\$]")


@attrs.frozen(kw_only=True)
class ServicePlan:
    """A service that serves the workspaces of a file.

    Attributes:
        system: It runs as a user of its own, whether or not someone is logged in.
        config: The file.
        state_dir: The state folder.
        cwd: The working directory.
        environment: Its variables.
        stop_seconds: How long it may take to stop.
    """

    name: str
    system: bool
    python: Path
    config: Path
    state_dir: Path
    cwd: Path
    environment: Mapping[str, str]
    stop_seconds: float

    @property
    def command(self) -> list[str]:
        """What it runs."""
        folder = ["--state-dir", str(self.state_dir)]
        return [*self.molecule, "connect", "--config", str(self.config), *folder]

    @property
    def molecule(self) -> list[str]:
        """The program ``molecule`` of this environment. With -P, no file of the working directory is imported."""
        return [str(self.python), "-P", "-m", "molecule_connect"]


def check_name(name: str) -> str:
    """*name*, which can be the name of a unit, of a user and of a folder.

    Raises:
        ConfigError: It can't.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:80]!r} can't be the name of a service",
            hint=f"use up to 31 of a-z 0-9 -, starting with a letter, such as {DEFAULT_NAME}-2",
        )
    return name


def find_config(machine: Machine, config: str | None, profile: str | None) -> tuple[Path, Path | None]:
    """The file with the settings, and the state folder that saved settings name.

    Args:
        config: The value of ``--config``.
        profile: The value of ``--profile``.

    Raises:
        ConfigError: There are no saved settings, or the file isn't a plain file.
    """
    if config is not None:
        if profile is not None:
            raise ConfigError("--profile can't be combined with --config", hint="omit one of them")
        path = machine.cwd / parse_path(config)
        if not path.is_file():
            what = "is not a plain file, which can be read at each start" if path.exists() else "does not exist"
            raise ConfigError(f"the file {path} {what}", hint="check the path of --config")
        return path, None
    saved = read_saved(profile, machine.environ, home=machine.home)
    if saved is None:
        shell = next((name for name in (TOKEN_VARIABLE, WORKSPACES_VARIABLE) if machine.environ.get(name)), "")
        reason = f"{shell} is a variable of this shell, which is gone after a reboot" if shell else ""
        raise ConfigError(
            "there are no saved settings for a service" + (f": {reason}" if reason else ""),
            hint="run 'molecule init' to save address, workspace, token and backend; or pass a list of workspaces with "
            "--config FILE",
        )
    token = machine.environ.get(TOKEN_VARIABLE)
    if token and saved.token_file is not None and read_token_file(saved.token_file) != token.strip():
        raise ConfigError(
            f"{TOKEN_VARIABLE} contains another token than {saved.token_file}, and is gone after a reboot",
            hint=f"save the current token with 'molecule init', or unset {TOKEN_VARIABLE}",
        )
    return saved.path, saved.state_dir


def plan_user_service(
    machine: Machine, name: str, *, config: str | None, profile: str | None, state_dir: str | None
) -> ServicePlan:
    """The service of this user.

    Raises:
        ConfigError: It would not work after a reboot.
    """
    check_environment(machine)
    path, own_state_dir = find_config(machine, config, profile)
    _check_lasting(machine, path, "the file", "move it to a folder that is kept")
    variables = {"PATH": _search_path(machine), **network_variables(machine)}
    environment = {**_login(machine), **variables}
    settings, listed_state_dir = read_settings(machine, path, environment)
    folder = preview_state_dir(
        None if state_dir is None else machine.cwd / state_dir,
        machine.environ,
        home=machine.home,
        saved=own_state_dir or listed_state_dir,
    )
    _check_lasting(machine, folder, "the state folder", "pass a folder on a local disk with --state-dir")
    return ServicePlan(
        name=name,
        system=False,
        python=machine.python,
        config=path,
        state_dir=folder,
        cwd=machine.home if is_temporary(machine, machine.cwd) else machine.cwd,
        environment=variables,
        stop_seconds=max(one.grace for one in settings) + STOP_MARGIN,
    )


def plan_system_service(machine: Machine, name: str, config: Path) -> ServicePlan:
    """The service of the machine for the settings in *config*, which its user can read.

    Raises:
        ConfigError: It would not work after a reboot.
    """
    check_environment(machine)
    home = Path("/var/lib") / name
    path = ":".join(dict.fromkeys([str(machine.python.parent), *_SYSTEM_PATH.split(":")]))
    variables = {"PATH": path, "HOME": str(home), **network_variables(machine)}
    settings, _ = read_settings(machine, machine.root / config.relative_to("/"), variables)
    return ServicePlan(
        name=name,
        system=True,
        python=machine.python,
        config=config,
        state_dir=home / "state",
        cwd=home / "work",
        environment=variables,
        stop_seconds=max(one.grace for one in settings) + STOP_MARGIN,
    )


def check_environment(machine: Machine) -> None:
    """Check that this Python environment exists after a reboot.

    Raises:
        ConfigError: It is temporary.
    """
    hint = "install molecule-connect into a lasting environment, such as 'python3 -m venv ~/.local/molecule', and run "
    hint += "its 'molecule service install'"
    if not machine.python.is_absolute() or not machine.python.exists():
        raise ConfigError(f"the Python interpreter has no absolute path ({str(machine.python)!r})", hint=hint)
    if _NOT_IN_PROGRAMS.search(str(machine.python)):
        raise ConfigError(f"systemd can't start {str(machine.python)!r}: the path has special characters", hint=hint)
    for path in (machine.python, *machine.code):
        if is_temporary(machine, path) or _is_cached(machine, path):
            raise ConfigError(f"this Python environment is temporary: {path}", hint=hint)


def check_system_environment(machine: Machine) -> None:
    """Check that a user without access to homes can use this Python environment.

    Raises:
        ConfigError: It is in a home, or closed to others.
    """
    for path in dict.fromkeys([machine.python, machine.python.resolve(), *machine.code]):
        closed = [each for each in (path, *path.parents) if each.exists() and not each.stat().st_mode & 0o001]
        if is_in_a_home(path) or closed:
            raise ConfigError(
                f"a system service can't use this Python environment: {[*closed, path][0]} is closed to other users",
                hint="install molecule-connect outside of homes, such as 'sudo python3 -m venv /opt/molecule-connect', "
                "and run its 'molecule service install --system' with sudo",
            )


def is_in_a_home(path: Path, homes: Sequence[Path] = HOMES) -> bool:
    """Whether *path* is inside a home, which system services can't see."""
    return any(path.is_relative_to(home) for home in homes)


def is_temporary(machine: Machine, path: Path) -> bool:
    """Whether *path* is emptied at a reboot. If the home is, too, that says nothing about *path*."""
    folders = [folder for folder in _TEMPORARY if path.is_relative_to(folder)]
    if any(not machine.home.is_relative_to(folder) for folder in folders):
        return True
    return _type_of(machine, path) in _TEMPORARY_TYPES and _type_of(machine, machine.home) not in _TEMPORARY_TYPES


def network_variables(machine: Machine) -> dict[str, str]:
    """The variables for proxies and certificates.

    Raises:
        ConfigError: One contains a password, or a relative path.
    """
    found = {}
    for name in (*_NETWORK, *(name.lower() for name in _NETWORK if "PROXY" in name)):
        value = machine.environ.get(name)
        if not value:
            continue
        if "@" in value:
            raise ConfigError(
                f"{name} contains a password, and everyone can read the file of a service",
                hint=f"unset {name} here, and set it in a file of yours with EnvironmentFile=, see docs/operations.md",
            )
        if name.startswith("SSL_") and not Path(value).is_absolute():
            raise ConfigError(f"{name} is a relative path", hint="use an absolute path")
        found[name] = value
    return found


def read_settings(
    machine: Machine, config: Path, environment: Mapping[str, str]
) -> tuple[list[WorkspaceSettings], Path | None]:
    """The workspaces in *config* as the service will read them, and the state folder that it names.

    Args:
        environment: The variables of the service.

    Raises:
        ConfigError: They can't be served, or depend on this shell or on the working directory.
    """
    found = parse_file(config, environment)
    _check_secrets(config, found, environment)
    settings, faults = _settings_of(found)
    if (settings, faults) != _settings_of(parse_file(config, machine.environ)):
        used = [name for name in _variables() if machine.environ.get(name)] or ["a variable"]
        raise ConfigError(
            f"{config} depends on variables of this shell ({', '.join(used)}), which are gone after a reboot",
            hint="write the values to the file",
        )
    if faults or found.faults:
        raise WorkspacesError(str(config), [*found.faults, *faults])
    if not settings:
        raise ConfigError(f"{config} has no workspace that is enabled", hint="remove enabled = false from one")
    for one in settings:
        for text, hint in relative_paths(machine, one):
            raise ConfigError(f"workspace {one.workspace_id}: {text}", hint=hint)
    return settings, found.own_state_dir


def _check_secrets(config: Path, found: WorkspaceList, environment: Mapping[str, str]) -> None:
    """Check that no token is in a variable of this shell."""
    for entry in found.entries:
        token = entry.table.get("token") if isinstance(entry.table, dict) else None
        name = token.get("env") if isinstance(token, dict) else None
        if isinstance(name, str) and not environment.get(name):
            raise ConfigError(
                f"{config}: {entry.place}: the token is in the variable {name[:80]!r}, which is gone after a reboot",
                hint='write the token to a file, and name it: token_file = "FILE"',
            )


def relative_paths(machine: Machine, settings: WorkspaceSettings) -> Iterator[tuple[str, str]]:
    """The values of options that are paths relative to the working directory, each with a hint."""
    for options in (settings.options, settings.middleware_options):
        for key, value in options.items():
            for text in [value] if isinstance(value, str) else value:
                # Paths after a `cd` are relative to its folder.
                words = [] if re.search(r"\bcd\s", text) else _words(text)
                for number, word in enumerate(words):
                    if _is_relative_path(machine, word, is_program=key == "cmd" and number == 0):
                        yield (
                            f"option {key} contains a path that is relative to this folder: {word}",
                            f"use an absolute path, such as {machine.cwd / word}",
                        )


def _is_relative_path(machine: Machine, word: str, *, is_program: bool) -> bool:
    if word.startswith(("/", "~", "$", "-")) or "://" in word:
        return False
    if word.startswith(("./", "../")) or (is_program and "/" in word):
        return True
    there = machine.cwd / word
    try:
        return there.is_file() and shutil.which(word, path=machine.environ.get("PATH")) is None
    except (OSError, ValueError):
        return False


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _settings_of(found: WorkspaceList) -> tuple[list[WorkspaceSettings], list[str]]:
    """The workspaces of a list that are served, without their tokens, and the errors in them."""
    blocks = [block for block in found.blocks(secrets=False) if block.is_enabled]
    settings = [block.settings for block in blocks if block.settings is not None and not block.faults]
    return settings, [f"{block.place}: {fault}" for block in blocks for fault in block.faults]


def _variables() -> list[str]:
    return [variable for setting in SCHEMA.values() for variable in setting.variables if not setting.single]


def _search_path(machine: Machine) -> str:
    """The folders that programs of backends are searched in: those of this shell that last, and of this environment."""
    folders = [str(machine.python.parent), *machine.environ.get("PATH", "").split(":"), *_SYSTEM_PATH.split(":")]
    return ":".join(
        folder
        for folder in dict.fromkeys(folders)
        if folder.startswith("/") and not _CONTROL.search(folder) and not is_temporary(machine, Path(folder))
    )


def _login(machine: Machine) -> dict[str, str]:
    """The variables that a service of this user gets from its manager."""
    return {"HOME": str(machine.home), "USER": machine.user, "LOGNAME": machine.user}


def _check_lasting(machine: Machine, path: Path, what: str, hint: str) -> None:
    if _CONTROL.search(str(path)):
        raise ConfigError(f"{what} {str(path)!r} has a control character in its path", hint=hint)
    if is_temporary(machine, path):
        raise ConfigError(f"{what} {path} is lost at a reboot", hint=hint)


def _is_cached(machine: Machine, path: Path) -> bool:
    """Whether *path* is in a cache of uv or pipx, which run programs from environments that they delete."""
    caches = [machine.home / ".cache", machine.home / "Library" / "Caches", machine.home / ".local/pipx/.cache"]
    caches.append(machine.home / ".local/share/pipx/.cache")
    named = (machine.environ.get(name) for name in ("XDG_CACHE_HOME", "UV_CACHE_DIR", "PIP_CACHE_DIR"))
    caches += [Path(value) for value in named if value]
    return any(path.is_relative_to(cache) for cache in caches)


def _type_of(machine: Machine, path: Path) -> str:
    """The type of the file system of *path*, or of its nearest existing parent; "" if unknown."""
    try:
        lines = (machine.root / "proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    types = {}
    for line in lines:
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) > 4 and right:
            types[fields[4].encode().decode("unicode_escape")] = right.split()[0]
    there = Path(path)
    return next((types[str(each)] for each in (there, *there.parents) if str(each) in types), "")
