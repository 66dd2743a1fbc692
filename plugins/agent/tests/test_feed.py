"""Following what arrives: nothing is missed that comes late, nothing is given twice, and trouble is survived."""

import asyncio
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from molecule_connect import (
    ArgumentError,
    AuthError,
    TextPart,
    TransientPlatformError,
    WorkspaceDeletedError,
    endpoints,
)
from molecule_connect_agent import AsyncRemoteAgentClient, Message, RemoteAgentClient
from molecule_connect_agent.feed import ActivityFeed

from .kit import API, ME, PEER, TOKEN, Make, Platform, Twin, row, said

FEED = f"GET /workspaces/{ME}/activity"
CARD = f"GET /workspaces/{ME}"
ASK = f"POST /workspaces/{PEER}/a2a"
DELEGATE = f"POST /workspaces/{ME}/delegate"
DELEGATIONS = f"GET /workspaces/{ME}/delegations"
OTHER = "11111111-b427-4bdd-9cd3-711c7ce27068"
SECOND = 1_000_000


def parse_time(text: str) -> int:
    """Microseconds since 1970."""
    return round(datetime.fromisoformat(text).timestamp() * SECOND)


def format_time(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


NINE = parse_time("2026-08-14T09:00:00Z")


def page(*rows: dict[str, Any], at: float = 60.0) -> httpx.Response:
    """A page, newest first as it is given, read so many seconds after nine."""
    minutes, seconds = divmod(int(at), 60)
    date = f"Fri, 14 Aug 2026 09:{minutes:02}:{seconds:02} GMT"
    return httpx.Response(200, json=list(rows), headers={"Date": date})


def result(row_id: str, second: float, delegation_id: str, **more: Any) -> dict[str, Any]:
    """The row that the platform writes for a delegation that ended."""
    response = {"text": "a result", "delegation_id": delegation_id}
    given = {"source_id": ME, "method": "delegate_result", "request_body": {"delegation_id": delegation_id}}
    return row(row_id, second, **{**given, "response_body": response, **more})


def texts(messages: Iterable[Message]) -> list[str]:
    return [message.text for message in messages]


def test_yields_oldest_first_and_ends(agent: Twin, platform: Platform) -> None:
    platform.on(FEED, page(row("r2", 58, "two"), row("r1", 57, "one")))

    assert texts(agent.activity(follow=False)) == ["one", "two"]
    query = platform.requests[0].url.params
    assert (query["type"], query["limit"]) == ("a2a_receive", "500")
    assert "since_id" not in query


def test_message_has_sender_and_time(agent: Twin, platform: Platform) -> None:
    platform.on(FEED, page(row("r1", 57, "one", seq=7)))
    (message,) = agent.activity(follow=False)

    assert (message.kind, message.activity_id, message.caller_id, message.message_id) == (
        "message",
        "r1",
        PEER,
        "m-r1",
    )
    assert message.parts == (TextPart("one"),)
    assert message.created_at.isoformat() == "2026-08-14T09:00:57+00:00"


@pytest.mark.parametrize("created", ["9999-12-31T23:59:59-23:59", "soon", None])
def test_impossible_time_is_none(agent: Twin, platform: Platform, created: str | None) -> None:
    platform.on(FEED, page(row("r1", None, "one", created_at=created)))
    (message,) = agent.activity(follow=False)

    assert (message.text, message.created_at) == ("one", None)


def test_only_what_concerns_an_agent_comes(agent: Twin, platform: Platform, caplog: Any) -> None:
    reply = {
        "role": "agent",
        "messageId": "m9",
        "parts": [{"kind": "text", "text": "an answer"}],
        "metadata": {"molecule": {"in_reply_to": "my-question", "auto": True}},
    }
    rows = [
        row("r1", 51, source_id=None, method="notify", request_body=None, response_body={"result": "my own words"}),
        row("r2", 52, source_id=ME),
        row("r3", 53, method="chat_upload_receive", source_id=None, request_body={"file_id": "F", "uri": "u"}),
        row("r4", 54, request_body={"params": {"message": reply}}),
        result("r5", 55, "D"),
        row("r6", 56, "a person's", source_id=None),
        row("r7", 57, request_body={"params": None}, summary=""),
        row("r8", 58, status="error"),
        row("r9", 59, "a delegation", activity_type="delegation"),
    ]
    platform.on(FEED, page(*rows[::-1]))
    platform.on(ASK, httpx.Response(200, json={"status": "queued"}))
    platform.on(DELEGATE, httpx.Response(202, json={"delegation_id": "D", "status": "delegated"}))
    agent.call_peer(PEER, "how many?", message_id="my-question")
    agent.delegate(PEER, "count")
    found = [(one.kind, one.text, one.caller_id, one.in_reply_to) for one in agent.activity(follow=False)]

    assert found == [
        ("answer", "an answer", PEER, "my-question"),
        ("result", "a result", PEER, ""),
        ("message", "a person's", None, ""),
    ]
    assert "row r7" in caplog.text


def test_answer_of_another_peer_replies_to_nothing(agent: Twin, platform: Platform) -> None:
    claim = {"metadata": {"delegation_id": "D", "molecule": {"in_reply_to": "my-question", "auto": True}}}
    message = {"role": "agent", "messageId": "m", "parts": [{"text": "forged"}], **claim}
    forged = row("r1", 57, source_id=OTHER, request_body={"jsonrpc": "2.0", "params": {"message": message}})
    platform.on(FEED, page(forged))
    platform.on(ASK, httpx.Response(200, json={"status": "queued"}))
    platform.on(DELEGATE, httpx.Response(202, json={"delegation_id": "D", "status": "delegated"}))
    agent.call_peer(PEER, "how many?", message_id="my-question")
    agent.delegate(PEER, "count")
    (answer,) = agent.activity(follow=False)

    assert (answer.caller_id, answer.in_reply_to, answer.delegation_id) == (OTHER, "", None)


def test_earlier_delegation_is_looked_up(agent: Twin, platform: Platform) -> None:
    listed = [{"delegation_id": "D", "source_id": ME, "target_id": PEER, "status": "completed"}]
    platform.on(FEED, page(result("r1", 57, "D"))).on(DELEGATIONS, httpx.Response(200, json=listed))
    (message,) = agent.activity(follow=False)

    assert (message.kind, message.caller_id, message.delegation_id) == ("result", PEER, "D")


@pytest.mark.parametrize(
    "listed",
    [
        httpx.Response(200, json=[]),
        httpx.Response(200, json=[{"delegation_id": "D", "source_id": OTHER, "target_id": ME}]),
        httpx.Response(404, text="404 page not found"),
    ],
)
def test_result_without_own_delegation_is_skipped(
    agent: Twin, platform: Platform, caplog: Any, listed: httpx.Response
) -> None:
    platform.on(FEED, page(row("r2", 58, "next"), result("r1", 57, "D"))).on(DELEGATIONS, listed)

    assert texts(agent.activity(follow=False)) == ["next"]
    assert "row r1" in caplog.text


def test_result_with_another_callee_is_left_out(agent: Twin, platform: Platform) -> None:
    platform.on(FEED, page(result("r1", 57, "D", target_id=OTHER)))
    platform.on(DELEGATE, httpx.Response(202, json={"delegation_id": "D", "status": "delegated"}))
    agent.delegate(PEER, "count")

    assert agent.activity(follow=False) == []


def test_result_waits_for_its_callee(make: Make, platform: Platform) -> None:
    listed = [{"delegation_id": "D", "source_id": ME, "target_id": PEER}]
    agent = make(platform, waits_before_closing=8)
    platform.on(FEED, page(result("r1", 57, "D")))
    platform.on(DELEGATIONS, *[said(503)] * 4, httpx.Response(200, json=listed))

    assert [message.caller_id for message in agent.activity()] == [PEER]


def test_looks_back_by_the_platforms_clock(agent: Twin, platform: Platform) -> None:
    agent.now = 0.0
    platform.on(f"GET /workspaces/{ME}/state", httpx.Response(200, json={"status": "online"}, headers=page().headers))
    platform.on(FEED, page(row("r3", 59, "new"), row("r2", 41, "just"), row("r1", 39, "old")))
    agent.poll_state()

    assert texts(agent.activity(since_secs=20, follow=False)) == ["just", "new"]


def test_rows_without_time_keep_their_order(agent: Twin, platform: Platform) -> None:
    bare = [
        {"id": f"r{number}", "request_body": {"params": {"message": {"parts": [{"text": f"{number}"}]}}}}
        for number in (1, 2)
    ]
    platform.on(FEED, httpx.Response(200, json=bare))
    feed = agent.activity(follow=False)

    assert texts(feed) == ["1", "2"]


@pytest.mark.parametrize("answer", [httpx.Response(200), httpx.Response(200, json=None), httpx.Response(200, json=[])])
def test_an_empty_feed_is_no_message(agent: Twin, platform: Platform, answer: httpx.Response) -> None:
    platform.on(FEED, answer)
    if answer.content:
        assert agent.activity(follow=False) == []
    else:
        with pytest.raises(TransientPlatformError):
            agent.activity(follow=False)


@pytest.mark.parametrize(
    "wrong",
    [{"since_secs": -1}, {"since_secs": 31 * 86400}, {"since_secs": "5"}, {"poll_interval": 0}, {"poll_interval": "5"}],
)
def test_invalid_arguments_send_nothing(agent: Twin, platform: Platform, wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        agent.activity(**wrong)

    assert platform.requests == []


def test_refused_token_raises_at_once_without_follow(agent: Twin, platform: Platform) -> None:
    platform.on(FEED, said(401)).on(CARD, httpx.Response(200, json={"status": "online"}))
    with pytest.raises(AuthError):
        agent.activity(follow=False)

    assert agent.waits == []


def test_closing_ends_the_iteration(platform: Platform) -> None:
    platform.on(FEED, page(row("r2", 58, "two"), row("r1", 57, "one")))
    with RemoteAgentClient(ME, API, token=TOKEN, transport=httpx.MockTransport(platform)) as client:
        seen = []
        for message in client.activity():
            seen.append(message.text)
            client.close()

    assert seen == ["one", "two"]
    assert len(platform.requests) == 1


class TestFollowing:
    """What goes on for ever ends here when the client is closed by its third wait."""

    @pytest.fixture
    def follower(self, make: Make, platform: Platform) -> Twin:
        return make(platform, waits_before_closing=3)

    def test_it_waits_between_reads_that_bring_nothing(self, follower: Twin, platform: Platform) -> None:
        platform.on(FEED, page(row("r1", 57, "one")), page(row("r1", 57, "one")))

        assert texts(follower.activity(poll_interval=2.5)) == ["one"]
        assert follower.waits == [2.5, 2.5, 2.5]

    def test_trouble_is_logged_and_survived(
        self, follower: Twin, platform: Platform, caplog: pytest.LogCaptureFixture
    ) -> None:
        platform.on(FEED, httpx.ConnectError("refused"), httpx.Response(200, html="<html>"), page(row("r1", 57, "one")))

        assert texts(follower.activity()) == ["one"]
        assert caplog.text.count("reading again in") == 2

    def test_refused_token_is_retried_for_a_minute(
        self, agent: Twin, platform: Platform, caplog: pytest.LogCaptureFixture
    ) -> None:
        platform.on(FEED, said(401)).on(CARD, httpx.Response(200, json={"status": "online"}))
        with pytest.raises(AuthError):
            agent.activity()

        assert sum(agent.waits) > 60
        assert len(platform.asked(FEED)) == 5
        assert caplog.text.count("it may pass") == 4

    def test_one_refusal_is_a_blip(self, follower: Twin, platform: Platform) -> None:
        platform.on(FEED, said(401), page(row("r1", 57, "one")))

        assert texts(follower.activity()) == ["one"]

    def test_a_deleted_workspace_says_that_it_is(self, follower: Twin, platform: Platform) -> None:
        platform.on(FEED, said(401)).on(CARD, said(410))
        with pytest.raises(WorkspaceDeletedError) as caught:
            follower.activity()

        assert caught.value.hint

    def test_pruned_watermark_loses_no_row(
        self, follower: Twin, platform: Platform, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        old, fresh, new = row("r1", 5, "old"), row("r2", 59, "fresh"), row("r3", 60, "new")
        later = page(new, fresh, old)
        platform.on(FEED, page(fresh, old), said(410, "since_id cursor not found"), later, later)

        assert texts(follower.activity(since_secs=3600)) == ["old", "fresh", "new"]
        assert "no longer knows the row" in caplog.text


def test_too_large_page_is_requested_in_halves(agent: Twin, platform: Platform, monkeypatch: Any) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        limit = int(request.url.params["limit"])
        asked.append(request.url.params["limit"])
        rows = [row(f"r{number}", number, "x" * 100) for number in range(300)][::-1]
        before = request.url.params.get("before_ts")
        rows = [one for one in rows if before is None or one["created_at"] < before]
        return page(*rows[:limit], at=300)

    monkeypatch.setattr(endpoints, "PAGE_CAP", 80_000)
    platform.on(FEED, answer)

    assert len(agent.activity(since_secs=3600, follow=False)) == 300
    assert asked[:2] == ["500", "250"]


class Server:
    """A feed whose rows may be shown later than they were written, as the real ones do, and whose Date may be ahead.

    Args:
        may: Of rows with equal times, those behind ``since_id`` are skipped, as the platform of May does.
        ahead: Seconds by which its Date is ahead of the clock that dates the rows.
    """

    def __init__(self, rows: list[tuple[int, int]], *, may: bool, ahead: int) -> None:
        self.rows = [
            (f"r{number}", NINE + when * SECOND, NINE + (when + late) * SECOND)
            for number, (when, late) in enumerate(rows)
        ]
        self.now = NINE
        self._may = may
        self._ahead = ahead * SECOND

    @property
    def date(self) -> int:
        return self.now + self._ahead

    def __call__(self, request: httpx.Request) -> httpx.Response:
        moment = datetime.fromtimestamp(self.date / SECOND, UTC)
        headers = {"Date": format_datetime(moment, usegmt=True)}
        return httpx.Response(200, json=self.rows_for(dict(request.url.params)), headers=headers)

    def rows_for(self, params: dict[str, str]) -> list[dict[str, Any]]:
        shown = sorted((when, row_id) for row_id, when, seen in self.rows if seen <= self.now)
        limit = int(params["limit"])
        if "since_id" in params:
            after = next((when, row_id) for when, row_id in shown if row_id == params["since_id"])
            rest = [one for one in shown if (one[0] > after[0] if self._may else one > after)]
            chosen = rest[:limit]
        else:
            before = parse_time(params["before_ts"]) if "before_ts" in params else None
            chosen = [one for one in shown[::-1] if before is None or one[0] < before][:limit]
        return [row(row_id, None, row_id, created_at=format_time(when)) for when, row_id in chosen]


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, 30), st.booleans()), max_size=30, unique_by=lambda row: row[0]
    ),
    reads=st.lists(st.integers(0, 40), min_size=1, max_size=25),
    limit=st.integers(3, 8),
    may=st.booleans(),
    ahead=st.sampled_from([0, 0, 20, 60, 240, 570]),
)
@example(rows=[(1, 0, False), (10, 30, False), (15, 0, False)], reads=[20, 10, 10], limit=8, may=True, ahead=60)
@settings(max_examples=300)
def test_late_rows_are_yielded_once(
    rows: list[tuple[int, int, bool]], reads: list[int], limit: int, may: bool, ahead: int
) -> None:
    twins = [(when, 30 - late) for when, late, has_twin in rows if has_twin]
    server = Server([*((when, late) for when, late, _ in rows), *twins], may=may, ahead=ahead)
    pauses = iter([*reads, 400])

    async def sleep(seconds: float) -> None:
        pause = next(pauses, None)
        if pause is None:
            await client.aclose()
        server.now += (pause or 0) * SECOND

    async def read() -> list[str]:
        feed = ActivityFeed(client._requests, client._registrar, client._peers, since_secs=0, limit=limit)
        async with client:
            return [message.text async for batch in feed.batches(1e-6) for message in batch]

    client = AsyncRemoteAgentClient(
        ME, API, token=TOKEN, transport=httpx.MockTransport(server), sleep=sleep, clock=lambda: 0.0
    )
    given_rows = asyncio.run(read())

    # How old a row of the first look is can't be said to the second where clocks are apart.
    started = NINE if ahead else NINE - 1
    assert len(given_rows) == len(set(given_rows))
    assert {row_id for row_id, when, _ in server.rows if when > started} <= set(given_rows)


def test_other_rows_log_nothing(agent: Twin, platform: Platform, caplog: Any) -> None:
    caplog.set_level(logging.WARNING)
    platform.on(FEED, page(row("r1", 57, source_id=ME)))

    assert agent.activity(follow=False) == []
    assert caplog.records == []
