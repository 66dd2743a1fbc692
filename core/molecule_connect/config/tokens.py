"""Find the token of a workspace. No text and no repr contains a token."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molecule_connect import files
from molecule_connect.config.settings import SCHEMA
from molecule_connect.config.state_dir import CONFIGS_DIR, home_dir, state_file
from molecule_connect.config.values import parse_path
from molecule_connect.errors import ConfigError

(TOKEN_VARIABLE,) = SCHEMA["token"].variables
(TOKEN_FILE_VARIABLE,) = SCHEMA["token_file"].variables
# The source of a token that an earlier registration returned.
STATE_DIR_SOURCE = "the state folder"
# The source of the token that belongs to saved settings.
SAVED_SOURCE = "the saved settings"
# Sources that are read only at the start: the program can't see that they change. A token file is read again.
READ_ONCE = frozenset({"--token", "--token-file", TOKEN_VARIABLE, TOKEN_FILE_VARIABLE, "MOLECULE_WORKSPACES"})
TOKEN_FIELDS = ("token", "token_file")
CREATE_HINT = "create one on the platform: canvas, workspace settings, workspace tokens"
_PLACEHOLDER = re.compile(
    r"<.*>?|\[.*\]|\.{2,}|…|\*+|x{3,}|\$\{?\w*\}?|changeme|(?:your|paste|insert|replace)[-_ ].*", re.IGNORECASE
)


def check_token(token: str, *, source: str) -> str:
    """*token* without surrounding white space.

    Raises:
        ConfigError: It is empty, a placeholder, or can't be sent in a header. The text names only *source*.
    """
    token = token.strip()
    if not token:
        raise ConfigError(f"the token from {source} is empty", hint=CREATE_HINT)
    if _PLACEHOLDER.fullmatch(token):
        raise ConfigError(f"the token from {source} is a placeholder, not a token", hint=CREATE_HINT)
    if token[:7].lower() == "bearer ":
        raise ConfigError(f"the token from {source} starts with 'Bearer'", hint="pass only the part after it")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"the token from {source} contains a space or another character that tokens don't have",
            hint="copy it again, on one line",
        )
    return token


def parse_token_file(text: str, path: Path) -> str:
    """The token in *text*, the content of *path*. Lines that start with ``#`` are comments.

    Raises:
        ConfigError: The text has no token, more than one, or an invalid one.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise ConfigError(f"the token file {path} contains no token", hint="write the token to it, on one line")
    if len(lines) > 1:
        raise ConfigError(f"the token file {path} has {len(lines)} lines", hint="it must contain one token on one line")
    return check_token(lines[0], source=f"the token file {path}")


def read_token_file(path: Path) -> str:
    """The token in *path*, which may be a link or a pipe.

    Raises:
        ConfigError: It is missing, other users can access it, or it doesn't contain exactly one token.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = file.read().decode("utf-8-sig")
    except FileNotFoundError as exc:
        raise ConfigError(
            f"the token file {path} does not exist", hint="check the path, or write the token there"
        ) from exc
    except UnicodeDecodeError:
        raise ConfigError(f"the token file {path} is not text", hint="it must contain only the token") from None
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        raise ConfigError(
            f"the token file {path} cannot be read: {reason}", hint="make it readable for this user"
        ) from exc
    if exposed := files.exposure(status, path):
        raise ConfigError(f"the token file {path} {exposed[0]}", hint=exposed[1])
    return parse_token_file(text, path)


def find_token(
    flags: Mapping[str, Any], environ: Mapping[str, str], *, workspace_id: str, state_dir: Path | None
) -> dict[str, Any]:
    """The settings for the token of a single workspace. The first source that is set must be usable.

    The sources are, in this order: ``--token`` and ``--token-file`` in *flags*, their variables, the state folder
    with a token that a registration returned, and the file of the platform's other clients.

    Raises:
        ConfigError: No source is set, or the first one can't be used.
    """
    if "token" in flags:
        return {"token": check_token(flags["token"], source="--token"), "token_source": "--token"}
    if "token_file" in flags:
        if flags["token_file"] is None:
            raise ConfigError("--token-file is empty", hint="pass a file, or omit --token-file")
        return _from_file(flags["token_file"], "--token-file")
    if environ.get(TOKEN_VARIABLE):
        token = check_token(environ[TOKEN_VARIABLE], source=TOKEN_VARIABLE)
        return {"token": token, "token_source": TOKEN_VARIABLE}
    if environ.get(TOKEN_FILE_VARIABLE):
        return _from_file(parse_path(environ[TOKEN_FILE_VARIABLE]).absolute(), TOKEN_FILE_VARIABLE)
    if has_kept_token(state_dir, workspace_id):
        return {"token_source": STATE_DIR_SOURCE}
    legacy = find_legacy_file(environ)
    if legacy is not None:
        return {"token": read_token_file(legacy), "token_source": str(legacy), "adopt_token": True}
    raise no_token_error()


def names_token(flags: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Whether *flags* or variables say where the token is."""
    return any(name in flags for name in TOKEN_FIELDS) or any(
        environ.get(variable) for variable in (TOKEN_VARIABLE, TOKEN_FILE_VARIABLE)
    )


def has_kept_token(state_dir: Path | None, workspace_id: str) -> bool:
    """Whether the state folder contains a token that a registration returned."""
    return state_dir is not None and state_file(state_dir, workspace_id, ".token").exists()


def find_legacy_file(
    environ: Mapping[str, str], *, home: Path | None = None, configs: Path = CONFIGS_DIR
) -> Path | None:
    """The file where the platform's Python runtime and MCP server keep the token of their only workspace, if any."""
    named = environ.get("CONFIGS_DIR")
    folders = [parse_path(named)] if named else [configs, (home or home_dir()) / ".molecule-workspace"]
    return next((file for file in (folder / ".auth_token" for folder in folders) if file.is_file()), None)


def no_token_error() -> ConfigError:
    """The error of a start without a token."""
    return ConfigError(
        "no workspace token was given",
        hint=f"set {TOKEN_VARIABLE}, pass a file with --token-file, or save one with 'molecule init'; tokens are "
        "created on the platform",
    )


def _from_file(file: Path, source: str) -> dict[str, Any]:
    token = read_token_file(file)
    # A pipe, as in --token-file <(pass show token), can be read only once.
    return {"token_source": source, **({"token_file": file} if file.is_file() else {"token": token})}
