"""``/metrics``: the names and values that are promised, in a format that Prometheus reads."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import pytest
from prometheus_client.parser import text_string_to_metric_families

from molecule_connect import events
from molecule_connect.observers import ProcessState, WorkspaceState
from molecule_connect_observe.counts import EventCounter
from molecule_connect_observe.metrics import MAX_WORKSPACES, Exposition
from molecule_connect_sandbox.testing import Sandbox

from .kit import Connector, FakeProcess, ask, get, observing, promtool, until_ready

# By metric, what the issue that asked for it calls its labels besides workspace and backend.
PROMISED: dict[str, set[str]] = {
    "molecule_up": set(),
    "molecule_registered": set(),
    "molecule_paused": set(),
    "molecule_wedged": {"part"},
    "molecule_last_heartbeat_timestamp_seconds": set(),
    "molecule_last_read_timestamp_seconds": set(),
    "molecule_messages": {"state"},
    "molecule_oldest_waiting_seconds": set(),
    "molecule_oldest_unsent_seconds": set(),
    "molecule_messages_total": {"result"},
    "molecule_dead_total": {"reason"},
    "molecule_retries_total": {"what"},
    "molecule_handler_seconds_bucket": {"le"},
    "molecule_reply_seconds_bucket": {"le"},
    "molecule_send_seconds_bucket": {"le"},
    "molecule_queue_seconds_bucket": {"le"},
    "molecule_cost_usd_total": set(),
    "molecule_budget_remaining_usd": set(),
    "molecule_requests_total": {"endpoint", "code"},
    "molecule_rate_limit_remaining": set(),
    "molecule_concurrency_busy": set(),
    "molecule_concurrency_limit": set(),
    "molecule_circuit_open": set(),
    "molecule_lease_held": set(),
}
OF_THE_PROCESS = {
    "molecule_config_reload_success",
    "molecule_config_reload_timestamp_seconds",
    "molecule_open_fds",
    "molecule_journal_bytes",
    "molecule_build_info",
}
FULL = WorkspaceState(
    workspace_id="ws_1",
    backend="mock",
    labels={"team": 'say "hi"\\'},
    up=True,
    unready="",
    has_lease=True,
    is_registered=True,
    wedged=("sending",),
    heartbeat_at=1000.5,
    read_at=1001.0,
    busy=2,
    concurrency=8,
    budget_remaining=1.25,
    rate_limit_remaining=500,
    requests={("activity", 200): 7, ("activity", 0): 2, ("notify", 799): 1, ("notify", 798): 1},
    messages={"received": 3, "running": 2, "claimed": 0, "answered": 1, "dead": 4},
    oldest_waiting=60.5,
    oldest_unsent=9.0,
)
ABOUT: dict[str, Any] = {"workspace_id": "ws_1", "row_id": "row-1", "caller_id": "peer-secret"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def process(*workspaces: WorkspaceState, **more: Any) -> FakeProcess:
    return FakeProcess(ProcessState(version="1.2.3", workspaces=workspaces, is_started=True, **more))


def exposition(process: FakeProcess, counter: EventCounter, *, labels: bool = True) -> Exposition:
    return Exposition(process, counter, workspace_labels=labels, too_many=lambda count: None)


async def scrape(exposition: Exposition) -> str:
    return b"".join(await exposition.pieces()).decode()


def parse(text: str) -> Samples:
    """The samples by name and labels."""
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def names(samples: Iterable[tuple[str, Any]]) -> set[str]:
    return {name for name, _ in samples}


async def test_promised_metrics_have_the_promised_labels() -> None:
    samples = parse(await scrape(exposition(process(FULL, journal_bytes=4096), EventCounter())))
    for name, labels in PROMISED.items():
        found = {key for one, pairs in samples if one == name for key, _ in pairs}
        assert found - {"backend"} == {"workspace", *labels}, name
    assert names(samples) >= OF_THE_PROCESS
    assert not [pairs for name, pairs in samples if name in OF_THE_PROCESS and "workspace" in dict(pairs)]


async def test_gauges_show_the_state() -> None:
    samples = parse(await scrape(exposition(process(FULL, journal_bytes=4096, refused=("3",)), EventCounter())))
    own = {"workspace": "ws_1"}
    assert value(samples, "molecule_up", **own) == 1
    assert value(samples, "molecule_paused", **own) == 0
    assert value(samples, "molecule_wedged", **own, part="sending") == 1
    assert value(samples, "molecule_wedged", **own, part="intake") == 0
    assert value(samples, "molecule_last_heartbeat_timestamp_seconds", **own) == 1000.5
    assert value(samples, "molecule_messages", **own, state="dead") == 4
    assert value(samples, "molecule_oldest_waiting_seconds", **own) == 60.5
    assert value(samples, "molecule_requests_total", **own, endpoint="activity", code="none") == 2
    assert value(samples, "molecule_requests_total", **own, endpoint="notify", code="other") == 2
    assert value(samples, "molecule_concurrency_limit", **own, backend="mock") == 8
    assert value(samples, "molecule_workspace_info", **own, backend="mock", team='say "hi"\\') == 1
    assert value(samples, "molecule_journal_bytes") == 4096
    assert value(samples, "molecule_workspaces_refused") == 1
    assert ("molecule_build_info", "1.2.3") in {
        (name, text) for name, pairs in samples for key, text in pairs if key == "version"
    }


async def test_unknown_values_are_left_out() -> None:
    fresh = WorkspaceState(workspace_id="ws_1", backend="mock")
    found = names(parse(await scrape(exposition(process(fresh), EventCounter()))))
    assert "molecule_up" in found
    assert not found & {
        "molecule_last_read_timestamp_seconds",
        "molecule_last_heartbeat_timestamp_seconds",
        "molecule_budget_remaining_usd",
        "molecule_rate_limit_remaining",
        "molecule_messages",
        "molecule_journal_bytes",
    }


async def test_own_labels_replace_none_of_ours() -> None:
    labels = {"workspace": "mine", "backend": "theirs", "label_backend": "again"}
    state = attrs.evolve(FULL, labels=labels)
    samples = parse(await scrape(exposition(process(state), EventCounter())))
    (info,) = (dict(pairs) for name, pairs in samples if name == "molecule_workspace_info")
    assert (info["workspace"], info["backend"], info["label_workspace"]) == ("ws_1", "mock", "mine")


def count_some(counter: EventCounter) -> None:
    for event in (
        events.Started(**ABOUT, attempt=1, text="secret text", queue_seconds=0.02),
        events.Answered(**ABOUT, text="secret text", seconds=2.0),
        events.Spent(**ABOUT, cost_usd=0.5),
        events.Delivered(**ABOUT, send_seconds=0.01, reply_seconds=4000.0),
        events.Answered(**ABOUT, text="", seconds=0.2, silent=True),
        events.Retrying(**ABOUT, what="this machine", reason="secret text", seconds=1),
        events.Retrying(**ABOUT, what="peer-made", reason="secret text", seconds=1, handler_seconds=0.1),
        events.Dead(**ABOUT, reason="secret text", category="loop"),
        events.Dead(**ABOUT, reason="secret text", category="peer-made"),
        events.PeerNamed(workspace_id="ws_1", peer_id="peer-secret", name="secret text"),
        events.ReloadRefused(workspace_id="", source="fleet.toml", text="refused", reasons=("secret text",)),
    ):
        counter(event)


async def test_events_are_counted() -> None:
    counter = EventCounter(wall=lambda: 77.0)
    count_some(counter)
    text = await scrape(exposition(process(FULL), counter))
    samples, own = parse(text), {"workspace": "ws_1"}
    results = [value(samples, "molecule_messages_total", **own, result=each) for each in ("answered", "silent", "dead")]
    assert results == [1, 1, 2]
    assert value(samples, "molecule_dead_total", **own, reason="loop") == 1
    assert value(samples, "molecule_retries_total", **own, what="this_machine") == 1
    assert value(samples, "molecule_cost_usd_total", **own, backend="mock") == 0.5
    handler = [
        value(samples, "molecule_handler_seconds_bucket", **own, backend="mock", le=bound)
        for bound in ("0.1", "0.5", "1", "2.5", "+Inf")
    ]
    assert handler == [1, 2, 2, 3, 3]
    assert value(samples, "molecule_handler_seconds_sum", **own, backend="mock") == pytest.approx(2.3)
    assert value(samples, "molecule_queue_seconds_bucket", **own, le="0.05") == 1
    assert value(samples, "molecule_reply_seconds_bucket", **own, le="3600") == 0
    assert value(samples, "molecule_reply_seconds_count", **own) == 1
    assert value(samples, "molecule_config_reload_success") == 0
    assert value(samples, "molecule_config_reload_timestamp_seconds") == 77.0
    assert "secret" not in text
    assert "peer-made" not in text


async def test_labels_of_counters_are_closed_sets() -> None:
    counter = EventCounter()
    exposed = exposition(process(FULL), counter)
    before = set(parse(await scrape(exposed)))
    count_some(counter)
    exposed._valid_until = 0.0
    assert set(parse(await scrape(exposed))) == before


async def test_a_reload_sets_its_time() -> None:
    times = iter((1.0, 2.0))
    counter = EventCounter(wall=lambda: next(times))
    counter(events.ReloadRefused(workspace_id="", source="fleet.toml", text="refused", reasons=("x",)))
    counter(events.Reloaded(workspace_id="", source="fleet.toml", text="1 is unchanged"))
    samples = parse(await scrape(exposition(process(), counter)))
    assert value(samples, "molecule_config_reload_success") == 1
    assert value(samples, "molecule_config_reload_timestamp_seconds") == 2.0


async def test_without_labels_all_workspaces_are_one() -> None:
    counter = EventCounter()
    count_some(counter)
    other = attrs.evolve(FULL, workspace_id="ws_2", backend="exec", up=False, heartbeat_at=900.0, oldest_waiting=70.0)
    text = await scrape(exposition(process(FULL, other), counter, labels=False))
    samples = parse(text)
    assert "ws_" not in text
    assert value(samples, "molecule_up") == 1
    assert value(samples, "molecule_workspaces") == 2
    assert value(samples, "molecule_messages", state="dead") == 8
    assert value(samples, "molecule_last_heartbeat_timestamp_seconds") == 900.0
    assert value(samples, "molecule_oldest_waiting_seconds") == 70.0
    assert value(samples, "molecule_budget_remaining_usd") == 1.25
    assert value(samples, "molecule_requests_total", endpoint="activity", code="200") == 14
    assert value(samples, "molecule_handler_seconds_count", backend="mock") == 3
    assert value(samples, "molecule_handler_seconds_count", backend="exec") == 0
    assert value(samples, "molecule_messages_total", result="dead") == 2


async def test_sums_keep_counts_of_removed_workspaces() -> None:
    counter, served = EventCounter(), process(FULL)
    count_some(counter)
    exposed = exposition(served, counter, labels=False)
    before = parse(await scrape(exposed))
    served.now = ProcessState(workspaces=(attrs.evolve(FULL, workspace_id="ws_2", requests={}),), is_started=True)
    exposed._valid_until = 0.0
    after = parse(await scrape(exposed))
    lost = [key for key in before if key[0].endswith(("_total", "_count")) and after[key] < before[key]]
    assert lost == []


async def test_another_backend_has_counts_of_its_own() -> None:
    counter, served = EventCounter(), process(FULL)
    count_some(counter)
    exposed = exposition(served, counter)
    await scrape(exposed)
    served.now = ProcessState(workspaces=(attrs.evolve(FULL, backend="exec"),), is_started=True)
    exposed._valid_until = 0.0
    samples = parse(await scrape(exposed))
    assert value(samples, "molecule_cost_usd_total", workspace="ws_1", backend="exec") == 0
    assert not [pairs for name, pairs in samples if name == "molecule_cost_usd_total" and ("backend", "mock") in pairs]


async def test_too_many_workspaces_are_added_up() -> None:
    found: list[int] = []
    served = process(*(attrs.evolve(FULL, workspace_id=f"ws_{number}") for number in range(MAX_WORKSPACES + 1)))
    exposed = Exposition(served, EventCounter(), workspace_labels=True, too_many=found.append)
    for _ in range(2):
        assert value(parse(await scrape(exposed)), "molecule_up") == MAX_WORKSPACES + 1
        exposed._valid_until = 0.0
    assert found == [MAX_WORKSPACES + 1]
    served.now = attrs.evolve(served.now, workspaces=served.now.workspaces[1:])
    assert value(parse(await scrape(exposed)), "molecule_up", workspace="ws_1000") == 1


async def test_concurrent_scrapes_share_the_work() -> None:
    exposed = exposition(process(FULL), EventCounter())
    first, second = await asyncio.gather(exposed.pieces(), exposed.pieces())
    assert first is second


@pytest.mark.parametrize("labels", [True, False])
async def test_promtool_accepts_the_format(labels: bool) -> None:
    counter, served = EventCounter(), process(FULL, journal_bytes=1, disk_bytes=2, disk_free_bytes=1)
    count_some(counter)
    text = await scrape(exposition(served, counter, labels=labels))
    assert await asyncio.to_thread(promtool, "check", "metrics", given=text) == (0, "")


async def test_served_with_its_content_type() -> None:
    async with observing(process(FULL)) as (observer, notes):
        count_some(observer._counter)
        head, body = await ask(notes.port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert "content-type: text/plain; version=0.0.4; charset=utf-8" in head.lower()
    assert value(parse(body), "molecule_messages_total", workspace="ws_1", result="answered") == 1


async def test_slow_readers_are_cut_off_silently(caplog: pytest.LogCaptureFixture) -> None:
    many = process(*(attrs.evolve(FULL, workspace_id=f"ws_{number}") for number in range(MAX_WORKSPACES)))
    async with observing(many, deadline=1) as (observer, notes):
        slow, cut = [await asyncio.open_connection("127.0.0.1", notes.port, limit=1) for _ in range(2)]
        for _, writer in (slow, cut):
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        await cut[0].readexactly(10)
        cut[1].transport.abort()
        assert (await get(notes.port, "/healthz"))[0] == 200
        server = observer._server
        assert server is not None
        async with asyncio.timeout(10):
            while server.server_state.connections:  # noqa: ASYNC110 - the deadline ends them
                await asyncio.sleep(0.05)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await slow[0].readexactly(9_000_000)
        slow[1].close()
    assert caplog.records == []


async def test_an_error_is_logged_and_ends_one_scrape(caplog: pytest.LogCaptureFixture) -> None:
    broken = process(FULL)
    async with observing(broken) as (_, notes):
        broken.now = None  # type: ignore[assignment]
        assert (await get(notes.port, "/metrics"))[0] == 500
        broken.now = ProcessState(is_started=True)
        assert (await get(notes.port, "/metrics"))[0] == 200
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_connector_exposes_its_figures(tmp_path: Path) -> None:
    options = ("--backend", "mock", "--backend-opt", "reply=answer-text", "--max-cost-per-day", "3")
    async with Sandbox.over_loopback() as sandbox:
        workspace, peer = await sandbox.pair()
        async with Connector.of(sandbox, workspace, tmp_path / "state", *options) as connector:
            port = await connector.port()
            await until_ready(port)
            await sandbox.say(workspace, "question-text", sender=peer)
            await sandbox.answers(workspace, 1)
            await connector.says("delivered")
            text = (await get(port, "/metrics"))[1]
        samples, own = parse(text), {"workspace": workspace.id}
        assert names(samples) >= (PROMISED.keys() | OF_THE_PROCESS) - {"molecule_rate_limit_remaining"}
        assert value(samples, "molecule_registered", **own) == 1
        assert value(samples, "molecule_lease_held", **own) == 1
        assert value(samples, "molecule_messages_total", **own, result="answered") == 1
        assert value(samples, "molecule_reply_seconds_count", **own) == 1
        assert value(samples, "molecule_budget_remaining_usd", **own) == 3
        assert value(samples, "molecule_requests_total", **own, endpoint="register", code="200") == 1
        for secret in (workspace.token, peer.token, peer.id, "question-text", "answer-text"):
            assert secret not in text
