"""One attempt at a message: run the backend, and decide how to proceed."""

import asyncio
import functools
from collections.abc import Awaitable

import attrs

from molecule_connect import events
from molecule_connect.backoff import Backoff
from molecule_connect.errors import BackendError, ran_out_of_files
from molecule_connect.journal.models import State, StoredMessage, StoredReply, dump_parts, in_words, is_too_deep
from molecule_connect.journal.transitions import LONGEST_WAITS
from molecule_connect.journal.workspace import WorkspaceJournal
from molecule_connect.models import Handler, Response, Usage
from molecule_connect.worker.budget import DailyBudget
from molecule_connect.worker.circuit_breaker import CircuitBreaker
from molecule_connect.worker.clock import SECOND, Clock
from molecule_connect.worker.outcomes import Answered, Failed, Requeued, Silent
from molecule_connect.worker.status import Status
from molecule_connect.worker.tracing import Tracing

MAX_ATTEMPTS = 4
RETRY_DELAYS = (5.0, 30.0, 120.0)
# Seconds between attempts that don't count. While it is open, the circuit breaker decides when to probe.
UNCOUNTED_RETRY_DELAY = 5.0
# Seconds without progress after which an attempt fails.
DEADLINE = 3600.0
# Seconds after its first failure for which a message is retried.
GIVE_UP_AFTER = 24 * 3600.0
# Seconds between progress updates that are written to the journal.
PROGRESS_INTERVAL = 1.0
# Longest error text that is stored and shown, in characters.
MAX_REASON_LENGTH = 2000
# Bounds of the pause that a backend can request, in seconds. A monthly usage limit ends within the upper one.
MIN_PAUSE, MAX_PAUSE = 1.0, LONGEST_WAITS[State.RECEIVED]


@attrs.define(eq=False)
class Running:
    """A message that the backend is working on."""

    message: StoredMessage
    deadline: asyncio.Timeout
    noted_at: float = float("-inf")


