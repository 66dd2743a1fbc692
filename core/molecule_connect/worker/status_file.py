"""The status file: how a connection is, told to other programs of this machine while it is served."""

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from molecule_connect import events, files
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.config.state_dir import state_file
from molecule_connect.errors import MoleculeError, without_credentials

# Written at each change and each beat, and at least so often: its age tells a process that hangs.
REFRESH, PAUSE = 30.0, 1.0
SUFFIX = ".status"
_REFUSED_SUFFIX = ".refused"


@attrs.frozen(kw_only=True)
class Ailment:
    """Something that is wrong with a connection; ``since`` is seconds since 1970."""

    part: str
    reason: str
    hint: str = ""
    since: float = 0.0


@attrs.frozen(kw_only=True)
class Status:
    """How one connection was when it last told. Times are seconds since 1970 by our clock; nothing in it is secret.

    Attributes:
        written: When it told.
        last_beat: When the platform last accepted a heartbeat.
        listening: How messages are noticed: "stream", "polling", or empty before that is known.
        ended: What the connection ended with; None while it runs.
        inbox: No backend answers: messages wait for readers, in any process of this machine.
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
    ailments: tuple[Ailment, ...] = ()
    ended: Ailment | None = None
    inbox: bool = False


class StatusFile:
    """``<state>/<workspace-id>.status``, kept by whoever holds the lease. A listener: call it with events.

    A file that cannot be written is let be: it matters to nobody's messages.
    """

    def __init__(
        self,
        folder: Path,
        settings: WorkspaceSettings,
        *,
        inbox: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        backend = settings.backend if isinstance(settings.backend, str) else type(settings.backend).__name__
        self._path = status_path(folder, settings.workspace_id)
        self._wall = wall
        self._changed = asyncio.Event()
        self._status = Status(
            workspace_id=settings.workspace_id,
            api_url=without_credentials(settings.api_url),
            backend=backend,
            inbox=inbox,
        )

    def __call__(self, event: events.Event) -> None:
        """Take in one event; those of messages are none of its business."""
        if not isinstance(event, events.MessageEvent):
            self._take(event)

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keep the file; a clean end removes it, an error is left in it."""
        now = self._wall()
        self._status = attrs.evolve(self._status, pid=os.getpid(), host=socket.gethostname(), started=now)
        self._write()
        keeping = asyncio.get_running_loop().create_task(self._keep(), name="status file")
        try:
            yield
        except MoleculeError as exc:
            self._end(Ailment(part="connection", reason=str(exc), hint=exc.hint, since=self._wall()))
            raise
        except Exception as exc:
            self._end(Ailment(part="connection", reason=f"{type(exc).__name__}: {exc}", since=self._wall()))
            raise
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            if self._status.ended is None:
                with contextlib.suppress(OSError):
                    self._path.unlink(missing_ok=True)

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH):
                    await self._changed.wait()
            self._changed.clear()
            self._write()
            await asyncio.sleep(PAUSE)

    def _take(self, event: events.Event) -> None:
        match event:
            case events.Registered():
                self._change(registered=True)
            case events.Listening():
                self._change(listening=event.by)
            case events.Beat():
                self._change(last_beat=self._wall())
            case events.Paused():
                self._change(paused=True)
            case events.Resumed():
                self._change(paused=False, registered=True)
            case events.Trouble():
                self._trouble(event)
            case events.Recovered():
                self._change(ailments=self._others(event.part))
            case events.Stopping():
                self._change(stopping=True)

    def _trouble(self, event: events.Trouble) -> None:
        since = next((known.since for known in self._status.ailments if known.part == event.part), self._wall())
        ailment = Ailment(part=event.part, reason=event.reason, hint=event.hint, since=since)
        self._change(ailments=(*self._others(event.part), ailment))

    def _others(self, part: str) -> tuple[Ailment, ...]:
        return tuple(ailment for ailment in self._status.ailments if ailment.part != part)

    def _change(self, **changes: Any) -> None:
        self._status = attrs.evolve(self._status, **changes)
        self._changed.set()

    def _end(self, ended: Ailment) -> None:
        self._status = attrs.evolve(self._status, ended=ended)
        self._write()

    def _write(self) -> None:
        self._status = attrs.evolve(self._status, written=self._wall())
        # Only the lease's holder writes, so one name is enough, and a kill leaves no more than one file.
        _write(self._path, json.dumps(attrs.asdict(self._status)).encode())


@attrs.frozen(kw_only=True)
class Refusals:
    """The blocks of a list that one process can't serve, by workspace id, or by number where a block names none."""

    pid: int
    host: str
    blocks: Mapping[str, Ailment]


class RefusedFile:
    """``<state>/<host>.<pid>.refused``: the refused blocks of this process's list; there while there are some.

    A block may have no usable id, and another process may serve its workspace, so this isn't in a status file. One that
    cannot be written is let be.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{socket.gethostname().replace('/', '_')}.{os.getpid()}{_REFUSED_SUFFIX}"

    def write(self, blocks: Mapping[str, Ailment]) -> None:
        """Report *blocks*, and no others."""
        for path in _refused_files(self._path.parent):
            if path == self._path or not _is_running(path):
                with contextlib.suppress(OSError):
                    path.unlink()
        if blocks:
            told = {name: attrs.asdict(one) for name, one in blocks.items()}
            content = {"pid": os.getpid(), "host": socket.gethostname(), "blocks": told}
            _write(self._path, json.dumps(content).encode())

    def remove(self) -> None:
        """Report nothing any more."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def read_refused(folder: Path) -> list[Refusals]:
    """What processes of this machine have reported; one that was killed may have left its file."""
    return [refusals for path in _refused_files(folder) if (refusals := _refusals(path)) is not None]


def _refused_files(folder: Path) -> Iterator[Path]:
    return folder.glob(f"*{_REFUSED_SUFFIX}")


def _refusals(path: Path) -> Refusals | None:
    try:
        content = json.loads(files.read(path, of_anyone=True))
        blocks = {str(name): Ailment(**one) for name, one in content["blocks"].items()}
        return Refusals(pid=int(content["pid"]), host=str(content["host"]), blocks=blocks)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


def _is_running(path: Path) -> bool:
    """Whether the process that wrote *path* may still run."""
    refusals = _refusals(path)
    if refusals is None or refusals.host != socket.gethostname():
        return refusals is not None
    try:
        os.kill(refusals.pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _write(path: Path, content: bytes) -> None:
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        descriptor = files.open_file(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        new.replace(path)
    except OSError:
        # On a full disk what is there has its room, and then it matters most that what it says is so.
        with contextlib.suppress(OSError), os.fdopen(files.open_file(path, os.O_RDWR), "r+b") as file:
            file.write(content)
            file.truncate()


def status_path(folder: Path, workspace_id: str) -> Path:
    """Where the status of *workspace_id* is told. No cursor of another workspace has this name: those end in .json."""
    return folder / f"{workspace_id}{SUFFIX}"


def read_status(folder: Path, workspace_id: str) -> Status | None:
    """What the connection last told, or None where there is nothing, or nothing that makes sense."""
    try:
        content = json.loads(files.read(state_file(folder, workspace_id, SUFFIX), of_anyone=True))
        known = {field.name for field in attrs.fields(Status)}
        values = {name: value for name, value in content.items() if name in known}
        values["ailments"] = tuple(Ailment(**one) for one in values.get("ailments", ()))
        values["ended"] = Ailment(**values["ended"]) if values.get("ended") else None
        return Status(**values)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
