"""A backend that answers with Claude Code."""

from molecule_connect_claude_code.backend import ClaudeCodeBackend
from molecule_connect_claude_code.factory import create_backend

__version__ = "0.1.0"

__all__ = ["ClaudeCodeBackend", "create_backend"]
