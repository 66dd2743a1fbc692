"""TraceObserver: sends a trace of each message to an OpenTelemetry collector."""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceState
from opentelemetry.util.types import Attributes

from molecule_connect import __version__, events
from molecule_connect.observers import ObserverConfig, Step

# Messages whose trace hasn't ended. The oldest of more ends early.
MAX_OPEN = 10_000
# Seconds that the last spans may take to be sent.
FLUSH = 3.0
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
NANOSECONDS = 1e9


@attrs.define(eq=False)
class _Message:
    """The spans of one message that haven't ended.

    Attributes:
        context: The parent of its other spans.
        handler_started: In nanoseconds since 1970.
    """

    root: Span
    context: Context
    handler: Span | None = None
    handler_started: int = 0
    send: Span | None = None


class TraceObserver:
    """Traces messages: a span for each, and below it spans for the queue, the attempts and the sends.

    Args:
        processor: Receives the spans; None to send them where the standard variables say.
        sampler: Chooses the messages that are traced; None for the one of the standard variables.
        wall: Nanoseconds since 1970.
    """

    def __init__(
        self,
        config: ObserverConfig,
        *,
        processor: SpanProcessor | None = None,
        sampler: Sampler | None = None,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self._config = config
        self._processor = processor
        self._sampler = sampler
        self._wall = wall
        self._provider: TracerProvider | None = None
        self._tracer: trace.Tracer = trace.NoOpTracer()
        self._open: dict[tuple[str, str], _Message] = {}
        self._handlers: dict[type[events.Event], Callable[[_Message, Any], None]] = {
            events.Answered: self._answered,
            events.Retrying: self._retrying,
            events.Delivered: self._delivered,
            events.Dead: self._dead,
            events.Notified: self._notified,
        }

    async def start(self) -> None:
        """Read the standard variables. With invalid ones, a warning is shown and nothing is traced."""
        protocol = next(filter(None, map(os.environ.get, PROTOCOLS)), PROTOCOL)
        try:
            if protocol != PROTOCOL:
                raise ValueError(f"the protocol is {protocol!r}")
            provider = TracerProvider(self._sampler, _resource(), shutdown_on_exit=False)
            processor = self._processor or BatchSpanProcessor(Reported(OTLPSpanExporter(), self._config.note))
        except (ValueError, OSError) as exc:
            self._config.note("WARNING", f"no traces are sent: {exc}", f"check the variables OTEL_*; use {PROTOCOL}")
            return
        # The exporter would log each failure of each batch.
        for name in ("opentelemetry.exporter", "opentelemetry.sdk"):
            logging.getLogger(name).addHandler(logging.NullHandler())
            logging.getLogger(name).propagate = False
        provider.sampler = OwnSampler(provider.sampler, provider.id_generator.generate_trace_id)
        provider.add_span_processor(processor)
        self._provider = provider
        self._tracer = provider.get_tracer("molecule_connect", __version__)
        self._config.note("INFO", "traces are sent to the OpenTelemetry collector", "")

    def trace(self, step: Step) -> str:
        """Begin the span of *step*; its ``traceparent``."""
        if self._provider is None:
            return step.sent if step.name == "handler" else ""
        now = self._wall()
        queued = now - int(step.queue_seconds * NANOSECONDS)
        message = self._open.get((step.workspace_id, step.row_id)) or self._begin(step, queued)
        message.root.set_attribute("molecule.attempts", step.attempt)
        if step.name == "send":
            _end(message.send, now, error=True)
            message.send = span = self._child(message, "send", now, SpanKind.CLIENT)
        else:
            _end(message.handler, now, error=True)
            _end(self._child(message, "queue", queued), now)
            message.handler = span = self._child(message, "handler", now)
            message.handler_started = now
            span.set_attribute("molecule.attempt", step.attempt)
        return _traceparent(span.get_span_context())

    def event(self, event: events.Event) -> None:
        """End the spans that *event* is about."""
        handler = self._handlers.get(type(event))
        if handler is None or not isinstance(event, events.MessageEvent):
            return
        if (message := self._open.get((event.workspace_id, event.row_id))) is not None:
            handler(message, event)

    async def close(self) -> None:
        """End all spans, and wait a bounded time until they are sent."""
        for key in list(self._open):
            self._finish(key, "unfinished")
        if (provider := self._provider) is None:
            return
        loop, is_sent = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is closed if it took longer
                loop.call_soon_threadsafe(is_sent.set)

        # A thread of the loop's executor would hold up the end of the process while the collector doesn't respond.
        threading.Thread(target=shut_down, name="last spans", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH):
                await is_sent.wait()
        except TimeoutError:
            self._config.note("WARNING", f"the last traces could not be sent within {FLUSH:g} s", "")

    def _begin(self, step: Step, start: int) -> _Message:
        attributes = {
            "molecule.workspace": step.workspace_id,
            "molecule.backend": step.backend,
            "molecule.caller": "person" if step.caller_id is None else "peer",
            "molecule.row_id": step.row_id,
        }
        root = self._tracer.start_span(
            "message", _remote(step.sent), SpanKind.CONSUMER, attributes=attributes, start_time=start
        )
        if len(self._open) >= MAX_OPEN:
            self._finish(next(iter(self._open)), "unfinished")
        message = _Message(root, trace.set_span_in_context(root, Context()))
        self._open[step.workspace_id, step.row_id] = message
        return message

    def _child(self, message: _Message, name: str, start: int, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        return self._tracer.start_span(name, message.context, kind, start_time=start)

    def _finish(self, key: tuple[str, str], result: str) -> None:
        """End all spans of a message."""
        message, now = self._open.pop(key), self._wall()
        _end(message.handler, now)
        _end(message.send, now)
        message.root.set_attribute("molecule.result", result)
        _end(message.root, now, error=result == "dead")

    def _answered(self, message: _Message, event: events.Answered) -> None:
        self._end_handler(message, event.seconds)
        if event.silent:
            self._finish((event.workspace_id, event.row_id), "silent")

    def _retrying(self, message: _Message, event: events.Retrying) -> None:
        self._end_handler(message, event.handler_seconds, error=True)
        self._end_send(message, error=True)

    def _delivered(self, message: _Message, event: events.Delivered) -> None:
        self._end_send(message)
        self._finish((event.workspace_id, event.row_id), "answered")

    def _dead(self, message: _Message, event: events.Dead) -> None:
        self._end_handler(message, event.handler_seconds, error=True)
        self._end_send(message, error=True)
        message.root.set_attribute("error.type", event.category)
        if not event.notifies:
            self._finish((event.workspace_id, event.row_id), "dead")

    def _notified(self, message: _Message, event: events.Notified) -> None:
        self._end_send(message, error=bool(event.error))
        self._finish((event.workspace_id, event.row_id), "dead")

    def _end_handler(self, message: _Message, seconds: float, *, error: bool = False) -> None:
        # The event follows a write to the journal, so its time would be too late.
        end = message.handler_started + int(seconds * NANOSECONDS) if seconds > 0 else self._wall()
        _end(message.handler, end, error=error)
        message.handler = None

    def _end_send(self, message: _Message, *, error: bool = False) -> None:
        _end(message.send, self._wall(), error=error)
        message.send = None


class OwnSampler(Sampler):
    """Decides for each message as if nobody had sent a context with it.

    Peers choose the sampled flag and the trace id in it. Both would let them decide what is recorded.

    Args:
        inner: The sampler that the operator chose.
        random_id: Returns a random trace id.
    """

    def __init__(self, inner: Sampler, random_id: Callable[[], int]) -> None:
        self._inner = inner
        self._random_id = random_id

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Sample the children of sampled messages, and ask the inner sampler about a message."""
        parent = trace.get_current_span(parent_context).get_span_context()
        if parent.is_valid and not parent.is_remote:
            follow = ALWAYS_ON if parent.trace_flags.sampled else ALWAYS_OFF
            return follow.should_sample(parent_context, trace_id, name, kind, attributes, links)
        return self._inner.should_sample(None, self._random_id(), name, kind, attributes, links)

    def get_description(self) -> str:
        """The sampler in words."""
        return f"OwnSampler({self._inner.get_description()})"


class Reported(SpanExporter):
    """Reports once when the collector doesn't accept spans, and once when it does again."""

    def __init__(self, inner: SpanExporter, note: Callable[[str, str, str], None]) -> None:
        self._inner = inner
        self._note = note
        self._fails = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._inner.export(spans)
        except Exception:  # some versions raise ValueError when the time for a retry has run out
            result = SpanExportResult.FAILURE
        fails = result is not SpanExportResult.SUCCESS
        if fails and not self._fails:
            hint = "check OTEL_EXPORTER_OTLP_ENDPOINT and the collector; messages are not affected"
            self._note("WARNING", "the OpenTelemetry collector does not accept traces", hint)
        elif self._fails and not fails:
            self._note("INFO", "the OpenTelemetry collector accepts traces again", "")
        self._fails = fails
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


def _resource() -> Resource:
    defaults: dict[str, str] = {SERVICE_NAME: "molecule-connect", SERVICE_VERSION: __version__}
    return Resource.create({**defaults, **OTELResourceDetector().detect().attributes})


def _remote(sent: str) -> Context:
    """The context of a sender's ``traceparent``; an empty one without it."""
    if not sent:
        return Context()
    _, trace_id, span_id, _ = sent.split("-")
    context = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True)
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


def _end(span: Span | None, now: int, *, error: bool = False) -> None:
    if span is not None:
        if error:
            span.set_status(StatusCode.ERROR)
        span.end(now)


def _traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
