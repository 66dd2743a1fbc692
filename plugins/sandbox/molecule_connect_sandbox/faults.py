"""Faults: their names, syntax and conditions."""

import difflib
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator

import attrs

from molecule_connect import ConfigError


@attrs.frozen
class FaultKind:
    """A kind of fault.

    Attributes:
        argument: A placeholder for the value, for the help text; empty if it takes none.
        default: The default value.
        chance: The default probability.
    """

    name: str
    argument: str
    default: str
    help: str
    chance: float = 1.0


KINDS = {
    kind.name: kind
    for kind in (
        FaultKind(
            "late-commits",
            "LOW-HIGH",
            "1-30",
            "rows of messages and uploads appear LOW to HIGH seconds late, behind newer ones",
            0.5,
        ),
        FaultKind("equal-times", "N", "2", "groups of N rows share their created_at"),
        FaultKind("prune", "", "", "the row of a cursor is deleted before it is looked up: 410"),
        FaultKind("no-cursor", "", "", "since_id is ignored"),
        FaultKind("blank-ids", "", "", "rows have an empty id"),
        FaultKind("rate-limited", "SECONDS", "1", "429 with Retry-After"),
        FaultKind("unavailable", "SECONDS", "1", "503 with Retry-After"),
        FaultKind("status", "CODE", "500", "the platform's JSON error with this status; the request has no effect"),
        FaultKind("bare-status", "CODE", "404", "this status without a body; the request has no effect"),
        FaultKind("html", "", "", "an HTML page with 200; the request has no effect"),
        FaultKind("origin-required", "", "", "404 without a body for requests without Origin"),
        FaultKind("rpc-error", "", "", "200 with a JSON-RPC error; the request has no effect"),
        FaultKind("cut-before", "", "", "the connection is cut before the request takes effect"),
        FaultKind("cut-after", "", "", "the connection is cut after the request takes effect"),
        FaultKind("cut-short", "", "", "the connection is cut in the middle of the response"),
        FaultKind("empty-answers", "", "", "the request takes effect; the response has no body"),
        FaultKind("accepted", "", "", "the request takes effect; the response is 202 with queued:true"),
        FaultKind(
            "delivery-confirmed", "", "", "the request takes effect; the response is 502 with delivery_confirmed"
        ),
        FaultKind("slow-answers", "SECONDS", "1", "the request takes effect; the response is delayed"),
        FaultKind("slow-bodies", "SECONDS", "1", "the response body arrives in ten pieces over this time"),
        FaultKind("stream-drop", "SECONDS", "0", "event streams are cut after this time"),
        FaultKind("stream-stall", "", "", "event streams stay open and send nothing more"),
        FaultKind("stream-silent", "", "", "event streams open and send nothing, not even the first ping"),
        FaultKind("forged-rows", "RATE", "5", "a hostile peer writes RATE forged rows a second to each workspace"),
    )
}
FILTERS = ("path", "method", "chance", "times")


@attrs.define(eq=False, kw_only=True)
class Fault:
    """An active fault.

    Attributes:
        text: The fault as configured.
        path, method: Apply only to requests with this method whose path contains this text.
        times: Remaining number of times to apply; None means no limit.
        since: When it was activated, in monotonic seconds.
    """

    kind: FaultKind
    text: str
    value: str
    path: str
    method: str
    chance: float
    times: int | None
    since: float

    @property
    def seconds(self) -> float:
        """The value as seconds."""
        return float(self.value)

    @property
    def number(self) -> int:
        """The value as a whole number."""
        return int(self.value)

    @property
    def range(self) -> tuple[float, float]:
        """The value as a range; a single number is both ends."""
        low, _, high = self.value.partition("-")
        return float(low), float(high or low)


def _bad(text: str, why: str, hint: str) -> ConfigError:
    return ConfigError(f"fault {text!r}: {why}", hint=hint)


def _kind(name: str) -> FaultKind:
    if name in KINDS:
        return KINDS[name]
    near = difflib.get_close_matches(name, KINDS, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"no fault named {name!r}", hint=f"{meant}known faults: {', '.join(KINDS)}")


