"""``python -m molecule_connect_sandbox`` runs ``molecule sandbox``."""

import io
import sys

import click

from molecule_connect import ConfigError, MoleculeError
from molecule_connect_sandbox.command import sandbox


def main() -> None:
    """Run the command. Errors are two lines: the message and a hint."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sandbox(prog_name="molecule sandbox")
    except MoleculeError as error:
        click.echo(f"error: {error}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
