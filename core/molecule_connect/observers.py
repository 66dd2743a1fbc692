"""Observers: plugins that watch a serving process, such as ``molecule connect --http``.

An entry point of the group ``molecule_connect.observers`` names a class or function that is called with an
``ObserverConfig`` and returns an ``Observer``. ``--http`` uses the one named ``http``; the standard variables of
OpenTelemetry turn on the one named ``otel``.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import attrs

from molecule_connect import events


@attrs.frozen(kw_only=True)
class WorkspaceState:
    """The state of one workspace. Times are seconds since 1970 by this machine's clock.

    Attributes:
        backend: Name of the backend.
        labels: The names and texts that its operator gave it.
        up: Its worker runs.
        unready: Why it isn't registered and reading, in words that contain no text of others; empty if it is.
        has_lease: This process has the exclusive right to serve it.
        is_registered: The platform registered it.
        is_paused: It is paused on the platform.
        wedged: The parts with a problem that heartbeats report, such as "intake"; see ``PARTS``.
        heartbeat_at: When the platform last accepted a heartbeat; None before the first.
        read_at: When the feed was last read to its end; None before the first.
        busy: How many messages the backend handles; *concurrency* is the most.
        is_circuit_open: The backend fails, and only single messages are tried.
        budget_remaining: US dollars that it may still spend today, alone and together with the other workspaces of the
            process; None without a limit.
        rate_limit_remaining: Requests that the platform still accepts in this minute, from all workspaces at its
            address; None without a limit.
        requests: Number of requests to the platform by endpoint and status code, since the start of the process; the
            code is 0 if there was no response.
        messages: Number of messages by state ("received", "running", "claimed", "answered", "dead"); None if unknown.
        oldest_waiting: Age of the oldest message that waits for the backend or a reader, in seconds; 0 if none waits.
        oldest_unsent: Age of the oldest reply that the platform has not accepted, in seconds; 0 if there is none.
    """

    workspace_id: str
    backend: str
    labels: Mapping[str, str] = attrs.field(factory=dict)
    up: bool = False
    unready: str = "starting"
    has_lease: bool = False
    is_registered: bool = False
    is_paused: bool = False
    wedged: tuple[str, ...] = ()
    heartbeat_at: float | None = None
    read_at: float | None = None
    busy: int = 0
    concurrency: int = 0
    is_circuit_open: bool = False
    budget_remaining: float | None = None
    rate_limit_remaining: int | None = None
    requests: Mapping[tuple[str, int], int] = attrs.field(factory=dict)
    messages: Mapping[str, int] | None = None
    oldest_waiting: float = 0.0
    oldest_unsent: float = 0.0


# The parts that can be wedged.
PARTS = ("intake", "sending", "backend", "journal", "mirror")


@attrs.frozen(kw_only=True)
class ProcessState:
    """The state of the process.

    Attributes:
        version: Of molecule-connect.
        workspaces: The workspaces that it serves, and those whose worker ended with an error.
        refused: The workspaces of the list that can't be served: their ids, or names of their blocks.
        is_started: All workspaces are known: their plugins were built and checked.
        is_stopping: It finishes messages in progress, and starts no more.
        journal_bytes: Size of the journal with its write-ahead log; None if unknown.
        disk_free_bytes: Free bytes of the state folder's file system, which has *disk_bytes*; None if unknown.
    """

    version: str = ""
    workspaces: tuple[WorkspaceState, ...] = ()
    refused: tuple[str, ...] = ()
    is_started: bool = False
    is_stopping: bool = False
    journal_bytes: int | None = None
    disk_free_bytes: int | None = None
    disk_bytes: int | None = None


class Process(Protocol):
    """The process that is observed. Call the methods in its event loop."""

    def state(self) -> ProcessState:
        """Its state now, without what has to be read from the disk. Takes microseconds per workspace."""
        ...

    async def snapshot(self) -> ProcessState:
        """Its whole state. With many workspaces, other tasks run meanwhile."""
        ...


@attrs.frozen(kw_only=True)
class ObserverConfig:
    """What an observer is created with.

    Attributes:
        host: The address to listen on: a name, or an IPv4 or IPv6 address without brackets. Empty without ``--http``.
        port: The port to listen on; 0 for any free one.
        workspace_labels: Tell workspaces apart. False: add them up, so that the output doesn't grow with them.
        note: Shows a line to the operator: its level ("INFO" or "WARNING"), its text, and what to do.
    """

    host: str
    port: int
    workspace_labels: bool = True
    process: Process = attrs.field(repr=False)
    note: Callable[[str, str, str], None] = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Step:
    """A step of a message that starts now: an attempt, or a send of its reply. Events report how it ends.

    An attempt ends with ``Answered``, ``Retrying`` or ``Dead``; a send with ``Delivered``, ``Retrying``, ``Dead`` or
    ``Notified``, or with the next send of the same message.

    Attributes:
        name: "handler" or "send".
        row_id: The message.
        caller_id: The peer, or None for a person.
        attempt: The number of attempts, including this one.
        queue_seconds: How long it waited for this attempt; 0 for a send.
        sent: The ``traceparent`` that its sender chose, which can be any valid one; empty without one.
    """

    name: str
    workspace_id: str
    backend: str
    row_id: str
    caller_id: str | None
    attempt: int
    queue_seconds: float = 0.0
    sent: str = ""


# Returns the W3C traceparent of a step. Called in the event loop; must return at once.
Tracer = Callable[[Step], str]


class Observer(Protocol):
    """Watches the process. All methods are called in its event loop.

    It may also have a method ``trace``, which is the ``Tracer`` of the process.
    """

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