def _check_value(fault: Fault) -> None:
    readers: dict[str, Callable[[], bool]] = {
        "SECONDS": lambda: 0 <= fault.seconds < math.inf,
        "LOW-HIGH": lambda: 0 <= fault.range[0] <= fault.range[1] < math.inf,
        "N": lambda: fault.number >= 1,
        "CODE": lambda: 200 <= fault.number <= 599,
        "RATE": lambda: 1 <= fault.number <= 100,
    }
    if not fault.kind.argument:
        if fault.value:
            raise _bad(fault.text, f"{fault.kind.name} takes no value", f"only filters: {', '.join(FILTERS)}")
        return
    try:
        fits = readers[fault.kind.argument]()
    except ValueError:
        fits = False
    if not fits:
        hint = f"write {fault.kind.name}={fault.kind.default} ({fault.kind.argument})"
        raise _bad(fault.text, f"{fault.value!r} is not {fault.kind.argument}", hint)


def parse_fault(text: str) -> Fault:
    """``NAME[=VALUE][,path=TEXT][,method=M][,chance=0..1][,times=N]``; filters can also follow the ``=`` directly.

    Raises:
        ConfigError: The name is unknown, or the value or a filter is invalid.
    """
    name, _, rest = text.partition("=")
    name, comma, more = name.partition(",")
    items = [item for item in f"{more}{'=' if comma else ''}{rest}".split(",") if item]
    kind = _kind(name.strip())
    value, filters = kind.default, {"path": "", "method": "", "chance": str(kind.chance), "times": ""}
    for item in items:
        key, equals, setting = item.partition("=")
        if not equals:
            value = item
        elif key in filters:
            filters[key] = setting
        else:
            raise _bad(text, f"no filter named {key!r}", f"filters are {', '.join(FILTERS)}")
    try:
        chance, times = float(filters["chance"]), int(filters["times"]) if filters["times"] else None
    except ValueError:
        chance, times = math.nan, None
    if not 0 <= chance <= 1 or (times is not None and times < 0):
        raise _bad(text, "chance is a number from 0 to 1, times a whole number", f"write {name},chance=0.5,times=3")
    fault = Fault(
        kind=kind,
        text=text,
        value=value,
        path=filters["path"],
        method=filters["method"].upper(),
        chance=chance,
        times=times,
        since=time.monotonic(),
    )
    _check_value(fault)
    return fault


class Faults:
    """The active faults. Random choices use one seeded generator."""

    def __init__(self, texts: Iterable[str] = (), seed: int = 0) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self._on = [parse_fault(text) for text in texts]

    def __bool__(self) -> bool:
        return bool(self._on)

    @property
    def texts(self) -> list[str]:
        """The active faults, as configured."""
        return [fault.text for fault in self._on]

    def set(self, texts: Iterable[str]) -> None:
        """Replace the active faults.

        Raises:
            ConfigError: A fault is invalid; nothing has changed.
        """
        self._on = [parse_fault(text) for text in texts]

    def add(self, text: str) -> None:
        """Activate another fault."""
        self._on.append(parse_fault(text))

    def remove(self, name: str) -> None:
        """Deactivate the faults of this name."""
        self._on = [fault for fault in self._on if fault.kind.name != name]

    def _matching(self, names: tuple[str, ...], path: str, method: str) -> Iterator[Fault]:
        for fault in self._on:
            fits = fault.path in path and fault.method in ("", method)
            if fault.kind.name in names and fits and fault.times != 0:
                yield fault

    def strike(self, *names: str, path: str = "", method: str = "") -> Fault | None:
        """The first of these faults that applies now; counts against its ``times``."""
        if not self._on:
            return None
        for fault in self._matching(names, path, method):
            if fault.chance < 1 and self.random.random() >= fault.chance:
                continue
            if fault.times is not None:
                fault.times -= 1
            return fault
        return None

    def find(self, name: str) -> Fault | None:
        """An active fault of this name with times left, regardless of its filters."""
        return next((fault for fault in self._on if fault.kind.name == name and fault.times != 0), None)

    def is_on(self, name: str, path: str = "") -> Fault | None:
        """An active fault of this name for a path, regardless of its chance."""
        return next(self._matching((name,), path, "GET"), None) if self._on else None
