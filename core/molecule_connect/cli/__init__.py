"""The command line: one module per command, which imports its dependencies when it runs, so that help starts fast."""


def main() -> None:
    """Run ``molecule`` with the arguments of this process, and exit with its code."""
    from molecule_connect.cli.startup import prepare_process

    prepare_process()
    from molecule_connect.cli.root import cli

    cli()
