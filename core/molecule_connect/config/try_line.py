"""The command that runs a backend without the platform, for hints."""

import shlex
from collections.abc import Iterable

from molecule_connect.config.settings import WorkspaceSettings


def try_hint(settings: WorkspaceSettings) -> str:
    """A hint that names the command for the backend of *settings*; empty for a backend object.

    It has the keys of the options in use. Their values may be secrets, so the operator fills them in.
    """
    if not isinstance(settings.backend, str):
        return ""
    words = ["molecule", "try", shlex.quote(settings.backend), *_flags("--backend-opt", settings.options)]
    for name in settings.middleware:
        words += ["--use", shlex.quote(str(name))] if isinstance(name, str) else []
    words += _flags("--use-opt", settings.middleware_options)
    fill_in = ", with the same values for ...," if settings.options or settings.middleware_options else ""
    return f"'{' '.join(words)} hello'{fill_in} runs the backend on its own"


def _flags(flag: str, keys: Iterable[str]) -> list[str]:
    return [f"{flag} {shlex.quote(key)}=..." for key in keys]
