"""A fake ``claude``: a shell script that records its calls and runs scripts of the test."""

import asyncio
import json
import shlex
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import attrs

from molecule_connect import Request, Response, create_backend
from molecule_connect.testing import make_request

SESSION = "11111111-2222-4333-8444-555555555555"
PROGRAM = """#!/bin/sh
cd -P . ; at={folder}
case "$1" in
  --version) . "$at/version"; exit ;;
  auth) . "$at/auth"; exit ;;
esac
run=$(ls "$at" | grep -c '^run')
mkdir "$at/run$run"
pwd > "$at/run$run/cwd"
printf '%s\\0' "$@" > "$at/run$run/argv"
env -0 > "$at/run$run/env"
cat > "$at/run$run/stdin"
if [ -e "$at/script$run" ]; then . "$at/script$run"; else . "$at/script"; fi
"""


@attrs.frozen(kw_only=True)
class Run:
    """A recorded call of the program."""

    argv: list[str]
    env: dict[str, str]
    stdin: str
    cwd: Path

    def flag(self, name: str) -> str | None:
        """The value of ``--name=value``, empty for a bare ``--name``, or None."""
        found = [word for word in self.argv if word.partition("=")[0] == f"--{name}"]
        return found[0].partition("=")[2] if found else None


class FakeClaude:
    """The script and its recorded runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "claude"
        self.path.write_text(PROGRAM.format(folder=shlex.quote(str(folder))))
        self.path.chmod(0o755)
        (folder / "version").write_text("echo '2.1.197 (Claude Code)'")
        (folder / "auth").write_text("""echo '{"loggedIn": true}'""")
        self.set_default(prints(result()))

    def set_default(self, script: str) -> None:
        """Set the script of runs without a script of their own."""
        (self.folder / "script").write_text(script)

    def set_next(self, *scripts: str) -> None:
        """Set the scripts of the next runs."""
        done = len(self.runs)
        for number, script in enumerate(scripts, done):
            (self.folder / f"script{number}").write_text(script)

    @property
    def runs(self) -> list[Run]:
        return [_read(place) for place in sorted(self.folder.glob("run[0-9]*"), key=lambda place: int(place.name[3:]))]


def _read(place: Path) -> Run:
    def texts(name: str) -> list[str]:
        return (place / name).read_text(errors="replace").split("\0")[:-1]

    return Run(
        argv=texts("argv"),
        env=dict(line.partition("=")[::2] for line in texts("env")),
        stdin=(place / "stdin").read_text(errors="replace"),
        cwd=Path((place / "cwd").read_text().strip()),
    )


def prints(*events: dict[str, Any] | str, status: int = 0) -> str:
    """A script that prints *events*, which may be JSON or plain text, and exits."""
    lines = "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in events)
    return f"cat <<'END_OF_LINES'\n{lines}END_OF_LINES\nexit {status}\n"


def result(text: str = "hi", **fields: Any) -> dict[str, Any]:
    """A result line; *fields* override the defaults."""
    return {
        "type": "result", "subtype": "success", "is_error": False, "result": text, "session_id": SESSION,
        "num_turns": 1, "total_cost_usd": 0.25, "permission_denials": [], "terminal_reason": "completed",
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 200, "output_tokens": 3}, **fields,
    }  # fmt: skip


def failed(text: str, **fields: Any) -> dict[str, Any]:
    """A result line of a failure, which also has ``subtype: success``."""
    return result(text, is_error=True, **fields)


def assistant(*blocks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A line with content blocks of Claude."""
    return {"type": "assistant", "message": {"model": "claude-x", "content": list(blocks)}, **fields}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


class ProgressLog:
    """Collects progress updates."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, update: str | Response, /) -> Awaitable[None]:
        self.texts.append(update if isinstance(update, str) else update.text)
        reported: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        reported.set_result(None)
        return reported


class Asking:
    """Creates backends that run the fake program, all with the same state folder, and asks them."""

    def __init__(self, claude: FakeClaude, state: Path, cwd: Path) -> None:
        self.claude, self.state, self.cwd, self.progress = claude, state, cwd, ProgressLog()

    def backend(self, **options: str | list[str]) -> Any:
        given = {"bin": str(self.claude.path), "cwd": str(self.cwd), **options}
        return create_backend("claude-code", given, workspace_id="ws_1", state_dir=self.state)

    async def ask(self, message: str | Request = "hello", *, backend: Any = None, **fields: Any) -> Response:
        """Send a message to *backend*, or to a new one, and return the response."""
        request = message if isinstance(message, Request) else make_request(message, **fields)
        response: Response = await (backend or self.backend()).handle_a2a(request, self.progress)
        return response
