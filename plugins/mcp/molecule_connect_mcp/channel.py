"""Detects why Claude Code wouldn't show pushed messages: it silently drops notifications if a condition isn't met."""

import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MIN_VERSION = (2, 1, 80)
LAUNCH = "claude --dangerously-load-development-channels server:molecule"
MANAGED_SETTINGS = (
    Path("/etc/claude-code/managed-settings.json"),
    Path("/Library/Application Support/ClaudeCode/managed-settings.json"),
)
FALLBACK = "messages stay in the inbox: wait_for_message returns them"
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
    """Whether the host with the name *host* is Claude Code."""
    return "claude-code" in host.lower() or "claude code" in host.lower()


def missing_for_host(
    host: str, command: Sequence[str], environ: Mapping[str, str], *, managed: Iterable[Path] = MANAGED_SETTINGS
) -> list[str]:
    """The conditions that the session doesn't meet.

    Args:
        host: The name and version of the host.
        command: The command line of the host; empty if unknown.
        environ: The environment of this process, which inherits the host's.
    """
    if not is_claude_code(host):
        return [f"{host or 'this host'} is not known to show channels"]
    return [*missing_version(host), *missing_flags(command), *missing_login(environ), *missing_permission(managed)]


def missing_version(text: str) -> Iterator[str]:
    """Check the version in *text*, if it contains one."""
    found = _VERSION.search(text)
    if found and tuple(map(int, found.groups())) < MIN_VERSION:
        minimum = ".".join(map(str, MIN_VERSION))
        yield f"Claude Code {found[0]} is too old for channels, which need {minimum}"


def missing_flags(command: Sequence[str]) -> Iterator[str]:
    """Check the command line of a running session."""
    if not command:
        return
    if any(word in ("-p", "--print") for word in command):
        yield "Claude Code was started without a terminal (-p), where it shows no channels"
    words = [word.partition("=")[0] for word in command]
    if not any(flag in words for flag in _FLAGS):
        yield f"Claude Code was started without a channel: start it as '{LAUNCH}', with the name from its config"


def missing_permission(managed: Iterable[Path]) -> Iterator[str]:
    """Check the settings that an organization manages on this machine."""
    for path in managed:
        settings = _read_json_object(path)
        if settings is None:
            continue
        if settings.get("channelsEnabled") is not True:
            yield f'{path} does not say "channelsEnabled": true, which Team and Enterprise plans need'
        allowed = settings.get("allowedChannelPlugins")
        if allowed is not None and not (isinstance(allowed, list) and all(isinstance(one, dict) for one in allowed)):
            yield f"allowedChannelPlugins in {path} is not a list of objects, so it allows nothing"


def missing_login(environ: Mapping[str, str]) -> Iterator[str]:
    """Check the login in the environment of Claude Code."""
    keys = [name for name in _OTHER_LOGINS if environ.get(name)]
    if keys:
        yield f"{keys[0]} is set: Claude Code 2.1.197 shows channels only with a claude.ai login"


def host_command(process: int | None = None) -> list[str]:
    """The command line of *process*, or of the parent process; empty if it can't be read."""
    process = os.getppid() if process is None else process
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return _command_from_ps(process)


def installed_version(program: str, environ: Mapping[str, str]) -> str:
    """Run *program* with --version and return the version; empty if it prints none."""
    try:
        done = subprocess.run(  # noqa: S603 - the operator's claude
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


def _command_from_ps(process: int) -> list[str]:
    try:
        done = subprocess.run(  # noqa: S603 - the argument is a number
            ["ps", "-o", "args=", "-p", str(process)],  # noqa: S607 - systems without /proc have it in PATH
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split()


def _read_json_object(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
