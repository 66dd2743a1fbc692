"""Run the observer of ``molecule connect --http``."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

from molecule_connect import events
from molecule_connect.console.screen import Screen
from molecule_connect.errors import ConfigError, MoleculeError, PluginError
from molecule_connect.observers import Observer, ObserverConfig, ProcessState, WorkspaceState
from molecule_connect.plugins import discovery
from molecule_connect.plugins.entry_points import OBSERVERS

EXTRA, NAME = "observe", "http"
LOOPBACK = "127.0.0.1"
_FORM = "write ADDR:PORT, for example 127.0.0.1:9090, [::1]:9090, or :9090 for this machine only"


class Observed(Protocol):
    """The workspaces of the process: a ``Deployment``."""

    def states(self) -> tuple[WorkspaceState, ...]: ...


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
            observe(event)

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
        observed = self._observed
        return ProcessState(
            workspaces=() if observed is None else observed.states(),
            is_started=observed is not None,
            is_stopping=self._is_stopping,
        )


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
