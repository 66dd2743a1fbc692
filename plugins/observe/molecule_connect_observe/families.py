"""All metrics of the connector: their names, which are API, and where their values come from."""

import http
import operator
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping

import attrs

from molecule_connect.observers import PARTS, ProcessState, WorkspaceState
from molecule_connect_observe.counts import Counts, EventCounter, Histogram

# The end of a sample's name, its labels besides those of its row, and its value.
Sample = tuple[str, str, float]


@attrs.frozen
class Row:
    """What samples are made from: a workspace; or, without a state, counts of one that is no longer served."""

    state: WorkspaceState | None
    counts: Counts
    requests: Mapping[tuple[str, int], int]


@attrs.frozen(kw_only=True)
class Family:
    """A metric of workspaces.

    Attributes:
        labels: Its labels besides ``workspace``, for the documentation.
        samples: Makes the samples of a row.
        merge: Combines the values of several workspaces: sum, min or max.
    """

    name: str
    kind: str
    help: str
    samples: Callable[[Row], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    merge: Callable[[float, float], float] = operator.add
    merge_name: str = "sum"

    @property
    def has_backend(self) -> bool:
        """Whether samples have the label ``backend``."""
        return "backend" in self.labels


@attrs.frozen(kw_only=True)
class ProcessFamily:
    """A metric of the whole process, without ``workspace``.

    Attributes:
        samples: Labels and values.
    """

    name: str
    help: str
    samples: Callable[[ProcessState, EventCounter], Iterable[tuple[str, float]]]
    labels: tuple[str, ...] = ()
    kind: str = "gauge"


def label(name: str, value: str) -> str:
    """One label of a sample."""
    text = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{name}="{text}"'


_MERGES: dict[str, Callable[[float, float], float]] = {"sum": operator.add, "min": min, "max": max}


def _gauge(
    name: str, help_: str, value: Callable[[WorkspaceState], float | None], merge: str = "sum", *, backend: bool = False
) -> Family:
    def samples(row: Row) -> Iterator[Sample]:
        if row.state is not None and (found := value(row.state)) is not None:
            yield "", "", found

    return Family(
        name=name,
        kind="gauge",
        help=help_,
        samples=samples,
        labels=("backend",) if backend else (),
        merge=_MERGES[merge],
        merge_name=merge,
    )


def _by_key(
    name: str, kind: str, help_: str, key: str, values: Callable[[Row], Mapping[str, float] | None], keys: Iterable[str]
) -> Family:
    """A metric with one label, whose values are a closed set."""
    labels = {each: label(key, each.replace(" ", "_")) for each in keys}

    def samples(row: Row) -> Iterator[Sample]:
        for each, value in (values(row) or {}).items():
            yield "", labels[each], value

    return Family(name=name, kind=kind, help=help_, samples=samples, labels=(key,))


def _histogram(name: str, help_: str, of: Callable[[Counts], Histogram], *, backend: bool = False) -> Family:
    labels = [label("le", f"{bound:g}") for bound in of(Counts()).bounds] + [label("le", "+Inf")]

    def samples(row: Row) -> Iterator[Sample]:
        histogram, count = of(row.counts), 0
        for text, more in zip(labels, histogram.buckets, strict=True):
            count += more
            yield "_bucket", text, count
        yield "_sum", "", histogram.total
        yield "_count", "", count

    return Family(name=name, kind="histogram", help=help_, samples=samples, labels=("backend",) if backend else ())


def _wedged(row: Row) -> dict[str, float] | None:
    return None if row.state is None else {part: part in row.state.wedged for part in PARTS}


_CODES = {status.value: label("code", str(status.value)) for status in http.HTTPStatus} | {0: label("code", "none")}


def _requests(row: Row) -> Iterator[Sample]:
    other = label("code", "other")
    found: dict[str, int] = {}
    for (endpoint, code), count in row.requests.items():
        text = f"{label('endpoint', endpoint)},{_CODES.get(code, other)}"
        found[text] = found.get(text, 0) + count
    for text, count in found.items():
        yield "", text, count


def _labels(row: Row) -> Iterator[Sample]:
    if row.state is not None:
        labels = {"backend": row.state.backend}
        for name, text in row.state.labels.items():
            # A label of the operator must not replace one of ours.
            labels.setdefault(f"label_{name}" if name in ("workspace", "backend") else name, text)
        yield "", ",".join(label(name, text) for name, text in labels.items()), 1


def _cost(row: Row) -> Iterator[Sample]:
    yield "", "", row.counts.cost_usd


INFO = Family(
    name="molecule_workspace_info",
    kind="gauge",
    help="Always 1. Its labels are the backend and the labels that the workspace has in the list.",
    samples=_labels,
    labels=("backend", "..."),
    merge_name="left out",
)

FAMILIES = (
    _gauge("molecule_up", "1 while the workspace is served; 0 after its worker ended with an error.", lambda s: s.up),
    _gauge("molecule_registered", "1 while the platform has it registered.", lambda s: s.is_registered),
    _gauge("molecule_paused", "1 while it is paused on the platform: messages wait.", lambda s: s.is_paused),
    _gauge("molecule_lease_held", "1 while this process has the right to serve it.", lambda s: s.has_lease),
    _by_key(
        "molecule_wedged",
        "gauge",
        "1 while this part has a problem that its heartbeats report.",
        "part",
        _wedged,
        PARTS,
    ),
    _gauge(
        "molecule_last_heartbeat_timestamp_seconds",
        "When the platform last accepted a heartbeat. Missing before the first.",
        lambda s: s.heartbeat_at,
        "min",
    ),
    _gauge(
        "molecule_last_read_timestamp_seconds",
        "When the feed was last read to its end. Missing before the first time.",
        lambda s: s.read_at,
        "min",
    ),
    _by_key(
        "molecule_messages",
        "gauge",
        "Messages that are not finished, and dead letters, in the journal.",
        "state",
        lambda row: None if row.state is None else row.state.messages,
        ("received", "running", "claimed", "answered", "dead"),
    ),
    _gauge(
        "molecule_oldest_waiting_seconds",
        "Age of the oldest message that waits for the backend or a reader; 0 if none waits.",
        lambda s: s.oldest_waiting,
        "max",
    ),
    _gauge(
        "molecule_oldest_unsent_seconds",
        "Age of the oldest reply that the platform has not accepted; 0 if there is none.",
        lambda s: s.oldest_unsent,
        "max",
    ),
    _by_key(
        "molecule_messages_total",
        "counter",
        "Messages that were finished: answered, handled without a reply (silent), or dead letters.",
        "result",
        lambda row: row.counts.messages,
        Counts().messages,
    ),
    _by_key(
        "molecule_dead_total",
        "counter",
        "Dead letters by reason.",
        "reason",
        lambda row: row.counts.dead,
        Counts().dead,
    ),
    _by_key(
        "molecule_retries_total",
        "counter",
        "Retries, and messages that were held back, by what is retried.",
        "what",
        lambda row: row.counts.retries,
        Counts().retries,
    ),
    _histogram(
        "molecule_queue_seconds",
        "From when a message was stored, or its retry was due, to the start of the backend.",
        lambda counts: counts.queue,
    ),
    _histogram(
        "molecule_handler_seconds",
        "How long the backend took per attempt.",
        lambda counts: counts.handler,
        backend=True,
    ),
    _histogram("molecule_send_seconds", "How long the accepted send of a reply took.", lambda counts: counts.send),
    _histogram(
        "molecule_reply_seconds",
        "From the time of a message to the acceptance of its reply.",
        lambda counts: counts.reply,
    ),
    Family(
        name="molecule_cost_usd_total",
        kind="counter",
        help="US dollars that attempts cost, as the backend reported it.",
        samples=_cost,
        labels=("backend",),
    ),
    _gauge(
        "molecule_budget_remaining_usd",
        "US dollars that may still be spent today (UTC). Missing without a limit.",
        lambda s: s.budget_remaining,
        "min",
    ),
    Family(
        name="molecule_requests_total",
        kind="counter",
        help='Requests to the platform by endpoint and status code; "none" if there was no response.',
        samples=_requests,
        labels=("endpoint", "code"),
    ),
    _gauge(
        "molecule_rate_limit_remaining",
        "Requests that the platform still accepts in this minute. Missing without a limit.",
        lambda s: s.rate_limit_remaining,
        "min",
    ),
    _gauge("molecule_concurrency_busy", "Messages that the backend handles now.", lambda s: s.busy, backend=True),
    _gauge("molecule_concurrency_limit", "Messages that it may handle at once.", lambda s: s.concurrency, backend=True),
    _gauge(
        "molecule_circuit_open",
        "1 while the backend fails and only single messages are tried.",
        lambda s: s.is_circuit_open,
        backend=True,
    ),
)


def _open_fds(state: ProcessState, counter: EventCounter) -> Iterator[tuple[str, float]]:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            # The listing has a descriptor itself.
            yield "", len(os.listdir(folder)) - 1  # noqa: PTH208 - of many entries, only the number is needed
        except OSError:
            continue
        return


def _given(value: float | None) -> Iterator[tuple[str, float]]:
    if value is not None:
        yield "", value


def _build(state: ProcessState, counter: EventCounter) -> Iterator[tuple[str, float]]:
    yield f"{label('version', state.version)},{label('python', platform.python_version())}", 1


PROCESS_FAMILIES = (
    ProcessFamily(
        name="molecule_build_info",
        help="Always 1. Its labels are the versions of molecule-connect and Python.",
        samples=_build,
        labels=("version", "python"),
    ),
    ProcessFamily(
        name="molecule_workspaces",
        help="Number of workspaces that the process serves, or that ended with an error.",
        samples=lambda state, counter: [("", len(state.workspaces))],
    ),
    ProcessFamily(
        name="molecule_workspaces_refused",
        help="Number of workspaces of the list that can't be served.",
        samples=lambda state, counter: [("", len(state.refused))],
    ),
    ProcessFamily(
        name="molecule_config_reload_success",
        help="1 if the list of workspaces was applied when it was last read again; 0 if it was refused as a whole.",
        samples=lambda state, counter: [("", counter.reloaded)],
    ),
    ProcessFamily(
        name="molecule_config_reload_timestamp_seconds",
        help="When a list of workspaces was last applied; the start of the process before the first reload.",
        samples=lambda state, counter: [("", counter.reloaded_at)],
    ),
    ProcessFamily(
        name="molecule_journal_bytes",
        help="Size of the journal with its write-ahead log.",
        samples=lambda state, counter: _given(state.journal_bytes),
    ),
    ProcessFamily(
        name="molecule_disk_free_bytes",
        help="Free bytes of the file system that has the journal.",
        samples=lambda state, counter: _given(state.disk_free_bytes),
    ),
    ProcessFamily(
        name="molecule_disk_bytes",
        help="Size of the file system that has the journal.",
        samples=lambda state, counter: _given(state.disk_bytes),
    ),
    ProcessFamily(
        name="molecule_open_fds",
        help="Open file descriptors of the process.",
        samples=_open_fds,
    ),
)
