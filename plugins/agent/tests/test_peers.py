"""Writing to peers: by way of the platform, and straight to their own address when that was asked for."""

import json
from typing import Any

import httpx
import pytest

from molecule_connect import ArgumentError, AuthError, PermanentPlatformError, TransientPlatformError
from molecule_connect_agent import PeerInfo, RemoteAgentClient

from .kit import API, ME, PEER, TOKEN, Make, Platform, Twin, said

PEERS = f"GET /registry/{ME}/peers"
DISCOVER = f"GET /registry/discover/{PEER}"
A2A = f"POST /workspaces/{PEER}/a2a"
DELEGATE = f"POST /workspaces/{ME}/delegate"
DELEGATIONS = f"GET /workspaces/{ME}/delegations"
HOST = "https://peer.example"
DIRECT = "POST /a2a"
QUEUED = {"status": "queued", "delivery_mode": "poll", "method": "message/send"}
RESULT = {"jsonrpc": "2.0", "id": "1", "result": {"parts": [{"kind": "text", "text": "done"}]}}


def found(url: Any) -> httpx.Response:
    return httpx.Response(200, json={"id": PEER, "url": url, "name": "ops"})


def test_peers_as_the_platform_lists_them(agent: Twin, platform: Platform) -> None:
    whole = {
        "id": PEER,
        "name": "ops",
        "url": HOST,
        "role": "sre",
        "tier": 3,
        "status": "online",
        "agent_card": {"name": "ops"},
        "new_member": 1,
    }
    bare = {"id": "p2", "name": None, "url": None, "role": None, "tier": None, "agent_card": None}
    nonsense = {"id": "p3", "name": 5, "tier": 0, "role": {}, "agent_card": "x"}
    platform.on(PEERS, httpx.Response(200, json=[whole, bare, nonsense, {"name": "no id"}, {"id": ""}, None, 5]))

    assert agent.get_peers() == [
        PeerInfo(id=PEER, name="ops", url=HOST, role="sre", tier=3, status="online", agent_card={"name": "ops"}),
        PeerInfo(id="p2"),
        PeerInfo(id="p3"),
    ]


def test_a_peer_without_a_status_is_unknown(agent: Twin, platform: Platform) -> None:
    platform.on(
        PEERS, httpx.Response(200, json=[{"id": PEER}, {"id": "p2", "status": None}, {"id": "p3", "status": ""}])
    )

    assert [peer.status for peer in agent.get_peers()] == ["unknown"] * 3


def test_every_call_names_peer_target_id(agent: Twin, platform: Platform) -> None:
    begun = httpx.Response(202, json={"delegation_id": "d1", "status": "delegated", "target_id": PEER})
    platform.on(DISCOVER, found(HOST)).on(A2A, httpx.Response(200, json=QUEUED)).on(DELEGATE, begun)

    assert agent.discover_peer(target_id=PEER) == HOST
    agent.invalidate_peer_url(target_id=PEER)
    assert agent.call_peer(target_id=PEER, message="hello") == QUEUED
    assert agent.delegate(target_id=PEER, task="summarise").target_id == PEER


@pytest.mark.parametrize("answer", [None, {}, {"error": None}, "text"])
def test_invalid_list_means_no_peers(agent: Twin, platform: Platform, answer: Any) -> None:
    assert agent.client
    platform.on(PEERS, httpx.Response(200, json=answer))

    assert agent.get_peers() == []


def test_peers_can_be_put_in_a_set(agent: Twin, platform: Platform) -> None:
    platform.on(PEERS, httpx.Response(200, json=[{"id": PEER, "agent_card": {"name": "one"}}]))

    assert set(agent.get_peers()) == set(agent.get_peers())


def test_list_caches_web_addresses_only(agent: Twin, platform: Platform) -> None:
    platform.on(PEERS, httpx.Response(200, json=[{"id": PEER, "url": HOST}, {"id": "p2", "url": "remote://none"}]))
    platform.on("GET /registry/discover/p2", httpx.Response(200, json={"url": "remote://none"}))
    agent.get_peers()

    assert agent.discover_peer(PEER) == HOST
    assert agent.discover_peer("p2") is None
    assert platform.asked(DISCOVER) == []


