"""Find and load installed plugins. Only loading imports a plugin's code."""

import functools
import importlib.metadata
import os
import shlex
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

import attrs
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from molecule_connect import __version__
from molecule_connect.errors import BackendNotFoundError, MoleculeError, PluginError, did_you_mean
from molecule_connect.plugins.entry_points import (
    BACKENDS,
    COMMANDS,
    MIDDLEWARE,
    NAME,
    OBSERVERS,
    entries,
    faults,
    normalized,
)
from molecule_connect.plugins.wording import first_line

# Backends of first-party distributions. Suggesting any other package name would invite typosquatting.
FIRST_PARTY = ("claude-code", "exec", "mock")

_WORDS = {BACKENDS: "backend", MIDDLEWARE: "middleware", COMMANDS: "command", OBSERVERS: "observer"}


@attrs.frozen(kw_only=True)
class InstalledPlugin:
    """A plugin that an installed distribution offers.

    Attributes:
        group: The entry-point group.
        target: The object reference, ``module:attribute``.
        distribution: The distribution's name, as spelled in its metadata.
        problem: Why it cannot be used; empty if no reason is known.
    """

    name: str
    group: str
    target: str
    distribution: str
    version: str
    problem: str = ""

    @property
    def label(self) -> str:
        """Kind and name, for messages: ``backend exec``."""
        return f"{_WORDS.get(self.group, 'plugin')} {self.name}"

    @property
    def origin(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}"


def installed(group: str, *, path: Sequence[str] | None = None) -> tuple[InstalledPlugin, ...]:
    """The plugins installed in *group*, sorted by name, without importing them. ``path`` replaces ``sys.path``."""
    folders = sys.path if path is None else path
    return _installed(group, None if path is None else tuple(path), tuple((each, _changed(each)) for each in folders))


# Reading the metadata of every installed distribution takes up to 0.1 s, and each workspace of a list needs it.
@functools.lru_cache(maxsize=8)
def _installed(
    group: str, path: tuple[str, ...] | None, state: tuple[tuple[str, int], ...]
) -> tuple[InstalledPlugin, ...]:
    found = [plugin for distribution in _distributions(path) for plugin in _offers(distribution, group)]
    owners: dict[str, set[str]] = {}
    for plugin in found:
        owners.setdefault(plugin.name, set()).add(plugin.distribution)
    clashing = {name: sorted(of) for name, of in owners.items() if len(of) > 1}
    return tuple(
        attrs.evolve(plugin, problem=plugin.problem or _clash(plugin.name, clashing.get(plugin.name)))
        for plugin in sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))
    )


def _changed(folder: str) -> int:
    """When *folder* last changed, in nanoseconds; 0 if unknown."""
    try:
        return os.stat(folder or ".").st_mtime_ns  # noqa: PTH116 - an empty entry is the current folder
    except OSError:
        return 0


def installed_backends(*, check: bool = False, path: Sequence[str] | None = None) -> tuple[InstalledPlugin, ...]:
    """All installed backends, sorted by name. With ``check``, each is imported, and ``problem`` says why one fails."""
    found = installed(BACKENDS, path=path)
    return (
        tuple(attrs.evolve(plugin, problem=plugin.problem or load_problem(plugin)) for plugin in found)
        if check
        else found
    )


def malformed(*, path: Sequence[str] | None = None) -> dict[str, tuple[str, ...]]:
    """Errors in the ``entry_points.txt`` files of installed distributions, by name and version. Nothing is imported.

    The valid entries of such a file can be used.
    """
    found: dict[str, tuple[str, ...]] = {}
    for distribution in _distributions(path):
        try:
            wrong = tuple(faults(distribution.read_text("entry_points.txt") or ""))
        except UnicodeDecodeError:
            wrong = ("it is not UTF-8",)
        except OSError as exc:
            wrong = (f"it cannot be read: {exc.strerror}",)
        if wrong:
            known = distribution.metadata
            found[" ".join(known[field] for field in ("Name", "Version") if field in known)] = wrong
    return dict(sorted(found.items()))


def find(group: str, name: str, *, path: Sequence[str] | None = None) -> InstalledPlugin:
    """The plugin that *name*, or ``distribution:name``, stands for.

    Raises:
        BackendNotFoundError: No backend has this name.
        PluginError: Nothing else has this name, or more than one distribution claims it.
    """
    wanted, _, short = name.rpartition(":")
    everything = installed(group, path=path)
    found = [
        plugin
        for plugin in everything
        if plugin.name == short and (not wanted or normalized(plugin.distribution) == normalized(wanted))
    ]
    if not found:
        raise _not_found(group, name, everything)
    if len(found) > 1:
        raise PluginError(
            f"{found[0].label} is offered by {' and by '.join(plugin.origin for plugin in found)}",
            hint="choose one: " + " or ".join(f"{_flag(group)}{plugin.distribution}:{short}" for plugin in found),
        )
    return found[0]


