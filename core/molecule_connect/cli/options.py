"""Click options: those made from the schema of settings, and those of the commands that read the state folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from molecule_connect.cli.option_keys import complete_option_keys
from molecule_connect.config.settings import SCHEMA, Setting
from molecule_connect.config.state_dir import existing_state_dir
from molecule_connect.config.values import NAMES, OPTIONS, PLUGIN_OPTIONS, SWITCH, InvalidValueError
from molecule_connect.errors import ConfigError
from molecule_connect.models import canonical_id
from molecule_connect.plugins.entry_points import BACKENDS, MIDDLEWARE, scan_names

if TYPE_CHECKING:
    from molecule_connect.config.saved import SavedSettings

F = TypeVar("F", bound=Callable[..., Any])

STATE_DIR = click.option(
    "--state-dir",
    metavar="FOLDER",
    help="The connector's state folder. [MOLECULE_STATE_DIR; default: as for 'molecule connect']",
)
PROFILE_HELP = "The saved settings to use; 'molecule init --profile NAME' saves them. [MOLECULE_PROFILE]"
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to standard output.")
JOURNAL_VARIABLE = "MOLECULE_JOURNAL_URL"
_FROM_VARIABLE = f"${JOURNAL_VARIABLE}"
JOURNAL_CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Use the database in the [journal] table of this list of workspaces.",
)
_PLUGIN_GROUPS = {"backend": BACKENDS, "middleware": MIDDLEWARE}
_REPEATABLE = (NAMES, OPTIONS, PLUGIN_OPTIONS)


class SettingType(click.ParamType[Any]):
    """A click type that parses values by a setting."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.name = setting.kind.placeholder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            found = self._setting.kind.from_text(str(value))
        except (InvalidValueError, ConfigError) as exc:
            self.fail(f"{exc}" if repr(value) in str(exc) else f"{value!r} {exc}", param, ctx)
        if self._setting.bounds is not None and (fault := self._setting.bounds.fault(found)):
            self.fail(fault, param, ctx)
        return found


class PluginName(click.ParamType[str]):
    """The name of a plugin. Completion offers the installed ones; any name is accepted, and looked up later."""

    name = "NAME"

    def __init__(self, group: str) -> None:
        self._group = group

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        names = scan_names(self._group).items()
        return [CompletionItem(name, help=origin) for name, origin in names if name.startswith(incomplete)]


def canonical(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A click callback: the canonical form of a workspace id."""
    return None if value is None else canonical_id(value)


class ProfileName(click.ParamType[str]):
    """The name of a profile. Completion offers the saved ones."""

    name = "NAME"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        from molecule_connect.config.saved import profiles

        return [CompletionItem(name) for name in profiles(os.environ) if name.startswith(incomplete)]


PROFILE = click.option("--profile", type=ProfileName(), metavar="NAME", help=PROFILE_HELP)


def journal_option(text: str, *, implied: bool = False) -> Callable[[F], F]:
    """Adds ``--journal [URL]``, the database through which machines share workspaces, as ``journal_url``.

    Without URL, it is that of the variable.

    Args:
        text: Its help.
        implied: The variable is used without the flag, too. Otherwise, the command then works on the local journal.
    """

    def find(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        if value == _FROM_VARIABLE or (value is None and implied):
            found = os.environ.get(JOURNAL_VARIABLE) or None
            if found is None and value is not None:
                raise click.UsageError(f"--journal needs a URL, because {JOURNAL_VARIABLE} is not set", ctx)
            return found
        return value

    return click.option(
        "--journal",
        "journal_url",
        metavar="[URL]",
        is_flag=False,
        flag_value=_FROM_VARIABLE,
        callback=find,
        help=f"{text} [{'' if implied else 'default URL: '}{JOURNAL_VARIABLE}]",
    )


def place_of(state_dir: str | None, profile: str | None, workspace_id: str | None = None) -> tuple[Path, str | None]:
    """The state folder to read, and the workspace: the given one, else that of a profile that was named.

    Args:
        state_dir: The value of ``--state-dir``.
        profile: The value of ``--profile``.

    Raises:
        ConfigError: *state_dir* is empty, or the saved settings can't be used.
    """
    from molecule_connect.config.saved import chosen_profile

    is_named = bool(chosen_profile(profile, os.environ)) or profile is not None
    saved = saved_of(state_dir, profile, workspace_id)
    folder = existing_state_dir(state_dir, os.environ, saved=None if saved is None else saved.state_dir)
    if workspace_id is None and is_named and saved is not None:
        return folder, saved.workspace_id
    return folder, workspace_id


def saved_of(state_dir: str | None, profile: str | None, workspace_id: str | None = None) -> "SavedSettings | None":
    """The saved settings, for commands that need only their state folder. See ``place_of``."""
    from molecule_connect.config.saved import chosen_profile, find_saved

    if state_dir is not None and profile is None and not chosen_profile(None, os.environ):
        return None
    return find_saved(profile, os.environ, workspace_id=workspace_id)


def new_place_of(state_dir: str | None, profile: str | None) -> Path:
    """The state folder to write to, created if necessary. See ``place_of``."""
    from molecule_connect.config.state_dir import resolve_state_dir

    saved = saved_of(state_dir, profile)
    return resolve_state_dir(state_dir, os.environ, saved=None if saved is None else saved.state_dir)


def setting_options(*names: str) -> Callable[[F], F]:
    """Adds an option for each setting that has a flag, or only for those with these field *names*."""
    wanted = names or tuple(name for name, setting in SCHEMA.items() if setting.flag)

    def add(command: F) -> F:
        for name in reversed(wanted):
            command = _option(name, SCHEMA[name])(command)
        return command

    return add


def given_settings(ctx: click.Context) -> dict[str, Any]:
    """The settings on the command line: field name -> value. None is a flag with an empty value.

    Raises:
        ConfigError: An option of a plugin isn't ``KEY=VALUE``.
    """
    from molecule_connect.plugins.options import parse_options

    found = {
        name: value
        for name, value in ctx.params.items()
        if name in SCHEMA and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    for name in found:
        if SCHEMA[name].kind in (OPTIONS, PLUGIN_OPTIONS):
            found[name] = parse_options(found[name])
    # `molecule --api-url URL connect` is the same as `molecule connect --api-url URL`.
    group = ctx.obj if isinstance(ctx.obj, dict) else {}
    if group.get("api_url") is not None:
        found.setdefault("api_url", group["api_url"])
    return found


def _option(name: str, setting: Setting) -> Callable[[F], F]:
    if setting.kind is SWITCH:
        return click.option(setting.flag, name, is_flag=True, help=_help(setting))
    kind = PluginName(_PLUGIN_GROUPS[name]) if name in _PLUGIN_GROUPS else SettingType(setting)
    return click.option(
        setting.flag,
        name,
        type=kind,
        multiple=setting.kind in _REPEATABLE,
        metavar=setting.placeholder or setting.kind.placeholder,
        help=_help(setting),
        shell_complete=complete_option_keys if name == "options" else None,
    )


def _help(setting: Setting) -> str:
    notes = [*setting.variables[:1]]
    if setting.shown_default:
        notes.append(f"default: {setting.shown_default}")
    if setting.bounds is not None:
        notes.append(str(setting.bounds))
    return f"{setting.help} [{'; '.join(notes)}]" if notes else setting.help
