"""Read the settings of a single workspace. In this order: flags, variables, saved settings, defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.config.load import merge, read_variables
from molecule_connect.config.saved import SavedSettings
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.config.tokens import TOKEN_FIELDS, find_token, names_token
from molecule_connect.errors import ConfigError


def read_identity(
    flags: Mapping[str, Any], environ: Mapping[str, str], saved: SavedSettings | None = None
) -> dict[str, Any]:
    """All settings of a single workspace except for its token: *flags* win over variables, and both over *saved*.

    Raises:
        ConfigError: The workspace id is missing, or a variable has an invalid value.
    """
    given = {name: value for name, value in flags.items() if value is not None and name not in TOKEN_FIELDS}
    found = merge(read_variables(environ, single=True), given)
    if saved is not None:
        found = {**merge(saved.values_for(found.get("api_url")), found), "settings_file": saved.path}
    if not str(found.get("workspace_id", "")).strip():
        raise ConfigError(
            "no workspace id was given",
            hint="run 'molecule init' to save one, or pass it: 'molecule connect WORKSPACE_ID', or set WORKSPACE_ID; "
            "the id is shown on the platform",
        )
    return found


def read_token(
    settings: WorkspaceSettings,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    state_dir: Path | None,
    saved: SavedSettings | None = None,
) -> dict[str, Any]:
    """The settings for the token of *settings*: from *flags*, variables, *saved*, or the places of ``find_token``.

    Raises:
        ConfigError: No source is set, or the first one can't be used.
    """
    if saved is not None and not names_token(flags, environ) and (token := saved.token_for(settings.api_url)):
        return token
    return find_token(flags, environ, workspace_id=settings.workspace_id, state_dir=state_dir)


def read_single(
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    state_dir: Path | None,
    saved: SavedSettings | None = None,
) -> WorkspaceSettings:
    """The settings of a single workspace, from *flags*, variables and *saved*.

    Args:
        flags: Field name -> value; None for a flag with an empty value.
        state_dir: May contain a token that a registration returned.

    Raises:
        ConfigError: The id or the token is missing, or a value is invalid.
    """
    settings = WorkspaceSettings(**read_identity(flags, environ, saved)).check()
    return attrs.evolve(settings, **read_token(settings, flags, environ, state_dir=state_dir, saved=saved))
