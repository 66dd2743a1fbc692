"""What delivery needs of the platform, as protocols: its tests bring their own."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import IO, Any, Protocol

from molecule_connect.models import FilePart, Outgoing, Page, Presence, Signal, UploadLimits, WorkspaceInfo


class Feed(Protocol):
    """Where rows come from."""

    async def fetch(
        self,
        *,
        since_id: str | None = None,
        before: int | None = None,
        limit: int,
        known: Callable[[str], bool],
        people: bool = False,
    ) -> Page:
        """One page: oldest first after the row *since_id*, else newest first, strictly older than *before* (µs).

        Rows that *known* knows are in ``Page.marks`` alone. With *people*, rows with a source are left out.

        Raises:
            CursorExpiredError: *since_id* names no row any more.
            PageTooLargeError: Ask again with a smaller limit.
            PlatformError: Anything else.
        """
        ...

    def now(self) -> int | None:
        """A lower bound of the platform's clock now, in microseconds; None while no answer has told the time."""
        ...


class Sender(Protocol):
    """Where answers go."""

    async def send(self, outgoing: Outgoing) -> None:
        """Returns when the platform accepted it.

        Raises:
            PermanentPlatformError: Refused for good, in the platform's own words.
            TransientPlatformError: Not accepted; ``outcome`` says whether it may have been taken.
        """
        ...

    def fingerprint(self, outgoing: Outgoing) -> str:
        """What the feed's echo of this answer to a person will have as its ``fingerprint``."""
        ...


class Files(Protocol):
    """Where the files of the chat are kept."""

    async def upload_limits(self) -> UploadLimits:
        """How large files may be. Platforms that do not tell: what those take."""
        ...

    async def fetch_file(self, file_id: str, sink: IO[bytes], *, cap: int) -> str:
        """Write an upload into *sink*; its type as the platform calls it, or "".

        Raises:
            PageTooLargeError: It has more than *cap* bytes; some of them were written.
            PermanentPlatformError: It is not to be had; 404: it is gone.
            TransientPlatformError: It may be later; some of it may have been written.
        """
        ...

    async def acknowledge_file(self, file_id: str) -> None:
        """The upload lies on this machine's disk. One that is gone is as good as acknowledged."""
        ...

    async def upload(self, files: Sequence[FilePart]) -> tuple[FilePart, ...]:
        """Put files that lie here (``path``) into the chat; as many come back, as the platform names them.

        Raises:
            ConfigError: One cannot be read, or is empty.
            PlatformError: They were not taken; a transient one tells by ``outcome`` whether they may have been.
        """
        ...


class Registry(Protocol):
    """Where we say that we are there."""

    async def workspace(self) -> WorkspaceInfo:
        """What the platform says of the workspace. A platform that does not tell: status unknown."""
        ...

    async def register(self, card: dict[str, Any]) -> None:
        """Say that this connector answers for the workspace, in delivery mode poll."""
        ...

    async def beat(self, presence: Presence) -> None:
        """One heartbeat."""
        ...


class Stream(Protocol):
    """Where wake-ups come from."""

    def signals(self) -> AsyncIterator[Signal]:
        """Signals of one connection, ``OPENED`` first; it ends or raises when the connection does.

        Raises:
            PermanentPlatformError: The platform has no stream, or refuses it.
            TransientPlatformError: It could not be opened, or was cut.
        """
        ...


class Pace(Protocol):
    """How far the platform's rate limit slows one workspace down. This one doesn't."""

    def safety_interval(self, *, trusted: bool) -> float:
        """The least seconds between safety reads; *trusted*: the event stream wakes us."""
        return 0.0

    def poll_interval(self) -> float:
        """The least seconds between polls."""
        return 0.0

    def read_rest(self) -> float:
        """Seconds between two reads that events ask for."""
        return 0.0

    def beat_interval(self) -> float:
        """The least seconds between heartbeats."""
        return 0.0

    @property
    def is_limited(self) -> bool:
        """Whether requests have to be saved."""
        return False

    @property
    def is_queued(self) -> bool:
        """Whether a read waits for its turn: that's no trouble of the platform's."""
        return False


class Unlimited(Pace):
    """No rate limit."""


class Platform(Feed, Sender, Files, Registry, Stream, Protocol):
    """All of it: one workspace on one platform."""
