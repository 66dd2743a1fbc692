"""One workspace on one platform, as delivery sees it: feed, sender, registry and stream in one."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import IO, Any

import attrs

from molecule_connect.errors import AuthError, ConfigError, PermanentPlatformError, TransientPlatformError
from molecule_connect.models import (
    FilePart,
    Outgoing,
    Page,
    Presence,
    Signal,
    UploadLimits,
    WorkspaceInfo,
    WorkspaceStatus,
)
from molecule_connect.platform import chat_files, endpoints
from molecule_connect.platform.client import AsyncPlatformClient
from molecule_connect.platform.cooperative import Steps, finish
from molecule_connect.platform.endpoints import Reply
from molecule_connect.platform.event_stream import meaning, read_events
from molecule_connect.platform.feed_rows import read_page_in_steps
from molecule_connect.platform.messages import notify_fingerprint
from molecule_connect.platform.rate_limit import RateLimiter

# An operator may raise them while we run.
LIMITS_FOR = 3600.0
_BUSY = (402, 408, 425, 429)


def _say_nothing(text: str) -> None:
    pass


class WorkspaceClient:
    """Implements delivery's ``ports.Platform``.

    Args:
        client: Closed together with this.
        say: Told what the operator should read once.
    """

    def __init__(
        self,
        client: AsyncPlatformClient,
        *,
        say: Callable[[str], None] = _say_nothing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._say = client, say
        self._id = client.workspace_id
        self._newest: int | None = None
        self._token_told = False
        self._clock = clock
        self._limits: tuple[float, UploadLimits] | None = None

    @property
    def pacer(self) -> RateLimiter:
        """How far the platform's rate limit stretches safety reads and beats."""
        return self._client.pacer

    async def aclose(self) -> None:
        """Closes the client."""
        await self._client.aclose()

    async def fetch(
        self,
        *,
        since_id: str | None = None,
        before: int | None = None,
        limit: int,
        known: Callable[[str], bool],
        people: bool = False,
    ) -> Page:
        """One page of the feed; see ``ports.Feed``."""
        seen_before = self._newest

        def steps(reply: Reply) -> Steps[Page]:
            bounds = [bound for bound in (reply.began, seen_before) if bound is not None]
            return read_page_in_steps(
                reply.body.decode("utf-8-sig", "replace"),
                workspace_id=self._id,
                limit=limit,
                known=known,
                size=len(reply.body),
                whole=reply.whole,
                earliest=max(bounds, default=None),
            )

        operation = endpoints.activity(
            self._id, lambda reply: finish(steps(reply)), since_id=since_id, before=before, limit=limit, people=people
        )
        page = await self._client.call(attrs.evolve(operation, steps=steps))
        times = [mark.time for mark in page.marks if mark.time is not None]
        times += [self._newest] if self._newest is not None else []
        self._newest = max(times, default=None)
        self._client.platform_clock.saw(self._newest)
        return page

    def now(self) -> int | None:
        """A lower bound of the platform's clock now; see ``ports.Feed``."""
        return self._client.platform_clock.now()

    async def send(self, outgoing: Outgoing) -> None:
        """An answer to whom it is for; see ``ports.Sender``."""
        await self._client.call(endpoints.answer(self._id, outgoing))

    def fingerprint(self, outgoing: Outgoing) -> str:
        """The fingerprint that the echo of *outgoing*, an answer to a person, will have in the feed."""
        return notify_fingerprint(outgoing.parts)

    async def workspace(self) -> WorkspaceInfo:
        """What the platform says of the workspace. One that does not tell: unknown.

        Raises:
            TransientPlatformError: It could not be asked; its answer would have shown the card.
        """
        try:
            return await self._client.call(endpoints.workspace(self._id))
        except (AuthError, PermanentPlatformError):
            return WorkspaceInfo(status=WorkspaceStatus.UNKNOWN)

    async def register(self, card: dict[str, Any]) -> None:
        """Registers; a token that is handed out is kept before this returns."""
        try:
            token = await self._client.call(endpoints.register(self._id, card))
        except AuthError as exc:
            exc.hint = f"workspace {self._id}, token from {self._client.credentials.source}: {exc.hint}"
            raise
        except TransientPlatformError as exc:
            if exc.status == 500 and not exc.hint:
                # A platform that cannot read an id answers 500 "registration failed" (contract 2.1).
                exc.hint = (
                    f"if it stays so, the id may be wrong: compare it with the platform's; 'molecule doctor {self._id}'"
                )
            raise
        if token is None:
            return
        try:
            self._client.credentials.keep(token)
        except ConfigError as exc:
            self._say(f"{exc}; {exc.hint}")
            return
        if not self._token_told:
            self._token_told = True
            self._say(
                "this workspace was new to the platform (or had no token): "
                f"the token that it handed out is kept in {self._client.credentials.kept_path or 'memory alone'}"
            )

    async def heartbeat(self, presence: Presence) -> None:
        """One heartbeat."""
        await self._client.call(endpoints.heartbeat(self._id, presence))

    async def upload_limits(self) -> UploadLimits:
        """How large files may be, asked once an hour; see ``ports.Files``."""
        if self._limits is None or self._limits[0] <= self._clock():
            try:
                told = await self._client.call(chat_files.limits())
            except AuthError:
                raise
            except PermanentPlatformError:
                told = UploadLimits()
            except TransientPlatformError as exc:
                if exc.status is None or exc.status >= 500 or exc.status in _BUSY:
                    raise
                # Where the platform has no such page, whatever stands before it may answer with one of its own.
                told = UploadLimits()
            self._limits = (self._clock() + LIMITS_FOR, told)
        return self._limits[1]

    async def fetch_file(self, file_id: str, sink: IO[bytes], *, cap: int) -> str:
        """Writes an upload into *sink*, and gives its type; see ``ports.Files``."""
        return await self._client.call(chat_files.fetch(self._id, file_id, cap=cap), sink=sink)

    async def acknowledge_file(self, file_id: str) -> None:
        """Tells the platform that an upload is here; see ``ports.Files``."""
        await self._client.call(chat_files.acknowledge(self._id, file_id))

    async def upload(self, files: Sequence[FilePart]) -> tuple[FilePart, ...]:
        """Puts files into the chat; see ``ports.Files``."""
        return await self._client.call(chat_files.upload(self._id, files))

    async def signals(self) -> AsyncGenerator[Signal, None]:
        """The signals of one connection to the event stream; see ``ports.Stream``."""
        async with self._client.open(endpoints.events(self._id)) as pieces:
            yield Signal.OPENED
            async for data in read_events(pieces):
                yield meaning(data)
