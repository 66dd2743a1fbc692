"""The inbox of Molecule workspaces for MCP hosts: Claude Code, Claude Desktop, Codex, and any other."""

__version__ = "0.1.0"
