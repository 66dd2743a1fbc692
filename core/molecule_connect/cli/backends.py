"""``molecule backends``: what is installed, and the options of one."""

import click

from molecule_connect.cli.options import PluginName
from molecule_connect.errors import OptionError, PluginError
from molecule_connect.plugins.entry_points import BACKENDS


@click.command(short_help="List the installed backends, or the options of one.")
@click.argument("name", required=False, type=PluginName(BACKENDS))
@click.option("--check", is_flag=True, help="Import each and look at its hooks; make the one that is named.")
def backends(name: str | None, check: bool) -> None:
    """List the installed backends; with NAME, the options of that one. Nothing is served."""
    if name is None:
        _list(check)
    elif check:
        _check(name)
    else:
        _show(name)


def _list(check: bool) -> None:
    from molecule_connect.plugins.discovery import install_line, installed_backends, malformed

    found = installed_backends(check=check)
    width = max((len(plugin.name) for plugin in found), default=0)
    for plugin in found:
        state = plugin.problem or ("ok" if check else "")
        click.echo(f"{plugin.name:{width}}  {plugin.origin}" + (f"  {state}" if state else ""))
    if all(plugin.name == "inbox" for plugin in found):
        click.echo(f"no backend that answers is installed; a first one: {install_line('mock')}")
    if not check:
        return
    # What such a distribution meant to offer may be missing from the list, and nothing else would say so.
    files = malformed()
    for origin, faults in files.items():
        click.echo(f"{'?':{width}}  {origin}  entry_points.txt is malformed: {'; '.join(faults)}")
    wrong = []
    if broken := [plugin.name for plugin in found if plugin.problem]:
        wrong.append(f"{len(broken)} of {len(found)} backends cannot be used: {', '.join(broken)}")
    if files:
        names = [origin.partition(" ")[0] for origin in files]
        wrong.append(f"the entry points of {', '.join(names)} are malformed")
    if wrong:
        raise PluginError(
            "; ".join(wrong), hint="mend, upgrade or remove the distributions named above; the others work"
        )


def _check(name: str) -> None:
    """Make it without options and close it: only its factory tells what comes of it."""
    import asyncio

    from molecule_connect.plugins import discovery

    plugin = discovery.find(BACKENDS, name)
    said, problems = asyncio.run(_make(name))
    click.echo(f"{plugin.name}  {plugin.origin}  {said}")
    if problems:
        raise PluginError(f"{plugin.label} is not ready: {'; '.join(problems)}", hint="mend this, then check again")


async def _make(name: str) -> tuple[str, list[str]]:
    """What is to be said of the backend, and what stands in its way."""
    from molecule_connect.plugins import discovery
    from molecule_connect.plugins.manager import create_host

    try:
        host = await create_host(workspace_id="check", backend=name)
    except OptionError as exc:
        # Without its options only the class itself can be looked at.
        problem = discovery.load_problem(discovery.find(BACKENDS, name))
        return problem or f"ok so far, and not made: {exc}", [problem] if problem else []
    try:
        problems = await host.check()
    finally:
        failed = await host.close()
    problems += [str(each) for each in failed]
    return "made" if problems else "ok", problems


def _show(name: str) -> None:
    from molecule_connect.plugins import discovery
    from molecule_connect.plugins.options import OptionField, describe

    plugin = discovery.find(BACKENDS, name)
    target = discovery.load(plugin)
    click.echo(f"{plugin.name}, from {plugin.origin}")
    about = (getattr(target, "__doc__", None) or "").strip().partition("\n\n")[0]
    if about:
        # Docstrings mark code for the reference; a terminal shows it plain.
        click.echo(" ".join(about.split()).replace("``", ""))
    fields = describe(target)
    if fields is None:
        click.echo("It does not say which options it takes.")
    elif not fields:
        click.echo("It takes no options.")
    else:
        formatter = click.HelpFormatter(width=min(click.get_current_context().terminal_width or 100, 100))

        def line(field: OptionField) -> tuple[str, str]:
            default = "required" if field.required else f"default: {field.default}" if field.default else ""
            return f"{field.key}={field.type}", "  ".join(filter(None, (field.help, f"[{default}]" if default else "")))

        with formatter.section("Options (--backend-opt KEY=VALUE)"):
            formatter.write_dl([line(field) for field in fields])
        click.echo("\n" + formatter.getvalue(), nl=False)
