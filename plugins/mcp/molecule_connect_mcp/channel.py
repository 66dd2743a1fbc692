"""What has to be so that Claude Code shows pushed messages, as far as that can be told from here.

Claude Code drops the notifications of a server that it does not take for a channel, without a word.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FIRST_VERSION = (2, 1, 80)
LAUNCH = "claude --dangerously-load-development-channels server:molecule"
MANAGED_SETTINGS = (
    Path("/etc/claude-code/managed-settings.json"),
    Path("/Library/Application Support/ClaudeCode/managed-settings.json"),
)
STILL = "messages still wait in the inbox: wait_for_message gets them"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_OTHER_LOGINS = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CODE_USE_FOUNDRY",
)
_FLAGS = ("--dangerously-load-development-channels", "--channels")


def is_claude_code(host: str) -> bool:
    """Whether a host that calls itself *host* is Claude Code."""
    return "claude-code" in host.lower() or "claude code" in host.lower()


def missing_for_host(
    host: str, command: Sequence[str], environ: Mapping[str, str], *, managed: Iterable[Path] = MANAGED_SETTINGS
) -> list[str]:
    """What is missing in the session of *host*, which was started as *command* (empty: that is not known).

    Args:
        environ: Our own; a host hands its environment on.
    """
    if not is_claude_code(host):
        return [f"{host or 'this host'} is not known to show channels"]
    lacks = [*missing_version(host), *missing_flags(command)]
    return [*lacks, *missing_login(environ), *missing_permission(managed)]


def missing_version(told: str) -> Iterator[str]:
    """*told* holds a version, if one is known."""
    found = _VERSION.search(told)
    if found and tuple(map(int, found.groups())) < FIRST_VERSION:
        first = ".".join(map(str, FIRST_VERSION))
        yield f"Claude Code {found[0]} is too old for channels: {first} is the first with them"


def missing_flags(command: Sequence[str]) -> Iterator[str]:
    """What the command line of a session that runs lacks."""
    if not command:
        return
    if any(word in ("-p", "--print") for word in command):
        yield "Claude Code runs without a terminal (-p), where it shows no channels"
    words = [word.partition("=")[0] for word in command]
    if not any(flag in words for flag in _FLAGS):
        yield f"Claude Code was started without a channel: start it as '{LAUNCH}', with the server's name in its config"


def missing_permission(managed: Iterable[Path]) -> Iterator[str]:
    """What an organisation's settings on this machine forbid."""
    for path in managed:
        settings = _read(path)
        if settings is None:
            continue
        if settings.get("channelsEnabled") is not True:
            yield f'{path} does not say "channelsEnabled": true, which Team and Enterprise plans need'
        allowed = settings.get("allowedChannelPlugins")
        if allowed is not None and not (isinstance(allowed, list) and all(isinstance(one, dict) for one in allowed)):
            yield f"allowedChannelPlugins in {path} is no list of objects, so it allows nothing"


def missing_login(environ: Mapping[str, str]) -> Iterator[str]:
    """What speaks against it in the environment that Claude Code is started with."""
    keys = [name for name in _OTHER_LOGINS if environ.get(name)]
    if keys:
        yield f"{keys[0]} is set: Claude Code 2.1.197 shows channels to a claude.ai login only"


def host_command(process: int | None = None) -> list[str]:
    """The command line of the process that started this one; empty where the system does not tell."""
    process = os.getppid() if process is None else process
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return _asked_of_ps(process)


def installed_version(program: str, environ: Mapping[str, str]) -> str:
    """What *program* says its version is; empty when it says none."""
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own claude
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=20,
            stdin=subprocess.DEVNULL,
            env={**environ},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = _VERSION.search(done.stdout)
    return found[0] if found else ""


def _asked_of_ps(process: int) -> list[str]:
    try:
        done = subprocess.run(  # noqa: S603 - a number of our own
            ["ps", "-o", "args=", "-p", str(process)],  # noqa: S607 - a system without /proc has it in its path
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
