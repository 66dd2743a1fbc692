"""Whatever ends a command comes with a next step."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from molecule_connect import errors
from molecule_connect.cli.errors import fail_on_stderr, reported

ERRORS = [
    errors.MoleculeError("x"),
    errors.ConfigError("x"),
    errors.LeaseError("x"),
    errors.WorkspaceDeletedError("x"),
    errors.AuthError("x", operation="register", status=401, body=""),
    errors.TransientPlatformError("x", operation="register", status=500),
    click.ClickException("x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_error_without_hint_has_next_step(error: Exception) -> None:
    told: list[tuple[str, str]] = []

    def fail(text: str, hint: str, exit_code: int, traceback: str = "") -> None:
        told.append((text, hint))

    with pytest.raises(SystemExit), reported(fail):
        raise error

    ((text, hint),) = told
    assert text == "x"
    assert hint


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["backends"], ["backends", "parrot"], ["--help"], ["try", "parrot", "hello"]])
def test_unwritable_stdout_is_one_error(environ: dict[str, str], arguments: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "molecule_connect", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=60,
            check=False,
        )

    assert done.returncode == 2
    assert done.stderr.removeprefix("... repeating\n") == (
        "error: standard output cannot be written: No space left on device\n"
        "what to do: free disk space, or redirect the output, then try again\n"
    )


@pytest.mark.parametrize("arguments", [["backends"], ["backends", "parrot"]])
def test_closed_pipe_exits_like_sigpipe(environ: dict[str, str], arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "molecule_connect", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environ,
        timeout=60,
        check=False,
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (141, b"")


def test_other_system_errors_are_bugs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, reported(fail_on_stderr):
        Path("/nowhere/at/all").read_text()

    assert ended.value.code == 1
    assert "this is a bug" in capsys.readouterr().err


def test_a_hint_of_its_own_is_kept() -> None:
    hints: list[str] = []

    def fail(text: str, hint: str, exit_code: int, traceback: str = "") -> None:
        hints.append(hint)

    with pytest.raises(SystemExit), reported(fail):
        raise errors.ConfigError("x", hint="do this")

    assert hints == ["do this"]
