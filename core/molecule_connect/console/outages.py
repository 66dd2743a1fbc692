"""Problems by cause: an outage disturbs reading, heartbeats and the stream at once, and is one line."""

import re
from collections.abc import Iterable

import attrs

# Parts that talk to the platform, the most telling first.
_NETWORK_PARTS = ("connection", "start", "register", "intake", "heartbeat", "sending", "stream")
_UNREACHABLE = re.compile(
    r"cannot be reached|the connection to .* was cut|no answer within|no complete answer|did not take the request"
    r"|the event stream ended|no connection to .* can be opened|the proxy on the way"
)
# The operation before the text, and how long it has lasted.
_OPERATION = re.compile(r"^(?:no reply to \w+ was accepted for \d+ s: )?(?:[a-z0-9-]+: )?")
_NUMBERS = re.compile(r"\d+")


@attrs.frozen
class Problem:
    """A problem of one part of a workspace."""

    workspace_id: str
    part: str
    reason: str
    hint: str = ""

    @property
    def text(self) -> str:
        """The reason without the operation that failed."""
        return _OPERATION.sub("", self.reason) if self.part in _NETWORK_PARTS else self.reason

    @property
    def is_outage(self) -> bool:
        """Whether the platform can't be reached."""
        return self.part in _NETWORK_PARTS and _UNREACHABLE.search(self.reason) is not None

    @property
    def cause(self) -> str:
        """The same for all problems of one cause."""
        return "unreachable" if self.is_outage else _NUMBERS.sub("#", self.text)


@attrs.frozen
class Cause:
    """Problems with one cause, the most telling first."""

    problems: tuple[Problem, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that have it."""
        return tuple(dict.fromkeys(problem.part for problem in self.problems))

    @property
    def workspaces(self) -> tuple[str, ...]:
        """The workspaces that have it."""
        return tuple(dict.fromkeys(problem.workspace_id for problem in self.problems))

    @property
    def text(self) -> str:
        """The parts and the reason."""
        return f"{', '.join(self.parts)}: {self.problems[0].text}"

    @property
    def hint(self) -> str:
        """The operator's next step."""
        return self.problems[0].hint


def causes(problems: Iterable[Problem]) -> list[Cause]:
    """*problems* by cause, in the order in which the causes appeared."""
    problems = list(problems)
    others = {
        problem.workspace_id: problem.cause for problem in reversed(problems) if problem.part in ("intake", "heartbeat")
    }
    found: dict[str, list[Problem]] = {}
    for problem in problems:
        # A stream that ends beside failing reads or heartbeats ends for their reason.
        cause = others.get(problem.workspace_id, problem.cause) if problem.part == "stream" else problem.cause
        found.setdefault(cause, []).append(problem)
    return [Cause(tuple(sorted(group, key=_telling))) for group in found.values()]


def _telling(problem: Problem) -> int:
    """Sort key: clear texts and important parts first."""
    rank = _NETWORK_PARTS.index(problem.part) if problem.part in _NETWORK_PARTS else 0
    return rank if "cannot be reached" in problem.reason or not problem.is_outage else rank + len(_NETWORK_PARTS)
