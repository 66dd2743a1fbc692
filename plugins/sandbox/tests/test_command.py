"""``molecule sandbox``: its options, and real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from molecule_connect import ConfigError, OptionError
from molecule_connect_sandbox.command import parse_backend_options, sandbox
from molecule_connect_sandbox.default_workspace import default_workspace
from molecule_connect_sandbox.faults import KINDS
from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.serving import announce

PROGRAM = [sys.executable, "-m", "molecule_connect_sandbox"]


@contextmanager
def served(*options: str) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """A serving process, and the first lines that it printed."""
    process = subprocess.Popen([*PROGRAM, "--serve", *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, [process.stdout.readline().strip() for _ in range(4)]
    finally:
        process.kill()
        process.communicate()


def test_help_lists_every_fault() -> None:
    shown = CliRunner().invoke(sandbox, ["--help"])
    assert shown.exit_code == 0
    assert all(name in shown.output for name in KINDS)
    assert all(text in shown.output for text in ("--serve", "--backend-opt cmd=", "--platform [2026-05|2026-08]"))


def test_backend_options_split_at_first_equals_sign() -> None:
    assert parse_backend_options(["a=b=c", "k=1", "k=2", "k=3", "e="]) == {"a": "b=c", "k": ["1", "2", "3"], "e": ""}
    for text in ("novalue", "=x"):
        with pytest.raises(OptionError, match=repr(text)):
            parse_backend_options([text])


@pytest.mark.parametrize("fault", ["nonsense", "unavailable=soon"])
def test_rejects_unknown_fault_before_start(fault: str) -> None:
    outcome = CliRunner().invoke(sandbox, ["--serve", "--fault", fault])
    assert isinstance(outcome.exception, ConfigError)
    assert outcome.output == ""


@pytest.mark.parametrize("platform", ["2026-05", "2026-08"])
@pytest.mark.parametrize("token", ["", "  "])
def test_rejects_empty_admin_token(token: str, platform: str) -> None:
    # Without the refusal this would start a chat, which ends with its input.
    outcome = CliRunner().invoke(sandbox, ["--platform", platform, "--admin-token", token], input="")
    assert isinstance(outcome.exception, ConfigError)
    assert str(outcome.exception) == "--admin-token is empty"
    assert "leave --admin-token out" in outcome.exception.hint


@pytest.mark.parametrize("given", [("--backend", "exec"), ("--backend-opt", "cmd=cat")])
def test_serve_rejects_backend_with_hint(given: tuple[str, str]) -> None:
    outcome = subprocess.run([*PROGRAM, "--serve", *given], capture_output=True, text=True, timeout=40)
    assert (outcome.returncode, outcome.stdout) == (2, "")
    error, hint = outcome.stderr.splitlines()
    assert error.startswith(f"error: {given[0]} ")
    assert "molecule connect --backend" in hint


def test_unusable_store_error_names_path(tmp_path: Path) -> None:
    broken = tmp_path / "store.db"
    broken.write_text("not a database, but long enough to be opened as one " * 20)
    for store in (broken, tmp_path / "nowhere" / "store.db"):
        outcome = CliRunner().invoke(sandbox, ["--serve", "--store", str(store)])
        assert isinstance(outcome.exception, ConfigError)
        assert str(store) in str(outcome.exception)


def test_chat_answers_piped_lines() -> None:
    outcome = CliRunner().invoke(sandbox, ["--backend-opt", "reply=got %s"], input="one\ntwo\n")
    assert (outcome.exit_code, outcome.output) == (0, "got one\ngot two\n")


@pytest.mark.parametrize("platform", ["2026-05", "2026-08"])
def test_serve_prints_url_first_and_exits_cleanly(platform: str) -> None:
    with served("--platform", platform) as (process, lines):
        url = lines[0]
        assert url.startswith("http://127.0.0.1:")
        assert lines[1] == f"export MOLECULE_API_URL={url}"
        exported = dict(line.removeprefix("export ").split("=", 1) for line in lines[1:])
        answered = httpx.get(
            f"{url}/workspaces/{exported['WORKSPACE_ID']}/state",
            headers={"Authorization": f"Bearer {exported['MOLECULE_WORKSPACE_TOKEN']}"},
            trust_env=False,
        )
        assert answered.json()["status"] == "awaiting_agent"
        process.send_signal(signal.SIGTERM if platform == "2026-05" else signal.SIGINT)
        assert process.wait(40) == 0


async def test_announced_curl_command_prints_only_the_response() -> None:
    platform = Platform(SandboxOptions(admin_token="admin"))
    shown = announce(platform, "http://127.0.0.1:1")
    await platform.stop()
    assert "curl -s -w '\\n' -H" in shown.splitlines()[-1]


def test_port_in_use_exits_2_with_hint() -> None:
    with served() as (_, lines):
        port = lines[0].rsplit(":", 1)[1]
        second = subprocess.run([*PROGRAM, "--serve", "--port", port], capture_output=True, text=True, timeout=40)
    assert second.returncode == 2
    assert second.stdout == ""
    assert "in use" in second.stderr
    assert "--port" in second.stderr


def test_interrupted_pipe_reports_missing_replies(tmp_path: Path) -> None:
    running = tmp_path / "running"
    os.mkfifo(running)
    command = [*PROGRAM, "--backend", "exec", "--backend-opt", f"cmd=echo > {running}; sleep 60"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        process.stdin.write("hello\n")
        process.stdin.flush()
        running.read_text()
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert errors.startswith("error: interrupted before every message was answered\nwhat to do: ")


@pytest.mark.parametrize("platform", ["2026-05", "2026-08"])
def test_store_keeps_ids_tokens_and_port(tmp_path: Path, platform: str) -> None:
    options = ("--platform", platform, "--store", str(tmp_path / "store.db"))
    seen = []
    for _ in range(2):
        with served(*options) as (process, lines):
            assert process.stdout is not None
            commands = [process.stdout.readline() for _ in range(6)]
            seen.append((lines, commands))
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0
    assert seen[0] == seen[1]
    assert any("/sandbox/faults" in command for command in seen[0][1])
    assert (tmp_path / "store.db").stat().st_mode & 0o077 == 0


def test_kept_port_in_use_exits_with_hint(tmp_path: Path) -> None:
    store = str(tmp_path / "store.db")
    with served("--store", store):
        second = subprocess.run([*PROGRAM, "--serve", "--store", store], capture_output=True, text=True, timeout=40)
    assert (second.returncode, second.stdout) == (2, "")
    assert "the last run with this --store" in second.stderr
    assert "--port" in second.stderr


def test_revoked_token_is_replaced(tmp_path: Path) -> None:
    options = SandboxOptions(store=str(tmp_path / "store.db"))
    platform = Platform(options)
    first = default_workspace(platform)
    assert default_workspace(platform) == first
    platform.store.revoke(first.id)
    second = default_workspace(platform)
    assert second.id == first.id
    assert platform.store.token_owner(second.token) == first.id
    platform.store.close()