def test_address_is_cached_until_its_ttl(agent: Twin, platform: Platform) -> None:
    platform.on(DISCOVER, found(HOST))
    for _ in range(2):
        assert agent.discover_peer(PEER) == HOST
    agent.now += 299
    agent.discover_peer(PEER)
    assert len(platform.requests) == 1

    agent.now += 2
    agent.discover_peer(PEER)
    assert len(platform.requests) == 2


def test_invalidated_address_is_looked_up_again(agent: Twin, platform: Platform) -> None:
    platform.on(DISCOVER, found(HOST), found("https://other.example"))
    agent.discover_peer(PEER)
    agent.invalidate_peer_url(PEER)
    agent.invalidate_peer_url("never-seen")

    assert agent.discover_peer(PEER) == "https://other.example"


@pytest.mark.parametrize(
    "answer",
    [
        said(404, "workspace not found"),
        httpx.Response(404),
        said(503, "workspace not available", status="awaiting_agent"),
        httpx.Response(200, json=None),
        httpx.Response(200, json={}),
        found(None),
        found(""),
        found(5),
        found("remote://no-inbound"),
        found("file:///etc/passwd"),
        found("https://user:word@peer.example"),
    ],
)
def test_peer_without_address_is_not_retried(agent: Twin, platform: Platform, answer: httpx.Response) -> None:
    platform.on(DISCOVER, answer)

    assert agent.discover_peer(PEER) is None
    assert agent.waits == []


@pytest.mark.parametrize(("status", "error"), [(401, AuthError), (403, PermanentPlatformError)])
def test_what_is_forbidden_raises(agent: Twin, platform: Platform, status: int, error: type[Exception]) -> None:
    platform.on(DISCOVER, said(status))
    with pytest.raises(error, match=f"discover: {status}"):
        agent.discover_peer(PEER)


@pytest.mark.parametrize(
    "answer",
    [RESULT, {"jsonrpc": "2.0", "id": "1", "error": {"code": -32000, "message": "no model"}}, QUEUED, {}],
)
def test_an_answer_comes_back_as_it_came(agent: Twin, platform: Platform, answer: dict[str, Any]) -> None:
    platform.on(A2A, httpx.Response(200, json=answer))

    assert agent.call_peer(PEER, "hello") == answer
    (request,) = platform.requests
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.headers["x-workspace-id"] == ME


def test_question_is_one_user_text_part(agent: Twin, platform: Platform) -> None:
    platform.on(A2A, httpx.Response(200, json=QUEUED))
    agent.call_peer(PEER, "hello\0", context_id="c1", message_id="m1")

    assert platform.body(A2A) == {
        "jsonrpc": "2.0",
        "id": "m1",
        "method": "message/send",
        "params": {
            "message": {
                "role": "user",
                "messageId": "m1",
                "parts": [{"kind": "text", "text": "hello"}],
                "contextId": "c1",
            }
        },
    }


@pytest.mark.parametrize(
    ("answer", "queued"),
    [
        (QUEUED, True),
        ({"queued": True, "queue_id": "q", "message": "later"}, True),
        (RESULT, False),
        ({"status": "ok"}, False),
        ({}, False),
    ],
)
def test_queued_response_is_recognized(answer: dict[str, object], queued: bool) -> None:
    assert RemoteAgentClient.is_queued(answer) is queued


@pytest.mark.parametrize("refusal", [said(400, "invalid JSON"), said(413, "request body too large")])
def test_too_long_question_has_a_hint(agent: Twin, platform: Platform, refusal: httpx.Response) -> None:
    platform.on(A2A, refusal)
    with pytest.raises(PermanentPlatformError) as caught:
        agent.call_peer(PEER, "x" * (1 << 20))

    assert "1 MiB" in caught.value.hint


