"""What the options may be: a bad one is refused when the backend is made, before any message."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import attrs

from molecule_connect import OptionError
from molecule_connect_claude_code.command import check_extra
from molecule_connect_claude_code.permissions import contains

# The kernel's limit for one word of a command line is 128 KiB.
LONGEST_WORD = 100_000
SETTING_SOURCES = ("user", "project", "local")
_TOOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*\Z")


def _refused(name: str, what: str, hint: str) -> OptionError:
    return OptionError(f"option {name!r} of backend claude-code {what}", hint=hint)


def not_blank(instance: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    if not value.strip() or "\0" in value:
        raise _refused(attribute.name, "names no program", "--backend-opt bin=claude, or leave it out")


def optional_word(instance: object, attribute: "attrs.Attribute[str | None]", value: str | None) -> None:
    if value is not None and (not value.strip() or any(each.isspace() or each == "\0" for each in value)):
        raise _refused(attribute.name, "must be one word", f"--backend-opt {attribute.name}=sonnet")


def extra_words(instance: object, attribute: "attrs.Attribute[list[str]]", value: list[str]) -> None:
    check_extra(value)


def words(instance: object, attribute: "attrs.Attribute[list[str]]", value: list[str]) -> None:
    if any(not each.strip() or "\0" in each or each.startswith("-") for each in value):
        raise _refused(attribute.name, "holds what is no tool", f"--backend-opt {attribute.name}='Bash(git log *)'")
    if sum(map(len, value)) > LONGEST_WORD:
        raise _refused(attribute.name, "is too long for a command line", "put the rules into Claude Code's settings")


def is_folder(instance: object, attribute: "attrs.Attribute[Path]", value: Path) -> None:
    _require_folder(attribute.name, value)


def are_folders(instance: object, attribute: "attrs.Attribute[list[Path]]", value: list[Path]) -> None:
    for each in value:
        _require_folder(attribute.name, each)


def whole(path: Path) -> Path:
    """Its whole path: the program is started in another folder than ours."""
    return Path(path).absolute()


def all_whole(paths: Iterable[Path]) -> list[Path]:
    """Their whole paths."""
    return list(map(whole, paths))


def mcp_configs(given: Iterable[str]) -> list[str]:
    """Each as the program takes it: JSON as it is, a file by its whole path."""
    return [each if each.lstrip().startswith("{") and _is_json(each) else _file(each) for each in given]


def split_by_commas(given: Iterable[str]) -> list[str]:
    """``user,project`` as two."""
    return [word.strip() for each in given for word in each.split(",")]


def setting_sources(instance: object, attribute: "attrs.Attribute[list[str]]", value: list[str]) -> None:
    if any(each not in SETTING_SOURCES for each in value):
        raise _refused(attribute.name, f"takes {', '.join(SETTING_SOURCES)}", "--backend-opt settings=user,project")


def tool_names(instance: object, attribute: "attrs.Attribute[list[str]]", value: list[str]) -> None:
    if any(not _TOOL_NAME.match(each) for each in value):
        raise _refused(
            attribute.name,
            "takes the names of tools, such as Agent",
            "--backend-opt tools=Agent; a rule such as Bash(git log *) belongs into allowed_tools",
        )


def require_safe_cwd(cwd: Path, state_root: Path | None) -> None:
    """Refuse a working directory that holds more than a project.

    Raises:
        OptionError: It is or contains the home directory, or overlaps with the state folder.
    """
    home = _home()
    if home is not None and cwd.resolve() == home.resolve():
        what = "is the home directory"
    elif home is not None and contains(cwd, home):
        what = f"contains the home directory {home}"
    elif state_root is not None and contains(cwd, state_root):
        what = f"contains the state folder {state_root}, which holds tokens and the messages of all senders"
    elif state_root is not None and contains(state_root, cwd):
        what = f"is in the state folder {state_root}, which holds tokens and the messages of all senders"
    else:
        return
    raise OptionError(
        f"the working directory of backend claude-code, {cwd}, {what}",
        hint="cd into a project's folder, or name one with --backend-opt cwd=/path/to/project"
        " (--backend-opt allow_unsafe_cwd=true accepts this one)",
    )


def short_enough(instance: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    if len(value.encode(errors="replace")) > LONGEST_WORD or "\0" in value:
        raise _refused(attribute.name, "is too long for a command line", "put it into a CLAUDE.md in cwd")


def at_least_two(instance: object, attribute: "attrs.Attribute[int | None]", value: int | None) -> None:
    if value is not None and value < 2:
        raise _refused(attribute.name, "must be at least 2: one is not enough for an answer", "or leave it out")


def above_zero(instance: object, attribute: "attrs.Attribute[float | None]", value: float | None) -> None:
    if value is not None and value <= 0:
        raise _refused(attribute.name, "must be more than 0", "or leave it out")


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _require_folder(name: str, path: Path) -> None:
    if not path.is_dir():
        raise _refused(name, f"names no folder: {path}", "make it, or name another")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        raise _refused("mcp_config", "holds JSON that cannot be read", "or name a file that holds it") from None
    return True


def _file(name: str) -> str:
    path = Path(name).expanduser().absolute()
    if "\0" in name or not path.is_file():
        raise _refused("mcp_config", "names no file", "name a JSON file, or write the JSON itself")
    return str(path)
