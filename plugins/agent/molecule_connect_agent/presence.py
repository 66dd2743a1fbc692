"""Registration, heartbeats, state and secrets, and the loop that keeps an agent online until it should stop."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import attrs

from molecule_connect import (
    AuthError,
    ConfigError,
    PlatformError,
    Presence,
    TransientPlatformError,
    endpoints,
)
from molecule_connect_agent.checks import check_rate
from molecule_connect_agent.requests import LONGEST_DELAY, RETRIES, ClosedError, Requests, retry_delay
from molecule_connect_agent.responses import deleted_error, read_secrets, read_state, removed_state
from molecule_connect_agent.tokens import TokenFile
from molecule_connect_agent.values import (
    DEFAULT_HEARTBEAT_INTERVAL,
    DEFAULT_STATE_POLL_INTERVAL,
    REMOVED,
    WorkspaceState,
)

# May be async.
TaskSupplier: TypeAlias = Callable[[], Mapping[str, object] | Awaitable[Mapping[str, object]]]
REGISTER_FIRST = "call register() first; if you did, the token was replaced: store the new one with save_token()"
SAVED_WITHIN = 1.0
# The platform refuses a heartbeat with a larger number, and with a boolean.
_MOST_TASKS = 2**31 - 1
_log = logging.getLogger(__name__)


@attrs.define(eq=False)
class Registrar:
    """Registers one agent and keeps it online. Uptime counts from its creation."""

    _requests: Requests
    _tokens: TokenFile
    card: Mapping[str, object]
    reported_url: str = ""
    heartbeat_interval: float = DEFAULT_HEARTBEAT_INTERVAL
    state_poll_interval: float = DEFAULT_STATE_POLL_INTERVAL
    _created: float = attrs.field(
        default=attrs.Factory(lambda self: self._requests.clock(), takes_self=True), init=False
    )

    @property
    def workspace_id(self) -> str:
        """The agent's workspace."""
        return self._requests.workspace_id

    async def register(self) -> str:
        """The token that the platform issued, else the stored one, else an empty string.

        Raises:
            WorkspaceDeletedError: The workspace was deleted. The platform registers it anyway, with a token that it
                never accepts (contract 2.1).
        """
        operation = endpoints.register(self.workspace_id, self.card, url=self.reported_url)
        had_none = self._tokens.load() is None
        try:
            try:
                token = await self._requests.send(operation, repeatable=True)
            except AuthError:
                # Another thread or program may have received the token of a new workspace without having saved it yet.
                if not had_none or await self._requests.wait(SAVED_WITHIN) or self._tokens.load() is None:
                    raise
                token = await self._requests.send(operation, repeatable=True)
        except TransientPlatformError as exc:
            if exc.status is not None and exc.status >= 500 and not exc.hint:
                # A platform that can't read an id answers 500 "registration failed" (contract 2.1).
                exc.hint = "if it persists, the id may be wrong: compare it with the platform's"
            raise
        stored = self._tokens.load()
        if token is None:
            if stored is None:
                _log.warning("the platform issued no token for %s, and none is stored", self.workspace_id)
            return stored or ""
        if stored not in (None, token) and await self._is_deleted():
            raise deleted_error(self.workspace_id)
        try:
            self._tokens.keep(token)
        except ConfigError as exc:
            # The platform shows a token once, so it is used even if it can't be stored.
            _log.warning("%s; it is used until this program ends -> %s", exc, exc.hint)
        return token

    async def _is_deleted(self) -> bool:
        """``is_removed`` without retries, since the issued token is stored only after it."""
        try:
            return await self.is_removed(retries=0)
        except ClosedError:
            return False

    async def secrets(self) -> dict[str, str]:
        """The workspace's secrets."""
        try:
            fields = await self._requests.send(endpoints.secrets(self.workspace_id))
        except AuthError as exc:
            exc.hint = REGISTER_FIRST
            raise
        return read_secrets(fields)

    async def state(self, *, retries: int = RETRIES) -> WorkspaceState:
        """The workspace's state. If the token is refused, the public card shows whether the workspace was deleted."""
        operation = attrs.evolve(endpoints.state(self.workspace_id), is_optional=False)
        try:
            fields = await self._requests.send(operation, retries=retries)
        except AuthError:
            if not await self.is_removed(retries=retries):
                raise
            return removed_state(self.workspace_id)
        except PlatformError as exc:
            if exc.status != 404:
                raise
            return removed_state(self.workspace_id)
        return read_state(fields, workspace_id=self.workspace_id)

    async def is_removed(self, *, retries: int = RETRIES) -> bool:
        """Whether the public card says that the workspace was deleted; False if it can't be read."""
        try:
            info = await self._requests.send(endpoints.workspace(self.workspace_id), retries=retries)
        except PlatformError:
            return False
        return info.status == REMOVED

    async def heartbeat(self, presence: Presence) -> None:
        """Send one heartbeat."""
        check_rate("error_rate", presence.error_rate)
        uptime = int(self._requests.clock() - self._created)
        operation = endpoints.heartbeat(self.workspace_id, attrs.evolve(presence, uptime_seconds=uptime))
        await self._requests.send(operation, retries=0)

    async def run_loop(self, max_iterations: int | None, supplier: TaskSupplier | None) -> str:
        """Send heartbeats and read the state until the workspace is paused or removed."""
        try:
            return await self._loop(max_iterations, supplier)
        except ClosedError:
            return "closed"

    async def _loop(self, max_iterations: int | None, supplier: TaskSupplier | None) -> str:
        heartbeat_due = state_due = now = self._requests.clock()
        failed_heartbeats = failed_reads = sent = 0
        while max_iterations is None or sent < max_iterations:
            if now >= heartbeat_due:
                sent += 1
                try:
                    await self.heartbeat(await _presence(supplier))
                    failed_heartbeats, heartbeat_due = 0, now + self.heartbeat_interval
                except PlatformError as exc:
                    failed_heartbeats += 1
                    heartbeat_due = now + _retry_in(self.heartbeat_interval, failed_heartbeats, exc)
            if now >= state_due:
                try:
                    # Without retries, which would delay heartbeats: the loop reads again anyway.
                    state = await self.state(retries=0)
                    failed_reads, state_due = 0, now + self.state_poll_interval
                    if state.should_stop:
                        return "removed" if state.deleted else "paused"
                except PlatformError as exc:
                    failed_reads += 1
                    state_due = now + _retry_in(self.state_poll_interval, failed_reads, exc)
            if sent == max_iterations:
                break
            if await self._requests.wait(max(0.0, min(heartbeat_due, state_due) - now)):
                return "closed"
            now = self._requests.clock()
        return "max_iterations"


