"""What happens while a workspace is served, told to consoles and programs. Values only."""

from collections.abc import Callable

import attrs


@attrs.frozen(kw_only=True)
class Event:
    """Something happened to the connection of ``workspace_id``."""

    workspace_id: str


@attrs.frozen(kw_only=True)
class Registered(Event):
    """The platform knows that we answer for this workspace."""


@attrs.frozen(kw_only=True)
class Listening(Event):
    """How new messages are noticed from now on: ``by`` is "stream" or "polling"."""

    by: str


@attrs.frozen(kw_only=True)
class MessageEvent(Event):
    """Something happened to one message."""

    row_id: str
    caller_id: str | None
    context_id: str | None = None


@attrs.frozen(kw_only=True)
class Received(MessageEvent):
    """A message is in the journal. ``text`` is its beginning."""

    text: str


@attrs.frozen(kw_only=True)
class Started(MessageEvent):
    """The backend was handed a message."""

    attempt: int
    text: str = ""


@attrs.frozen(kw_only=True)
class Progressed(MessageEvent):
    """The backend told what it is doing."""

    text: str


@attrs.frozen(kw_only=True)
class Answered(MessageEvent):
    """The backend's answer is stored. ``seconds`` is what it took."""

    text: str
    seconds: float
    silent: bool = False


@attrs.frozen(kw_only=True)
class Delivered(MessageEvent):
    """The platform accepted the answer."""

    confirmed: bool = True


@attrs.frozen(kw_only=True)
class Retrying(MessageEvent):
    """A try at a message, or at sending its answer, failed; ``seconds`` until the next."""

    what: str
    reason: str
    seconds: float


@attrs.frozen(kw_only=True)
class Dead(MessageEvent):
    """A message was given up. It is kept, with its reason, and can be replayed."""

    reason: str


@attrs.frozen(kw_only=True)
class Notified(MessageEvent):
    """The notice to the sender of a message that was given up was accepted or, with ``error``, refused."""

    error: str = ""


@attrs.frozen(kw_only=True)
class Recorded(MessageEvent):
    """A row that no backend is asked about: an answer, a result, an upload."""

    kind: str
    text: str


@attrs.frozen(kw_only=True)
class Trouble(Event):
    """Something is wrong with the connection. ``part``: intake, sending, backend, heartbeat, stream, journal."""

    part: str
    reason: str
    hint: str = ""


@attrs.frozen(kw_only=True)
class Recovered(Event):
    """What an earlier ``Trouble`` told of this part is over."""

    part: str


@attrs.frozen(kw_only=True)
class Notice(Event):
    """Something the operator should read once."""

    text: str
    hint: str = ""


@attrs.frozen(kw_only=True)
class Described(Event):
    """What a plugin may do on this machine, in its own words; reported at the start."""

    text: str


@attrs.frozen(kw_only=True)
class Beat(Event):
    """A heartbeat was accepted."""

    active_tasks: int
    wedged: str


@attrs.frozen(kw_only=True)
class Paused(Event):
    """The workspace is paused on the platform: messages are kept, none is run."""


@attrs.frozen(kw_only=True)
class Resumed(Event):
    """The workspace is no longer paused."""


@attrs.frozen(kw_only=True)
class Stopping(Event):
    """No more messages are taken; ``running`` are being finished for at most ``grace`` seconds."""

    running: int
    grace: float


@attrs.frozen(kw_only=True)
class Stopped(Event):
    """The connection has ended."""


Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener that does nothing."""
