"""Create a plugin instance from an installed plugin and its options."""

import contextlib
import inspect
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.errors import MoleculeError, PluginError
from molecule_connect.plugins.discovery import InstalledPlugin, load
from molecule_connect.plugins.entry_points import BACKENDS
from molecule_connect.plugins.implementations import ENTRY_POINT_RULE, kind_of
from molecule_connect.plugins.options import BackendConfig, declared_class, option_fields
from molecule_connect.plugins.raw_options import GivenOptions, Value, unknown_options
from molecule_connect.plugins.wording import first_line

Warn = Callable[[str], None]

_LOG = logging.getLogger(__name__)


def log_warning(text: str) -> None:
    """Log a warning, for programs that pass no ``warn``."""
    _LOG.warning("%s", text)


@attrs.frozen(eq=False, kw_only=True)
class Creation:
    """A plugin to create.

    Attributes:
        given: Its options as text.
        strict: Unknown options are errors instead of warnings.
        state_root: The program's state folder, which may not exist yet; None if unknown.
        listed: The options come from a list of workspaces, not from flags.
    """

    installed: InstalledPlugin
    given: GivenOptions
    workspace_id: str = ""
    state_folder: Callable[[], Path] | None = None
    state_root: Path | None = None
    secrets: frozenset[str] = frozenset()
    strict: bool = False
    listed: bool = False
    warn: Warn = log_warning

    def start(self) -> Any:
        """Create the plugin. Returns an awaitable if the factory is ``async``.

        Raises:
            OptionError: An option is missing or invalid, or it is unknown and ``strict`` is set.
            PluginError: The plugin cannot be loaded or created.
        """
        target = load(self.installed)
        cls = declared_class(target)
        if cls is not None:
            self._report(field.key for field in option_fields(cls))
        config = self._config()
        if inspect.isclass(target) and attrs.has(target):
            with self.authors_code():
                return config.structure(target)
        self._require_factory(target, config)
        with self.authors_code():
            return target(config)

    def finish(self) -> None:
        """Report unknown and repeated options after the plugin was created."""
        if declared_class(load(self.installed)) is None:
            self._report(())
        for key in sorted(self.given.overruled):
            self.warn(f"option {key!r} of {self.installed.label} was given more than once; the last value is used")

    @contextlib.contextmanager
    def authors_code(self) -> Iterator[None]:
        """Turn exceptions of plugin code into a PluginError without option values."""
        try:
            yield
        except MoleculeError:
            raise
        except (Exception, SystemExit) as exc:
            place = traceback.extract_tb(exc.__traceback__)[-1]
            text = first_line(exc)
            for value in self.given.texts():
                # Shorter values aren't secrets, and replacing them would garble the text.
                text = text.replace(value, "...") if len(value) >= 4 else text
            where = f"{Path(place.filename).name}, line {place.lineno}"
            raise PluginError(
                f"{self.installed.label} ({self.installed.origin}) cannot be created: {text} ({where})",
                hint="check its options, or report it to its author",
            ) from None

    def _report(self, known: Iterator[str] | tuple[str, ...]) -> None:
        for problem in unknown_options(self.given, known, self.installed.label):
            if self.strict:
                raise problem
            self.warn(f"{problem}; {problem.hint}")

    def _config(self) -> BackendConfig:
        name = self.installed.name
        return BackendConfig(
            name=name,
            workspace_id=self.workspace_id,
            options=self.given,
            label=self.installed.label,
            spelling=self._spelling(),
            state_folder=self.state_folder and self._own_folder,
            state_root=self.state_root,
            secrets=self.secrets,
        )

    def _spelling(self) -> str:
        if self.installed.group == BACKENDS:
            return "options." if self.listed else "--backend-opt "
        return f"{'use_options.' if self.listed else '--use-opt '}{self.installed.name}."

    def _own_folder(self) -> Path:
        assert self.state_folder is not None  # noqa: S101
        kind = self.installed.group.rpartition(".")[2]
        return self.state_folder() / kind / self.installed.name / self.workspace_id

    def _require_factory(self, target: Any, config: BackendConfig) -> None:
        problem = "" if callable(target) else kind_of(target)
        if not problem:
            with contextlib.suppress(ValueError):  # built-in without a signature
                try:
                    inspect.signature(target).bind(config)
                except TypeError:
                    problem = "not callable with one BackendConfig"
        if problem:
            raise PluginError(
                f"{self.installed.label} ({self.installed.origin}): {self.installed.target} is {problem}",
                hint=ENTRY_POINT_RULE,
            )


def split_options(given: Mapping[str, Value], names: list[str], *, listed: bool = False) -> dict[str, dict[str, Value]]:
    """Split middleware options, keyed ``name.key``, by name.

    Raises:
        PluginError: A key has no name, or the name of middleware that isn't used.
    """
    found: dict[str, dict[str, Value]] = {name: {} for name in names}
    for key, value in given.items():
        name, _, rest = key.partition(".")
        if not rest or name not in found:
            raise PluginError(
                f"option {key!r} doesn't belong to any middleware in use (in use: {', '.join(names) or 'none'})",
                hint="write it use_options.NAME.key=..."
                if listed
                else "write it as --use NAME --use-opt NAME.key=value",
            )
        found[name][rest] = value
    return found
