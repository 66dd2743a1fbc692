"""What delivery's tests need: a loop that owns time, and a platform in memory."""

import asyncio
import hashlib
import selectors
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import attrs

from molecule_connect import events
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.errors import (
    CursorExpiredError,
    MoleculeError,
    PageTooLargeError,
    PermanentPlatformError,
    PlatformError,
)
from molecule_connect.flag import Flag
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import dump_parts
from molecule_connect.journal.schema import open_file
from molecule_connect.models import (
    FilePart,
    Inbound,
    Kind,
    Outgoing,
    Page,
    Part,
    Presence,
    Progress,
    Request,
    Response,
    RowMark,
    Signal,
    TextPart,
    UploadLimits,
    WorkspaceInfo,
    WorkspaceStatus,
)
from molecule_connect.worker.status import Status
from molecule_connect.worker.worker import Worker, WorkerOptions

EPOCH = 1_800_000_000.0
WORKSPACE = "ws-1"


class _JumpingSelector(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError("the test waits for something that never comes")
        self.now += timeout
        return []


class ThreadlessLoop(asyncio.SelectorEventLoop):
    """An event loop that does work for threads at once."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except BaseException as exc:
            future.set_exception(exc)
        return future


class VirtualLoop(ThreadlessLoop):
    """An event loop without waiting."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


@attrs.define
class Disk:
    """What a journal is written to. Nobody waits for the real one.

    Attributes:
        full: Every commit that writes something fails.
        before, after: Called at each commit that writes something.
        commits: How many of them there were.
        flushes: How many of them were to survive a loss of power.
    """

    full: bool = False
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    commits: int = 0
    flushes: int = 0

    def open(self, path: Path) -> sqlite3.Connection:
        """The journal at *path*, on this disk."""
        disk = self

        class Watched(sqlite3.Connection):
            changes = 0
            level = ""

            def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
                if sql.startswith("BEGIN"):
                    self.changes = self.total_changes
                if sql.startswith("PRAGMA synchronous="):
                    self.level, sql = sql.partition("=")[2], "PRAGMA synchronous=OFF"
                if sql != "COMMIT" or self.total_changes == self.changes:
                    return super().execute(sql, *values)
                disk.commits += 1
                disk.flushes += self.level == "FULL"
                disk.before()
                if disk.full:
                    error = sqlite3.OperationalError("database or disk is full")
                    error.sqlite_errorcode = sqlite3.SQLITE_FULL
                    raise error
                done = super().execute(sql, *values)
                disk.after()
                return done

        return open_file(path, factory=Watched)


def open_journal(folder: Path, disk: Disk | None = None) -> AbstractAsyncContextManager[Journal]:
    """The journal in *folder*, by the loop's time."""
    loop = asyncio.get_running_loop()
    return Journal.open(folder, wall=lambda: EPOCH + loop.time(), opener=(disk or Disk()).open)


@contextmanager
def other_process(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the journal at *path* as another program would have it; each statement is committed."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        yield db
    finally:
        db.close()


def fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def inbound(text: str = "hi", **given: Any) -> Inbound:
    """A message of a person at the beginning of time, but for what is *given*."""
    row_id = given.setdefault("row_id", "row-1")
    given.setdefault("kind", Kind.MESSAGE)
    given.setdefault("time", round(EPOCH * 1e6))
    given.setdefault("message_id", row_id)
    given.setdefault("idempotency_key", row_id)
    given.setdefault("parts", (TextPart(text),))
    given.setdefault("fingerprint", fingerprint(text))
    return Inbound(**given)


def rows_after(rows: list[Inbound], since_id: str, *, newer: bool, expired: bool) -> list[Inbound]:
    """What a platform, *newer* or older, shows of *rows* after the row *since_id*; a 410 where it is not there."""
    cursor = next((item for item in rows if item.row_id == since_id), None)
    if cursor is None or expired:
        raise CursorExpiredError("activity: 410", operation="activity", status=410, body="")
    if newer:
        return [item for item in rows if (item.time, item.seq or 0) > (cursor.time, cursor.seq or 0)]
    return [item for item in rows if (item.time or 0) > (cursor.time or 0)]


@attrs.define(kw_only=True)
class Row:
    """A row of the fake feed. ``visible`` is loop time."""

    item: Inbound
    visible: float


@attrs.define(kw_only=True)
class Upload:
    """A file that the platform keeps.

    Attributes:
        seconds: What its body takes to come, at the end of it.
        fails: Raised instead of its body, first in first out; after half of it.
        endless: Its body never ends.
    """

    content: bytes = b"content"
    content_type: str = "text/plain"
    seconds: float = 0.0
    fails: list[Exception] = attrs.field(factory=list)
    endless: bool = False
    acked: int = 0
    fetched: int = 0


@attrs.define
class Uploads:
    """The platform's store of uploads.

    Attributes:
        most: How many were fetched side by side.
        taken: What was put there by us, in order.
        fail_take, cut_take: Raised before and after our files were taken.
    """

    kept: dict[str, Upload] = attrs.field(factory=dict)
    most: int = 0
    fail_ack: list[PlatformError] = attrs.field(factory=list)
    fail_take: list[PlatformError] = attrs.field(factory=list)
    cut_take: list[PlatformError] = attrs.field(factory=list)
    taken: list[str] = attrs.field(factory=list)
    forgets_acked: bool = True
    _busy: int = 0

    async def fetch(self, file_id: str, sink: IO[bytes], cap: int) -> str:
        upload = self.kept.get(file_id)
        if upload is None or (upload.acked and self.forgets_acked):
            raise PermanentPlatformError("upload: 404 not found", operation="upload", status=404, body="")
        upload.fetched += 1
        self._busy += 1
        self.most = max(self.most, self._busy)
        try:
            half = len(upload.content) // 2
            sink.write(upload.content[:half])
            await asyncio.sleep(upload.seconds)
            if upload.fails:
                raise upload.fails.pop(0)
            if upload.endless or len(upload.content) > cap:
                sink.write(b"x" * (cap - half))
                raise PageTooLargeError("upload: too large", operation="upload", status=200)
            sink.write(upload.content[half:])
            return upload.content_type
        finally:
            self._busy -= 1

    def acknowledge(self, file_id: str) -> None:
        if self.fail_ack:
            raise self.fail_ack.pop(0)
        self.kept[file_id].acked += 1

    async def take(self, files: Sequence[FilePart], show: Callable[..., str]) -> tuple[FilePart, ...]:
        await asyncio.sleep(0.01)
        if self.fail_take:
            raise self.fail_take.pop(0)
        named = []
        for file in files:
            assert file.path is not None
            content = file.path.read_bytes()
            file_id = f"ours-{len(self.kept)}"
            self.kept[file_id] = Upload(content=content)
            self.taken.append(file_id)
            show(file_id, file.name, len(content))
            named.append(
                attrs.evolve(file, uri=f"platform-pending:{WORKSPACE}/{file_id}", path=None, size=len(content))
            )
        if self.cut_take:
            raise self.cut_take.pop(0)
        return tuple(named)


@attrs.define
class FakePlatform:
    """Implements delivery's ports in memory, on the loop's own time.

    Attributes:
        newer: Orders equal times by seq and absorbs a repeated message id, as platforms of 2026-08 do.
        on_send: Asked before a send is taken; what it raises, the sender sees. Give it ``after=True``
            errors by way of ``cut_after``.
        cut_after: Errors that are raised after the platform took the send, first in first out.
        largest: So many new rows fit on a page.
        row_size: Bytes of each row.
        ignores_since: Every page is the newest one, whatever is asked for.
        empties: A row is shown once.
        echoes_beats: Beats come back over the stream.
        closes_stream: It ends as soon as it was opened.
        is_queued: A read waits for the rate limit.
        looks, opens: When the workspace was asked about, and when the stream was opened (loop time).
        listed, unlisted: Names of peers in the registry, by id, with and without a place in its list.
        lookups: The ids whose name was requested, and "*" for the list.
        tried, beat_times: When a send was begun, and a beat accepted (loop time).
    """

    newer: bool = True
    rows: list[Row] = attrs.field(factory=list)
    sent: list[Outgoing] = attrs.field(factory=list)
    beats: list[Presence] = attrs.field(factory=list)
    cards: list[dict[str, Any]] = attrs.field(factory=list)
    fetches: list[dict[str, Any]] = attrs.field(factory=list)
    status: WorkspaceStatus = WorkspaceStatus.ACTIVE
    card: dict[str, Any] | None = None
    fail_fetch: list[PlatformError] = attrs.field(factory=list)
    fail_send: list[PlatformError] = attrs.field(factory=list)
    fail_register: list[PlatformError] = attrs.field(factory=list)
    fail_beat: list[PlatformError] = attrs.field(factory=list)
    cut_after: list[PlatformError] = attrs.field(factory=list)
    expired: bool = False
    has_stream: bool = False
    send_delay: float = 0.0
    fetch_delay: float = 0.0
    ahead: float = 0.0
    echo_delay: float = 0.0
    largest: int | None = None
    row_size: int = 0
    ignores_since: bool = False
    empties: bool = False
    echoes_beats: bool = True
    closes_stream: bool = False
    is_queued: bool = False
    fail_look: list[PlatformError] = attrs.field(factory=list)
    looks: list[float] = attrs.field(factory=list)
    opens: list[float] = attrs.field(factory=list)
    tried: list[float] = attrs.field(factory=list)
    beat_times: list[float] = attrs.field(factory=list)
    changed: asyncio.Event = attrs.field(factory=asyncio.Event)
    limits: UploadLimits = attrs.field(factory=UploadLimits)
    uploads: Uploads = attrs.field(factory=Uploads)
    listed: dict[str, str] = attrs.field(factory=dict)
    unlisted: dict[str, str] = attrs.field(factory=dict)
    lookups: list[str] = attrs.field(factory=list)
    fail_lookup: list[PlatformError] = attrs.field(factory=list)
    _signals: "asyncio.Queue[Signal | None]" = attrs.field(factory=asyncio.Queue)
    _seq: int = 0

    # What a test does

    def write(
        self,
        text: str = "hi",
        *,
        row_id: str = "",
        caller: str | None = None,
        context: str | None = None,
        late: float = 0.0,
        age: float = 0.0,
        message_id: str | None = None,
        kind: Kind = Kind.MESSAGE,
        delegation: str | None = None,
        signal: bool = True,
        timed: bool = True,
        raw: str = "{}",
    ) -> str:
        """A row that is *age* seconds old now and can be read in *late* seconds. Returns its id."""
        self._seq += 1
        row_id = row_id or f"row-{self._seq}"
        item = Inbound(
            row_id=row_id,
            kind=kind,
            time=self._time() - round(age * 1e6) if timed else None,
            seq=self._seq if self.newer else None,
            caller_id=caller,
            context_id=context,
            message_id=message_id or row_id,
            sender_key=message_id,
            idempotency_key=message_id or row_id,
            parts=(TextPart(text),),
            raw=raw,
            fingerprint=fingerprint(text),
            delegation_id=delegation,
        )
        self.rows.append(Row(item=item, visible=_now() + late))
        if signal and self.has_stream and not late:
            self._signals.put_nowait(Signal.ROW)
        return row_id

    def signal(self, signal: Signal | None) -> None:
        """Something comes over the stream; None ends it."""
        self._signals.put_nowait(signal)

    def answers(self) -> list[str]:
        """The texts that were accepted, in order."""
        return ["".join(part.text for part in out.parts if isinstance(part, TextPart)) for out in self.sent]

    async def until(self, condition: Callable[[], bool], seconds: float = 3600.0) -> None:
        """Wait until *condition* holds. It is checked ten times a second, and once a second after ten minutes."""
        fine = _now() + 600.0
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - conditions are about anything
                await asyncio.sleep(0.1 if _now() < fine else 1.0)

    # delivery.ports

    def now(self) -> int | None:
        return self._time()

    async def fetch(
        self,
        *,
        since_id: str | None = None,
        before: int | None = None,
        limit: int,
        known: Callable[[str], bool],
        people: bool = False,
    ) -> Page:
        self.fetches.append({"since_id": since_id, "before": before, "limit": limit, "at": _now(), "people": people})
        began = self._time()
        await asyncio.sleep(self.fetch_delay)
        if self.fail_fetch:
            raise self.fail_fetch.pop(0)
        visible = [row.item for row in self.rows if row.visible <= _now()]
        visible.sort(key=lambda item: (item.time or 0, item.seq or 0))
        if since_id is not None and not self.ignores_since:
            visible = rows_after(visible, since_id, newer=self.newer, expired=self.expired)
        else:
            before = None if self.ignores_since else before
            visible = [item for item in reversed(visible) if before is None or (item.time or 0) < before]
        page = [item for item in visible if not people or item.caller_id is None][:limit]
        if self.largest is not None and len(page) > self.largest:
            raise PageTooLargeError("activity: too large", operation="activity", status=200)
        if self.empties:
            self.rows.clear()
        return Page(
            marks=tuple(RowMark(item.row_id, item.time) for item in page),
            items=tuple(item for item in page if not known(item.row_id)),
            count=len(page),
            limit=limit,
            size=len(page) * self.row_size,
            earliest=began,
        )

    async def send(self, outgoing: Outgoing) -> None:
        self.tried.append(_now())
        await asyncio.sleep(self.send_delay)
        if self.fail_send:
            raise self.fail_send.pop(0)
        self._take(outgoing)
        if self.cut_after:
            raise self.cut_after.pop(0)

    def _take(self, outgoing: Outgoing) -> None:
        is_repeat = self.newer and any(sent.message_id == outgoing.message_id for sent in self.sent)
        if outgoing.caller_id is not None and is_repeat:
            return
        self.sent.append(outgoing)
        if outgoing.caller_id is None:
            self._seq += 1
            item = Inbound(
                row_id=f"echo-{self._seq}",
                kind=Kind.ECHO,
                time=self._time(),
                seq=self._seq,
                message_id=f"echo-{self._seq}",
                idempotency_key=f"echo-{self._seq}",
                method="notify",
                fingerprint=fingerprint(dump_parts(outgoing.parts)),
            )
            self.rows.append(Row(item=item, visible=_now() + self.echo_delay))

    def fingerprint(self, caller_id: str | None, parts: tuple[Part, ...]) -> str | None:
        return fingerprint(dump_parts(parts)) if caller_id is None else None

    async def upload_limits(self) -> UploadLimits:
        return self.limits

    async def fetch_file(self, file_id: str, sink: IO[bytes], *, cap: int) -> str:
        return await self.uploads.fetch(file_id, sink, cap)

    async def acknowledge_file(self, file_id: str) -> None:
        self.uploads.acknowledge(file_id)

    async def upload(self, files: Sequence[FilePart]) -> tuple[FilePart, ...]:
        return await self.uploads.take(files, self.show_upload)

    def show_upload(self, file_id: str, name: str, size: int, late: float = 0.0, **more: Any) -> str:
        """The row that tells of an upload. Returns its id."""
        self._seq += 1
        uri = f"platform-pending:{WORKSPACE}/{file_id}"
        row_id = f"manifest-{file_id}"
        item = Inbound(
            row_id=row_id,
            kind=Kind.UPLOAD,
            time=self._time(),
            seq=self._seq,
            message_id=row_id,
            idempotency_key=row_id,
            method="chat_upload_receive",
            parts=(FilePart(uri=uri, name=name, mime_type=more.get("mime_type", "text/plain"), size=size),),
        )
        self.rows.append(Row(item=item, visible=_now() + late))
        return row_id

    async def workspace(self) -> WorkspaceInfo:
        self.looks.append(_now())
        if self.fail_look:
            raise self.fail_look.pop(0)
        return WorkspaceInfo(status=self.status, name="ws", card=self.card)

    async def peer_names(self) -> dict[str, str]:
        self.lookups.append("*")
        if self.fail_lookup:
            raise self.fail_lookup.pop(0)
        return self.listed

    async def peer_name(self, peer_id: str) -> str:
        self.lookups.append(peer_id)
        if self.fail_lookup:
            raise self.fail_lookup.pop(0)
        return self.unlisted.get(peer_id, "")

    async def register(self, card: dict[str, Any]) -> str:
        if self.fail_register:
            raise self.fail_register.pop(0)
        self.cards.append(card)
        return ""

    async def heartbeat(self, presence: Presence) -> None:
        if self.fail_beat:
            raise self.fail_beat.pop(0)
        self.beats.append(presence)
        if self.has_stream and self.echoes_beats:
            self._signals.put_nowait(Signal.BEAT)
        self.beat_times.append(_now())

    async def signals(self) -> AsyncIterator[Signal]:
        if not self.has_stream:
            raise PlatformError("events: 404", operation="events", status=404)
        self._signals = asyncio.Queue()
        self.opens.append(_now())
        yield Signal.OPENED
        while not self.closes_stream and (signal := await self._signals.get()) is not None:
            yield signal

    def _time(self) -> int:
        return round((EPOCH + _now() + self.ahead) * 1e6)


@attrs.define
class Events:
    """A listener that keeps what it is told."""

    seen: list[events.Event] = attrs.field(factory=list)

    def __call__(self, event: events.Event) -> None:
        self.seen.append(event)

    def of(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]


def _now() -> float:
    return asyncio.get_running_loop().time()


def status_of(journal: Journal, listener: events.Listener = events.ignore) -> Status:
    """The status of a workspace that nobody serves."""
    settings = WorkspaceSettings(workspace_id=WORKSPACE, backend="fake")
    return Status(settings, listener, journal=journal.of(WORKSPACE), wall=journal.wall)


Answering = Callable[[Request, Progress], Awaitable[Response]]


async def echo(request: Request, progress: Progress) -> Response:
    """Answers with the text that it is asked."""
    return Response.from_text(f"echo: {request.text}")


class Serving:
    """A connection that runs inside ``async with``; it is stopped at the end of the block.

    Attributes:
        error: What the connection ended with.
    """

    def __init__(
        self, platform: FakePlatform, journal: Journal, handler: Answering | None = echo, **given: Any
    ) -> None:
        loop = asyncio.get_running_loop()
        self.events = Events()
        self.platform = platform
        self.journal = journal
        self.clock = given.setdefault("wall", lambda: EPOCH + loop.time())
        chosen = {field.name: given.pop(field.name) for field in attrs.fields(WorkerOptions) if field.name in given}
        listener = given.pop("listener", self.events)
        given.setdefault("workspace_id", WORKSPACE)
        self.connection = Worker(
            WorkspaceSettings(backend="fake", **given),
            platform=platform,
            handler=handler,
            journal=journal,
            listener=listener,
            options=WorkerOptions(**chosen),
        )
        self.stop = Flag()
        self.error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Serving":
        self._task = asyncio.ensure_future(self.connection.run(self.stop))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        await self.ended()

    async def ended(self) -> None:
        """Wait until the connection has ended."""
        if self._task is not None:
            try:
                await self._task
            except MoleculeError as exc:
                self.error = exc

    def rows(self, columns: str = "row_id, state") -> list[tuple[Any, ...]]:
        """What the journal says of the messages, in the order in which they came."""
        found = self.journal.reader.execute(f"SELECT {columns} FROM message WHERE kind='message' ORDER BY arrival")
        return list(found.fetchall())
