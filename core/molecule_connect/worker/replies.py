"""Replies as the platform takes them: how their echo is recognized, and how long they may be."""

from molecule_connect.journal.models import StoredMessage, StoredReply, dump_parts
from molecule_connect.models import Part, TextPart
from molecule_connect.worker.ports import Sender

# JSON sizes, in bytes, from which a refused reply is shortened. Older platforms cut a body at 1 MiB.
LONG, SHORT = 100_000, 900_000


def echo_fingerprint(platform: Sender, message: StoredMessage, reply: StoredReply) -> str | None:
    """The fingerprint that the echo of *reply* will have in the feed; None for peers, whose replies have no echo."""
    return platform.fingerprint(reply.parts) if message.caller_id is None else None


def shorten(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """*parts* with long texts cut to the size that older platforms accept; the same parts if none is long."""
    size = len(dump_parts(parts))
    if size <= LONG:
        return parts
    room = SHORT if size > SHORT else LONG
    shorter: list[Part] = []
    for part in parts:
        if isinstance(part, TextPart):
            text = _cut(part.text, room)
            room -= len(dump_parts((TextPart(text),)))
            shorter.append(TextPart(text))
        else:
            shorter.append(part)
    return tuple(shorter)


def _cut(text: str, room: int) -> str:
    if len(dump_parts((TextPart(text),))) <= room:
        return text
    # A character takes up to six bytes of JSON.
    kept = text[: max(0, room // 6 if not text.isascii() else room - 200)]
    while kept and len(dump_parts((TextPart(kept),))) > room - 100:
        kept = kept[: len(kept) * 3 // 4]
    return f"{kept}\n[shortened: {len(text) - len(kept)} more characters]"
