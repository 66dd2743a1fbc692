"""Observers: plugins that watch a serving process, such as ``molecule connect --http``.

An entry point of the group ``molecule_connect.observers`` names a class or function that is called with an
``ObserverConfig`` and returns an ``Observer``. ``--http`` uses the one named ``http``.
"""

from collections.abc import Callable
from typing import Protocol

import attrs

from molecule_connect import events


@attrs.frozen(kw_only=True)
class WorkspaceState:
    """The state of one workspace.

    Attributes:
        backend: Name of the backend.
        up: Its worker runs.
        unready: Why it isn't registered and reading, in words that contain no text of others; empty if it is.
    """

    workspace_id: str
    backend: str
    up: bool = False
    unready: str = "starting"


@attrs.frozen(kw_only=True)
class ProcessState:
    """The state of the process.

    Attributes:
        workspaces: The workspaces that it serves, and those whose worker ended with an error.
        is_started: All workspaces are known: their plugins were built and checked.
        is_stopping: It finishes messages in progress, and starts no more.
    """

    workspaces: tuple[WorkspaceState, ...] = ()
    is_started: bool = False
    is_stopping: bool = False


class Process(Protocol):
    """The process that is observed."""

    def state(self) -> ProcessState:
        """Its state now. Call it in the event loop; it takes microseconds per workspace and reads no files."""
        ...


@attrs.frozen(kw_only=True)
class ObserverConfig:
    """What an observer is created with.

    Attributes:
        host: The address to listen on: a name, or an IPv4 or IPv6 address without brackets.
        port: The port to listen on; 0 for any free one.
        workspace_labels: Tell workspaces apart. False: add them up, so that the output doesn't grow with them.
        note: Shows a line to the operator: its level ("INFO" or "WARNING"), its text, and what to do.
    """

    host: str
    port: int
    workspace_labels: bool = True
    process: Process = attrs.field(repr=False)
    note: Callable[[str, str, str], None] = attrs.field(repr=False)


class Observer(Protocol):
    """Watches the process. All methods are called in its event loop."""

    async def start(self) -> None:
        """Called before anything is registered.

        Raises:
            ConfigError: It can't work with this configuration, for example because its port is in use.
        """
        ...

    def event(self, event: events.Event) -> None:
        """Called with each event after ``start``. Must return at once."""
        ...

    async def close(self) -> None:
        """Called at the end, after messages in progress have finished."""
        ...
