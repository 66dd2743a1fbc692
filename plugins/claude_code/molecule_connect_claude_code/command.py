"""The command line and the environment that ``claude`` is started with."""

from collections.abc import Iterable, Mapping

from molecule_connect import OptionError, Request
from molecule_connect.process import request_variables

# What makes a program believe that it runs inside of another Claude Code.
_NESTING = ("CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_SESSION_ID", "CLAUDE_CODE_SSE_PORT")
# What the backend decides by itself; each has an option of its own, or belongs to how it talks to the program.
_OURS = {
    "--print", "-p", "--output-format", "--input-format", "--verbose", "--include-partial-messages",
    "--session-id", "--resume", "-r", "--continue", "-c", "--fork-session", "--no-session-persistence", "--bg",
    "--background", "--worktree", "-w", "--tmux", "--help", "-h", "--version", "-v",
}  # fmt: skip
_WITH_OPTION = {
    "--model": "model", "--fallback-model": "fallback_model", "--effort": "effort", "--mcp-config": "mcp_config",
    "--permission-mode": "permission_mode", "--allowedTools": "allowed_tools", "--allowed-tools": "allowed_tools",
    "--disallowedTools": "disallowed_tools", "--disallowed-tools": "disallowed_tools", "--add-dir": "add_dirs",
    "--append-system-prompt": "append_prompt", "--max-turns": "max_turns", "--max-budget-usd": "max_budget_usd",
    "--tools": "tools", "--setting-sources": "settings", "--dangerously-skip-permissions": "permission_mode",
}  # fmt: skip

# Names the folder whose files go along with the answer.
OUTBOX = "MOLECULE_OUTBOX"
BASE = ("-p", "--output-format=stream-json", "--verbose", "--include-partial-messages")


def check_extra(arguments: Iterable[str]) -> None:
    """Refuse words of ``args`` that would work against the backend.

    Raises:
        OptionError: One of them does.
    """
    for word in arguments:
        flag = word.partition("=")[0]
        if flag in _WITH_OPTION:
            raise OptionError(
                f"option 'args' of backend claude-code holds {flag}",
                hint=f"--backend-opt {_WITH_OPTION[flag]}=... says the same",
            )
        if flag in _OURS or word == "--" or "\0" in word:
            raise OptionError(
                f"option 'args' of backend claude-code holds {flag[:40]!r}, which the backend decides by itself",
                hint="leave it out",
            )


def flag(name: str, value: object) -> list[str]:
    """``--name=value``, or nothing without a value. In one word: a value that begins with a dash stays a value."""
    return [f"--{name}={value}"] if value not in (None, "") else []


def environment_for(base: Mapping[str, str], request: Request | None) -> dict[str, str]:
    """*base* without what steers a nested Claude Code, and with the facts of *request* where it is given."""
    environment = {name: value for name, value in base.items() if name not in _NESTING}
    if request is not None:
        environment |= request_variables(request)
    return environment
