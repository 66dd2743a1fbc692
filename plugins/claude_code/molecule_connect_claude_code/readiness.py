"""What stands in the way of serving: found before the first message, not by its sender."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from molecule_connect.process import Ending, Program, Stop
from molecule_connect_claude_code.permissions import config_folder

INSTALL = "install it with: npm install -g @anthropic-ai/claude-code, or name it with --backend-opt bin=/path/to/claude"
# `--permission-mode=dontAsk` and `--include-partial-messages` are in all of 2.1.
OLDEST = (2, 1, 0)
BROKEN = {(2, 1, 150): "it marks answers as errors"}
CREDENTIALS = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CODE_USE_FOUNDRY",
)

_SECONDS = 12.0
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def find_program(bin_: str, environment: Mapping[str, str]) -> Path | None:
    """The whole path of the program *bin_*, a name or a path, or None where there is none."""
    named = str(Path(bin_).expanduser()) if "/" in bin_ else bin_
    found = shutil.which(named, path=environment.get("PATH"))
    return Path(found).absolute() if found else None


async def problems_with(bin_: str, environment: Mapping[str, str]) -> list[str]:
    """Whether the program is there, starts, has a version that works, and is logged in."""
    program = find_program(bin_, environment)
    if program is None:
        return [f"the program {bin_!r} is not found; {INSTALL}"]
    said = await _ask(program, "--version", environment=environment)
    version = _VERSION.search(said.output.decode(errors="replace"))
    if said.stop is not Stop.NONE or said.status or version is None:
        return [_does_not_start(program, said)]
    number = (int(version[1]), int(version[2]), int(version[3]))
    if number < OLDEST:
        return [f"Claude Code {version[0]} is too old, {'.'.join(map(str, OLDEST))} is needed; run: claude update"]
    if number in BROKEN:
        return [f"Claude Code {version[0]} cannot be used: {BROKEN[number]}; run: claude update"]
    return [] if await _is_logged_in(program, environment) else [_not_logged_in(environment)]


async def _ask(program: Path, *arguments: str, environment: Mapping[str, str]) -> Ending:
    try:
        return await Program([str(program), *arguments], environment=environment, timeout=_SECONDS).run()
    except OSError as exc:
        return Ending(status=126, output=b"", error_tail=exc.strerror or str(exc))


def _does_not_start(program: Path, said: Ending) -> str:
    if "node" in said.error_tail and (said.status == 127 or "No such file" in said.error_tail):
        return f"{program} needs Node.js, which is not found; install Node.js 20 or newer"
    if said.stop is not Stop.NONE:
        return f"{program} --version did not end within {_SECONDS:g} s; try it in a terminal"
    why = said.error_tail[-200:] or f"exit status {said.status}, and no version in what it printed"
    return f"{program} --version failed: {why}; {INSTALL}"


async def _is_logged_in(program: Path, environment: Mapping[str, str]) -> bool:
    """By what lies here, which is quick; else by the program, which also knows keychains and helpers."""
    if (
        any(environment.get(name) for name in CREDENTIALS)
        or (config_folder(environment) / ".credentials.json").exists()
    ):
        return True
    said = await _ask(program, "auth", "status", environment=environment)
    try:
        status = json.loads(said.output)
    except (ValueError, RecursionError):
        return said.status == 0
    return bool(status.get("loggedIn")) if isinstance(status, dict) else said.status == 0


def _not_logged_in(environment: Mapping[str, str]) -> str:
    return (
        f"Claude Code is not logged in (no credentials in {config_folder(environment)}); run claude once and log in,"
        " or set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN"
    )
