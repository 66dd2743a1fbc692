"""What is sent again, how long is waited, and that a client can be shared and closed."""

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from molecule_connect import ConfigError, TransientPlatformError
from molecule_connect_agent import AsyncRemoteAgentClient, RemoteAgentClient

from .kit import API, ME, PEER, TOKEN, Make, Platform, Twin, said

STATE = f"GET /workspaces/{ME}/state"
PEERS = f"GET /registry/{ME}/peers"
GOOD = httpx.Response(200, json={"status": "online"})

GETS: dict[str, Callable[[Twin], Any]] = {
    STATE: lambda agent: agent.poll_state(),
    PEERS: lambda agent: agent.get_peers(),
    f"GET /workspaces/{ME}/secrets/values": lambda agent: agent.pull_secrets(),
    f"GET /registry/discover/{PEER}": lambda agent: agent.discover_peer(PEER),
    f"GET /workspaces/{ME}/delegations": lambda agent: agent.delegations(),
    f"GET /workspaces/{ME}/activity": lambda agent: agent.activity(follow=False),
}
POSTS: dict[str, Callable[[Twin], Any]] = {
    f"POST /workspaces/{PEER}/a2a": lambda agent: agent.call_peer(PEER, "hello"),
    f"POST /workspaces/{ME}/notify": lambda agent: agent.notify("hello"),
}


@pytest.mark.parametrize("what", GETS)
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_get_is_sent_again(agent: Twin, platform: Platform, what: str, status: int) -> None:
    platform.on(what, httpx.Response(status), httpx.Response(status), httpx.Response(200, json=[]))
    GETS[what](agent)

    assert len(platform.asked(what)) == 3
    assert len(agent.waits) >= 2


@pytest.mark.parametrize("what", GETS)
def test_but_not_for_ever(agent: Twin, platform: Platform, what: str) -> None:
    platform.on(what, httpx.Response(500))
    with pytest.raises(TransientPlatformError):
        GETS[what](agent)

    assert len(platform.asked(what)) == 4


@pytest.mark.parametrize("what", POSTS)
@pytest.mark.parametrize("status", [408, 500, 503])
def test_unrepeatable_post_is_not_retried(agent: Twin, platform: Platform, what: str, status: int) -> None:
    platform.on(what, httpx.Response(status), httpx.Response(200))
    with pytest.raises(TransientPlatformError):
        POSTS[what](agent)

    assert len(platform.asked(what)) == 1


@pytest.mark.parametrize("what", POSTS)
def test_unless_the_rate_limit_turned_it_away(agent: Twin, platform: Platform, what: str) -> None:
    platform.on(what, said(429, headers={"Retry-After": "0"}), httpx.Response(200, json={}))
    POSTS[what](agent)

    first, second = platform.asked(what)
    assert first.content == second.content


def test_a_register_is_sent_again(agent: Twin, platform: Platform) -> None:
    platform.on("POST /registry/register", said(500), httpx.Response(200, json={}))
    agent.register()

    assert len(platform.requests) == 2


def test_honors_retry_after(agent: Twin, platform: Platform) -> None:
    platform.on(STATE, said(503, headers={"Retry-After": "17"}), said(503, retry_after=21), GOOD)
    agent.poll_state()

    assert agent.waits == [17.0, 21.0]


def test_and_else_longer_each_time(agent: Twin, platform: Platform) -> None:
    platform.on(STATE, said(500), said(500), said(500), GOOD)
    agent.poll_state()

    assert [0.5 <= agent.waits[0] <= 1, 1 <= agent.waits[1] <= 2, 2 <= agent.waits[2] <= 4] == [True] * 3


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout("late")])
def test_a_network_error_is_told_at_once(agent: Twin, platform: Platform, error: Exception) -> None:
    platform.on(STATE, error)
    with pytest.raises(TransientPlatformError) as caught:
        agent.poll_state()

    assert caught.value.__cause__ is error
    assert caught.value.hint
    assert len(platform.requests) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"platform_url": ""},
        {"platform_url": "platform.example"},
        {"platform_url": "http://platform.example"},
        {"heartbeat_interval": 0},
        {"heartbeat_interval": float("nan")},
        {"state_poll_interval": -1},
        {"state_poll_interval": "30"},
        {"url_cache_ttl": -1},
        {"org_id": "a\nb"},
        {"token": " "},
        {"token": "<token>"},
    ],
)
def test_what_cannot_work_is_refused_at_once(make: Make, platform: Platform, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make(platform, **wrong)


def test_an_organisation_is_named_to_the_platform(make: Make, platform: Platform) -> None:
    make(platform.on(STATE, GOOD), org_id="org-7").poll_state()

    assert platform.requests[0].headers["x-molecule-org-id"] == "org-7"


def test_a_closed_client_says_that_it_is(platform: Platform) -> None:
    client = RemoteAgentClient(ME, API, token=TOKEN, transport=httpx.MockTransport(platform))
    client.close()
    client.close()
    with pytest.raises(ConfigError, match="closed"):
        client.poll_state()

    assert platform.requests == []


async def test_so_does_its_twin(platform: Platform) -> None:
    client = AsyncRemoteAgentClient(ME, API, token=TOKEN, transport=httpx.MockTransport(platform))
    await client.aclose()
    with pytest.raises(ConfigError, match="closed"):
        await client.poll_state()


def test_closing_ends_a_loop_of_another_thread() -> None:
    beaten = threading.Event()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/state"):
            beaten.set()
        return GOOD

    results: list[str] = []
    client = RemoteAgentClient(ME, API, token=TOKEN, transport=httpx.MockTransport(answer))
    loop = threading.Thread(target=lambda: results.append(client.run_heartbeat_loop()))
    loop.start()
    assert beaten.wait(30)
    client.close()
    loop.join(30)

    assert results == ["closed"]


def test_threads_may_share_a_client() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=[{"id": "p", "url": "https://peer.example"}])

    failures: list[BaseException] = []
    with RemoteAgentClient(ME, API, token=TOKEN, transport=httpx.MockTransport(answer)) as client:

        def work() -> None:
            try:
                for _ in range(50):
                    client.get_peers()
                    client.discover_peer("p")
                    client.invalidate_peer_url("p")
                    client.load_token()
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)

    assert failures == []
