"""A stand-in for ``claude``: a shell script that notes how it was called and does what the test says."""

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
    """How the program was called once."""

    argv: list[str]
    env: dict[str, str]
    stdin: str
    cwd: Path

    def flag(self, name: str) -> str | None:
        """The value of ``--name=value``; an empty text for a bare ``--name``."""
        found = [word for word in self.argv if word.partition("=")[0] == f"--{name}"]
        return found[0].partition("=")[2] if found else None


class FakeClaude:
    """The script, and what is known of its runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "claude"
        self.path.write_text(PROGRAM.format(folder=shlex.quote(str(folder))))
        self.path.chmod(0o755)
        (folder / "version").write_text("echo '2.1.197 (Claude Code)'")
        (folder / "auth").write_text("""echo '{"loggedIn": true}'""")
        self.always(says(result()))

    def always(self, script: str) -> None:
        """What each run does that nothing else was said of."""
        (self.folder / "script").write_text(script)

    def will(self, *scripts: str) -> None:
        """What the next runs do, one after the other."""
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


def says(*events: dict[str, Any] | str, status: int = 0) -> str:
    """A script that prints *events*, JSON or not, and ends."""
    lines = "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in events)
    return f"cat <<'END_OF_LINES'\n{lines}END_OF_LINES\nexit {status}\n"


def result(text: str = "hi", **fields: Any) -> dict[str, Any]:
    """The line that decides; *fields* win."""
    return {
        "type": "result", "subtype": "success", "is_error": False, "result": text, "session_id": SESSION,
        "num_turns": 1, "total_cost_usd": 0.25, "permission_denials": [], "terminal_reason": "completed",
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 200, "output_tokens": 3}, **fields,
    }  # fmt: skip


def failed(text: str, **fields: Any) -> dict[str, Any]:
    """A failure as the program tells it, success written on it."""
    return result(text, is_error=True, **fields)


def assistant(*blocks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A line of what Claude said or began to do."""
    return {"type": "assistant", "message": {"model": "claude-x", "content": list(blocks)}, **fields}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


class Told:
    """Progress, collected."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, update: str | Response, /) -> Awaitable[None]:
        self.texts.append(update if isinstance(update, str) else update.text)
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        told.set_result(None)
        return told


class Asking:
    """Backends that run the stand-in, all with the same state folder."""

    def __init__(self, claude: FakeClaude, state: Path, cwd: Path) -> None:
        self.claude, self.state, self.cwd, self.told = claude, state, cwd, Told()

    def backend(self, **options: str | list[str]) -> Any:
        given = {"bin": str(self.claude.path), "cwd": str(self.cwd), **options}
        return create_backend("claude-code", given, workspace_id="ws_1", state_dir=self.state)

    async def ask(self, message: str | Request = "hello", *, backend: Any = None, **fields: Any) -> Response:
        """The answer to one message, from a backend that was just started unless one is given."""
        request = message if isinstance(message, Request) else make_request(message, **fields)
        answer: Response = await (backend or self.backend()).handle_a2a(request, self.told)
        return answer
