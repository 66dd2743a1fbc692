"""The order in which readers of an inbox get messages: a caller that floods the inbox delays only itself."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """Identifies one pending message; sorts from the oldest to the newest."""

    time: int
    seq: int
    arrival: int
    workspace_id: str


class Turns:
    """Callers take turns; people count as one caller and get every other turn.

    The caller whose last turn is longest ago is first; among callers without a turn yet, the one with the oldest
    message.
    """

    def __init__(self) -> None:
        self._last: dict[str | None, int] = {}
        self._count = 0

    def choose(self, heads: Iterable[tuple[Place, str | None]]) -> tuple[Place, str | None] | None:
        """The next of *heads*, the oldest message of each caller; None if there are no heads."""
        after_people = self._last.get(None) == self._count
        begun = self._count > 0

        def turn(head: tuple[Place, str | None]) -> tuple[bool, int, Place]:
            place, caller_id = head
            return begun and (caller_id is None) == after_people, self._last.get(caller_id, 0), place

        return min(heads, key=turn, default=None)

    def take(self, caller_id: str | None) -> None:
        """Record that a message of *caller_id* was claimed."""
        self._count += 1
        self._last[caller_id] = self._count


def in_turn(waiting: Mapping[str | None, Sequence[Place]]) -> list[Place]:
    """All places in rounds: the oldest of each caller, then the second of each. People come first in each round."""
    rounds = (
        (number, caller_id is not None, place)
        for caller_id, places in waiting.items()
        for number, place in enumerate(places)
    )
    return [place for *_, place in sorted(rounds)]
