"""Files that report the state of a process to other programs on this machine."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from molecule_connect import files
from molecule_connect.config.state_dir import state_file

_STATUS, _REFUSED, _RELOAD = ".status", ".refused", ".reload"
# Longest time between two writes of a status file, in seconds. A process with a much older file hangs.
REFRESH = 30.0
SILENT_AFTER = 3 * REFRESH + 5
# Seconds without an accepted heartbeat that are a problem: the platform shows the workspace as offline after 90 s.
HEARTBEAT_LATE = 120.0
# Problems of these parts don't affect messages.
MINOR_PARTS = frozenset(("stream", "cursor file", "peer budget", "journal size"))


@attrs.frozen(kw_only=True)
class Problem:
    """A problem of a workspace; ``since`` is seconds since 1970."""

    part: str
    reason: str
    hint: str = ""
    since: float = 0.0


@attrs.frozen(kw_only=True)
class SavedStatus:
    """The content of a status file. Contains no secrets. Times are seconds since 1970 by this machine's clock.

    Attributes:
        written: When the file was written.
        last_beat: When the platform last accepted a heartbeat.
        listening: How new messages are noticed: "stream", "polling", or empty until that is known.
        ailments: The current problems.
        ended: The error that ended the worker; None while it runs.
        inbox: The workspace has no backend: readers, in any process of this machine, claim its messages.
        labels: The names and texts that its operator gave it.
    """

    workspace_id: str
    pid: int = 0
    host: str = ""
    started: float = 0.0
    written: float = 0.0
    api_url: str = ""
    backend: str = ""
    registered: bool = False
    last_beat: float | None = None
    listening: str = ""
    paused: bool = False
    stopping: bool = False
    ailments: tuple[Problem, ...] = ()
    ended: Problem | None = None
    inbox: bool = False
    labels: Mapping[str, str] = attrs.field(factory=dict)

    def is_of(self, pid: int) -> bool:
        """Whether the process *pid*, which serves the workspace, wrote this; otherwise an earlier process did."""
        return self.pid == pid and self.ended is None

    def is_silent(self, now: float) -> bool:
        """Whether the process that wrote this hangs. A time in the future was written before the clock was set back."""
        return abs(now - self.written) > SILENT_AFTER

    def problems(self, now: float) -> tuple[Problem, ...]:
        """The problems of the running worker, including late heartbeats."""
        since = self.last_beat or self.started
        is_late = now - since > HEARTBEAT_LATE and not self.stopping
        if not is_late or any(problem.part == "heartbeat" for problem in self.ailments):
            return self.ailments
        return (
            *self.ailments,
            Problem(part="heartbeat", reason="the platform has not accepted one for a while", since=since),
        )

    def state(self, problems: Sequence[Problem], now: float) -> str:
        """The state of the running worker: silent, stopping, trouble (of *problems*), paused, running or starting."""
        if self.is_silent(now):
            return "silent"
        if self.stopping:
            return "stopping"
        if any(problem.part not in MINOR_PARTS for problem in problems):
            return "trouble"
        if self.paused:
            return "paused"
        return "running" if self.registered else "starting"


def status_path(folder: Path, workspace_id: str) -> Path:
    """The status file of *workspace_id*. Never a cursor file: those end in ``.json``."""
    return folder / f"{workspace_id}{_STATUS}"


def write_status(folder: Path, status: SavedStatus) -> None:
    """Write the status file. A file that can't be written is skipped: no message depends on it."""
    _write(status_path(folder, status.workspace_id), json.dumps(attrs.asdict(status)).encode())


def read_status(folder: Path, workspace_id: str) -> SavedStatus | None:
    """The content of the status file; None if there is no valid one."""
    try:
        content = json.loads(files.read(state_file(folder, workspace_id, _STATUS), of_anyone=True))
        known = {field.name for field in attrs.fields(SavedStatus)}
        values = {name: value for name, value in content.items() if name in known}
        values["ailments"] = tuple(Problem(**one) for one in values.get("ailments", ()))
        values["ended"] = Problem(**values["ended"]) if values.get("ended") else None
        values["labels"] = {str(key): str(text) for key, text in values.get("labels", {}).items()}
        return SavedStatus(**values)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


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
        self._path = folder / f"{socket.gethostname().replace('/', '_')}.{os.getpid()}{_REFUSED}"

    def write(self, blocks: Mapping[str, Problem]) -> None:
        """Replace the content by *blocks*, and remove the files of processes that don't run any more."""
        for path in _refused_files(self._path.parent):
            if path == self._path or not _is_running(path):
                with contextlib.suppress(OSError):
                    path.unlink()
        if blocks:
            problems = {name: attrs.asdict(problem) for name, problem in blocks.items()}
            content = {"pid": os.getpid(), "host": socket.gethostname(), "blocks": problems}
            _write(self._path, json.dumps(content).encode())

    def remove(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def read_refused_blocks(folder: Path) -> list[RefusedBlocks]:
    """The content of all files in *folder*. A killed process may have left one."""
    return [refused for path in _refused_files(folder) if (refused := _read_refused(path)) is not None]


@attrs.frozen(kw_only=True)
class Reload:
    """The last reload of a process.

    Attributes:
        number: Counts the reloads of the process; 0 before the first.
        faults: Why the list, or blocks of it, were refused; one line each.
        text: The outcome in one line.
    """

    number: int = 0
    faults: tuple[str, ...] = ()
    text: str = ""


class ReloadFile:
    """``<state>/<host>.<pid>.reload``: the outcome of the last reload, for a program that asked for it."""

    def __init__(self, folder: Path, pid: int) -> None:
        self._path = folder / f"{socket.gethostname().replace('/', '_')}.{pid}{_RELOAD}"

    def write(self, reload: Reload) -> None:
        """Replace the content."""
        _write(self._path, json.dumps(attrs.asdict(reload)).encode())

    def read(self) -> Reload | None:
        """The content; None if there is none."""
        try:
            content = json.loads(files.read(self._path, of_anyone=True))
            faults = tuple(str(fault) for fault in content["faults"])
            return Reload(number=int(content["number"]), faults=faults, text=str(content["text"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def remove(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _refused_files(folder: Path) -> Iterator[Path]:
    return folder.glob(f"*{_REFUSED}")


def _read_refused(path: Path) -> RefusedBlocks | None:
    try:
        content = json.loads(files.read(path, of_anyone=True))
        blocks = {str(name): Problem(**problem) for name, problem in content["blocks"].items()}
        return RefusedBlocks(pid=int(content["pid"]), host=str(content["host"]), blocks=blocks)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


def _is_running(path: Path) -> bool:
    """Whether the process that wrote *path* may still run."""
    refused = _read_refused(path)
    if refused is None or refused.host != socket.gethostname():
        return refused is not None
    try:
        os.kill(refused.pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _write(path: Path, content: bytes) -> None:
    """Replace the file, or overwrite it on a full disk. Errors are ignored. Only one process may write *path*."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        descriptor = files.open_file(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        new.replace(path)
    except OSError:
        # A full disk still has the blocks of the old file.
        with contextlib.suppress(OSError), os.fdopen(files.open_file(path, os.O_RDWR), "r+b") as file:
            file.write(content)
            file.truncate()
