"""The position of the inbox program that was there before: taken over once, where the journal has none yet."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from molecule_connect.config.state_dir import state_file
from molecule_connect.journal.journal import Journal
from molecule_connect.models import FeedPosition, canonical_id

NAME = ".mcp_inbox_cursor"
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")


def folders(environ: Mapping[str, str], *, home: Path) -> list[Path]:
    """Where that program kept it, the first one first."""
    named = [Path(environ["CONFIGS_DIR"])] if environ.get("CONFIGS_DIR") else []
    return [*named, Path("/configs"), home / ".molecule-workspace"]


async def take_over(
    journal: Journal, state_dir: Path, workspace_id: str, folders: Sequence[Path], *, others: Collection[str]
) -> str | None:
    """Start reading after the row where that program stood. Gives the row, or None when nothing was taken over.

    Args:
        others: The other workspaces of this process: with any, a position that names no workspace is nobody's, and
            one that names the beginning of an id is not its own where that is the beginning of another's too.
    """
    mine = journal.of(workspace_id)
    if mine.position() != FeedPosition() or state_file(state_dir, workspace_id, ".json").exists():
        return None
    suffixes = [f"_{workspace_id}"]
    if not any(other.startswith(workspace_id[:8]) for other in others):
        suffixes.append(f"_{workspace_id[:8]}")
    if not others:
        suffixes.append("")
    # That program spelled an id as it was given.
    spellings = (str.lower, str.upper) if canonical_id(workspace_id.upper()) == workspace_id else (str,)
    names = [f"{NAME}{spelling(suffix)}" for suffix in suffixes for spelling in spellings]
    for path in (folder / name for folder in folders for name in names):
        try:
            cursor = path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            continue
        if _ID.match(cursor):
            await mine.set_position(FeedPosition(watermark=cursor))
            return cursor
    return None
