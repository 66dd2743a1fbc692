"""What observers see of a workspace."""

import asyncio
from pathlib import Path

import pytest
from tests.worker.kit import WORKSPACE, FakePlatform, Serving

from molecule_connect.config.workspaces import FleetLimits
from molecule_connect.errors import AuthError, BackendError, TransientPlatformError
from molecule_connect.journal.backlog import Backlog, read_backlogs
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Progress, Request, Response, TextPart, Usage
from molecule_connect.observers import WorkspaceState
from molecule_connect.worker.fleet import Fleet


def state(serving: Serving) -> WorkspaceState:
    return serving.connection.state(up=True)


async def paid(request: Request, progress: Progress) -> Response:
    return Response(parts=(TextPart("done"),), usage=Usage(cost_usd=0.25))


async def test_a_started_workspace_is_ready(journal: Journal) -> None:
    platform = FakePlatform()
    serving = Serving(platform, journal, labels={"team": "a"}, concurrency=3)
    before = serving.connection.state(up=True)
    assert (before.unready, before.has_lease, before.read_at, before.heartbeat_at) == ("starting", False, None, None)
    async with serving:
        await platform.until(lambda: not state(serving).unready)
        found = state(serving)
        assert found.read_at == pytest.approx(serving.clock(), abs=30)
        await platform.until(lambda: bool(platform.beats))
        assert state(serving).heartbeat_at == pytest.approx(serving.clock(), abs=1)
    assert (found.is_registered, found.is_paused, found.has_lease, found.wedged) == (True, False, True, ())
    assert (found.backend, found.labels, found.concurrency, found.busy) == ("fake", {"team": "a"}, 3, 0)
    assert (found.budget_remaining, found.rate_limit_remaining, found.messages) == (None, None, None)
    assert not serving.connection.state(up=False).has_lease
    assert serving.connection.state(up=False).unready == "ended"


async def test_refused_token_makes_it_unready(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: not state(serving).unready)
        read_at = state(serving).read_at
        platform.fail_fetch = [AuthError("activity: 401", operation="activity", status=401, body="")] * 9
        await platform.until(lambda: bool(state(serving).unready))
        assert (state(serving).unready, state(serving).wedged) == ("reading fails", ("intake",))
        assert state(serving).read_at == read_at
        platform.fail_fetch = []
        await platform.until(lambda: not state(serving).unready)


async def test_failing_registration_makes_it_unready(journal: Journal) -> None:
    outage = TransientPlatformError("register: 503", operation="register", status=503)
    platform = FakePlatform(fail_register=[outage] * 3)
    async with Serving(platform, journal, entry=1) as serving:
        await asyncio.sleep(0.5)
        assert (state(serving).unready, state(serving).is_registered) == ("not registered", False)
        await platform.until(lambda: not state(serving).unready)


async def test_paused_workspaces_are_ready(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: not state(serving).unready)
        serving.connection._pause()
        assert (state(serving).is_paused, state(serving).unready) == (True, "")


async def test_stalled_reading_makes_it_unready(journal: Journal) -> None:
    platform = FakePlatform(fetch_delay=0.0)
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: not state(serving).unready)
        platform.fetch_delay = 1000.0
        await asyncio.sleep(400)
        assert state(serving).unready in ("reading fails", "reading has stalled")


async def test_running_messages_keep_slots_busy(journal: Journal) -> None:
    release = asyncio.Event()

    async def handler(request: Request, progress: Progress) -> Response:
        await release.wait()
        return Response.from_text("done")

    platform = FakePlatform()
    platform.write("one", context="1")
    platform.write("two", context="2")
    async with Serving(platform, journal, handler) as serving:
        await platform.until(lambda: state(serving).busy == 2)
        release.set()
        await platform.until(lambda: state(serving).busy == 0)


async def test_failing_backend_opens_the_circuit(journal: Journal) -> None:
    async def handler(request: Request, progress: Progress) -> Response:
        raise BackendError("out")

    platform = FakePlatform()
    for peer in ("peer-1", "peer-2", "peer-3"):
        platform.write("hi", caller=peer)
    async with Serving(platform, journal, handler) as serving:
        await platform.until(lambda: state(serving).is_circuit_open)
        assert state(serving).wedged == ("backend",)


@pytest.mark.parametrize(
    ("own", "fleet", "left"), [(1.0, None, 0.75), (None, 0.5, 0.25), (1.0, 0.2, 0.0), (5.0, 1.0, 0.75)]
)
async def test_remaining_budget_is_the_lowest(
    journal: Journal, own: float | None, fleet: float | None, left: float
) -> None:
    platform = FakePlatform()
    limits = Fleet(journal.spend, FleetLimits(max_cost_per_day=fleet))
    async with Serving(platform, journal, paid, max_cost_per_day=own, fleet=limits) as serving:
        platform.write("hi")
        await platform.until(lambda: bool(platform.sent))
        assert state(serving).budget_remaining == pytest.approx(left)


async def test_backlog_has_counts_and_ages(journal: Journal, tmp_path: Path) -> None:
    outage = TransientPlatformError("notify: 503", operation="notify", status=503)
    platform = FakePlatform(fail_send=[outage] * 99)

    async def handler(request: Request, progress: Progress) -> Response:
        match request.text:
            case "run":
                await asyncio.sleep(1000)
            case "fail":
                raise BackendError("no", retryable=False)
        return Response.from_text("done")

    for text in ("run", "fail", "reply"):
        platform.write(text, context=text)
    platform.write("waits", context="run")
    async with Serving(platform, journal, handler, concurrency=8) as serving:
        await platform.until(lambda: len(platform.tried) >= 2)
        await asyncio.sleep(20)
        backlog = read_backlogs(tmp_path / "journal.sqlite3")[WORKSPACE]
        found = serving.connection.state(up=True, backlog=backlog)
    assert found.messages == {"received": 1, "running": 1, "claimed": 0, "answered": 2, "dead": 0}
    assert found.oldest_waiting == pytest.approx(20, abs=10)
    assert found.oldest_unsent == pytest.approx(20, abs=10)


async def test_backlog_counts_dead_letters(journal: Journal, tmp_path: Path) -> None:
    async def handler(request: Request, progress: Progress) -> Response:
        raise BackendError("no", retryable=False)

    platform = FakePlatform()
    platform.write("hi")
    async with Serving(platform, journal, handler) as serving:
        await platform.until(lambda: serving.rows("state") == [("dead",)])
    found = read_backlogs(tmp_path / "journal.sqlite3")
    assert found[WORKSPACE].counts == {**Backlog().counts, "dead": 1}
    assert (found[WORKSPACE].waiting_since, found[WORKSPACE].unsent_since) == (None, None)
