"""The settings that ``molecule init`` saved: where they are, which profile is used, and how they are read.

A profile is a ``config.toml`` with one workspace and, beside it, a file with its token. The default profile is in the
config home, the others are in folders below it. No file of the working directory is read.
"""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from molecule_connect import files
from molecule_connect.config.load import WORKSPACES_VARIABLE, parse_toml, read_path, read_table
from molecule_connect.config.settings import DEFAULT_API_URL, SCHEMA
from molecule_connect.config.state_dir import CONFIGS_DIR, STATE_DIR_VARIABLES, home_dir, is_writable_folder
from molecule_connect.config.tokens import SAVED_SOURCE, read_token_file
from molecule_connect.config.values import PATH, TEXT, InvalidValueError
from molecule_connect.config.workspaces import WorkspacesError
from molecule_connect.errors import ConfigError
from molecule_connect.models import canonical_id

PROFILE_VARIABLE = "MOLECULE_PROFILE"
DEFAULT_PROFILE = "default"
CONFIG_NAME, TOKEN_NAME, PROFILES_NAME = "config.toml", "token", "profiles"
_PROFILE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
# Settings that hold for one platform only.
_OF_PLATFORM = ("org_id", "insecure", "ca_file", "client_cert", "client_key")
_PORTS = {"http": 80, "https": 443}


def config_home(
    environ: Mapping[str, str] = os.environ, *, home: Path | None = None, configs: Path = CONFIGS_DIR
) -> Path:
    """The folder of the saved settings, their tokens and profiles.

    It is the first of: the state folder that ``MOLECULE_STATE_DIR`` or ``CONFIGS_DIR`` names, *configs* if it is the
    default state folder, ``.config/molecule`` in *home*. A relative path in a variable doesn't count: with it, a
    project's folder could bring settings.
    """
    for variable in STATE_DIR_VARIABLES:
        if value := environ.get(variable):
            folder = Path(value).expanduser()
            return folder if folder.is_absolute() else _home_folder(home)
    return configs if is_writable_folder(configs) else _home_folder(home)


def check_profile(name: str, *, source: str = "--profile") -> str:
    """*name*, or "" if it is the default profile.

    Raises:
        ConfigError: It can't be the name of a profile.
    """
    if not _PROFILE.fullmatch(name):
        raise ConfigError(
            f"{name[:80]!r} ({source}) can't be the name of a profile",
            hint="use up to 64 of a-z 0-9 _ -, starting with a letter or a digit",
        )
    return "" if name == DEFAULT_PROFILE else name


def chosen_profile(named: str | None, environ: Mapping[str, str]) -> str:
    """The profile to use: *named* (``--profile``), else that of ``MOLECULE_PROFILE``; "" is the default one.

    Raises:
        ConfigError: The name can't be one.
    """
    if named is not None:
        return check_profile(named)
    variable = environ.get(PROFILE_VARIABLE)
    return check_profile(variable, source=PROFILE_VARIABLE) if variable else ""


def profile_folder(profile: str, environ: Mapping[str, str], *, home: Path | None = None) -> Path:
    """The folder of a profile's files. It may not exist."""
    folder = config_home(environ, home=home)
    return folder / PROFILES_NAME / profile if profile else folder


def profiles(environ: Mapping[str, str]) -> list[str]:
    """The names of the saved profiles other than the default one."""
    try:
        found = [path.parent.name for path in (config_home(environ) / PROFILES_NAME).glob(f"*/{CONFIG_NAME}")]
    except OSError:
        return []
    return sorted(name for name in found if _PROFILE.fullmatch(name))


def command_with_profile(command: str, profile: str) -> str:
    """*command*, with the flag for *profile*."""
    return f"{command} --profile {profile}" if profile else command


