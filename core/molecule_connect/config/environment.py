"""What flags and the environment ask for. Flags win; an empty variable counts as unset."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.config.settings import DEFAULT_API_URL, DEFAULT_JOURNAL_QUOTA, Tls, check_workspace_id, parse_size
from molecule_connect.config.state_dir import CONFIGS_DIR, home_dir, state_file
from molecule_connect.errors import ConfigError
from molecule_connect.platform.credentials import check_token, read_token_file

# The last two are what neighbouring clients and the platform's own containers set.
API_URL_VARIABLES = ("MOLECULE_API_URL", "MOLECULE_PLATFORM_URL", "PLATFORM_URL")
WORKSPACE_VARIABLE = "WORKSPACE_ID"
TOKEN_VARIABLE = "MOLECULE_WORKSPACE_TOKEN"  # noqa: S105 - a name
TOKEN_FILE_VARIABLE = "MOLECULE_WORKSPACE_TOKEN_FILE"  # noqa: S105 - a name
WORKSPACES_VARIABLE = "MOLECULE_WORKSPACES"
ORG_VARIABLE = "MOLECULE_ORG_ID"
JOURNAL_QUOTA_VARIABLE = "MOLECULE_JOURNAL_QUOTA"
CREATE_VARIABLE = "MOLECULE_CREATE"
TLS_VARIABLES = {
    "ca_file": "MOLECULE_CA_FILE",
    "client_cert": "MOLECULE_CLIENT_CERT",
    "client_key": "MOLECULE_CLIENT_KEY",
}
AGENT_NAME_VARIABLE = "MOLECULE_AGENT_NAME"
AGENT_DESCRIPTION_VARIABLE = "MOLECULE_AGENT_DESCRIPTION"
AGENT_SKILLS_VARIABLE = "MOLECULE_AGENT_SKILLS"


@attrs.frozen(kw_only=True)
class TokenSource:
    """Where a token comes from: one of ``token`` and ``file``, and the operator's word for it."""

    name: str
    token: str | None = attrs.field(default=None, repr=False)
    file: Path | None = None


def path_of(text: str) -> Path:
    """The path that *text* names; ``~`` is the home of the user, or of the one that is named.

    Raises:
        ConfigError: No file can have this name, or there is no such user.
    """
    if "\0" in text:
        raise ConfigError("a path holds a character that no path can have", hint="write it again")
    try:
        return Path(text).expanduser()
    except RuntimeError as exc:
        raise ConfigError(f"{text} names a user that this machine does not know", hint="write out the folder") from exc


def api_url(flag: str | None, group_flag: str | None, environ: Mapping[str, str]) -> str:
    """The platform: the command's flag, the group's, the variables, the default."""
    if flag is not None or group_flag is not None:
        return flag if flag is not None else str(group_flag)
    return next((environ[name] for name in API_URL_VARIABLES if environ.get(name)), DEFAULT_API_URL)


def workspace_id(argument: str | None, environ: Mapping[str, str]) -> str:
    """The workspace, in its canonical form: the argument, else ``WORKSPACE_ID``.

    Raises:
        ConfigError: There is neither, or it can't be an id.
    """
    found = argument if argument is not None else environ.get(WORKSPACE_VARIABLE)
    if not found or not found.strip():
        raise ConfigError(
            "no workspace id was given",
            hint=f"run 'molecule connect WORKSPACE_ID', or set {WORKSPACE_VARIABLE}; the platform shows the id",
        )
    return check_workspace_id(found)


def journal_quota(flag: int | None, environ: Mapping[str, str]) -> int:
    """The most bytes of the journal: the flag, the variable, the default.

    Raises:
        ConfigError: The variable holds no size.
    """
    if flag is not None or not (text := environ.get(JOURNAL_QUOTA_VARIABLE)):
        return DEFAULT_JOURNAL_QUOTA if flag is None else flag
    try:
        return parse_size(text)
    except ConfigError as exc:
        raise ConfigError(f"{JOURNAL_QUOTA_VARIABLE}: {exc}", hint=exc.hint) from None


