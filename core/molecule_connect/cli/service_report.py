"""Reports a serving process to its service manager: readiness, a line of status, reloads, and signs of life."""

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from typing import Protocol

from molecule_connect import events
from molecule_connect.cli.signals import STOP_MARGIN, StopSignals
from molecule_connect.console.sanitize import count, one_line
from molecule_connect.process.notify import ServiceManager
from molecule_connect.worker.intake import STALLED_AFTER
from molecule_connect.worker.status_file import MINOR_PARTS, Reload, ReloadFile

# Seconds between looks while the start, or a change of status, is reported.
START_INTERVAL, INTERVAL = 0.2, 1.0
# Notifications per watchdog period.
BEATS = 4
# Seconds that the start may still take, as long as the process isn't blocked.
START_TIME = 120.0
_LONGEST = 300


class Watched(Protocol):
    """The workspaces of the process: a ``Deployment``."""

    @property
    def names(self) -> frozenset[str]: ...

    @property
    def unread(self) -> frozenset[str]: ...

    def stalled(self, seconds: float) -> Collection[str]: ...


class ServiceReport:
    """Reports to *manager*. Without one, all of its methods do nothing.

    Args:
        file: Receives the outcome of each reload; None if the process doesn't reload.
    """

    def __init__(self, manager: ServiceManager, *, file: ReloadFile | None = None) -> None:
        self._manager = manager
        self._file = file if manager.is_present else None
        self._reload = Reload()
        self._problems: dict[str, dict[str, str]] = {}
        self._refusal = ""
        self._served = ""
        self._shown = ""
        self._is_ready = False

    def following(self, listener: events.Listener) -> events.Listener:
        """*listener*, whose events are followed."""
        if not self._manager.is_present:
            return listener

        def listen(event: events.Event) -> None:
            if isinstance(event, events.Trouble):
                if event.part not in MINOR_PARTS:
                    self._problems.setdefault(event.workspace_id, {})[event.part] = event.reason
            elif isinstance(event, events.Recovered):
                self._problems.get(event.workspace_id, {}).pop(event.part, None)
            listener(event)

        return listen

    async def run(self, watched: Watched, stop: asyncio.Event, signals: StopSignals) -> None:
        """Report until *stop* is set, or until cancelled."""
        if not self._manager.is_present:
            return
        if self._file is not None:
            self._file.write(self._reload)
        now = asyncio.get_running_loop().time
        beat_at = now()
        try:
            while not stop.is_set():
                if not self._is_ready:
                    self._report_start(watched)
                elif (text := self._status(watched)) != self._shown:
                    self._show(text)
                if self._manager.watchdog is not None and now() >= beat_at and not watched.stalled(STALLED_AFTER):
                    beat_at = now() + self._manager.watchdog / BEATS
                    self._manager.alive()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL if self._is_ready else START_INTERVAL):
                        await stop.wait()
        finally:
            self._manager.stopping("stopping: finishing messages in progress", seconds=signals.grace + STOP_MARGIN + 2)
            if self._file is not None:
                self._file.remove()

    def reloading(self) -> None:
        """The list will be read again."""
        self._manager.reloading()

    def reloaded(self, text: str, faults: Sequence[str] = ()) -> None:
        """The list was read again.

        Args:
            text: The outcome in one line.
            faults: Why the list, or blocks of it, were refused.
        """
        self._refusal = f"reload refused: {one_line('; '.join(faults), _LONGEST)}; " if faults else ""
        self._shown = f"{self._refusal}{self._served}"
        self._manager.ready(self._shown)
        # Last: whoever waits for the file then asks the manager for its status.
        self._reload = Reload(number=self._reload.number + 1, faults=tuple(faults), text=text)
        if self._file is not None:
            self._file.write(self._reload)

    def _report_start(self, watched: Watched) -> None:
        """Ready: each workspace was read, or has reported why it can't be."""
        waiting = watched.unread - {name for name, problems in self._problems.items() if problems}
        if not waiting:
            self._is_ready = True
            self._shown = self._status(watched)
            self._manager.ready(self._shown)
            return
        self._manager.extend(START_TIME)
        total = len(watched.names)
        text = f"starting: {total - len(waiting)} of {count(total, 'workspace')} read"
        if text != self._shown:
            self._show(text)

    def _show(self, text: str) -> None:
        self._shown = text
        self._manager.status(text)

    def _status(self, watched: Watched) -> str:
        names = watched.names
        failing = {name: problems for name, problems in self._problems.items() if problems and name in names}
        self._served = (
            f"serving {next(iter(names))}" if len(names) == 1 else f"serving {count(len(names), 'workspace')}"
        )
        if failing:
            name, problems = next(iter(failing.items()))
            part, reason = next(iter(problems.items()))
            label = "" if len(names) == 1 else f"{len(failing)} with problems: {name}: "
            self._served += f"; {one_line(f'{label}{part}: {reason}', _LONGEST)}"
        return f"{self._refusal}{self._served}"
