"""A failed start prints what happened and what to do, exits with the code of its kind, and makes no request."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Molecule = Callable[..., Any]


def start(molecule: Molecule, *flags: str, **environ: str) -> Any:
    """A start of ws_1 with a backend and a token, but for *flags*; a platform would be out of reach (exit 6)."""
    return molecule(
        "connect", "ws_1", "--backend", "parrot", *flags, **{"MOLECULE_WORKSPACE_TOKEN": "t0k3n", **environ}
    )


def assert_refused(result: Any, *words: str, code: int = 2) -> None:
    lines = result.stderr.splitlines()
    assert result.code == code, result.stderr
    assert result.stdout == ""
    assert lines[-2].startswith("error: "), result.stderr
    assert lines[-1].startswith("what to do: "), result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bakend", "mock"], ["--bakend", "--backend"]),
        (["--backend", "nosuch"], ["'nosuch'", "installed: broken, ", "parrot"]),
        (["--backend", "broken"], ["fake-broken 1.0", "SystemExit", "upgrade or remove"]),
        (["--backend", "unready"], ["no login"]),
        (["--backend-opt", "no equals sign"], ["'no equals sign'", "key=value"]),
        (["--backend-opt", "times=often"], ["'times'"]),
        (["--backend-opt", "sufix=x", "--strict"], ["'sufix'", "'suffix'"]),
        (["--use", "nothing"], ["'nothing'"]),
        (["--mode", "push"], ["push", "not available yet"]),
        (["--mode", "pull"], ["pull"]),
        (["--since-secs", "2592001"], ["since-secs", "2592000"]),
        (["--since-secs", "-1"], ["since-secs"]),
        (["--interval-ms", "0"], ["interval-ms"]),
        (["--concurrency", "0"], ["concurrency"]),
        (["--grace", "-1"], ["grace"]),
        (["--grace", "inf"], ["grace", "86400"]),
        (["--grace", "nan"], ["grace", "nan"]),
        (["--grace", "1e10"], ["grace", "86400"]),
        (["--interval-ms", "99999999999"], ["interval-ms"]),
        (["--max-cost-per-day", "nan"], ["max-cost-per-day", "nan"]),
        (["--max-cost-per-day", "inf"], ["max-cost-per-day"]),
        (["--journal-quota", "much"], ["journal-quota", "'much'"]),
        (["--journal-quota", "1000"], ["journal-quota", "1 MiB"]),
        (["--peer-budget", "60"], ["peer-budget", "60/600"]),
        (["--api-url", "localhost:8080"], ["'localhost:8080'", "https://"]),
        (["--api-url", "http://platform.example"], ["platform.example", "--insecure"]),
        (["--log-format", "xml"], ["xml", "json"]),
        (["extra"], ["extra"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_a_wrong_flag_is_refused(molecule: Molecule, flags: list[str], words: list[str]) -> None:
    assert_refused(start(molecule, *flags), *words)


def test_missing_token_has_a_hint(molecule: Molecule) -> None:
    assert_refused(molecule("connect", "ws_1"), "no workspace token", "MOLECULE_WORKSPACE_TOKEN", "--token-file")


def test_missing_default_backend_has_install_line(molecule: Molecule, plugins: Path) -> None:
    # The first distribution of a name hides the others, and this one offers nothing.
    hiding = plugins / "molecule_connect_claude_code-0.1.0.dist-info"
    hiding.mkdir()
    (hiding / "METADATA").write_text("Name: molecule-connect-claude-code\nVersion: 0.1.0\n")
    result = molecule("connect", "ws_1", MOLECULE_WORKSPACE_TOKEN="t0k3n")

    assert_refused(result, "'claude-code'", "parrot", '-m pip install "molecule-connect[claude-code]"', "--backend")


@pytest.mark.parametrize("workspace_id", ["ws/1", "..", "a b", "x" * 129, ""])
def test_an_impossible_workspace_id_is_refused(molecule: Molecule, workspace_id: str) -> None:
    assert_refused(molecule("connect", workspace_id, "--token", "t0k3n", "--backend", "parrot"), "workspace id")


def test_missing_workspace_id_has_a_hint(molecule: Molecule) -> None:
    assert_refused(molecule("connect", "--token", "t0k3n"), "no workspace id", "WORKSPACE_ID")


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (None, 0o600, "does not exist"),
        ("", 0o600, "contains no token"),
        ("one\ntwo\n", 0o600, "2 lines"),
        ("t0k3n\n", 0o644, "open to others"),
        ("<paste the token here>\n", 0o600, "placeholder"),
    ],
)
@pytest.mark.parametrize("named_by", ["flag", "variable"])
def test_unusable_token_file_is_refused(
    molecule: Molecule, tmp_path: Path, content: str | None, mode: int, words: str, named_by: str
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)

    if named_by == "flag":
        result = start(molecule, "--token-file", str(file))
    else:
        result = start(molecule, MOLECULE_WORKSPACE_TOKEN="", MOLECULE_WORKSPACE_TOKEN_FILE=str(file))

    assert_refused(result, words, str(file))


@pytest.mark.parametrize("command", ["connect", "doctor"])
@pytest.mark.parametrize("value", ["", " "])
def test_empty_token_file_flag_is_refused(molecule: Molecule, command: str, value: str) -> None:
    result = molecule(command, "ws_1", "--token-file", value, "--api-url", "http://127.0.0.1:1")

    assert result.code != 0
    assert "--token-file is empty" in result.output
    assert "pass a file, or omit --token-file" in result.output


@pytest.mark.parametrize("value", ["<your token>", "YOUR_TOKEN", "two words", " "])
def test_invalid_token_names_its_source(molecule: Molecule, value: str) -> None:
    assert_refused(start(molecule, MOLECULE_WORKSPACE_TOKEN=value), "MOLECULE_WORKSPACE_TOKEN")
    assert_refused(start(molecule, "--token", value), "--token")


@pytest.mark.parametrize("below", ["", "/below"])
def test_unusable_state_folder_names_its_source(molecule: Molecule, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("no folder")
    folder = f"{tmp_path}/file{below}"

    assert_refused(start(molecule, "--state-dir", folder), folder, "--state-dir")
    assert_refused(start(molecule, MOLECULE_STATE_DIR=folder), folder, "MOLECULE_STATE_DIR")


def test_refusal_is_json_with_json_format(molecule: Molecule) -> None:
    import json

    result = start(molecule, "--backend", "nosuch", "--log-format", "json")

    (line,) = map(json.loads, result.stderr.splitlines())
    assert result.code == 2
    assert line.items() >= {"event": "error", "exit_code": 2}.items()
    assert "nosuch" in line["text"]
    assert line["hint"]


def test_a_refused_start_leaves_nothing_behind(molecule: Molecule, environ: dict[str, str]) -> None:
    start(molecule, "--backend", "nosuch")
    start(molecule, "--mode", "push")
    start(molecule, "--token", "<paste>")

    assert list(Path(environ["HOME"]).iterdir()) == []


@pytest.mark.parametrize(
    "flags", [["--backend", "broken"], ["--mode", "push"], ["--bakend", "x"], ["--token", "<paste>"], ["--log-format="]]
)
def test_real_process_ends_the_same_way(molecule_process: Molecule, flags: list[str]) -> None:
    assert_refused(start(molecule_process, *flags))


def test_unready_backend_makes_no_request(molecule_process: Molecule, token: str) -> None:
    result = start(molecule_process, "--backend", "unready", MOLECULE_WORKSPACE_TOKEN=token)

    assert_refused(result, "no login", "workspace ws_1, backend unready, mode poll, api http://localhost:8080, state ")


WITH_CREDENTIALS = "https://user:hunter2@platform.example"


@pytest.mark.parametrize(
    "words",
    [
        ("connect", "ws_1", "--token", "t0k3n", "--api-url", WITH_CREDENTIALS),
        ("connect", "ws_1", "--token", "t0k3n", "--dry-run", "--api-url", WITH_CREDENTIALS),
        ("--api-url", WITH_CREDENTIALS, "connect", "ws_1", "--token", "t0k3n"),
        ("--api-url", WITH_CREDENTIALS, "doctor", "ws_1", "--token", "t0k3n"),
        ("doctor", "ws_1", "--token", "t0k3n", "--api-url", f"ftp{WITH_CREDENTIALS[5:]}"),
        ("connect", WITH_CREDENTIALS, "--token", "t0k3n"),
        ("connect", "ws_1", WITH_CREDENTIALS),
        (WITH_CREDENTIALS,),
        ("connect", "ws_1", "--token", "t0k3n", "--api-url", "user:hunter2@platform.example"),
    ],
)
def test_credentials_in_an_address_are_never_shown(molecule: Molecule, words: tuple[str, ...]) -> None:
    result = molecule(*words)

    assert result.code != 0
    assert "hunter2" not in result.output


def test_hides_credentials_of_listed_address(molecule: Molecule) -> None:
    listed = f'[{{"id": "ws_1", "token": "t0k3n", "api_url": "{WITH_CREDENTIALS}"}}]'
    result = molecule("connect", "--backend", "parrot", MOLECULE_WORKSPACES=listed)

    assert_refused(result, "the API address of platform.example contains a user name or password")
    assert "hunter2" not in result.output


def test_help_hides_credentials_of_variables(molecule: Molecule) -> None:
    assert "hunter2" not in molecule("connect", "--help", MOLECULE_API_URL=WITH_CREDENTIALS).output


@pytest.mark.parametrize("flags", [("--state-dir", "state"), ("--token-file", "token")])
def test_a_deleted_working_directory_is_named(
    molecule: Molecule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    assert_refused(start(molecule, *flags), "the current folder was deleted", "absolute paths")


@pytest.mark.parametrize(
    ("flags", "more", "is_assumed"),
    [
        ((), {}, True),
        (("--api-url", "http://localhost:8080"), {}, False),
        ((), {"MOLECULE_API_URL": "http://127.0.0.1:1"}, False),
        ((), {"PLATFORM_URL": "http://127.0.0.1:1"}, False),
    ],
)
def test_missing_address_is_reported(
    molecule: Molecule, token: str, flags: tuple[str, ...], more: dict[str, str], is_assumed: bool
) -> None:
    given = {"MOLECULE_WORKSPACE_TOKEN": token, **more}

    result = molecule("connect", "ws_1", "--backend", "parrot", "--dry-run", *flags, **given)

    assert result.code == 0
    assert ("no address given: using http://localhost:8080 -> pass --api-url" in result.stderr) is is_assumed
