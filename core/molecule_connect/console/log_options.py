"""What goes into a log: its level, its events, and whether the texts of messages are in it."""

import hashlib
import re
from collections.abc import Iterator, Sequence

import attrs

from molecule_connect import events
from molecule_connect.errors import ConfigError, did_you_mean

LEVELS = ("debug", "info", "warning", "error")
TEXTS = ("full", "hash", "none")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_LEVELS: dict[type[events.Event], str] = {
    events.Beat: "debug",
    events.PeerNamed: "debug",
    events.Spent: "debug",
    events.Retrying: "warning",
    events.Notice: "warning",
    events.Paused: "warning",
    events.ReloadRefused: "error",
    events.Trouble: "error",
    events.Dead: "error",
}
_WITH_TEXT = (events.Received, events.Started, events.Progressed, events.Answered, events.Recorded)


def event_name(kind: type[events.Event]) -> str:
    """The name of a class of events in logs: ``reload_refused`` for ``ReloadRefused``."""
    return _HUMP.sub("_", kind.__name__).lower()


def level_of(event: events.Event) -> str:
    """The level of *event*."""
    if isinstance(event, events.Notified) and event.error:
        return "warning"
    return _LEVELS.get(type(event), "info")


def event_kinds() -> Iterator[type[events.Event]]:
    """All classes of events that are emitted."""
    bases = (events.Event, events.MessageEvent)
    for value in vars(events).values():
        if isinstance(value, type) and issubclass(value, events.Event) and value not in bases:
            yield value


@attrs.frozen
class LogOptions:
    """Decides what a log contains. It doesn't affect errors that end the program.

    Attributes:
        level: The lowest level in it.
        only: The names of the events in it, whatever their level; empty for all of the level.
        without: The names of events that are left out.
        text: How the texts of messages and replies appear: ``full``, ``hash`` or ``none``. A hash shows whether two
            texts are equal, but a short text can be found by trying.
    """

    level: str = "info"
    only: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    text: str = "full"

    @classmethod
    def of(cls, level: str, names: Sequence[str], text: str) -> "LogOptions":
        """The options of the command line. A name of *names* that starts with ``-`` is left out.

        Raises:
            ConfigError: A name isn't that of an event.
        """
        known = [event_name(kind) for kind in event_kinds()]
        words = [word for piece in names for word in piece.replace(",", " ").split()]
        for name in (word.removeprefix("-") for word in words):
            if name not in known:
                raise ConfigError(
                    f"{name[:60]!r} is not an event{did_you_mean(name, known)}",
                    hint=f"the events are {', '.join(known)}",
                )
        return cls(
            level=level,
            only=frozenset(word for word in words if not word.startswith("-")),
            without=frozenset(word[1:] for word in words if word.startswith("-")),
            text=text,
        )

    def logs(self, level: str) -> bool:
        """Whether lines of this level are logged."""
        return LEVELS.index(level) >= LEVELS.index(self.level)

    def filter(self, event: events.Event) -> events.Event | None:
        """*event* as it is logged; None if it isn't."""
        name = event_name(type(event))
        if name in self.without or (name not in self.only if self.only else not self.logs(level_of(event))):
            return None
        if self.text != "full" and isinstance(event, _WITH_TEXT):
            return attrs.evolve(event, text=self._shown(event.text))
        return event

    def _shown(self, text: str) -> str:
        if self.text == "none" or not text:
            return ""
        return f"sha256:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:16]}"


EVERYTHING = LogOptions(level="debug")
DEFAULT = LogOptions()
