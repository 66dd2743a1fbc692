"""Status to error class, headers, tokens, optional endpoints: over a scripted platform."""

import contextlib
import json
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.platform.kit import API, TOKEN, Connect, Script

from molecule_connect.backoff import Backoff
from molecule_connect.errors import (
    AuthError,
    ConfigError,
    CursorExpiredError,
    Outcome,
    PageTooLargeError,
    PermanentPlatformError,
    TransientPlatformError,
)
from molecule_connect.models import Presence
from molecule_connect.platform import endpoints
from molecule_connect.platform.client import AsyncPlatformClient
from molecule_connect.platform.credentials import Credentials
from molecule_connect.platform.endpoints import Operation, Priority, Reply
from molecule_connect.platform.transports import Transports

NOTIFY = endpoints.notify("ws-1", "hi")
A2A = endpoints.a2a("peer-1", {"jsonrpc": "2.0"})
BEAT = endpoints.heartbeat("ws-1", Presence())
ONE_ROW: Operation[int] = endpoints.activity("ws-1", lambda reply: 0, since_id="r1", before=None, limit=1)
FEED: Operation[int] = endpoints.activity("ws-1", lambda reply: len(reply.body), since_id="r1", before=None, limit=500)


def said(status: int, error: str = "no", headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    return httpx.Response(status, json={"error": error, **more}, headers=headers)


async def failure(connect: Connect, response: httpx.Response, operation: Operation[Any] = A2A) -> Any:
    with pytest.raises((PermanentPlatformError, TransientPlatformError)) as caught:
        await connect(Script(response)).call(operation)
    return caught.value


def refusing() -> Transports:
    return Transports(transport=httpx.MockTransport(lambda request: said(401)))


async def test_every_request_has_the_identity_headers(connect: Connect) -> None:
    script = Script(httpx.Response(200))
    await connect(script, org_id="org-7").call(NOTIFY)
    (request,) = script.requests

    assert str(request.url) == f"{API}/workspaces/ws-1/notify"
    assert json.loads(request.content) == {"message": "hi"}
    assert {name: request.headers[name] for name in ("authorization", "origin", "x-workspace-id")} == {
        "authorization": f"Bearer {TOKEN}",
        "origin": API,
        "x-workspace-id": "ws-1",
    }
    assert request.headers["x-molecule-org-id"] == "org-7"
    assert request.headers["user-agent"].startswith("molecule-connect/")


async def test_no_organisation_no_header(connect: Connect) -> None:
    script = Script(httpx.Response(200))
    await connect(script).call(NOTIFY)

    assert "x-molecule-org-id" not in script.requests[0].headers


async def test_path_in_api_address_is_kept(connect: Connect) -> None:
    script = Script(httpx.Response(200))
    await connect(script, api_url="https://platform.example/api/").call(NOTIFY)

    assert str(script.requests[0].url) == "https://platform.example/api/workspaces/ws-1/notify"
    assert script.requests[0].headers["origin"] == API


@pytest.mark.parametrize("operation", [NOTIFY, A2A, BEAT, endpoints.register("ws-1", {})])
@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200),
        httpx.Response(200, content=b" \n"),
        httpx.Response(204),
        httpx.Response(202, json={"queued": True}),
        httpx.Response(200, json={"status": "queued"}),
        httpx.Response(200, json={"jsonrpc": "2.0", "result": {}, "error": None}),
        httpx.Response(502, json={"error": "x", "delivery_confirmed": True}),
    ],
)
async def test_what_counts_as_accepted(connect: Connect, operation: Operation[Any], response: httpx.Response) -> None:
    await connect(Script(response)).call(operation)


