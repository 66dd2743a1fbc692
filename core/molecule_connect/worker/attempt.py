"""One try at a message: hand it to the backend, and write down what came of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator

import attrs

from molecule_connect import events
from molecule_connect.backoff import Backoff
from molecule_connect.errors import BackendError, ran_out_of_files
from molecule_connect.journal.journal import WorkspaceJournal
from molecule_connect.journal.models import State, StoredMessage, StoredReply, dump_parts, in_words, is_too_deep
from molecule_connect.journal.transitions import LONGEST_WAITS
from molecule_connect.models import Handler, Response, TextPart
from molecule_connect.worker.budget import DailyBudget
from molecule_connect.worker.circuit_breaker import CircuitBreaker
from molecule_connect.worker.status import Status

ATTEMPTS = 4
WAITS = (5.0, 30.0, 120.0)
# Between probes the breaker decides; a failed probe is not the next one again at once.
PROBE_WAIT = 5.0
DEADLINE = 3600.0
GIVE_UP = 24 * 3600.0
SECOND = 1_000_000
NOTICE_PAUSE = 600 * SECOND
PROGRESS_PAUSE = 1.0
# Characters of an error that are kept and shown.
LONGEST_REASON = 2000
# A backend that asks for no pause is not called in a circle.
LEAST_PAUSE = 1.0
# Nor is a message put off beyond the next month's budget, or until infinity.
MOST_PAUSE = LONGEST_WAITS[State.RECEIVED]


@attrs.define(eq=False)
class Running:
    """A message at the backend."""

    entry: StoredMessage
    limit: asyncio.Timeout
    noted: float = float("-inf")


class Attempts:
    """Runs messages through the handler and moves them on in the journal.

    Args:
        now: The platform's time in microseconds, or ours where that is not known.
        platform_now: The platform's time in microseconds, or None.
        send_print: What the echo of an answer to a person would have as fingerprint; None for peers.
        insist: Runs a journal write until it succeeds.
        deadline: Seconds without progress after which an attempt has failed.
    """

    def __init__(
        self,
        handler: Handler,
        journal: WorkspaceJournal,
        *,
        status: Status,
        breaker: CircuitBreaker,
        budget: DailyBudget,
        now: Callable[[], int],
        platform_now: Callable[[], int | None],
        send_print: Callable[[StoredMessage, StoredReply], str | None],
        insist: Callable[[Callable[[], Awaitable[bool]]], Awaitable[bool]],
        wall: Callable[[], float] = time.time,
        waits: Backoff | None = None,
        deadline: float = DEADLINE,
    ) -> None:
        self._handler = handler
        self._journal = journal
        self._status = status
        self._breaker = breaker
        self._budget = budget
        self._now = now
        self._platform_now = platform_now
        self._send_print = send_print
        self._insist = insist
        self._wall = wall
        self._waits = waits or Backoff()
        self._deadline = deadline
        self.running: dict[str, Running] = {}
        self._parked: dict[str, tuple[float, str]] = {}

    def remark(self) -> str:
        """What the operator should know of the backend, for the heartbeat; empty if there is nothing."""
        if stuck := sum(running.limit.expired() for running in self.running.values()):
            return f"{stuck} calls of the backend do not return"
        wall = self._wall()
        self._parked = {row_id: parked for row_id, parked in self._parked.items() if parked[0] > wall}
        reason = next((reason for _, reason in reversed(self._parked.values())), "")
        return f"{len(self._parked)} messages wait for the backend: {reason}" if self._parked else ""

    async def run(self, entry: StoredMessage) -> Callable[[], Awaitable[StoredMessage | None]]:
        """Run *entry*, which is ``running``, once. Returns what remains to be written; the slot is free meanwhile.

        That in turn gives the entry as it is then, when there is an answer to send.

        Raises:
            asyncio.CancelledError: We are stopping; the message was put back.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.running[entry.row_id] = running = Running(entry, asyncio.timeout(None))
        self._parked.pop(entry.row_id, None)
        self._status.message_event(events.Started, entry, attempt=entry.attempt + 1, text=in_words(entry.parts)[:200])
        try:
            response = _storable(await self._watch(running))
        except asyncio.CancelledError:
            await self.put_back(entry)
            raise
        except BackendError as exc:
            error = exc
            self._budget.spent(entry.caller_id, exc.usage)
        except Exception as exc:  # whatever a plugin raises is a failed attempt
            error = BackendError(exception_text(exc))
            error.__cause__ = exc
        else:
            self._status.attempt_ended(entry.caller_id)
            self._breaker.succeeded(entry)
            self._budget.spent(entry.caller_id, response.usage)
            return lambda: self._answered(entry, response, loop.time() - began)
        finally:
            self.running.pop(entry.row_id, None)
        reason, pause = _reason(error), _pause(error) if error.retryable else None
        self._status.attempt_ended(entry.caller_id, reason)
        if error.retryable and pause is None:
            # Before the slot is free: who gets it next depends on this.
            self._breaker.failed(entry, reason)
        # Without open files nothing can be started, whatever the message is.
        counts = self._breaker.counts(entry) and not ran_out_of_files(error)
        if pause is not None:
            return lambda: self._park(entry, reason, pause)
        return lambda: self._failed(entry, reason, retryable=error.retryable, counts=counts)

    async def put_back(self, entry: StoredMessage) -> None:
        """The message did not get its try: another one, as if this had not been."""
        await self._insist(lambda: self._journal.requeue(entry, counts=False))

    async def _watch(self, running: Running) -> Response:
        entry = running.entry
        progress = _ProgressSink(lambda update: self._progressed(running, update))
        try:
            async with asyncio.timeout(self._deadline) as running.limit:
                return await self._handler(entry.request(entry.attempt + 1), progress)
        except TimeoutError:
            if not running.limit.expired():
                raise
            raise BackendError(f"no progress for {self._deadline:g} s") from None
        except asyncio.CancelledError:
            if _is_cut():
                raise
            raise BackendError("the backend cancelled itself") from None
        except Exception:
            if _is_cut():
                # What it does when it is cut is no failure of its own.
                raise asyncio.CancelledError from None
            raise

    def _progressed(self, running: Running, update: str | Response) -> None:
        text = (update if isinstance(update, str) else update.text).strip()
        entry = running.entry
        if self.running.get(entry.row_id) is not running:
            return
        now = asyncio.get_running_loop().time()
        if not running.limit.expired():
            running.limit.reschedule(now + self._deadline)
        if not text:
            return
        self._status.message_event(events.Progressed, entry, text=text[:200])
        if now - running.noted >= PROGRESS_PAUSE:
            running.noted = now
            self._journal.progress(entry, text[:200])

    async def _answered(self, entry: StoredMessage, response: Response, seconds: float) -> StoredMessage | None:
        stored = None
        if response.is_silent:
            await self._insist(lambda: self._journal.finish_without_reply(entry))
        else:
            stored = await self._store(entry, StoredReply(parts=response.parts, usage=response.usage))
        self._status.message_event(
            events.Answered, entry, text=response.text[:200], seconds=seconds, silent=response.is_silent
        )
        return stored

    async def _store(self, entry: StoredMessage, answer: StoredReply) -> StoredMessage | None:
        at, send_print = self._now(), self._send_print(entry, answer)
        if not await self._insist(lambda: self._journal.store_reply(entry, answer, at=at, send_print=send_print)):
            return None
        return entry.with_reply(answer, at=at)

    async def _park(self, entry: StoredMessage, reason: str, pause: float) -> None:
        self._parked[entry.row_id] = (self._wall() + pause, reason)
        await self._retry(entry, reason, pause, counts=False)

    async def _failed(self, entry: StoredMessage, reason: str, *, retryable: bool, counts: bool) -> None:
        attempt = entry.attempt + 1
        # Our own clock may have been set meanwhile; while the platform has told no time, the age is not known.
        platform_now = self._platform_now()
        too_old = (
            platform_now is not None
            and entry.first_failed is not None
            and platform_now / SECOND - entry.first_failed >= GIVE_UP
        )
        if retryable and not too_old and (attempt < ATTEMPTS or not counts):
            nominal = WAITS[min(attempt, len(WAITS)) - 1] if counts else PROBE_WAIT
            failed_at = max(self._now(), entry.time) / SECOND
            await self._retry(entry, reason, self._waits.jitter(nominal), counts=counts, failed_at=failed_at)
        else:
            await self._give_up(entry, f"no answer after {attempt} attempts: {reason}" if attempt > 1 else reason)

    async def _retry(
        self, entry: StoredMessage, reason: str, seconds: float, *, counts: bool, failed_at: float | None = None
    ) -> None:
        when = self._wall() + seconds
        await self._insist(
            lambda: self._journal.requeue(entry, counts=counts, failed_at=failed_at, not_before=when, error=reason)
        )
        self._status.message_event(events.Retrying, entry, what="answering", reason=reason, seconds=seconds)

    async def _give_up(self, entry: StoredMessage, reason: str) -> None:
        """Tell the caller in one line, unless this conversation was told a moment ago."""
        if self._journal.noticed_since(entry.conversation, self._now() - NOTICE_PAUSE):
            await self._insist(lambda: self._journal.mark_dead(entry, State.RUNNING, reason))
        else:
            text = f"This message could not be answered (reference {entry.row_id[:8]})."
            await self._store(entry, StoredReply(parts=(TextPart(text),), is_notice=True, reason=reason))
        self._status.message_event(events.Dead, entry, reason=reason)