def _retry_in(interval: float, failures: int, exc: PlatformError) -> float:
    """Log *exc*. The seconds until the next try: at most *interval*, unless the platform asks for more."""
    _log.warning("%s%s; trying again", exc, f" ({exc.hint})" if exc.hint else "")
    return retry_delay(failures, exc, longest=min(interval, LONGEST_DELAY))


async def _presence(supplier: TaskSupplier | None) -> Presence:
    """What the agent is working on. The agent's own code may fail; its heartbeat must not."""
    fields: dict[str, object] = {}
    if supplier is not None:
        try:
            supplied = supplier()
            fields = dict((await supplied if isinstance(supplied, Awaitable) else supplied) or {})
        except Exception:
            _log.warning("the task supplier failed; the heartbeat names no task", exc_info=True)
    task, active = fields.get("current_task"), fields.get("active_tasks")
    return Presence(current_task="" if task is None else str(task), active_tasks=_task_count(active))


def _task_count(active: Any) -> int:
    """*active* as a number that the platform accepts: ``"2"`` and ``2.0`` are 2."""
    try:
        count = int(active if isinstance(active, int) else float(active or 0))
    except (TypeError, ValueError, OverflowError):
        _log.warning("the task supplier's active_tasks is not a number but %s; using 0", type(active).__name__)
        return 0
    return min(max(count, 0), _MOST_TASKS)