@attrs.frozen(kw_only=True)
class SavedSettings:
    """A profile as it was read.

    Attributes:
        path: Its ``config.toml``.
        profile: Its name; "" for the default profile.
        values: Field name -> value, without the token. May contain secrets of the backend.
        token_file: None if the file doesn't name one.
        state_dir: The state folder that it names.
    """

    path: Path
    profile: str = ""
    values: Mapping[str, Any] = attrs.field(repr=False)
    token_file: Path | None = None
    state_dir: Path | None = None

    @property
    def workspace_id(self) -> str:
        """The workspace that they are for."""
        return str(self.values["workspace_id"])

    @property
    def api_url(self) -> str:
        """The platform that they are for."""
        return str(self.values.get("api_url", DEFAULT_API_URL))

    def is_for(self, workspace_id: str) -> bool:
        """Whether they are for this workspace."""
        return canonical_id(workspace_id) == self.workspace_id

    def values_for(self, api_url: str | None) -> dict[str, Any]:
        """The values to use with this address; without those that hold for the saved platform, if it is another."""
        if api_url is None or is_same_address(api_url, self.api_url):
            return dict(self.values)
        return {name: value for name, value in self.values.items() if name not in _OF_PLATFORM}

    def token_for(self, api_url: str) -> dict[str, Any]:
        """The settings for the saved token.

        Raises:
            ConfigError: It is for another platform, or can't be read.
        """
        if self.token_file is None:
            return {}
        if not is_same_address(api_url, self.api_url):
            raise ConfigError(
                f"the saved token is for {self.api_url}, and is not sent to {api_url}",
                hint=f"pass the token for {api_url} with --token-file, or unset the address; to save both, run "
                "'molecule init --profile NAME'",
            )
        read_token_file(self.token_file)
        return {"token_file": self.token_file, "token_source": SAVED_SOURCE}


@attrs.frozen
class SavedToken:
    """The token file of saved settings, for a process that reads it again later.

    The profile may be replaced meanwhile, by one for another workspace or platform. That token isn't returned.
    """

    path: Path
    settings_file: Path
    workspace_id: str
    api_url: str

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> str:
        """The token.

        Raises:
            ConfigError: It can't be read, or belongs to another workspace or platform by now.
        """
        # In this order: a replacement removes the settings before it touches the token.
        token = read_token_file(self.path)
        found = read_file(self.settings_file)
        if found is None or not found.is_for(self.workspace_id) or not is_same_address(found.api_url, self.api_url):
            raise ConfigError(
                f"the saved settings {self.settings_file} are no longer those of workspace {self.workspace_id}",
                hint="restart this connector with settings of its own, such as another --profile",
            )
        return token


def read_saved(
    named: str | None, environ: Mapping[str, str], *, may_be_new: bool = False, home: Path | None = None
) -> SavedSettings | None:
    """The chosen profile; None if the default profile was never saved, or it *may be new*.

    Raises:
        ConfigError: A profile that was named doesn't exist, other users can change its file, or it has errors.
    """
    profile = chosen_profile(named, environ)
    found = read_file(profile_folder(profile, environ, home=home) / CONFIG_NAME, environ, profile=profile)
    if found is None and profile and not may_be_new:
        known = ", ".join(profiles(environ)) or "none"
        raise ConfigError(
            f"there is no profile {profile!r} in {config_home(environ)} (saved: {known})",
            hint=f"create it: {command_with_profile('molecule init', profile)}",
        )
    return found


def find_saved(
    named: str | None,
    environ: Mapping[str, str],
    *,
    workspace_id: str | None = None,
    may_be_new: bool = False,
) -> SavedSettings | None:
    """The saved settings to use; None if there are none, or other settings take their place.

    A list in ``MOLECULE_WORKSPACES`` takes their place, and so does a workspace id on the command line or in
    ``WORKSPACE_ID`` if they are for another workspace.

    Args:
        named: The value of ``--profile``.
        workspace_id: The one on the command line.
        may_be_new: A profile that doesn't exist is no error.

    Raises:
        ConfigError: See ``read_saved``. Or *named* contradicts the list or the workspace id.
    """
    if environ.get(WORKSPACES_VARIABLE):
        if named is not None:
            raise ConfigError(
                f"--profile can't be combined with {WORKSPACES_VARIABLE}, which lists the workspaces",
                hint=f"unset {WORKSPACES_VARIABLE}, or omit --profile",
            )
        return None
    found = read_saved(named, environ, may_be_new=may_be_new)
    wanted = environ.get("WORKSPACE_ID") or None if workspace_id is None else workspace_id
    if found is None or wanted is None or found.is_for(wanted):
        return found
    if named is not None:
        raise ConfigError(
            f"profile {named} is for workspace {found.workspace_id}, not {wanted}",
            hint="omit --profile, or the workspace id (also in WORKSPACE_ID)",
        )
    return None


