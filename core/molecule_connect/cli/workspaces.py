"""The workspaces that ``molecule connect`` serves: one from flags and variables, or those of a list."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.app import check_platform, load_list
from molecule_connect.config.load import (
    WORKSPACES_VARIABLE,
    WorkspaceList,
    parse_file,
    parse_variable,
)
from molecule_connect.config.saved import describe_unused, find_saved
from molecule_connect.config.settings import DEFAULT_BACKEND, SCHEMA, WorkspaceSettings
from molecule_connect.config.single import read_single
from molecule_connect.config.state_dir import preview_state_dir
from molecule_connect.config.workspaces import JournalSettings, Listing, WorkspacesError
from molecule_connect.errors import BackendNotFoundError, ConfigError
from molecule_connect.plugins import discovery
from molecule_connect.plugins.entry_points import BACKENDS

_OF_ONE_WORKSPACE = {
    "profile": "--profile",
    "workspace_id": "a workspace id",
    "token": "--token",
    "token_file": "--token-file",
}


class WorkspaceSource:
    """Reads the workspaces to serve, again on request.

    Args:
        given: The settings on the command line, by field name.
        config: The file of ``--config``.
        state_dir: The folder of ``--state-dir``.
        profile: The value of ``--profile``.
        may_be_new: The profile doesn't have to exist.

    Attributes:
        strict: Serve all workspaces of a list, or none.
        once: Answer the waiting messages, then stop.
        own_state_dir: The state folder that the file or the saved settings name, as of the first ``read``.
        assumes_address: Whether the address of a single workspace is the default one, because none was given.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        environ: Mapping[str, str],
        *,
        config: Path | None,
        state_dir: str | Path | None,
        profile: str | None = None,
        may_be_new: bool = False,
    ) -> None:
        self._given, self._environ, self._config = given, environ, config
        self._named_state_dir, self._profile, self._may_be_new = state_dir, profile, may_be_new
        self._state_dir: Path | None = None
        self._list: WorkspaceList | None = None
        self.strict: bool = given.get("strict", False)
        self.once: bool = given.get("once", False)
        self.own_state_dir: Path | None = None
        self.assumes_address = False

    @property
    def journal(self) -> JournalSettings:
        """Where the list says that the journal is shared, as of the last ``read``."""
        return JournalSettings() if self._list is None else self._list.journal

    @property
    def state_dir(self) -> Path:
        """The state folder that a start would use. It may contain tokens that registrations returned.

        Raises:
            ConfigError: It can't be used.
        """
        if self._state_dir is None:
            self._state_dir = preview_state_dir(self._named_state_dir, self._environ, saved=self.own_state_dir)
        return self._state_dir

    @property
    def unused(self) -> str:
        """Why the saved settings of a single workspace weren't used, if there are any."""
        if self._config is not None:
            return ""
        return describe_unused(self._profile, self._environ, workspace_id=self._given.get("workspace_id"))

    @property
    def name(self) -> str:
        """The file or the variable of the list; empty for a single workspace."""
        return self._list.source if self._list is not None else ""

    @property
    def reloads(self) -> bool:
        """Whether ``read`` can have another result later."""
        return self._config is not None

    def read(self) -> Listing:
        """Read the workspaces.

        Raises:
            WorkspacesError: No workspace of the list can be served.
            ConfigError: A setting is missing or invalid.
        """
        if self._config is None and not self._environ.get(WORKSPACES_VARIABLE):
            return Listing(settings=(self._read_single(),))
        self._refuse_identity()
        flags = {name: value for name, value in self._given.items() if value is not None}
        if self._config is None:
            found = parse_variable(self._environ, flags=flags, state_dir=self.state_dir)
        else:
            # Opening a pipe that has no writer would block all workspaces.
            if self._list is not None and self._config.exists() and not self._config.is_file():
                raise WorkspacesError(str(self._config), ["it is not a regular file, so it can be read only once"])
            found = parse_file(self._config, self._environ, flags=flags)
            if self._list is None:
                self.own_state_dir = found.own_state_dir
            found = attrs.evolve(found, state_dir=self.state_dir)
        listing = load_list(found, plugins=True)
        self._list = found
        return listing

    def retry(self, numbers: Collection[int]) -> Listing:
        """The workspaces with these *numbers* in the last list that was read. Files that they name are read again."""
        return Listing() if self._list is None else load_list(self._list, numbers, plugins=True)

    def _read_single(self) -> WorkspaceSettings:
        saved = find_saved(
            self._profile,
            self._environ,
            workspace_id=self._given.get("workspace_id"),
            may_be_new=self._may_be_new,
        )
        self.own_state_dir = None if saved is None else saved.state_dir
        try:
            settings = read_single(self._given, self._environ, self.state_dir, saved)
        except ConfigError as error:
            if saved is None and (unused := self.unused):
                error.hint += f"; of the saved settings, {unused}"
            raise
        variables = SCHEMA["api_url"].variables
        is_given = "api_url" in self._given or any(self._environ.get(name) for name in variables)
        self.assumes_address = not is_given and (saved is None or "api_url" not in saved.values)
        check_platform(settings)
        try:
            discovery.find(BACKENDS, str(settings.backend))
        except BackendNotFoundError as error:
            if settings.backend == DEFAULT_BACKEND:
                error.hint += or_another(error.available)
            raise
        return settings

    def _refuse_identity(self) -> None:
        """Raises ConfigError for a flag that the list replaces."""
        given = {**self._given, **({} if self._profile is None else {"profile": self._profile})}
        for name, words in _OF_ONE_WORKSPACE.items():
            if name not in given:
                continue
            if self._config is not None:
                raise ConfigError(
                    f"{words} can't be combined with --config, which lists the workspaces",
                    hint="add the workspace to the file, or omit --config",
                )
            raise ConfigError(
                f"{words} can't be combined with {WORKSPACES_VARIABLE}, which lists the workspaces",
                hint=f"unset {WORKSPACES_VARIABLE} to serve one workspace, or omit {words} to serve all",
            )


def or_another(available: Sequence[str]) -> str:
    """Added to the hint how to install the default backend. An inbox doesn't answer, so it isn't an alternative."""
    answering = [name for name in available if name != "inbox"]
    return f"; or choose an installed one with --backend {answering[0]}" if answering else ""
