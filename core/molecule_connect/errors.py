"""The errors of molecule-connect: the class is for programs, ``hint`` is for the operator."""

import enum
import errno
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The command line loads this module, and importing attrs would take a third of the time budget of --help.
    from molecule_connect.models import Usage

# Workspaces that the error of a supervisor quotes.
_MOST_QUOTED = 5
_CREDENTIALS = re.compile(r"(?<=://)[^\s/?#'\"<>]*@")
# Errors of temporary shortages: disk space and inodes, open files, memory.
_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_SHORTAGES = _OUT_OF_FILES | {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}
# SQLite's codes for shortages and for a locked file: BUSY, IOERR, FULL and CANTOPEN.
_SQLITE_SHORTAGES = frozenset({5, 10, 13, 14})


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """``, did you mean 'x'?`` for the most similar of *known*, or an empty string."""
    # Only errors need it, and the command line loads this module.
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def without_credentials(text: str) -> str:
    """Return *text* with ``***`` in place of user name and password in each URL."""
    return _CREDENTIALS.sub("***@", text)


class MoleculeError(Exception):
    """Base class of all errors of molecule-connect. Credentials in URLs are removed from text and hint.

    Attributes:
        hint: What the operator can do, in one line. Empty if the text is enough.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(without_credentials(message))
        self.hint = without_credentials(hint)

    @property
    def may_heal(self) -> bool:
        """Whether a retry can succeed without a change of settings, for example after disk space was freed."""
        return any(
            (isinstance(one, OSError) and one.errno in _SHORTAGES)
            or getattr(one, "sqlite_errorcode", 0) & 0xFF in _SQLITE_SHORTAGES
            for one in _chain(self)
        )


def ran_out_of_files(error: BaseException | None) -> bool:
    """Whether *error* or one of its causes means that no more files can be opened."""
    return any(isinstance(one, OSError) and one.errno in _OUT_OF_FILES for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


class ConfigError(MoleculeError):
    """The configuration can't work. Raised before the first request."""


class ArgumentError(ConfigError, ValueError):
    """An argument can't be used. Raised before any request."""


class OptionError(ConfigError):
    """An option of a plugin is malformed, missing, unknown, or of the wrong type."""


class BackendNotFoundError(ConfigError):
    """No installed distribution offers a backend of this name."""

    def __init__(self, name: str, *, available: Iterable[str], hint: str = "") -> None:
        self.name = name
        self.available = tuple(sorted(available))
        known = ", ".join(self.available) or "none"
        super().__init__(f"no backend named {name!r} (installed: {known})", hint=hint)


class PluginError(ConfigError):
    """A plugin is installed but cannot be used."""


class BackendError(MoleculeError):
    """A backend could not answer.

    Attributes:
        retryable: Whether another attempt can help.
        retry_after: Seconds until then. The wait doesn't count as an attempt.
        usage: The cost of the failed attempt.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = True,
        retry_after: float | None = None,
        usage: "Usage | None" = None,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after
        self.usage = usage


class JournalError(MoleculeError):
    """The journal can't be read or written."""


class StateLostError(JournalError):
    """A file of the state folder was removed or replaced while this process used it; the process stops serving."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            hint="find out why (a cleaner of temporary files, an unmounted volume), choose a permanent"
            " folder with --state-dir, and start again",
        )


class LeaseError(MoleculeError):
    """Another process on this machine serves the workspace."""


class WorkspaceDeletedError(MoleculeError):
    """The workspace was deleted on the platform."""


class ArchiveError(MoleculeError, ValueError):
    """A downloaded archive is damaged or unsafe to unpack. Nothing was changed."""


class CloseError(MoleculeError):
    """A plugin failed to close."""


class FleetError(MoleculeError):
    """All workspaces of the process have ended, at least one of them with an error.

    Attributes:
        errors: The errors, by workspace id.
    """

    def __init__(self, errors: Mapping[str, BaseException], *, of: int) -> None:
        self.errors = dict(errors)
        texts = [f"{name}: {str(error) or type(error).__name__}" for name, error in self.errors.items()]
        more = [f"and {len(texts) - _MOST_QUOTED} more"] if len(texts) > _MOST_QUOTED else []
        hints = {getattr(error, "hint", "") for error in self.errors.values()}
        hint = hints.pop() if len(hints) == 1 else ""
        super().__init__(
            f"{len(self.errors)} of {of} workspaces ended with an error: {'; '.join([*texts[:_MOST_QUOTED], *more])}",
            hint=hint or "see the hints in the lines above",
        )


class Outcome(enum.Enum):
    """How far a failed request got."""

    NOT_TAKEN = "not taken"  # the platform can't have acted on it
    UNKNOWN = "unknown"  # cut off while sending, or a server error
    WRITTEN = "written"  # sent in full on a working connection, without a response in time


class PlatformError(MoleculeError):
    """A request to the platform failed. The text names operation and status, and never a token."""

    def __init__(self, message: str, *, operation: str, status: int | None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.operation = operation
        self.status = status

    @property
    def may_heal(self) -> bool:
        """True: a platform that is starting or has a short outage can refuse any request."""
        return True


class TransientPlatformError(PlatformError):
    """A retry may succeed. A network error is the ``__cause__``.

    Attributes:
        retry_after: Seconds that the platform asked us to wait.
        outcome: Whether the platform may have acted on the request.
        platform_said: The response was the platform's own JSON error.
        about_peer: The failure concerns the receiving peer, not messages to others.
        is_reported: The cause was already reported to the operator for the whole process.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str,
        status: int | None = None,
        retry_after: float | None = None,
        outcome: Outcome = Outcome.NOT_TAKEN,
        platform_said: bool = False,
        about_peer: bool = False,
        is_reported: bool = False,
        hint: str = "",
    ) -> None:
        super().__init__(message, operation=operation, status=status, hint=hint)
        self.retry_after = retry_after
        self.outcome = outcome
        self.platform_said = platform_said
        self.about_peer = about_peer
        self.is_reported = is_reported


class PageTooLargeError(TransientPlatformError):
    """A response was larger than its size limit. Request less data."""


class PermanentPlatformError(PlatformError):
    """The platform refused the request in its own JSON, and would refuse it again."""

    def __init__(self, message: str, *, operation: str, status: int | None, body: str, hint: str = "") -> None:
        super().__init__(message, operation=operation, status=status, hint=hint)
        self.body = body

    def __str__(self) -> str:
        text = super().__str__()
        is_shown = self.status is None or str(self.status) in text
        return text if is_shown else f"{text} (status {self.status})"


class AuthError(PermanentPlatformError):
    """The platform refused the token (401)."""

    def __str__(self) -> str:
        # The class has only one status.
        return Exception.__str__(self)


class CursorExpiredError(PermanentPlatformError):
    """The row that a read starts after doesn't exist any more (410), or its id is invalid."""
