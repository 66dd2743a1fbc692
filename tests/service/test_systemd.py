"""Installing units: which files are written, and how the programs of systemd are called."""

import os
import pwd
from pathlib import Path

import attrs
import pytest
from tests.service.conftest import BecameError, FakeCommands, Ran, Told, save

from molecule_connect.errors import ConfigError
from molecule_connect.service.installing import install_system_unit, install_user_unit
from molecule_connect.service.machine import Machine, Result
from molecule_connect.service.systemd import SystemAccount, Systemd

FAILED = Result(code=1, error="no luck")


def unit_of(machine: Machine, name: str = "molecule-connect") -> Path:
    return machine.home / f".config/systemd/user/{name}.service"


# A service of this user


def test_install_writes_starts_and_enables(machine: Machine, commands: FakeCommands, told: Told) -> None:
    config = save(machine)
    install_user_unit(told.order(), machine, commands)
    text = unit_of(machine).read_text()
    assert f"--config {config} " in text
    changes = [line for line in commands.lines("systemctl") if " show " not in line]
    assert changes == [
        "--user daemon-reload",
        "--user enable molecule-connect.service",
        "--user restart molecule-connect.service",
    ]
    assert unit_of(machine).stat().st_mode & 0o777 == 0o644
    # It shows what it wrote, and where.
    assert f"wrote {unit_of(machine)}" in told.lines
    assert all(f"    {line}" in told.lines for line in text.splitlines())


def test_install_again_updates_the_unit(machine: Machine, commands: FakeCommands, told: Told) -> None:
    config = save(machine)
    install_user_unit(told.order(), machine, commands)
    config.write_text(config.read_text() + "grace = 600\n")
    install_user_unit(told.order(), machine, commands)
    assert "TimeoutStopSec=610" in unit_of(machine).read_text()
    assert commands.lines("systemctl").count("--user restart molecule-connect.service") == 2
    install_user_unit(told.order(), machine, commands)
    assert f"unchanged: {unit_of(machine)}" in told.lines


def test_checks_the_settings_as_the_service_sees_them(machine: Machine, commands: FakeCommands, told: Told) -> None:
    save(machine)
    noisy = attrs.evolve(machine, environ={**machine.environ, "SECRET": "x", "PYTHONPATH": "/evil"})
    install_user_unit(told.order(), noisy, commands)
    number = next(number for number, command in enumerate(commands.ran) if command[-1] == "--dry-run")
    environ = commands.environs[number]
    assert environ is not None
    assert sorted(environ) == ["HOME", "LOGNAME", "PATH", "USER"]
    assert commands.ran[number][1:4] == ("-P", "-m", "molecule_connect")


def test_a_failed_check_starts_nothing(machine: Machine, commands: FakeCommands, told: Told) -> None:
    save(machine)
    commands.answers["--dry-run"] = Result(code=2, error="ERROR claude is not installed")
    with pytest.raises(ConfigError, match="can't start"):
        install_user_unit(told.order(), machine, commands)
    assert not unit_of(machine).exists()
    assert "    ERROR claude is not installed" in told.lines
    install_user_unit(told.order(starts=False), machine, commands)
    assert unit_of(machine).exists()


def test_without_a_start_nothing_is_changed_in_systemd(machine: Machine, commands: FakeCommands, told: Told) -> None:
    save(machine)
    install_user_unit(told.order(starts=False), machine, commands)
    assert not [line for line in commands.lines("systemctl") if "show" not in line]
    assert any("molecule service start" in line for line in told.lines)


def test_several_services_coexist(machine: Machine, commands: FakeCommands, told: Told) -> None:
    save(machine)
    install_user_unit(told.order(), machine, commands)
    install_user_unit(told.order(name="second", state_dir="state-2"), machine, commands)
    assert f"--state-dir {machine.cwd}/state-2" in unit_of(machine, "second").read_text()
    assert unit_of(machine).exists()
    with pytest.raises(ConfigError, match="can't be the name"):
        install_user_unit(told.order(name="../evil"), machine, commands)


def test_never_replaces_a_foreign_unit(machine: Machine, commands: FakeCommands, told: Told) -> None:
    save(machine)
    unit_of(machine).parent.mkdir(parents=True)
    unit_of(machine).write_text("[Service]\nExecStart=/bin/other\n")
    with pytest.raises(ConfigError, match="was not written by"):
        install_user_unit(told.order(), machine, commands)
    assert "/bin/other" in unit_of(machine).read_text()
    with pytest.raises(ConfigError, match="was not written by"):
        Systemd(machine, commands).state_dir("molecule-connect")


