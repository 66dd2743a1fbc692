"""``molecule completion``: print click's completion scripts."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish", "powershell")


@click.command(
    help="""Print the completion script for SHELL:

    \b
    bash        molecule completion bash >> ~/.bashrc
    zsh         molecule completion zsh >> ~/.zshrc
    fish        molecule completion fish > ~/.config/fish/completions/molecule.fish
    powershell  molecule completion powershell >> $PROFILE
    """
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    root = ctx.find_root()
    # A shell can't complete `python -m molecule_connect`.
    program = root.info_name if root.info_name in ("molecule", "molecule-connect") else "molecule"
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this version of click has no completion for {shell}", ctx)
    variable = f"_{program}_complete".replace("-", "_").upper()
    click.echo(kind(root.command, {}, program, variable).source())