async def test_json_rpc_error_of_peer_is_final(connect: Connect) -> None:
    answer = {"jsonrpc": "2.0", "id": "1", "error": {"code": -32000, "message": "no model"}}
    error = await failure(connect, httpx.Response(200, json=answer))

    assert isinstance(error, PermanentPlatformError)
    assert "no model" in str(error)


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 422])
async def test_the_platforms_own_refusal_is_final(connect: Connect, status: int) -> None:
    error = await failure(connect, said(status, "not like this"))

    assert isinstance(error, PermanentPlatformError)
    assert str(error) == f"a2a: {status} not like this"
    assert (error.operation, error.status) == ("a2a", status)
    assert "not like this" in error.body


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, html="<html>Welcome</html>"),
        httpx.Response(404, html="<html>Not found</html>"),
        httpx.Response(404, json={"detail": "Not Found"}),
        httpx.Response(405, json={"message": "Method not allowed"}),
        httpx.Response(501, html="<html>Unsupported method</html>"),
        httpx.Response(403, html="<html>Forbidden</html>"),
        httpx.Response(401, html="<html>Log in</html>"),
    ],
)
async def test_foreign_answer_is_not_a_platform(connect: Connect, response: httpx.Response) -> None:
    assert "this doesn't look like a Molecule platform: " in (await failure(connect, response, BEAT)).hint


async def test_other_json_is_not_a_feed(connect: Connect) -> None:
    with pytest.raises(TransientPlatformError) as caught:
        await connect(Script(httpx.Response(200, json={"hello": "world"}))).fetch(
            since_id=None, limit=10, known=lambda row_id: False
        )
    assert "this doesn't look like a Molecule platform: " in caught.value.hint


async def test_platform_error_looks_like_a_platform(connect: Connect) -> None:
    for status in (401, 403, 404):
        assert "look like" not in (await failure(connect, said(status), BEAT)).hint


@pytest.mark.parametrize("source", ["MOLECULE_WORKSPACE_TOKEN", "--token", "MOLECULE_WORKSPACES"])
async def test_refused_token_of_a_variable_needs_a_restart(source: str) -> None:
    given = Credentials("ws-1", origin=API, token=TOKEN, source=source)
    async with AsyncPlatformClient(API, workspace_id="ws-1", credentials=given, transports=refusing()) as client:
        with pytest.raises(AuthError) as caught:
            await client.call(BEAT)
    assert f"then restart, because {source} is read only at the start" in caught.value.hint


async def test_refused_token_of_a_file_needs_no_restart(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    given = Credentials("ws-1", origin=API, token_file=file, source="MOLECULE_WORKSPACE_TOKEN_FILE")
    async with AsyncPlatformClient(API, workspace_id="ws-1", credentials=given, transports=refusing()) as client:
        with pytest.raises(AuthError) as caught:
            await client.call(BEAT)
    assert "restart" not in caught.value.hint


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 413, 422])
@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b'{"message":"x"}', b"[]", b'{"error":""}', b'{"error":5}'])
async def test_errors_without_platform_json_are_transient(connect: Connect, status: int, body: bytes) -> None:
    error = await failure(connect, httpx.Response(status, content=body))

    assert isinstance(error, TransientPlatformError)
    assert (error.outcome, error.platform_said, error.status) == (Outcome.NOT_TAKEN, False, status)
    assert error.hint


@pytest.mark.parametrize("status", [402, 408, 410, 425, 429])
async def test_transient_statuses_with_platform_json(connect: Connect, status: int) -> None:
    error = await failure(connect, said(status))

    assert isinstance(error, TransientPlatformError)
    assert (error.outcome, error.platform_said, error.status) == (Outcome.NOT_TAKEN, True, status)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_after_a_server_error_nobody_knows(connect: Connect, status: int) -> None:
    error = await failure(connect, httpx.Response(status))

    assert isinstance(error, TransientPlatformError)
    assert (error.outcome, error.status) == (Outcome.UNKNOWN, status)


