"""The errors of molecule-connect. The class says what to do next, ``hint`` says it to a person."""

import enum
import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The command line loads this module, and attrs costs a third of what --help may take.
    from molecule_connect.models import Usage

# The error of a fleet quotes so many of its workspaces.
_MOST_TOLD = 5
_CREDENTIALS = re.compile(r"(?<=://)[^\s/?#'\"<>]*@")
# What a machine runs out of for a while: room and inodes on a disk, open files, memory.
_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_SHORTAGES = _OUT_OF_FILES | {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}
# SQLite for the same, and for a file that another program holds: BUSY, IOERR, FULL and CANTOPEN.
_SQLITE_SHORTAGES = frozenset({5, 10, 13, 14})


def without_credentials(text: str) -> str:
    """*text* with ``***`` in place of the user name and password of each URL in it."""
    return _CREDENTIALS.sub("***@", text)


class MoleculeError(Exception):
    """Anything that molecule-connect raises on purpose. Neither text nor hint shows the credentials of a URL.

    Attributes:
        hint: One line: what the operator can do. Empty where the text says it all.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(without_credentials(message))
        self.hint = without_credentials(hint)

    @property
    def may_heal(self) -> bool:
        """Whether the same can succeed later although nobody changes a setting: a full disk is one day not full."""
        return any(
            (isinstance(one, OSError) and one.errno in _SHORTAGES)
            or getattr(one, "sqlite_errorcode", 0) & 0xFF in _SQLITE_SHORTAGES
            for one in _chain(self)
        )


def ran_out_of_files(error: BaseException | None) -> bool:
    """Whether *error*, or what caused it, says that this process or machine can't open any more files."""
    return any(isinstance(one, OSError) and one.errno in _OUT_OF_FILES for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


class ConfigError(MoleculeError):
    """Something that was asked for makes no sense; found before the first request."""


class ArgumentError(ConfigError, ValueError):
    """A value that was passed cannot be used; found before any request."""


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
        retry_after: Seconds until it can; the wait costs no attempt.
        usage: What the attempt cost all the same.
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
    """The journal cannot be read or written."""


class StateLostError(JournalError):
    """A file of the state folder was removed or replaced while this process used it; the process stops serving."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            hint="find out what removes it (a cleaner of temporary files, a volume that went away), choose a lasting"
            " folder with --state-dir, and start again",
        )


class LeaseError(MoleculeError):
    """Another process on this machine serves the workspace."""


class WorkspaceDeletedError(MoleculeError):
    """The workspace was deleted on the platform."""


class ArchiveError(MoleculeError, ValueError):
    """An archive that was downloaded cannot be unpacked, or must not be; nothing was changed."""


class CloseError(MoleculeError):
    """A plugin failed while it was closed."""


class FleetError(MoleculeError):
    """Some of the workspaces that one process served have ended with an error, and none is left.

    Attributes:
        errors: What each of those ended with, by workspace id.
    """

    def __init__(self, errors: Mapping[str, BaseException], *, of: int) -> None:
        self.errors = dict(errors)
        texts = [f"{name}: {str(error) or type(error).__name__}" for name, error in self.errors.items()]
        more = [f"and {len(texts) - _MOST_TOLD} more"] if len(texts) > _MOST_TOLD else []
        hints = {getattr(error, "hint", "") for error in self.errors.values()}
        hint = hints.pop() if len(hints) == 1 else ""
        super().__init__(
            f"{len(self.errors)} of {of} workspaces ended with an error: {'; '.join([*texts[:_MOST_TOLD], *more])}",
            hint=hint or "the lines above say for each what to do",
        )


class Outcome(enum.Enum):
    """How far a request came that was not answered well."""

    NOT_TAKEN = "not taken"  # the platform cannot have acted on it
    UNKNOWN = "unknown"  # cut while it was sent, or a server error
    WRITTEN = "written"  # sent in full on a connection that worked, and no answer came in time


class PlatformError(MoleculeError):
    """A request to the platform failed. The text names the operation and the status, never a token."""

    def __init__(self, message: str, *, operation: str, status: int | None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.operation = operation
        self.status = status

    @property
    def may_heal(self) -> bool:
        """A platform that starts, or one of its blips, can refuse anything in its own words."""
        return True


class TransientPlatformError(PlatformError):
    """It may work later. The network error, if there was one, is the cause.

    Attributes:
        retry_after: Seconds that the platform asked us to wait.
        outcome: Whether the platform may have acted on the request.
        platform_said: True when the answer was the platform's own JSON.
        about_peer: The failure concerns the peer that was written to, and says nothing about messages to others.
        is_reported: The operator was told of the cause once, for all workspaces of this process.
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
    """An answer was larger than its cap; ask for less."""


class PermanentPlatformError(PlatformError):
    """The platform itself refused, in its own words; the same request will be refused again."""

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
    """The row that a read was to start after is gone (410), or its id can never be looked up."""
