"""Terminals and pipes that do not have every character."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from molecule_connect.console import encoding

MOLECULE = [sys.executable, "-m", "molecule_connect"]
ENCODINGS = (
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp1252:strict"},
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)


def run(variables: dict[str, str], *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables}
    return subprocess.run([*MOLECULE, *arguments], input=stdin, capture_output=True, env=environment, timeout=60)


@pytest.mark.parametrize("variables", ENCODINGS, ids=lambda given: " ".join(given.values()))
@pytest.mark.parametrize(
    "stdin", [None, "fine \U0001f600 \xe9".encode(), b"fine \xff\xfe"], ids=["word", "utf-8", "bytes"]
)
def test_an_answer_is_shown_in_any_encoding(variables: dict[str, str], stdin: bytes | None) -> None:
    text = ("fine \U0001f600 \xe9 \u4e2d",) if stdin is None else ()
    done = run(variables, "try", "mock", *text, "--backend-opt", "reply=got %s", stdin=stdin or b"")

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"got fine")


@pytest.mark.parametrize("variables", ENCODINGS, ids=lambda given: " ".join(given.values()))
def test_an_error_is_told_in_any_encoding(variables: dict[str, str], tmp_path: Path) -> None:
    done = run(variables, "messages", "list", "--state-dir", str(tmp_path / "\U0001f600"))

    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")
    assert b"Traceback" not in done.stderr


def test_unencodable_characters_become_json_escapes() -> None:
    text = json.dumps({"text": "a\xe9\u4e2d\U0001f600"}, ensure_ascii=False)

    for name in ("ascii", "latin-1", "cp1252"):
        written = text.encode(name, encoding.ESCAPE)
        assert json.loads(written.decode(name)) == {"text": "a\xe9\u4e2d\U0001f600"}
    assert "a\ud800".encode("utf-8", encoding.ESCAPE) == rb"a\ud800"
