"""Run the observer of ``molecule connect --http``."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import attrs

from molecule_connect import __version__, events
from molecule_connect.config.workspaces import Refused
from molecule_connect.console.screen import Screen
from molecule_connect.errors import ConfigError, JournalError, MoleculeError, PluginError
from molecule_connect.journal.backlog import Backlog, read_backlogs
from molecule_connect.journal.integrity import wal_of
from molecule_connect.observers import Observer, ObserverConfig, ProcessState, WorkspaceState
from molecule_connect.plugins import discovery
from molecule_connect.plugins.entry_points import OBSERVERS

EXTRA, NAME = "observe", "http"
LOOPBACK = "127.0.0.1"
# States that are collected between two turns of the event loop.
_AT_ONCE = 50
_FORM = "write ADDR:PORT, for example 127.0.0.1:9090, [::1]:9090, or :9090 for this machine only"


class Observed(Protocol):
    """The workspaces of the process: a ``Deployment``."""

    @property
    def journal_path(self) -> Path: ...

    @property
    def refused(self) -> Sequence[Refused]: ...

    def states(self, backlogs: Mapping[str, Backlog] | None = None) -> Iterator[WorkspaceState]: ...


class Observation:
    """Runs an observer. Without one, its methods do nothing.

    Args:
        create: Creates the observer.
    """

    def __init__(
        self,
        create: Callable[[ObserverConfig], Observer] | None,
        address: tuple[str, int],
        screen: Screen,
        *,
        workspace_labels: bool = True,
    ) -> None:
        self._create = create
        self._address = address
        self._screen = screen
        self._workspace_labels = workspace_labels
        self._observer: Observer | None = None
        self._observed: Observed | None = None
        self._is_stopping = False

    @classmethod
    def of(cls, http: str | None, screen: Screen, *, workspace_labels: bool = True) -> "Observation":
        """The observer of ``--http``, or none.

        Raises:
            ConfigError: The address is invalid, or the plugin isn't installed.
        """
        if http is None:
            return cls(None, ("", 0), screen)
        address = parse_listen_address(http)
        return cls(_find(), address, screen, workspace_labels=workspace_labels)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the observer inside the block.

        Raises:
            ConfigError: The observer can't start.
        """
        if self._create is None:
            yield
            return
        host, port = self._address
        config = ObserverConfig(
            host=host, port=port, workspace_labels=self._workspace_labels, process=self, note=self._screen.note
        )
        with _authors_code():
            observer = self._create(config)
            await observer.start()
        self._observer = observer
        try:
            yield
        finally:
            with _authors_code():
                await observer.close()

    def following(self, listener: events.Listener) -> events.Listener:
        """*listener*, whose events the observer receives too."""
        if (observer := self._observer) is None:
            return listener
        observe = observer.event

        def listen(event: events.Event) -> None:
            listener(event)
            try:
                observe(event)
            except Exception as exc:  # must not affect what the event is about
                context = {"message": f"observer {NAME} failed", "exception": exc}
                asyncio.get_running_loop().call_exception_handler(context)

        return listen

    def attach(self, observed: Observed) -> None:
        """The workspaces are ready to be served."""
        self._observed = observed

    async def follow(self, stop: asyncio.Event) -> None:
        """Note when *stop* is set."""
        await stop.wait()
        self._is_stopping = True

    def state(self) -> ProcessState:
        """See ``observers.Process``."""
        return self._state(() if self._observed is None else self._observed.states())

    async def snapshot(self) -> ProcessState:
        """See ``observers.Process``."""
        observed = self._observed
        if observed is None:
            return self._state(())
        disk = await asyncio.to_thread(_read_disk, observed.journal_path)
        states: list[WorkspaceState] = []
        for state in observed.states(disk.backlogs):
            states.append(state)
            if len(states) % _AT_ONCE == 0:
                await asyncio.sleep(0)
        return attrs.evolve(
            self._state(states), journal_bytes=disk.journal, disk_free_bytes=disk.free, disk_bytes=disk.total
        )

    def _state(self, workspaces: Iterable[WorkspaceState]) -> ProcessState:
        return ProcessState(
            version=__version__,
            workspaces=tuple(workspaces),
            refused=() if self._observed is None else tuple(one.name for one in self._observed.refused),
            is_started=self._observed is not None,
            is_stopping=self._is_stopping,
        )


@attrs.define
class _Disk:
    """What is known of the disk."""

    backlogs: dict[str, Backlog] | None = None
    journal: int | None = None
    free: int | None = None
    total: int | None = None


def _read_disk(path: Path) -> _Disk:
    disk = _Disk()
    # A full disk, or a damaged journal, must not hide the other figures.
    with contextlib.suppress(OSError):
        found = os.statvfs(path.parent)
        disk.free, disk.total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        disk.journal = sum(file.stat().st_size for file in (path, wal_of(path)) if file.exists())
    with contextlib.suppress(JournalError):
        disk.backlogs = read_backlogs(path)
    return disk


def parse_listen_address(text: str) -> tuple[str, int]:
    """Host and port of ``ADDR:PORT``. Without a host, it is loopback; an IPv6 address is in brackets.

    Raises:
        ConfigError: It is something else.
    """
    host, separator, port = text.strip().rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not (port.isascii() and port.isdigit()) or (":" in host and not is_bracketed):
        raise ConfigError(f"--http {text!r} is not an address with a port", hint=_FORM)
    if int(port) > 65535:
        raise ConfigError(f"--http {text!r}: there is no port {port}", hint=_FORM)
    return (host[1:-1] if is_bracketed else host) or LOOPBACK, int(port)


def _find() -> Callable[[ObserverConfig], Observer]:
    if not any(plugin.name == NAME for plugin in discovery.installed(OBSERVERS)):
        raise ConfigError("--http needs a plugin that is not installed", hint=discovery.how_to_install(EXTRA))
    found: Callable[[ObserverConfig], Observer] = discovery.load(discovery.find(OBSERVERS, NAME))
    return found


@contextlib.contextmanager
def _authors_code() -> Iterator[None]:
    """Report exceptions of the plugin as errors of the plugin."""
    try:
        yield
    except MoleculeError:
        raise
    except Exception as exc:
        raise PluginError(
            f"observer {NAME} failed: {type(exc).__name__}: {exc}", hint="report it to its author"
        ) from exc
