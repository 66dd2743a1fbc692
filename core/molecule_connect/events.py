"""Events that a worker emits, for consoles and programs."""

from collections.abc import Callable

import attrs


@attrs.frozen(kw_only=True)
class Event:
    """An event of the worker that serves ``workspace_id``."""

    workspace_id: str


@attrs.frozen(kw_only=True)
class Registered(Event):
    """The workspace is registered with the platform."""


@attrs.frozen(kw_only=True)
class Listening(Event):
    """The source of new messages changed: ``by`` is "stream" or "polling"."""

    by: str


@attrs.frozen(kw_only=True)
class MessageEvent(Event):
    """An event about one message."""

    row_id: str
    caller_id: str | None
    context_id: str | None = None


@attrs.frozen(kw_only=True)
class Received(MessageEvent):
    """A message was stored in the journal. ``text`` is its beginning."""

    text: str


@attrs.frozen(kw_only=True)
class Started(MessageEvent):
    """An attempt started: the backend received the message.

    ``queue_seconds`` is the time since the message was stored, or since a retry was due.
    """

    attempt: int
    text: str = ""
    queue_seconds: float = 0.0


@attrs.frozen(kw_only=True)
class Progressed(MessageEvent):
    """The backend reported its progress."""

    text: str


@attrs.frozen(kw_only=True)
class Answered(MessageEvent):
    """The reply is stored, ``seconds`` after the attempt started. A ``silent`` message gets no reply.

    ``cost_usd`` is the cost of this attempt as the backend reported it, in US dollars.
    """

    text: str
    seconds: float
    silent: bool = False
    cost_usd: float = 0.0


@attrs.frozen(kw_only=True)
class Spent(MessageEvent):
    """An attempt has ended, successful or not, and the backend reported its cost in US dollars."""

    cost_usd: float


@attrs.frozen(kw_only=True)
class PeerNamed(Event):
    """The platform's registry gave a peer's name, which is unchecked text that the peer's owner chose."""

    peer_id: str
    name: str


@attrs.frozen(kw_only=True)
class Delivered(MessageEvent):
    """The platform accepted the reply, ``reply_seconds`` after the message was written.

    The request took ``send_seconds``. With ``confirmed`` false, it was sent in full, but no response arrived.
    """

    confirmed: bool = True
    send_seconds: float = 0.0
    reply_seconds: float = 0.0


@attrs.frozen(kw_only=True)
class Retrying(MessageEvent):
    """An attempt, or a send of the reply, failed; the next one is in ``seconds``.

    ``what`` is "answering", "sending", "journal", "this machine", "daily budget" or "loop brake". ``attempt`` is the
    number of the next attempt, and ``handler_seconds`` how long the failed one took; 0 if none failed.
    """

    what: str
    reason: str
    seconds: float
    attempt: int = 0
    handler_seconds: float = 0.0


# Why messages become dead letters.
DEAD_CATEGORIES = (
    # The backend refused the message, or all attempts failed.
    "refused_by_backend",
    "attempts_used_up",
    # The process died again and again while the backend had it.
    "crashes",
    # A peer answers every answer.
    "loop",
    # It can't be read, or its sender's share of the journal is full.
    "unreadable",
    "quota",
    # The reply was refused, not accepted for a day, or sent several times with unknown outcome.
    "reply_refused",
    "reply_expired",
    "reply_unconfirmed",
    # A bug.
    "internal",
)


@attrs.frozen(kw_only=True)
class Dead(MessageEvent):
    """The message is a dead letter: it is kept with the reason, and can be replayed.

    Attributes:
        hint: What the operator can do; empty if nothing is known.
        category: One of ``DEAD_CATEGORIES``.
        handler_seconds: How long the last attempt took; 0 if there was none.
        notifies: Whether the caller gets a notice, which is sent next.
    """

    reason: str
    hint: str = ""
    category: str = "internal"
    handler_seconds: float = 0.0
    notifies: bool = False


@attrs.frozen(kw_only=True)
class Notified(MessageEvent):
    """The caller was notified that the message is a dead letter; with an ``error``, the notice was refused."""

    error: str = ""


@attrs.frozen(kw_only=True)
class Recorded(MessageEvent):
    """A row that the backend doesn't handle was stored: a reply, a result, an upload."""

    kind: str
    text: str


@attrs.frozen(kw_only=True)
class Trouble(Event):
    """A problem of ``part``, such as intake, sending, backend, heartbeat, stream or journal."""

    part: str
    reason: str
    hint: str = ""


@attrs.frozen(kw_only=True)
class Recovered(Event):
    """The problem of ``part`` is over."""

    part: str


@attrs.frozen(kw_only=True)
class Notice(Event):
    """A text for the operator."""

    text: str
    hint: str = ""


@attrs.frozen(kw_only=True)
class Described(Event):
    """The permissions of a plugin on this machine, as it describes them; emitted at the start."""

    text: str


@attrs.frozen(kw_only=True)
class Beat(Event):
    """The platform accepted a heartbeat."""

    active_tasks: int
    wedged: str


@attrs.frozen(kw_only=True)
class Paused(Event):
    """The workspace is paused on the platform: messages are stored but not processed."""


@attrs.frozen(kw_only=True)
class Resumed(Event):
    """The workspace is no longer paused."""


@attrs.frozen(kw_only=True)
class Stopping(Event):
    """The worker accepts no more messages; the ``running`` ones have ``grace`` seconds to finish."""

    running: int
    grace: float


@attrs.frozen(kw_only=True)
class Stopped(Event):
    """The worker has ended."""


@attrs.frozen(kw_only=True)
class Reloaded(Event):
    """The list of workspaces ``source`` was read again, and its changes are applied. ``workspace_id`` is empty.

    The others are ids of new, changed and removed workspaces and of those that keep their earlier settings, and names
    of blocks that can't be served.
    """

    source: str
    text: str
    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class ReloadRefused(Event):
    """The list of workspaces ``source`` can't be used after a change: nothing is applied. ``workspace_id`` is empty."""

    source: str
    text: str
    reasons: tuple[str, ...]
    hint: str = ""


Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Ignore all events."""
