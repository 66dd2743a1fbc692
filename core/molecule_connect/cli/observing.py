"""Run the observers of ``molecule connect``: for ``--http``, and for traces."""

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
from molecule_connect.observers import Observer, ObserverConfig, ProcessState, Step, Tracer, WorkspaceState
from molecule_connect.plugins import discovery
from molecule_connect.plugins.entry_points import OBSERVERS

EXTRA, HTTP = "observe", "http"
TRACES_EXTRA, TRACES = "otel", "otel"
# The standard variables that ask programs to send traces over OTLP.
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
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


Create = Callable[[ObserverConfig], Observer]


class Observation:
    """Runs observers. Without one, its methods do nothing.

    Args:
        create: Creates each observer, by name.
    """

    def __init__(
        self,
        create: Mapping[str, Create],
        address: tuple[str, int],
        screen: Screen,
        *,
        workspace_labels: bool = True,
    ) -> None:
        self._create = create
        self._address = address
        self._screen = screen
        self._workspace_labels = workspace_labels
        self._observers: dict[str, Observer] = {}
        self._observed: Observed | None = None
        self._is_stopping = False

    @classmethod
    def of(
        cls, http: str | None, environ: Mapping[str, str], screen: Screen, *, workspace_labels: bool = True
    ) -> "Observation":
        """The observers that ``--http`` and the variables of OpenTelemetry ask for.

        Raises:
            ConfigError: The address is invalid, or the plugin of ``--http`` isn't installed.
        """
        create, address = dict[str, Create](), ("", 0)
        if http is not None:
            address, create[HTTP] = parse_listen_address(http), _find_http()
        if (asking := asks_for_traces(environ)) and (found := _find_traces(asking, screen)) is not None:
            create[TRACES] = found
        return cls(create, address, screen, workspace_labels=workspace_labels)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the observers inside the block.

        Raises:
            ConfigError: An observer can't start.
        """
        host, port = self._address
        config = ObserverConfig(
            host=host, port=port, workspace_labels=self._workspace_labels, process=self, note=self._screen.note
        )
        async with contextlib.AsyncExitStack() as stack:
            for name, create in self._create.items():
                with _authors_code(name):
                    observer = create(config)
                    await observer.start()
                stack.push_async_callback(_close, name, observer)
                self._observers[name] = observer
            yield

    def following(self, listener: events.Listener) -> events.Listener:
        """*listener*, whose events the observers receive too."""
        for name, observer in self._observers.items():
            listener = _followed(listener, name, observer.event)
        return listener

    @property
    def tracer(self) -> Tracer | None:
        """The tracer among the observers. Its errors don't affect messages."""
        for name, observer in self._observers.items():
            if (trace := getattr(observer, "trace", None)) is not None:
                return _contained(name, trace)
        return None

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


def asks_for_traces(environ: Mapping[str, str]) -> str:
    """The name of the variable that asks for traces over OTLP; empty if none does, or another turns them off."""
    exporters = environ.get("OTEL_TRACES_EXPORTER", "").lower().split(",")
    is_otlp = any(one.strip() in ("", "otlp") for one in exporters)
    if not is_otlp or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    return next((name for name in ENDPOINTS if environ.get(name)), "")


def _find_http() -> Create:
    if not any(plugin.name == HTTP for plugin in discovery.installed(OBSERVERS)):
        raise ConfigError("--http needs a plugin that is not installed", hint=discovery.how_to_install(EXTRA))
    return _load(HTTP)


def _find_traces(variable: str, screen: Screen) -> Create | None:
    """The observer that traces. A variable that is meant for other programs is no reason to fail without it."""
    try:
        return _load(TRACES)
    except PluginError as exc:
        hint = f"{discovery.how_to_install(TRACES_EXTRA)}; or set OTEL_TRACES_EXPORTER=none"
        screen.note("WARNING", f"{variable} is set, but no traces are sent: {exc}", hint)
        return None


def _load(name: str) -> Create:
    found: Create = discovery.load(discovery.find(OBSERVERS, name))
    return found


async def _close(name: str, observer: Observer) -> None:
    with _authors_code(name):
        await observer.close()


def _followed(listener: events.Listener, name: str, observe: events.Listener) -> events.Listener:
    def listen(event: events.Event) -> None:
        listener(event)
        try:
            observe(event)
        except Exception as exc:  # must not affect what the event is about
            _report(name, exc)

    return listen


def _contained(name: str, trace: Tracer) -> Tracer:
    def traced(step: Step) -> str:
        try:
            return trace(step)
        except Exception as exc:  # must not affect the message
            _report(name, exc)
            return step.sent if step.name == "handler" else ""

    return traced


def _report(name: str, exc: Exception) -> None:
    context = {"message": f"observer {name} failed", "exception": exc}
    asyncio.get_running_loop().call_exception_handler(context)


@contextlib.contextmanager
def _authors_code(name: str) -> Iterator[None]:
    """Report exceptions of the plugin as errors of the plugin."""
    try:
        yield
    except MoleculeError:
        raise
    except Exception as exc:
        raise PluginError(
            f"observer {name} failed: {type(exc).__name__}: {exc}", hint="report it to its author"
        ) from exc
