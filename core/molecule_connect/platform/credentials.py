"""The token of a workspace: its sources, which one to try next, and the file for tokens that the platform issues.

No message and no repr contains a token.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from molecule_connect import files
from molecule_connect.config.saved import SavedToken
from molecule_connect.config.state_dir import state_file
from molecule_connect.config.tokens import CREATE_HINT, check_token, parse_token_file, read_token_file
from molecule_connect.errors import ConfigError

# Replacing a shorter string would garble the text.
SHORTEST_SECRET = 6


class TokenSource(Protocol):
    """The token of a client."""

    @property
    def origin(self) -> str | None:
        """The only place that the token may be sent to. None: the client's platform."""

    @property
    def source(self) -> str:
        """Where the token is from, for messages to the operator."""

    @property
    def kept_path(self) -> Path | None:
        """The file for a token that the platform issues; None keeps it in memory only."""

    def check(self) -> None:
        """Raise ConfigError if a token is required and missing."""

    def current(self) -> str:
        """Return the current token. Raises ConfigError if there is none."""

    def optional(self) -> str | None:
        """Return the current token, or None, for endpoints that work without one."""

    def after_refusal(self, refused: str) -> str | None:
        """Return another token to try once, or None."""

    def keep(self, token: str) -> None:
        """Use a token that the platform issued. Raises ConfigError if it can't be stored, too."""

    def redact(self, text: str) -> str:
        """Return *text* without any token that was ever used."""


class Credentials:
    """The token of one workspace on one platform, and others to try if it is refused.

    Args:
        origin: The token is sent to this origin only. A stored token of another origin is not used.
        token: The token itself; *source* names its origin for the operator.
        token_file: Read if there is no *token*, and again each time the token is refused.
        state_dir: The folder for a token that the platform issues. None keeps it in memory only.
    """

    def __init__(
        self,
        workspace_id: str,
        *,
        origin: str,
        token: str | None = None,
        source: str = "token",
        token_file: Path | SavedToken | None = None,
        state_dir: Path | None = None,
    ) -> None:
        self._workspace_id, self.origin = workspace_id, origin
        self._given = check_token(token, source=source) if token is not None else None
        self._file = token_file if token is None else None
        self._state_dir = state_dir
        self._issued: str | None = None
        self._current: str | None = None
        self._seen: set[str] = set()
        self.source = f"the token file {token_file}" if self._file is not None else source

    def __repr__(self) -> str:
        return f"Credentials({self._workspace_id!r}, source={self.source!r})"

    @property
    def kept_path(self) -> Path | None:
        return None if self._state_dir is None else self._state_dir / f"{self._workspace_id}.token"

    def check(self) -> None:
        self.current()

    def optional(self) -> str | None:
        return self.current()

    def current(self) -> str:
        """Return the current token.

        Raises:
            ConfigError: There is none, or its source can't be read.
        """
        if self._current is None:
            token = next(self._candidates(strict=True), None)
            if token is None:
                raise ConfigError(
                    f"no token for workspace {self._workspace_id}",
                    hint="set MOLECULE_WORKSPACE_TOKEN, or pass --token-file; " + CREATE_HINT,
                )
            self._use(token)
        return self._current or ""

    def after_refusal(self, refused: str) -> str | None:
        """Read the sources again and return another token to try once, or None if there is only *refused*."""
        if self._current not in (None, refused):
            return self._current
        for token in self._candidates(strict=False):
            if token != refused:
                self._use(token)
                return token
        return None

    def keep(self, token: str) -> None:
        """Use a token that the platform issued, and write it to the state folder (mode 0600).

        Raises:
            ConfigError: It can't be written; it is used anyway.
        """
        token = check_token(token, source="the platform")
        self._issued = token
        self._use(token)
        path = self.kept_path
        if path is None:
            return
        try:
            _keep(path, f"# {self.origin}\n{token}\n")
        except OSError as exc:
            raise ConfigError(
                f"the token that the platform issued cannot be kept in {path}: {exc.strerror}",
                hint="make the folder writable, and create a new token on the platform: this one is shown once",
            ) from exc

    def redact(self, text: str) -> str:
        for token in (token for token in self._seen if len(token) >= SHORTEST_SECRET):
            text = text.replace(token, "***")
        return text

    def _use(self, token: str) -> None:
        self._current = token
        self._seen.add(token)

    def _candidates(self, *, strict: bool) -> Iterator[str]:
        if self._given is not None:
            yield self._given
        if self._file is not None:
            try:
                yield self._file.read() if isinstance(self._file, SavedToken) else read_token_file(self._file)
            except ConfigError:
                if strict:
                    raise
        if self._issued is not None:
            yield self._issued
        try:
            kept = self._kept()
        except ConfigError:
            if strict:
                raise
            return
        if kept is not None:
            yield kept

    def _kept(self) -> str | None:
        """Return the stored token.

        Raises:
            ConfigError: The file is accessible to other users, or theirs.
        """
        if self._state_dir is None:
            return None
        path = state_file(self._state_dir, self._workspace_id, ".token")
        try:
            with os.fdopen(files.open_file(path, os.O_RDONLY), "rb") as file:
                exposed = files.exposure(os.fstat(file.fileno()), path, group_may_write=True)
                text = file.read().decode()
        except files.ForeignError as exc:
            exposed, text = (exc.strerror or "", "remove it, and find out who put it there"), ""
        except (OSError, UnicodeDecodeError):
            return None
        if exposed is not None:
            raise ConfigError(f"the token file {path} {exposed[0].removeprefix('it ')}", hint=exposed[1])
        first = text.partition("\n")[0]
        if first.startswith("# ") and first != f"# {self.origin}":
            return None
        try:
            return parse_token_file(text, path)
        except ConfigError:
            return None


def _keep(path: Path, text: str) -> None:
    """Write *text* to *path* and sync the folder, too: the platform shows a token only once."""
    files.replace(path, text.encode())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