def test_never_shadows_another_service(machine: Machine, commands: FakeCommands, told: Told) -> None:
    save(machine)
    commands.answers["show pulseaudio.service"] = Result(
        code=0, output="LoadState=loaded\nFragmentPath=/usr/lib/systemd/user/pulseaudio.service"
    )
    with pytest.raises(ConfigError, match="another service pulseaudio"):
        install_user_unit(told.order(name="pulseaudio"), machine, commands)


def test_a_new_systemd_gets_notify_reload(machine: Machine, commands: FakeCommands, told: Told) -> None:
    save(machine)
    commands.answers["--property=Version"] = Result(code=0, output="257.9-1")
    install_user_unit(told.order(), machine, commands)
    assert "\nType=notify-reload\n" in unit_of(machine).read_text()


# Machines without systemd


@pytest.mark.parametrize(
    ("is_booted", "words"), [(False, "systemd doesn't run on this machine"), (True, "Failed to connect to bus")]
)
def test_without_systemd_says_what_else(
    machine: Machine, commands: FakeCommands, told: Told, is_booted: bool, words: str
) -> None:
    save(machine)
    if not is_booted:
        (machine.root / "run/systemd/system").rmdir()
    commands.answers["--property=Version"] = Result(code=1, error="Failed to connect to bus: No medium found")
    with pytest.raises(ConfigError, match=words) as caught:
        install_user_unit(told.order(), machine, commands)
    assert ("molecule connect" in caught.value.hint) is not is_booted
    assert ("--system" in caught.value.hint) is is_booted
    assert not unit_of(machine).exists()
    commands.answers["systemctl --version"] = Result(code=127, error="systemctl: not found")
    install_user_unit(told.order(starts=False), machine, commands)
    assert "\nType=notify\n" in unit_of(machine).read_text()


def test_the_manager_is_found_without_a_session(machine: Machine, commands: FakeCommands) -> None:
    runtime = machine.root / "run/user/1000"
    runtime.mkdir(parents=True)
    Systemd(machine, commands).version()
    (environ,) = commands.environs
    assert environ is not None
    assert environ["XDG_RUNTIME_DIR"] == str(runtime)


# Lingering


def test_offers_lingering(machine: Machine, commands: FakeCommands, told: Told) -> None:
    save(machine)
    install_user_unit(told.order(answer=True), machine, commands)
    assert "loginctl enable-linger ann" in told.asked[0]
    assert commands.lines("loginctl")[-1] == "enable-linger ann"


@pytest.mark.parametrize("answer", [None, False])
def test_prints_how_to_linger(machine: Machine, commands: FakeCommands, told: Told, answer: bool | None) -> None:
    save(machine)
    install_user_unit(told.order(answer=answer), machine, commands)
    assert any(line.endswith("run: loginctl enable-linger ann") for line in told.lines)
    assert "enable-linger ann" not in commands.lines("loginctl")


def test_a_user_who_lingers_is_not_asked(machine: Machine, commands: FakeCommands, told: Told) -> None:
    save(machine)
    commands.answers["Linger"] = Result(code=0, output="yes")
    install_user_unit(told.order(answer=True), machine, commands)
    assert told.asked == []
    assert not [line for line in told.lines if "loginctl" in line]


def test_a_refused_linger_names_sudo(machine: Machine, commands: FakeCommands, told: Told) -> None:
    save(machine)
    commands.answers["enable-linger"] = FAILED
    with pytest.raises(ConfigError, match="no luck") as caught:
        install_user_unit(told.order(answer=True), machine, commands)
    assert "sudo loginctl enable-linger ann" in caught.value.hint


# Using a service


@pytest.fixture
def installed(machine: Machine, commands: FakeCommands, told: Told) -> Systemd:
    save(machine)
    install_user_unit(told.order(), machine, commands)
    commands.ran.clear()
    return Systemd(machine, commands)


def test_start_stop_and_uninstall(installed: Systemd, commands: FakeCommands, machine: Machine) -> None:
    installed.start("molecule-connect")
    installed.stop("molecule-connect")
    installed.uninstall("molecule-connect")
    assert [line for line in commands.lines("systemctl") if " show " not in line] == [
        "--user start molecule-connect.service",
        "--user stop molecule-connect.service",
        "--user disable --now molecule-connect.service",
        "--user daemon-reload",
        "--user reset-failed molecule-connect.service",
    ]
    assert not unit_of(machine).exists()
    assert (machine.home / ".config/molecule/config.toml").exists()
    with pytest.raises(ConfigError, match="there is no service molecule-connect"):
        installed.state_dir("molecule-connect")


