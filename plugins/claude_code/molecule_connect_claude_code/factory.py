"""Creates the backend. With ``session=running``, the operator's open Claude Code reads messages from the inbox."""

from importlib import metadata
from typing import ClassVar

import attrs

from molecule_connect import BackendConfig, InboxBackend, OptionError, hookimpl, options
from molecule_connect_claude_code.backend import ClaudeCodeBackend


@attrs.frozen(eq=False)
class OpenSession(InboxBackend):
    """Leaves messages to an open session of Claude Code, which reads and answers them with ``molecule mcp``."""

    server: ClassVar[str] = "molecule-connect-mcp"
    advice: ClassVar[str] = (
        "messages wait for your open Claude Code session: add the MCP server once with 'claude mcp add molecule"
        " -e PLATFORM_URL=... -e WORKSPACE_ID=... -e MOLECULE_WORKSPACE_TOKEN_FILE=... -- molecule mcp',"
        " and check it with 'molecule mcp --check'"
    )

    @hookimpl
    def check(self) -> list[str]:
        """Check that the MCP server is installed."""
        try:
            metadata.distribution(self.server)
        except metadata.PackageNotFoundError:
            return [f"session=running needs the MCP server; install it with: python -m pip install {self.server}"]
        return []


@options(ClaudeCodeBackend)
def create_backend(config: BackendConfig) -> ClaudeCodeBackend | OpenSession:
    """Answer with Claude Code. Each conversation has its own session, which continues after a restart.

    It runs ``claude -p`` in ``cwd`` with your login. By default, Claude may only read the files of a message and write
    to its outbox, and no settings are loaded. With ``session=running``, your open Claude Code session answers instead.
    POSIX only.

    Raises:
        OptionError: An option is invalid.
    """
    backend = config.structure(ClaudeCodeBackend)
    if backend.session != "running":
        return backend
    others = sorted(key for key, value in config.options.items() if key != "session" and value)
    if others:
        raise OptionError(
            f"session=running can't be combined with other options: {', '.join(others)}",
            hint=f"leave out {', '.join(others)}; the open Claude Code session uses its own settings",
        )
    return OpenSession()
