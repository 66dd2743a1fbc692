"""What Claude may do: which tools exist, what they may touch, which settings are loaded, and how that is reported.

Claude Code permits many things without a rule, also in ``dontAsk`` mode: reading in its working directory and in its
own folders (transcripts of other conversations among them), shell commands that it takes for read-only, sub-agents,
skills, worktrees, scheduled tasks. So by default only the tools exist that a message needs, and the folders are denied.
Deny rules win over allow rules, and hold for symlinks, for mentions and for the shell commands that Claude Code
recognizes. Verified with 2.1.197 and 2.1.332; the drill in ``tests/e2e/test_claude_code.py`` takes the list of tools
from the installed version.
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

from molecule_connect_claude_code import shell_gate

Mode = Literal["acceptEdits", "auto", "bypassPermissions", "default", "dontAsk", "plan"]

ALL_TOOLS = "default"
_READERS = ("Read", "Glob", "Grep", "LS", "NotebookRead")
_EDITORS = ("Edit", "MultiEdit", "NotebookEdit")
_WRITERS = (*_EDITORS, "Write")
# What a mode opens in the working directory.
_MODE_TOOLS: Mapping[str, tuple[str, ...]] = {
    "plan": ("Read", "Glob", "Grep"),
    "acceptEdits": ("Read", "Glob", "Grep", "Edit", "Write", "NotebookEdit"),
    "auto": (ALL_TOOLS,),
    "bypassPermissions": (ALL_TOOLS,),
}
_MODE_WORDS = {
    "plan": "read files in the working directory",
    "acceptEdits": "read and change files in the working directory",
    "auto": "use every tool that Claude Code's own classifier lets pass",
    "bypassPermissions": "use every tool without asking",
}
# In a rule's path these have a meaning of their own; "?" stands for any one character.
_SPECIAL = re.compile(r"[(),*?\[\]{}!\\\x00-\x1f]")
# A rule holds a path between parentheses, and rules stand between commas.
_PLAIN_PATH = re.compile(r"/[^(),*?\[\]{}!\x00-\x1f]+\Z")
_RULE = re.compile(r"(?P<tool>[^(]+)(?:\((?P<where>.*)\)?)?\Z", re.DOTALL)


@attrs.frozen(kw_only=True)
class Permissions:
    """The operator's options that decide what Claude may do.

    Attributes:
        has_own_settings: Whether the operator passes ``--settings``, of which Claude Code heeds one only.
        state_root: The state folder, if it is known. Its tokens and its journal are never readable.
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
        """Whether anything opens the working directory for reading: Claude Code opens all of it, or nothing."""
        project = any(source in self.settings for source in ("project", "local"))
        by_folder = any(overlap(self.cwd, folder) for folder in self.add_dirs)
        return project or by_folder or self.mode in _MODE_TOOLS or self._has_rule_in_cwd((*_READERS, *_WRITERS))

    @property
    def writes_cwd(self) -> bool:
        """Whether anything opens the working directory for changes."""
        return (self.mode in _MODE_TOOLS and self.mode != "plan") or self._has_rule_in_cwd(_WRITERS)

    def flags(self, files: Iterable[str], outbox: Path | None, environment: Mapping[str, str]) -> list[str]:
        """The words of the command line for one message with *files* on this machine, and an *outbox* or none."""
        reads = [f"Read(/{path})" for path in files if _PLAIN_PATH.match(path)]
        # Rules for Edit with a path hold for every tool that writes files.
        writes = [f"Edit(/{outbox}/**)"] if outbox is not None and _PLAIN_PATH.match(str(outbox)) else []
        tools = self._tools(("Read",) if reads else (), ("Edit", "Write") if writes else ())
        return [
            f"--tools={','.join(tools)}",
            f"--setting-sources={','.join(self.settings)}",
            *([] if self.settings else ["--strict-mcp-config"]),
            *([] if self.settings or {"Skill", ALL_TOOLS} & set(tools) else ["--disable-slash-commands"]),
            f"--permission-mode={self.mode}",
            *_joined("allowedTools", [*self.allowed, *reads, *writes]),
            *_joined("disallowedTools", self.disallowed),
            *_joined("disallowedTools", self._closed(environment)),
            *([f"--settings={json.dumps(_gated(self._shells()))}"] if self._has_gate else []),
        ]

    def environment(self) -> dict[str, str]:
        """What keeps Claude Code from putting things into the prompt by itself."""
        found = {"CLAUDE_CODE_DISABLE_FILE_MENTIONS": "1"}
        if "user" not in self.settings:
            found["CLAUDE_CODE_DISABLE_AUTO_MEMORY"] = "1"
        if not self.reads_cwd:
            # Git's user, branch, status and last commits.
            found["CLAUDE_CODE_DISABLE_GIT_INSTRUCTIONS"] = "1"
        return found

    def describe(self) -> str:
        """All of it in one line, for the operator."""
        may = ["read the files of a message", "write to its outbox"]
        if words := _MODE_WORDS.get(self.mode):
            may.append(words)
        elif self.reads_cwd:
            may.append("read files in the working directory")
        if self.add_dirs:
            may.append(f"work in {', '.join(map(str, self.add_dirs))}")
        if self.allowed:
            may.append(f"use {', '.join(self.allowed)}")
        if (self._shells() and not self._has_gate) or {"Bash", ALL_TOOLS} & set(self.tools):
            may.append("run shell commands that Claude Code takes for read-only")
        facts = [f"claude-code may: {', '.join(may)}"]
        if self.disallowed:
            facts.append(f"never: {', '.join(self.disallowed)}")
        if self.tools:
            facts.append(f"tools that exist: {', '.join(self.tools)}")
        if self.mode != "dontAsk":
            facts.append(f"permission mode: {self.mode}")
        facts += [f"settings: {', '.join(self.settings) or 'none'}", f"working directory: {self.cwd}"]
        if self.state_root is not None and overlap(self.cwd, self.state_root):
            shut = ["cannot be read"] * (not self.reads_cwd) + ["cannot be sent"] * (not self.writes_cwd)
            if shut:
                facts.append(f"files {' and '.join(shut)}, because the state folder lies in the working directory")
        return "; ".join(facts)

    def _tools(self, *needed: tuple[str, ...]) -> list[str]:
        named = [tool for tool, _ in self._rules() if not tool.startswith("mcp__")]
        if any(tool == "Edit" and where for tool, where in self._rules()):
            named.append("Write")
        # A file is edited only after it was read.
        reading = ["Read"] if set(named) & set(_EDITORS) else []
        folders = ["Read", "Glob", "Grep"] if self.add_dirs else []
        found = {*named, *reading, *folders, *self.tools, *_MODE_TOOLS.get(self.mode, ())}
        for each in needed:
            found.update(each)
        return [ALL_TOOLS] if ALL_TOOLS in found else sorted(found)

    def _rules(self) -> list[tuple[str, str]]:
        """Tool and place of each rule that allows something; the place is empty where there is none."""
        matches = (_RULE.match(rule) for text in self.allowed for rule in _split(text))
        return [(match["tool"], (match["where"] or "").removesuffix(")")) for match in matches if match]

    def _shells(self) -> list[str]:
        """The patterns of the rules for shell commands."""
        return [where for tool, where in self._rules() if tool == "Bash"]

    @property
    def _has_gate(self) -> bool:
        """Whether shell commands are held to the rules: not where settings may hold rules that are unknown here."""
        shells, asked = self._shells(), {"Bash", ALL_TOOLS} & set(self.tools)
        is_open = bool(self.settings) or self.has_own_settings or self.mode in ("auto", "bypassPermissions")
        return bool(shells) and not is_open and not asked and not any(map(_is_unlimited, shells))

    def _has_rule_in_cwd(self, tools: Iterable[str]) -> bool:
        # An unlimited shell reads and writes there by itself; the rules would only make its simple commands fail.
        if any(_is_unlimited(where) for where in self._shells()):
            return True
        return any(tool in tools and not self._is_elsewhere(where) for tool, where in self._rules())

    def _is_elsewhere(self, where: str) -> bool:
        """Whether the path of a rule can match nothing in the working directory. ``//x`` is /x, ``/x`` is not."""
        if where.startswith("~/"):
            start = str(Path.home()) + where[1:]
        elif where.startswith("//"):
            start = where[1:]
        else:
            return False
        plain = re.split(r"[*?\[{!]", start)[0]
        return not overlap(self.cwd, Path(plain.rpartition("/")[0] or "/"))

    def _closed(self, environment: Mapping[str, str]) -> list[str]:
        config, temporary = config_folder(environment), _temporary_folder(environment)
        found = [
            *_denied("Read", config, "/.credentials.json", "/history.jsonl", "/projects/**/*.jsonl"),
            *([] if "user" in self.settings else _denied("Edit", config, "/**")),
        ]
        if self.state_root is not None:
            for tool in ("Read", "Edit"):
                found += _denied(tool, self.state_root, "/*.token", "/journal*")
        if not self.reads_cwd:
            for folder in (self.cwd, config, temporary):
                found += _denied("Read", folder, "/**")
        if not self.writes_cwd:
            for folder in (self.cwd, temporary):
                found += _denied("Edit", folder, "/**")
        return list(dict.fromkeys(found))


