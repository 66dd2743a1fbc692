"""What would break at a reboot is refused, and the service gets absolute paths."""

from pathlib import Path

import attrs
import pytest
from tests.service.conftest import save

from molecule_connect.errors import ConfigError
from molecule_connect.service.machine import Machine
from molecule_connect.service.plan import (
    ServicePlan,
    check_name,
    check_system_environment,
    is_temporary,
    plan_user_service,
)


def plan(machine: Machine, config: str | None = None, state_dir: str | None = None) -> ServicePlan:
    return plan_user_service(machine, "molecule-connect", config=config, profile=None, state_dir=state_dir)


def refusal(machine: Machine, config: str | None = None, state_dir: str | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        plan(machine, config, state_dir)
    assert caught.value.hint
    return caught.value


def with_variables(machine: Machine, **variables: str) -> Machine:
    return attrs.evolve(machine, environ={**machine.environ, **variables})


def test_uses_the_saved_settings(machine: Machine) -> None:
    config = save(machine)
    found = plan(machine)
    assert (found.config, found.state_dir) == (config, machine.home / ".config/molecule/state")
    assert found.cwd == machine.cwd
    assert "tok-1234567" not in repr(found)


def test_a_named_file_becomes_absolute(machine: Machine) -> None:
    config = save(machine, folder=machine.cwd)
    found = plan(machine, "config.toml", "state")
    assert (found.config, found.state_dir) == (config, machine.cwd / "state")


def test_keeps_the_state_folder_of_the_settings(machine: Machine) -> None:
    save(machine)
    file = machine.home / ".config/molecule/config.toml"
    file.write_text(f'state_dir = "own"\n{file.read_text()}')
    assert plan(machine).state_dir == machine.home / ".config/molecule/own"


def test_searches_programs_in_lasting_folders(machine: Machine) -> None:
    save(machine)
    path = plan(with_variables(machine, PATH="/opt/tools:bin:/run/user/1:/usr/bin")).environment["PATH"].split(":")
    assert path[:3] == [str(machine.python.parent), "/opt/tools", "/usr/bin"]
    assert not {"bin", "/run/user/1"} & set(path)


def test_without_saved_settings_names_init(machine: Machine) -> None:
    error = refusal(machine)
    assert "no saved settings" in str(error)
    assert "molecule init" in error.hint


def test_refuses_a_token_in_a_variable(machine: Machine) -> None:
    error = refusal(with_variables(machine, MOLECULE_WORKSPACE_TOKEN="tok-7654321", WORKSPACE_ID="ws_1"))
    assert "MOLECULE_WORKSPACE_TOKEN" in str(error)
    assert "tok-7654321" not in f"{error} {error.hint}"


def test_refuses_another_token_in_a_variable(machine: Machine) -> None:
    save(machine)
    error = refusal(with_variables(machine, MOLECULE_WORKSPACE_TOKEN="tok-7654321"))
    assert "another token" in str(error)
    assert "tok-" not in f"{error} {error.hint}"
    plan(with_variables(machine, MOLECULE_WORKSPACE_TOKEN="tok-1234567"))


def test_refuses_a_list_in_a_variable(machine: Machine) -> None:
    assert "MOLECULE_WORKSPACES" in str(refusal(with_variables(machine, MOLECULE_WORKSPACES="[]")))


@pytest.mark.parametrize(
    ("text", "variable"),
    [('api_url = "https://p.example"\n', ""), ("", "MOLECULE_API_URL"), ('ca_file = "$CA/ca.pem"\n', "CA")],
)
def test_refuses_values_from_variables(machine: Machine, text: str, variable: str) -> None:
    save(machine, text)
    if not variable:
        plan(with_variables(machine, MOLECULE_API_URL="https://other.example"))
        return
    error = refusal(with_variables(machine, **{variable: "https://other.example"}))
    assert "depends on variables of this shell" in str(error)


@pytest.mark.parametrize(
    "options",
    [
        '{cmd = "./handler"}',
        '{cmd = "bin/handler --fast"}',
        '{cmd = "python handler.py"}',
        '{cmd = "/usr/bin/env ../x"}',
        '{mcp_config = ["/etc/a.json", "handler.py"]}',
    ],
)
def test_refuses_a_relative_path_in_an_option(machine: Machine, options: str) -> None:
    (machine.cwd / "handler.py").touch()
    save(machine, f"options = {options}\n")
    error = refusal(machine)
    assert "relative to this folder" in str(error)
    assert str(machine.cwd) in error.hint


@pytest.mark.parametrize(
    "options",
    [
        '{cmd = "tr a-z A-Z"}',
        '{cmd = "cd /srv/app && ./handler"}',
        '{cmd = "sed s/a/b/ | jq ."}',
        '{model = "org/model"}',
        '{cmd = "curl https://x.example/y"}',
        '{cmd = "/bin/sh -c \'unbalanced"}',
    ],
)
def test_accepts_other_options(machine: Machine, options: str) -> None:
    save(machine, f"options = {options}\n")
    plan(machine)


def test_refuses_a_secret_in_a_variable(machine: Machine) -> None:
    config = save(machine, folder=machine.cwd)
    config.write_text(config.read_text().replace('token_file = "token"', 'token = {env = "TOKEN_OF_WS_1"}'))
    error = refusal(with_variables(machine, TOKEN_OF_WS_1="tok-7654321"), "config.toml")
    assert "TOKEN_OF_WS_1" in str(error)
    assert "token_file" in error.hint


def test_runs_no_program_of_a_secret(machine: Machine, tmp_path: Path) -> None:
    config = save(machine, folder=machine.cwd)
    command = f'token = {{command = ["touch", "{tmp_path}/ran"]}}'
    config.write_text(config.read_text().replace('token_file = "token"', command))
    plan(machine, "config.toml")
    assert not (tmp_path / "ran").exists()


def test_skips_disabled_workspaces(machine: Machine) -> None:
    config = save(machine, folder=machine.cwd)
    config.write_text(config.read_text() + '[[workspace]]\nid = "ws_2"\nenabled = false\noptions = {cmd = "./x"}\n')
    plan(machine, "config.toml")


def test_reports_errors_of_the_list(machine: Machine) -> None:
    save(machine, 'concurency = 2\nbackend_ = ""\n', folder=machine.cwd)
    assert "concurrency" in str(refusal(machine, "config.toml"))
    assert "does not exist" in str(refusal(machine, "gone.toml"))
    assert "not a plain file" in str(refusal(machine, "."))


@pytest.mark.parametrize("folder", ["/run/molecule", "/tmp/molecule", "/dev/shm/x", "/var/tmp/x"])
def test_folders_that_a_reboot_empties_are_temporary(machine: Machine, folder: str) -> None:
    assert is_temporary(attrs.evolve(machine, home=Path("/home/ann")), Path(folder))
    assert not is_temporary(attrs.evolve(machine, home=Path(folder) / "ann"), Path(folder))


def test_refuses_a_temporary_state_folder(machine: Machine) -> None:
    save(machine)
    assert "lost at a reboot" in str(refusal(machine, state_dir="/run/molecule"))


def test_refuses_a_state_folder_on_a_tmpfs(machine: Machine) -> None:
    save(machine)
    mounts = machine.root / "proc/self/mountinfo"
    mounts.parent.mkdir(parents=True)
    mounts.write_text(
        "21 1 254:0 / / rw - ext4 /dev/vda rw\n"
        f"22 21 0:20 / {machine.cwd}/mem\\040ory rw shared:3 - tmpfs tmpfs rw\nbroken line\n"
    )
    assert "lost at a reboot" in str(refusal(machine, state_dir="mem ory/state"))
    plan(machine, state_dir="disk")


@pytest.mark.parametrize("place", ["/run/venv", ".cache/uv/archive-v0/x", ".local/pipx/.cache/y"])
def test_refuses_a_temporary_environment(machine: Machine, place: str) -> None:
    save(machine)
    error = refusal(attrs.evolve(machine, code=(machine.home / place,)))
    assert "environment is temporary" in str(error)


@pytest.mark.parametrize("python", ["python3", "", "/nowhere/python"])
def test_refuses_an_unknown_interpreter(machine: Machine, python: str) -> None:
    save(machine)
    assert "no absolute path" in str(refusal(attrs.evolve(machine, python=Path(python))))


@pytest.mark.parametrize("name", ["a\nb", "a'b", 'a"b', "a\\b", "a$b"])
def test_refuses_an_interpreter_that_systemd_cannot_start(machine: Machine, name: str, tmp_path: Path) -> None:
    save(machine)
    (tmp_path / name).touch()
    assert "special characters" in str(refusal(attrs.evolve(machine, python=tmp_path / name)))


def test_network_settings_are_kept(machine: Machine) -> None:
    save(machine)
    environ = plan(with_variables(machine, HTTPS_PROXY="http://proxy:3128", no_proxy="localhost")).environment
    assert environ["HTTPS_PROXY"] == "http://proxy:3128"
    assert environ["no_proxy"] == "localhost"


def test_a_password_of_a_proxy_is_not_written(machine: Machine) -> None:
    save(machine)
    error = refusal(with_variables(machine, HTTPS_PROXY="http://ann:s3cret@proxy:3128"))
    assert "s3cret" not in f"{error} {error.hint}"
    assert "relative" in str(refusal(with_variables(machine, SSL_CERT_FILE="ca.pem")))


@pytest.mark.parametrize("name", ["a", "molecule-connect", "fleet-2", "x" * 31])
def test_accepts_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "a/b", "-a", "a-", "2a", "a.service", "a@b", "x" * 32, "a\n"])
def test_refuses_names(name: str) -> None:
    with pytest.raises(ConfigError, match="can't be the name of a service"):
        check_name(name)


def test_a_system_service_needs_an_open_environment(machine: Machine, tmp_path: Path) -> None:
    closed = tmp_path / "closed/venv/bin"
    closed.mkdir(parents=True)
    (closed / "python").touch()
    (tmp_path / "closed").chmod(0o700)
    for python in (closed / "python", Path("/home/ann/venv/bin/python")):
        with pytest.raises(ConfigError, match="can't use this Python environment"):
            check_system_environment(attrs.evolve(machine, python=python, code=()))