def test_late_response_is_accepted(agent: Twin, platform: Platform) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        agent.now += 550
        return httpx.Response(200, json=RESULT)

    platform.on(A2A, answer)

    assert agent.call_peer(PEER, "think hard", timeout=600) == RESULT


def test_an_empty_answer_is_an_empty_one(agent: Twin, platform: Platform) -> None:
    platform.on(A2A, httpx.Response(202))

    assert agent.call_peer(PEER, "hello") == {}


@pytest.mark.parametrize("answer", [httpx.Response(200, html="<html>"), httpx.Response(200, json=["no object"])])
def test_html_response_raises_without_retry(agent: Twin, platform: Platform, answer: httpx.Response) -> None:
    platform.on(A2A, answer)
    with pytest.raises(TransientPlatformError):
        agent.call_peer(PEER, "hello")

    assert len(platform.requests) == 1


@pytest.mark.parametrize("member", ["call_peer", "delegate"])
@pytest.mark.parametrize(
    ("peer_id", "text", "words"),
    [
        (ME, "hello", "itself"),
        (ME.upper(), "hello", "itself"),
        ("", "hello", "peer's id"),
        ("a/b", "hello", "peer's id"),
        (PEER, " ", "blank"),
        (PEER, "\0", "blank"),
    ],
)
def test_invalid_peer_call_sends_nothing(
    agent: Twin, platform: Platform, member: str, peer_id: str, text: str, words: str
) -> None:
    with pytest.raises(ArgumentError, match=words):
        getattr(agent, member)(peer_id, text)

    assert platform.requests == []


