"""Being there: register, heartbeat, state, secrets, and the loop that keeps an agent online until it should stop."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs

from molecule_connect.errors import AuthError, ConfigError, PlatformError, TransientPlatformError
from molecule_connect.models import Presence, WorkspaceStatus
from molecule_connect.platform import endpoints
from molecule_connect_agent.checks import check_rate
from molecule_connect_agent.readings import deleted_error, read_secrets, read_state, removed_state
from molecule_connect_agent.steps import BACKOFF, REPEATS, Ask, Flow, Wait, ask
from molecule_connect_agent.tokens import TokenFile
from molecule_connect_agent.values import (
    DEFAULT_HEARTBEAT_INTERVAL,
    DEFAULT_STATE_POLL_INTERVAL,
    WorkspaceState,
)

TaskSupplier = Callable[[], Mapping[str, object]]
REGISTER_FIRST = "call register() first; if it was, the token was replaced: save_token() takes the new one"
SAVED_WITHIN = 1.0
T = TypeVar("T")
# The platform refuses a beat with more than its column holds, and with true for a number.
_MOST_TASKS = 2**31 - 1
_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Registrar:
    """How one agent shows itself. Uptime counts from when this was made."""

    workspace_id: str
    tokens: TokenFile
    card: Mapping[str, object]
    reported_url: str = ""
    heartbeat_interval: float = DEFAULT_HEARTBEAT_INTERVAL
    state_poll_interval: float = DEFAULT_STATE_POLL_INTERVAL
    clock: Callable[[], float] = time.monotonic
    born: float = attrs.field(default=attrs.Factory(lambda self: self.clock(), takes_self=True), init=False)

    def register(self) -> Flow[str]:
        """Gives the token that the platform handed out, else the one that is there, else an empty text.

        Raises:
            WorkspaceDeletedError: The workspace is gone. The platform registers it all the same, with a token that
                is never accepted (contract 2.1).
        """
        operation = endpoints.register(self.workspace_id, self.card, url=self.reported_url)
        had_none = self.tokens.load() is None
        try:
            try:
                token = yield from ask(operation, same=True)
            except AuthError:
                # Another thread or program may be handed the token of a new workspace, and not have saved it yet.
                if not had_none or (yield Wait(SAVED_WITHIN)) or self.tokens.load() is None:
                    raise
                token = yield from ask(operation, same=True)
        except TransientPlatformError as exc:
            if exc.status is not None and exc.status >= 500 and not exc.hint:
                # A platform that cannot read an id answers 500 "registration failed" (contract 2.1).
                exc.hint = "if it stays so, the id may be wrong: compare it with the platform's"
            raise
        if token is None:
            cached = self.tokens.load()
            if cached is None:
                _log.warning("the platform registered %s without giving a token, and none is kept", self.workspace_id)
            return cached or ""
        if self.tokens.load() not in (None, token) and (yield from self._is_gone()):
            raise deleted_error(self.workspace_id)
        try:
            self.tokens.keep(token)
        except ConfigError as exc:
            # It is shown once: what cannot be kept must still be used.
            _log.warning("%s; it is used until this program ends; %s", exc, exc.hint)
        return token

    def _is_gone(self) -> Flow[bool]:
        """``is_removed``, asked once: the token in hand is shown once, so that nothing may come between."""
        try:
            removed = yield from self.is_removed(repeats=0)
        except ConfigError:  # closed by another thread
            return False
        return removed

    def secrets(self) -> Flow[dict[str, str]]:
        """The workspace's secrets."""
        try:
            found = yield from ask(endpoints.secrets(self.workspace_id))
        except AuthError as exc:
            exc.hint = REGISTER_FIRST
            raise
        return read_secrets(found)

    def state(self, *, repeats: int = REPEATS) -> Flow[WorkspaceState]:
        """The workspace's state. A deleted one is told from a refused token by its public card."""
        operation = attrs.evolve(endpoints.state(self.workspace_id), is_optional=False)
        try:
            fields = yield from ask(operation, repeats=repeats)
        except AuthError:
            if not (yield from self.is_removed(repeats=repeats)):
                raise
            return removed_state(self.workspace_id)
        except PlatformError as exc:
            if exc.status != 404:
                raise
            return removed_state(self.workspace_id)
        return read_state(fields, workspace_id=self.workspace_id)

    def is_removed(self, *, repeats: int = REPEATS) -> Flow[bool]:
        """Whether the public card says that the workspace was deleted; False where it cannot be read."""
        try:
            info = yield from ask(endpoints.workspace(self.workspace_id), repeats=repeats)
        except PlatformError:
            return False
        return info.status is WorkspaceStatus.REMOVED

    def beat(self, presence: Presence) -> Flow[None]:
        """One heartbeat."""
        check_rate("error_rate", presence.error_rate)
        uptime = int(self.clock() - self.born)
        yield Ask(endpoints.heartbeat(self.workspace_id, attrs.evolve(presence, uptime_seconds=uptime)))

    def loop(self, max_iterations: int | None, supplier: TaskSupplier | None) -> Flow[str]:
        """Beats and state reads until the workspace is paused or removed, or there were so many beats."""
        beat_due = state_due = now = self.clock()
        failed_beats = failed_reads = beats = 0
        while max_iterations is None or beats < max_iterations:
            if now >= beat_due:
                beats += 1
                failed = yield from self._try(self.beat(_presence(supplier)))
                failed_beats = failed_beats + 1 if failed else 0
                beat_due = now + _pause(self.heartbeat_interval, failed_beats, failed)
            if now >= state_due:
                states: list[WorkspaceState] = []
                # Beats must not wait for repeats, which may take minutes: the loop reads again anyway.
                failed = yield from self._try(self.state(repeats=0), states.append)
                if states and states[0].should_stop:
                    return "removed" if states[0].deleted else "paused"
                failed_reads = failed_reads + 1 if failed else 0
                state_due = now + _pause(self.state_poll_interval, failed_reads, failed)
            if beats == max_iterations:
                break
            # A clock that an injected sleep does not move must not hold the loop up.
            now = min(beat_due, state_due)
            closed = yield Wait(max(0.0, now - self.clock()))
            if closed:
                return "closed"
            now = max(now, self.clock())
        return "max_iterations"

    def _try(self, flow: Flow[T], keep: Callable[[T], None] = lambda value: None) -> Flow[PlatformError | None]:
        try:
            keep((yield from flow))
        except PlatformError as exc:
            _log.warning("%s%s; going on", exc, f" ({exc.hint})" if exc.hint else "")
            return exc
        return None


