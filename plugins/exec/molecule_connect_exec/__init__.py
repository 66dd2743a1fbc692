"""A backend that answers with what a command prints."""

from molecule_connect_exec.backend import ExecBackend

__version__ = "0.1.0"

__all__ = ["ExecBackend"]