@pytest.mark.parametrize(
    ("response", "seconds"),
    [
        (said(503, headers={"Retry-After": "15"}), 15.0),
        (said(503, retry_after=30), 30.0),
        (said(429, headers={"Retry-After": "3"}, retry_after=9), 3.0),
        (
            said(
                503,
                headers={"Retry-After": "Sat, 21 Nov 2026 08:38:59 GMT", "Date": "Sat, 21 Nov 2026 08:37:59 GMT"},
            ),
            60.0,
        ),
        (said(503, headers={"Retry-After": "soon"}), None),
        (said(503, retry_after=-1), None),
        (httpx.Response(503), None),
    ],
)
async def test_how_long_to_wait_is_told(connect: Connect, response: httpx.Response, seconds: float | None) -> None:
    error = await failure(connect, response)

    assert error.retry_after == seconds


@pytest.mark.parametrize("operation", [NOTIFY, A2A, BEAT])
async def test_a_portals_page_is_no_answer(connect: Connect, operation: Operation[Any]) -> None:
    error = await failure(connect, httpx.Response(200, html="<html>Please sign in</html>"), operation)

    assert isinstance(error, TransientPlatformError)
    assert error.outcome is Outcome.UNKNOWN
    assert "text/html" in str(error)
    assert "portal" in error.hint


@pytest.mark.parametrize(("begins", "is_answer"), [(b' {"result":"', True), (b"<html>", False), (b"x", False)])
async def test_beginning_of_an_endless_answer_is_enough(connect: Connect, begins: bytes, is_answer: bool) -> None:
    response = httpx.Response(200, content=begins + b"x" * A2A.cap)
    if is_answer:
        await connect(Script(response)).call(A2A)
    else:
        assert isinstance(await failure(connect, response), TransientPlatformError)


PLATFORM = {"X-RateLimit-Limit": "600"}
RPC_ERROR = {"jsonrpc": "2.0", "id": "1", "error": {"code": -32603, "message": "agent failed"}}


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, headers=PLATFORM, text="thanks"),
        httpx.Response(200, headers=PLATFORM, content=b"x" * (A2A.cap + 1)),
        httpx.Response(200, headers={"Content-Type": "application/json"}, content=b"1" * 5_000),
        httpx.Response(200, headers={"Content-Type": "application/json"}, content=b"[" * 3_000 + b"]" * 3_000),
        httpx.Response(400, json=RPC_ERROR),
        httpx.Response(401, json=RPC_ERROR),
        httpx.Response(500, json=RPC_ERROR),
        httpx.Response(500, headers=PLATFORM, text="Internal Server Error"),
        httpx.Response(500, headers=PLATFORM, json={"detail": "no"}),
    ],
    ids=lambda response: f"{response.status_code} {response.content[:20]!r}",
)
async def test_response_passed_on_from_peer_is_delivery(connect: Connect, response: httpx.Response) -> None:
    await connect(Script(response)).call(A2A)


async def test_a_peers_plain_text_is_its_answer(connect: Connect) -> None:
    assert await connect(Script(httpx.Response(200, headers=PLATFORM, text="thanks"))).call(A2A) == "thanks"


@pytest.mark.parametrize("operation", [NOTIFY, BEAT])
async def test_only_a2a_passes_on_what_others_say(connect: Connect, operation: Operation[Any]) -> None:
    error = await failure(connect, httpx.Response(200, headers=PLATFORM, text="thanks"), operation)
    assert isinstance(error, TransientPlatformError)


