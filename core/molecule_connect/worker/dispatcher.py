"""The dispatcher: handles the messages of each conversation in order, one at a time, until each is done or dead."""

import asyncio
import errno
from collections import Counter
from collections.abc import Iterable

import attrs

from molecule_connect.errors import JournalError, StateLostError
from molecule_connect.flag import Flag
from molecule_connect.journal.models import Conversation, State, StoredMessage
from molecule_connect.journal.workspace import WorkspaceJournal
from molecule_connect.worker.admission import Admission
from molecule_connect.worker.attempt import Attempts
from molecule_connect.worker.clock import Clock
from molecule_connect.worker.outcomes import Accepted
from molecule_connect.worker.recorder import JOURNAL_DELAY, Recorder
from molecule_connect.worker.send_health import Resend
from molecule_connect.worker.sending import MAX_COPIES, ReplySender

# Conversations of one caller in memory. If there are more, they take turns: each ends its turn after one message, so
# that conversations with a long backlog don't keep out others.
MAX_ACTIVE = 64
# Seconds for which messages that were read ahead are used: other processes may change them meanwhile.
AHEAD_FOR = 1.0
# Seconds beyond the grace period for sends in progress: whether a send that is cut off has arrived is unknown.
SENDING = 3.0
# Errors that mean that this machine is short of a resource.
SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN))


@attrs.define(eq=False)
class _Active:
    """A conversation that is being worked on.

    Attributes:
        message: The message that is handled.
        is_starting: It waits to be run, and hasn't been started.
        is_sending: Its reply is being sent.
        failed_row: The row whose handling failed unexpectedly the last time.
        ahead: Messages after it that were read with it, to be used until ``ahead_until`` (loop time).
    """

    conversation: Conversation
    task: "asyncio.Task[None]" = attrs.field(init=False)
    message: StoredMessage | None = None
    ahead: list[StoredMessage] = attrs.field(factory=list)
    ahead_until: float = 0.0
    is_starting: bool = False
    is_sending: bool = False
    failed_row: str = ""


@attrs.frozen
class _Wait:
    """The wait of a deferred message: until *not_before* by this machine's clock, *until* by the event loop's."""

    row_id: str
    not_before: float | None
    until: float