def describe_unused(named: str | None, environ: Mapping[str, str], *, workspace_id: str | None = None) -> str:
    """Why ``find_saved`` returns None although the profile exists; empty if it doesn't exist, or is used.

    Raises:
        ConfigError: See ``find_saved``.
    """
    if environ.get(WORKSPACES_VARIABLE) or find_saved(named, environ, workspace_id=workspace_id, may_be_new=True):
        return ""
    found = read_saved(named, environ, may_be_new=True)
    return "" if found is None else f"those in {found.path} are for workspace {found.workspace_id}, and not used"


def read_file(path: Path, environ: Mapping[str, str] = os.environ, *, profile: str = "") -> SavedSettings | None:
    """The settings saved in *path*; None if it doesn't exist.

    Raises:
        ConfigError: Other users can change it, or it has errors.
    """
    again = f"'{command_with_profile('molecule init', profile)}' replaces it"
    content = _read(path, again)
    if content is None:
        return None
    try:
        document = parse_toml(content, str(path))
    except WorkspacesError as exc:
        raise _faulty(path, exc.faults, again) from exc
    faults = [f"unknown key {key!r}" for key in document if key not in ("workspace", "state_dir")]
    entry = _only_entry(document)
    if entry is None:
        raise _faulty(path, [*faults, "it must have exactly one [[workspace]]"], again)
    if "token" in entry:
        faults.append("it has a token: write that to a file, and its path to token_file")
    values, more = read_table({key: value for key, value in entry.items() if key != "token"})
    faults += more.values()
    if "id" not in entry:
        faults.append("it has no id")
    paths: dict[str, Path] = {}
    named = {name: value for name, value in values.items() if SCHEMA[name].kind is PATH and value is not None}
    for key, text in {**named, "state_dir": document.get("state_dir", "")}.items():
        try:
            if text := TEXT.from_document(text):
                paths[key] = read_path(text, key, path.parent, environ)
        except InvalidValueError as exc:
            faults.append(f"{key} {exc}")
        except ConfigError as exc:
            faults.append(str(exc))
    if faults:
        raise _faulty(path, faults, again)
    return SavedSettings(
        path=path,
        profile=profile,
        state_dir=paths.pop("state_dir", None),
        token_file=paths.pop("token_file", None),
        values={**{name: value for name, value in values.items() if name not in (*named, "token_file")}, **paths},
    )


def is_same_address(one: str, other: str) -> bool:
    """Whether both are the address of the same platform. False if in doubt."""
    return one == other or _address_key(one) == _address_key(other) is not None


def _address_key(address: str) -> tuple[str, str, int | None, str] | None:
    try:
        parts = urlsplit(address.strip())
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None
    if parts.username is not None or parts.query or parts.fragment or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port, parts.path.rstrip("/")


def _only_entry(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The only workspace of *document*; None if there are none or several."""
    match document.get("workspace"):
        case [dict() as entry]:
            return entry
    return None


def _home_folder(home: Path | None) -> Path:
    return (home or home_dir()) / ".config" / "molecule"


def _read(path: Path, again: str) -> bytes | None:
    """The content of *path*, after checking that only this user and root can change it."""
    try:
        status = path.lstat()
    except OSError:  # it doesn't exist, or nothing in its folder is accessible
        return None
    try:
        files.check_folder(path.parent)
        if stat.S_ISLNK(status.st_mode) and not files.is_trusted(status.st_uid):
            raise files.ForeignError(path, f"it is a link of {files.user_name(status.st_uid)}")
        # Without O_NONBLOCK, opening a pipe would block.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise files.ForeignError(path, "it is not a plain file")
            if exposed := files.exposure(status, path):
                raise ConfigError(f"the saved settings {path} are not used: the file {exposed[0]}", hint=exposed[1])
            return file.read()
    except OSError as exc:
        raise ConfigError(
            f"the saved settings {path} can't be read: {exc.strerror or type(exc).__name__}",
            hint=f"make it a file of this user; {again}",
        ) from exc


def _faulty(path: Path, faults: Sequence[str], again: str) -> ConfigError:
    return ConfigError(f"the saved settings {path} have errors: {'; '.join(faults)}", hint=f"correct it; {again}")
