"""Reads the output of ``claude --output-format stream-json`` line by line."""

import json
import math
import re
from pathlib import PurePath
from typing import Any

from molecule_connect import Usage

MAX_PROGRESS_LENGTH = 80
# Larger numbers can't be counts. It is far below the maximum of a database column.
_MAX_NUMBER = 1e15
_MAX_INTEGER_DIGITS = 18
# Refusals that Claude Code doesn't list in permission_denials.
_REFUSAL = re.compile(
    r"No such tool available|(denied by|deny rule in) your permission settings|Only these shell commands are permitted"
)
# Fields of a tool's input that contain no secrets: they are shown on the platform as the current task.
_SUBJECT_FIELDS = ("description", "file_path", "query")


class Turn:
    """The state of a turn, updated with each line of output. Unknown kinds of lines are ignored.

    Attributes:
        result: The result line, or None until it was read.
        texts: Claude's text blocks, without those of sub-agents and synthetic messages.
        api_error: Claude Code's name for an error of the API, such as ``rate_limit`` or ``authentication_failed``.
        resets_at: When the usage limit that refused this turn resets, in seconds since 1970.
    """

    def __init__(self) -> None:
        self.result: dict[str, Any] | None = None
        self.texts: list[str] = []
        self._last_message = AssistantMessage("")
        self._tool_names: dict[str, str] = {}
        self._refused_tools: list[str] = []
        self.api_error = ""
        self.resets_at: float | None = None

    def read(self, line: bytes) -> str:
        """Update the turn with a line of output and return text to report as progress, which may be empty."""
        try:
            event = json.loads(line, parse_int=_integer)
        except (ValueError, RecursionError):
            return ""
        if not isinstance(event, dict):
            return ""
        match event.get("type"):
            case "assistant":
                return self._read_assistant(event)
            case "stream_event" if not event.get("parent_tool_use_id"):
                self._read_stream_event(event.get("event"))
            case "user":
                self._read_tool_results(event.get("message"))
            case "system":
                return _system_progress(event)
            case "rate_limit_event":
                self._read_rate_limit(event.get("rate_limit_info"))
            case "result" if self.result is None:
                self.result = event
        return ""

    def field(self, name: str) -> str:
        """A field of the result; empty if it is missing or isn't a string."""
        value = (self.result or {}).get(name)
        return value if isinstance(value, str) else ""

    @property
    def last_text(self) -> str:
        """The text of Claude's last message, including streamed parts of it."""
        return self._last_message.text

    @property
    def error_text(self) -> str:
        """The text and the errors in the result of a failed turn."""
        errors = map(str, _items((self.result or {}).get("errors")))
        return "; ".join(filter(None, [self.field("result"), *errors]))

    @property
    def status(self) -> int | None:
        """The HTTP status of the API's last response, if the result contains it."""
        status = (self.result or {}).get("api_error_status")
        return status if isinstance(status, int) else None

    @property
    def model_calls(self) -> int:
        calls = (self.result or {}).get("num_turns")
        return calls if isinstance(calls, int) else 0

    @property
    def refused_tools(self) -> list[str]:
        """The names of tools that were not permitted, without duplicates."""
        names = [each.get("tool_name") for each in _objects((self.result or {}).get("permission_denials"))]
        return list(dict.fromkeys(name for name in (*names, *self._refused_tools) if isinstance(name, str)))

    @property
    def usage(self) -> Usage:
        """Tokens and cost of this turn. Cached tokens count as input tokens, and invalid numbers as zero."""
        result = self.result or {}
        usage: dict[str, Any] = next(iter(_objects([result.get("usage")])), {})
        input_fields = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        return Usage(
            input_tokens=int(sum(_number(usage.get(name)) for name in input_fields)),
            output_tokens=int(_number(usage.get("output_tokens"))),
            cost_usd=_number(result.get("total_cost_usd")),
        )

    def _read_assistant(self, event: dict[str, Any]) -> str:
        message = event.get("message")
        if not isinstance(message, dict):
            return ""
        if isinstance(event.get("error"), str):
            self.api_error = event["error"]
        if message.get("model") == "<synthetic>":
            return ""
        progress = ""
        if not event.get("parent_tool_use_id"):
            self._select_message(message.get("id"))
            self._last_message.add(_objects(message.get("content")))
        for block in _objects(message.get("content")):
            if block.get("type") == "tool_use":
                progress = _tool_progress(block)
                self._tool_names[str(block.get("id"))] = str(block.get("name"))
            elif block.get("type") == "text" and not event.get("parent_tool_use_id"):
                text = str(block.get("text") or "").strip()
                self.texts += [text] if text else []
                progress = _shortened(text) or progress
        return progress

    def _select_message(self, message_id: object) -> None:
        """Continue the last message if it has this id. Otherwise, or without an id, start a new one."""
        if not isinstance(message_id, str) or message_id != self._last_message.id:
            self._last_message = AssistantMessage(message_id if isinstance(message_id, str) else "")

    def _read_stream_event(self, event: Any) -> None:
        if not isinstance(event, dict):
            return
        if event.get("type") == "message_start":
            self._select_message(next(iter(_objects([event.get("message")])), {}).get("id"))
        else:
            self._last_message.stream(event)

    def _read_tool_results(self, message: Any) -> None:
        content = message.get("content") if isinstance(message, dict) else None
        for block in _objects(content):
            name = self._tool_names.get(str(block.get("tool_use_id")))
            if name and block.get("is_error") and _REFUSAL.search(str(block.get("content"))):
                self._refused_tools.append(name)

    def _read_rate_limit(self, info: Any) -> None:
        if not isinstance(info, dict) or info.get("status") != "rejected":
            return
        resets_at = _number(info.get("resetsAt"))
        self.resets_at = resets_at if resets_at > 0 else None


