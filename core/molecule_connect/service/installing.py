"""Install services: plan, check the settings as the service sees them, write the files, start."""

import shlex
from collections.abc import Callable, Sequence

import attrs

from molecule_connect.config.saved import CONFIG_NAME
from molecule_connect.console.sanitize import one_line
from molecule_connect.errors import ConfigError
from molecule_connect.service import units
from molecule_connect.service.launchd import Launchd
from molecule_connect.service.machine import Commands, Machine
from molecule_connect.service.plan import (
    ServicePlan,
    check_name,
    check_system_environment,
    find_config,
    plan_system_service,
    plan_user_service,
)
from molecule_connect.service.systemd import SystemAccount, Systemd

LINGER = "Services of this user stop when you log out, and don't start at boot."


@attrs.frozen(kw_only=True)
class Order:
    """What to install.

    Attributes:
        config, profile, state_dir: The values of the flags.
        starts: Start the service, now and at each boot or login.
        say: Shows a line.
        confirm: Asks a question; None if no one can answer.
    """

    name: str
    config: str | None = None
    profile: str | None = None
    state_dir: str | None = None
    starts: bool = True
    say: Callable[[str], None]
    confirm: Callable[[str], bool] | None = None


def install_user_unit(order: Order, machine: Machine, commands: Commands) -> None:
    """Install a unit of systemd for this user.

    Raises:
        ConfigError: It would not work after a reboot, or could not be started.
    """
    check_name(order.name)
    systemd = Systemd(machine, commands)
    version = systemd.version(must_run=order.starts)
    plan = plan_user_service(machine, order.name, config=order.config, profile=order.profile, state_dir=order.state_dir)
    systemd.check_free(order.name)
    login = {"HOME": str(machine.home), "USER": machine.user, "LOGNAME": machine.user}
    dry_run = [*plan.command, "--dry-run"]
    done = commands.run(dry_run, environ={**login, **plan.environment}, cwd=plan.cwd if plan.cwd.is_dir() else None)
    _check_dry_run(done.code, done.error, order)
    _write_unit(systemd, plan, version, order)
    if order.starts:
        systemd.start(order.name, enable=True)
        _say_started(systemd, order, "when you log in")
    _offer_linger(systemd, order)
    _say_next_steps(order, "")


def install_system_unit(order: Order, machine: Machine, commands: Commands) -> None:
    """Install a unit of systemd for the machine, with a user of its own.

    Raises:
        ConfigError: It would not work after a reboot, could not be started, or this user isn't root.
    """
    check_name(order.name)
    if order.state_dir is not None:
        raise ConfigError(
            f"--state-dir can't be combined with --system: the state is kept in /var/lib/{order.name}", hint="omit it"
        )
    check_root(machine, _arguments(order, machine))
    systemd = Systemd(machine, commands, system=True)
    version = systemd.version(must_run=order.starts)
    try:
        check_system_environment(machine)
    except ConfigError as exc:
        if order.starts:
            raise
        order.say(f"warning: {exc}; {exc.hint}")
    config, _ = find_config(machine, order.config, order.profile)
    systemd.check_free(order.name)
    account = SystemAccount(machine, commands, order.name)
    account.create()
    readable = account.take_settings(config)
    if readable != config:
        order.say(f"copied the settings to {readable}, which the service reads from now on")
    plan = plan_system_service(machine, order.name, readable)
    pairs = [f"{name}={value}" for name, value in plan.environment.items()]
    as_user = ["runuser", "-u", order.name, "--", "env", "-i", *pairs]
    done = commands.run([*as_user, *plan.command, "--dry-run"], cwd=account.home / "work")
    _check_dry_run(done.code, done.error, order, f"; the files need the group {order.name} and mode 640")
    _write_unit(systemd, plan, version, order)
    if order.starts:
        systemd.start(order.name, enable=True)
        _say_started(systemd, order, "at each boot")
    _say_next_steps(order, " --system")