class TestDirect:
    def test_foreign_host_gets_no_credentials(self, agent: Twin, platform: Platform) -> None:
        platform.on(DISCOVER, found(f"{HOST}/a2a")).on(DIRECT, httpx.Response(200, json=RESULT))

        assert agent.call_peer(PEER, "hello", prefer_direct=True) == RESULT
        (request,) = platform.asked(DIRECT)
        assert request.url.host == "peer.example"
        assert {"authorization", "origin", "x-workspace-id", "cookie"} & set(request.headers) == set()
        assert TOKEN not in f"{request.headers}{request.content!r}"
        assert platform.asked(A2A) == []

    @pytest.mark.parametrize(
        "url",
        [
            None,
            "",
            "remote://none",
            "https://peer.example/a2a?key=1",
            "https://user:word@peer.example/a2a",
            f"https://{'a' * 64}.example",
            "https://...",
            "https://xn--a",
            "https://peer.example/\x7f",
            f"https://peer.example/{'a' * 70_000}",
        ],
    )
    def test_without_an_address_the_platform_carries_it(self, agent: Twin, platform: Platform, url: Any) -> None:
        platform.on(DISCOVER, found(url)).on(A2A, httpx.Response(200, json=QUEUED))

        assert agent.call_peer(PEER, "hello", prefer_direct=True) == QUEUED

    @pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ConnectTimeout("no route")])
    def test_unreachable_host_falls_back_with_same_id(self, agent: Twin, platform: Platform, error: Exception) -> None:
        tried: list[bytes] = []

        def refuse(request: httpx.Request) -> httpx.Response:
            tried.append(request.content)
            raise error

        platform.on(DISCOVER, found(f"{HOST}/a2a")).on(DIRECT, refuse).on(A2A, httpx.Response(200, json=QUEUED))

        assert agent.call_peer(PEER, "hello", prefer_direct=True) == QUEUED
        assert [json.loads(body) for body in tried] == [platform.body(A2A)]
        assert agent.discover_peer(PEER) == f"{HOST}/a2a"
        assert len(platform.asked(DISCOVER)) == 2

    @pytest.mark.parametrize(
        "answer",
        [
            httpx.ReadTimeout("no answer"),
            httpx.ReadError("cut"),
            httpx.RemoteProtocolError("cut"),
            said(500),
            said(401),
            httpx.Response(404),
            httpx.Response(302, headers={"Location": API}),
            httpx.Response(200, html="<html>"),
        ],
    )
    def test_possibly_delivered_message_is_not_resent(self, agent: Twin, platform: Platform, answer: Any) -> None:
        platform.on(DISCOVER, found(f"{HOST}/a2a")).on(DIRECT, answer).on(A2A, httpx.Response(200, json=QUEUED))
        with pytest.raises((TransientPlatformError, PermanentPlatformError)) as caught:
            agent.call_peer(PEER, "hello", prefer_direct=True)

        assert not isinstance(caught.value, AuthError)
        assert (len(platform.asked(DIRECT)), platform.asked(A2A)) == (1, [])

    @pytest.mark.parametrize(
        "host",
        [
            "127.0.0.1",
            "127.1",
            "0x7f000001",
            "localhost",
            "evil.localhost",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "100.100.100.200",
            "169.254.169.254",
            "168.63.129.16",
            "192.0.0.192",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[fe80::1]",
            "[fc00::1]",
            "[fd00:ec2::254]",
            "[fec0::1]",
            "[ff02::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:169.254.169.254]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b:1::1]",
            "[2002:7f00:1::]",
            "[2002:a9fe:a9fe::1]",
            "[2001:0:7f00:1::]",
            "[2001:db8::1]",
        ],
    )
    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_private_address_is_not_posted_to(
        self, agent: Twin, platform: Platform, host: str, scheme: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        platform.on(DISCOVER, found(f"{scheme}://{host}/a2a")).on(A2A, httpx.Response(200, json=QUEUED))

        assert agent.call_peer(PEER, "hello", prefer_direct=True) == QUEUED
        assert {request.url.host for request in platform.requests} == {"platform.example"}
        assert "allow_private=True" in caplog.text

    @pytest.mark.parametrize(
        "addresses", [["10.0.0.1"], ["93.184.215.14", "::1"], ["2606:2800:21f::1", "fd00::1"], ["nonsense"]]
    )
    def test_every_resolved_address_must_be_public(self, make: Make, platform: Platform, addresses: list[str]) -> None:
        asked: list[tuple[str, int]] = []

        def resolve(host: str, port: int) -> list[str]:
            asked.append((host, port))
            return addresses

        agent = make(platform, resolve=resolve)
        platform.on(DISCOVER, found(f"{HOST}/a2a")).on(A2A, httpx.Response(200, json=QUEUED))

        assert agent.call_peer(PEER, "hello", prefer_direct=True) == QUEUED
        assert asked == [("peer.example", 443)]
        assert platform.asked(DIRECT) == []

    @pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f::1", "64:ff9b::5db8:d70e"])
    def test_connects_to_the_checked_address(self, make: Make, platform: Platform, address: str) -> None:
        agent = make(platform, resolve=lambda host, port: [address])
        platform.on(DISCOVER, found(f"{HOST}:8443/a2a")).on(DIRECT, httpx.Response(200, json=RESULT))

        assert agent.call_peer(PEER, "hello", prefer_direct=True) == RESULT
        (request,) = platform.asked(DIRECT)
        assert (request.url.host, request.url.port) == (address, 8443)
        assert request.headers["host"] == "peer.example:8443"
        assert request.extensions["sni_hostname"] == "peer.example"

    def test_next_address_is_tried(self, make: Make, platform: Platform) -> None:
        tried: list[str] = []

        def answer(request: httpx.Request) -> httpx.Response:
            tried.append(request.url.host)
            if len(tried) == 1:
                raise httpx.ConnectError("refused")
            return httpx.Response(200, json=RESULT)

        agent = make(platform, resolve=lambda host, port: ["2606:2800:21f::1", "93.184.215.14"])
        platform.on(DISCOVER, found(f"{HOST}/a2a")).on(DIRECT, answer)

        assert agent.call_peer(PEER, "hello", prefer_direct=True) == RESULT
        assert tried == ["2606:2800:21f::1", "93.184.215.14"]

    def test_unresolvable_name_falls_back(self, make: Make, platform: Platform) -> None:
        def resolve(host: str, port: int) -> list[str]:
            raise OSError("no such name")

        agent = make(platform, resolve=resolve)
        platform.on(DISCOVER, found(f"{HOST}/a2a")).on(A2A, httpx.Response(200, json=QUEUED))

        assert agent.call_peer(PEER, "hello", prefer_direct=True) == QUEUED
        assert platform.asked(DIRECT) == []

    def test_private_addresses_can_be_allowed(self, make: Make, platform: Platform) -> None:
        agent = make(platform, allow_private=True)
        platform.on(DISCOVER, found("http://10.0.0.1/a2a")).on(DIRECT, httpx.Response(200, json=RESULT))

        assert agent.call_peer(PEER, "hello", prefer_direct=True) == RESULT
        assert [request.url.host for request in platform.asked(DIRECT)] == ["10.0.0.1"]

    def test_failed_address_lookup_falls_back(self, agent: Twin, platform: Platform) -> None:
        platform.on(DISCOVER, said(500)).on(A2A, httpx.Response(200, json=QUEUED))

        assert agent.call_peer(PEER, "hello", prefer_direct=True) == QUEUED

    def test_by_default_no_address_is_asked_for(self, agent: Twin, platform: Platform) -> None:
        platform.on(PEERS, httpx.Response(200, json=[{"id": PEER, "url": f"{HOST}/a2a"}]))
        platform.on(A2A, httpx.Response(200, json=QUEUED))
        agent.get_peers()
        agent.call_peer(PEER, "hello")

        assert [request.url.host for request in platform.requests] == ["platform.example"] * 2


def test_delegation_is_repeated_with_its_key(agent: Twin, platform: Platform) -> None:
    begun = httpx.Response(202, json={"delegation_id": "d1", "status": "delegated", "target_id": PEER})
    platform.on(DELEGATE, said(500), begun)
    delegation = agent.delegate(PEER, "summarise")

    bodies = [json.loads(request.content) for request in platform.requests]
    assert bodies[0] == bodies[1]
    assert bodies[0]["idempotency_key"]
    assert (delegation.id, delegation.status, delegation.target_id, delegation.source_id) == (
        "d1",
        "delegated",
        PEER,
        ME,
    )


def test_a_key_of_ones_own_is_used(agent: Twin, platform: Platform) -> None:
    platform.on(DELEGATE, httpx.Response(202, json={}))
    agent.delegate(PEER, "summarise", idempotency_key="k1")

    assert platform.body(DELEGATE) == {"target_id": PEER, "task": "summarise", "idempotency_key": "k1"}


@pytest.mark.parametrize(
    ("own", "shown"), [({}, "compare the peer's id with those of get_peers()"), ({"hint": "try later"}, "try later")]
)
def test_refused_delegation_has_a_hint(agent: Twin, platform: Platform, own: dict[str, Any], shown: str) -> None:
    platform.on(DELEGATE, said(400, "target_id must be a valid UUID", **own))
    with pytest.raises(PermanentPlatformError, match="target_id must be a valid UUID") as caught:
        agent.delegate("not-a-uuid", "summarise")

    assert shown in caught.value.hint


def test_delegations_as_the_platform_lists_them(agent: Twin, platform: Platform) -> None:
    listed = [
        {"id": "row", "delegation_id": "d1", "source_id": ME, "target_id": PEER, "status": "failed", "error": "no"},
        {"delegation_id": "d2", "status": "completed", "response_preview": json.dumps(QUEUED), "summary": None},
        {},
        None,
    ]
    platform.on(DELEGATIONS, httpx.Response(200, json=listed))
    first, second, third = agent.delegations()

    assert (first.id, first.error, first.is_queued) == ("d1", "no", False)
    assert (second.id, second.summary, second.is_queued) == ("d2", "", True)
    assert (third.id, third.status) == ("", "unknown")
