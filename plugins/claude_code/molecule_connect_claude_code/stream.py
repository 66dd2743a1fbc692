"""The lines that ``claude --output-format stream-json`` writes, read as they come."""

import json
import math
import re
from pathlib import PurePath
from typing import Any

from molecule_connect import Usage

FIRST_WORDS = 80
# Larger numbers are no counts; far below what an int or a database column holds.
_MOST = 1e15
_LONGEST_INTEGER = 18
# Refusals that Claude Code doesn't list as permission denials.
_REFUSAL = re.compile(
    r"No such tool available|(denied by|deny rule in) your permission settings|Only these shell commands are permitted"
)

# What a tool works on, where that says nothing secret: it is shown on the platform as the current task.
_SUBJECTS = ("description", "file_path", "query")


class Turn:
    """What is known of one turn so far. Lines of a kind that is not known are passed over.

    Attributes:
        result: The line that decides, once it is here.
        texts: What Claude wrote, without its sub-agents and without words that the program put in its mouth.
        final: The text of the last message of Claude's, as far as it was streamed.
        error: The program's own name for what went wrong with the API: ``rate_limit``, ``authentication_failed``.
        resets_at: When a limit that refused this turn is over, in seconds since 1970.
    """

    def __init__(self) -> None:
        self.result: dict[str, Any] | None = None
        self.texts: list[str] = []
        self._message = Message("")
        self._used: dict[str, str] = {}
        self._refused: list[str] = []
        self.error = ""
        self.resets_at: float | None = None

    def hear(self, line: bytes) -> str:
        """Take a line; what is to be told of it as progress, or nothing."""
        try:
            event = json.loads(line, parse_int=_integer)
        except (ValueError, RecursionError):
            return ""
        if not isinstance(event, dict):
            return ""
        match event.get("type"):
            case "assistant":
                return self._said(event)
            case "stream_event" if not event.get("parent_tool_use_id"):
                self._streamed(event.get("event"))
            case "user":
                self._got(event.get("message"))
            case "system":
                return _told_by_system(event)
            case "rate_limit_event":
                self._limited(event.get("rate_limit_info"))
            case "result" if self.result is None:
                self.result = event
        return ""

    def field(self, name: str) -> str:
        """A field of the result if it is a text, else nothing."""
        value = (self.result or {}).get(name)
        return value if isinstance(value, str) else ""

    @property
    def final(self) -> str:
        return self._message.text

    @property
    def says(self) -> str:
        """What the result says of itself: its text and its errors."""
        errors = map(str, _items((self.result or {}).get("errors")))
        return "; ".join(filter(None, [self.field("result"), *errors]))

    @property
    def status(self) -> int | None:
        """The HTTP status that the API answered with in the end, where the result tells."""
        status = (self.result or {}).get("api_error_status")
        return status if isinstance(status, int) else None

    @property
    def turns(self) -> int:
        turns = (self.result or {}).get("num_turns")
        return turns if isinstance(turns, int) else 0

    @property
    def refused(self) -> list[str]:
        """The tools that were not permitted, each once."""
        names = [each.get("tool_name") for each in _objects((self.result or {}).get("permission_denials"))]
        return list(dict.fromkeys(name for name in (*names, *self._refused) if isinstance(name, str)))

    @property
    def usage(self) -> Usage:
        """Tokens and cost of this turn; tokens from a cache are input tokens too. What is no amount counts as zero."""
        result = self.result or {}
        usage: dict[str, Any] = next(iter(_objects([result.get("usage")])), {})
        into = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        return Usage(
            input_tokens=int(sum(_number(usage.get(name)) for name in into)),
            output_tokens=int(_number(usage.get("output_tokens"))),
            cost_usd=_number(result.get("total_cost_usd")),
        )

    def _said(self, event: dict[str, Any]) -> str:
        message = event.get("message")
        if not isinstance(message, dict):
            return ""
        if isinstance(event.get("error"), str):
            self.error = event["error"]
        if message.get("model") == "<synthetic>":
            return ""
        told = ""
        if not event.get("parent_tool_use_id"):
            self._begin(message.get("id"))
            self._message.add(_objects(message.get("content")))
        for block in _objects(message.get("content")):
            if block.get("type") == "tool_use":
                told = _tool(block)
                self._used[str(block.get("id"))] = str(block.get("name"))
            elif block.get("type") == "text" and not event.get("parent_tool_use_id"):
                text = str(block.get("text") or "").strip()
                self.texts += [text] if text else []
                told = _first_words(text) or told
        return told

    def _begin(self, name: object) -> None:
        """Go on with the message *name*, or with a new one; a message without a name is a new one."""
        if not isinstance(name, str) or name != self._message.name:
            self._message = Message(name if isinstance(name, str) else "")

    def _streamed(self, event: Any) -> None:
        if not isinstance(event, dict):
            return
        if event.get("type") == "message_start":
            self._begin(next(iter(_objects([event.get("message")])), {}).get("id"))
        else:
            self._message.stream(event)

    def _got(self, message: Any) -> None:
        content = message.get("content") if isinstance(message, dict) else None
        for block in _objects(content):
            name = self._used.get(str(block.get("tool_use_id")))
            if name and block.get("is_error") and _REFUSAL.search(str(block.get("content"))):
                self._refused.append(name)

    def _limited(self, info: Any) -> None:
        if not isinstance(info, dict) or info.get("status") != "rejected":
            return
        resets_at = _number(info.get("resetsAt"))
        self.resets_at = resets_at if resets_at > 0 else None


