"""``--dry-run``: checks without a request and without state."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Molecule = Callable[..., Any]


def test_it_shows_the_summary_and_starts_nothing(molecule: Molecule, environ: dict[str, str], token: str) -> None:
    result = molecule(
        "connect", "ws_1", "--backend", "parrot", "--dry-run",
        MOLECULE_WORKSPACE_TOKEN=token, MOLECULE_API_URL="http://127.0.0.1:1",
    )  # fmt: skip

    assert result.code == 0, result.stderr
    assert result.stdout == ""
    for word in ("workspace ws_1", "backend parrot", "mode poll", "api http://127.0.0.1:1"):
        assert word in result.stderr
    assert result.stderr.rstrip().endswith("ready: nothing was started")
    assert list(Path(environ["HOME"]).iterdir()) == []


def test_warns_of_token_on_command_line(molecule: Molecule, token: str) -> None:
    result = molecule("connect", "ws_1", "--backend", "parrot", "--dry-run", "--token", token)

    assert result.code == 0
    assert "--token shows the token in the process list" in result.stderr
    assert "--token-file" in result.stderr
    assert token not in result.stderr


def test_push_can_be_rehearsed(molecule: Molecule, token: str) -> None:
    result = molecule("connect", "ws_1", "--backend", "parrot", "--mode", "push", "--dry-run", "--token", token)

    assert result.code == 0
    assert "mode push" in result.stderr


def test_backend_problems_exit_2(molecule: Molecule, token: str) -> None:
    result = molecule("connect", "ws_1", "--backend", "unready", "--dry-run", "--token", token)

    assert result.code == 2
    assert "no login" in result.stderr
    assert "INFO    unready may: do nothing" in result.stderr
    assert result.stderr.rstrip().endswith("what to do: fix the errors above; nothing was started")
    assert "ready: nothing" not in result.stderr


def test_dry_run_on_a_terminal_shows_no_view(tmp_path: Path, environ: dict[str, str], token: str) -> None:
    terminal, theirs = pty.openpty()
    program = [sys.executable, "-m", "molecule_connect", "connect", "ws_1", "--backend", "mock", "--dry-run"]
    variables = environ | {"TERM": "xterm", "MOLECULE_WORKSPACE_TOKEN": token}
    process = subprocess.Popen(program, stdin=theirs, stdout=theirs, stderr=theirs, env=variables)
    assert process.wait(30) == 0
    os.close(theirs)
    written = os.read(terminal, 1 << 16).decode()
    os.close(terminal)

    assert written.rstrip().endswith("\nready: nothing was started")
    assert "\x1b[" not in written
    assert "heartbeat" not in written


def test_refuses_an_invalid_organisation(molecule: Molecule, token: str) -> None:
    result = molecule("connect", "ws_1", "--backend", "parrot", "--org-id", "a\nb", "--dry-run", "--token", token)

    assert result.code == 2
    assert "the organization id contains" in result.stderr


def test_unknown_option_warns_with_suggestion(molecule: Molecule, token: str) -> None:
    result = molecule(
        "connect", "ws_1", "--backend", "parrot", "--backend-opt", "sufix=?", "--dry-run", "--token", token
    )

    assert result.code == 0
    assert "'sufix'" in result.stderr
    assert "'suffix'" in result.stderr


def test_accepts_api_url_before_the_command(molecule: Molecule, token: str) -> None:
    before = ("--api-url", "http://127.0.0.1:1")
    rest = ("connect", "ws_1", "--backend", "parrot", "--dry-run", "--token", token)

    assert "api http://127.0.0.1:1," in molecule(*before, *rest, MOLECULE_API_URL="http://127.0.0.1:2").stderr
    assert "api http://127.0.0.1:3," in molecule(*before, *rest, "--api-url", "http://127.0.0.1:3").stderr


def test_reads_token_from_a_pipe_once(molecule: Molecule, token: str, tmp_path: Path) -> None:
    import threading

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    writer = threading.Thread(target=pipe.write_text, args=(token + "\n",))
    writer.start()

    result = molecule("connect", "ws_1", "--backend", "parrot", "--dry-run", "--token-file", str(pipe))
    writer.join()

    assert result.code == 0, result.stderr


def test_accepts_token_of_earlier_registration(molecule: Molecule, token: str, environ: dict[str, str]) -> None:
    state = Path(environ["HOME"]) / ".config" / "molecule" / "state"
    state.mkdir(parents=True)
    kept = state / "ws_1.token"
    kept.write_text(f"# http://127.0.0.1:1\n{token}\n")
    kept.chmod(0o600)
    rest = ("connect", "ws_1", "--backend", "parrot", "--dry-run", "--api-url")

    assert molecule(*rest, "http://127.0.0.1:1").code == 0
    assert molecule(*rest, "http://127.0.0.1:2").code == 2, "another platform never sees it"
