"""Register, state, heartbeat, secrets, and the loop: against every answer that a platform may give."""

import math
from itertools import pairwise
from typing import Any

import httpx
import pytest

from molecule_connect import (
    ArgumentError,
    AuthError,
    PermanentPlatformError,
    TransientPlatformError,
    WorkspaceDeletedError,
)
from molecule_connect_agent import RemoteAgentClient, WorkspaceState

from .kit import API, ME, TOKEN, Make, Platform, Twin, said

REGISTER = "POST /registry/register"
BEAT = "POST /registry/heartbeat"
STATE = f"GET /workspaces/{ME}/state"
CARD = f"GET /workspaces/{ME}"
SECRETS = f"GET /workspaces/{ME}/secrets/values"
OK = httpx.Response(200, json={"status": "ok"})
ONLINE = httpx.Response(200, json={"workspace_id": ME, "status": "online", "paused": False, "deleted": False})


def test_register_sends_mode_and_token(agent: Twin, platform: Platform) -> None:
    platform.on(REGISTER, httpx.Response(200, json={"status": "registered"}))

    assert agent.register() == TOKEN
    (request,) = platform.requests
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.headers["origin"] == API
    assert platform.body(REGISTER) == {
        "id": ME,
        "delivery_mode": "poll",
        "agent_card": {"name": f"remote-agent-{ME[:8]}"},
    }


def test_register_sends_card_and_address(make: Make, platform: Platform) -> None:
    platform.on(REGISTER, OK)
    make(platform, agent_card={"name": "mine", "skills": []}, reported_url="https://me.example/a2a").register()

    assert platform.body(REGISTER)["agent_card"] == {"name": "mine", "skills": []}
    assert platform.body(REGISTER)["url"] == "https://me.example/a2a"


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"name": {"a", "set"}}, "set is not JSON serializable"),
        ({"load": math.nan}, "not JSON compliant"),
        ({("a", "b"): 1}, "keys must be str"),
    ],
)
def test_card_must_be_json(make: Make, card: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=f"agent_card is not JSON .*{words}") as caught:
        make(agent_card=card)

    assert "may hold dicts" in caught.value.hint


def test_issued_token_is_used_at_once(make: Make, platform: Platform) -> None:
    platform.on(REGISTER, httpx.Response(200, json={"auth_token": "handed-out"})).on(BEAT, OK)
    agent = make(platform, token=None)

    assert agent.register() == "handed-out"
    agent.heartbeat()
    assert "authorization" not in platform.asked(REGISTER)[0].headers
    assert platform.asked(BEAT)[0].headers["authorization"] == "Bearer handed-out"
    assert agent.token_file.read_text().strip() == "handed-out"


def test_concurrent_registers_share_the_token(make: Make, platform: Platform) -> None:
    agent = make(platform, token=None)

    def save_late(seconds: float) -> None:
        agent.token_file.parent.mkdir()
        agent.token_file.write_text("of-the-other")
        agent.token_file.chmod(0o600)

    agent.passing = save_late
    platform.on(REGISTER, said(401, "missing workspace auth token"), OK)

    assert agent.register() == "of-the-other"
    assert platform.asked(REGISTER)[1].headers["authorization"] == "Bearer of-the-other"


def test_deleted_workspace_keeps_the_stored_token(make: Make, platform: Platform) -> None:
    platform.on(REGISTER, httpx.Response(200, json={"auth_token": "never-accepted"}))
    platform.on(CARD, said(410, "workspace removed"))
    agent = make(platform, token=None)
    agent.save_token(TOKEN)
    with pytest.raises(WorkspaceDeletedError, match=ME) as caught:
        agent.register()

    assert "make a new one" in caught.value.hint
    assert agent.load_token() == agent.token_file.read_text().strip() == TOKEN


@pytest.mark.parametrize(
    "card",
    [
        httpx.Response(200, json={"status": "online"}),
        httpx.Response(200, html="<html>"),
        httpx.Response(410, html="<html>"),
        httpx.Response(404),
        said(401),
        said(429, headers={"Retry-After": "60"}),
        said(503),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("no answer"),
    ],
)
def test_second_token_is_stored(agent: Twin, platform: Platform, card: Any) -> None:
    platform.on(REGISTER, httpx.Response(200, json={"auth_token": "handed-out"})).on(CARD, card)

    assert agent.register() == "handed-out"
    assert agent.load_token() == agent.token_file.read_text().strip() == "handed-out"
    assert (len(platform.asked(CARD)), agent.waits) == (1, [])


