"""When the conversations of a connection may run: in the order of the rows, and not while the workspace is paused."""

from collections.abc import Iterable

from molecule_connect.journal.journal import WorkspaceJournal
from molecule_connect.journal.models import Conversation
from molecule_connect.worker.dispatcher import Dispatcher


class Gate:
    """Between what is stored and the conversations that answer it.

    A read may bring the oldest rows last; until they are here, a conversation would begin with a newer message.
    """

    def __init__(self, conversations: Dispatcher, journal: WorkspaceJournal) -> None:
        self._conversations = conversations
        self._journal = journal
        self._paused = False
        self._older_rows_come = False
        self._first_read_ended = False
        self._to_wake: dict[Conversation, None] = {}

    def stored(self, conversations: Iterable[Conversation]) -> None:
        """These got a message; they are woken once ``open`` says that no older one is to come."""
        self._to_wake.update(dict.fromkeys(conversations))

    def close(self) -> None:
        """Older rows are still to come: begin nothing."""
        self._older_rows_come = True
        self._conversations.pause()

    def open(self) -> None:
        """All rows older than what is stored are here."""
        if self._older_rows_come:
            self._older_rows_come = False
            if not self._paused:
                self._conversations.resume()
            self._conversations.wake_all()
        conversations, self._to_wake = self._to_wake, {}
        self._conversations.wake(conversations)

    def pause(self) -> None:
        """The workspace is paused: begin nothing."""
        self._paused = True
        self._conversations.pause()

    def resume(self) -> None:
        """The workspace is not paused any more."""
        self._paused = False
        if not self._older_rows_come:
            self._conversations.resume()
        self.wake_all()

    def first_read_ended(self) -> None:
        """From now on the journal holds what waited before the start."""
        self._first_read_ended = True
        self._conversations.wake_all()

    def wake_all(self) -> None:
        """Every conversation may have something to do, unless a first read is still under way."""
        if self._first_read_ended or self._journal.position().watermark is not None:
            self._conversations.wake_all()
