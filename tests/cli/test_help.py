"""Contents of help texts, and what they import."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.plugins.distributions import write_distribution

from molecule_connect.cli.root import BUILT_IN

Molecule = Callable[..., Any]

HEAVY = {
    "httpx",
    "attr",
    "attrs",
    "cattrs",
    "asyncio",
    "importlib.metadata",
    "rich",
    "pluggy",
    "ssl",
    "sqlite3",
    "json",
}
FLAGS = """
    --api-url --org-id --token --token-file --backend --backend-opt --use --use-opt --mode --interval-ms --since-secs
    --concurrency --grace --peer-budget --state-dir --agent-name --once --unpause --create --insecure --dry-run --strict
    --log-format --config
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["completion", "zsh"]])
def test_what_only_prints_loads_nothing_heavy(arguments: list[str], environ: dict[str, str]) -> None:
    program = (
        "import sys; sys.argv[1:] = sys.argv[1:]\n"
        "from molecule_connect.cli import main\n"
        "try: main()\n"
        "finally: print('loaded:', *sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environ, timeout=30, check=True
    )

    loaded = set(done.stdout.splitlines()[-1].split()[1:])
    assert "click" in loaded
    assert loaded & HEAVY == set()


def test_help_lists_built_in_and_plugin_commands(molecule: Molecule) -> None:
    result = molecule("--help")

    assert result.code == 0
    listed = {line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ") and line.strip()}
    assert {
        "connect",
        "status",
        "messages",
        "doctor",
        "backends",
        "try",
        "completion",
        "dance",
        "shatter",
        "stone",
    } <= listed
    assert "from fake-good" in result.stdout
    assert {"new-backend"} <= listed


def test_help_names_the_first_steps(molecule: Molecule) -> None:
    for result in (molecule("--help", COLUMNS="120"), molecule(COLUMNS="120")):
        steps = result.output.partition("Start here:\n")[2]
        places = [steps.index(f"  molecule {name}") for name in ("sandbox", "try mock", "init")]
        assert places == sorted(places)


def test_help_names_the_docs(molecule: Molecule, plugins: Path) -> None:
    docs = molecule("--help", COLUMNS="200").stdout.partition("\nDocs: ")[2].strip()
    assert Path(docs).is_file()

    info = plugins / "molecule_connect-9.dist-info"
    info.mkdir()
    urls = "Project-URL: Homepage, https://home.example\nProject-URL: Documentation, https://docs.example/x\x1b[2J\n"
    (info / "METADATA").write_text(
        f"Name: molecule-connect\nVersion: 9\n{urls}\nProject-URL: Docs, https://no.example\n"
    )
    assert molecule("--help", COLUMNS="200").stdout.endswith("\nDocs: https://docs.example/x\n")


def test_plugin_command_shows_its_summary(molecule: Molecule, plugins: Path) -> None:
    write_distribution(
        plugins, "one-command", entry_points={"molecule_connect.commands": {"hop": "no_such_module:hop"}}
    )
    metadata = plugins / "one_command-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text() + "Summary: Hop \x1b[31mover a\u202efence\n\nSummary: not this\n")
    for summary in ("", "Summary: \n", "Summary: UNKNOWN\n"):
        (plugins / "fake_broken-1.0.dist-info" / "METADATA").write_text(f"Name: fake-broken\nVersion: 1\n{summary}")
        result = molecule("--help", COLUMNS="120")
        assert "  hop      Hop over afence\n" in result.stdout
        assert "  shatter  from fake-broken\n" in result.stdout
    assert "Hop over afence" in molecule(**complete("molecule ho", 1, "zsh")).stdout


def test_several_commands_show_their_distribution(molecule: Molecule, plugins: Path) -> None:
    metadata = plugins / "fake_broken-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text() + "Summary: Two commands\n")

    listed = molecule("--help", COLUMNS="120").stdout

    assert "  shatter  from fake-broken\n" in listed
    assert "  stone    from fake-broken\n" in listed


def test_first_party_commands_have_help(molecule: Molecule) -> None:
    listed = molecule("--help", COLUMNS="120").stdout

    assert "  mcp      The inbox of Molecule workspaces for MCP hosts\n" in listed
    assert "  sandbox  A local Molecule platform to try backends on and to test against\n" in listed


def test_every_built_in_command_has_help(molecule: Molecule) -> None:
    for name in BUILT_IN:
        result = molecule(name, "--help")
        assert result.code == 0, result.stderr
        assert result.stdout.startswith(f"Usage: molecule {name}")


def test_connect_help_is_complete(molecule: Molecule) -> None:
    result = molecule("connect", "--help", COLUMNS="200")

    assert result.code == 0
    assert [flag for flag in FLAGS.split() if f"  {flag} " not in result.stdout] == []
    assert "Claude Code, the default backend:\n      molecule connect ws_1\n" in result.stdout
    assert 'molecule connect ws_1 --backend mock --backend-opt reply="echo: %s"' in result.stdout
    assert 'molecule connect ws_1 --backend exec --backend-opt cmd="python myhandler.py"' in result.stdout
    installed = next(line for line in result.stdout.splitlines() if line.startswith("Installed backends:"))
    assert {"broken,", "parrot,", "unready."} <= set(installed.split())


def test_the_version_is_told(molecule: Molecule) -> None:
    result = molecule("--version")

    assert result.code == 0
    assert result.stdout.startswith("molecule-connect, version ")


def test_no_arguments_show_the_help(molecule: Molecule) -> None:
    result = molecule()

    assert result.code == 2
    assert "Commands:" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_every_shell_gets_its_completion_script(molecule: Molecule, shell: str) -> None:
    result = molecule("completion", shell)

    assert result.code == 0
    assert "_MOLECULE_COMPLETE" in result.stdout


def test_completion_loads_no_plugin_command(molecule: Molecule) -> None:
    result = molecule(**complete("molecule ", 1))

    assert {"connect", "dance", "shatter"} <= set(result.stdout.replace(",", "\n").split())


def test_completion_knows_installed_backends(molecule: Molecule) -> None:
    result = molecule(**complete("molecule connect --backend p", 3))

    assert result.stdout.strip() == "plain,parrot"


def complete(words: str, index: int, shell: str = "bash") -> dict[str, str]:
    return {"_MOLECULE_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": str(index)}


def test_the_package_runs_as_a_module_too(environ: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "molecule_connect", "--version"],
        capture_output=True,
        text=True,
        env=environ,
        timeout=30,
        check=True,
    )

    assert "version" in done.stdout


@pytest.mark.parametrize(
    ("line", "index"),
    [
        ("molecule connect --backend parrot --backend-opt ", 5),
        ("molecule try parrot --backend-opt ", 4),
    ],
)
def test_option_keys_of_the_backend_are_completed(molecule: Molecule, line: str, index: int) -> None:
    shown = molecule(**complete(line, index)).stdout
    assert shown.splitlines() == ["plain,suffix=", "plain,times="]


def test_option_keys_follow_a_backend_behind_the_cursor(molecule: Molecule) -> None:
    shown = molecule(**complete("molecule connect --backend-opt s --backend=parrot", 3)).stdout
    assert shown.strip() == "plain,suffix="


@pytest.mark.parametrize("backend", ["missing", "broken", ""])
def test_option_keys_of_an_unusable_backend_are_silent(molecule: Molecule, backend: str) -> None:
    result = molecule(**complete(f"molecule connect --backend {backend or 'no'} --backend-opt ", 5))
    assert (result.code, result.stdout.strip(), result.stderr) == (0, "", "")


def test_option_keys_follow_the_saved_settings(molecule: Molecule, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[[workspace]]\nid = "ws_1"\nbackend = "parrot"\n')
    (tmp_path / "config.toml").chmod(0o600)
    environ = {**complete("molecule connect --backend-opt s", 3), "MOLECULE_STATE_DIR": str(tmp_path)}
    assert molecule(**environ).stdout.strip() == "plain,suffix="


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completed_key_is_followed_by_no_space(molecule: Molecule, shell: str) -> None:
    script = molecule("completion", shell).stdout
    assert ("compopt -o nospace" if shell == "bash" else "completions_before_value -U -S ''") in script
