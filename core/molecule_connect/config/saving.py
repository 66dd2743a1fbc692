"""Write a profile: its ``config.toml`` and the file with its token."""

import contextlib
import fcntl
import os
import re
import signal
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from molecule_connect import files
from molecule_connect.config.saved import CONFIG_NAME, TOKEN_NAME
from molecule_connect.config.settings import SCHEMA, WorkspaceSettings
from molecule_connect.config.state_dir import named_state_dir
from molecule_connect.config.tokens import TOKEN_FIELDS
from molecule_connect.errors import ConfigError

_ALWAYS = ("workspace_id", "api_url", "backend")
# What a start does once, and later starts must not repeat; and what has a meaning only in a list.
_NEVER = ("create", "unpause", "once", "enabled")
_HEAD = """\
# The settings of a Molecule workspace, for 'molecule connect' and the other commands.
# 'molecule init' and 'molecule connect --save' write this file. The keys are those of a [[workspace]] in a list.
# Flags and environment variables win over them. Keep the file private: options may contain secrets.
"""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def format_settings(settings: WorkspaceSettings, *, state_dir: Path | None = None) -> str:
    """The ``config.toml`` of *settings*. It doesn't contain the token.

    Raises:
        ConfigError: A value can't be written as text.
    """
    plain, tables = ["[[workspace]]"], []
    for name, setting in SCHEMA.items():
        value = getattr(settings, name)
        if not setting.key or name in (*TOKEN_FIELDS, *_NEVER) or (value == setting.default and name not in _ALWAYS):
            continue
        document = setting.kind.to_document(value)
        if isinstance(document, Mapping):
            lines = [f"{_key(key)} = {_value(one)}" for key, one in document.items()]
            tables += ["", f"[workspace.{setting.key}]", *lines]
        else:
            plain.append(f"{setting.key} = {_value(document)}")
    plain.append(f"{SCHEMA['token_file'].key} = {_value(TOKEN_NAME)}")
    # A dollar sign starts a variable in a path.
    top = [f"state_dir = {_value(str(state_dir).replace('$', '$$'))}", ""] if state_dir is not None else []
    return "\n".join([_HEAD, *top, *plain, *tables, ""])


def check_state_dir(named: str | None, environ: Mapping[str, str]) -> Path | None:
    """The state folder to save: that of ``--state-dir``, if any.

    Raises:
        ConfigError: Later starts would use another one, which a variable names.
    """
    if named is None:
        return None
    chosen, by_variable = named_state_dir(named, environ), named_state_dir(None, environ)
    if chosen is None or by_variable is None or chosen[1] == by_variable[1]:
        return chosen[1] if chosen else None
    raise ConfigError(
        f"--state-dir would have no effect later: {by_variable[0]} is set to {by_variable[1]}",
        hint=f"unset {by_variable[0]}, or omit --state-dir",
    )


def write_profile(folder: Path, settings_text: str, token: str) -> Path:
    """Write both files of a profile to *folder* (mode 0600), and return the path of its ``config.toml``.

    The token file never stands beside the settings of another workspace, even if the process is killed: the old
    settings are removed first, and the new ones are added last. Links are replaced, not followed.

    Raises:
        ConfigError: They can't be written. Earlier files are unchanged.
    """
    config, token_file = folder / CONFIG_NAME, folder / TOKEN_NAME
    try:
        files.make_folder(folder)
        with _locked(folder):
            for path in (config, token_file):
                if os.path.lexists(path) and stat.S_ISDIR(path.lstat().st_mode):
                    raise IsADirectoryError(0, f"{path} is a folder")
            with (
                _written(config, settings_text) as new_config,
                _written(token_file, f"{token}\n") as new_token,
                _uninterrupted(),
            ):
                config.unlink(missing_ok=True)
                new_token.replace(token_file)
                new_config.replace(config)
            _sync(folder)
    except OSError as exc:
        raise ConfigError(
            f"the settings can't be saved in {folder}: {exc.strerror or type(exc).__name__}",
            hint="make the folder writable for this user, free disk space, or name another with MOLECULE_STATE_DIR",
        ) from exc
    return config


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float():
            return str(int(value)) if value.is_integer() else repr(value)
        case int():
            return str(value)
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
    return _text(str(value))


def _text(text: str) -> str:
    return f'"{"".join(map(_character, text))}"'


def _character(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    code = ord(char)
    if 0xD800 <= code <= 0xDFFF:
        raise ConfigError(
            "a setting contains bytes that aren't text, and can't be saved",
            hint="write it in UTF-8, or put it into a file",
        )
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _written(path: Path, text: str) -> Iterator[Path]:
    """A new file beside *path*, removed at the end unless it was renamed."""
    new = path.with_name(f".{path.name}.new")
    # A killed process may have left one. The name is fixed, so that no second copy of a token remains.
    new.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            os.fchmod(file.fileno(), files.FILE_MODE)  # whatever the umask
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        yield new
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and other requests to stop back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
