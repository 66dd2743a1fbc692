"""How the connectors of a state folder are, found out without any of them: lease, status file and journal."""

import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path

import attrs

from molecule_connect.errors import ConfigError, JournalError
from molecule_connect.journal.inspect import Inspection, MessageSummary
from molecule_connect.journal.models import State
from molecule_connect.models import canonical_id
from molecule_connect.worker.lease import Holder, holder
from molecule_connect.worker.refused_blocks import read_refused_blocks
from molecule_connect.worker.status import Problem, SavedStatus, read_status

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
    running: tuple[MessageSummary, ...] = ()
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
    journal_error: str,
    now: float,
    refused: tuple[int, Problem] | None,
) -> Found:
    status, process = read_status(folder, workspace_id), holder(folder, workspace_id)
    if process is not None and status is not None and not status.is_of(process.pid):
        status = None
    problems = status.problems(now) if status is not None and process is not None else ()
    if journal_error:
        problems = (*problems, Problem(part="journal", reason=journal_error, since=now))
    keeper = None
    if refused is not None:
        problems = (*problems, refused[1])
        keeper = refused[0] if process is None else None
    state = _state(status, process, problems, now) if keeper is None else "refused"
    found = Found(
        workspace_id=workspace_id, state=state, holder=process, status=status, ailments=problems, keeper=keeper
    )
    if journal is None:
        return found
    oldest = journal.oldest(workspace_id)
    return attrs.evolve(
        found,
        counts=journal.counts(workspace_id),
        running=tuple(journal.summaries(workspace_id, [State.RUNNING], limit=_SHOWN_RUNNING)),
        oldest=oldest / 1e6 if oldest is not None else None,
    )


def _state(status: SavedStatus | None, process: Holder | None, problems: Sequence[Problem], now: float) -> str:
    if process is None:
        return "stopped" if status is None else "ended" if status.ended else "died"
    if _is_suspended(process):
        return "suspended"
    return "starting" if status is None else status.state(problems, now)


def _is_suspended(process: Holder) -> bool:
    """Whether the process was stopped and not continued. False if that can't be seen: it turns silent after a while."""
    if not process.pid or process.host != socket.gethostname():
        return False
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[:1] == ["T"]