class Dispatcher:
    """Handles the conversations of one workspace. A conversation has a task while one of its messages is due.

    Attributes:
        failure: Its exception is the first error that wasn't caused by a message; serving can't continue after it.
    """

    def __init__(
        self,
        journal: WorkspaceJournal,
        admission: Admission,
        attempts: Attempts,
        sender: ReplySender,
        recorder: Recorder,
        clock: Clock,
    ) -> None:
        self._journal = journal
        self._admission = admission
        self._attempts = attempts
        self._sender = sender
        self._recorder = recorder
        self._clock = clock
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._active: dict[Conversation, _Active] = {}
        self._timers: dict[Conversation, asyncio.TimerHandle] = {}
        self._caller_timers: dict[str | None, asyncio.TimerHandle] = {}
        self._wake_timer: asyncio.TimerHandle | None = None
        self._waits: dict[Conversation, _Wait] = {}
        # The row of each conversation that was run last: its reply is sent first, even if an older message appears.
        self._last_run: dict[Conversation, str] = {}
        self._active_of: Counter[str | None] = Counter()
        # Callers with more conversations than may be active, and their conversations that had their turn.
        self._crowded: set[str | None] = set()
        self._had_turn: dict[str | None, dict[Conversation, None]] = {}
        # Conversations with new messages, while older messages may still be read.
        self._unordered: dict[Conversation, None] = {}
        # Whether all older messages were read; None until the first read has ended.
        self._is_complete: bool | None = None
        self._is_paused = False
        # A conversation that outlives the worker would send replies that another process or machine sends too.
        self._is_open = False
        self._is_abandoned = False
        self._idle = Flag()
        self._idle.set()

    # Called by the worker

    def open(self) -> None:
        """Start to handle messages. From now on, ``drain`` must be called before the worker ends."""
        self._is_open = True
        self.wake_all()

    def wake(self, conversations: Iterable[Conversation] = (), *, complete: bool = True) -> None:
        """*conversations* have new messages.

        Args:
            complete: All older messages were read, too. Otherwise no message is started until a call says so, because
                conversations would continue with a newer message.
        """
        self._unordered.update(dict.fromkeys(conversations))
        if not complete:
            self._is_complete = False
            return
        if not self._is_complete:
            self._is_complete = True
            self.wake_all()
        ready, self._unordered = self._unordered, {}
        for conversation in ready:
            self._wake(conversation)

    def wake_all(self) -> None:
        """Any conversation may have a message that is due. Ignored until a first read of the feed has ended."""
        if not self._is_open:
            return
        try:
            if self._is_complete is not None or self._journal.position().watermark is not None:
                for caller_id in self._journal.callers():
                    self._wake_caller(caller_id)
        except JournalError:
            self._wake_all_later()

    def pause(self) -> None:
        """Start no messages until ``resume``."""
        self._is_paused = True

    def resume(self) -> None:
        """Start messages again."""
        self._is_paused = False
        self.wake_all()

    async def watch_sends(self) -> None:
        """Until cancelled: while no reply is accepted, send one from time to time; once one is accepted, send all."""
        while True:
            if await self._sender.health.next_resend() is Resend.ALL:
                await self._journal.retry_sends_now()
            else:
                # A probe must not use up the last copy of a reply.
                await self._journal.retry_one_send_now(most_in_doubt=MAX_COPIES - 2)
            self.wake_all()

    def remark(self) -> str:
        """A remark on the backend or the queue for the heartbeat; empty if there is none."""
        return self._admission.remark() or self._attempts.remark()

    @property
    def active(self) -> int:
        """Number of conversations that are being worked on."""
        return len(self._active)

    async def idle(self) -> None:
        """Wait until no conversation is being worked on. Deferred messages don't count."""
        await self._idle.wait()

    async def drain(self, grace: float) -> None:
        """Start no more messages, and let running ones finish for at most *grace* seconds; then cancel them.

        Sends in progress have some more seconds.
        """
        self._is_open = False
        for timer in filter(None, (*self._timers.values(), *self._caller_timers.values(), self._wake_timer)):
            timer.cancel()
        for active in self._active.values():
            if active.is_starting:
                active.task.cancel()
        if await self._idle.wait(grace):
            return
        for active in self._active.values():
            if not active.is_sending:
                active.task.cancel()
        if sending := [active.task for active in self._active.values() if active.is_sending]:
            _, unfinished = await asyncio.wait(sending, timeout=SENDING)
            for task in unfinished:
                task.cancel()

    async def abandon(self, seconds: float) -> None:
        """Wait *seconds* more, then requeue the messages that still run: threads can't be cancelled."""
        await self._idle.wait(seconds)
        self._is_abandoned = True
        for active in self._active.values():
            # A backend that ignored the cancellation may have answered: its reply must not be sent after the end.
            active.task.cancel()
        await self._journal.requeue_running()

    # Handling messages

    async def _converse(self, active: _Active) -> bool:
        """Handle the messages of a conversation, as long as one is due and it is the conversation's turn.

        The content of a message must not end the process, so a message whose handling fails unexpectedly becomes a
        dead letter. Raises an error that wasn't caused by a message, or that repeats for the same message.

        Returns:
            False after an error: continue with the conversation.
        """
        try:
            while message := self._next(active):
                await self._handle(active, message)
                active.failed_row = ""
                if self._ends_turn(active.conversation):
                    break
        except JournalError as exc:
            if not self._is_open or isinstance(exc, StateLostError):
                raise
            if active.message is not None:
                self._recorder.journal_failed(active.message, exc)
            await asyncio.sleep(JOURNAL_DELAY)
        except Exception as exc:
            await self._contain(active, exc)
        else:
            return True
        return self._ends_turn(active.conversation)

    async def _handle(self, active: _Active, message: StoredMessage) -> None:
        """Process a message until it is finished or deferred."""
        if message.state is State.RUNNING:
            # No task runs it: the commit of its start took effect, but was reported as failed.
            await self._recorder.not_run(message)
        elif message.state is State.ANSWERED and message.answered_at is None and message.reply is not None:
            await self._recorder.prepare_send(message, message.reply)
        elif message.state is State.ANSWERED:
            await self._send(active, message)
        elif message.reply is not None:
            await self._recorder.reuse_reply(message, message.reply)
        elif (refusal := self._admission.check(message)) is not None:
            await self._recorder.refused(message, refusal)
        else:
            await self._answer(active, message)

    async def _answer(self, active: _Active, message: StoredMessage) -> None:
        """Run the backend on an admitted message, and send the reply."""
        active.is_starting = True
        message = await self._admission.files.resolve(message)
        async with self._admission.limit.slot(message):
            if (running := await self._start(active, message)) is None:
                return
            try:
                # The journal's copy of the message before its start has the time of its arrival or its last failure.
                waited = running.changed - max(message.changed, message.not_before or 0.0)
                outcome = await self._attempts.run(running, queue_seconds=max(0.0, waited))
            except asyncio.CancelledError:
                await self._recorder.not_run(running)
                raise
        if (answered := await self._recorder.attempt_ended(running, outcome)) is not None:
            await self._send(active, answered)

    async def _start(self, active: _Active, message: StoredMessage) -> StoredMessage | None:
        """Start *message*. None if a change during the wait for its slot forbids it."""
        if not self._may_start:
            return None
        if (refusal := self._admission.recheck(message)) is not None:
            await self._recorder.refused(message, refusal)
            return None
        if (running := await self._recorder.commit(self._journal.start, message)) is not None:
            active.is_starting = False
            self._last_run[active.conversation] = message.row_id
        return running

    async def _send(self, active: _Active, message: StoredMessage) -> None:
        started_at, sending_at = self._clock.now(), self._clock.monotonic()
        active.is_sending = True
        try:
            outcome = await self._sender.deliver(message)
        finally:
            active.is_sending = False
        seconds = self._clock.monotonic() - sending_at
        # First of all, so that no error below makes an accepted reply a dead letter, whose repeat would be answered.
        await self._recorder.send_ended(message, outcome, seconds=seconds)
        if isinstance(outcome, Accepted):
            # A fast peer can write back before its acceptance of our reply arrives here.
            self._admission.loop_guard.reply_accepted(message, at=started_at)

    # Unexpected errors

    async def _run(self, active: _Active) -> None:
        try:
            while not await self._converse(active):
                pass
        except asyncio.CancelledError:
            if self._is_open:
                raise
        except Exception as exc:
            # A backend that outlived the drain finds the journal closed; its message was requeued.
            if not (self._is_abandoned and isinstance(exc, JournalError)) and not self.failure.done():
                self.failure.set_exception(exc)
                # Mark it as retrieved: during a drain, the worker doesn't wait for it.
                self.failure.exception()
        finally:
            self._end(active.conversation)

    async def _contain(self, active: _Active, exc: Exception) -> None:
        conversation, message = active.conversation, active.message
        if message is not None:
            row_id: str | None = message.row_id
        else:
            row_id = self._last_run.get(conversation) or self._journal.next_id(conversation)
        if row_id is None or row_id == active.failed_row:
            raise exc
        active.failed_row = row_id
        if not (message is not None and _is_shortage(exc) and await self._recorder.ran_short(row_id, exc)):
            self._last_run.pop(conversation, None)
            await self._recorder.failed_unexpectedly(conversation, row_id, exc)

    # Scheduling

    @property
    def _may_start(self) -> bool:
        return self._is_open and not self._is_paused and self._is_complete is not False

    def _wake_all_later(self) -> None:
        """Repeat a wake-up that failed because the journal couldn't be read: nothing else may repeat it."""
        if self._wake_timer is None and self._is_open:
            self._wake_timer = asyncio.get_running_loop().call_later(JOURNAL_DELAY, self._wake_all_again)

    def _wake_all_again(self) -> None:
        self._wake_timer = None
        self.wake_all()

    def _caller_due(self, caller_id: str | None) -> None:
        try:
            self._wake_caller(caller_id)
        except JournalError:
            self._wake_all_later()

    def _wake_caller(self, caller_id: str | None) -> None:
        room = MAX_ACTIVE + self._active_of[caller_id] + 1
        had_turn = self._had_turn.get(caller_id, {})
        due = self._journal.due_conversations(caller_id, room, may_begin=self._may_start, without=had_turn)
        self._had_turn.pop(caller_id, None)
        self._crowded.discard(caller_id)
        if len(due) < room:
            self._wake_caller_later(caller_id)
        for conversation in (*due, *had_turn):
            self._wake(conversation)
        if len(due) >= room:
            self._crowded.add(caller_id)
        if caller_id in self._crowded and (
            waiting := [conversation for conversation in had_turn if conversation not in self._active]
        ):
            self._had_turn[caller_id] = dict.fromkeys(waiting)

    def _wake_caller_later(self, caller_id: str | None) -> None:
        if (timer := self._caller_timers.pop(caller_id, None)) is not None:
            timer.cancel()
        if (when := self._journal.next_due(caller_id)) is not None and self._is_open:
            loop, seconds = asyncio.get_running_loop(), max(0.0, when - self._clock.wall())
            self._caller_timers[caller_id] = loop.call_later(seconds, self._caller_due, caller_id)

    def _wake(self, conversation: Conversation) -> None:
        caller_id = conversation.caller_id
        if not self._is_open:
            return
        if (active := self._active.get(conversation)) is not None:
            # The new message may be older than those.
            active.ahead.clear()
            return
        if caller_id in self._crowded or self._active_of[caller_id] >= MAX_ACTIVE:
            # The conversations that wait in the journal have their turn first.
            self._crowded.add(caller_id)
            return
        if (timer := self._timers.pop(conversation, None)) is not None:
            timer.cancel()
        self._active_of[caller_id] += 1
        self._idle.clear()
        active = self._active[conversation] = _Active(conversation)
        active.task = asyncio.get_running_loop().create_task(self._run(active), name="conversation")

    def _ends_turn(self, conversation: Conversation) -> bool:
        """Whether other conversations of the same caller are to have their turn now."""
        if conversation.caller_id not in self._crowded:
            return False
        self._had_turn.setdefault(conversation.caller_id, {})[conversation] = None
        return True

    def _end(self, conversation: Conversation) -> None:
        del self._active[conversation]
        caller_id = conversation.caller_id
        self._active_of[caller_id] -= 1
        if caller_id in self._crowded and self._active_of[caller_id] <= MAX_ACTIVE // 2 and self._is_open:
            self._caller_due(caller_id)
        if not self._active_of[caller_id]:
            del self._active_of[caller_id]
        if not self._active:
            self._idle.set()

    def _next(self, active: _Active) -> StoredMessage | None:
        """The conversation's next message, if it is due. Otherwise a timer is set."""
        conversation, previous = active.conversation, active.message
        active.message, active.is_starting = None, False
        active.message = message = self._load_next(active, previous)
        if message is None:
            return None
        if message.state is State.RECEIVED and not self._may_start:
            return None
        if (seconds := self._seconds_until_due(conversation, message)) > 0:
            if self._is_open:
                timer = asyncio.get_running_loop().call_later(seconds, self._wake, conversation)
                self._timers[conversation] = timer
            return None
        return message

    def _load_next(self, active: _Active, previous: StoredMessage | None) -> StoredMessage | None:
        conversation, now = active.conversation, asyncio.get_running_loop().time()
        is_in_turn = previous is not None and self._journal.was_sent(previous.row_id)
        if active.ahead and is_in_turn and now < active.ahead_until:
            return active.ahead.pop(0)
        active.ahead.clear()
        if (row_id := self._last_run.get(conversation)) is not None:
            if (message := self._journal.message_to_send(row_id)) is not None:
                return message
            del self._last_run[conversation]
        active.ahead, active.ahead_until = self._journal.upcoming(conversation), now + AHEAD_FOR
        return active.ahead.pop(0) if active.ahead else None

    def _seconds_until_due(self, conversation: Conversation, message: StoredMessage) -> float:
        """The wait ends early if this machine's clock is set forward, and isn't extended if it is set back."""
        now = asyncio.get_running_loop().time()
        seconds = (message.not_before or 0.0) - self._clock.wall()
        wait = self._waits.pop(conversation, None)
        if wait is not None and (wait.row_id, wait.not_before) == (message.row_id, message.not_before):
            seconds = min(seconds, wait.until - now)
        if seconds > 0:
            self._waits[conversation] = _Wait(message.row_id, message.not_before, now + seconds)
        return seconds


def _is_shortage(exc: Exception) -> bool:
    """Whether this machine is at fault, and not the message."""
    if isinstance(exc, OSError):
        return exc.errno in SHORTAGES
    return isinstance(exc, MemoryError) or (isinstance(exc, RuntimeError) and "start new thread" in str(exc))
