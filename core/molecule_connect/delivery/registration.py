"""Saying that we answer for a workspace, and following its pauses and its end."""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from molecule_connect.backoff import Backoff
from molecule_connect.delivery.ports import Registry
from molecule_connect.delivery.reports import Reports
from molecule_connect.errors import PlatformError, TransientPlatformError, WorkspaceDeletedError
from molecule_connect.models import WorkspaceInfo, WorkspaceStatus

TRIES = 5
LOOKS = 3
STATUS_INTERVAL = 300.0
# Events may come in any number.
LEAST_BETWEEN_LOOKS = 1.0


class Registration:
    """Registers one workspace, and tells of pauses.

    Args:
        card: Members of the agent card that replace the platform's.
        paused: Told whether the workspace is paused, at each change.
        announced: Whether events would tell of a change, so that nobody needs to ask.
        patient: Whether to go on trying while the platform is out of reach.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        workspace_id: str,
        card: Mapping[str, Any],
        unpause: bool,
        reports: Reports,
        paused: Callable[[bool], None],
        announced: Callable[[], bool],
        backoff: Backoff,
        patient: bool = False,
    ) -> None:
        self._registry = registry
        self._workspace_id = workspace_id
        self._card = card
        self._unpause = unpause
        self._reports = reports
        self._paused = paused
        self._announced = announced
        self._backoff = backoff
        self._patient = patient
        self._due = asyncio.Event()
        self.is_paused = False

    async def begin(self) -> bool:
        """Register, unless the workspace is paused: older platforms would un-pause it. True: registered.

        Raises:
            WorkspaceDeletedError: It is gone.
            AuthError, PermanentPlatformError: Refused.
            TransientPlatformError: Five tries did not reach the platform, and nobody is patient.
        """
        for rounds in itertools.count(1):
            info = await self._look_patiently()
            if info.status is WorkspaceStatus.PAUSED and not self._unpause:
                self._pause(True)
                break
            try:
                await self._register(info, tries=TRIES if rounds == 1 else 1)
            except TransientPlatformError as exc:
                if not self._patient:
                    raise
                wait = self._backoff.delay(TRIES + rounds, at_least=exc.retry_after)
                self._reports.trouble("register", str(exc), f"trying again in {wait:.0f} s, for as long as it takes")
                await asyncio.sleep(wait)
            else:
                return True
        return False

    async def _register(self, info: WorkspaceInfo, *, tries: int = TRIES) -> None:
        card = dict(info.card or {"name": info.name or self._workspace_id}) | dict(self._card)
        for failures in range(1, tries + 1):
            try:
                await self._registry.register(card)
            except TransientPlatformError as exc:
                if failures == tries:
                    raise
                wait = self._backoff.delay(failures, at_least=exc.retry_after)
                count = "" if self._patient else f" ({failures} of {tries})"
                self._reports.trouble("register", str(exc), f"trying again in {wait:.0f} s{count}")
                await asyncio.sleep(wait)
            else:
                self._reports.trouble("register", "")
                return

    async def _look_patiently(self) -> WorkspaceInfo:
        """As ``_look``; a blip must not cost the operator the card that the answer would have shown."""
        for failures in range(1, LOOKS):
            try:
                return self._checked(await self._registry.workspace())
            except TransientPlatformError as exc:
                await asyncio.sleep(self._backoff.delay(failures, at_least=exc.retry_after))
            except PlatformError:
                break
        return await self._look()

    async def _look(self) -> WorkspaceInfo:
        """What the platform says of the workspace; unknown when it does not say."""
        try:
            return self._checked(await self._registry.workspace())
        except PlatformError:
            return WorkspaceInfo(status=WorkspaceStatus.UNKNOWN)

    def _checked(self, info: WorkspaceInfo) -> WorkspaceInfo:
        if info.status is WorkspaceStatus.REMOVED:
            raise WorkspaceDeletedError("the workspace was deleted on the platform", hint=info.hint)
        return info

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
                async with asyncio.timeout(STATUS_INTERVAL):
                    await self._due.wait()
            except TimeoutError:
                if self._announced() and not self.is_paused:
                    continue
            self._due.clear()
            info = await self._look()
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
