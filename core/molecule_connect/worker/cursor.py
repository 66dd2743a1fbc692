"""The cursor file: the last handled row, for other programs. Only read if there is no journal yet."""

import json
import re
from pathlib import Path
from typing import Any

import attrs

from molecule_connect import files
from molecule_connect.errors import JournalError

_ROW_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")


@attrs.define
class CursorFile:
    """``<state>/<workspace-id>.json``: ``workspace_id``, ``last_since_id``, and the members of other programs."""

    folder: Path
    workspace_id: str
    _content: dict[str, Any] = attrs.field(factory=dict, init=False)
    _written: str | None = attrs.field(default=None, init=False)

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.folder / f"{self.workspace_id}.json"

    def load(self) -> tuple[str | None, str]:
        """The cursor that another program left, and a warning if the file can't be read.

        An invalid file is renamed.
        """
        try:
            content = json.loads(files.read(self.path))
            if not isinstance(content, dict):
                raise TypeError("not an object")
            cursor = content.get("last_since_id")
            if cursor == "":
                cursor = None
            if cursor is not None and not (isinstance(cursor, str) and _ROW_ID.match(cursor)):
                raise TypeError("last_since_id is not a valid row id")
        except FileNotFoundError:
            return None, ""
        except (OSError, ValueError, TypeError, RecursionError) as exc:
            aside = self.path.with_suffix(".json.unreadable")
            try:
                self.path.replace(aside)
            except OSError:
                return None, f"the cursor file {self.path} can't be read ({exc})"
            return None, f"the cursor file {self.path} can't be read ({exc}), and was renamed to {aside.name}"
        self._content, self._written = content, cursor
        return cursor, ""

    def save(self, cursor: str | None) -> bool:
        """Replace the file atomically, if *cursor* is new. Returns whether it was written.

        Raises:
            JournalError: The file can't be written.
        """
        if not cursor or cursor == self._written:
            return False
        content = {**self._content, "workspace_id": self.workspace_id, "last_since_id": cursor}
        try:
            files.replace(self.path, json.dumps(content, indent=2).encode() + b"\n")
        except OSError as exc:
            raise JournalError(
                f"the cursor file {self.path} can't be written: {exc}",
                hint="free disk space, or check the state folder",
            ) from exc
        self._content, self._written = content, cursor
        return True
