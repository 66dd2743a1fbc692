"""What a connection tells: to the console as events, to the platform as health."""

import time
from collections.abc import Callable, Sequence

from molecule_connect import events
from molecule_connect.journal.incoming import Stored
from molecule_connect.journal.models import State, in_words
from molecule_connect.models import Kind
from molecule_connect.worker.health import Health

# An answer that was not sent here counts as trouble for this long after it appeared, in seconds.
FOREIGN_SECONDS = 600.0


class Reports:
    """Turns what happens into events, each trouble once until it changes or ends."""

    def __init__(
        self,
        workspace_id: str,
        listener: events.Listener,
        health: Health,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workspace_id = workspace_id
        self.health = health
        self._listener = listener
        self._troubles: dict[str, tuple[str, str]] = {}
        self._clock = clock
        self._foreign_at: float | None = None

    def tell(self, event: events.Event) -> None:
        """Pass on an event."""
        self._listener(event)

    def notice(self, text: str, hint: str = "") -> None:
        """Something to read once."""
        self.tell(events.Notice(workspace_id=self.workspace_id, text=text, hint=hint))

    def trouble(self, part: str, reason: str, hint: str = "") -> None:
        """*part* is in trouble for *reason*; an empty reason: it is not any more."""
        if not reason:
            if self._troubles.pop(part, None) is not None:
                self.tell(events.Recovered(workspace_id=self.workspace_id, part=part))
        elif self._troubles.get(part) != (reason, hint):
            self._troubles[part] = (reason, hint)
            self.tell(events.Trouble(workspace_id=self.workspace_id, part=part, reason=reason, hint=hint))

    def broken(self, part: str, reason: str, hint: str = "", *, lasting: bool = True) -> None:
        """As ``trouble``, and the heartbeat says so while it is *lasting*."""
        if not reason:
            self.health.mends(part)
        elif lasting:
            self.health.breaks(part, reason)
        self.trouble(part, reason, hint)

    def stored(self, stored: Sequence[Stored], *, since: int) -> None:
        """Rows that are new in the journal. Echoes older than *since* (µs) may be of an earlier program."""
        for one in stored:
            self._stored(one)
            if one.foreign_echo and one.time > since:
                self._foreign()

    def _foreign(self) -> None:
        if self._foreign_at is None:
            self.notice(
                "somebody else answers people as this workspace: an answer was sent that is not ours",
                "is another connector running for it, on another machine?",
            )
        self._foreign_at = self._clock()
        self.trouble(
            "people",
            "an answer was sent that is not ours: another program answers people as this workspace",
            "end the other connector, or the other program that has this token",
        )

    def passes(self) -> None:
        """Time passes: what has not happened again for long enough is no trouble any more."""
        if self._foreign_at is not None and self._clock() - self._foreign_at >= FOREIGN_SECONDS:
            self.trouble("people", "")

    def _stored(self, one: Stored) -> None:
        item = one.item
        row, caller, context = item.row_id, item.caller_id, item.context_id
        text = in_words(item.parts)[:200]
        if one.state is State.RECEIVED:
            self.tell(
                events.Received(
                    workspace_id=self.workspace_id, row_id=row, caller_id=caller, context_id=context, text=text
                )
            )
        elif one.state is State.DEAD:
            reason = one.reason or ""
            self.tell(
                events.Dead(
                    workspace_id=self.workspace_id, row_id=row, caller_id=caller, context_id=context, reason=reason
                )
            )
        elif item.kind in (Kind.ANSWER, Kind.RESULT, Kind.UPLOAD) and not one.own_upload:
            self.tell(
                events.Recorded(
                    workspace_id=self.workspace_id,
                    row_id=row,
                    caller_id=caller,
                    context_id=context,
                    kind=item.kind.value,
                    text=text,
                )
            )
