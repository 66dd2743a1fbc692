"""A stand-in for the API that Claude Code talks to: it lets the real program run with no account and no network.

Its answer to the n-th text of a conversation is ``turn n: `` and the text's last line of words. What a text holds in
double square brackets it does instead: ``[[status 500]]``, ``[[overflow]]``, ``[[limit 1790000000]]`` (used up until
then), ``[[use Read {"file_path": "/x"}]]`` (a tool, once; then the answer tells what came of it; OUTBOX in
it is the folder for files that go along). Several of them are used in one turn; ``outcomes`` returns all results.
"""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Json = dict[str, Any]

_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)
_OUTBOX = re.compile(r"<molecule-outbox>.* into (\S+) are .*</molecule-outbox>")
_TAG = re.compile(r"</?molecule[^>]*>")


class MessagesApi:
    """Serves on loopback inside ``with``.

    Attributes:
        seen: The requests for an answer, as they came.
    """

    def __init__(self) -> None:
        self.seen: list[Json] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.seen))
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(seen: list[Json]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def do_HEAD(self) -> None:
            self._send(200, b"")

        def do_GET(self) -> None:
            self._send(200, b'{"data": [], "has_more": false}')

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
            if "count_tokens" in self.path or "/messages" not in self.path:
                self._send(200, b'{"input_tokens": 100}')
                return
            seen.append(body)
            texts = spoken(body)
            last = texts[-1] if texts else ""
            if asked := re.search(r"\[\[(status|limit) (\d+)\]\]|\[\[(overflow)\]\]", last):
                self._refuse(asked[1] or asked[3], int(asked[2] or 0))
            else:
                self._send(200, b"".join(_events(len(seen), body, _content(body, texts))), kind="text/event-stream")

        def _refuse(self, what: str, number: int) -> None:
            status = {"status": number, "limit": 429, "overflow": 400}[what]
            says = "prompt is too long: 250000 tokens > 200000 maximum" if what == "overflow" else "as it was asked to"
            kind = "rate_limit_error" if status == 429 else "invalid_request_error"
            limit = {"status": "rejected", "reset": str(number), "representative-claim": "five_hour"}
            headers = {f"anthropic-ratelimit-unified-{name}": value for name, value in limit.items()}
            error = {"type": "error", "error": {"type": kind, "message": says}}
            self._send(status, json.dumps(error).encode(), **(headers if what == "limit" else {}))

        def _send(self, status: int, body: bytes, *, kind: str = "application/json", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler


def spoken(body: Json) -> list[str]:
    """The texts of the other side in a request, oldest first, without what the program adds by itself."""
    texts = []
    for message in body.get("messages", []):
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = "\n".join(block["text"] for block in blocks if block["type"] == "text")
        text = _REMINDER.sub("", text).strip()
        if message["role"] == "user" and text:
            texts.append(text)
    return texts


def outcomes(body: Json) -> list[tuple[bool, str]]:
    """For each tool used in the last turn of a request, in order: whether it ran, and what it returned."""
    blocks = [block for message in body["messages"] for block in message["content"] if isinstance(block, dict)]
    results = {block["tool_use_id"]: block for block in blocks if block["type"] == "tool_result"}
    uses = [message["content"] for message in body["messages"] if message["role"] == "assistant"][-1]
    found = [results[block["id"]] for block in uses if isinstance(block, dict) and block["type"] == "tool_use"]
    return [(not result.get("is_error"), json.dumps(result.get("content"))) for result in found]


def _content(body: Json, texts: list[str]) -> list[Json]:
    last = texts[-1] if texts else ""
    results = [
        str(block.get("content", ""))
        for block in body["messages"][-1]["content"]
        if isinstance(block, dict) and block["type"] == "tool_result"
    ]
    tools = re.findall(r"\[\[use (\w+) (\{.*?\})\]\]", last)
    outbox = _OUTBOX.search(last)
    if tools and not results:
        return [
            {
                "type": "tool_use",
                "id": f"toolu_{len(body['messages'])}_{number}",
                "name": name,
                "input": json.loads(given.replace("OUTBOX", outbox[1] if outbox else "")),
            }
            for number, (name, given) in enumerate(tools)
        ]
    words = [line for line in _TAG.sub("", _OUTBOX.sub("", last)).splitlines() if line.strip()]
    return [{"type": "text", "text": f"turn {len(texts)}: {results[0] if results else ''.join(words[-1:])}"}]


def _events(number: int, body: Json, content: list[Json]) -> Iterator[bytes]:
    reason = "tool_use" if content[0]["type"] == "tool_use" else "end_turn"
    usage = {"input_tokens": 100, "output_tokens": 7}
    message: Json = {
        "id": f"msg_{number}", "type": "message", "role": "assistant", "model": body.get("model"),
        "content": [], "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 0},
    }  # fmt: skip
    events: list[Json] = [
        {"type": "message_start", "message": message},
        *(event for index, block in enumerate(content) for event in _block(index, block)),
        {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]
    for event in events:
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def _block(index: int, block: Json) -> Iterator[Json]:
    start, delta = {**block, "text": ""}, {"type": "text_delta", "text": block.get("text", "")}
    if block["type"] == "tool_use":
        start = {**block, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    yield {"type": "content_block_start", "index": index, "content_block": start}
    yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}
