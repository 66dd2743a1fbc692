"""The platform as the worker uses it, as protocols."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import IO, Any, Protocol

from molecule_connect.models import FilePart, Outgoing, Page, Part, Presence, Signal, UploadLimits, WorkspaceInfo


class Feed(Protocol):
    """Reads the rows of a workspace."""

    async def fetch(
        self,
        *,
        since_id: str | None = None,
        before: int | None = None,
        limit: int,
        known: Callable[[str], bool],
        people: bool = False,
    ) -> Page:
        """Fetch one page.

        Args:
            since_id: Return rows after this one, oldest first. None: newest first.
            before: Return rows strictly older than this, in microseconds.
            known: Returns whether a row is stored already; such rows are only in ``Page.marks``.
            people: Leave out rows with a source workspace.

        Raises:
            CursorExpiredError: The platform no longer has the row *since_id*.
            PageTooLargeError: Ask again with a smaller limit.
            PlatformError: Any other failure.
        """
        ...

    def now(self) -> int | None:
        """A lower bound of the platform's time in microseconds; None until a response has shown it."""
        ...


class Sender(Protocol):
    """Sends replies."""

    async def send(self, outgoing: Outgoing) -> None:
        """Send a reply; returns once the platform has accepted it.

        Raises:
            PermanentPlatformError: The platform refused it, in its own words.
            TransientPlatformError: It was not accepted; ``outcome`` says whether it may have been taken.
        """
        ...

    def fingerprint(self, caller_id: str | None, parts: tuple[Part, ...]) -> str | None:
        """The ``fingerprint`` that the feed's echo of a reply will have; None for replies to peers, without echoes."""
        ...


class Files(Protocol):
    """Transfers the files of messages."""

    async def upload_limits(self) -> UploadLimits:
        """The size limits of uploads; the known ones if the platform doesn't report any."""
        ...

    async def fetch_file(self, file_id: str, sink: IO[bytes], *, cap: int) -> str:
        """Download a file into *sink*. Returns its media type, or "" if the platform doesn't report it.

        After an error, part of the file may be in *sink*.

        Raises:
            PageTooLargeError: The file has more than *cap* bytes.
            PermanentPlatformError: The file is not available; with status 404, it was deleted.
            TransientPlatformError: It may be available later.
        """
        ...

    async def acknowledge_file(self, file_id: str) -> None:
        """Confirm that the file is stored on this machine. A deleted file counts as acknowledged."""
        ...

    async def upload(self, files: Sequence[FilePart]) -> tuple[FilePart, ...]:
        """Upload local files (``path``). Returns as many parts, with the platform's URIs.

        Raises:
            ConfigError: A file can't be read, or is empty.
            PlatformError: The upload failed; ``outcome`` of a transient error says whether it may have been taken.
        """
        ...


class Registry(Protocol):
    """Keeps a workspace registered and online."""

    async def workspace(self) -> WorkspaceInfo:
        """The platform's description of the workspace; of status unknown if the platform has no such endpoint."""
        ...

    async def register(self, card: dict[str, Any]) -> str:
        """Register as the program that serves the workspace, in delivery mode poll.

        Returns:
            A notice for the operator; empty if there is none.
        """
        ...

    async def heartbeat(self, presence: Presence) -> None:
        """Send one heartbeat."""
        ...

    async def peer_names(self) -> dict[str, str]:
        """The names of the workspaces that this one may write to, by id. Unchecked text.

        Raises:
            PlatformError: They are not available.
        """
        ...

    async def peer_name(self, peer_id: str) -> str:
        """The name of one workspace; empty if it has none. Unchecked text.

        Raises:
            PlatformError: It is not available.
        """
        ...


class Stream(Protocol):
    """The event stream."""

    def signals(self) -> AsyncIterator[Signal]:
        """Signals of one connection, first ``OPENED``. Ends or raises when the connection ends.

        Raises:
            PermanentPlatformError: The platform has no stream, or refuses it.
            TransientPlatformError: It could not be opened, or was interrupted.
        """
        ...


class Pace(Protocol):
    """How far the platform's rate limit slows a workspace down. The defaults are those without a limit."""

    def safety_interval(self, usual: float, *, trusted: bool) -> float:
        """Seconds between safety reads: *usual* or more; *trusted*: the event stream announces new rows."""
        return usual

    def poll_interval(self) -> float:
        """Minimum seconds between polls."""
        return 0.0

    def read_rest(self) -> float:
        """Seconds between two reads that events ask for."""
        return 0.0

    def heartbeat_interval(self, usual: float) -> float:
        """Seconds between heartbeats: *usual* or more."""
        return usual

    @property
    def is_limited(self) -> bool:
        """Whether requests have to be saved."""
        return False

    @property
    def remaining(self) -> int | None:
        """Requests that the platform still accepts in this minute; None without a limit."""
        return None


class Unlimited(Pace):
    """The pace without a rate limit."""


class Platform(Feed, Sender, Files, Registry, Stream, Protocol):
    """One workspace on one platform."""

    @property
    def is_queued(self) -> bool:
        """Whether a read waits for the rate limit. Such a wait is not a problem of the platform."""
        ...