def test_uninstall_works_without_a_running_systemd(
    installed: Systemd, commands: FakeCommands, machine: Machine
) -> None:
    commands.answers["--property=Version"] = Result(code=1, error="Failed to connect to bus")
    commands.answers["disable"] = FAILED
    installed.uninstall("molecule-connect")
    assert not unit_of(machine).exists()


def test_a_failed_start_says_why(installed: Systemd, commands: FakeCommands) -> None:
    commands.answers["systemctl --user start"] = Result(code=1, error="Job failed.\nSee more")
    commands.answers["journalctl"] = Result(
        code=0, output="x INFO starting\nerror: ws_1 is served by process 7\nwhat to do: stop it"
    )
    with pytest.raises(ConfigError, match="did not start: ws_1 is served by process 7") as caught:
        installed.start("molecule-connect")
    assert caught.value.hint == "stop it"
    commands.answers["journalctl"] = Result(code=0)
    with pytest.raises(ConfigError, match="did not start: Job failed") as caught:
        installed.start("molecule-connect")
    assert "journalctl --user -u molecule-connect.service" in caught.value.hint


@pytest.mark.parametrize(
    ("facts", "headline", "more"),
    [
        (
            "ActiveState=active\nSubState=running\nMainPID=7\nUnitFileState=enabled\nStatusText=serving ws_1\n"
            "NRestarts=2",
            "molecule-connect: active (running), process 7, starts when you log in, until you log out",
            [("status", "serving ws_1"), ("restarts", "2")],
        ),
        (
            "ActiveState=failed\nSubState=failed\nMainPID=0\nResult=exit-code\nExecMainStatus=2\nStatusText=old",
            "molecule-connect: failed (failed), isn't started automatically",
            [("failed", "exit-code, last exit code 2")],
        ),
        ("", "molecule-connect: unknown (unknown), isn't started automatically", []),
    ],
)
def test_describes_a_service(
    installed: Systemd, commands: FakeCommands, facts: str, headline: str, more: list[tuple[str, str]]
) -> None:
    commands.answers["show molecule-connect"] = Result(code=0, output=facts)
    found, lines = installed.description("molecule-connect")
    assert found == headline
    assert lines == [*more, ("unit", str(installed.unit_path("molecule-connect")))]


def test_logs_become_journalctl(installed: Systemd, commands: FakeCommands) -> None:
    with pytest.raises(BecameError):
        installed.become_logs("molecule-connect", ["-n", "50", "-f"])
    assert commands.ran == [("journalctl", "--user", "-u", "molecule-connect.service", "-n", "50", "-f")]


# A service of the machine


@pytest.fixture
def server(machine: Machine) -> Machine:
    """A machine on which root installs."""
    return attrs.evolve(machine, uid=0, user="root")


@pytest.fixture
def account(server: Machine, commands: FakeCommands) -> tuple[SystemAccount, list[tuple[str, int, int]]]:
    """The account of the service, created by useradd, and the files given to it."""
    users: dict[str, pwd.struct_passwd] = {}
    given: list[tuple[str, int, int]] = []

    def useradd(command: Ran) -> None:
        if command[0] == "useradd":
            home = command[command.index("--home-dir") + 1]
            users[command[-1]] = pwd.struct_passwd((command[-1], "x", 990, 991, "", home, "/usr/sbin/nologin"))

    commands.on_run = useradd
    found = SystemAccount(
        server,
        commands,
        "molecule-connect",
        find=users.__getitem__,
        chown=lambda path, user, group: given.append((str(path.relative_to(server.root)), user, group)),
        homes=(server.home.parent,),
    )
    return found, given


def test_needs_root_and_names_sudo(machine: Machine, commands: FakeCommands, told: Told) -> None:
    config = save(machine)
    with pytest.raises(ConfigError, match="root") as caught:
        install_system_unit(told.order(name="second"), machine, commands)
    assert caught.value.hint == (
        f"run: sudo {machine.python} -m molecule_connect service install --system --name second --config {config}"
    )
    assert commands.ran == []