def exception_text(exc: Exception) -> str:
    """*exc* in one line, of bounded length."""
    try:
        return f"{type(exc).__name__}: {exc}"[:LONGEST_REASON]
    except Exception:  # its own __str__ fails
        return type(exc).__name__


def _reason(error: BackendError) -> str:
    try:
        return str(error)[:LONGEST_REASON] or "the backend failed"
    except Exception:  # a plugin's class can have its own __str__
        return type(error).__name__


def _pause(error: BackendError) -> float | None:
    """Seconds that the backend asks for. A plugin can put anything there."""
    if error.retry_after is None:
        return None
    try:
        asked = float(error.retry_after)
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(LEAST_PAUSE, asked), MOST_PAUSE)


def _storable(response: Response) -> Response:
    try:
        dump_parts(response.parts, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise BackendError(f"the answer cannot be written as JSON: {exc}", retryable=False) from exc
    if is_too_deep(response.parts):
        raise BackendError("the answer's data is nested too deeply", retryable=False)
    return response


def _is_cut() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _ProgressSink:
    """What a handler calls to tell progress. The returned value may be awaited, or dropped without a warning."""

    def __init__(self, tell: Callable[[str | Response], None]) -> None:
        self._tell = tell

    def __call__(self, update: str | Response, /) -> Awaitable[None]:
        self._tell(update)
        return _DONE


class _Done:
    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_DONE = _Done()
