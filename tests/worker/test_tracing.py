"""The traces of messages: spans of a worker, and the contexts that its backend and its sends get."""

import asyncio
import json
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.worker.kit import EPOCH, WORKSPACE, FakePlatform, Serving

from molecule_connect import events
from molecule_connect.errors import BackendError, PermanentPlatformError, TransientPlatformError
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Progress, Request, Response
from molecule_connect.observers import ObserverConfig, ProcessState
from molecule_connect_observe.traces import TraceObserver

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = json.dumps({"params": {"message": {"metadata": {"traceparent": f"00-{TRACE}-{PARENT}-00"}}}})


class NoProcess:
    """A process that nothing asks."""

    def state(self) -> ProcessState:
        return ProcessState()

    async def snapshot(self) -> ProcessState:
        return ProcessState()


class Traced:
    """A worker whose spans are kept, inside ``async with``.

    Attributes:
        requests: What the backend received.
    """

    def __init__(self, platform: FakePlatform, journal: Journal, **settings: Any) -> None:
        loop = asyncio.get_running_loop()
        self._exporter = InMemorySpanExporter()
        config = ObserverConfig(host="", port=0, process=NoProcess(), note=lambda level, text, hint: None)
        self._observer = TraceObserver(
            config,
            processor=SimpleSpanProcessor(self._exporter),
            wall=lambda: round((EPOCH + loop.time()) * 1e9),
        )
        self.requests: list[Request] = []
        self.events: list[events.Event] = []
        self._serving = Serving(
            platform, journal, self._handle, tracer=self._observer.trace, listener=self._follow, **settings
        )

    async def __aenter__(self) -> "Traced":
        await self._observer.start()
        await self._serving.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._serving.__aexit__(*error)
        await self._observer.close()

    def _follow(self, event: events.Event) -> None:
        self.events.append(event)
        self._observer.event(event)

    async def _handle(self, request: Request, progress: Progress) -> Response:
        self.requests.append(request)
        await asyncio.sleep(3)
        if request.text == "fail" or (request.text == "fail once" and request.attempt == 1):
            raise BackendError("secret", retryable=request.text == "fail once")
        return Response.silent() if request.text == "hush" else Response.from_text("done")

    def seen(self, kind: type[events.Event], count: int = 1) -> bool:
        """Whether this many events of a kind were emitted."""
        return sum(isinstance(event, kind) for event in self.events) >= count

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """The spans that have ended, all or those of one name, by start."""
        found = [span for span in self._exporter.get_finished_spans() if name in ("", span.name)]
        return sorted(found, key=lambda span: span.start_time or 0)

    def only(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return round((span.end_time - span.start_time) / 1e9, 1)


def ids(span: ReadableSpan) -> tuple[str, str]:
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def parent(span: ReadableSpan) -> str:
    return f"{span.parent.span_id:016x}" if span.parent is not None else ""


def context(span: ReadableSpan, flags: str = "03") -> str:
    """The ``traceparent`` of *span*."""
    return "-".join(("00", *ids(span), flags))


def facts(span: ReadableSpan) -> dict[str, Any]:
    return {key.removeprefix("molecule."): value for key, value in (span.attributes or {}).items()}


async def test_message_has_a_span_with_all_its_children(journal: Journal) -> None:
    platform = FakePlatform(send_delay=0.5, has_stream=True)
    async with Traced(platform, journal) as traced:
        platform.write("one", row_id="r1", context="c")
        platform.write("two", row_id="r2", context="c", caller=None)
        await platform.until(lambda: traced.seen(events.Delivered, 2))
    first, second = traced.spans("message")
    assert [(facts(span)["row_id"], seconds(span)) for span in (first, second)] == [("r1", 3.5), ("r2", 7.0)]
    assert facts(first) == {
        "workspace": WORKSPACE,
        "backend": "fake",
        "caller": "person",
        "row_id": "r1",
        "attempts": 1,
        "result": "answered",
    }
    children = [span for span in traced.spans() if parent(span) == ids(second)[1]]
    assert [(span.name, seconds(span)) for span in children] == [("queue", 3.5), ("handler", 3.0), ("send", 0.5)]
    assert {ids(span)[0] for span in children} == {ids(second)[0]} != {ids(first)[0]}
    assert all(span.status.is_ok for span in traced.spans())
    assert len(traced.spans()) == 8


async def test_backend_and_send_get_their_own_context(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("hi")
    async with Traced(platform, journal) as traced:
        await platform.until(lambda: traced.seen(events.Delivered))
    flags = traced.requests[0].trace[-2:]
    assert int(flags, 16) & 1
    assert [request.trace for request in traced.requests] == [context(traced.only("handler"), flags)]
    assert [outgoing.trace for outgoing in platform.sent] == [context(traced.only("send"), flags)]


async def test_trace_of_the_sender_is_continued(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("hi", caller="peer-1", raw=SENT)
    async with Traced(platform, journal) as traced:
        await platform.until(lambda: traced.seen(events.Delivered))
    assert {ids(span)[0] for span in traced.spans()} == {TRACE}
    message = traced.only("message")
    assert (parent(message), facts(message)["caller"]) == (PARENT, "peer")
    assert traced.requests[0].trace.startswith(f"00-{TRACE}-{ids(traced.only('handler'))[1]}-")


async def test_without_a_tracer_backends_get_the_senders_context(journal: Journal) -> None:
    traces: dict[str, str] = {}

    async def keep(request: Request, progress: Progress) -> Response:
        traces[request.text] = request.trace
        return Response.from_text("done")

    platform = FakePlatform()
    platform.write("traced", context="a", raw=SENT)
    platform.write("untraced", context="b")
    async with Serving(platform, journal, keep):
        await platform.until(lambda: len(platform.sent) == 2)
    assert traces == {"traced": f"00-{TRACE}-{PARENT}-00", "untraced": ""}
    assert [outgoing.trace for outgoing in platform.sent] == ["", ""]


async def test_retry_has_a_second_handler_span(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("fail once")
    async with Traced(platform, journal) as traced:
        await platform.until(lambda: traced.seen(events.Delivered))
    failed, succeeded = traced.spans("handler")
    assert [(facts(span), span.status.is_ok, seconds(span)) for span in (failed, succeeded)] == [
        ({"attempt": 1}, False, 3.0),
        ({"attempt": 2}, True, 3.0),
    ]
    message = traced.only("message")
    assert (facts(message)["attempts"], facts(message)["result"], message.status.is_ok) == (2, "answered", True)
    assert {parent(span) for span in (failed, succeeded, *traced.spans("queue"))} == {ids(message)[1]}
    assert [request.trace[36:52] for request in traced.requests] == [ids(failed)[1], ids(succeeded)[1]]


async def test_dead_letter_includes_the_send_of_its_notice(journal: Journal) -> None:
    platform = FakePlatform(send_delay=0.5)
    platform.write("fail", row_id="r1")
    async with Traced(platform, journal) as traced:
        await platform.until(lambda: traced.seen(events.Notified))
        # The conversation had a notice a moment ago.
        platform.write("fail", row_id="r2")
        await platform.until(lambda: traced.seen(events.Dead, 2))
        assert len(traced.spans("message")) == 2
    for message in traced.spans("message"):
        assert (facts(message)["result"], facts(message)["error.type"]) == ("dead", "refused_by_backend")
        assert not message.status.is_ok
    assert [span.status.is_ok for span in traced.spans("handler")] == [False, False]
    assert parent(traced.only("send")) == ids(traced.spans("message")[0])[1]
    assert traced.only("send").status.is_ok


async def test_each_send_has_a_span(journal: Journal) -> None:
    busy = TransientPlatformError("send: 503", operation="send", status=503)
    platform = FakePlatform(fail_send=[busy])
    platform.write("hi", caller="peer-1")
    async with Traced(platform, journal) as traced:
        await platform.until(lambda: traced.seen(events.Delivered))
    assert [span.status.is_ok for span in traced.spans("send")] == [False, True]
    assert {parent(span) for span in traced.spans("send")} == {ids(traced.only("message"))[1]}


async def test_refused_reply_ends_the_trace(journal: Journal) -> None:
    refused = PermanentPlatformError("send: 403 no", operation="send", status=403, body="")
    platform = FakePlatform(fail_send=[refused])
    platform.write("hi")
    async with Traced(platform, journal) as traced:
        await platform.until(lambda: traced.seen(events.Dead))
        assert facts(traced.only("message"))["error.type"] == "reply_refused"
    assert [span.status.is_ok for span in (*traced.spans("handler"), *traced.spans("send"))] == [True, False]


async def test_silent_message_ends_without_a_send(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("hush")
    async with Traced(platform, journal) as traced:
        await platform.until(lambda: traced.seen(events.Answered))
        assert sorted(span.name for span in traced.spans()) == ["handler", "message", "queue"]
    assert facts(traced.only("message"))["result"] == "silent"


async def test_trace_continues_after_a_restart(journal: Journal) -> None:
    busy = TransientPlatformError("send: 503", operation="send", status=503)
    platform = FakePlatform(fail_send=[busy] * 3)
    platform.write("hi", caller="peer-1", raw=SENT)
    async with Traced(platform, journal) as before:
        await platform.until(lambda: before.seen(events.Retrying))
    assert facts(before.only("message"))["result"] == "unfinished"
    platform.fail_send.clear()
    async with Traced(platform, journal) as after:
        await platform.until(lambda: after.seen(events.Delivered))
    assert sorted(span.name for span in after.spans()) == ["message", "send"]
    assert {ids(span)[0] for span in (*before.spans(), *after.spans())} == {TRACE}
    assert parent(after.only("message")) == PARENT


async def test_stopped_attempt_ends_its_spans(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("hi")
    async with Traced(platform, journal, grace=0.0) as traced:
        await platform.until(lambda: bool(traced.requests))
    assert sorted(span.name for span in traced.spans()) == ["handler", "message", "queue"]
    assert facts(traced.only("message"))["result"] == "unfinished"