def config_folder(environment: Mapping[str, str]) -> Path:
    """Where Claude Code keeps its settings, its login and its transcripts."""
    given = environment.get("CLAUDE_CONFIG_DIR")
    return Path(given).absolute() if given else Path(environment.get("HOME") or Path.home()) / ".claude"


def _temporary_folder(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("CLAUDE_CODE_TMPDIR") or "/tmp").absolute() / f"claude-{os.getuid()}"  # noqa: S108


def _denied(tool: str, folder: Path, *patterns: str) -> Iterator[str]:
    for place in dict.fromkeys((folder, folder.resolve())):
        start = _SPECIAL.sub("?", str(place)).rstrip("/")
        yield from (f"{tool}(/{start}{pattern})" for pattern in patterns)


def _is_unlimited(pattern: str) -> bool:
    return pattern.strip() in ("", "*", "**", ":*")


def _gated(patterns: Iterable[str]) -> dict[str, object]:
    """Settings with the hook that refuses every shell command that matches none of *patterns*."""
    command = shlex.join([sys.executable, "-I", shell_gate.__file__, *patterns])
    hook = {"type": "command", "command": command}
    return {"hooks": {"PreToolUse": [{"matcher": "Bash", "hooks": [hook]}]}}


def _joined(name: str, rules: Iterable[str]) -> list[str]:
    text = ",".join(rules)
    return [f"--{name}={text}"] if text else []


def _split(text: str) -> list[str]:
    """The rules in *text*, which are separated by commas and spaces outside of parentheses."""
    rules, depth = [""], 0
    for each in text:
        depth += (each == "(") - (each == ")")
        if depth <= 0 and (each == "," or each.isspace()):
            rules.append("")
        else:
            rules[-1] += each
    return [rule for rule in rules if rule]


def contains(folder: Path, other: Path) -> bool:
    """Whether *other* lies in *folder*, or is the same; symlinks are followed."""
    return other.resolve().is_relative_to(folder.resolve())


def overlap(one: Path, other: Path) -> bool:
    """Whether one of the folders lies in the other, or they are the same; symlinks are followed."""
    return contains(one, other) or contains(other, one)
