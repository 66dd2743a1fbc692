"""Traces: what a collector receives from a real connector, and what a peer can't decide."""

import asyncio
import contextlib
import gzip
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

from molecule_connect import events
from molecule_connect.observers import ObserverConfig, Step
from molecule_connect_observe import traces
from molecule_connect_observe.traces import OwnSampler, Reported, TraceObserver
from molecule_connect_sandbox.testing import Sandbox

from .kit import Connector, FakeProcess, Notes, free_port

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SHOW = ("--backend", "exec", "--backend-opt", 'cmd=echo "[$TRACEPARENT]"')


@attrs.define
class Collector:
    """A collector for OTLP over HTTP.

    Attributes:
        spans: What it received.
        service: The attributes of the resource that was received last.
        headers: The headers of the last request.
    """

    port: int = 0
    spans: list[Span] = attrs.field(factory=list)
    service: dict[str, str] = attrs.field(factory=dict)
    headers: dict[str, str] = attrs.field(factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        assert path == "/v1/traces"
        self.headers = headers
        request = ExportTraceServiceRequest.FromString(
            gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body
        )
        for group in request.resource_spans:
            self.service = {one.key: one.value.string_value for one in group.resource.attributes}
            self.spans += [span for scope in group.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    async def until(self, name: str, count: int = 1) -> list[Span]:
        """Wait until it has this many spans of a name."""
        async with asyncio.timeout(30):
            while len(self.named(name)) < count:  # noqa: ASYNC110 - a thread receives them
                await asyncio.sleep(0.05)
        return self.named(name)


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.take(self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the library's
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def connector(sandbox: Sandbox, workspace: Any, folder: Path, *arguments: str, **environ: str) -> Connector:
    """A connector without ``--http`` that exports ten times a second."""
    return Connector.of(sandbox, workspace, folder, *arguments, http="", OTEL_BSP_SCHEDULE_DELAY="100", **environ)


def attributes(span: Span) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


@contextlib.asynccontextmanager
async def observing(sampler: Sampler = ALWAYS_ON) -> AsyncIterator[tuple[TraceObserver, InMemorySpanExporter]]:
    """An observer that keeps its spans."""
    exporter = InMemorySpanExporter()
    config = ObserverConfig(host="", port=0, process=FakeProcess(), note=Notes())
    observer = TraceObserver(config, processor=SimpleSpanProcessor(exporter), sampler=sampler)
    await observer.start()
    try:
        yield observer, exporter
    finally:
        await observer.close()


def step(row: int = 1, *, sent: str = "", name: str = "handler") -> Step:
    return Step(
        name=name, workspace_id="ws_1", backend="mock", row_id=f"r{row}", caller_id="peer-1", attempt=1, sent=sent
    )


async def test_collector_receives_the_trace_of_a_message(collector: Collector, tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace, peer = await sandbox.pair()
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
        }
        async with connector(sandbox, workspace, tmp_path, *SHOW, **environ) as running:
            metadata = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            await sandbox.say(workspace, "a private text", sender=peer, metadata=metadata)
            (answer,) = await sandbox.answers(workspace, 1)
            (message,) = await collector.until("message")
        assert await running.ended() == 0
    assert (message.trace_id.hex(), message.parent_span_id.hex(), message.kind) == (TRACE, PARENT, 5)
    children = {span.name: span for span in collector.spans if span.parent_span_id == message.span_id}
    assert sorted(children) == ["handler", "queue", "send"]
    assert len(collector.spans) == 4
    assert answer.text == f"[00-{TRACE}-{children['handler'].span_id.hex()}-01]"
    found = attributes(message)
    assert found.pop("molecule.row_id")
    assert found == {
        "molecule.workspace": workspace.id,
        "molecule.backend": "exec",
        "molecule.caller": "peer",
        "molecule.attempts": 1,
        "molecule.result": "answered",
    }
    assert message.start_time_unix_nano <= children["queue"].start_time_unix_nano
    assert children["queue"].end_time_unix_nano == children["handler"].start_time_unix_nano
    assert children["handler"].end_time_unix_nano <= children["send"].start_time_unix_nano
    assert collector.service["service.name"] == "molecule-connect"
    assert (collector.service["deployment.environment"], collector.headers["api-key"]) == ("test", "secret")
    assert "private" not in str(collector.spans)
    assert "secret" not in running.output


async def test_last_spans_are_sent_at_the_end(collector: Collector, tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        environ = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.endpoint}/v1/traces", "OTEL_SERVICE_NAME": "bot"}
        running = Connector.of(sandbox, workspace, tmp_path, "--backend", "mock", http="", **environ)
        async with running:
            await sandbox.say(workspace, "hi")
            await sandbox.answers(workspace, 1)
            assert await running.stop() == 0
    assert sorted(span.name for span in collector.spans) == ["handler", "message", "queue", "send"]
    assert collector.service["service.name"] == "bot"


async def test_dead_collector_costs_one_warning(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        secret = f"http://user:hunter2@127.0.0.1:{free_port()}/hunter2"
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": secret, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
        async with connector(sandbox, workspace, tmp_path, "--backend", "mock", **environ) as running:
            for number in range(3):
                await sandbox.say(workspace, f"hi {number}")
                await sandbox.answers(workspace, number + 1)
                await running.says("collector does not accept traces")
            assert await running.stop() == 0
    assert running.output.count("WARNING") == 1
    assert "hunter2" not in running.output


async def test_silent_collector_delays_the_end_for_a_bounded_time(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
            async with connector(sandbox, workspace, tmp_path, "--backend", "mock", **environ) as running:
                await sandbox.say(workspace, "hi")
                await sandbox.answers(workspace, 1)
                before = time.monotonic()
                assert await running.stop() == 0
    assert time.monotonic() - before < traces.FLUSH + 4
    assert "the last traces could not be sent within 3 s" in running.output


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "True"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:1"},
    ],
)
async def test_nothing_is_imported_unless_asked_for(environ: dict[str, str], tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        given = {**environ, "PYTHONPROFILEIMPORTTIME": "1"}
        async with connector(sandbox, workspace, tmp_path, "--backend", "mock", **given) as running:
            await sandbox.say(workspace, "hi")
            await sandbox.answers(workspace, 1)
    assert "molecule_connect.worker.tracing" in running.output
    assert "opentelemetry" not in running.output


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_BSP_MAX_QUEUE_SIZE": "1"},
    ],
)
async def test_variables_that_cannot_be_used_cost_a_warning(environ: dict[str, str], tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        given = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", **environ}
        async with connector(sandbox, workspace, tmp_path, *SHOW, **given) as running:
            await sandbox.say(workspace, "hi", metadata={"traceparent": f"00-{TRACE}-{PARENT}-01"})
            (answer,) = await sandbox.answers(workspace, 1)
            assert await running.stop() == 0
    assert "no traces are sent: " in running.output
    assert answer.text == f"[00-{TRACE}-{PARENT}-01]"


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ParentBased(ALWAYS_OFF), TraceIdRatioBased(1e-9)])
async def test_peers_cannot_force_sampling(sampler: Sampler) -> None:
    async with observing(sampler) as (observer, exporter):
        # The lowest ids are within every ratio.
        given = observer.trace(step(sent=f"00-{1:032x}-{1:016x}-01"))
    assert given.startswith(f"00-{1:032x}-")
    assert given.endswith("-00")
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ParentBased(ALWAYS_ON), TraceIdRatioBased(1.0)])
async def test_peers_cannot_prevent_sampling(sampler: Sampler) -> None:
    async with observing(sampler) as (observer, exporter):
        given = observer.trace(step(sent=f"00-{'f' * 32}-{1:016x}-00"))
    assert given.startswith(f"00-{'f' * 32}-")
    assert given.endswith("-01")
    assert len(exporter.get_finished_spans()) == 3


