"""Delegations and the answers to them, as a model reads them."""

import json
from collections.abc import Mapping
from typing import Any

from molecule_connect_mcp import harmless
from molecule_connect_mcp.shapes import harmless_data

LATER = "the peer has it; its answer arrives in the inbox as a message from this peer: use wait_for_message"
ELSEWHERE = "the peer has it; its answer goes to whoever reads this workspace's messages"
_NAMELESS = "the platform took the task but named no task_id: check_task_status without one lists the newest tasks"
NAMELESS = f"{_NAMELESS}, and the result also arrives in the inbox, if the platform sends it"
NAMELESS_ELSEWHERE = f"{_NAMELESS}; a result that the platform sends goes to whoever reads this workspace's messages"


def answer_shape(answer: Any, *, later: str = LATER) -> dict[str, Any]:
    """What the platform said to a question: the peer's answer, or that it comes *later*."""
    # An answer without a body, and a 502 that says that the peer has it, tell no more than that.
    if answer is None or is_queued(answer):
        return {"status": "queued", "note": later}
    fields = answer if isinstance(answer, dict) else {}
    if "error" in fields:
        return {"status": "failed", "error": harmless_data(fields["error"])}
    result = fields.get("result", answer)
    text = _text(result)
    if text:
        return {"status": "completed", "text": harmless.text(text)}
    return {"status": "completed", "result": harmless_data(result)}


def task_shape(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the platform's delegations."""
    shape = {
        "task_id": harmless.name(row.get("delegation_id") or row.get("id")),
        "peer_id": harmless.identifier(row.get("target_id")),
        "status": harmless.name(row.get("status")),
        "created_at": harmless.name(row.get("created_at")),
    }
    if summary := row.get("summary"):
        shape["summary"] = harmless.name(summary, longest=300)
    if error := row.get("error"):
        shape["error"] = harmless.text(str(error))
    preview = row.get("response_preview")
    if isinstance(preview, str) and preview:
        if is_queued(_json(preview)):
            # The platform calls it completed as soon as the peer's own inbox has it (2.18).
            shape |= {"status": "queued", "note": LATER}
        else:
            shape["result"] = harmless.text(preview)
    return shape


def is_queued(answer: Any) -> bool:
    """Whether *answer* only says that the peer will get it."""
    told = answer if isinstance(answer, dict) else {}
    return told.get("status") == "queued" or told.get("queued") is True or told.get("delivery_confirmed") is True


def _text(result: Any) -> str:
    """The text of an A2A result: of the message, of a task's status, of its artifacts."""
    if isinstance(result, str):
        return result
    if not isinstance(result, dict):
        return ""
    status = result.get("status")
    places = [result, result.get("message"), status.get("message") if isinstance(status, dict) else None]
    artifacts = result.get("artifacts")
    places += artifacts if isinstance(artifacts, list) else []
    for place in places:
        parts = place.get("parts") if isinstance(place, dict) else None
        texts = [part.get("text") for part in parts or [] if isinstance(part, dict)] if isinstance(parts, list) else []
        if found := "".join(text for text in texts if isinstance(text, str)):
            return found
    return ""


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
