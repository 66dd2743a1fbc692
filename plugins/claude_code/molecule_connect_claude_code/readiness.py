"""Checks of the program, its version and its login, before the first message."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from molecule_connect.process import Ending, Program, Stop
from molecule_connect_claude_code.permissions import config_folder

INSTALL = "install it with: npm install -g @anthropic-ai/claude-code, or name it with --backend-opt bin=/path/to/claude"
# All 2.1 releases have `--permission-mode=dontAsk` and `--include-partial-messages`.
MIN_VERSION = (2, 1, 0)
BROKEN_VERSIONS = {(2, 1, 150): "it marks answers as errors"}
CREDENTIAL_VARIABLES = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CODE_USE_FOUNDRY",
)

_TIMEOUT_SECONDS = 12.0
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def find_program(bin_: str, environment: Mapping[str, str]) -> Path | None:
    """Return the absolute path of the program *bin_*, a name or a path. None if it isn't found."""
    name = str(Path(bin_).expanduser()) if "/" in bin_ else bin_
    found = shutil.which(name, path=environment.get("PATH"))
    return Path(found).absolute() if found else None


async def problems_with(bin_: str, environment: Mapping[str, str]) -> list[str]:
    """Check that the program is installed, starts, has a supported version, and is logged in."""
    program = find_program(bin_, environment)
    if program is None:
        return [f"the program {bin_!r} is not found; {INSTALL}"]
    ending = await _run(program, "--version", environment=environment)
    version = _VERSION.search(ending.output.decode(errors="replace"))
    if ending.stop is not Stop.NONE or ending.status or version is None:
        return [_start_problem(program, ending)]
    release = (int(version[1]), int(version[2]), int(version[3]))
    if release < MIN_VERSION:
        required = ".".join(map(str, MIN_VERSION))
        return [f"Claude Code {version[0]} is too old, {required} or newer is required; run: claude update"]
    if release in BROKEN_VERSIONS:
        return [f"Claude Code {version[0]} cannot be used: {BROKEN_VERSIONS[release]}; run: claude update"]
    return [] if await _is_logged_in(program, environment) else [_login_problem(environment)]


async def _run(program: Path, *arguments: str, environment: Mapping[str, str]) -> Ending:
    try:
        return await Program([str(program), *arguments], environment=environment, timeout=_TIMEOUT_SECONDS).run()
    except OSError as exc:
        return Ending(status=126, output=b"", error_tail=exc.strerror or str(exc))


def _start_problem(program: Path, ending: Ending) -> str:
    if "node" in ending.error_tail and (ending.status == 127 or "No such file" in ending.error_tail):
        return f"{program} needs Node.js, which is not installed; install Node.js 20 or newer"
    if ending.stop is not Stop.NONE:
        return f"{program} --version did not exit within {_TIMEOUT_SECONDS:g} s; try it in a terminal"
    why = ending.error_tail[-200:] or f"exit status {ending.status}, and no version in its output"
    return f"{program} --version failed: {why}; {INSTALL}"


async def _is_logged_in(program: Path, environment: Mapping[str, str]) -> bool:
    """Check variables and the credentials file, then ask the program, which also uses keychains and helpers."""
    if (
        any(environment.get(name) for name in CREDENTIAL_VARIABLES)
        or (config_folder(environment) / ".credentials.json").exists()
    ):
        return True
    ending = await _run(program, "auth", "status", environment=environment)
    try:
        status = json.loads(ending.output)
    except (ValueError, RecursionError):
        return ending.status == 0
    return bool(status.get("loggedIn")) if isinstance(status, dict) else ending.status == 0


def _login_problem(environment: Mapping[str, str]) -> str:
    return (
        f"Claude Code is not logged in (no credentials in {config_folder(environment)}); run claude once and log in,"
        " or set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN"
    )