class Message:
    """One message of Claude's, which arrives twice: in pieces, and block by block as they are complete."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._complete: list[str] = []
        self._streamed: dict[int, str] = {}

    @property
    def text(self) -> str:
        """Its text blocks; thinking and the use of tools are none."""
        streamed = _joined([self._streamed[index] for index in sorted(self._streamed)])
        return max(_joined(self._complete), streamed, key=len)

    def add(self, blocks: list[dict[str, Any]]) -> None:
        """Take complete blocks."""
        self._complete += [str(block.get("text") or "") for block in blocks if block.get("type") == "text"]

    def stream(self, event: dict[str, Any]) -> None:
        """Take one event of the API's stream."""
        index = event.get("index")
        if not isinstance(index, int):
            return
        for key, kind in (("content_block", "text"), ("delta", "text_delta")):
            piece = event.get(key)
            if isinstance(piece, dict) and piece.get("type") == kind and isinstance(piece.get("text"), str):
                self._streamed[index] = self._streamed.get(index, "") + piece["text"]


def _joined(blocks: list[str]) -> str:
    """Text blocks as one text: a block that goes on with the one before has white space or a sign there."""
    text = ""
    for block in filter(str.strip, blocks):
        goes_on = not text or text[-1].isspace() or block[0].isspace() or block[0] in ".,;:!?)"
        text += block if goes_on else f"\n\n{block}"
    return text.strip()


def _told_by_system(event: dict[str, Any]) -> str:
    if event.get("subtype") == "api_retry":
        return f"the API refused ({event.get('error_status')}), asking again"
    if event.get("subtype") == "init":
        servers = _objects(event.get("mcp_servers"))
        broken = [str(server.get("name")) for server in servers if server.get("status") == "failed"]
        return f"MCP server {', '.join(broken)} failed to start" if broken else ""
    return ""


def _tool(block: dict[str, Any]) -> str:
    name, given = str(block.get("name") or "a tool"), next(iter(_objects([block.get("input")])), {})
    for key in _SUBJECTS:
        subject = given.get(key)
        if isinstance(subject, str) and subject:
            return f"{name}: {_first_words(PurePath(subject).name if key == 'file_path' else subject)}"
    return name


def _first_words(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= FIRST_WORDS else f"{line[:FIRST_WORDS].rsplit(' ', 1)[0]} ..."


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and 0 <= value <= _MOST else 0.0


def _integer(text: str) -> int | float:
    # Python refuses to read very long integers, and would take the whole line for unreadable.
    return int(text) if len(text) <= _LONGEST_INTEGER else float(text)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in _items(value) if isinstance(each, dict)]