class Attempts:
    """Runs messages through the backend's handler."""

    def __init__(
        self,
        handler: Handler,
        journal: WorkspaceJournal,
        breaker: CircuitBreaker,
        budget: DailyBudget,
        status: Status,
        clock: Clock,
        tracing: Tracing,
    ) -> None:
        self._handler = handler
        self._journal = journal
        self._breaker = breaker
        self._budget = budget
        self._status = status
        self._clock = clock
        self._tracing = tracing
        self._jitter = Backoff()
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._done.set_result(None)
        self._running: dict[str, Running] = {}
        # Until when (seconds since 1970) and why the backend postponed a message, by row.
        self._postponed: dict[str, tuple[float, str]] = {}

    def remark(self) -> str:
        """A remark on the backend for the heartbeat; empty if there is none."""
        if stuck := sum(running.deadline.expired() for running in self._running.values()):
            return f"{stuck} calls of the backend have not returned"
        wall = self._clock.wall()
        self._postponed = {row_id: value for row_id, value in self._postponed.items() if value[0] > wall}
        reason = next((reason for _, reason in reversed(self._postponed.values())), "")
        return f"{len(self._postponed)} messages wait for the backend: {reason}" if self._postponed else ""

    async def run(self, message: StoredMessage, *, queue_seconds: float = 0.0) -> Answered | Silent | Requeued | Failed:
        """Run the handler on *message*, which is in state ``running``.

        Args:
            queue_seconds: How long it waited, for the event and the trace.

        Raises:
            asyncio.CancelledError: The worker is stopping.
        """
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        self._running[message.row_id] = running = Running(message, asyncio.timeout(None))
        self._postponed.pop(message.row_id, None)
        text = in_words(message.parts)[:200]
        facts = {"attempt": message.attempt, "text": text, "queue_seconds": queue_seconds}
        self._status.message_event(events.Started, message, **facts)
        trace = self._tracing.handler(message, queue_seconds=queue_seconds)
        try:
            response = _checked(await self._call(running, trace))
        except BackendError as exc:
            self._budget.attempt_ended(message, exc.usage)
            return attrs.evolve(self._failed(message, exc), handler_seconds=loop.time() - started_at)
        except Exception as exc:  # plugins can raise any exception
            error = BackendError(exception_text(exc))
            error.__cause__ = exc
            self._budget.attempt_ended(message, None)
            return attrs.evolve(self._failed(message, error), handler_seconds=loop.time() - started_at)
        finally:
            self._running.pop(message.row_id, None)
        self._status.attempt_ended(message.caller_id)
        self._breaker.succeeded(message)
        self._budget.attempt_ended(message, response.usage)
        seconds = loop.time() - started_at
        if response.is_silent:
            cost = response.usage.cost_usd if isinstance(response.usage, Usage) else 0.0
            return Silent(text=response.text, seconds=seconds, cost_usd=cost)
        return Answered(reply=StoredReply(parts=response.parts, usage=response.usage), seconds=seconds)

    async def _call(self, running: Running, trace: str) -> Response:
        message = running.message
        progress = functools.partial(self._progressed, running)
        try:
            async with asyncio.timeout(DEADLINE) as running.deadline:
                return await self._handler(message.request(trace=trace), progress)
        except TimeoutError:
            if not running.deadline.expired():
                raise
            raise BackendError(f"no progress for {DEADLINE:g} s") from None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise BackendError("the backend cancelled itself") from None
        except Exception:
            if _is_cancelled():
                # Errors raised during cancellation don't count as failures.
                raise asyncio.CancelledError from None
            raise

    def record_progress(self, running: Running, update: str | Response) -> None:
        """Extend the deadline and report *update*. Ignored once the attempt has ended."""
        text = (update if isinstance(update, str) else update.text).strip()
        message = running.message
        if self._running.get(message.row_id) is not running:
            return
        now = asyncio.get_running_loop().time()
        if not running.deadline.expired():
            running.deadline.reschedule(now + DEADLINE)
        if not text:
            return
        text = text[:200]
        self._status.message_event(events.Progressed, message, text=text)
        if now - running.noted_at >= PROGRESS_INTERVAL:
            running.noted_at = now
            self._journal.progress(message, text)

    def _progressed(self, running: Running, update: str | Response, /) -> Awaitable[None]:
        self.record_progress(running, update)
        # It can be awaited, or dropped without a warning.
        return self._done

    def _failed(self, message: StoredMessage, error: BackendError) -> Requeued | Failed:
        reason, pause = _reason(error), _requested_pause(error)
        self._status.attempt_ended(message.caller_id, reason)
        if not error.retryable:
            return self._final(message.attempt, reason, "refused_by_backend")
        if pause is not None:
            self._postponed[message.row_id] = (self._clock.wall() + pause, reason)
            return Requeued(reason=reason, seconds=pause, counts=False)
        # This also decides which message gets the slot next, so it must happen before the slot is released.
        self._breaker.failed(message, reason)
        # Without file descriptors no program can be started for any message.
        counts = self._breaker.counts(message) and not ran_out_of_files(error)
        attempt = message.attempt
        if self._is_too_old(message) or (counts and attempt >= MAX_ATTEMPTS):
            return self._final(attempt, reason, "attempts_used_up")
        delay = RETRY_DELAYS[min(attempt, len(RETRY_DELAYS)) - 1] if counts else UNCOUNTED_RETRY_DELAY
        failed_at = max(self._clock.now(), message.time) / SECOND
        return Requeued(reason=reason, seconds=self._jitter.jitter(delay), counts=counts, failed_at=failed_at)

    def _final(self, attempt: int, reason: str, category: str) -> Failed:
        text = f"no answer after {attempt} attempts: {reason}" if attempt > 1 else reason
        return Failed(reason=text, category=category, hint=self._breaker.hint)

    def _is_too_old(self, message: StoredMessage) -> bool:
        # Only the platform's clock is reliable: this machine's may have been set since the first failure.
        now = self._clock.platform_now()
        return (
            now is not None
            and message.first_failed is not None
            and now / SECOND - message.first_failed >= GIVE_UP_AFTER
        )


def exception_text(exc: Exception) -> str:
    """*exc* in one line of bounded length."""
    try:
        return f"{type(exc).__name__}: {exc}"[:MAX_REASON_LENGTH]
    except Exception:  # __str__ of a plugin's class can fail
        return type(exc).__name__


def _reason(error: BackendError) -> str:
    try:
        return str(error)[:MAX_REASON_LENGTH] or "the backend failed"
    except Exception:  # __str__ of a plugin's class can fail
        return type(error).__name__


def _requested_pause(error: BackendError) -> float | None:
    """The backend's ``retry_after`` in seconds, within bounds. Plugins can set it to anything."""
    if error.retry_after is None:
        return None
    try:
        seconds = float(error.retry_after)
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(MIN_PAUSE, seconds), MAX_PAUSE)


def _checked(response: Response) -> Response:
    """*response*, if the journal can store it.

    Raises:
        BackendError: It can't.
    """
    try:
        dump_parts(response.parts, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise BackendError(f"the reply cannot be written as JSON: {exc}", retryable=False) from exc
    if is_too_deep(response.parts):
        raise BackendError("the reply's data is nested too deeply", retryable=False)
    return response


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
