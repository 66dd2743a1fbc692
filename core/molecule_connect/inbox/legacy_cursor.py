"""Migrates the position of the older inbox program, if the journal has none yet."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from molecule_connect.config.state_dir import state_file
from molecule_connect.journal.journal import Journal
from molecule_connect.models import FeedPosition, canonical_id

NAME = ".mcp_inbox_cursor"
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")


def folders(environ: Mapping[str, str], *, home: Path) -> list[Path]:
    """The folders in which that program stored its position, in order of precedence."""
    named = [Path(environ["CONFIGS_DIR"])] if environ.get("CONFIGS_DIR") else []
    return [*named, Path("/configs"), home / ".molecule-workspace"]


async def migrate(
    journal: Journal, state_dir: Path, workspace_id: str, folders: Sequence[Path], *, others: Collection[str]
) -> str | None:
    """Start reading after the row that the older program read last. Returns the row, or None if there is none.

    Args:
        others: The other workspaces of this process. If there are any, a file without a workspace id is ambiguous and
            ignored, and so is a file with the start of an id that several workspaces share.
    """
    workspace_journal = journal.of(workspace_id)
    if workspace_journal.position() != FeedPosition() or state_file(state_dir, workspace_id, ".json").exists():
        return None
    names = _file_names(workspace_id, others)
    for path in (folder / name for folder in folders for name in names):
        try:
            cursor = path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            continue
        if _ID.match(cursor):
            await workspace_journal.set_position(FeedPosition(watermark=cursor))
            return cursor
    return None


def _file_names(workspace_id: str, others: Collection[str]) -> list[str]:
    suffixes = [f"_{workspace_id}"]
    if not any(other.startswith(workspace_id[:8]) for other in others):
        suffixes.append(f"_{workspace_id[:8]}")
    if not others:
        suffixes.append("")
    # That program used ids as they were given, without normalizing their case.
    spellings = (str.lower, str.upper) if canonical_id(workspace_id.upper()) == workspace_id else (str,)
    return [f"{NAME}{spelling(suffix)}" for suffix in suffixes for spelling in spellings]
