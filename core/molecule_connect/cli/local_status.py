"""How the connectors of a state folder are, found out without any of them: lease, status file and journal."""

import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path

import attrs

from molecule_connect.errors import ConfigError, JournalError
from molecule_connect.journal.inspect import Glance, Inspection
from molecule_connect.journal.models import State
from molecule_connect.models import canonical_id
from molecule_connect.worker.lease import Holder, holder
from molecule_connect.worker.refused_blocks import read_refused_blocks
from molecule_connect.worker.status import REFRESH, Problem, SavedStatus, read_status

# The platform gives a workspace up after 90 s without a heartbeat; a status file is written thrice in that time.
SILENT, BEAT_LATE = 3 * REFRESH + 5, 120.0
# These parts cost speed or a convenience, and no message.
MINOR = frozenset(("stream", "cursor file", "peer budget", "journal size"))
_SHOWN_RUNNING = 20


@attrs.frozen(kw_only=True)
class Found:
    """One workspace.

    Attributes:
        state: running, paused, trouble, starting, stopping, suspended (by SIGSTOP or Ctrl-Z) or silent while a process
            holds the lease; stopped, ended (with an error), died (without a word) or refused (a running process can't
            serve its block of the list) when none does.
        status: What the connector told; None where it is of no use.
        counts: Messages by state; None where the journal cannot be read.
        oldest: When the oldest message that waits was written, in seconds since 1970.
        keeper: The process that gave this workspace up, or refuses its block, and serves others; None where there is
            none.
    """

    workspace_id: str
    state: str
    holder: Holder | None
    status: SavedStatus | None
    ailments: tuple[Problem, ...] = ()
    counts: dict[State, int] | None = None
    running: tuple[Glance, ...] = ()
    oldest: float | None = None
    keeper: int | None = None

    @property
    def is_well(self) -> bool:
        """Whether it serves, and nothing that costs messages is wrong; a pause is somebody's wish."""
        return self.state in ("running", "paused")

    @property
    def is_expected(self) -> bool:
        """Whether it should be served now: it is, a running process gave it up, or it was served and nobody stopped it.

        One try that never got as far as serving, and that nobody repeats, was somebody's slip.
        """
        if self.state not in ("ended", "died"):
            return not self.is_stopped
        told = self.status
        return self.keeper is not None or (told is not None and (told.registered or told.paused))

    @property
    def is_stopped(self) -> bool:
        """Whether nothing runs because somebody wanted it so."""
        return self.state == "stopped"


def survey(folder: Path, workspace_id: str | None, now: float) -> list[Found]:
    """Every workspace that *folder* knows, or the one that is asked for, known or not.

    Raises:
        LeaseError: The folder is somebody else's.
    """
    with contextlib.ExitStack() as stack:
        journal, problem = None, ""
        try:
            journal = stack.enter_context(Inspection.open(folder))
        except ConfigError:
            pass
        except JournalError as exc:
            problem = str(exc)
        refused = _refused(folder)
        names = [workspace_id] if workspace_id else sorted({*_names(folder, journal), *refused})
        return _kept([_find(folder, name, journal, problem, now, refused.get(name)) for name in names])


def _refused(folder: Path) -> dict[str, tuple[int, Problem]]:
    """The blocks that running processes refuse, each with its process."""
    reported = read_refused_blocks(folder)
    found = [holder(folder, path.stem) for path in folder.glob("*.lock")] if reported else []
    alive = {(one.pid, one.host) for one in found if one is not None}
    running = [one for one in reported if (one.pid, one.host) in alive]
    return {name: (one.pid, ailment) for one in running for name, ailment in one.blocks.items()}


def _kept(found: list[Found]) -> list[Found]:
    """*found*, each that has ended with the process that gave it up, where that still serves another."""
    alive = {(one.holder.pid, one.holder.host) for one in found if one.holder is not None}
    return [
        attrs.evolve(one, keeper=one.status.pid)
        if one.state == "ended" and one.status and (one.status.pid, one.status.host) in alive
        else one
        for one in found
    ]


def _names(folder: Path, journal: Inspection | None) -> set[str]:
    names = {path.stem for pattern in ("*.lock", "*.status") for path in folder.glob(pattern)}
    return {canonical_id(name) for name in names.union(journal.workspaces() if journal else ())}


def _find(
    folder: Path,
    workspace_id: str,
    journal: Inspection | None,
    problem: str,
    now: float,
    refused: tuple[int, Problem] | None,
) -> Found:
    told, by = read_status(folder, workspace_id), holder(folder, workspace_id)
    if by is not None and told is not None and (told.pid != by.pid or told.ended):
        told = None  # an earlier process left it
    ailments, keeper = _ailments(told, by, problem, now), None
    if refused is not None:
        ailments = (*ailments, refused[1])
        keeper = refused[0] if by is None else None
    state = "suspended" if by is not None and _is_suspended(by) else _state(told, by, ailments, now)
    if keeper is not None:
        state = "refused"
    found = Found(workspace_id=workspace_id, state=state, holder=by, status=told, ailments=ailments, keeper=keeper)
    if journal is None:
        return found
    oldest = journal.oldest(workspace_id)
    return attrs.evolve(
        found,
        counts=journal.counts(workspace_id),
        running=tuple(journal.glances(workspace_id, [State.RUNNING], limit=_SHOWN_RUNNING)),
        oldest=oldest / 1e6 if oldest is not None else None,
    )


def _ailments(told: SavedStatus | None, by: Holder | None, problem: str, now: float) -> tuple[Problem, ...]:
    found = list(told.ailments) if told and by else []
    if problem:
        found.append(Problem(part="journal", reason=problem, since=now))
    if told is None or by is None or told.stopping:
        return tuple(found)
    since = told.last_beat or told.started
    if now - since > BEAT_LATE and not any(ailment.part == "heartbeat" for ailment in found):
        found.append(Problem(part="heartbeat", reason="the platform accepted none for a while", since=since))
    return tuple(found)


def _is_suspended(by: Holder) -> bool:
    """Whether the process was stopped and not continued. Where it cannot be seen, its silence tells after a while."""
    if not by.pid or by.host != socket.gethostname():
        return False
    try:
        stat = Path(f"/proc/{by.pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[:1] == ["T"]


def _state(told: SavedStatus | None, by: Holder | None, ailments: Sequence[Problem], now: float) -> str:
    if by is None:
        return "stopped" if told is None else "ended" if told.ended else "died"
    if told is None:
        return "starting"
    # A time ahead was written before the clock was set back.
    if abs(now - told.written) > SILENT:
        return "silent"
    if told.stopping:
        return "stopping"
    if any(ailment.part not in MINOR for ailment in ailments):
        return "trouble"
    if told.paused:
        return "paused"
    return "running" if told.registered else "starting"
