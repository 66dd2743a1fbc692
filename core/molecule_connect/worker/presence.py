"""Saying that we answer for a workspace, and following its pauses and its end."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from molecule_connect.backoff import Backoff
from molecule_connect.errors import (
    ConfigError,
    MoleculeError,
    PlatformError,
    TransientPlatformError,
    WorkspaceDeletedError,
)
from molecule_connect.models import WorkspaceInfo, WorkspaceStatus
from molecule_connect.worker.ports import Registry
from molecule_connect.worker.reports import Reports

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
        reports: Reports,
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
        self._reports = reports
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
                self._reports.trouble("register", "")
                return

    def _is_final(self, exc: PlatformError) -> bool:
        return not isinstance(exc, TransientPlatformError) and not (self._patient and self._doubts_refusals)

    async def _wait(self, exc: PlatformError, failures: int, words: str) -> None:
        asked = exc.retry_after if isinstance(exc, TransientPlatformError) else None
        wait = self._backoff.delay(failures, at_least=asked)
        again = words.format(wait)
        self._reports.trouble("register", str(exc), f"{exc.hint}; {again}" if exc.hint else again)
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
            self._reports.notice(f"registering after the pause failed: {exc}", "beats and messages go on")
        self._pause(False)

    def _pause(self, paused: bool) -> None:
        self.is_paused = paused
        self._paused(paused)
