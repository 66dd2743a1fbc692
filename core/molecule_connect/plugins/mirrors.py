"""Create the mirror of ``--journal URL``."""

from typing import Any

from molecule_connect.errors import ConfigError, MoleculeError, PluginError
from molecule_connect.mirrors import JournalMirror
from molecule_connect.plugins import discovery
from molecule_connect.plugins.entry_points import MIRRORS

# The extra with the plugin of a scheme, for hints.
_EXTRAS = {"postgresql": "postgres", "postgres": "postgres"}


def create_mirror(url: str) -> JournalMirror:
    """The mirror at *url*, which may contain a password. Makes no request.

    Raises:
        ConfigError: The URL is invalid, or the plugin isn't installed.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ConfigError("--journal is not a URL", hint="write it like postgresql://HOST/DATABASE")
    if not any(plugin.name == scheme for plugin in discovery.installed(MIRRORS)):
        extra = _EXTRAS.get(scheme)
        raise ConfigError(
            f"no installed plugin keeps journals at {scheme}:// addresses",
            hint=discovery.how_to_install(extra) if extra else "use postgresql://",
        )
    try:
        create: Any = discovery.load(discovery.find(MIRRORS, scheme))
        mirror: JournalMirror = create(url)
    except MoleculeError:
        raise
    except Exception as exc:
        raise PluginError(f"mirror {scheme} failed: {type(exc).__name__}", hint="report it to its author") from exc
    return mirror
