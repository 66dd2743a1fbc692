"""The workspaces of a list after it was read: those to serve, and those with faults."""

from collections.abc import Iterable

import attrs

from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.errors import ConfigError, MoleculeError


@attrs.frozen(kw_only=True)
class JournalSettings:
    """Where the journal is shared with other machines.

    Attributes:
        url: Of the database, perhaps with a password; empty if it isn't shared.
        capacity: Number of workspaces that one process serves at most; 0 for all.
    """

    url: str = attrs.field(default="", repr=False)
    capacity: int = 0


@attrs.frozen
class Fault:
    """An error in a list of workspaces, in one line.

    Attributes:
        line: Where it is in its file, from 1; None if that is unknown.
    """

    text: str
    hint: str = ""
    line: int | None = None

    @classmethod
    def of(cls, error: MoleculeError, line: int | None = None) -> "Fault":
        """*error* as a fault."""
        return cls(str(error), error.hint, line)

    def __str__(self) -> str:
        return f"{self.text} -> {self.hint}" if self.hint else self.text


class WorkspacesError(ConfigError):
    """A list of workspaces can't be served.

    Attributes:
        source: The file or the variable.
        faults: All errors in it, one line each.
        lines: Where each of them is in the file, from 1; None if unknown.
    """

    def __init__(self, source: str, faults: Iterable[Fault | str]) -> None:
        self.source = source
        found = tuple(faults)
        self.faults = tuple(map(str, found))
        self.lines = tuple(fault.line if isinstance(fault, Fault) else None for fault in found)
        super().__init__(f"{source}: {'; '.join(self.faults)}", hint="fix the errors above; nothing was started")


@attrs.frozen(kw_only=True)
class Refused:
    """A workspace that can't be served.

    Attributes:
        entry: Its number in the list, from 1; 0 if there is no list.
        place: How messages name it, without its id; empty for ``workspace N``.
        workspace_id: None if it has no valid id.
    """

    entry: int
    workspace_id: str | None
    faults: tuple[Fault, ...]
    place: str = ""

    @classmethod
    def of(cls, settings: WorkspaceSettings, faults: Iterable[Fault]) -> "Refused":
        """A workspace that can't be served with these settings."""
        return cls(entry=settings.entry, place=settings.place, workspace_id=settings.workspace_id, faults=tuple(faults))

    @property
    def label(self) -> str:
        """Identifies the block in messages about the list."""
        place = self.place or (f"workspace {self.entry}" if self.entry else "")
        if not place:
            return f"workspace {self.workspace_id}"
        return place + (f" ({self.workspace_id})" if self.workspace_id else "")

    @property
    def name(self) -> str:
        """The id of the workspace, or the label if it has none."""
        return self.workspace_id or self.label

    @property
    def lines(self) -> list[str]:
        """The faults, each with the label."""
        return [f"{self.label}: {fault}" for fault in self.faults]


@attrs.frozen(kw_only=True)
class Block:
    """A workspace of a list as it was read.

    Attributes:
        entry: Its number in the whole list, from 1.
        place: How messages name it, without its id: ``workspace 2``, or a file that can't be read.
        file: The included file that it is in; empty for the list itself.
        workspace_id: None if it has no valid id.
        settings: None if the block isn't a table.
    """

    entry: int
    place: str
    file: str = ""
    workspace_id: str | None = None
    settings: WorkspaceSettings | None = None
    faults: tuple[Fault, ...] = ()

    @property
    def refused(self) -> Refused:
        """The block as one that can't be served."""
        return Refused(entry=self.entry, place=self.place, workspace_id=self.workspace_id, faults=self.faults)

    @property
    def is_file(self) -> bool:
        """Whether it stands for an included file that can't be read."""
        return self.place == self.file != ""

    @property
    def is_enabled(self) -> bool:
        """Whether it is to be served."""
        return self.settings is None or self.settings.enabled


def lines_of(refused: Iterable[Refused]) -> list[str]:
    """The lines of all *refused*, in the order of the list."""
    return [line for one in sorted(refused, key=lambda one: one.entry) for line in one.lines]


@attrs.frozen(kw_only=True)
class FleetLimits:
    """Limits for all workspaces of a process together. None: no limit.

    Attributes:
        max_cost_per_day: US dollars, as reported by the backends.
        concurrency: Messages handled at once.
    """

    max_cost_per_day: float | None = None
    concurrency: int | None = None


NO_LIMITS = FleetLimits()


@attrs.frozen(kw_only=True)
class Listing:
    """The workspaces to serve, and those of the list that can't be served.

    Attributes:
        source: The file or the variable; empty for a single workspace.
        fleet: The limits for all of them.
    """

    source: str = ""
    settings: tuple[WorkspaceSettings, ...] = ()
    refused: tuple[Refused, ...] = ()
    fleet: FleetLimits = NO_LIMITS

    @classmethod
    def of(cls, source: str, blocks: Iterable[Block], fleet: FleetLimits) -> "Listing":
        """The enabled *blocks*, divided by whether they have faults."""
        settings: list[WorkspaceSettings] = []
        refused: list[Refused] = []
        for block in blocks:
            if not block.is_enabled:
                continue
            if block.faults or block.settings is None:
                refused.append(block.refused)
            else:
                settings.append(block.settings)
        return cls(source=source, settings=tuple(settings), refused=tuple(refused), fleet=fleet)

    def whole(self) -> list[WorkspaceSettings]:
        """All workspaces of the list.

        Raises:
            WorkspacesError: One of them can't be served.
        """
        if self.refused:
            raise WorkspacesError(self.source, lines_of(self.refused))
        return list(self.settings)
