"""What a connection without a backend says of its inbox: how much waits, how much is held, what was finished."""

import asyncio

from molecule_connect import events
from molecule_connect.journal.inbox import InboxStore
from molecule_connect.journal.journal import Journal


class Attendance:
    """Follows what the readers of one inbox do, in whichever process they are. A listener: call it with events."""

    def __init__(self, journal: Journal, workspace_id: str, *, listener: events.Listener) -> None:
        self._store = InboxStore(journal)
        self._workspace_id = workspace_id
        self._listener = listener
        # What came since we began, and when by the loop's clock.
        self._open: dict[str, tuple[events.Received, float]] = {}

    def __call__(self, event: events.Event) -> None:
        """Take in what happened to a message."""
        if isinstance(event, events.Received):
            self._open[event.row_id] = event, asyncio.get_running_loop().time()
        elif isinstance(event, events.Answered | events.Dead):
            self._open.pop(event.row_id, None)

    def look(self) -> None:
        """Tell of messages that readers finished without an answer since the last look."""
        for row_id in self._store.finished(self._workspace_id, self._open):
            came, when = self._open.pop(row_id)
            self._listener(
                events.Answered(
                    workspace_id=self._workspace_id,
                    row_id=row_id,
                    caller_id=came.caller_id,
                    context_id=came.context_id,
                    text="",
                    seconds=asyncio.get_running_loop().time() - when,
                    silent=True,
                )
            )

    @property
    def held(self) -> int:
        """How many messages readers have."""
        return self._store.counts(self._workspace_id)[1]

    @property
    def current_task(self) -> str:
        """What the inbox waits for, in a few words."""
        waiting, held = self._store.counts(self._workspace_id)
        if waiting:
            return f"{waiting} message{'s' * (waiting != 1)} wait{'s' * (waiting == 1)} for a reader"
        return f"{held} with a reader" if held else ""
