"""Whether a plugin's distribution supports this version of molecule-connect, according to its metadata."""

from collections.abc import Iterable

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def unmet(requires: Iterable[str], version: str) -> tuple[str, bool] | None:
    """The required version range that excludes *version*, and whether it asks for a newer one.

    None if *version* is allowed. Requirements with a marker and invalid ones are ignored.
    """
    current = Version(version)
    for line in requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) != "molecule-connect" or requirement.marker:
            continue
        for clause in requirement.specifier:
            if not clause.contains(current, prereleases=True):
                wanted = ",".join(sorted(map(str, requirement.specifier)))
                return wanted, Version(clause.version.removesuffix(".*")) > current
    return None
