"""Counts what happens to messages, from the events of the process."""

import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import attrs

from molecule_connect import events

# How messages end.
RESULTS = ("answered", "silent", "dead")
# Why messages are retried: the values of Retrying.what.
RETRIES = ("answering", "sending", "journal", "this machine", "daily budget", "loop brake")
# Upper bounds of the buckets of histograms, in seconds.
HANDLER = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
SEND = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
QUEUE = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
REPLY = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class Histogram:
    """Counts durations by bucket: the last bucket is for those above all *bounds*."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self.buckets[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


@attrs.define(eq=False)
class Counts:
    """The counts of one workspace with one backend."""

    backend: str = ""
    messages: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(RESULTS, 0))
    dead: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(events.DEAD_CATEGORIES, 0))
    retries: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(RETRIES, 0))
    handler: Histogram = attrs.field(factory=lambda: Histogram(HANDLER))
    queue: Histogram = attrs.field(factory=lambda: Histogram(QUEUE))
    send: Histogram = attrs.field(factory=lambda: Histogram(SEND))
    reply: Histogram = attrs.field(factory=lambda: Histogram(REPLY))
    cost_usd: float = 0.0


class EventCounter:
    """Counts events by workspace.

    Args:
        wall: Seconds since 1970.

    Attributes:
        reloaded: Whether the list of workspaces was applied when it was last read again.
        reloaded_at: When it was last applied, at the start or later.
        former: Counts of workspaces with a backend that they don't have any more.
    """

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._by_workspace: dict[str, Counts] = {}
        self.former: list[Counts] = []
        self.reloaded, self.reloaded_at = True, wall()
        # By type instead of a chain of comparisons: most events are not counted.
        self._handlers: dict[type[events.Event], Callable[[Any], None]] = {
            events.Started: self._started,
            events.Answered: self._answered,
            events.Spent: self._spent,
            events.Delivered: self._delivered,
            events.Retrying: self._retrying,
            events.Dead: self._dead,
            events.Reloaded: self._reloaded,
            events.ReloadRefused: self._reload_refused,
        }

    def __call__(self, event: events.Event) -> None:
        """Count *event*."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def of(self, workspace_id: str) -> Counts:
        """The counts of a workspace with its current backend."""
        counts = self._by_workspace.get(workspace_id)
        if counts is None:
            counts = self._by_workspace[workspace_id] = Counts()
        return counts

    def with_backend(self, workspace_id: str, backend: str) -> Counts:
        """The counts of a workspace, which has *backend* now. Those with another backend become former ones."""
        counts = self.of(workspace_id)
        if counts.backend != backend:
            if counts.backend:
                self.former.append(counts)
                counts = self._by_workspace[workspace_id] = Counts()
            counts.backend = backend
        return counts

    def others(self, workspace_ids: set[str]) -> list[Counts]:
        """The counts of all other workspaces, and former ones."""
        return [*self.former, *(one for name, one in self._by_workspace.items() if name not in workspace_ids)]

    def _started(self, event: events.Started) -> None:
        self.of(event.workspace_id).queue.observe(event.queue_seconds)

    def _answered(self, event: events.Answered) -> None:
        counts = self.of(event.workspace_id)
        # A reply that is sent again was not made again.
        if event.seconds > 0:
            counts.handler.observe(event.seconds)
        if event.silent:
            counts.messages["silent"] += 1

    def _spent(self, event: events.Spent) -> None:
        self.of(event.workspace_id).cost_usd += event.cost_usd

    def _delivered(self, event: events.Delivered) -> None:
        counts = self.of(event.workspace_id)
        counts.messages["answered"] += 1
        counts.send.observe(event.send_seconds)
        counts.reply.observe(event.reply_seconds)

    def _retrying(self, event: events.Retrying) -> None:
        counts = self.of(event.workspace_id)
        if event.what in counts.retries:
            counts.retries[event.what] += 1
        if event.handler_seconds > 0:
            counts.handler.observe(event.handler_seconds)

    def _dead(self, event: events.Dead) -> None:
        counts = self.of(event.workspace_id)
        counts.messages["dead"] += 1
        if event.category in counts.dead:
            counts.dead[event.category] += 1
        if event.handler_seconds > 0:
            counts.handler.observe(event.handler_seconds)

    def _reloaded(self, event: events.Reloaded) -> None:
        self.reloaded, self.reloaded_at = True, self._wall()

    def _reload_refused(self, event: events.ReloadRefused) -> None:
        self.reloaded = False
