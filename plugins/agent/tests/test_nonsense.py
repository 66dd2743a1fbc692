"""Whatever JSON a platform answers, a member gives a value or one of our errors."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from molecule_connect import MoleculeError
from molecule_connect_agent import Message, RemoteAgentClient

from .kit import API, ME, PEER, TOKEN

NAMES = st.sampled_from(
    [
        "id",
        "status",
        "paused",
        "deleted",
        "auth_token",
        "url",
        "name",
        "role",
        "tier",
        "agent_card",
        "delegation_id",
        "error",
        "hint",
        "response_preview",
        "created_at",
        "request_body",
        "response_body",
        "method",
        "params",
        "parts",
        "message",
        "source_id",
        "files",
        "uri",
        "retry_after",
        "result",
        "queued",
        "text",
        "kind",
        "metadata",
    ]
)
TEXTS = (
    st.sampled_from(["", "x", "message/send", "notify", ME, PEER, "text", "https://peer.example", "\ud800"]) | st.text()
)
TIMES = st.sampled_from(["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-08-14T09:00:00Z", "soon"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS | TIMES
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6))

MEMBERS: dict[str, Callable[[RemoteAgentClient], Any]] = {
    "register": lambda client: client.register(),
    "pull_secrets": lambda client: client.pull_secrets(),
    "poll_state": lambda client: client.poll_state(),
    "heartbeat": lambda client: client.heartbeat(),
    "get_peers": lambda client: client.get_peers(),
    "discover_peer": lambda client: client.discover_peer(PEER),
    "call_peer": lambda client: client.is_queued(client.call_peer(PEER, "hello", prefer_direct=True)),
    "delegate": lambda client: client.delegate(PEER, "task").is_queued,
    "delegations": lambda client: client.delegations(),
    "notify": lambda client: client.notify("hello", [__file__]),
    "activity": lambda client: [message.text for message in client.activity(since_secs=86400 * 30, follow=False)],
    "reply": lambda client: client.reply(
        Message(workspace_id=ME, kind="message", activity_id="r", message_id="m"), "hello"
    ),
    "install_plugin": lambda client: client.install_plugin("hello"),
}


@pytest.mark.parametrize("name", MEMBERS)
@given(answer=JSON, status=st.sampled_from([200, 200, 200, 202, 400, 401, 403, 404, 410, 422, 429, 500, 502, 503]))
@settings(max_examples=40)
def test_any_response_gives_value_or_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, answer: Any, status: int
) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        request.read()
        return httpx.Response(status, content=json.dumps(answer).encode())

    with (
        RemoteAgentClient(
            ME,
            API,
            token=TOKEN,
            token_dir=tmp_path_factory.getbasetemp() / "nonsense",
            transport=httpx.MockTransport(respond),
            sleep=lambda seconds: None,
        ) as client,
        contextlib.suppress(MoleculeError),
    ):
        MEMBERS[name](client)
