"""Installing an agent of launchd."""

import plistlib
from pathlib import Path

import attrs
import pytest
from tests.service.conftest import BecameError, FakeCommands, Told, save

from molecule_connect.errors import ConfigError
from molecule_connect.service.installing import install_agent
from molecule_connect.service.launchd import Launchd
from molecule_connect.service.machine import Machine, Result

PRINT = """gui/501/molecule-connect = {
\tactive count = 1
\tpath = /Users/ann/Library/LaunchAgents/molecule-connect.plist
\tstate = running
\truns = 2
\tpid = 123
\tlast exit code = 7
\tendpoints = {
\t\tstate = another
\t\tpid = 9
\t}
}"""


@pytest.fixture
def mac(machine: Machine) -> Machine:
    return attrs.evolve(machine, platform="darwin", uid=501)


def agent_of(machine: Machine) -> Path:
    return machine.home / "Library/LaunchAgents/molecule-connect.plist"


def test_install_loads_the_agent(mac: Machine, commands: FakeCommands, told: Told) -> None:
    config = save(mac)
    install_agent(told.order(), mac, commands)
    document = plistlib.loads(agent_of(mac).read_bytes())
    assert document["ProgramArguments"][5:7] == ["--config", str(config)]
    assert document["StandardErrorPath"] == str(mac.home / "Library/Logs/molecule-connect.log")
    assert (mac.home / "Library/Logs").is_dir()
    assert commands.lines("launchctl") == [
        "bootout gui/501/molecule-connect",
        "enable gui/501/molecule-connect",
        f"bootstrap gui/501 {agent_of(mac)}",
    ]
    assert commands.lines("systemctl") == []


def test_install_without_a_start_only_writes(mac: Machine, commands: FakeCommands, told: Told) -> None:
    save(mac)
    install_agent(told.order(starts=False), mac, commands)
    assert agent_of(mac).exists()
    assert commands.lines("launchctl") == []


def test_a_refused_agent_is_an_error(mac: Machine, commands: FakeCommands, told: Told) -> None:
    save(mac)
    commands.answers["bootstrap"] = Result(code=5, error="Bootstrap failed: 5: Input/output error")
    with pytest.raises(ConfigError, match="Bootstrap failed"):
        install_agent(told.order(), mac, commands)


def test_uses_what_was_installed(mac: Machine, commands: FakeCommands, told: Told) -> None:
    save(mac)
    install_agent(told.order(), mac, commands)
    commands.ran.clear()
    commands.answers["print"] = Result(code=0, output=PRINT)
    launchd = Launchd(mac, commands)
    assert launchd.state_dir("molecule-connect") == mac.home / ".config/molecule/state"
    assert launchd.description("molecule-connect")[0] == (
        "molecule-connect: state running, runs 2, last exit code 7, process 123"
    )
    commands.ran.clear()
    launchd.stop("molecule-connect")
    launchd.reload("molecule-connect")
    with pytest.raises(BecameError):
        launchd.become_logs("molecule-connect", ["-n", "50"])
    launchd.uninstall("molecule-connect")
    assert [" ".join(command) for command in commands.ran] == [
        "launchctl bootout gui/501/molecule-connect",
        "launchctl kill SIGHUP gui/501/molecule-connect",
        f"tail -n 50 {mac.home}/Library/Logs/molecule-connect.log",
        "launchctl bootout gui/501/molecule-connect",
    ]
    assert not agent_of(mac).exists()
    commands.answers["print"] = Result(code=113, error="Could not find service")
    assert launchd.description("molecule-connect")[0] == "molecule-connect: not loaded"


@pytest.mark.parametrize(
    "content", ["not a plist", plistlib.dumps({"Label": "x", "ProgramArguments": ["/bin/x"]}).decode()]
)
def test_never_replaces_a_foreign_agent(mac: Machine, commands: FakeCommands, told: Told, content: str) -> None:
    save(mac)
    agent_of(mac).parent.mkdir(parents=True)
    agent_of(mac).write_text(content)
    with pytest.raises(ConfigError, match=r"was not written by|cannot be read"):
        install_agent(told.order(), mac, commands)
    assert agent_of(mac).read_text() == content


def test_without_an_agent_names_install(mac: Machine, commands: FakeCommands) -> None:
    with pytest.raises(ConfigError, match="there is no service") as caught:
        Launchd(mac, commands).state_dir("molecule-connect")
    assert "molecule service install" in caught.value.hint
