"""What a reader of an inbox may reply, and to what."""

import attrs

from molecule_connect.errors import ConfigError
from molecule_connect.files import is_file
from molecule_connect.journal.inbox import Standing
from molecule_connect.journal.models import StoredReply, dump_parts, is_too_deep
from molecule_connect.models import FilePart, Kind, Part, Response

# What is shown of an id that names nothing.
LONGEST = 80
LONGEST_PATH = 300


def storable(response: Response) -> StoredReply:
    """What the journal keeps of a reader's reply.

    Raises:
        ConfigError: Nothing is said in it, or something that cannot be sent.
    """
    if response.is_silent:
        raise ConfigError("a reply says something", hint="pop the message to finish it without an answer")
    if response.is_blank:
        raise ConfigError("the reply is empty", hint="pop the message to finish it without an answer")
    answer = StoredReply(parts=tuple(_whole(part) for part in response.parts), usage=response.usage)
    try:
        dump_parts(answer.parts, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigError(f"the reply cannot be written as JSON: {exc}", hint="send it as text") from exc
    if is_too_deep(answer.parts):
        raise ConfigError("the reply's data is nested too deeply", hint="send it as text")
    return answer


def _whole(part: Part) -> Part:
    """A file by its whole path: another process, in another folder, may be the one to send it."""
    if not isinstance(part, FilePart) or part.path is None:
        return part
    path = part.path.absolute()
    if not is_file(path):
        raise ConfigError(
            f"the file {str(path)[:LONGEST_PATH]} cannot be sent: it is no file of this machine",
            hint="name one, or none",
        )
    return attrs.evolve(part, path=path)


def refusal(activity_id: str, standing: Standing | None) -> ConfigError:
    """Why the row *activity_id* cannot be replied to."""
    if standing is None:
        return ConfigError(f"there is no message {activity_id[:LONGEST]!r}", hint="peek shows what waits")
    if standing.kind in (Kind.ANSWER, Kind.RESULT):
        return ConfigError(
            f"{activity_id} is an answer to us, which nobody waits for a reply to",
            hint="pop it; to go on with the peer, ask it or delegate to it",
        )
    if standing.repeat_of is not None:
        return ConfigError(f"{activity_id} repeats {standing.repeat_of}", hint=f"reply to {standing.repeat_of}")
    if standing.has_answer:
        return ConfigError(f"{activity_id} was replied to already", hint="to say more, write to whoever sent it")
    if standing.kind != Kind.MESSAGE:
        return ConfigError(f"there is no message {activity_id[:LONGEST]!r}", hint="peek shows what waits")
    return ConfigError(
        f"{activity_id} cannot be replied to: it is {standing.state.value}"
        + (f" ({standing.reason})" if standing.reason else ""),
        hint=f"see 'molecule messages show {activity_id}'",
    )
