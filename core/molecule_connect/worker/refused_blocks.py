"""The file in which a process lists the blocks of its workspaces file that it can't serve."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from molecule_connect import files
from molecule_connect.worker.status import Problem, write_file

_SUFFIX = ".refused"


@attrs.frozen(kw_only=True)
class RefusedBlocks:
    """The refused blocks of one process, by workspace id, or by number for a block without one."""

    pid: int
    host: str
    blocks: Mapping[str, Problem]


class RefusedBlocksFile:
    """``<state>/<host>.<pid>.refused``: the refused blocks of this process. Exists only while there are any.

    They have a file of their own because a block may have no valid id, and another process may serve its workspace.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{socket.gethostname().replace('/', '_')}.{os.getpid()}{_SUFFIX}"

    def write(self, blocks: Mapping[str, Problem]) -> None:
        """Replace the content by *blocks*, and remove the files of processes that don't run any more."""
        for path in _files(self._path.parent):
            if path == self._path or not _is_running(path):
                with contextlib.suppress(OSError):
                    path.unlink()
        if blocks:
            problems = {name: attrs.asdict(problem) for name, problem in blocks.items()}
            content = {"pid": os.getpid(), "host": socket.gethostname(), "blocks": problems}
            write_file(self._path, json.dumps(content).encode())

    def remove(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def read_refused_blocks(folder: Path) -> list[RefusedBlocks]:
    """The content of all files in *folder*. A killed process may have left one."""
    return [refused for path in _files(folder) if (refused := _read(path)) is not None]


def _files(folder: Path) -> Iterator[Path]:
    return folder.glob(f"*{_SUFFIX}")


def _read(path: Path) -> RefusedBlocks | None:
    try:
        content = json.loads(files.read(path, of_anyone=True))
        blocks = {str(name): Problem(**problem) for name, problem in content["blocks"].items()}
        return RefusedBlocks(pid=int(content["pid"]), host=str(content["host"]), blocks=blocks)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


def _is_running(path: Path) -> bool:
    """Whether the process that wrote *path* may still run."""
    refused = _read(path)
    if refused is None or refused.host != socket.gethostname():
        return refused is not None
    try:
        os.kill(refused.pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
