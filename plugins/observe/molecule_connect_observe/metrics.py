"""Writes the metrics in Prometheus's text format, in short steps, so that messages don't wait for a scrape."""

import asyncio
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from molecule_connect.observers import Process, ProcessState, WorkspaceState
from molecule_connect_observe.counts import Counts, EventCounter
from molecule_connect_observe.families import (
    FAMILIES,
    INFO,
    PROCESS_FAMILIES,
    Family,
    ProcessFamily,
    Row,
    label,
)

# The classic format: in OpenMetrics, the counter molecule_messages_total and the gauge molecule_messages are one name.
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
# With more workspaces, their metrics are added up.
MAX_WORKSPACES = 1000
# Lines that are written between two turns of the event loop.
_AT_ONCE = 400
# A response is used again for this many times as long as it took to write it, so that a flood of requests takes a
# tenth of the processor at most.
_REUSE = 10


class Exposition:
    """The metrics of a process.

    Args:
        workspace_labels: Tell workspaces apart, up to ``MAX_WORKSPACES``.
        too_many: Called once when their number exceeds it.
    """

    def __init__(
        self,
        process: Process,
        counter: EventCounter,
        *,
        workspace_labels: bool,
        too_many: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._process, self._counter = process, counter
        self._workspace_labels, self._too_many = workspace_labels, too_many
        self._clock = clock
        self._was_too_many = False
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        # The requests of workspaces, which are kept if one is removed: the sum must not become smaller.
        self._requests: dict[str, dict[tuple[str, int], int]] = {}
        self._lock = asyncio.Lock()
        self._pieces: list[bytes] = []
        self._valid_until = 0.0

    async def pieces(self) -> list[bytes]:
        """The text in pieces, which concurrent requests share."""
        async with self._lock:
            if self._clock() >= self._valid_until:
                started = self._clock()
                self._pieces = await self._write(await self._process.snapshot())
                ended = self._clock()
                self._valid_until = ended + _REUSE * (ended - started)
            return self._pieces

    async def _write(self, state: ProcessState) -> list[bytes]:
        pieces: list[bytes] = []
        lines: list[str] = []
        for family in self._families(state):
            for line in family:
                lines.append(line)
                if len(lines) >= _AT_ONCE:
                    pieces.append("".join(lines).encode())
                    lines.clear()
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
        pieces.append("".join(lines).encode())
        pieces.append(generate_latest(self._registry))
        return pieces

    def _families(self, state: ProcessState) -> Iterator[Iterator[str]]:
        """The lines of each metric."""
        for family in PROCESS_FAMILIES:
            yield _process_lines(family, state, self._counter)
        rows = [self._row(one) for one in state.workspaces]
        if self._has_labels(len(rows)):
            for each in (INFO, *FAMILIES):
                yield _lines(each, rows)
        else:
            gone = self._gone({one.workspace_id for one in state.workspaces})
            for each in FAMILIES:
                yield _merged_lines(each, [*rows, *gone])

    def _has_labels(self, count: int) -> bool:
        if self._workspace_labels and count > MAX_WORKSPACES and not self._was_too_many:
            self._was_too_many = True
            self._too_many(count)
        return self._workspace_labels and count <= MAX_WORKSPACES

    def _row(self, state: WorkspaceState) -> Row:
        self._requests[state.workspace_id] = requests = dict(state.requests)
        counts = self._counter.with_backend(state.workspace_id, state.backend)
        return Row(state, counts, requests)

    def _gone(self, served: set[str]) -> list[Row]:
        """Rows of counts only, so that sums don't become smaller when a workspace is removed."""
        requests = [Row(None, Counts(), each) for name, each in self._requests.items() if name not in served]
        return [*(Row(None, counts, {}) for counts in self._counter.others(served)), *requests]


def _head(family: Family | ProcessFamily) -> str:
    return f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n"


def _process_lines(family: ProcessFamily, state: ProcessState, counter: EventCounter) -> Iterator[str]:
    yield _head(family)
    for labels, value in family.samples(state, counter):
        yield f"{family.name}{{{labels}}} {_number(value)}\n" if labels else f"{family.name} {_number(value)}\n"


def _lines(family: Family, rows: list[Row]) -> Iterator[str]:
    yield _head(family)
    name = family.name
    for row in rows:
        if row.state is None:
            continue
        own = label("workspace", row.state.workspace_id)
        if family.has_backend and family is not INFO:
            own += f",{label('backend', row.state.backend)}"
        for suffix, labels, value in family.samples(row):
            yield f"{name}{suffix}{{{own}{labels and ','}{labels}}} {_number(value)}\n"


def _merged_lines(family: Family, rows: list[Row]) -> Iterator[str]:
    merged: dict[tuple[str, str], float] = {}
    for row in rows:
        own = label("backend", row.counts.backend) if family.has_backend else ""
        if family.has_backend and not row.counts.backend:
            continue
        for suffix, labels, value in family.samples(row):
            key = suffix, f"{own}{own and labels and ','}{labels}"
            merged[key] = family.merge(merged[key], value) if key in merged else value
    yield _head(family)
    for (suffix, labels), value in merged.items():
        yield (
            f"{family.name}{suffix}{{{labels}}} {_number(value)}\n"
            if labels
            else (f"{family.name}{suffix} {_number(value)}\n")
        )


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, int) else repr(value)