def test_second_token_survives_a_close(make: Make, platform: Platform) -> None:
    agent = make(platform)

    def answer(request: httpx.Request) -> httpx.Response:
        if isinstance(agent.client, RemoteAgentClient):
            agent.client.close()
        return httpx.Response(200, json={"auth_token": "handed-out"})

    platform.on(REGISTER, answer)

    assert agent.register() == "handed-out"


@pytest.mark.parametrize(("has", "told"), [(None, "handed-out"), (TOKEN, TOKEN), (TOKEN, None), (None, None)])
def test_only_a_second_token_checks_the_card(make: Make, platform: Platform, has: str | None, told: str | None) -> None:
    platform.on(REGISTER, httpx.Response(200, json={"auth_token": told}))
    make(platform, token=has).register()

    assert len(platform.requests) == 1


@pytest.mark.parametrize("answer", [httpx.Response(200), httpx.Response(200, json=None), httpx.Response(200, json=[])])
def test_without_any_token_registering_says_so(
    make: Make, platform: Platform, answer: httpx.Response, caplog: pytest.LogCaptureFixture
) -> None:
    assert make(platform.on(REGISTER, answer), token=None).register() == ""
    assert ME in caplog.text


@pytest.mark.parametrize("token", [None, "", 5, "  "])
def test_invalid_issued_token_is_not_saved(make: Make, platform: Platform, token: Any) -> None:
    agent = make(platform.on(REGISTER, httpx.Response(200, json={"auth_token": token})))

    assert agent.register() == TOKEN
    assert agent.load_token() == TOKEN


def test_a_register_that_is_refused_raises(agent: Twin, platform: Platform) -> None:
    platform.on(REGISTER, said(401, "missing workspace auth token"))
    with pytest.raises(AuthError, match="register: 401"):
        agent.register()


def test_unreadable_id_has_a_hint(agent: Twin, platform: Platform) -> None:
    platform.on(REGISTER, said(500, "registration failed"))
    with pytest.raises(TransientPlatformError) as failed:
        agent.register()
    assert "compare it with the platform's" in failed.value.hint


def test_trailing_slash_is_ignored(make: Make, platform: Platform) -> None:
    make(platform.on(BEAT, OK), platform_url=f"{API}/").heartbeat()

    assert str(platform.requests[0].url) == f"{API}/registry/heartbeat"


def test_heartbeat_sends_fields_and_uptime(agent: Twin, platform: Platform) -> None:
    platform.on(BEAT, OK)
    agent.now += 61.9
    agent.heartbeat("reading", 2, error_rate=0.25, sample_error="an error")

    assert platform.body(BEAT) == {
        "workspace_id": ME,
        "current_task": "reading",
        "active_tasks": 2,
        "error_rate": 0.25,
        "sample_error": "an error",
        "uptime_seconds": 61,
    }


@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf, -0.1, 1.5, "0.5", None])
def test_invalid_error_rate_sends_nothing(agent: Twin, platform: Platform, rate: Any) -> None:
    with pytest.raises(ArgumentError, match="error_rate must be from 0 to 1") as caught:
        agent.heartbeat(error_rate=rate)

    assert caught.value.hint
    assert platform.requests == []


@pytest.mark.parametrize("rate", [0, 1, 1.0])
def test_none_and_all_are_error_rates(agent: Twin, platform: Platform, rate: float) -> None:
    platform.on(BEAT, OK)
    agent.heartbeat(error_rate=rate)

    assert platform.body(BEAT)["error_rate"] == rate


def test_a_beat_is_one_request(agent: Twin, platform: Platform) -> None:
    platform.on(BEAT, said(503))
    with pytest.raises(TransientPlatformError):
        agent.heartbeat()

    assert len(platform.requests) == 1


@pytest.mark.parametrize(
    ("answer", "state", "stops"),
    [
        ({"status": "online", "paused": False, "deleted": False}, ("online", False, False), False),
        ({"status": "paused", "paused": True, "deleted": False}, ("paused", True, False), True),
        ({"status": "paused"}, ("paused", True, False), True),
        ({"status": "online", "paused": True}, ("online", True, False), True),
        ({"status": "removed"}, ("removed", False, True), True),
        ({"deleted": True}, ("removed", False, True), True),
        ({"status": None, "paused": None, "deleted": None}, ("unknown", False, False), False),
        ({"status": 5, "paused": "yes"}, ("unknown", False, False), False),
        (None, ("unknown", False, False), False),
        ([], ("unknown", False, False), False),
    ],
)
def test_what_the_state_says(
    agent: Twin, platform: Platform, answer: Any, state: tuple[str, bool, bool], stops: bool
) -> None:
    platform.on(STATE, httpx.Response(200, json=answer))
    found = agent.poll_state()

    assert found == WorkspaceState(workspace_id=ME, status=state[0], paused=state[1], deleted=state[2])
    assert found.should_stop is stops


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404, json={"workspace_id": ME, "deleted": True, "status": "removed"}),
        httpx.Response(404, text="404 page not found"),
        httpx.Response(404),
        said(404, "workspace not found"),
    ],
)
def test_missing_state_means_removed(agent: Twin, platform: Platform, answer: httpx.Response) -> None:
    platform.on(STATE, answer)
    for _ in range(2):
        state = agent.poll_state()
        assert (state.status, state.deleted, state.should_stop) == ("removed", True, True)

    assert len(platform.asked(STATE)) == 2


