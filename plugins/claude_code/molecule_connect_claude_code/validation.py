"""Validators and converters of the options; invalid options are rejected when the backend is created."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import attrs

from molecule_connect import OptionError, config_home
from molecule_connect_claude_code.permissions import contains

# Linux limits a command-line argument to 128 KiB.
MAX_ARGUMENT_BYTES = 100_000
SETTING_SOURCES = ("user", "project", "local")
# Flags that the backend sets to communicate with Claude Code.
_RESERVED_FLAGS = {
    "--print", "-p", "--output-format", "--input-format", "--verbose", "--include-partial-messages",
    "--session-id", "--resume", "-r", "--continue", "-c", "--fork-session", "--no-session-persistence", "--bg",
    "--background", "--worktree", "-w", "--tmux", "--help", "-h", "--version", "-v",
}  # fmt: skip
_OPTION_OF_FLAG = {
    "--model": "model", "--fallback-model": "fallback_model", "--effort": "effort", "--mcp-config": "mcp_config",
    "--permission-mode": "permission_mode", "--allowedTools": "allowed_tools", "--allowed-tools": "allowed_tools",
    "--disallowedTools": "disallowed_tools", "--disallowed-tools": "disallowed_tools", "--add-dir": "add_dirs",
    "--append-system-prompt": "append_prompt", "--max-turns": "max_turns", "--max-budget-usd": "max_budget_usd",
    "--tools": "tools", "--setting-sources": "settings", "--dangerously-skip-permissions": "permission_mode",
}  # fmt: skip
_TOOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*\Z")


def _invalid(name: str, problem: str, hint: str) -> OptionError:
    return OptionError(f"option {name!r} of backend claude-code {problem}", hint=hint)


def not_blank(instance: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    if not value.strip() or "\0" in value:
        raise _invalid(attribute.name, "must name a program", "--backend-opt bin=claude, or leave it out")


def single_word(instance: object, attribute: "attrs.Attribute[str | None]", value: str | None) -> None:
    if value is not None and (not value.strip() or any(each.isspace() or each == "\0" for each in value)):
        raise _invalid(attribute.name, "must be a single word", f"--backend-opt {attribute.name}=sonnet")


def additional_arguments(instance: object, attribute: "attrs.Attribute[list[str]]", value: list[str]) -> None:
    """Reject arguments that have an option of their own or that the backend sets."""
    for argument in value:
        flag = argument.partition("=")[0]
        if option := _OPTION_OF_FLAG.get(flag):
            raise _invalid(attribute.name, f"can't contain {flag}", f"use --backend-opt {option}=...")
        if flag in _RESERVED_FLAGS or argument == "--" or "\0" in argument:
            raise _invalid(
                attribute.name, f"can't contain {flag[:40]!r}, which the backend sets itself", "leave it out"
            )


def rules(instance: object, attribute: "attrs.Attribute[list[str]]", value: list[str]) -> None:
    if any(not each.strip() or "\0" in each or each.startswith("-") for each in value):
        raise _invalid(
            attribute.name, "must contain permission rules", f"--backend-opt {attribute.name}='Bash(git log *)'"
        )
    if sum(map(len, value)) > MAX_ARGUMENT_BYTES:
        raise _invalid(
            attribute.name, "is too long for a command line", "put the rules into a settings file of Claude Code"
        )


def existing_folder(instance: object, attribute: "attrs.Attribute[Path]", value: Path) -> None:
    _require_folder(attribute.name, value)


def existing_folders(instance: object, attribute: "attrs.Attribute[list[Path]]", value: list[Path]) -> None:
    for each in value:
        _require_folder(attribute.name, each)


def absolute(path: Path) -> Path:
    """Make *path* absolute, because the program is started in another folder."""
    return Path(path).absolute()


def all_absolute(paths: Iterable[Path]) -> list[Path]:
    return list(map(absolute, paths))


def mcp_configs(values: Iterable[str]) -> list[str]:
    """Keep JSON unchanged and make the paths of files absolute."""
    return [value if value.lstrip().startswith("{") and _is_json(value) else _file(value) for value in values]


def split_by_commas(values: Iterable[str]) -> list[str]:
    """Split ``user,project`` into two values."""
    return [word.strip() for value in values for word in value.split(",")]


def setting_sources(instance: object, attribute: "attrs.Attribute[list[str]]", value: list[str]) -> None:
    if any(each not in SETTING_SOURCES for each in value):
        raise _invalid(
            attribute.name,
            f"must be one or more of {', '.join(SETTING_SOURCES)}",
            "--backend-opt settings=user,project",
        )


def tool_names(instance: object, attribute: "attrs.Attribute[list[str]]", value: list[str]) -> None:
    if any(not _TOOL_NAME.match(each) for each in value):
        raise _invalid(
            attribute.name,
            "must contain names of tools, such as Agent",
            "--backend-opt tools=Agent; put a rule such as Bash(git log *) into allowed_tools",
        )


def require_safe_cwd(cwd: Path, state_root: Path | None) -> None:
    """Reject a working directory that contains more than a project.

    Raises:
        OptionError: It contains the home directory, or overlaps with the state folder or the saved settings.
    """
    home = _home()
    if home is not None and cwd.resolve() == home.resolve():
        problem = "is the home directory"
    elif home is not None and contains(cwd, home):
        problem = f"contains the home directory {home}"
    elif state_root is not None and contains(cwd, state_root):
        problem = f"contains the state folder {state_root}, which contains tokens and the messages of all senders"
    elif state_root is not None and contains(state_root, cwd):
        problem = f"is in the state folder {state_root}, which contains tokens and the messages of all senders"
    elif contains(cwd, config_home()) or contains(config_home(), cwd):
        problem = f"contains the saved settings in {config_home()}, or is in them"
    else:
        return
    raise OptionError(
        f"the working directory of backend claude-code, {cwd}, {problem}",
        hint="cd into a project's folder, or set --backend-opt cwd=/path/to/project"
        "; use --backend-opt allow_unsafe_cwd=true to accept this one",
    )


def prompt_text(instance: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    if len(value.encode(errors="replace")) > MAX_ARGUMENT_BYTES or "\0" in value:
        raise _invalid(attribute.name, "is too long for a command line", "put it into a CLAUDE.md in cwd")


def at_least_two(instance: object, attribute: "attrs.Attribute[int | None]", value: int | None) -> None:
    if value is not None and value < 2:
        raise _invalid(
            attribute.name,
            "must be at least 2, because one turn is not enough for a reply",
            "increase it, or leave it out",
        )


def positive(instance: object, attribute: "attrs.Attribute[float | None]", value: float | None) -> None:
    if value is not None and value <= 0:
        raise _invalid(attribute.name, "must be more than 0", "increase it, or leave it out")


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _require_folder(name: str, path: Path) -> None:
    if not path.is_dir():
        raise _invalid(name, f"must name an existing folder, not {path}", "create it, or name another")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        raise _invalid("mcp_config", "contains invalid JSON", "fix it, or name a JSON file") from None
    return True


def _file(name: str) -> str:
    path = Path(name).expanduser().absolute()
    if "\0" in name or not path.is_file():
        raise _invalid("mcp_config", "must name an existing file", "name a JSON file, or pass the JSON itself")
    return str(path)
