"""The trace contexts of the messages of one workspace."""

import attrs

from molecule_connect.journal.models import StoredMessage
from molecule_connect.observers import Step, Tracer
from molecule_connect.traces import sent_trace


@attrs.frozen
class Tracing:
    """Asks the tracer of the process for the context of each step of a message.

    Attributes:
        tracer: None if no observer traces.
        backend: Name of the backend.
    """

    tracer: Tracer | None
    backend: str

    def handler(self, message: StoredMessage, *, queue_seconds: float) -> str:
        """The ``Request.trace`` of an attempt that starts: the sender's if nothing traces."""
        sent = sent_trace(message.raw)
        if self.tracer is None:
            return sent
        return self.tracer(self._step("handler", message, sent, queue_seconds))

    def send(self, message: StoredMessage) -> str:
        """The ``Outgoing.trace`` of a send that starts: empty if nothing traces."""
        if self.tracer is None:
            return ""
        return self.tracer(self._step("send", message, sent_trace(message.raw), 0.0))

    def _step(self, name: str, message: StoredMessage, sent: str, queue_seconds: float) -> Step:
        return Step(
            name=name,
            workspace_id=message.workspace_id,
            backend=self.backend,
            row_id=message.row_id,
            caller_id=message.caller_id,
            attempt=message.attempt,
            queue_seconds=queue_seconds,
            sent=sent,
        )
