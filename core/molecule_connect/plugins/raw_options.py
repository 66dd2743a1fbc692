"""Options as they were given: text, not yet typed."""

from collections.abc import Iterable, Iterator, Mapping

from molecule_connect.errors import OptionError
from molecule_connect.plugins.wording import nearest

Value = str | list[str]


class Repeated(list[str]):
    """The values of a key that flags gave more than once: a list, or for an option with one value the last of them."""


class GivenOptions(Mapping[str, Value]):
    """Options as they were given. Remembers which were asked for; shows no value.

    Args:
        by_flags: Flags or a program gave them: any list stands for a repeated key. In a file only ``Repeated`` does.

    Attributes:
        overruled: Keys with several values of which only the last was taken.
    """

    def __init__(self, given: Mapping[str, Value] | None = None, *, by_flags: bool = False) -> None:
        self._given = dict(given or {})
        self._by_flags = by_flags
        self.asked: set[str] = set()
        self.overruled: set[str] = set()

    def __getitem__(self, key: str) -> Value:
        self.asked.add(key)
        return self._given[key]

    def last(self, key: str) -> Value:
        """The value of an option that has only one: the last, where the key was repeated."""
        value = self[key]
        is_repeated = isinstance(value, Repeated) or (self._by_flags and isinstance(value, list))
        if not is_repeated or not value:
            return value
        self.overruled.add(key)
        return value[-1]

    def __iter__(self) -> Iterator[str]:
        self.asked.update(self._given)
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __repr__(self) -> str:
        return f"<options {', '.join(sorted(self._given)) or 'none'}>"

    def unknown(self, known: Iterable[str]) -> list[str]:
        """Keys that were given, are none of *known*, and that nobody asked for."""
        return sorted(self._given.keys() - set(known) - self.asked)

    def texts(self) -> list[str]:
        """Every value as text, to keep them out of messages."""
        flat = [one for value in self._given.values() for one in (value if isinstance(value, list) else [value])]
        return [str(one) for one in flat]


def unknown_options(given: GivenOptions, known: Iterable[str], label: str) -> list[OptionError]:
    """An error for each key that *label* does not know, with the nearest that it does."""
    names = sorted({*known, *given.asked})
    return [
        OptionError(
            f"{label} has no option {key!r}{nearest(key, names)}",
            hint=f"its options are {', '.join(names)}" if names else "it has no options",
        )
        for key in given.unknown(names)
    ]
