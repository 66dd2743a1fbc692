"""The command line: one module per command. Imports what it needs when it needs it, so that help starts fast."""

import os


def main() -> None:
    """Run ``molecule`` with the arguments of this process, and exit with its code."""
    from molecule_connect.cli.root import cli

    _occupy_standard_streams()
    cli()


def _occupy_standard_streams() -> None:
    # Started with a closed stderr (2>&-), the journal would become file 2, and get whatever is printed there.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
