"""The shell that runs the command."""

import os
import subprocess
from collections.abc import Mapping

from molecule_connect.process import require_posix

SHELL = "/bin/sh"


def shell_line(cmd: str, *, platform: str = os.name) -> list[str]:
    """*cmd* as a program and its arguments.

    Raises:
        ConfigError: This isn't a POSIX system: ``cmd.exe`` has other quoting rules.
    """
    require_posix(platform)
    return [SHELL, "-c", cmd]


def ask_shell(*arguments: str, environment: Mapping[str, str]) -> "subprocess.CompletedProcess[bytes]":
    """Run the shell with *arguments*, for at most ten seconds."""
    return subprocess.run(  # noqa: S603
        [SHELL, *arguments],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=10,
        check=False,
    )