def load(plugin: InstalledPlugin) -> Any:
    """Import the class or factory of *plugin*.

    Raises:
        PluginError: The import failed, or the plugin's name is invalid.
    """
    if not NAME.match(plugin.name):
        raise PluginError(f"{plugin.name!r} of {plugin.origin} is not a valid plugin name", hint=_NAME_RULE)
    try:
        return EntryPoint(plugin.name, plugin.target, plugin.group).load()
    except KeyboardInterrupt:
        raise
    except MoleculeError as exc:
        raise PluginError(f"{plugin.label} ({plugin.origin}) cannot be loaded: {exc}", hint=exc.hint) from exc
    except BaseException as exc:  # including SystemExit and test tools' BaseExceptions
        hint = f"fix, upgrade or remove it: {_pip()} install --upgrade {plugin.distribution}"
        raise PluginError(
            f"{plugin.label} ({plugin.origin}) cannot be loaded: {first_line(exc)}{_place(exc)}",
            hint=plugin.problem or hint,
        ) from exc


def load_problem(plugin: InstalledPlugin) -> str:
    """Why the backend *plugin* cannot be loaded or would be rejected with any options; empty if it's fine."""
    from molecule_connect.plugins.implementations import hook_problem

    try:
        return hook_problem(load(plugin), plugin.label)
    except PluginError as exc:
        return str(exc)


def _place(exc: BaseException) -> str:
    """`` (FILE:LINE)`` of the import that failed; empty if no line of the plugin ran."""
    ours = (__file__, importlib.metadata.__file__, importlib.__file__)
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(exc.__traceback__)]
    places = [each for each in places if each[0] not in ours and not each[0].startswith("<frozen ")]
    return " ({}:{})".format(*places[-1]) if places else ""


_NAME_RULE = (
    "a name consists of lower-case letters, digits, - and _, and starts with a letter or digit; report it to its author"
)


def _distributions(path: Sequence[str] | None) -> Iterator[Distribution]:
    """Installed distributions. As with imports, the first of a name wins; unreadable ones are skipped."""
    seen: set[str] = set()
    for distribution in distributions() if path is None else distributions(path=list(path)):
        try:
            name = normalized(distribution.metadata["Name"])
        except Exception:  # noqa: S112 - broken metadata without a name to report
            continue
        if name not in seen:
            seen.add(name)
            yield distribution


def _offers(distribution: Distribution, group: str) -> Iterator[InstalledPlugin]:
    try:
        text = distribution.read_text("entry_points.txt") or ""
        name, version = distribution.metadata["Name"], distribution.version
        requires = distribution.requires or ()
    except Exception:  # broken metadata: not UTF-8, or without a version
        return
    seen: set[str] = set()
    for entry, target in entries(text, group):
        if entry not in seen:
            seen.add(entry)
            problem = _version_problem(name, requires)
            if not NAME.match(entry):
                problem = f"{entry!r} is not a valid plugin name: {_NAME_RULE}"
            yield InstalledPlugin(
                name=entry, group=group, target=target, distribution=name, version=version or "?", problem=problem
            )


def _version_problem(distribution: str, requires: Sequence[str]) -> str:
    found = unmet(requires, __version__)
    if found is None:
        return ""
    wanted, is_newer = found
    which = "molecule-connect" if is_newer else distribution
    return (
        f"requires molecule-connect {wanted}, but this is {__version__}; "
        f"upgrade {which}: {_pip()} install --upgrade {which}"
    )


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


def _clash(name: str, owners: Sequence[str] | None) -> str:
    return f"offered by {' and '.join(owners)}; choose one, as in {owners[0]}:{name}" if owners else ""


def _flag(group: str) -> str:
    return {BACKENDS: "--backend ", MIDDLEWARE: "--use "}.get(group, "")


def _not_found(group: str, name: str, everything: Sequence[InstalledPlugin]) -> PluginError | BackendNotFoundError:
    names = sorted({plugin.name for plugin in everything})
    guess = did_you_mean(name, names)
    if group != BACKENDS:
        known = ", ".join(names) or "none"
        return PluginError(
            f"no {_WORDS.get(group, 'plugin')} named {name!r} (installed: {known}){guess}",
            hint="install the distribution that offers it into this environment",
        )
    if name in FIRST_PARTY:
        hint = how_to_install(name)
    elif guess:
        hint = guess.removeprefix(", ")
    else:
        hint = "install the distribution that offers this backend"
    return BackendNotFoundError(name, available=names, hint=hint)


def how_to_install(extra: str) -> str:
    """A hint that names the command to install the extra *extra*."""
    return f"install it: {install_line(extra)}"


def install_line(extra: str) -> str:
    """The command that installs the extra *extra* for this interpreter."""
    return f'{_pip()} install "molecule-connect[{extra}]"'


def _pip() -> str:
    return f"{shlex.quote(sys.executable)} -m pip"
