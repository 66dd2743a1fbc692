"""The token of an agent: in memory, and in a file of its own that other programs of the agent may read and write."""

import logging
import os
import stat
import threading
from pathlib import Path

from molecule_connect import files
from molecule_connect.config.tokens import check_token
from molecule_connect.errors import ArgumentError, ConfigError
from molecule_connect.platform.credentials import SHORTEST_SECRET

_log = logging.getLogger(__name__)


class TokenFile:
    """Implements ``calling.TokenSource``. Threads may share it, and processes its file.

    Args:
        given: The token to begin with; when it is refused, the file's is tried.
    """

    def __init__(self, path: Path, *, workspace_id: str, origin: str, given: str | None = None) -> None:
        self.path, self.origin = path, origin
        self._workspace_id = workspace_id
        self._lock = threading.Lock()
        self._token = None if given is None else check_token(given, source="the token argument")
        self._seen = set() if self._token is None else {self._token}

    def __repr__(self) -> str:
        return f"TokenFile({str(self.path)!r})"

    @property
    def source(self) -> str:
        """Where the token comes from, in words."""
        return f"the token file {self.path}"

    @property
    def kept_path(self) -> Path:
        """Where a handed-out token is kept."""
        return self.path

    def load(self) -> str | None:
        """The token in memory, else the file's, else None; a file that cannot be read is warned of.

        Raises:
            ConfigError: The file is open to others, or theirs.
        """
        with self._lock:
            if self._token is None:
                self._use(self._read())
            return self._token

    def save(self, token: str) -> None:
        """Uses *token* from now on and writes it.

        Raises:
            ArgumentError: It is blank.
            ConfigError: It cannot be a token, or cannot be written; then it is used all the same.
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
                f"the token cannot be kept in {self.path}: {exc.strerror or type(exc).__name__}",
                hint="make the folder writable, or name another with token_dir",
            ) from exc

    def check(self) -> None:
        """Nothing to check: a workspace that is new to the platform gets its token when it registers."""

    def optional(self) -> str | None:
        """The token to use now, or None."""
        return self.load()

    def current(self) -> str:
        """The token to use now. Raises ConfigError when there is none."""
        token = self.load()
        if token is None:
            raise ConfigError(
                f"no token for workspace {self._workspace_id} in memory or in {self.path}",
                hint="call register() first, or save_token() with the one that the platform shows",
            )
        return token

    def after_refusal(self, refused: str) -> str | None:
        """The token that another thread or program has stored meanwhile, or None."""
        with self._lock:
            if self._token not in (None, refused):
                return self._token
            try:
                token = self._read()
            except ConfigError as exc:
                _log.warning("%s; it is not used -> %s", exc, exc.hint)
                return None
            if token is None or token == refused:
                return None
            self._use(token)
            return token

    def keep(self, token: str) -> None:
        """``save`` for what a register handed out."""
        self.save(token)

    def redact(self, text: str) -> str:
        """*text* without any token that was ever used here."""
        for token in (token for token in tuple(self._seen) if len(token) >= SHORTEST_SECRET):
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
            _log.warning("the token file %s cannot be read: %s", self.path, reason)
            return None
        if exposed is not None:
            raise ConfigError(f"the token file {self.path} {exposed[0]}", hint=exposed[1])
        try:
            return check_token(text, source=f"the token file {self.path}") if text else None
        except ConfigError as exc:
            _log.warning("%s; it is not used", exc)
        return None


def _make_private(folder: Path) -> None:
    files.make_folder(folder)
    # A folder such as /tmp is everybody's.
    if folder.stat().st_mode & stat.S_ISVTX:
        return
    try:
        folder.chmod(0o700)
    except OSError:
        _log.debug("%s keeps its mode: its file system, or its owner, allows no other", folder)
