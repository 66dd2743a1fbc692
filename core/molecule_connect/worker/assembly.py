"""The answering half of a connection, put together: files, slots, attempts, replies, conversations."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs

from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.files import files_folder
from molecule_connect.journal.files import FileJournal
from molecule_connect.journal.journal import Journal, WorkspaceJournal
from molecule_connect.journal.models import Conversation
from molecule_connect.models import Handler, Progress, Request, Response
from molecule_connect.worker.attempt import Attempts
from molecule_connect.worker.budget import DailyBudget
from molecule_connect.worker.circuit_breaker import CircuitBreaker
from molecule_connect.worker.dispatcher import Dispatcher
from molecule_connect.worker.downloads import ChatFiles
from molecule_connect.worker.file_folder import FileFolder
from molecule_connect.worker.file_quota import FolderLimits
from molecule_connect.worker.health import SendHealth
from molecule_connect.worker.limits import ConcurrencyLimit
from molecule_connect.worker.loop_guard import guard_of
from molecule_connect.worker.ports import Platform
from molecule_connect.worker.sending import Replies
from molecule_connect.worker.status import Status
from molecule_connect.worker.uploads import Attachments


@attrs.frozen(kw_only=True)
class Surroundings:
    """What the answering half is given by its connection.

    Attributes:
        file: The whole journal; *journal* is the workspace's part.
        folder: The state folder.
        now: The platform's time in microseconds.
        reread: A whole read of the feed that begins after the call; False when it failed.
        beat_accepted_since: Whether a beat sent after that moment (loop time) was accepted.
        files_came: Told of a message that files became: its row, its conversation, and their names.
        insist: Runs a journal write until it succeeds.
        failed: Told of an error that is a bug.
        sending: Learns how each send ended.
    """

    platform: Platform
    file: Journal
    journal: WorkspaceJournal
    folder: Path
    status: Status
    now: Callable[[], int]
    reread: Callable[[], Awaitable[bool]]
    beat_accepted_since: Callable[[float], bool]
    files_came: Callable[[str, Conversation, str], None]
    insist: Callable[[Callable[[], Awaitable[bool]]], Awaitable[bool]]
    failed: Callable[[BaseException], None]
    sending: SendHealth
    wall: Callable[[], float]


class Answering:
    """What answers the messages of one workspace. Without a *handler* conversations only send what readers replied."""

    def __init__(
        self,
        settings: WorkspaceSettings,
        around: Surroundings,
        *,
        handler: Handler | None,
        room: FolderLimits | None = None,
    ) -> None:
        self._around = around
        breaker = CircuitBreaker(self._backend_changed)
        folder = FileFolder(files_folder(around.folder, settings.workspace_id))
        files = FileJournal(around.file, settings.workspace_id, folder.path)
        self.files = self._chat_files(files, folder, room)
        self.slots = ConcurrencyLimit(settings.concurrency, breaker)
        self.replies = self._make_replies(files)
        budget = DailyBudget(settings.max_cost_per_day, around.journal, status=around.status, wall=around.wall)
        self.attempts = self._make_attempts(handler or _nobody, breaker, budget)
        self.conversations = Dispatcher(
            around.journal,
            slots=self.slots,
            attempts=self.attempts,
            replies=self.replies,
            files=self.files,
            budget=budget,
            guard=guard_of(settings.peer_budget, around.journal, now=around.now),
            now=around.now,
            insist=around.insist,
            failed=around.failed,
            status=around.status,
            wall=around.wall,
        )

    def _backend_changed(self, reason: str) -> None:
        if reason:
            hint = "one message at a time is tried until it answers"
            self._around.status.report("backend", reason, hint, lasting=True)
        else:
            self._around.status.clear("backend")

    def _chat_files(self, journal: FileJournal, folder: FileFolder, room: FolderLimits | None) -> ChatFiles:
        around = self._around
        return ChatFiles(
            around.platform,
            journal,
            folder,
            status=around.status,
            came=around.files_came,
            now=around.now,
            wall=around.wall,
            room=room,
        )

    def _make_replies(self, journal: FileJournal) -> Replies:
        around = self._around
        return Replies(
            around.platform,
            around.journal,
            platform_now=around.platform.now,
            reread=around.reread,
            beat_accepted_since=around.beat_accepted_since,
            attachments=Attachments(
                around.platform,
                journal,
                send_print=lambda entry, answer: self.replies.fingerprint(entry, answer),
                now=around.now,
            ),
            health=around.sending,
        )

    def _make_attempts(self, handler: Handler, breaker: CircuitBreaker, budget: DailyBudget) -> Attempts:
        around = self._around
        return Attempts(
            handler,
            around.journal,
            breaker=breaker,
            budget=budget,
            now=around.now,
            platform_now=around.platform.now,
            send_print=self.replies.fingerprint,
            insist=around.insist,
            status=around.status,
            wall=around.wall,
        )


async def _nobody(request: Request, progress: Progress) -> Response:
    raise AssertionError("the messages of an inbox are its readers'")
