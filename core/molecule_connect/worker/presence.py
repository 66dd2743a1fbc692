"""Registration, heartbeats, and the changes of a workspace's state on the platform."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable

from molecule_connect.backoff import Backoff
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.errors import (
    AuthError,
    ConfigError,
    MoleculeError,
    PermanentPlatformError,
    PlatformError,
    TransientPlatformError,
    WorkspaceDeletedError,
)
from molecule_connect.flag import Flag
from molecule_connect.models import WorkspaceInfo, WorkspaceStatus
from molecule_connect.worker.dispatcher import Dispatcher
from molecule_connect.worker.ports import Pace, Registry
from molecule_connect.worker.status import Status
from molecule_connect.worker.stream import EventStream

# The platform shows a workspace as offline after 90 s without a heartbeat, so retry a failed one soon.
HEARTBEAT_RETRIES = Backoff(first=1.0, cap=4.0)

# Attempts at a request before the start fails, unless the workspace retries its start indefinitely.
REGISTER_TRIES = 5
STATE_TRIES = 3
RETRIES = Backoff(first=1.0, cap=60.0)
STATE_INTERVAL = 300.0
# Events may request any number of checks.
SHORTEST_STATE_INTERVAL = 1.0
# A platform that is starting may call a workspace deleted. Believe it after this many answers over this many seconds.
DELETED_ANSWERS, DELETED_FOR, DELETED_INTERVAL = 3, 60.0, 20.0
# The same for each attempt, so that an outage is one problem.
_RETRY_HINT = "trying again in at most a minute, without a limit"


class _InDoubtError(TransientPlatformError):
    """The platform says that the workspace is deleted or unknown, and may be wrong."""


class Registration:
    """Registers a workspace, and follows its state on the platform.

    Args:
        stream: While it is trusted, state changes arrive as events, and regular checks are not needed.
        retries_refusals: A workspace that retries its start retries refusals in the platform's own words too.

    Attributes:
        is_paused: Whether the workspace is paused on the platform.
    """

    def __init__(
        self,
        registry: Registry,
        settings: WorkspaceSettings,
        status: Status,
        stream: EventStream,
        *,
        retries_refusals: bool = True,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._status = status
        self._stream = stream
        # Whether to retry indefinitely.
        self._is_patient = settings.patient and not settings.once
        self._retries_refusals = self._is_patient and retries_refusals
        self._check_requested = Flag()
        # Answers in a row that call the workspace deleted, and the loop time of the first.
        self._deleted_answers, self._deleted_since = 0, 0.0
        self.is_paused = False

    async def register(self) -> bool:
        """Register the workspace. False: it is paused, and older platforms would resume it.

        Raises:
            ConfigError: The platform has no such workspace, and the settings don't ask to create it.
            WorkspaceDeletedError: The workspace was deleted.
            AuthError, PermanentPlatformError: The platform refused, and refusals are not retried.
            TransientPlatformError: Five attempts failed, and the settings don't ask for more.
        """
        for rounds in itertools.count(1):
            try:
                info = await self._first_state()
                if info.status is WorkspaceStatus.PAUSED and not self._settings.unpause:
                    self.is_paused = True
                    return False
                await self._register(info, tries=REGISTER_TRIES if rounds == 1 else 1)
            except PlatformError as exc:
                if not self._is_patient or self._is_final(exc):
                    raise
                await self._wait(exc, REGISTER_TRIES + rounds - 1, _RETRY_HINT)
            else:
                break
        return True

    async def follow_pauses(self, changed: Callable[[bool], None]) -> None:
        """Follow the workspace's state until cancelled. Calls *changed* at each change: whether it is paused.

        Raises:
            WorkspaceDeletedError: The workspace was deleted.
        """
        while True:
            await self._until_check_is_due()
            with contextlib.suppress(_InDoubtError):
                info = await self._state()
                if info.status is WorkspaceStatus.PAUSED and not self.is_paused:
                    self.is_paused = True
                    changed(True)
                elif info.status is WorkspaceStatus.ACTIVE and self.is_paused:
                    await self._register_again(info)
                    self.is_paused = False
                    changed(False)
            await asyncio.sleep(SHORTEST_STATE_INTERVAL)

    def check_soon(self) -> None:
        """Check the workspace's state soon: it may have changed."""
        self._check_requested.set()

    async def raise_if_deleted(self) -> None:
        """Ask the platform whether the workspace was deleted.

        Raises:
            WorkspaceDeletedError: It was.
        """
        with contextlib.suppress(_InDoubtError):
            await self._state()

    async def _register(self, info: WorkspaceInfo, *, tries: int) -> None:
        card = dict(info.card or {"name": info.name or self._settings.workspace_id}) | dict(self._settings.card)
        for failures in range(1, tries + 1):
            try:
                notice = await self._registry.register(card)
            except PlatformError as exc:
                if failures == tries or self._is_final(exc):
                    raise
                hint = _RETRY_HINT if self._is_patient else f"trying again in {{:.0f}} s ({failures} of {tries})"
                await self._wait(exc, failures, hint)
            else:
                self._status.clear("register")
                if notice:
                    self._status.notice(notice)
                return

    async def _register_again(self, info: WorkspaceInfo) -> None:
        try:
            await self._register(info, tries=REGISTER_TRIES)
        except PlatformError as exc:
            self._status.notice(
                f"registering after the pause failed: {exc}", "heartbeats and messages continue without it"
            )

    def _is_final(self, exc: PlatformError) -> bool:
        return not isinstance(exc, TransientPlatformError) and not self._retries_refusals

    async def _wait(self, exc: PlatformError, failures: int, retry_hint: str) -> None:
        """Wait before the next attempt, and report why. ``{}`` in *retry_hint* is replaced by the seconds."""
        retry_after = exc.retry_after if isinstance(exc, TransientPlatformError) else None
        wait = RETRIES.delay(failures, at_least=retry_after)
        retry_hint = retry_hint.format(wait)
        self._status.report("register", str(exc), f"{exc.hint}; {retry_hint}" if exc.hint else retry_hint)
        await asyncio.sleep(wait)

    async def _first_state(self) -> WorkspaceInfo:
        """As ``_state``, with retries: registering without the answer would replace the operator's card."""
        for failures in range(1, STATE_TRIES):
            try:
                return self._checked(await self._registry.workspace(), create=self._settings.create)
            except _InDoubtError:
                raise
            except TransientPlatformError as exc:
                await asyncio.sleep(RETRIES.delay(failures, at_least=exc.retry_after))
            except PlatformError:
                break
        return await self._state(create=self._settings.create)

    async def _state(self, *, create: bool = True) -> WorkspaceInfo:
        """The workspace as the platform describes it; of unknown status if the request fails."""
        try:
            return self._checked(await self._registry.workspace(), create=create)
        except _InDoubtError:
            raise
        except PlatformError:
            return WorkspaceInfo(status=WorkspaceStatus.UNKNOWN)

    def _checked(self, info: WorkspaceInfo, *, create: bool) -> WorkspaceInfo:
        error = self._error(info, create=create)
        if error is None:
            self._deleted_answers = 0
            return info
        now = asyncio.get_running_loop().time()
        if not self._deleted_answers:
            self._deleted_since = now
        self._deleted_answers += 1
        is_doubtful = self._is_patient and not info.is_certain
        if is_doubtful and (self._deleted_answers < DELETED_ANSWERS or now - self._deleted_since < DELETED_FOR):
            hint = "a platform that is starting may be wrong; checking again"
            raise _InDoubtError(f"register: {error}", operation="workspace", hint=hint)
        raise error

    def _error(self, info: WorkspaceInfo, *, create: bool) -> MoleculeError | None:
        """Why there is no workspace to serve, if the platform says so."""
        if info.is_absent and not create:
            # The platform would accept the token of another workspace for this registration.
            return ConfigError(
                f"the platform has no workspace {self._settings.workspace_id}",
                hint="compare the id with the platform's; --create (create = true in a list) creates it",
            )
        if info.status is WorkspaceStatus.REMOVED:
            return WorkspaceDeletedError("the workspace was deleted on the platform", hint=info.hint)
        return None

    async def _until_check_is_due(self) -> None:
        while True:
            interval = DELETED_INTERVAL if self._deleted_answers else STATE_INTERVAL
            is_requested = await self._check_requested.wait(interval)
            if is_requested or not self._stream.trusted or self.is_paused or self._deleted_answers:
                self._check_requested.clear()
                return


