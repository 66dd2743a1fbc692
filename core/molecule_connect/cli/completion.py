"""``molecule completion``: print click's completion scripts."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish", "powershell")
# Lines of click's scripts, and their replacements.
_CHANGES = {
    # bash
    """
            COMPREPLY+=($value)
""": """
            COMPREPLY+=($value)
            [[ $value == *= ]] && compopt -o nospace
""",
    # zsh
    """
            if [[ "$descr" == "_" ]]; then
""": """
            if [[ "$key" == *= ]]; then
                completions_before_value+=("$key":"${descr#_}")
            elif [[ "$descr" == "_" ]]; then
""",
    """
    if [ -n "$completions_with_descriptions" ]; then
""": """
    if [ -n "$completions_before_value" ]; then
        _describe -V unsorted completions_before_value -U -S ''
    fi

    if [ -n "$completions_with_descriptions" ]; then
""",
    """
    local -a completions_with_descriptions
""": """
    local -a completions_with_descriptions
    local -a completions_before_value
""",
}


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
    click.echo(without_space(kind(root.command, {}, program, variable).source()))


def without_space(script: str) -> str:
    """click's *script*, changed so that the shell adds no space after a completion that ends with ``=``.

    fish and PowerShell add none. A script of another form is returned unchanged.
    """
    for old, new in _CHANGES.items():
        if script.count(old) == 1:
            script = script.replace(old, new)
    return script