def test_refused_token_of_deleted_workspace_means_removed(agent: Twin, platform: Platform) -> None:
    platform.on(STATE, said(401)).on(CARD, said(410, "workspace removed", hint="make another"))

    assert agent.poll_state() == WorkspaceState(workspace_id=ME, status="removed", deleted=True)


@pytest.mark.parametrize("card", [httpx.Response(200, json={"status": "online"}), httpx.Response(404), said(500)])
def test_refused_token_raises_auth_error(agent: Twin, platform: Platform, card: httpx.Response) -> None:
    platform.on(STATE, said(401)).on(CARD, card)
    with pytest.raises(AuthError):
        agent.poll_state()


@pytest.mark.parametrize(
    ("answer", "secrets"),
    [
        ({"A": "1", "B": "two"}, {"A": "1", "B": "two"}),
        ({"A": None, "B": 2}, {"B": "2"}),
        (None, {}),
        ([], {}),
    ],
)
def test_the_secrets_are_flat(agent: Twin, platform: Platform, answer: Any, secrets: dict[str, str]) -> None:
    platform.on(SECRETS, httpx.Response(200, json=answer))

    assert agent.pull_secrets() == secrets


@pytest.mark.parametrize("member", ["pull_secrets", "poll_state", "register", "get_peers", "delegations"])
def test_a_page_in_html_is_no_answer(agent: Twin, platform: Platform, member: str) -> None:
    page = httpx.Response(200, html="<html>Please sign in</html>")
    for path in (REGISTER, SECRETS, STATE, f"GET /registry/{ME}/peers", f"GET /workspaces/{ME}/delegations"):
        platform.on(path, page)
    with pytest.raises(TransientPlatformError, match="text/html"):
        getattr(agent, member)()