def install_agent(order: Order, machine: Machine, commands: Commands) -> None:
    """Install an agent of launchd for this user.

    Raises:
        ConfigError: It would not work after a reboot, or could not be started.
    """
    check_name(order.name)
    launchd = Launchd(machine, commands)
    plan = plan_user_service(machine, order.name, config=order.config, profile=order.profile, state_dir=order.state_dir)
    login = {"HOME": str(machine.home), "USER": machine.user, "LOGNAME": machine.user}
    done = commands.run([*plan.command, "--dry-run"], environ={**login, **plan.environment}, cwd=plan.cwd)
    _check_dry_run(done.code, done.error, order)
    launchd.write(plan)
    order.say(f"wrote {launchd.plist_path(order.name)}; it runs: {shlex.join(plan.command)}")
    if order.starts:
        launchd.start(order.name)
        order.say(f"{order.name} is running, and starts again after a crash and when you log in")
    _say_next_steps(order, "")


def check_root(machine: Machine, arguments: Sequence[str]) -> None:
    """Check that this user may change services of the machine.

    Args:
        arguments: Those of this command, for the command line with sudo.

    Raises:
        ConfigError: It isn't root.
    """
    if machine.uid != 0:
        command = [str(machine.python), "-m", "molecule_connect", "service", *arguments]
        raise ConfigError("a service of the machine belongs to root", hint=f"run: sudo {shlex.join(command)}")


def _arguments(order: Order, machine: Machine) -> list[str]:
    """The arguments of ``install`` for root, who has other saved settings and another working directory."""
    arguments = ["install", "--system"]
    if order.name != "molecule-connect":
        arguments += ["--name", order.name]
    try:
        config, _ = find_config(machine, order.config, order.profile)
    except ConfigError:
        config = machine.home / ".config/molecule" / CONFIG_NAME
    return [*arguments, "--config", str(config), *([] if order.starts else ["--no-start"])]


def _check_dry_run(code: int, output: str, order: Order, more: str = "") -> None:
    """Show the problems of ``connect --dry-run``. *more* is added to the hint.

    Raises:
        ConfigError: The service could not start.
    """
    if code == 0:
        return
    for line in output.splitlines():
        order.say(f"    {line}")
    text = "with these settings, the service can't start: see the errors above"
    if order.starts:
        raise ConfigError(text, hint=f"correct them, then install it again; nothing was started{more}")
    order.say(f"warning: {text}")


def _write_unit(systemd: Systemd, plan: ServicePlan, version: int, order: Order) -> None:
    text = units.unit_text(plan, version)
    is_new = systemd.write(plan, text)
    order.say(f"{'wrote' if is_new else 'unchanged:'} {systemd.unit_path(plan.name)}")
    for line in text.splitlines():
        order.say(f"    {line}")


def _say_started(systemd: Systemd, order: Order, when: str) -> None:
    order.say(f"{order.name} is running, and starts again after a crash and {when}")
    if status := systemd.facts(order.name).get("StatusText"):
        order.say(f"status: {one_line(status, 400)}")


def _offer_linger(systemd: Systemd, order: Order) -> None:
    if systemd.lingers():
        return
    command = f"loginctl enable-linger {shlex.quote(systemd.machine.user)}"
    if order.confirm is not None and order.confirm(f"{LINGER} Change that with '{command}'?"):
        systemd.enable_linger()
        order.say("it keeps running after you log out, and starts at boot")
    else:
        order.say(f"{LINGER} To change that, run: {command}")


def _say_next_steps(order: Order, system: str) -> None:
    name = "" if order.name == "molecule-connect" else f" --name {order.name}"
    verbs = ("status", "logs -f") if order.starts else ("start", "uninstall")
    first, second = (f"molecule service {verb}{system}{name}" for verb in verbs)
    order.say(f"next: {first}, {second}")
