"""Whose message a reader of an inbox gets next: a caller that floods the inbox delays only itself."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """Names one pending message; they sort from the oldest to the newest, thousands at a time."""

    time: int
    seq: int
    arrival: int
    workspace_id: str


class Turns:
    """Callers take turns, and people, who are one caller here, have every other turn.

    Among those whose turn it is, the one that had no turn for longest is first; of two that had none yet, the one whose
    message is older.
    """

    def __init__(self) -> None:
        self._last: dict[str | None, int] = {}
        self._count = 0

    def choose(self, heads: Iterable[tuple[Place, str | None]]) -> tuple[Place, str | None] | None:
        """The next of *heads*, the oldest messages of each caller; None where there are none."""
        after_people = self._last.get(None) == self._count
        begun = self._count > 0

        def turn(head: tuple[Place, str | None]) -> tuple[bool, int, Place]:
            place, caller_id = head
            return begun and (caller_id is None) == after_people, self._last.get(caller_id, 0), place

        return min(heads, key=turn, default=None)

    def take(self, caller_id: str | None) -> None:
        """A message of that caller was given out."""
        self._count += 1
        self._last[caller_id] = self._count


def in_turn(waiting: Mapping[str | None, Sequence[Place]]) -> list[Place]:
    """All places by rounds: the oldest of each caller, then the second of each. People are first in each round."""
    rounds = (
        (number, caller_id is not None, place)
        for caller_id, places in waiting.items()
        for number, place in enumerate(places)
    )
    return [place for *_, place in sorted(rounds)]
