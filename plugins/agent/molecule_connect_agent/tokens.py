"""The token of an agent, in memory and in a file that other programs can read and replace."""

import logging
import os
import stat
import threading
from pathlib import Path

from molecule_connect import ArgumentError, ConfigError, canonical_id, check_token, files

# Replacing a shorter one would garble texts.
_SHORTEST_SECRET = 6

_log = logging.getLogger(__name__)


class TokenFile:
    """A token source for ``AsyncPlatformClient``. Threads can share it, and processes its file.

    Args:
        folder: Where the file is. None: ``~/.molecule/<workspace_id>``.
        token: The token to use first. If it is refused, the file is read.
    """

    origin = None

    def __init__(self, workspace_id: str, folder: str | Path | None, *, token: str | None = None) -> None:
        self._workspace_id = canonical_id(workspace_id)
        self.path = _folder(self._workspace_id, folder) / ".auth_token"
        self._lock = threading.Lock()
        self._token = None if token is None else check_token(token, source="the token argument")
        self._seen = set() if self._token is None else {self._token}

    def __repr__(self) -> str:
        return f"TokenFile({str(self.path)!r})"

    @property
    def source(self) -> str:
        """Where the token comes from, for messages."""
        return f"the token file {self.path}"

    @property
    def kept_path(self) -> Path:
        """Where an issued token is stored."""
        return self.path

    def load(self) -> str | None:
        """The token in memory, else the file's, else None. A file that can't be read logs a warning.

        Raises:
            ConfigError: Others can read or change the file, or it belongs to another user.
        """
        with self._lock:
            if self._token is None:
                self._use(self._read())
            return self._token

    def save(self, token: str) -> None:
        """Use *token* from now on, and write it to the file.

        Raises:
            ArgumentError: It is blank.
            ConfigError: It is not a valid token, or can't be written; in this case it is used anyway.
        """
        if not token.strip():
            raise ArgumentError("the token to save is blank", hint="pass the token itself")
        token = check_token(token, source="save_token")
        with self._lock:
            self._use(token)
        try:
            _make_private(self.path.parent)
            files.replace(self.path, f"{token}\n".encode())
        except OSError as exc:
            raise ConfigError(
                f"can't write the token to {self.path}: {exc.strerror or type(exc).__name__}",
                hint="make the folder writable, or name another with token_dir",
            ) from exc

    def check(self) -> None:
        """There may be no token: a new workspace receives it when it registers."""

    def optional(self) -> str | None:
        """The token to use now, or None."""
        return self.load()

    def current(self) -> str:
        """The token to use now. Raises ConfigError when there is none."""
        token = self.load()
        if token is None:
            raise ConfigError(
                f"no token for workspace {self._workspace_id} in memory or in {self.path}",
                hint="call register() first, or save_token() with the token that the platform shows",
            )
        return token

    def after_refusal(self, refused: str) -> str | None:
        """The token that another thread or program stored meanwhile, or None."""
        with self._lock:
            if self._token not in (None, refused):
                return self._token
            try:
                token = self._read()
            except ConfigError as exc:
                _log.warning("%s; it is ignored -> %s", exc, exc.hint)
                return None
            if token is None or token == refused:
                return None
            self._use(token)
            return token

    def keep(self, token: str) -> None:
        """Save a token that the platform issued."""
        self.save(token)

    def redact(self, text: str) -> str:
        """*text* without the tokens that were used."""
        for token in (token for token in tuple(self._seen) if len(token) >= _SHORTEST_SECRET):
            text = text.replace(token, "***")
        return text

    def _use(self, token: str | None) -> None:
        self._token = token
        if token is not None:
            self._seen.add(token)

    def _read(self) -> str | None:
        try:
            with self.path.open("rb") as file:
                exposed = files.exposure(os.fstat(file.fileno()), self.path)
                text = file.read().decode("utf-8-sig").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as exc:
            reason = getattr(exc, "strerror", None) or "it is not text"
            _log.warning("can't read the token file %s: %s", self.path, reason)
            return None
        if exposed is not None:
            raise ConfigError(f"the token file {self.path} {exposed[0]}", hint=exposed[1])
        try:
            return check_token(text, source=f"the token file {self.path}") if text else None
        except ConfigError as exc:
            _log.warning("%s; it is ignored", exc)
        return None


def _folder(workspace_id: str, folder: str | Path | None) -> Path:
    try:
        if folder is not None:
            return Path(folder).expanduser()
        home = Path.home() / ".molecule"
    except RuntimeError as exc:
        whose = "this user" if folder is None else f"the user that token_dir {str(folder)!r} names"
        raise ConfigError(f"{whose} has no home folder", hint="pass a token_dir without ~") from exc
    if not (home / workspace_id).exists() and home.is_dir():
        # Earlier releases didn't change the case of an id.
        return next((path for path in home.iterdir() if path.name.lower() == workspace_id), home / workspace_id)
    return home / workspace_id


def _make_private(folder: Path) -> None:
    files.make_folder(folder)
    # A shared folder, such as /tmp.
    if folder.stat().st_mode & stat.S_ISVTX:
        return
    try:
        folder.chmod(0o700)
    except OSError:
        _log.debug("can't change the mode of %s", folder)
