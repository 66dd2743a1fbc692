"""``molecule backends``: list the installed backends, or the options of one."""

import click

from molecule_connect.cli.options import PluginName
from molecule_connect.errors import OptionError, PluginError
from molecule_connect.plugins.entry_points import BACKENDS


@click.command
@click.argument("name", required=False, type=PluginName(BACKENDS))
@click.option("--check", is_flag=True, help="Import each backend and check its hooks; create the one that is named.")
def backends(name: str | None, check: bool) -> None:
    """List the installed backends, or the options of the backend NAME."""
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
        click.echo(f"no backend that answers messages is installed; to install one: {install_line('mock')}")
    if not check:
        return
    # Backends of such a distribution may be missing from the list.
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
        raise PluginError("; ".join(wrong), hint="fix, upgrade or remove the distributions above; the others work")


def _check(name: str) -> None:
    """Create the backend without options, and close it: only its factory can show whether it works."""
    import asyncio

    from molecule_connect.plugins import discovery

    plugin = discovery.find(BACKENDS, name)
    result, problems = asyncio.run(_create(name))
    click.echo(f"{plugin.name}  {plugin.origin}  {result}")
    if problems:
        raise PluginError(f"{plugin.label} is not ready: {'; '.join(problems)}", hint="fix this, then check again")


async def _create(name: str) -> tuple[str, list[str]]:
    """The result to show, and the problem that prevents the backend from working."""
    from molecule_connect.plugins import discovery
    from molecule_connect.plugins.manager import create_host

    try:
        host = await create_host(workspace_id="check", backend=name)
    except OptionError as exc:
        # Without its options, only the class can be checked.
        problem = discovery.load_problem(discovery.find(BACKENDS, name))
        return problem or f"ok so far, but not created: {exc}", [problem] if problem else []
    try:
        problems = await host.check()
    finally:
        failed = await host.close()
    problems += [str(each) for each in failed]
    return "created" if problems else "ok", problems


def _show(name: str) -> None:
    from molecule_connect.plugins import discovery
    from molecule_connect.plugins.options import OptionField, describe

    plugin = discovery.find(BACKENDS, name)
    target = discovery.load(plugin)
    click.echo(f"{plugin.name}, from {plugin.origin}")
    about = (getattr(target, "__doc__", None) or "").strip().partition("\n\n")[0]
    if about:
        # Terminals don't render the markup.
        click.echo(" ".join(about.split()).replace("``", ""))
    fields = describe(target)
    if fields is None:
        click.echo("This backend does not declare its options.")
    elif not fields:
        click.echo("This backend has no options.")
    else:
        formatter = click.HelpFormatter(width=min(click.get_current_context().terminal_width or 100, 100))

        def line(field: OptionField) -> tuple[str, str]:
            default = "required" if field.required else f"default: {field.default}" if field.default else ""
            return f"{field.key}={field.type}", "  ".join(filter(None, (field.help, f"[{default}]" if default else "")))

        with formatter.section("Options (--backend-opt KEY=VALUE)"):
            formatter.write_dl([line(field) for field in fields])
        click.echo("\n" + formatter.getvalue(), nl=False)