def test_the_account_has_its_own_home(
    account: tuple[SystemAccount, list[tuple[str, int, int]]], commands: FakeCommands, server: Machine
) -> None:
    found, given = account
    found.create()
    found.create()
    assert [line.split()[-1] for line in commands.lines("useradd")] == ["molecule-connect"]
    assert "--home-dir /var/lib/molecule-connect" in commands.lines("useradd")[0]
    assert ("var/lib/molecule-connect/state", 990, 991) in given
    assert (server.root / "var/lib/molecule-connect").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("uid", "home"), [(33, "/var/www"), (0, "/var/lib/molecule-connect")])
def test_never_uses_another_account(server: Machine, commands: FakeCommands, uid: int, home: str) -> None:
    user = pwd.struct_passwd(("molecule-connect", "x", uid, uid, "", home, "/bin/sh"))
    with pytest.raises(ConfigError, match="there is a user molecule-connect already"):
        SystemAccount(server, commands, "molecule-connect", find=lambda name: user).create()
    assert commands.ran == []


def test_copies_settings_out_of_a_home(
    account: tuple[SystemAccount, list[tuple[str, int, int]]], server: Machine
) -> None:
    found, given = account
    found.create()
    config = save(server)
    copied = found.take_settings(config)
    assert copied == Path("/etc/molecule-connect/molecule-connect/config.toml")
    folder = server.root / "etc/molecule-connect/molecule-connect"
    assert (folder / "config.toml").read_text() == config.read_text()
    assert (folder / "token").read_text() == "tok-1234567"
    assert (folder / "token").stat().st_mode & 0o777 == 0o640
    assert ("etc/molecule-connect/molecule-connect/token", 0, 991) in given


def test_uses_other_settings_where_they_are(
    account: tuple[SystemAccount, list[tuple[str, int, int]]], server: Machine
) -> None:
    found, _ = account
    found.create()
    config = save(server, folder=server.root / "srv")
    assert found.take_settings(config) == config


@pytest.mark.parametrize("name", ["../other", "HOME/token", "$VAR/token", "~/token"])
def test_refuses_files_that_cannot_be_copied(
    account: tuple[SystemAccount, list[tuple[str, int, int]]], server: Machine, name: str
) -> None:
    found, _ = account
    found.create()
    config = save(server)
    config.write_text(config.read_text().replace('"token"', f'"{name}"').replace("HOME", str(server.home), 1))
    with pytest.raises(ConfigError, match="which the service can't read"):
        found.take_settings(config)


def test_refuses_to_copy_an_include(account: tuple[SystemAccount, list[tuple[str, int, int]]], server: Machine) -> None:
    found, _ = account
    found.create()
    config = save(server)
    config.write_text(f'include = "conf.d/*.toml"\n{config.read_text()}')
    with pytest.raises(ConfigError, match="include"):
        found.take_settings(config)


def test_copies_the_file_of_a_secret(
    account: tuple[SystemAccount, list[tuple[str, int, int]]], server: Machine
) -> None:
    found, _ = account
    found.create()
    config = save(server)
    config.write_text(config.read_text().replace('token_file = "token"', 'token = {file = "token"}'))
    found.take_settings(config)
    assert (server.root / "etc/molecule-connect/molecule-connect/token").exists()


def test_never_copies_through_a_link(
    account: tuple[SystemAccount, list[tuple[str, int, int]]], server: Machine
) -> None:
    found, _ = account
    found.create()
    config = save(server)
    secret = server.root / "shadow"
    secret.write_text("secret")
    (config.parent / "token").unlink()
    (config.parent / "token").symlink_to(secret)
    with pytest.raises(ConfigError, match="cannot be read"):
        found.take_settings(config)
    assert not (server.root / "etc/molecule-connect/molecule-connect/token").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_never_copies_a_file_of_another_user(
    account: tuple[SystemAccount, list[tuple[str, int, int]]], server: Machine
) -> None:
    found, _ = account
    found.create()
    config = save(server)
    os.chown(config, 1234, 1234)
    with pytest.raises(ConfigError, match="belongs to user root"):
        found.take_settings(config)


def test_open_settings_are_not_copied(
    account: tuple[SystemAccount, list[tuple[str, int, int]]], server: Machine
) -> None:
    found, _ = account
    found.create()
    config = save(server)
    (config.parent / "token").chmod(0o644)
    with pytest.raises(ConfigError, match="open to others"):
        found.take_settings(config)
