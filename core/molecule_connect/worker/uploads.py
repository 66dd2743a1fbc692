"""Uploads files to the chat: each is recorded before it is uploaded, and referred to by the platform's URI after."""

import stat
from collections.abc import Sequence

import attrs

from molecule_connect.errors import AuthError, ConfigError, Outcome, PermanentPlatformError, TransientPlatformError
from molecule_connect.files import MAX_NAME_LENGTH, safe_name
from molecule_connect.journal.files import FileJournal
from molecule_connect.journal.models import StoredMessage
from molecule_connect.models import FilePart, Part, TextPart, UploadLimits
from molecule_connect.worker.clock import SECOND, Clock
from molecule_connect.worker.ports import Platform

# Files per upload request (contract 2.12).
MAX_FILES = 64
# Bytes of a form beside its files.
FORM_OVERHEAD = 64 * 1024
# If the platform answers but keeps rejecting a file for this long, the reply is sent without it, in microseconds.
GIVE_UP_AFTER = 900 * SECOND


class Attachments:
    """Uploads files of one workspace, for replies and for messages that a program sends."""

    def __init__(self, platform: Platform, journal: FileJournal, clock: Clock) -> None:
        self._platform = platform
        self._journal = journal
        self._clock = clock

    async def put(self, files: Sequence[FilePart]) -> tuple[FilePart, ...]:
        """Upload *files*, each with a ``path``, in as many requests as needed. Returns them with the platform's URIs.

        Raises:
            ConfigError: A file can't be read, is empty or is too large; nothing was uploaded.
            PlatformError: The platform didn't accept them.
            JournalError: The uploads could not be recorded.
        """
        if not files:
            return ()
        limits = await self._platform.upload_limits()
        for file in files:
            if reason := unfit(file, limits):
                raise ConfigError(
                    f"the file {_display_name(file)!r} cannot be sent: {reason}", hint="send the message without it"
                )
        done: list[FilePart] = []
        while len(done) < len(files):
            batch = _batch(files[len(done) :], limits)
            uploaded, notes = await self._upload(batch)
            await self._journal.uploaded(uploaded, notes, at=self._clock.now())
            done += uploaded
        return tuple(done)

    async def attach(self, message: StoredMessage) -> StoredMessage | None:
        """Upload files of the reply to *message*, in one request.

        A file that can't be sent is replaced by a line of text with the reason.

        Returns:
            *message* with the uploaded files; None if its reply must not be sent any more.

        Raises:
            AuthError, TransientPlatformError: Try again later; earlier uploads are in the journal.
            JournalError: The uploads could not be recorded.
        """
        if message.reply is None:
            return None
        limits = await self._platform.upload_limits()
        local = {
            number: part
            for number, part in enumerate(message.reply.parts)
            if isinstance(part, FilePart) and part.path is not None
        }
        reasons = {number: unfit(file, limits) for number, file in local.items()}
        replaced: dict[int, Part] = {
            number: _explanation(local[number], reason) for number, reason in reasons.items() if reason
        }
        fit = {number: file for number, file in local.items() if not reasons[number]}
        uploaded: tuple[FilePart, ...] = ()
        notes: list[int] = []
        if fit:
            batch = _batch(list(fit.values()), limits)
            numbers = list(fit)[: len(batch)]
            try:
                uploaded, notes = await self._upload(batch)
            except (ConfigError, PermanentPlatformError, TransientPlatformError) as exc:
                if not self._is_final(message, exc):
                    raise
                replaced |= {number: _explanation(local[number], str(exc)) for number in numbers}
            replaced |= dict(zip(numbers, uploaded, strict=False))
        parts = tuple(replaced.get(number, part) for number, part in enumerate(message.reply.parts))
        reply = attrs.evolve(message.reply, parts=parts)
        send_print, at = self._platform.fingerprint(message.caller_id, reply.parts), self._clock.now()
        is_current = await self._journal.attach_uploads(
            message, reply, send_print=send_print, files=uploaded, notes=notes, at=at
        )
        return attrs.evolve(message, reply=reply) if is_current else None

    def _is_final(self, message: StoredMessage, exc: Exception) -> bool:
        if isinstance(exc, AuthError):
            return False
        if isinstance(exc, TransientPlatformError):
            waited = self._clock.now() - (message.answered_at or 0)
            return exc.status is not None and exc.status != 429 and waited >= GIVE_UP_AFTER
        return True

    async def _upload(self, batch: Sequence[FilePart]) -> tuple[tuple[FilePart, ...], list[int]]:
        """The uploaded files, and the notes that identify their rows in the feed until the upload is recorded."""
        names = [(safe_name(_name(file)), _size(file)) for file in batch]
        notes = await self._journal.note(names, at=self._clock.now())
        try:
            return await self._platform.upload(batch), notes
        except (ConfigError, PermanentPlatformError):
            await self._journal.uploaded((), notes, at=self._clock.now())
            raise
        except TransientPlatformError as exc:
            # A remaining note would match an equal file of a person.
            if exc.outcome is Outcome.NOT_TAKEN:
                await self._journal.uploaded((), notes, at=self._clock.now())
            raise


def unfit(file: FilePart, limits: UploadLimits) -> str:
    """The reason if the platform would reject *file*, else empty."""
    if file.path is None:
        return "it is not on this machine"
    try:
        status = file.path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "it is not a regular file"
        with file.path.open("rb"):
            pass
    except (OSError, ValueError) as exc:  # ValueError: the path has a NUL character
        return f"it cannot be read ({getattr(exc, 'strerror', None) or exc})"
    most = min(limits.per_file, limits.per_request - FORM_OVERHEAD)
    if status.st_size > most:
        return f"it has {_mib(status.st_size)} MiB, and the platform accepts at most {_mib(most)} MiB"
    return "" if status.st_size else "it is empty"


def _batch(files: Sequence[FilePart], limits: UploadLimits) -> list[FilePart]:
    """The first *files* that fit into one request; at least one."""
    batch: list[FilePart] = []
    room = limits.per_request - FORM_OVERHEAD
    for file in files:
        room -= _size(file)
        if batch and (room < 0 or len(batch) == MAX_FILES):
            break
        batch.append(file)
    return batch


def _size(file: FilePart) -> int:
    try:
        return file.path.stat().st_size if file.path is not None else 0
    except (OSError, ValueError):
        return 0


def _name(file: FilePart) -> str:
    return file.name or (file.path.name if file.path else "") or "file"


def _display_name(file: FilePart) -> str:
    # Backends can choose any name.
    return _name(file)[:MAX_NAME_LENGTH]


def _explanation(file: FilePart, reason: str) -> TextPart:
    return TextPart(f"(The file {_display_name(file)} could not be attached: {reason}.)")


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f}".removesuffix(".0")
