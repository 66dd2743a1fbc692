"""Claude's permissions: available tools, accessible folders, loaded settings, and their description for the operator.

Claude Code permits a lot without a rule, even in ``dontAsk`` mode: reading in its working directory and in its own
folders (including transcripts of other conversations), shell commands that it considers read-only, sub-agents, skills,
worktrees and scheduled tasks. So by default only the tools that a message needs are available, and these folders are
denied. Deny rules take precedence over allow rules and also apply to symlinks, mentions and the shell commands that
Claude Code recognizes. Verified with 2.1.197 and 2.1.332; the drill in ``tests/e2e/test_claude_code_permissions.py``
takes the list of tools from the installed version.
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import attrs

from molecule_connect import config_home
from molecule_connect_claude_code import shell_gate

Mode = Literal["acceptEdits", "auto", "bypassPermissions", "default", "dontAsk", "plan"]

ALL_TOOLS = "default"
_READ_TOOLS = ("Read", "Glob", "Grep", "LS", "NotebookRead")
_EDIT_TOOLS = ("Edit", "MultiEdit", "NotebookEdit")
_WRITE_TOOLS = (*_EDIT_TOOLS, "Write")
# Tools that a mode allows in the working directory.
_MODE_TOOLS: Mapping[str, tuple[str, ...]] = {
    "plan": ("Read", "Glob", "Grep"),
    "acceptEdits": ("Read", "Glob", "Grep", "Edit", "Write", "NotebookEdit"),
    "auto": (ALL_TOOLS,),
    "bypassPermissions": (ALL_TOOLS,),
}
_MODE_DESCRIPTIONS = {
    "plan": "read files in the working directory",
    "acceptEdits": "read and change files in the working directory",
    "auto": "use every tool that Claude Code's classifier allows",
    "bypassPermissions": "use every tool without asking",
}
# Characters with a special meaning in the path of a rule; "?" matches any single character.
_SPECIAL = re.compile(r"[(),*?\[\]{}!\\\x00-\x1f]")
# A path in a rule can't contain parentheses or commas, which delimit paths and rules.
_PLAIN_PATH = re.compile(r"/[^(),*?\[\]{}!\x00-\x1f]+\Z")
_RULE = re.compile(r"(?P<tool>[^(]+)(?:\((?P<path>.*)\)?)?\Z", re.DOTALL)


@attrs.frozen(kw_only=True)
class Permissions:
    """The operator's options for permissions.

    Attributes:
        has_own_settings: Whether the operator passes ``--settings``; Claude Code uses only one.
        state_root: The state folder, if there is one. Its tokens and journal are always denied, like saved settings.
    """

    cwd: Path
    mode: Mode = "dontAsk"
    tools: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    disallowed: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    add_dirs: tuple[Path, ...] = ()
    has_own_settings: bool = False
    state_root: Path | None = None

    @property
    def reads_cwd(self) -> bool:
        """Whether an option allows reading the working directory. Claude Code allows either all of it or nothing."""
        project = any(source in self.settings for source in ("project", "local"))
        by_folder = any(overlap(self.cwd, folder) for folder in self.add_dirs)
        return project or by_folder or self.mode in _MODE_TOOLS or self._has_rule_in_cwd((*_READ_TOOLS, *_WRITE_TOOLS))

    @property
    def writes_cwd(self) -> bool:
        """Whether an option allows changing the working directory."""
        return (self.mode in _MODE_TOOLS and self.mode != "plan") or self._has_rule_in_cwd(_WRITE_TOOLS)

    def flags(self, files: Iterable[str], outbox: Path | None, environment: Mapping[str, str]) -> list[str]:
        """The command-line arguments for a message.

        Args:
            files: The paths of its files that are on this machine.
            outbox: The folder that Claude may write to, if any.
            environment: The variables that Claude Code is started with.
        """
        reads = [f"Read(/{path})" for path in files if _PLAIN_PATH.match(path)]
        # An Edit rule with a path applies to every tool that writes files.
        writes = [f"Edit(/{outbox}/**)"] if outbox is not None and _PLAIN_PATH.match(str(outbox)) else []
        tools = self._tools(("Read",) if reads else (), ("Edit", "Write") if writes else ())
        return [
            f"--tools={','.join(tools)}",
            f"--setting-sources={','.join(self.settings)}",
            *([] if self.settings else ["--strict-mcp-config"]),
            *([] if self.settings or {"Skill", ALL_TOOLS} & set(tools) else ["--disable-slash-commands"]),
            f"--permission-mode={self.mode}",
            *_rules_flag("allowedTools", [*self.allowed, *reads, *writes]),
            *_rules_flag("disallowedTools", self.disallowed),
            *_rules_flag("disallowedTools", self._denied_paths(environment)),
            *([f"--settings={json.dumps(_gate_settings(self._shell_patterns()))}"] if self._has_gate else []),
        ]

    def environment(self) -> dict[str, str]:
        """Variables that keep Claude Code from adding content to the prompt."""
        found = {"CLAUDE_CODE_DISABLE_FILE_MENTIONS": "1"}
        if "user" not in self.settings:
            found["CLAUDE_CODE_DISABLE_AUTO_MEMORY"] = "1"
        if not self.reads_cwd:
            # They include git's user, branch, status and last commits.
            found["CLAUDE_CODE_DISABLE_GIT_INSTRUCTIONS"] = "1"
        return found

    def describe(self) -> str:
        """Describe all permissions in one line, for the operator."""
        may = ["read the files of a message", "write to its outbox"]
        if mode := _MODE_DESCRIPTIONS.get(self.mode):
            may.append(mode)
        elif self.reads_cwd:
            may.append("read files in the working directory")
        if self.add_dirs:
            may.append(f"work in {', '.join(map(str, self.add_dirs))}")
        if self.allowed:
            may.append(f"use {', '.join(self.allowed)}")
        if (self._shell_patterns() and not self._has_gate) or {"Bash", ALL_TOOLS} & set(self.tools):
            may.append("run shell commands that Claude Code considers read-only")
        facts = [f"claude-code may: {', '.join(may)}"]
        if self.disallowed:
            facts.append(f"never: {', '.join(self.disallowed)}")
        if self.tools:
            facts.append(f"available tools: {', '.join(self.tools)}")
        if self.mode != "dontAsk":
            facts.append(f"permission mode: {self.mode}")
        facts += [f"settings: {', '.join(self.settings) or 'none'}", f"working directory: {self.cwd}"]
        if self.state_root is not None and overlap(self.cwd, self.state_root):
            blocked = ["cannot be read"] * (not self.reads_cwd) + ["cannot be sent"] * (not self.writes_cwd)
            if blocked:
                facts.append(f"files {' and '.join(blocked)}, because the state folder is in the working directory")
        return "; ".join(facts)

    def _tools(self, *needed: tuple[str, ...]) -> list[str]:
        named = [tool for tool, _ in self._rules() if not tool.startswith("mcp__")]
        if any(tool == "Edit" and path for tool, path in self._rules()):
            named.append("Write")
        # Claude Code edits only files that it has read.
        for_editing = ["Read"] if set(named) & set(_EDIT_TOOLS) else []
        for_folders = ["Read", "Glob", "Grep"] if self.add_dirs else []
        found = {*named, *for_editing, *for_folders, *self.tools, *_MODE_TOOLS.get(self.mode, ())}
        for each in needed:
            found.update(each)
        return [ALL_TOOLS] if ALL_TOOLS in found else sorted(found)

    def _rules(self) -> list[tuple[str, str]]:
        """The tool and the path or pattern of each allow rule; the second is empty if the rule has none."""
        matches = (_RULE.match(rule) for text in self.allowed for rule in _split_rules(text))
        return [(match["tool"], (match["path"] or "").removesuffix(")")) for match in matches if match]

    def _shell_patterns(self) -> list[str]:
        """The patterns of the allow rules for shell commands."""
        return [pattern for tool, pattern in self._rules() if tool == "Bash"]

    @property
    def _has_gate(self) -> bool:
        """Whether the shell gate is installed. It can't be if loaded settings may contain rules unknown to it."""
        patterns, has_shell_tool = self._shell_patterns(), {"Bash", ALL_TOOLS} & set(self.tools)
        has_other_rules = bool(self.settings) or self.has_own_settings or self.mode in ("auto", "bypassPermissions")
        return bool(patterns) and not has_other_rules and not has_shell_tool and not any(map(_is_unlimited, patterns))

    def _has_rule_in_cwd(self, tools: Iterable[str]) -> bool:
        # An unrestricted shell has access anyway; deny rules would only make its simple commands fail.
        if any(_is_unlimited(pattern) for pattern in self._shell_patterns()):
            return True
        return any(tool in tools and not self._is_outside_cwd(path) for tool, path in self._rules())

    def _is_outside_cwd(self, path: str) -> bool:
        """Whether a rule's path can't match in the working directory. In a rule, the absolute path /x is ``//x``."""
        if path.startswith("~/"):
            start = str(Path.home()) + path[1:]
        elif path.startswith("//"):
            start = path[1:]
        else:
            return False
        plain = re.split(r"[*?\[{!]", start)[0]
        return not overlap(self.cwd, Path(plain.rpartition("/")[0] or "/"))

    def _denied_paths(self, environment: Mapping[str, str]) -> list[str]:
        config, temporary = config_folder(environment), _temporary_folder(environment)
        found = [
            *_deny_rules("Read", config, "/.credentials.json", "/history.jsonl", "/projects/**/*.jsonl"),
            *([] if "user" in self.settings else _deny_rules("Edit", config, "/**")),
        ]
        for tool in ("Read", "Edit"):
            if self.state_root is not None:
                found += _deny_rules(tool, self.state_root, "/*.token", "/journal*")
            # Where 'molecule init' saves tokens and options.
            found += _deny_rules(tool, config_home(), "/token", "/config.toml", "/profiles/**")
        if not self.reads_cwd:
            for folder in (self.cwd, config, temporary):
                found += _deny_rules("Read", folder, "/**")
        if not self.writes_cwd:
            for folder in (self.cwd, temporary):
                found += _deny_rules("Edit", folder, "/**")
        return list(dict.fromkeys(found))