async def test_whole_messages_are_sampled() -> None:
    sampler = OwnSampler(TraceIdRatioBased(0.5), iter(range(0, 2**64, 2**58)).__next__)
    async with observing(sampler) as (observer, exporter):
        for row in range(64):
            observer.trace(step(row, sent=f"00-{'f' * 32}-{1:016x}-00"))
            observer.trace(step(row, name="send"))
    spans = exporter.get_finished_spans()
    assert len(spans) == 32 * 4
    roots = {span.context.span_id for span in spans if span.name == "message" and span.context}
    assert {span.parent.span_id for span in spans if span.name != "message" and span.parent} == roots


async def test_open_traces_are_bounded() -> None:
    async with observing() as (observer, exporter):
        for row in range(traces.MAX_OPEN + 2):
            observer.trace(step(row))
        messages = [span for span in exporter.get_finished_spans() if span.name == "message"]
    found = [(span.attributes or {}) for span in messages]
    assert [(one["molecule.row_id"], one["molecule.result"]) for one in found] == [
        ("r0", "unfinished"),
        ("r1", "unfinished"),
    ]


async def test_outage_of_the_collector_is_reported_once() -> None:
    outcomes = iter([True, None, False, None, True, True, False])
    notes = Notes()

    class Unreliable(InMemorySpanExporter):
        """Succeeds, fails or raises."""

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            outcome = next(outcomes)
            if outcome is None:
                raise ValueError("timeout: -0.1")
            return SpanExportResult.SUCCESS if outcome else SpanExportResult.FAILURE

    exporter = Reported(Unreliable(), notes)
    found = [exporter.export([]).name for _ in range(7)]
    assert found == ["SUCCESS", "FAILURE", "FAILURE", "FAILURE", "SUCCESS", "SUCCESS", "FAILURE"]
    assert [level for level, _, _ in notes.lines] == ["WARNING", "INFO", "WARNING"]


async def test_events_of_untraced_messages_are_ignored() -> None:
    async with observing() as (observer, exporter):
        observer.event(events.Dead(workspace_id="ws_1", row_id="r1", caller_id=None, reason="quota"))
        observer.event(events.Notice(workspace_id="ws_1", text="hi"))
    assert exporter.get_finished_spans() == ()
