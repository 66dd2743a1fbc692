import json
from typing import Any

import attrs
import pytest

from molecule_connect.models import Outgoing, Presence, TextPart, WorkspaceInfo, WorkspaceStatus
from molecule_connect.platform import endpoints
from molecule_connect.platform.endpoints import Operation, Priority, Reply


def body(operation: Operation[Any]) -> Any:
    assert operation.body is not None
    return json.loads(operation.body)


@pytest.mark.parametrize(
    ("operation", "method", "path"),
    [
        (endpoints.register("ws", {}), "POST", "/registry/register"),
        (endpoints.heartbeat("ws", Presence()), "POST", "/registry/heartbeat"),
        (endpoints.update_card("ws", {}), "POST", "/registry/update-card"),
        (endpoints.check_access("ws", "p"), "POST", "/registry/check-access"),
        (endpoints.workspace("ws"), "GET", "/workspaces/ws"),
        (endpoints.state("ws"), "GET", "/workspaces/ws/state"),
        (endpoints.notify("ws", "x"), "POST", "/workspaces/ws/notify"),
        (endpoints.a2a("p", {}), "POST", "/workspaces/p/a2a"),
        (endpoints.peers("ws"), "GET", "/registry/ws/peers"),
        (endpoints.discover("p"), "GET", "/registry/discover/p"),
        (endpoints.delegate("ws", "p", "x"), "POST", "/workspaces/ws/delegate"),
        (endpoints.delegations("ws"), "GET", "/workspaces/ws/delegations"),
        (endpoints.secrets("ws"), "GET", "/workspaces/ws/secrets/values"),
        (endpoints.events("ws"), "GET", "/workspaces/ws/events/stream"),
        (endpoints.upload_content("ws", "f"), "GET", "/workspaces/ws/pending-uploads/f/content"),
        (endpoints.upload_ack("ws", "f"), "POST", "/workspaces/ws/pending-uploads/f/ack"),
        (endpoints.upload_limits(), "GET", "/uploads/limits"),
    ],
)
def test_each_operation_has_its_endpoint(operation: Operation[Any], method: str, path: str) -> None:
    assert (operation.method, operation.path) == (method, path)


@pytest.mark.parametrize(
    ("peer_id", "quoted"), [("a/b", "a%2Fb"), ("..", "%2E%2E"), ("a b?x#y", "a%20b%3Fx%23y"), ("é", "%C3%A9")]
)
def test_ids_are_quoted_in_paths(peer_id: str, quoted: str) -> None:
    assert endpoints.a2a(peer_id, {}).path == f"/workspaces/{quoted}/a2a"


def test_history_has_messages_in_both_directions() -> None:
    peers = endpoints.history("ws", peer_id="p", limit=5, before=1_000_000)
    person = endpoints.history("ws", limit=5)

    assert peers.params == (("limit", "5"), ("peer_id", "p"), ("before_ts", "1970-01-01T00:00:01.000000Z"))
    assert person.params == (("limit", "5"), ("type", "a2a_receive"), ("source", "canvas"))


def test_registering_always_states_the_delivery_mode() -> None:
    assert body(endpoints.register("ws", {"name": "n"})) == {
        "id": "ws",
        "delivery_mode": "poll",
        "agent_card": {"name": "n"},
    }


def test_healthy_heartbeat_has_no_runtime_state() -> None:
    presence = Presence(active_tasks=2, current_task="t", uptime_seconds=9, error_rate=0.25, sample_error="e")

    assert body(endpoints.heartbeat("ws", presence)) == {
        "workspace_id": "ws",
        "active_tasks": 2,
        "current_task": "t",
        "uptime_seconds": 9,
        "error_rate": 0.25,
        "sample_error": "e",
    }


def test_a_wedged_beat_says_so_and_why() -> None:
    sent = body(endpoints.heartbeat("ws", Presence(wedged="no login", sample_error="x", monthly_spend_cents=5)))

    assert (sent["runtime_state"], sent["sample_error"], sent["monthly_spend"]) == ("wedged", "no login", 5)


