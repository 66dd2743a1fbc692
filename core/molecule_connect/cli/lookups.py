"""What the commands that look at a connector from outside have in common."""

import os
import time
from pathlib import Path

import click

from molecule_connect.config.state_dir import existing_state_dir
from molecule_connect.console.sanitize import span

STATE_DIR = click.option(
    "--state-dir",
    metavar="FOLDER",
    help="The connector's state folder. [MOLECULE_STATE_DIR; default: where 'molecule connect' keeps it]",
)
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


def canonical(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A click callback: a workspace id in the form in which the state folder has it."""
    from molecule_connect.models import canonical_id

    return None if value is None else canonical_id(value)


def folder_of(state_dir: str | None) -> Path:
    """The state folder to look into.

    Raises:
        ConfigError: ``--state-dir`` is empty.
    """
    return existing_state_dir(state_dir, os.environ)


def moment(seconds: float | None) -> str | None:
    """A time (seconds since 1970) for machines and for people alike: RFC 3339 in UTC."""
    if seconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def ago(seconds: float, now: float) -> str:
    """How long ago something was."""
    return f"{span(max(0.0, now - seconds))} ago"


def count(number: int, noun: str) -> str:
    """``1 message``, ``1,000 messages``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
