"""Answer the messages of a Molecule workspace with a program on your own machine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molecule_connect import events, files
    from molecule_connect.app import connect, load_workspaces, saved_state_dir
    from molecule_connect.config.saved import config_home
    from molecule_connect.config.settings import Tls, WorkspaceSettings
    from molecule_connect.config.tokens import check_token
    from molecule_connect.errors import (
        ArchiveError,
        ArgumentError,
        AuthError,
        BackendError,
        BackendNotFoundError,
        CloseError,
        ConfigError,
        CursorExpiredError,
        JournalError,
        LeaseError,
        MoleculeError,
        OptionError,
        Outcome,
        PageTooLargeError,
        PermanentPlatformError,
        PlatformError,
        PluginError,
        StateLostError,
        TransientPlatformError,
        WorkspaceDeletedError,
    )
    from molecule_connect.inbox.inbox import Inbox
    from molecule_connect.inbox.opening import open_inbox, state_folders
    from molecule_connect.inbox.replies import ReplyResult
    from molecule_connect.journal.inbox import InboxMessage
    from molecule_connect.models import (
        DataPart,
        FeedPosition,
        FilePart,
        Inbound,
        Kind,
        Outgoing,
        Part,
        Presence,
        Progress,
        Request,
        Response,
        TextPart,
        Usage,
        canonical_id,
    )
    from molecule_connect.platform import endpoints
    from molecule_connect.platform.client import AsyncPlatformClient
    from molecule_connect.plugins.discovery import installed_backends
    from molecule_connect.plugins.hookspecs import hookimpl
    from molecule_connect.plugins.inbox import InboxBackend
    from molecule_connect.plugins.manager import create_backend
    from molecule_connect.plugins.option_types import Duration
    from molecule_connect.plugins.options import BackendConfig, options
    from molecule_connect.plugins.prompts import disarm_tags
    from molecule_connect.worker.feed import FeedPage, FeedReader

__version__ = "0.1.0"

_HOMES = {
    "models": (
        "DataPart FeedPosition FilePart Inbound Kind Outgoing Part Presence Progress Request Response TextPart "
        "Usage canonical_id"
    ),
    "errors": (
        "ArchiveError ArgumentError AuthError BackendError BackendNotFoundError CloseError ConfigError "
        "CursorExpiredError JournalError LeaseError MoleculeError OptionError Outcome PageTooLargeError "
        "PermanentPlatformError PlatformError PluginError StateLostError TransientPlatformError "
        "WorkspaceDeletedError"
    ),
    "inbox.inbox": "Inbox",
    "journal.inbox": "InboxMessage",
    "inbox.opening": "open_inbox state_folders",
    "inbox.replies": "ReplyResult",
    "platform.client": "AsyncPlatformClient",
    "plugins.discovery": "installed_backends",
    "plugins.hookspecs": "hookimpl",
    "plugins.manager": "create_backend",
    "plugins.inbox": "InboxBackend",
    "plugins.option_types": "Duration",
    "plugins.options": "BackendConfig options",
    "plugins.prompts": "disarm_tags",
    "app": "connect load_workspaces saved_state_dir",
    "worker.feed": "FeedPage FeedReader",
    "config.saved": "config_home",
    "config.settings": "Tls WorkspaceSettings",
    "config.tokens": "check_token",
    # Modules that are public themselves.
    "": "events files",
    "platform": "endpoints",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "ArchiveError", "ArgumentError", "AsyncPlatformClient", "AuthError", "BackendConfig", "BackendError",
    "BackendNotFoundError", "CloseError", "ConfigError", "CursorExpiredError", "DataPart", "Duration", "FeedPage",
    "FeedPosition", "FeedReader", "FilePart", "Inbound", "Inbox", "InboxBackend", "InboxMessage", "JournalError",
    "Kind", "LeaseError", "MoleculeError", "OptionError", "Outcome", "Outgoing", "PageTooLargeError", "Part",
    "PermanentPlatformError", "PlatformError", "PluginError", "Presence", "Progress", "ReplyResult", "Request",
    "Response", "StateLostError", "TextPart", "Tls", "TransientPlatformError", "Usage", "WorkspaceDeletedError",
    "WorkspaceSettings", "canonical_id", "check_token", "config_home", "connect", "create_backend", "disarm_tags",
    "endpoints", "events", "files", "hookimpl", "installed_backends", "load_workspaces", "open_inbox", "options",
    "saved_state_dir", "state_folders",
]  # fmt: skip


# Hidden from type checkers, for which it would turn a misspelled name of this package into Any.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # Importing the package must be fast: `molecule --help` imports it too.
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        home = _HOME_OF[name]
        if home in ("", "platform"):
            value = import_module(".".join(filter(None, (__name__, home, name))))
        else:
            value = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
