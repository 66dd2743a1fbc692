"""Plugin options as text, before they are converted to types."""

from collections.abc import Iterable, Iterator, Mapping

from molecule_connect.errors import OptionError, did_you_mean

Value = str | list[str]


class Repeated(list[str]):
    """Values of a flag given more than once: a list, or the last value for an option that takes one."""


class GivenOptions(Mapping[str, Value]):
    """Plugin options as text. Records which keys were read; its repr shows no values.

    Args:
        by_flags: The options come from flags or a program, where every list is a repeated key. In a file, only
            ``Repeated`` is.

    Attributes:
        overruled: Keys with several values, of which only the last was used.
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
        """The value of a single-value option; the last one if the key was repeated."""
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
        """Given keys that are neither in *known* nor were read."""
        return sorted(self._given.keys() - set(known) - self.asked)

    def texts(self) -> list[str]:
        """All values as text, so that they can be removed from messages."""
        flat = [one for value in self._given.values() for one in (value if isinstance(value, list) else [value])]
        return [str(one) for one in flat]


def unknown_options(given: GivenOptions, known: Iterable[str], label: str) -> list[OptionError]:
    """An error for each unknown key, with the most similar known one."""
    names = sorted({*known, *given.asked})
    return [
        OptionError(
            f"{label} has no option {key!r}{did_you_mean(key, names)}",
            hint=f"its options are {', '.join(names)}" if names else "it has no options",
        )
        for key in given.unknown(names)
    ]
