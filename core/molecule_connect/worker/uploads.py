"""Files of ours on their way into the chat: written down, uploaded, and from then on known by the platform's names."""

import stat
from collections.abc import Callable, Sequence

import attrs

from molecule_connect.errors import AuthError, ConfigError, Outcome, PermanentPlatformError, TransientPlatformError
from molecule_connect.files import MAX_NAME_LENGTH, safe_name
from molecule_connect.journal.files import FileJournal
from molecule_connect.journal.models import StoredMessage, StoredReply
from molecule_connect.models import FilePart, Part, TextPart, UploadLimits
from molecule_connect.worker.ports import Files

# In one upload (contract 2.12).
MOST_FILES = 64
# What a form needs beside the files.
FORM_ROOM = 64 * 1024
# A platform that answers, and still does not take a file after so long, will not: the text need not wait for it.
PATIENCE = 900 * 1_000_000


class Attachments:
    """Uploads the files of one workspace's answers.

    Args:
        send_print: What the echo of an answer to a person will have as fingerprint.
        now: The platform's time in microseconds.
    """

    def __init__(
        self,
        platform: Files,
        journal: FileJournal,
        *,
        send_print: Callable[[StoredMessage, StoredReply], str | None],
        now: Callable[[], int],
    ) -> None:
        self._platform = platform
        self._journal = journal
        self._send_print = send_print
        self._now = now

    async def put(self, files: Sequence[FilePart]) -> tuple[FilePart, ...]:
        """Upload *files*, each with a ``path``, in as many requests as it takes; gives them as the platform names them.

        Raises:
            ConfigError: One cannot be read, is empty or is too large; nothing was uploaded.
            PlatformError: They were not taken.
            JournalError: It could not be written down that they are ours.
        """
        if not files:
            return ()
        limits = await self._platform.upload_limits()
        for file in files:
            if reason := unfit(file, limits):
                raise ConfigError(f"the file {_shown(file)!r} cannot be sent: {reason}", hint="leave it out")
        taken: list[FilePart] = []
        while len(taken) < len(files):
            batch = _batch(files[len(taken) :], limits)
            uploaded, notes = await self._upload(batch)
            await self._journal.uploaded(uploaded, notes, at=self._now())
            taken += uploaded
        return tuple(taken)

    async def attach(self, entry: StoredMessage) -> StoredMessage | None:
        """*entry* with the files of its answer uploaded, one request; None: its answer is not to be sent any more.

        A file that cannot be sent becomes a line of text that says why.

        Raises:
            AuthError, TransientPlatformError: Again later; what was uploaded so far is in the journal.
            JournalError: It could not be written down.
        """
        if entry.reply is None:
            return None
        limits = await self._platform.upload_limits()
        local = {
            number: part
            for number, part in enumerate(entry.reply.parts)
            if isinstance(part, FilePart) and part.path is not None
        }
        unsent = {number: unfit(file, limits) for number, file in local.items()}
        replaced: dict[int, Part] = {number: _excuse(local[number], why) for number, why in unsent.items() if why}
        fit = {number: file for number, file in local.items() if not unsent[number]}
        uploaded: tuple[FilePart, ...] = ()
        notes: list[int] = []
        if fit:
            batch = _batch(list(fit.values()), limits)
            numbers = list(fit)[: len(batch)]
            try:
                uploaded, notes = await self._upload(batch)
            except (ConfigError, PermanentPlatformError, TransientPlatformError) as exc:
                if not self._is_hopeless(entry, exc):
                    raise
                replaced |= {number: _excuse(local[number], str(exc)) for number in numbers}
            replaced |= dict(zip(numbers, uploaded, strict=False))
        parts = tuple(replaced.get(number, part) for number, part in enumerate(entry.reply.parts))
        answer = attrs.evolve(entry.reply, parts=parts)
        print_, at = self._send_print(entry, answer), self._now()
        kept = await self._journal.attach_uploads(entry, answer, send_print=print_, files=uploaded, notes=notes, at=at)
        return attrs.evolve(entry, reply=answer) if kept else None

    def _is_hopeless(self, entry: StoredMessage, exc: Exception) -> bool:
        if isinstance(exc, AuthError):
            return False
        if isinstance(exc, TransientPlatformError):
            waited = self._now() - (entry.answered_at or 0)
            return exc.status is not None and exc.status != 429 and waited >= PATIENCE
        return True

    async def _upload(self, batch: Sequence[FilePart]) -> tuple[tuple[FilePart, ...], list[int]]:
        """What the platform calls them, and the notes by which they are known until that is written down."""
        notes = await self._journal.note([(safe_name(_name(file)), _size(file)) for file in batch], at=self._now())
        try:
            return await self._platform.upload(batch), notes
        except (ConfigError, PermanentPlatformError):
            await self._journal.uploaded((), notes, at=self._now())
            raise
        except TransientPlatformError as exc:
            # A note that stays would take a person's equal file for ours.
            if exc.outcome is Outcome.NOT_TAKEN:
                await self._journal.uploaded((), notes, at=self._now())
            raise


def has_local(answer: StoredReply) -> bool:
    """Whether files of *answer* are to be uploaded before it is sent."""
    return any(isinstance(part, FilePart) and part.path is not None for part in answer.parts)


def unfit(file: FilePart, limits: UploadLimits) -> str:
    """Why the platform would not take *file*; empty if it may."""
    if file.path is None:
        return "it is not on this machine"
    try:
        status = file.path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "it is no ordinary file"
        with file.path.open("rb"):
            pass
    except (OSError, ValueError) as exc:  # the latter for a path that can name no file
        return f"it cannot be read ({getattr(exc, 'strerror', None) or exc})"
    most = min(limits.per_file, limits.per_request - FORM_ROOM)
    if status.st_size > most:
        return f"it has {_mib(status.st_size)} MiB, and the platform takes {_mib(most)} MiB"
    return "" if status.st_size else "it is empty"


def _batch(files: Sequence[FilePart], limits: UploadLimits) -> list[FilePart]:
    """As many of the first *files* as one request may hold; at least one."""
    batch: list[FilePart] = []
    room = limits.per_request - FORM_ROOM
    for file in files:
        room -= _size(file)
        if batch and (room < 0 or len(batch) == MOST_FILES):
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


def _shown(file: FilePart) -> str:
    # Backends choose names freely.
    return _name(file)[:MAX_NAME_LENGTH]


def _excuse(file: FilePart, reason: str) -> TextPart:
    return TextPart(f"(The file {_shown(file)} could not be attached: {reason}.)")


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f}".removesuffix(".0")
