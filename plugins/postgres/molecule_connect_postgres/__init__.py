"""Copies of journals in PostgreSQL, so that several machines can serve the same workspaces."""

from molecule_connect_postgres.mirror import PostgresMirror

__all__ = ["PostgresMirror"]