def _pause(interval: float, failures: int, failed: PlatformError | None) -> float:
    """Seconds until the next try: soon after a failure, at most *interval* unless the platform asks for more."""
    if failed is None:
        return interval
    asked = failed.retry_after if isinstance(failed, TransientPlatformError) else None
    return max(min(interval, BACKOFF.delay(failures)), min(asked or 0.0, BACKOFF.cap))


def _presence(supplier: TaskSupplier | None) -> Presence:
    """What the agent is at. Its own code may fail; its heartbeat must not."""
    try:
        told = dict(supplier() or {}) if supplier is not None else {}
    except Exception:
        _log.warning("the task supplier failed; the beat says nothing of tasks", exc_info=True)
        told = {}
    task, active = told.get("current_task"), told.get("active_tasks")
    return Presence(current_task="" if task is None else str(task), active_tasks=_task_count(active))


def _task_count(active: Any) -> int:
    """*active* as a number that the platform takes: ``"2"`` and ``2.0`` are 2."""
    try:
        count = int(active if isinstance(active, int) else float(active or 0))
    except (TypeError, ValueError, OverflowError):
        _log.warning("active_tasks of the task supplier is no number (%s); the beat says 0", type(active).__name__)
        return 0
    return min(max(count, 0), _MOST_TASKS)
