"""How an attempt at a message, its admission, and a send of its reply end. The dispatcher records each."""

import attrs

from molecule_connect.errors import PlatformError
from molecule_connect.journal.models import StoredReply

# Admission


@attrs.frozen(kw_only=True)
class Deferred:
    """The message waits.

    Attributes:
        not_before: Seconds since 1970.
        limit: Name of the limit, for the log.
    """

    not_before: float
    reason: str
    limit: str


@attrs.frozen(kw_only=True)
class Rejected:
    """The message becomes a dead letter. ``category`` is one of ``events.DEAD_CATEGORIES``."""

    reason: str
    category: str


Refusal = Deferred | Rejected

# Attempts


@attrs.frozen(kw_only=True)
class Answered:
    """The backend returned a reply, after *seconds*."""

    reply: StoredReply
    seconds: float


@attrs.frozen(kw_only=True)
class Silent:
    """The backend chose not to reply, after *seconds*."""

    text: str
    seconds: float
    cost_usd: float = 0.0


@attrs.frozen(kw_only=True)
class Requeued:
    """The message is tried again in *seconds*.

    Attributes:
        counts: Whether this was one of its attempts.
        failed_at: When it failed, in seconds since 1970 by the platform's clock; None if it didn't.
        handler_seconds: How long the attempt took.
    """

    reason: str
    seconds: float
    counts: bool
    failed_at: float | None = None
    handler_seconds: float = 0.0


@attrs.frozen(kw_only=True)
class Failed:
    """There are no more attempts; the caller gets a notice.

    Attributes:
        hint: How to find out why.
        category: One of ``events.DEAD_CATEGORIES``.
        handler_seconds: How long the last attempt took.
    """

    reason: str
    category: str
    hint: str = ""
    handler_seconds: float = 0.0


AttemptOutcome = Answered | Silent | Requeued | Failed

# Sends


@attrs.frozen(kw_only=True)
class Accepted:
    """The platform accepted the reply.

    Attributes:
        confirmed: False if the request was written in full and no response arrived, while heartbeats were accepted.
    """

    confirmed: bool = True


@attrs.frozen(kw_only=True)
class Refused:
    """The reply will never be accepted. ``category`` is one of ``events.DEAD_CATEGORIES``."""

    reason: str
    category: str = "reply_refused"


@attrs.frozen(kw_only=True)
class Postponed:
    """The reply is sent again in *seconds*.

    Attributes:
        in_doubt: Number of sends that may have arrived.
        error: Why the send failed; None if nothing was sent.
    """

    reason: str
    seconds: float
    in_doubt: int
    error: PlatformError | None = None


SendOutcome = Accepted | Refused | Postponed
