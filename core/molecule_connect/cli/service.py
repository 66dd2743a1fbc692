"""``molecule service``: keep ``molecule connect`` running with systemd or launchd."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from molecule_connect.cli.options import PROFILE
from molecule_connect.console.sanitize import one_line
from molecule_connect.errors import ConfigError

if TYPE_CHECKING:
    from molecule_connect.service.launchd import Launchd
    from molecule_connect.service.systemd import Systemd
    from molecule_connect.worker.status_file import Reload, ReloadFile

F = TypeVar("F", bound=Callable[..., Any])
# Seconds between looks at the outcome of a reload.
_LOOK = 0.05


def service_options(command: F) -> F:
    """The options that name a service."""
    name = click.option(
        "--name",
        default="molecule-connect",
        show_default=True,
        metavar="NAME",
        help="The service, if there are several.",
    )
    system = click.option(
        "--system", is_flag=True, help="The service of the machine, instead of one for this user. Linux only."
    )
    return system(name(command))


@click.group
def service() -> None:
    """Keep 'molecule connect' running after you log out, after a crash and after a reboot.

    On Linux, it is a unit of systemd for your user, or with --system one of the machine, which runs as a user of its
    own. On macOS, it is an agent of launchd. It uses the settings that 'molecule init' saved, or a list of workspaces.

    \b
    molecule init
    molecule service install
    molecule service status
    molecule service logs -f
    """


@service.command
@service_options
@click.option("--config", metavar="FILE", help="Serve the workspaces of this list, instead of the saved settings.")
@PROFILE
@click.option("--state-dir", metavar="FOLDER", help="The state folder. [default: as for 'molecule connect']")
@click.option("--no-start", is_flag=True, help="Only write the files.")
def install(
    name: str, system: bool, config: str | None, profile: str | None, state_dir: str | None, no_start: bool
) -> None:
    """Install the service, start it, and let it start at each boot or login. Repeat it after a change.

    The settings are checked as the service will see them. It refuses what would not work after a reboot: a path that
    is relative, a token in a variable, or an environment, file or folder that is temporary.

    With --system, the state is kept in /var/lib/NAME, and settings in a home, which the service can't read, are copied
    to /etc/molecule-connect/NAME.
    """
    from molecule_connect.service.installing import Order, install_agent, install_system_unit, install_user_unit
    from molecule_connect.service.machine import Machine, SystemCommands

    machine, commands = Machine.this(), SystemCommands()
    order = Order(
        name=name,
        config=config,
        profile=profile,
        state_dir=state_dir,
        starts=not no_start,
        say=_say,
        confirm=_confirm if sys.stdin is not None and sys.stdin.isatty() else None,
    )
    if machine.platform == "darwin":
        _refuse_system(system)
        install_agent(order, machine, commands)
    elif system:
        install_system_unit(order, machine, commands)
    else:
        install_user_unit(order, machine, commands)


@service.command
@service_options
def uninstall(name: str, system: bool) -> None:
    """Stop the service and remove it. Its settings, journal and files are kept."""
    manager = _manager(name, system, "uninstall")
    state_dir = manager.state_dir(name)
    manager.uninstall(name)
    _say(f"{name} was stopped and removed")
    _say(f"kept: {state_dir}" + (f", /etc/molecule-connect/{name} and the user {name}" if system else ""))


@service.command
@service_options
def start(name: str, system: bool) -> None:
    """Start the service."""
    _manager(name, system, "start").start(name)
    _say(f"{name} is running")


@service.command
@service_options
def stop(name: str, system: bool) -> None:
    """Stop the service: finish the messages in progress, within --grace. It starts again at the next boot or login."""
    _manager(name, system, "stop").stop(name)
    _say(f"{name} is stopped")


@service.command
@service_options
@click.pass_context
def status(ctx: click.Context, name: str, system: bool) -> None:
    """Show whether the service runs, and the workspaces that it serves.

    The exit code is that of 'molecule status': 0 if all is well.
    """
    from molecule_connect.cli.status import status as workspaces_status

    manager = _manager(name, system)
    state_dir = manager.state_dir(name)
    headline, facts = manager.description(name)
    _say(one_line(headline, 400))
    for title, value in facts:
        _say(f"    {title:10} {one_line(value, 400)}")
    if not _is_readable(state_dir):
        raise ConfigError(f"the state folder {state_dir} can't be read", hint="run it with sudo to see the workspaces")
    _say("")
    ctx.invoke(workspaces_status, workspace_id=None, as_json=False, state_dir=str(state_dir), profile=None)


@service.command(context_settings={"ignore_unknown_options": True})
@service_options
@click.option("-f", "--follow", is_flag=True, help="Show new lines as they are written.")
@click.option("-n", "--lines", default="50", show_default=True, metavar="N", help="Show the last N lines.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTION]...")
def logs(name: str, system: bool, follow: bool, lines: str, options: Sequence[str]) -> None:
    """Show the log of the service. Other options are passed to journalctl, on macOS to tail."""
    flags = ["-n", lines, *(["-f"] if follow else []), *options]
    _manager(name, system).become_logs(name, flags)


@service.command
@service_options
@click.option("--pid", type=int, hidden=True, help="The process to notify; for the unit.")
@click.option("--state-dir", type=click.Path(path_type=Path), hidden=True, help="Its state folder.")
def reload(name: str, system: bool, pid: int | None, state_dir: Path | None) -> None:
    """Let the service read its settings again. Fails, and says why, if they are refused."""
    from molecule_connect.worker.status_file import ReloadFile

    if pid is not None and state_dir is not None:
        _reload_process(pid, ReloadFile(state_dir, pid))
        return
    manager = _manager(name, system, "reload")
    reason = manager.reload(name)
    if reason:
        found = ReloadFile(manager.state_dir(name), manager.pid(name)).read()
        _report_faults(found)
        raise ConfigError(f"{name} did not reload: {reason}", hint="see 'molecule service logs'")
    _say(f"{name} uses the settings")


def _manager(name: str, system: bool, action: str = "") -> "Systemd | Launchd":
    """The manager of a service that was installed.

    Args:
        action: The command, if only root may do it for a service of the machine.

    Raises:
        ConfigError: There is no such service, or this user may not change it.
    """
    from molecule_connect.service.installing import check_root
    from molecule_connect.service.launchd import Launchd
    from molecule_connect.service.machine import Machine, SystemCommands
    from molecule_connect.service.plan import check_name
    from molecule_connect.service.systemd import Systemd

    check_name(name)
    machine, commands = Machine.this(), SystemCommands()
    manager: Systemd | Launchd
    if machine.platform == "darwin":
        _refuse_system(system)
        manager = Launchd(machine, commands)
    else:
        if system and action:
            check_root(machine, [action, "--system", "--name", name])
        manager = Systemd(machine, commands, system)
    manager.state_dir(name)
    return manager


def _reload_process(pid: int, file: "ReloadFile") -> None:
    """Send SIGHUP to a process, and wait for the outcome.

    Raises:
        ConfigError: It refused the list or blocks of it, or doesn't reload.
    """
    before = file.read()
    if before is None:
        raise ConfigError(f"process {pid} does not reload its settings", hint="restart it instead")
    os.kill(pid, signal.SIGHUP)
    while (found := file.read()) is not None and found.number == before.number:
        time.sleep(_LOOK)
    if found is None:
        raise ConfigError(f"process {pid} ended during the reload", hint="see its log")
    _report_faults(found)


def _report_faults(outcome: "Reload | None") -> None:
    """Show why a reload was refused.

    Raises:
        ConfigError: It was.
    """
    if outcome is not None and outcome.faults:
        for fault in outcome.faults:
            click.echo(f"error: {one_line(fault, 1000)}", err=True)
        raise ConfigError(outcome.text, hint="correct the file, then reload it again; what is refused was not changed")


def _is_readable(folder: Path) -> bool:
    """Whether *folder* can be read, or doesn't exist yet."""
    try:
        return not folder.exists() or os.access(folder, os.R_OK | os.X_OK)
    except OSError:
        return False


def _refuse_system(system: bool) -> None:
    if system:
        raise ConfigError("--system needs systemd", hint="omit it: on macOS, the service runs while you are logged in")


def _say(line: str) -> None:
    click.echo(line)


def _confirm(question: str) -> bool:
    return click.confirm(question, default=True)
