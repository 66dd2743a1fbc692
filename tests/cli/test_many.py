"""Starts of several workspaces: what is refused, what is shown, and what a flag means for all of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.plugins.distributions import backends, write_distribution

Molecule = Callable[..., Any]
PICKY = """
import attrs
from molecule_connect import hookimpl

@attrs.frozen(eq=False, kw_only=True)
class Picky:
    key: str

    @hookimpl
    def wrap_handler(self, handler):
        return handler
"""


@pytest.fixture
def config(tmp_path: Path, token: str) -> Path:
    blocks = [f'[[workspace]]\nid = "ws_{number}"\ntoken = "{token}-{number}"\n' for number in range(3)]
    path = tmp_path / "fleet.toml"
    path.touch(mode=0o600)
    path.write_text('[defaults]\nbackend = "parrot"\napi_url = "http://127.0.0.1:1"\n' + "".join(blocks))
    return path


def test_dry_run_shows_each_workspace(molecule: Molecule, config: Path, environ: dict[str, str]) -> None:
    result = molecule("connect", "--config", str(config), "--dry-run")

    assert result.code == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if "molecule connect: workspace " in line]
    assert [line.split("workspace ")[1].split(",")[0] for line in lines] == ["ws_0", "ws_1", "ws_2"]
    assert all("backend parrot" in line and "api http://127.0.0.1:1" in line for line in lines)
    assert "nothing was started" in result.stderr
    assert list(Path(environ["HOME"]).iterdir()) == []


def test_only_given_flags_override_a_list(molecule: Molecule, config: Path) -> None:
    given = molecule(
        "--api-url", "http://localhost:2", "connect", "--config", str(config), "--backend", "mock", "--dry-run"
    )

    assert given.stderr.count("backend mock") == given.stderr.count("api http://localhost:2") == 3


def test_problems_name_their_workspace(molecule: Molecule, config: Path) -> None:
    config.write_text(
        f"""{config.read_text()}backend = "unready"
        [[workspace]]
        id = "ws_3"
        token = "t-token"
        options.times = "x"
        [[workspace]]
        id = "ws_4"
        token_file = "none"
        """
    )

    rehearsed, started = (molecule("connect", "--config", str(config), flag) for flag in ("--dry-run", "--strict"))

    for result in (rehearsed, started):
        assert result.code == 2
        assert "workspace 3 (ws_2): backend unready: no login" in result.stderr
        assert "workspace 4 (ws_3): option 'times' of backend parrot must be" in result.stderr
        assert "-> write it options.times=..." in result.stderr
        assert f"workspace 5 (ws_4): the token file {config.parent}/none does not exist" in result.stderr
    assert "error: the workspaces are not ready: 3 problems" in rehearsed.stderr
    assert "error: the list has 3 errors, listed above\nwhat to do: " in started.stderr


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('backend = "exec"', "backend exec needs the option 'cmd' -> set it: options.cmd=..."),
        ('use = "picky"', "middleware picky needs the option 'key' -> set it: use_options.picky.key=..."),
        (
            'use = "picky"\nuse_options.other.key = "x"',
            "option 'other.key' doesn't belong to any middleware in use (in use: picky)",
        ),
    ],
)
def test_plugin_errors_use_keys_of_list(molecule: Molecule, config: Path, plugins: Path, keys: str, words: str) -> None:
    (plugins / "fake_picky.py").write_text(PICKY)
    write_distribution(
        plugins, "fake-picky", entry_points={"molecule_connect.middleware": {"picky": "fake_picky:Picky"}}
    )
    config.write_text(f"{config.read_text()}{keys}\n")

    result = molecule("connect", "--config", str(config), "--dry-run")

    assert result.code == 2
    assert f"workspace 3 (ws_2): {words}" in result.stderr


def test_every_fault_is_a_line(molecule: Molecule, token: str) -> None:
    entries = [{"id": "ws_1", "token": token, "tokn": 1}, {"id": "ws_1", "token": token}, {"id": "a b"}]

    result = molecule("connect", MOLECULE_WORKSPACES=json.dumps(entries))

    assert result.code == 2
    faults = [line.partition("ERROR")[2].strip() for line in result.stderr.splitlines() if " ERROR " in line]
    assert faults[:2] == [
        "workspace 1 (ws_1): unknown key 'tokn', did you mean 'token'?",
        "workspace 2 (ws_1): it has the same id as workspace 1",
    ]
    assert f"error: MOLECULE_WORKSPACES has {len(faults)} errors, listed above\n" in result.stderr


def test_list_without_good_block_is_refused(molecule: Molecule, tmp_path: Path, token: str) -> None:
    entries = [{"id": "ws_1", "token": token, "backend": "unready"}, {"id": "ws_2", "token": token, "backend": "none"}]

    result = molecule("connect", "--state-dir", str(tmp_path / "state"), MOLECULE_WORKSPACES=json.dumps(entries))

    assert result.code == 2
    assert "workspace 1 (ws_1): backend unready: no login" in result.stderr
    assert "workspace 2 (ws_2): no backend named 'none'" in result.stderr
    assert "error: the list has 2 errors, listed above\nwhat to do: " in result.stderr


def test_a_single_fault_is_the_error(molecule: Molecule) -> None:
    result = molecule("connect", MOLECULE_WORKSPACES="{")

    assert result.code == 2
    assert result.stderr.startswith("error: MOLECULE_WORKSPACES: it is not JSON (line 1, column 2)\nwhat to do: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["ws_1"], "a workspace id"), (["--token", "t0k3n-x"], "--token"), (["--token-file", "x"], "--token-file")],
)
def test_list_excludes_id_and_token_flags(molecule: Molecule, config: Path, arguments: list[str], words: str) -> None:
    by_file = molecule("connect", *arguments, "--config", str(config))
    by_variable = molecule("connect", *arguments, MOLECULE_WORKSPACES="[]")

    assert by_file.code == by_variable.code == 2
    assert by_file.stderr.startswith(f"error: {words} can't be combined with --config,")
    assert by_variable.stderr.startswith(f"error: {words} can't be combined with MOLECULE_WORKSPACES,")


def test_the_file_wins_over_the_variable(molecule: Molecule, config: Path) -> None:
    assert molecule("connect", "--config", str(config), "--dry-run", MOLECULE_WORKSPACES="{").code == 0


def test_ambiguous_backend_names_both_distributions(molecule: Molecule, config: Path, plugins: Path) -> None:
    write_distribution(plugins, "fake-twin", entry_points=backends(parrot="fake_backends:Parrot"))

    result = molecule("connect", "--config", str(config), "--dry-run")

    assert result.code == 2
    for number in range(3):
        assert (
            f"workspace {number + 1} (ws_{number}): backend parrot is offered by fake-good 1.0 and by" in result.stderr
        )
