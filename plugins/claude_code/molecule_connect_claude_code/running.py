"""``session=running``: messages go to the Claude Code that the operator has open, by way of the MCP inbox."""

from importlib import metadata
from typing import ClassVar

import attrs

from molecule_connect import BackendConfig, InboxBackend, OptionError, hookimpl, options
from molecule_connect_claude_code.backend import ClaudeCodeBackend


@attrs.frozen(eq=False)
class RunningSession(InboxBackend):
    """An open session of Claude Code answers: ``molecule mcp`` in it takes the messages, and sends what it replies."""

    server: ClassVar[str] = "molecule-connect-mcp"
    advice: ClassVar[str] = (
        "messages wait for your open Claude Code: give it the server once with 'claude mcp add molecule"
        " -e PLATFORM_URL=... -e WORKSPACE_ID=... -e MOLECULE_WORKSPACE_TOKEN_FILE=... -- molecule mcp',"
        " and see 'molecule mcp --check'"
    )

    @hookimpl
    def check(self) -> list[str]:
        """The server, which Claude Code starts by its name."""
        try:
            metadata.distribution(self.server)
        except metadata.PackageNotFoundError:
            return [f"session=running needs the MCP server; install it with: python -m pip install {self.server}"]
        return []


@options(ClaudeCodeBackend)
def create_backend(config: BackendConfig) -> ClaudeCodeBackend | RunningSession:
    """Answer with Claude Code: a session per conversation, resumed for each message, also after a restart.

    It runs ``claude -p`` in ``cwd`` with the operator's login. Unless options allow more, Claude may read the files of
    a message and write to its outbox, and no settings are loaded. With ``session=running`` the Claude Code that you
    have open answers instead. POSIX only.

    Raises:
        OptionError: An option does not fit.
    """
    backend = config.structure(ClaudeCodeBackend)
    if backend.session != "running":
        return backend
    others = sorted(key for key, value in config.options.items() if key != "session" and value)
    if others:
        raise OptionError(
            f"with session=running the Claude Code that is open decides, not the option {', '.join(others)}",
            hint=f"leave out {', '.join(others)}",
        )
    return RunningSession()