def create(environ: Mapping[str, str]) -> bool:
    """Whether ``MOLECULE_CREATE`` asks for a workspace that the platform doesn't have yet.

    Raises:
        ConfigError: It says neither yes nor no.
    """
    value = environ.get(CREATE_VARIABLE, "").strip().lower()
    if value not in ("", "0", "1", "false", "true", "no", "yes", "off", "on"):
        raise ConfigError(f"{CREATE_VARIABLE} says neither yes nor no", hint="set it to 1, or unset it")
    return value in ("1", "true", "yes", "on")


def token_source(token: str | None, token_file: str | Path | None, environ: Mapping[str, str]) -> TokenSource | None:
    """The first source that is named: the flags, then the variables. It is read and checked here, before any request.

    Raises:
        ConfigError: It is missing, blank, a placeholder, or open to others. A source that is named is never skipped.
    """
    if token is not None:
        return TokenSource(name="--token", token=check_token(token, source="--token"))
    if token_file is not None:
        # A path cannot tell: an empty one is the current folder.
        if not str(token_file).strip():
            raise ConfigError("--token-file is empty", hint="name a file, or leave --token-file out")
        return _file_source("--token-file", token_file)
    if environ.get(TOKEN_VARIABLE):
        return TokenSource(name=TOKEN_VARIABLE, token=check_token(environ[TOKEN_VARIABLE], source=TOKEN_VARIABLE))
    if environ.get(TOKEN_FILE_VARIABLE):
        return _file_source(TOKEN_FILE_VARIABLE, environ[TOKEN_FILE_VARIABLE])
    return None


def find_tls(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Tls:
    """Whom to trust and what to show: each file by its flag, else by its variable."""
    named = {field: flags.get(field) or environ.get(variable) or None for field, variable in TLS_VARIABLES.items()}
    return Tls(**{field: path_of(str(name)).absolute() if name else None for field, name in named.items()})


def find_token(
    token: str | None,
    token_file: str | Path | None,
    environ: Mapping[str, str],
    *,
    workspace_id: str,
    state_dir: Path | None,
) -> dict[str, Any]:
    """The fields of settings that say where the token of the only workspace comes from.

    That is the first of ``token_source``, what the platform handed out earlier, which lies in *state_dir*, and
    ``.auth_token`` of the clients that were there before.

    Raises:
        ConfigError: There is none, or the first one cannot be used.
    """
    source = token_source(token, token_file, environ)
    if source is not None:
        return {"token": source.token, "token_source": source.name, "token_file": source.file}
    if state_dir is not None and state_file(state_dir, workspace_id, ".token").exists():
        return {"token_source": "the state folder"}
    older = older_token_file(environ, home=home_dir())
    if older is not None:
        return {"token": read_token_file(older), "token_source": str(older), "adopt_token": True}
    raise no_token()


def older_token_file(environ: Mapping[str, str], *, home: Path, configs: Path = CONFIGS_DIR) -> Path | None:
    """Where the platform's Python runtime and MCP server keep the token of their only workspace; None: nowhere."""
    named = environ.get("CONFIGS_DIR")
    folders = [path_of(named)] if named else [configs, home / ".molecule-workspace"]
    return next((file for file in (folder / ".auth_token" for folder in folders) if file.is_file()), None)


def no_token() -> ConfigError:
    """The error of a start without any token."""
    return ConfigError(
        "no workspace token was given",
        hint=f"set {TOKEN_VARIABLE}, or name a file with --token-file; the platform hands the token out",
    )


def _file_source(name: str, named: str | Path) -> TokenSource:
    file = path_of(str(named)).absolute()
    token = read_token_file(file)
    # A pipe, as in --token-file <(pass show token), can be read only once.
    return TokenSource(name=name, file=file) if file.is_file() else TokenSource(name=name, token=token)
