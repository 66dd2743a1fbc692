"""Wait for the child processes of a backend."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

SECONDS = 10.0


def is_running(pid: int) -> bool:
    """Whether the process *pid* is running. Zombies count as ended."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return not Path("/proc").is_dir()
    except ProcessLookupError:
        return False
    return state not in "ZX"


async def pids_in(file: Path, count: int = 1) -> list[int]:
    """The process ids in *file*, one per line, as soon as it has *count* lines.

    Raises:
        TimeoutError: It has fewer lines after ten seconds.
    """

    def written() -> list[int]:
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []

    await _until(lambda: len(written()) >= count)
    return written()


async def until_gone(*pids: int) -> None:
    """Wait until all processes *pids* have ended.

    Raises:
        TimeoutError: One is still running after ten seconds.
    """
    await _until(lambda: not any(map(is_running, pids)))


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
