"""The state of the workspaces in a state folder, from outside their processes: lease, status file and journal."""

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
from molecule_connect.worker.status_file import Problem, SavedStatus, read_refused_blocks, read_status

_SHOWN_RUNNING = 20


@attrs.frozen(kw_only=True)
class LocalStatus:
    """The state of one workspace.

    Attributes:
        state: While a process holds the lease: running, paused, trouble, starting, stopping, suspended (by SIGSTOP or
            Ctrl-Z) or silent. Otherwise: stopped, ended (with an error), died (without one), or refused (a running
            process can't serve its block of the list).
        status: The status file, unless an earlier process left it.
        counts: Messages by state; None if the journal can't be read.
        oldest: When the oldest waiting message was written, in seconds since 1970.
        keeper: The process that serves other workspaces, and gave up this one or refuses its block.
    """

    workspace_id: str
    state: str
    holder: Holder | None
    status: SavedStatus | None
    problems: tuple[Problem, ...] = ()
    counts: dict[State, int] | None = None
    running: tuple[MessageSummary, ...] = ()
    oldest: float | None = None
    keeper: int | None = None

    @property
    def is_well(self) -> bool:
        """Whether the workspace is served without problems that affect messages. A pause is intended."""
        return self.state in ("running", "paused")

    @property
    def is_expected(self) -> bool:
        """Whether the workspace should be served now: it is, a running process gave it up, or it stopped by an error.

        A start that failed before the workspace was registered doesn't count: it may have been a mistake.
        """
        if self.state not in ("ended", "died"):
            return not self.is_stopped
        return self.keeper is not None or (self.status is not None and (self.status.registered or self.status.paused))

    @property
    def is_stopped(self) -> bool:
        """Whether the workspace was stopped on purpose."""
        return self.state == "stopped"


def local_statuses(folder: Path, workspace_id: str | None, now: float) -> list[LocalStatus]:
    """The states of all workspaces with files in *folder*, or of the given one, with files or without.

    Raises:
        LeaseError: The folder belongs to another user.
    """
    with contextlib.ExitStack() as stack:
        journal, journal_error = None, ""
        try:
            journal = stack.enter_context(Inspection.open(folder))
        except ConfigError:
            pass
        except JournalError as exc:
            journal_error = str(exc)
        refused = _refused(folder)
        names = [workspace_id] if workspace_id else sorted({*_names(folder, journal), *refused})
        return _with_keepers([_find(folder, name, journal, journal_error, now, refused.get(name)) for name in names])


def _refused(folder: Path) -> dict[str, tuple[int, Problem]]:
    """The blocks that running processes refuse, each with the process."""
    files = read_refused_blocks(folder)
    holders = [holder(folder, path.stem) for path in folder.glob("*.lock")] if files else []
    running = {(one.pid, one.host) for one in holders if one is not None}
    return {
        name: (file.pid, problem)
        for file in files
        if (file.pid, file.host) in running
        for name, problem in file.blocks.items()
    }


def _with_keepers(statuses: list[LocalStatus]) -> list[LocalStatus]:
    """Set ``keeper`` of the workspaces whose process gave them up and still serves another."""
    running = {(one.holder.pid, one.holder.host) for one in statuses if one.holder is not None}
    return [
        attrs.evolve(one, keeper=one.status.pid)
        if one.state == "ended" and one.status and (one.status.pid, one.status.host) in running
        else one
        for one in statuses
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
) -> LocalStatus:
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
    found = LocalStatus(
        workspace_id=workspace_id, state=state, holder=process, status=status, problems=problems, keeper=keeper
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
    """Whether the process was stopped and not continued. False if unknown; it turns silent after a while."""
    if not process.pid or process.host != socket.gethostname():
        return False
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[:1] == ["T"]