class AssistantMessage:
    """A message of Claude. Its text arrives twice: streamed in pieces, and as complete blocks."""

    def __init__(self, message_id: str) -> None:
        self.id = message_id
        self._complete: list[str] = []
        self._streamed: dict[int, str] = {}

    @property
    def text(self) -> str:
        """The text blocks, without thinking and tool use."""
        streamed = _join_blocks([self._streamed[index] for index in sorted(self._streamed)])
        return max(_join_blocks(self._complete), streamed, key=len)

    def add(self, blocks: list[dict[str, Any]]) -> None:
        """Add complete blocks."""
        self._complete += [str(block.get("text") or "") for block in blocks if block.get("type") == "text"]

    def stream(self, event: dict[str, Any]) -> None:
        """Add an event of the API's stream."""
        index = event.get("index")
        if not isinstance(index, int):
            return
        for key, kind in (("content_block", "text"), ("delta", "text_delta")):
            piece = event.get(key)
            if isinstance(piece, dict) and piece.get("type") == kind and isinstance(piece.get("text"), str):
                self._streamed[index] = self._streamed.get(index, "") + piece["text"]


def _join_blocks(blocks: list[str]) -> str:
    """Join text blocks. They are separate paragraphs unless white space or punctuation continues the one before."""
    text = ""
    for block in filter(str.strip, blocks):
        continues = not text or text[-1].isspace() or block[0].isspace() or block[0] in ".,;:!?)"
        text += block if continues else f"\n\n{block}"
    return text.strip()


def _system_progress(event: dict[str, Any]) -> str:
    if event.get("subtype") == "api_retry":
        return f"retrying after API error {event.get('error_status')}"
    if event.get("subtype") == "init":
        servers = _objects(event.get("mcp_servers"))
        broken = [str(server.get("name")) for server in servers if server.get("status") == "failed"]
        return f"MCP server {', '.join(broken)} failed to start" if broken else ""
    return ""


def _tool_progress(block: dict[str, Any]) -> str:
    name, tool_input = str(block.get("name") or "a tool"), next(iter(_objects([block.get("input")])), {})
    for key in _SUBJECT_FIELDS:
        subject = tool_input.get(key)
        if isinstance(subject, str) and subject:
            return f"{name}: {_shortened(PurePath(subject).name if key == 'file_path' else subject)}"
    return name


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_PROGRESS_LENGTH else f"{line[:MAX_PROGRESS_LENGTH].rsplit(' ', 1)[0]} ..."


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and 0 <= value <= _MAX_NUMBER else 0.0


def _integer(text: str) -> int | float:
    # int() rejects very long integers, and the whole line would be unreadable.
    return int(text) if len(text) <= _MAX_INTEGER_DIGITS else float(text)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in _items(value) if isinstance(each, dict)]