@pytest.mark.parametrize(
    ("response", "about_peer", "outcome"),
    [
        (httpx.Response(200, headers=PLATFORM, html="<html>"), True, Outcome.UNKNOWN),
        (httpx.Response(422, headers=PLATFORM, json={"detail": "no"}), True, Outcome.UNKNOWN),
        (httpx.Response(401, headers=PLATFORM, text="who?"), True, Outcome.UNKNOWN),
        (httpx.Response(502, headers=PLATFORM, html="<html>"), True, Outcome.UNKNOWN),
        (httpx.Response(200, text="thanks"), True, Outcome.UNKNOWN),
        (said(503, "workspace has no URL"), True, Outcome.UNKNOWN),
        (said(502, "failed to reach workspace agent"), True, Outcome.UNKNOWN),
        (said(402, "workspace budget limit exceeded"), True, Outcome.NOT_TAKEN),
        (httpx.Response(200, html="<html>"), False, Outcome.UNKNOWN),
        (httpx.Response(404, headers=PLATFORM, text="404 page not found"), False, Outcome.NOT_TAKEN),
        (httpx.Response(502, html="<html>"), False, Outcome.UNKNOWN),
        (httpx.Response(500, headers=PLATFORM), False, Outcome.UNKNOWN),
        (said(500, "internal error"), False, Outcome.UNKNOWN),
        (said(503, "the database is down"), False, Outcome.UNKNOWN),
    ],
)
async def test_peer_failures_differ_from_platform_failures(
    connect: Connect, response: httpx.Response, about_peer: bool, outcome: Outcome
) -> None:
    error = await failure(connect, response)
    assert isinstance(error, TransientPlatformError)
    assert (error.about_peer, error.outcome) == (about_peer, outcome)


async def test_redirect_is_reported_and_not_followed(connect: Connect) -> None:
    script = Script(httpx.Response(302, headers={"Location": "https://u:pw@evil.example/x?key=1"}))
    with pytest.raises(TransientPlatformError) as caught:
        await connect(script).call(NOTIFY)

    assert len(script.requests) == 1
    assert "evil.example/x" in str(caught.value)
    assert "pw" not in str(caught.value)
    assert "key" not in str(caught.value)


@pytest.mark.parametrize("response", [httpx.Response(410), said(410, "since_id cursor not found")])
async def test_feed_410_means_expired_cursor(connect: Connect, response: httpx.Response) -> None:
    assert isinstance(await failure(connect, response, FEED), CursorExpiredError)
    assert isinstance(await failure(connect, response, ONE_ROW), CursorExpiredError)


async def test_cursor_without_uuid_counts_as_expired(connect: Connect) -> None:
    row_id = "8cfb2ad9-bb28-4483-9bd6-8d433d7ed597"
    known: Operation[int] = attrs.evolve(FEED, params=(("since_id", row_id),))

    assert isinstance(await failure(connect, said(500, "cursor lookup failed"), FEED), CursorExpiredError)
    assert isinstance(await failure(connect, said(500, "query failed"), FEED), TransientPlatformError)
    assert isinstance(await failure(connect, said(500, "cursor lookup failed"), known), TransientPlatformError)


async def test_bodiless_404_on_feed_has_a_hint(connect: Connect) -> None:
    error = await failure(connect, httpx.Response(404), FEED)

    assert isinstance(error, TransientPlatformError)
    assert all(word in error.hint for word in ("Origin", "--org-id", "workspace id", "API address"))


@pytest.mark.parametrize("response", [httpx.Response(401), said(401, "invalid workspace auth token")])
async def test_refused_token_raises_auth_error(connect: Connect, response: httpx.Response) -> None:
    error = await failure(connect, response, endpoints.register("ws-1", {}))

    assert isinstance(error, AuthError)
    assert "register" in str(error)
    assert "401" in str(error)
    assert error.hint