def test_activity_has_the_requested_parameters() -> None:
    first = endpoints.activity("ws", lambda reply: 0, since_id=None, before=None, limit=500)
    after = endpoints.activity("ws", lambda reply: 0, since_id="a&b", before=None, limit=100)
    back = endpoints.activity("ws", lambda reply: 0, since_id=None, before=1_500_000, limit=1)

    assert dict(first.params) == {"type": "a2a_receive", "limit": "500"}
    assert dict(after.params) == {"type": "a2a_receive", "limit": "100", "since_id": "a&b"}
    assert dict(back.params) == {"type": "a2a_receive", "limit": "1", "before_ts": "1970-01-01T00:00:01.500000Z"}


def test_reply_goes_to_peer_or_person() -> None:
    to_peer = Outgoing(message_id="m", caller_id="p", context_id=None, in_reply_to="q", parts=(TextPart("hi"),))
    to_person = Outgoing(message_id="m", caller_id=None, context_id=None, in_reply_to="q", parts=(TextPart("hi"),))

    assert endpoints.reply("ws", to_peer).path == "/workspaces/p/a2a"
    assert endpoints.reply("ws", to_person).path == "/workspaces/ws/notify"
    assert body(endpoints.reply("ws", to_person)) == {"message": "hi"}
    assert endpoints.reply("ws", to_peer).priority is endpoints.reply("ws", to_person).priority is Priority.SEND


def test_traced_reply_carries_its_context() -> None:
    to_person = Outgoing(message_id="m", caller_id=None, context_id=None, in_reply_to="q", parts=(TextPart("hi"),))
    for reply in (to_person, attrs.evolve(to_person, caller_id="p")):
        assert endpoints.reply("ws", reply).headers == ()
        assert endpoints.reply("ws", attrs.evolve(reply, trace="00-1-2-01")).headers == (("traceparent", "00-1-2-01"),)


@pytest.mark.parametrize(
    ("status", "json", "info"),
    [
        (200, {"status": "online", "name": "n", "agent_card": {"a": 1}}, ("active", "n", {"a": 1}, "")),
        (200, {"status": "paused", "name": "n", "agent_card": None}, ("paused", "n", None, "")),
        (200, {"status": "removed"}, ("removed", "", None, "")),
        (200, {"agent_card": {"a": 1}}, ("unknown", "", {"a": 1}, "")),
        (200, None, ("unknown", "", None, "")),
        (200, [], ("unknown", "", None, "")),
        (404, {"error": "workspace not found"}, ("unknown", "", None, "")),
        (404, None, ("unknown", "", None, "")),
        (410, {"error": "workspace removed", "hint": "make\na new one"}, ("removed", "", None, "make a new one")),
    ],
)
def test_what_the_platform_says_of_the_workspace(status: int, json: Any, info: tuple[Any, ...]) -> None:
    said, name, card, hint = info
    reply = Reply(body=b"x", json=json, status=status)

    assert endpoints.read_workspace(reply) == WorkspaceInfo(
        status=WorkspaceStatus(said), name=name, card=card, hint=hint
    )


@pytest.mark.parametrize(
    ("body", "json", "is_absent"),
    [
        (b"x", {"error": "workspace not found"}, True),
        (b"x", {"error": ""}, False),
        (b"x", {"detail": "Not Found"}, False),
        (b"", None, False),
        (b"<html>", None, False),
    ],
)
def test_only_platform_404_means_absent_workspace(body: bytes, json: Any, is_absent: bool) -> None:
    info = endpoints.read_workspace(Reply(body=body, json=json, status=404))

    assert (info.status, info.is_absent) == (WorkspaceStatus.UNKNOWN, is_absent)


def test_empty_410_means_removed() -> None:
    assert endpoints.read_workspace(Reply(body=b"", status=410)).status is WorkspaceStatus.REMOVED
    assert endpoints.read_workspace(Reply(body=b"<html>", status=410)).status is WorkspaceStatus.UNKNOWN


def test_reprs_contain_no_bodies() -> None:
    assert "secret" not in repr(endpoints.notify("ws", "secret"))
    assert "secret" not in repr(Reply(body=b"secret", json={"k": "secret"}))