class Heartbeat:
    """Sends heartbeats: at once, then at an interval, and soon after the lasting problems change.

    Args:
        pace: Can lengthen the interval.
        interval: Seconds between heartbeats.
    """

    def __init__(
        self,
        registry: Registry,
        status: Status,
        stream: EventStream,
        dispatcher: Dispatcher,
        *,
        pace: Pace,
        interval: float,
    ) -> None:
        self._registry = registry
        self._status = status
        self._stream = stream
        self._dispatcher = dispatcher
        self._pace = pace
        self._interval = interval
        self._is_requested = False

    def send_now(self) -> None:
        """Send a heartbeat without waiting for the interval to end."""
        self._is_requested = True
        self._status.wedged_changed.set()

    def send_soon(self) -> None:
        """As ``send_now``, unless the rate limit leaves room for the regular heartbeats only."""
        if not self._pace.is_limited:
            self.send_now()

    async def run(self) -> None:
        """Send heartbeats until cancelled. A failed one is sent again after 1, 2, 4 s."""
        failures = 0
        while True:
            self._is_requested = False
            self._status.wedged_changed.clear()
            failures = 0 if await self._send() else failures + 1
            interval = self._pace.heartbeat_interval(self._interval)
            wait = HEARTBEAT_RETRIES.delay(failures) if 0 < failures <= 3 else interval
            await self._until_due(asyncio.get_running_loop().time() + min(wait, interval))

    async def send_final(self) -> None:
        """Report that the workspace is no longer served.

        Raises:
            PlatformError: The heartbeat was not accepted.
        """
        await self._registry.heartbeat(self._status.final_presence())

    async def _until_due(self, latest: float) -> None:
        loop, changed = asyncio.get_running_loop(), self._status.wedged_changed
        while await changed.wait(latest - loop.time()) and not self._is_requested and self._pace.is_limited:
            changed.clear()

    async def _send(self) -> bool:
        presence = self._status.presence(self._dispatcher.remark())
        sent_at = asyncio.get_running_loop().time()
        try:
            await self._registry.heartbeat(presence)
        except PlatformError as exc:
            hint = exc.hint
            if isinstance(exc, PermanentPlatformError) and not isinstance(exc, AuthError):
                hint = "while heartbeats are refused, the platform will show the workspace as offline; trying again"
            self._status.report("heartbeat", str(exc), hint)
            return False
        self._stream.heartbeat_accepted(sent_at)
        self._status.heartbeat_accepted(presence, sent_at=sent_at)
        return True
