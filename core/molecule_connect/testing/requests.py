"""Requests for tests."""

from typing import Any

from molecule_connect.models import Request, TextPart


def make_request(text: str = "hello", **fields: Any) -> Request:
    """A request with *text* from a person. *fields* override fields of ``Request``."""
    given: dict[str, Any] = {
        "workspace_id": "ws_1",
        "message_id": "message-1",
        "idempotency_key": "row-1",
        "context_id": "context-1",
        "task_id": "task-1",
        "parts": (TextPart(text),),
    }
    return Request(**{**given, **fields})
