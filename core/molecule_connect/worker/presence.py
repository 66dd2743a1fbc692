"""Registration, heartbeats, and the changes of a workspace's state on the platform."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from molecule_connect.backoff import Backoff
from molecule_connect.errors import (
    AuthError,
    ConfigError,
    MoleculeError,
    PermanentPlatformError,
    PlatformError,
    TransientPlatformError,
    WorkspaceDeletedError,
)
from molecule_connect.models import WorkspaceInfo, WorkspaceStatus
from molecule_connect.worker.dispatcher import Dispatcher
from molecule_connect.worker.polling import Polling
from molecule_connect.worker.ports import Pace, Registry
from molecule_connect.worker.status import Status

# The platform shows a workspace as offline after 90 s without a heartbeat, so retry a failed one soon.
HEARTBEAT_RETRIES = Backoff(first=1.0, cap=4.0)

TRIES = 5
LOOKS = 3
STATUS_INTERVAL = 300.0
# Events may come in any number.
LEAST_BETWEEN_LOOKS = 1.0
# A platform that is being started may say that a workspace is gone. Said this often, over this long, it's no blip.
GONE_LOOKS, GONE_FOR, GONE_PAUSE = 3, 60.0, 20.0
# The same at each try, so that each of many workspaces reports an outage once.
_PATIENCE = "trying again in at most a minute, for as long as it takes"


class _InDoubtError(TransientPlatformError):
    """The platform says that the workspace is gone, and may be wrong."""


class Registration:
    """Registers one workspace, and tells of pauses.

    Args:
        card: Members of the agent card that replace the platform's.
        create: Whether a workspace that the platform doesn't have is registered, which makes it.
        paused: Told whether the workspace is paused, at each change.
        announced: Whether events would tell of a change, so that nobody needs to ask.
        patient: Whether to retry for as long as it takes, and to ask again before believing that the workspace is gone.
        doubts_refusals: Whether patience includes refusals in the platform's own words.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        workspace_id: str,
        card: Mapping[str, Any],
        unpause: bool,
        create: bool,
        status: Status,
        paused: Callable[[bool], None],
        announced: Callable[[], bool],
        backoff: Backoff,
        patient: bool = False,
        doubts_refusals: bool = True,
    ) -> None:
        self._registry = registry
        self._workspace_id = workspace_id
        self._card = card
        self._unpause = unpause
        self._create = create
        self._status = status
        self._paused = paused
        self._announced = announced
        self._backoff = backoff
        self._patient, self._doubts_refusals = patient, doubts_refusals
        self._due = asyncio.Event()
        self._gone_looks, self._gone_since = 0, 0.0
        self.is_paused = False

    async def begin(self) -> bool:
        """Register, unless the workspace is paused: older platforms would un-pause it. True: registered.

        Raises:
            ConfigError: The platform has no such workspace, and it's not to be created.
            WorkspaceDeletedError: It is gone.
            AuthError, PermanentPlatformError: Refused, and not patient.
            TransientPlatformError: Five tries did not reach the platform, and not patient.
        """
        for rounds in itertools.count(1):
            try:
                info = await self._look_patiently()
                if info.status is WorkspaceStatus.PAUSED and not self._unpause:
                    self._pause(True)
                    break
                await self._register(info, tries=TRIES if rounds == 1 else 1)
            except PlatformError as exc:
                if not self._patient or self._is_final(exc):
                    raise
                await self._wait(exc, TRIES + rounds - 1, _PATIENCE)
            else:
                return True
        return False

    async def _register(self, info: WorkspaceInfo, *, tries: int = TRIES) -> None:
        card = dict(info.card or {"name": info.name or self._workspace_id}) | dict(self._card)
        for failures in range(1, tries + 1):
            try:
                await self._registry.register(card)
            except PlatformError as exc:
                if failures == tries or self._is_final(exc):
                    raise
                words = _PATIENCE if self._patient else f"trying again in {{:.0f}} s ({failures} of {tries})"
                await self._wait(exc, failures, words)
            else:
                self._status.clear("register")
                return

    def _is_final(self, exc: PlatformError) -> bool:
        return not isinstance(exc, TransientPlatformError) and not (self._patient and self._doubts_refusals)

    async def _wait(self, exc: PlatformError, failures: int, words: str) -> None:
        asked = exc.retry_after if isinstance(exc, TransientPlatformError) else None
        wait = self._backoff.delay(failures, at_least=asked)
        again = words.format(wait)
        self._status.report("register", str(exc), f"{exc.hint}; {again}" if exc.hint else again)
        await asyncio.sleep(wait)

    async def _look_patiently(self) -> WorkspaceInfo:
        """As ``_look``; a blip must not cost the operator the card that the answer would have shown."""
        for failures in range(1, LOOKS):
            try:
                return self._checked(await self._registry.workspace(), create=self._create)
            except _InDoubtError:
                raise
            except TransientPlatformError as exc:
                await asyncio.sleep(self._backoff.delay(failures, at_least=exc.retry_after))
            except PlatformError:
                break
        return await self._look(create=self._create)

    async def _look(self, *, create: bool = True) -> WorkspaceInfo:
        """What the platform says of the workspace; unknown when it does not say."""
        try:
            return self._checked(await self._registry.workspace(), create=create)
        except _InDoubtError:
            raise
        except PlatformError:
            return WorkspaceInfo(status=WorkspaceStatus.UNKNOWN)

    def _checked(self, info: WorkspaceInfo, *, create: bool) -> WorkspaceInfo:
        gone = self._gone(info, create=create)
        if gone is None:
            self._gone_looks = 0
            return info
        now = asyncio.get_running_loop().time()
        if not self._gone_looks:
            self._gone_since = now
        self._gone_looks += 1
        is_doubtful = self._patient and not info.is_certain
        if is_doubtful and (self._gone_looks < GONE_LOOKS or now - self._gone_since < GONE_FOR):
            hint = "a platform that is being started may be wrong: asking again"
            raise _InDoubtError(f"register: {gone}", operation="workspace", hint=hint)
        raise gone

    def _gone(self, info: WorkspaceInfo, *, create: bool) -> MoleculeError | None:
        """Why there is nothing to serve, if the platform says so."""
        if info.is_absent and not create:
            # The token of another workspace would be accepted for registering this one.
            return ConfigError(
                f"the platform has no workspace {self._workspace_id}",
                hint="compare the id with the platform's; --create (create = true in a list) registers it as a new one",
            )
        if info.status is WorkspaceStatus.REMOVED:
            return WorkspaceDeletedError("the workspace was deleted on the platform", hint=info.hint)
        return None

    async def raise_if_deleted(self) -> None:
        """Ask the platform whether the workspace is gone.

        Raises:
            WorkspaceDeletedError: It is.
        """
        with contextlib.suppress(_InDoubtError):
            await self._look()

    def look_again(self) -> None:
        """Something may have changed: ask now, not in five minutes."""
        self._due.set()

    async def watch(self) -> None:
        """Learn of pause, resume and the end until cancelled.

        Raises:
            WorkspaceDeletedError: It is gone.
        """
        while True:
            try:
                async with asyncio.timeout(GONE_PAUSE if self._gone_looks else STATUS_INTERVAL):
                    await self._due.wait()
            except TimeoutError:
                if self._announced() and not self.is_paused and not self._gone_looks:
                    continue
            self._due.clear()
            try:
                info = await self._look()
            except _InDoubtError:
                info = WorkspaceInfo(status=WorkspaceStatus.UNKNOWN)
            if info.status is WorkspaceStatus.PAUSED and not self.is_paused:
                self._pause(True)
            elif info.status is WorkspaceStatus.ACTIVE and self.is_paused:
                await self._resume(info)
            await asyncio.sleep(LEAST_BETWEEN_LOOKS)

    async def _resume(self, info: WorkspaceInfo) -> None:
        try:
            await self._register(info)
        except PlatformError as exc:
            self._status.notice(f"registering after the pause failed: {exc}", "beats and messages go on")
        self._pause(False)

    def _pause(self, paused: bool) -> None:
        self.is_paused = paused
        self._paused(paused)


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
        polling: Polling,
        dispatcher: Dispatcher,
        *,
        pace: Pace,
        interval: float,
    ) -> None:
        self._registry = registry
        self._status = status
        self._polling = polling
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
            interval = max(self._interval, self._pace.beat_interval())
            wait = HEARTBEAT_RETRIES.delay(failures) if 0 < failures <= 3 else interval
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wait, interval)):
                    await self._until_due()

    async def send_final(self) -> None:
        """Report that the workspace is not served any more.

        Raises:
            PlatformError: It was not accepted.
        """
        await self._registry.beat(self._status.final_presence())

    async def _until_due(self) -> None:
        while True:
            await self._status.wedged_changed.wait()
            if self._is_requested or not self._pace.is_limited:
                return
            self._status.wedged_changed.clear()

    async def _send(self) -> bool:
        presence = self._status.presence(self._dispatcher.remark())
        sent_at = asyncio.get_running_loop().time()
        try:
            await self._registry.beat(presence)
        except PlatformError as exc:
            hint = exc.hint
            if isinstance(exc, PermanentPlatformError) and not isinstance(exc, AuthError):
                hint = "while heartbeats are refused, the platform will show the workspace as offline; trying again"
            self._status.report("heartbeat", str(exc), hint)
            return False
        self._polling.beat_accepted(sent_at)
        self._status.heartbeat_accepted(presence, sent_at=sent_at)
        return True