def config_folder(environment: Mapping[str, str]) -> Path:
    """The folder with Claude Code's settings, login and transcripts."""
    configured = environment.get("CLAUDE_CONFIG_DIR")
    return Path(configured).absolute() if configured else Path(environment.get("HOME") or Path.home()) / ".claude"


def _temporary_folder(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("CLAUDE_CODE_TMPDIR") or "/tmp").absolute() / f"claude-{os.getuid()}"  # noqa: S108


def _deny_rules(tool: str, folder: Path, *patterns: str) -> Iterator[str]:
    for path in dict.fromkeys((folder, folder.resolve())):
        start = _SPECIAL.sub("?", str(path)).rstrip("/")
        yield from (f"{tool}(/{start}{pattern})" for pattern in patterns)


def _is_unlimited(pattern: str) -> bool:
    return pattern.strip() in ("", "*", "**", ":*")


def _gate_settings(patterns: Iterable[str]) -> dict[str, object]:
    """Settings with the hook that refuses shell commands that match none of *patterns*."""
    command = shlex.join([sys.executable, "-I", shell_gate.__file__, *patterns])
    hook = {"type": "command", "command": command}
    return {"hooks": {"PreToolUse": [{"matcher": "Bash", "hooks": [hook]}]}}


def _rules_flag(name: str, rules: Iterable[str]) -> list[str]:
    text = ",".join(rules)
    return [f"--{name}={text}"] if text else []


def _split_rules(text: str) -> list[str]:
    """Split *text* at commas and spaces outside parentheses, as Claude Code does."""
    rules, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if depth <= 0 and (char == "," or char.isspace()):
            rules.append("")
        else:
            rules[-1] += char
    return [rule for rule in rules if rule]


def contains(folder: Path, other: Path) -> bool:
    """Whether *other* is *folder* or inside it, after resolving symlinks."""
    return other.resolve().is_relative_to(folder.resolve())


def overlap(one: Path, other: Path) -> bool:
    """Whether the folders are the same or one contains the other, after resolving symlinks."""
    return contains(one, other) or contains(other, one)