class TestLoop:
    def test_it_ends_after_so_many_beats(self, agent: Twin, platform: Platform) -> None:
        platform.on(BEAT, OK).on(STATE, ONLINE)

        assert agent.run_heartbeat_loop(max_iterations=3) == "max_iterations"
        assert (len(platform.asked(BEAT)), len(platform.asked(STATE))) == (3, 3)
        assert agent.waits == [30.0, 30.0]

    def test_no_beat_is_no_request(self, agent: Twin, platform: Platform) -> None:
        assert agent.run_heartbeat_loop(max_iterations=0) == "max_iterations"
        assert platform.requests == []

    def test_heartbeats_and_reads_have_own_intervals(self, make: Make, platform: Platform) -> None:
        platform.on(BEAT, OK).on(STATE, ONLINE)
        agent = make(platform, heartbeat_interval=10.0, state_poll_interval=25.0)
        agent.run_heartbeat_loop(max_iterations=6)

        assert (len(platform.asked(BEAT)), len(platform.asked(STATE))) == (6, 3)
        assert sum(agent.waits) == 50.0

    @pytest.mark.parametrize(
        ("answer", "result"),
        [
            (httpx.Response(200, json={"status": "paused", "paused": True}), "paused"),
            (httpx.Response(404), "removed"),
        ],
    )
    def test_it_ends_when_the_workspace_should_stop(
        self, agent: Twin, platform: Platform, answer: httpx.Response, result: str
    ) -> None:
        platform.on(BEAT, OK).on(STATE, ONLINE, answer)

        assert agent.run_heartbeat_loop() == result
        assert len(platform.asked(BEAT)) == 2

    def test_heartbeat_sends_the_suppliers_task(self, agent: Twin, platform: Platform) -> None:
        platform.on(BEAT, OK).on(STATE, ONLINE)
        agent.run_heartbeat_loop(1, lambda: {"current_task": "sorting", "active_tasks": 3, "more": object()})

        assert (platform.body(BEAT)["current_task"], platform.body(BEAT)["active_tasks"]) == ("sorting", 3)

    @pytest.mark.parametrize(
        "told",
        [
            None,
            {},
            {"current_task": None, "active_tasks": "many"},
            {"active_tasks": -1},
            {"active_tasks": False},
            {"active_tasks": float("inf")},
            {"active_tasks": float("nan")},
            {"active_tasks": object()},
            7,
        ],
    )
    def test_invalid_supplier_result_counts_as_empty(self, agent: Twin, platform: Platform, told: Any) -> None:
        platform.on(BEAT, OK).on(STATE, ONLINE)
        agent.run_heartbeat_loop(1, lambda: told)

        assert (platform.body(BEAT)["current_task"], platform.body(BEAT)["active_tasks"]) == ("", 0)
        assert b"false" not in platform.asked(BEAT)[-1].content

    @pytest.mark.parametrize(
        ("task", "active", "count"),
        [(5, "2", 2), ("x", 2.0, 2), ("x", " 3 ", 3), ("x", "2.9", 2), ("x", True, 1), ("x", 2**40, 2**31 - 1)],
    )
    def test_what_a_supplier_tells_is_coerced(
        self, agent: Twin, platform: Platform, task: Any, active: Any, count: int
    ) -> None:
        platform.on(BEAT, OK).on(STATE, ONLINE)
        agent.run_heartbeat_loop(1, lambda: {"current_task": task, "active_tasks": active})

        assert (platform.body(BEAT)["current_task"], platform.body(BEAT)["active_tasks"]) == (str(task), count)
        assert b"true" not in platform.asked(BEAT)[-1].content

    def test_failing_supplier_is_logged(
        self, agent: Twin, platform: Platform, caplog: pytest.LogCaptureFixture
    ) -> None:
        def raises() -> dict[str, object]:
            raise LookupError("the queue is gone")

        platform.on(BEAT, OK).on(STATE, ONLINE)

        assert agent.run_heartbeat_loop(2, raises) == "max_iterations"
        assert platform.body(BEAT)["active_tasks"] == 0
        assert "the queue is gone" in caplog.text

    def test_failures_are_logged_and_retried(
        self, agent: Twin, platform: Platform, caplog: pytest.LogCaptureFixture
    ) -> None:
        platform.on(BEAT, *[said(500)] * 6, httpx.ConnectError("refused"), OK).on(STATE, ONLINE)

        assert agent.run_heartbeat_loop(8) == "max_iterations"
        assert caplog.text.count("heartbeat: ") == 7
        assert agent.waits[0] <= 1.0
        assert all(wait <= 30.0 for wait in agent.waits)
        assert max(agent.waits) >= 1.0

    def test_a_rate_limit_is_waited_for(self, agent: Twin, platform: Platform) -> None:
        platform.on(BEAT, said(429, headers={"Retry-After": "45"}), OK).on(STATE, ONLINE)
        agent.run_heartbeat_loop(2)

        assert sum(agent.waits) == pytest.approx(45.0)

    @pytest.mark.parametrize("answer", [said(503, headers={"Retry-After": "60"}), said(429), said(401)])
    def test_failing_state_reads_delay_no_heartbeat(
        self, agent: Twin, platform: Platform, answer: httpx.Response
    ) -> None:
        beats: list[float] = []

        def beat(request: httpx.Request) -> httpx.Response:
            beats.append(agent.now)
            return OK

        platform.on(BEAT, beat).on(STATE, answer).on(CARD, said(503, headers={"Retry-After": "60"}))
        agent.run_heartbeat_loop(5)

        assert [later - earlier for earlier, later in pairwise(beats)] == pytest.approx([30.0] * 4)

    def test_loop_continues_with_a_new_token(self, agent: Twin, platform: Platform) -> None:
        def judge(request: httpx.Request) -> httpx.Response:
            if request.headers["authorization"] == "Bearer fresh-token":
                return OK
            agent.token_file.parent.mkdir(exist_ok=True)
            agent.token_file.write_text("fresh-token")
            agent.token_file.chmod(0o600)
            return said(401)

        platform.on(BEAT, judge).on(STATE, ONLINE)
        agent.run_heartbeat_loop(2)

        assert platform.asked(BEAT)[-1].headers["authorization"] == "Bearer fresh-token"

    def test_other_errors_end_the_loop(self, agent: Twin, platform: Platform) -> None:
        platform.on(BEAT, RuntimeError("a bug"))
        with pytest.raises(RuntimeError):
            agent.run_heartbeat_loop()


def test_every_refusal_names_operation_and_status(agent: Twin, platform: Platform) -> None:
    platform.on(SECRETS, said(403, "not yours"))
    with pytest.raises(PermanentPlatformError, match="secrets: 403 not yours"):
        agent.pull_secrets()