async def test_refused_token_is_reread_once(connect: Connect, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old-token")
    path.chmod(0o600)

    def judge(request: httpx.Request) -> httpx.Response:
        path.write_text("new-token")
        return said(401) if request.headers["authorization"] == "Bearer old-token" else httpx.Response(200)

    script = Script(judge)
    client = connect(script, token=None, credentials=Credentials("ws-1", origin=API, token_file=path))
    await client.call(NOTIFY)
    await client.call(NOTIFY)

    assert [request.headers["authorization"] for request in script.requests] == [
        "Bearer old-token",
        "Bearer new-token",
        "Bearer new-token",
    ]


async def test_second_refusal_is_final(connect: Connect, tmp_path: Path) -> None:
    credentials = Credentials("ws-1", origin=API, token="first-token", state_dir=tmp_path)
    credentials.keep("second-token")
    script = Script(said(401))
    with pytest.raises(AuthError):
        await connect(script, token=None, credentials=credentials).call(NOTIFY)

    assert len(script.requests) == 2


async def test_errors_contain_no_tokens_or_secrets(connect: Connect) -> None:
    body = {"error": f"bad {TOKEN}\x1b[31m\n", "auth_token": "handed-out", "platform_inbound_secret": "inbound"}
    for status in (401, 403, 429, 500):
        error = await failure(connect, httpx.Response(status, json=body))
        shown = f"{error} {error!r} {error.hint} {getattr(error, 'body', '')} {error.__cause__}"
        assert not any(word in shown for word in (TOKEN, "handed-out", 'inbound"', "\x1b", "\n"))


async def test_absent_endpoint_is_retried_after_an_hour(connect: Connect) -> None:
    now = [0.0]
    script = Script(httpx.Response(404, text="404 page not found"))
    client = connect(script, clock=lambda: now[0])
    for _ in range(3):
        with pytest.raises(PermanentPlatformError, match="doesn't have this endpoint") as caught:
            await client.call(endpoints.state("ws-1"))
        assert caught.value.status == 404
    assert len(script.requests) == 1

    now[0] = 3601.0
    with pytest.raises(PermanentPlatformError):
        await client.call(endpoints.state("ws-1"))
    assert len(script.requests) == 2


async def test_platform_404_is_no_absent_endpoint(connect: Connect) -> None:
    script = Script(httpx.Response(404, json={"workspace_id": "ws-1", "deleted": True}))
    client = connect(script)
    for _ in range(2):
        with pytest.raises(PermanentPlatformError, match="deleted"):
            await client.call(endpoints.state("ws-1"))

    assert len(script.requests) == 2


async def test_page_over_its_cap_raises(connect: Connect) -> None:
    small: Operation[int] = Operation(
        name="activity", method="GET", path="/x", read=lambda reply: 0, body_format=FEED.body_format, cap=10
    )
    error = await failure(connect, httpx.Response(200, json=["x" * 20]), small)

    assert isinstance(error, PageTooLargeError)
    assert error.hint


async def test_long_answer_to_a_send_is_accepted(connect: Connect) -> None:
    short: Operation[Any] = Operation(
        name="a2a", method="POST", path="/x", read=lambda r: r.json, priority=Priority.SEND, cap=10
    )

    assert await connect(Script(httpx.Response(200, json={"result": "x" * 20}))).call(short) is None


async def test_limit_decides_cap_of_a_page() -> None:
    def cap(limit: int) -> int:
        return endpoints.activity("ws-1", lambda reply: 0, since_id=None, before=None, limit=limit).cap

    assert (cap(500), cap(2), cap(1)) == (32 << 20, 32 << 20, 128 << 20)


async def test_request_time_is_date_minus_duration(connect: Connect) -> None:
    now = [0.0]
    replies: list[Reply] = []

    def slow(request: httpx.Request) -> httpx.Response:
        now[0] += 2.5
        return httpx.Response(200, headers={"Date": "Thu, 01 Jan 1970 00:00:10 GMT"}, json=[])

    client = connect(
        slow,
        transport=None,
        transports=Transports(transport=httpx.MockTransport(slow), clock=lambda: now[0]),
        clock=lambda: now[0],
    )
    await client.call(endpoints.activity("ws-1", replies.append, since_id=None, before=None, limit=5))

    assert replies[0].earliest == 7_500_000
    assert client.platform_clock.now() == 10_000_000


async def test_429_delays_only_its_own_kind(connect: Connect) -> None:
    client = connect(Script(said(429, headers={"Retry-After": "5"}), httpx.Response(200)))
    with pytest.raises(TransientPlatformError):
        await client.call(NOTIFY)

    assert client.rate_limiter.wait(Priority.SEND) > 4
    assert client.rate_limiter.wait(Priority.READ) == 0
    await client.call(BEAT)


async def test_429_of_a_peer_delays_nothing_else(connect: Connect) -> None:
    headers = {"Retry-After": "1000000000", "X-RateLimit-Limit": "600", "X-RateLimit-Remaining": "599"}
    client = connect(Script(said(429, headers=headers)))
    with pytest.raises(TransientPlatformError):
        await client.call(A2A)

    assert client.rate_limiter.wait(Priority.SEND) == 0


@pytest.mark.parametrize(
    "retry_after",
    [
        "9" * 400,
        "1000000000",
        "-5",
        "NaN",
        "Infinity",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 31 Dec 99999 23:59:59 GMT",
    ],
)
@pytest.mark.parametrize("body", [b'{"error":"no","retry_after":NaN}', b'{"error":"no","retry_after":-1e400}', b"{"])
async def test_absurd_retry_after_waits_five_minutes(connect: Connect, retry_after: str, body: bytes) -> None:
    headers = {"Retry-After": retry_after, "Date": "Sat, 21 Nov 2026 08:37:59 GMT"}
    error = await failure(connect, httpx.Response(503, headers=headers, content=body))

    assert isinstance(error, TransientPlatformError)
    assert 0 < Backoff(cap=300.0).delay(1, at_least=error.retry_after) <= 300


@pytest.mark.parametrize(
    "wrong",
    [
        {"token": None},
        {"token": "<paste token>"},
        {"token": ""},
        {"workspace_id": ""},
        {"workspace_id": "a/b"},
        {"api_url": "http://platform.example"},
        {"org_id": "a\nb"},
        {"org_id": ""},
        {"credentials": Credentials("ws-1", origin="https://other.example", token="t"), "token": None},
    ],
)
async def test_invalid_arguments_fail_before_any_request(connect: Connect, wrong: dict[str, Any]) -> None:
    script = Script(httpx.Response(200))
    with pytest.raises(ConfigError):
        connect(script, **wrong)

    assert script.requests == []


HOSTS = st.sampled_from(
    ["https://a.example", "https://b.example:8443/api", "http://localhost:8080/", "https://C.example"]
)


@given(
    st.lists(st.tuples(HOSTS, st.sampled_from(["ws-1", "ws-2", "ws-3"])), min_size=1, max_size=6, unique=True),
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([200, 302, 401, 404, 503])), max_size=12),
)
async def test_token_is_sent_to_its_origin_only(places: list[tuple[str, str]], calls: list[tuple[int, int]]) -> None:
    seen: list[httpx.Request] = []
    status = [200]

    def platform(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status[0], headers={"Location": "https://evil.example/"})

    transports = Transports(transport=httpx.MockTransport(platform))
    clients = [
        AsyncPlatformClient(api_url, workspace_id=ws, token=f"token-{number}-of-{ws}", transports=transports)
        for number, (api_url, ws) in enumerate(places)
    ]
    for choice, status[0] in calls:
        number = choice % len(clients)
        client, (api_url, ws) = clients[number], places[number]
        before = len(seen)
        for operation in (endpoints.notify(ws, "hi"), endpoints.a2a("peer-1", {}), endpoints.workspace(ws)):
            with contextlib.suppress(TransientPlatformError, PermanentPlatformError):
                await client.call(operation)
        for request in seen[before:]:
            origin = f"{request.url.scheme}://{request.url.netloc.decode()}"
            assert origin == request.headers["origin"] == client.address.origin
            assert api_url.lower().startswith(origin)
            assert request.headers["x-workspace-id"] == ws
            assert request.headers["authorization"] == f"Bearer token-{number}-of-{ws}"
    await transports.aclose()


async def test_requests_are_counted_by_status(connect: Connect) -> None:
    def cut(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    client = connect(Script(httpx.Response(200), said(503), cut))
    await client.call(NOTIFY)
    for _ in range(2):
        with pytest.raises(TransientPlatformError):
            await client.call(NOTIFY)

    assert client.requests == {("notify", 200): 1, ("notify", 503): 1, ("notify", 0): 1}
