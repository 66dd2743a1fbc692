"""Whether a distribution was made for this version of molecule-connect, as its own metadata says."""

import re
from collections.abc import Iterable

from molecule_connect.plugins.entry_points import normalised

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*\Z")
_CLAUSE = re.compile(r"\s*(>=|<=|==|!=|~=|>|<)\s*v?(\d+(?:\.\d+)*)((?:\.\*)?)\s*\Z")


def unmet(requires: Iterable[str], version: str) -> tuple[str, bool] | None:
    """The range of versions that is asked for and does not hold *version*, and whether it lies above it.

    None where it holds, and where nobody can tell: a requirement with a marker, or one in another notation.
    """
    ours = _release(re.match(r"[\d.]*", version)[0].rstrip("."))  # type: ignore[index]
    for line in requires:
        match = _REQUIREMENT.match(line)
        if match is None or normalised(match[1]) != "molecule-connect":
            continue
        clauses = [_CLAUSE.match(clause) for clause in match[2].split(",") if clause.strip()]
        for clause in clauses:
            if clause is not None and not _holds(clause, ours):
                wanted = _release(clause[2])
                return ",".join(sorted(each[0].strip() for each in clauses if each)), wanted > ours
    return None


def _holds(clause: re.Match[str], ours: tuple[int, ...]) -> bool:
    operator, wanted, is_prefix = clause[1], _release(clause[2]), bool(clause[3])
    size = clause[2].count(".") + 1
    same = ours[:size] == wanted[:size] if is_prefix else ours == wanted
    return {
        ">=": ours >= wanted,
        "<=": ours <= wanted,
        ">": ours > wanted,
        "<": ours < wanted,
        "==": same,
        "!=": not same,
        "~=": ours >= wanted and ours[: size - 1] == wanted[: size - 1],
    }[operator]


def _release(text: str) -> tuple[int, ...]:
    numbers = [int(number) for number in text.split(".") if number]
    return tuple(numbers + [0] * (6 - len(numbers)))
