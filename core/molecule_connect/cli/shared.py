"""The database of ``--journal``, for commands that look into it."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

from molecule_connect.cli.options import JOURNAL_VARIABLE
from molecule_connect.config.load import parse_file
from molecule_connect.config.workspaces import WorkspacesError
from molecule_connect.errors import ConfigError
from molecule_connect.journal.shared_copies import load_copies
from molecule_connect.mirrors import JournalMirror, MirrorInfo
from molecule_connect.plugins.mirrors import create_mirror

T = TypeVar("T")
INIT, MIGRATE = "run: molecule journal init --journal URL", "run: molecule journal migrate --journal URL"


def find_url(journal_url: str | None, config: Path | None) -> str:
    """The database that the flags name.

    Args:
        journal_url: The value of ``--journal``, which wins.
        config: The value of ``--config``.

    Raises:
        ConfigError: They name none, or the file can't be used.
    """
    if journal_url:
        return journal_url
    if config is None:
        raise ConfigError("no database given", hint=f"pass --journal URL, or set {JOURNAL_VARIABLE}")
    found = parse_file(config, os.environ)
    if found.faults:
        raise WorkspacesError(found.source, found.faults)
    if not found.journal.url:
        raise ConfigError(f"{config} names no database", hint='write it as url = "..." in a table [journal]')
    return found.journal.url


def use_mirror(url: str, use: Callable[[JournalMirror], Awaitable[T]]) -> T:
    """The result of *use* for the mirror at *url*.

    Raises:
        ConfigError: The URL is invalid, or the plugin isn't installed.
        MirrorError: The database can't be used.
    """

    async def run() -> T:
        mirror = create_mirror(url)
        try:
            return await use(mirror)
        finally:
            await mirror.aclose()

    return asyncio.run(run())


@contextlib.contextmanager
def loaded_journal(url: str, workspace_id: str | None) -> Iterator[Path]:
    """A temporary folder with a journal of the copies in the database: of one workspace, or of all.

    Raises:
        MirrorError: The database can't be used.
        ConfigError: The database doesn't have the workspace, the URL is invalid, or the plugin isn't installed.
    """

    async def load(mirror: JournalMirror) -> None:
        found = await mirror.overview(None if workspace_id is None else [workspace_id])
        if not found and workspace_id is not None:
            raise ConfigError(
                f"{mirror.where} has no workspace {workspace_id!r}",
                hint="'molecule status --journal URL' lists its workspaces",
            )
        await load_copies(mirror, [one.workspace_id for one in found if one.changed is not None], Path(folder))

    with tempfile.TemporaryDirectory(prefix="molecule-journal-") as folder:
        use_mirror(url, load)
        yield Path(folder)


def fault_of(info: MirrorInfo) -> tuple[str, str]:
    """Why this release can't use the tables, and what to do; two empty texts if it can."""
    if not info.schema:
        return "no tables of molecule-connect", INIT
    if info.schema < info.current:
        return f"tables of version {info.schema}, but this release needs {info.current}", MIGRATE
    return "", ""
