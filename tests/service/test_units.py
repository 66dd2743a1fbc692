"""The unit of systemd and the agent of launchd, checked by the programs that read them."""

import os
import plistlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.service.conftest import a_plan

from molecule_connect.errors import ConfigError
from molecule_connect.service.plan import ServicePlan
from molecule_connect.service.units import facts_of, is_ours, plist, unit_text

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")
HOSTILE = "/home/a b%n$HOME\"q'\\x;#é"


def of_the_machine() -> ServicePlan:
    home = Path("/var/lib/molecule-connect")
    return a_plan(system=True, config=Path("/etc/fleet.toml"), state_dir=home / "state", cwd=home / "work")


def analyze(tmp_path: Path, text: str, *arguments: str) -> tuple[int, str]:
    file = tmp_path / "molecule-connect.service"
    file.write_text(text)
    command = [str(ANALYZE), *arguments, str(file)]
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def version_here() -> int:
    found = re.search(r"\d+", subprocess.run([str(ANALYZE), "--version"], capture_output=True, text=True).stdout)
    return int(found[0]) if found else 0


def lines(plan: ServicePlan, version: int = 252) -> dict[str, str]:
    return dict(line.split("=", 1) for line in unit_text(plan, version).splitlines() if "=" in line and line[0] != "#")


@needs_systemd
@pytest.mark.parametrize("system", [False, True], ids=["user", "system"])
def test_systemd_accepts_the_unit(tmp_path: Path, system: bool) -> None:
    plan = of_the_machine() if system else a_plan()
    scope = [] if system else ["--user"]
    assert analyze(tmp_path, unit_text(plan, version_here()), *scope, "verify") == (0, "")


@needs_systemd
def test_the_system_unit_is_hardened(tmp_path: Path) -> None:
    _, output = analyze(tmp_path, unit_text(of_the_machine(), 252), "security", "--offline=true")
    found = re.search(r"Overall exposure level.*?: ([\d.]+)", output)
    assert found is not None
    assert float(found[1]) <= 3.0


@needs_systemd
def test_systemd_accepts_hostile_paths(tmp_path: Path) -> None:
    program = tmp_path / "a b%n;#é"
    program.mkdir()
    (program / "python").symlink_to("/bin/true")
    plan = a_plan(
        python=program / "python",
        config=Path(f"{HOSTILE}/c.toml"),
        cwd=Path(f"{HOSTILE} \\"),
        environment={"PATH": HOSTILE},
    )
    assert analyze(tmp_path, unit_text(plan, version_here()), "--user", "verify") == (0, "")


def test_a_path_is_one_literal_word() -> None:
    plan = a_plan(config=Path(HOSTILE), environment={"PATH": HOSTILE})
    quoted = '"/home/a b%%n$$HOME\\"q\'\\\\x;#é"'
    assert f" --config {quoted} --state-dir " in lines(plan)["ExecStart"]
    # Variables are expanded in commands only.
    assert lines(plan)["Environment"] == '"PATH=' + quoted[1:].replace("$$", "$")


@pytest.mark.parametrize("character", ["\n", "\r", "\x00", "\x1b"])
@pytest.mark.parametrize("field", ["config", "state_dir", "cwd", "python"])
def test_refuses_control_characters_in_paths(field: str, character: str) -> None:
    path: Any = Path(f"/home/x{character}ExecStartPre=/bin/evil")
    with pytest.raises(ConfigError, match="control character"):
        unit_text(a_plan(**{field: path}), 252)


def test_starts_this_environment_with_absolute_paths() -> None:
    words = lines(a_plan())["ExecStart"].split()
    assert words == [
        "/usr/bin/python3",
        "-P",
        "-m",
        "molecule_connect",
        "connect",
        "--config",
        "/home/ann/.config/molecule/config.toml",
        "--state-dir",
        "/home/ann/.config/molecule/state",
    ]


@pytest.mark.parametrize("version", [0, 252, 253, 257])
def test_notify_reload_where_systemd_knows_it(version: int) -> None:
    found = lines(a_plan(), version)
    assert found["Type"] == ("notify-reload" if version >= 253 else "notify")
    assert "service reload --pid $MAINPID --state-dir" in found["ExecReload"]


def test_restarts_unless_a_person_is_needed() -> None:
    found = lines(a_plan())
    assert found["Restart"] == "on-failure"
    assert found["RestartPreventExitStatus"] == "2 4 5"
    assert found["StartLimitIntervalSec"] == "0"
    assert found["OOMPolicy"] == "continue"
    assert found["KillMode"] == "mixed"
    assert int(found["WatchdogSec"]) > 60


def test_a_stop_has_time_for_the_grace_period() -> None:
    assert lines(a_plan(stop_seconds=610.0))["TimeoutStopSec"] == "610"
    assert lines(a_plan())["TimeoutStopSec"] == "90"


def test_the_system_unit_has_a_user_and_state_of_its_own() -> None:
    found = lines(of_the_machine())
    assert (found["User"], found["NoNewPrivileges"], found["ProtectHome"]) == ("molecule-connect", "yes", "yes")
    assert found["StateDirectory"] == "molecule-connect molecule-connect/state molecule-connect/work"
    assert found["StateDirectoryMode"] == "0700"
    assert found["WantedBy"] == "multi-user.target"
    assert lines(a_plan())["WantedBy"] == "default.target"


def test_a_unit_is_recognized_with_its_facts() -> None:
    text = unit_text(a_plan(), 252)
    assert is_ours(text)
    assert facts_of(text)["state_dir"] == "/home/ann/.config/molecule/state"
    assert not is_ours("[Unit]\nDescription=another\n")
    for broken in ("", "# molecule-connect: {", "# molecule-connect: []"):
        assert facts_of(broken) == {}


def test_plistlib_reads_the_agent() -> None:
    plan = a_plan(python=Path('/Users/ann/a <b> & "c"/python'), stop_seconds=610.0)
    found = plistlib.loads(plist(plan, "/Users/ann/Library/Logs/molecule-connect.log"))
    assert found["Label"] == "molecule-connect"
    assert found["ProgramArguments"] == plan.command
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["RunAtLoad"] is True
    assert found["ThrottleInterval"] == 30
    assert found["ExitTimeOut"] == 610
    assert found["EnvironmentVariables"] == {"PATH": "/usr/bin:/bin"}
    assert found["StandardErrorPath"] == "/Users/ann/Library/Logs/molecule-connect.log"


def test_an_agent_refuses_control_characters() -> None:
    with pytest.raises(ConfigError, match="control character"):
        plist(a_plan(config=Path("/Users/a\x00b")), "/log")
