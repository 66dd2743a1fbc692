"""Replies from readers of an inbox: their validation, and how far they got."""

from typing import Literal, Self

import attrs

from molecule_connect.errors import ConfigError
from molecule_connect.files import is_file
from molecule_connect.journal.inbox import Standing
from molecule_connect.journal.models import StoredReply, dump_parts, is_too_deep
from molecule_connect.models import FilePart, Kind, Part, Response

# The shown length of an unknown id, and of a path.
MAX_ID_LENGTH = 80
MAX_PATH_LENGTH = 300


class ReplyResult(str):
    """How far a reply got: "delivered", "stored" or "dead: REASON", as a string with attributes.

    Attributes:
        status: "delivered", "stored" (still being sent) or "dead".
        reason: Why a dead reply can't be sent.
    """

    status: Literal["delivered", "stored", "dead"]
    reason: str

    def __new__(cls, status: Literal["delivered", "stored", "dead"], reason: str = "") -> Self:
        self = super().__new__(cls, f"dead: {reason}" if status == "dead" else status)
        self.status, self.reason = status, reason
        return self


def to_stored_reply(response: Response) -> StoredReply:
    """Convert a reader's reply to the form that the journal stores.

    Raises:
        ConfigError: The reply is empty or can't be sent.
    """
    if response.is_silent or response.is_blank:
        raise ConfigError("the reply is empty", hint="pop the message to finish it without an answer")
    reply = StoredReply(parts=tuple(_with_absolute_path(part) for part in response.parts), usage=response.usage)
    try:
        dump_parts(reply.parts, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigError(f"the reply cannot be written as JSON: {exc}", hint="send it as text") from exc
    if is_too_deep(reply.parts):
        raise ConfigError("the reply's data is nested too deeply", hint="send it as text")
    return reply


def _with_absolute_path(part: Part) -> Part:
    """Make a file's path absolute: the process that sends the reply may have another working directory."""
    if not isinstance(part, FilePart) or part.path is None:
        return part
    path = part.path.absolute()
    if not is_file(path):
        raise ConfigError(
            f"the file {str(path)[:MAX_PATH_LENGTH]} cannot be sent: there is no such file on this machine",
            hint="check the path, or reply without the file",
        )
    return attrs.evolve(part, path=path)


def refusal(activity_id: str, standing: Standing | None) -> ConfigError:
    """The reason why the row *activity_id* can't be replied to."""
    if standing is None:
        return ConfigError(f"there is no message {activity_id[:MAX_ID_LENGTH]!r}", hint="use peek to list the messages")
    if standing.kind in (Kind.ANSWER, Kind.RESULT):
        return ConfigError(
            f"{activity_id} is itself an answer, and its sender expects no reply",
            hint="pop it; to continue with the peer, use ask or delegate",
        )
    if standing.repeat_of is not None:
        return ConfigError(f"{activity_id} repeats {standing.repeat_of}", hint=f"reply to {standing.repeat_of}")
    if standing.has_answer:
        return ConfigError(f"{activity_id} was replied to already", hint="to add something, send a new message")
    if standing.kind != Kind.MESSAGE:
        return ConfigError(f"there is no message {activity_id[:MAX_ID_LENGTH]!r}", hint="use peek to list the messages")
    return ConfigError(
        f"{activity_id} cannot be replied to: its state is {standing.state.value}"
        + (f" ({standing.reason})" if standing.reason else ""),
        hint=f"see 'molecule messages show {activity_id}'",
    )
