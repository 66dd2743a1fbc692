"""A backend that runs a command for each message and replies with its output."""

from molecule_connect_exec.backend import ExecBackend

__version__ = "0.1.0"

__all__ = ["ExecBackend"]
