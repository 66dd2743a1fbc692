"""Which messages ``molecule messages list`` shows, and following their changes."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs

from molecule_connect.console.names import PeerNames
from molecule_connect.errors import ConfigError, JournalError, MoleculeError
from molecule_connect.journal.inspect import Inspection, Key, MessageSummary, Only
from molecule_connect.journal.journal import FILE_NAME
from molecule_connect.journal.models import State
from molecule_connect.models import canonical_id

PEOPLE = "people"
_PEER = "peer:"
# A label that console.names made: a name and the beginning of an id, or only that.
_LABEL = re.compile(r"(?:(?P<name>.*) \()?(?P<start>[^()\s]+)…\)?")
# Names of senders in a hint.
_MOST_KNOWN = 10
# Changes are looked for again this long after the newest one that was seen, in seconds: commits of several processes
# can become visible in another order than that of their times.
OVERLAP = 10.0
# Messages whose state is remembered while following.
_MOST_SEEN = 20_000


@attrs.frozen(kw_only=True)
class Query:
    """Which messages are shown.

    Attributes:
        sender: ``people``, ``peer:ID``, ``peer:NAME`` or a name; empty for all.
        since: Seconds since 1970; None for no limit.
    """

    workspace_id: str | None = None
    states: tuple[State, ...] = ()
    sender: str = ""
    since: float | None = None
    search: str = ""

    def only(self, journal: Inspection) -> Only:
        """The condition for *journal*.

        Raises:
            ConfigError: No sender has this name, or more than one.
        """
        callers = _callers(self.sender, journal, self.workspace_id) if self.sender else None
        since = None if self.since is None else round(self.since * 1e6)
        return Only(callers=callers, since=since, search=self.search)


@attrs.frozen
class Entry:
    """A message with its short id and the label of its sender."""

    message: MessageSummary
    row_id: str
    sender: str


def entries(journal: Inspection, found: Iterable[MessageSummary]) -> list[Entry]:
    """The messages *found* in *journal* as they are shown."""
    found = list(found)
    names = {name: PeerNames(journal.peer_names(name)) for name in {one.workspace_id for one in found}}
    ids = journal.short_ids(one.key for one in found)
    return [
        Entry(one, row_id, str(names[one.workspace_id].label(one.caller_id)))
        for one, row_id in zip(found, ids, strict=True)
    ]


def _callers(sender: str, journal: Inspection, workspace_id: str | None) -> tuple[str | None, ...]:
    if sender.strip().casefold() == PEOPLE:
        return (None,)
    wanted = sender.strip()
    is_peer = wanted.casefold().startswith(_PEER)
    wanted = wanted[len(_PEER) :].strip() if is_peer else wanted
    written = journal.callers()
    known = [PeerNames(journal.peer_names(name)) for name in ([workspace_id] if workspace_id else journal.workspaces())]
    if not wanted or canonical_id(wanted) in written:
        return (canonical_id(wanted),)
    label = _LABEL.fullmatch(wanted)
    name, start = (label["name"] or label["start"], label["start"]) if label else (wanted, wanted)
    found = {peer_id for names in known for peer_id in names.find(name)}
    if label and label["name"]:
        found = {peer_id for peer_id in found if peer_id.startswith(start)}
    found = found or {peer_id for peer_id in written if peer_id.casefold().startswith(start.casefold())}
    if len(found) > 1:
        raise ConfigError(
            f"{wanted!r} names {len(found)} peers: {', '.join(sorted(found))}", hint="pass one of them: --from peer:ID"
        )
    if found:
        return tuple(found)
    if is_peer:
        return (canonical_id(wanted),)
    labels = sorted({str(names.label(peer_id)) for names in known for peer_id in written})[:_MOST_KNOWN]
    raise ConfigError(
        f"no message is from {wanted!r}",
        hint=f"senders in the journal: {', '.join([PEOPLE, *labels])}; --from peer:ID accepts any id",
    )


class Follower:
    """The messages of a journal and their changes, also of a journal that is created or replaced meanwhile.

    Iterate over it, with a pause after each item: the messages that are new or changed, oldest change first, or the
    error if the journal can't be read at the moment. An error at the first step is raised.

    Args:
        limit: The number of messages in the first item; None for all.
        wall: Returns seconds since 1970.
    """

    def __init__(self, folder: Path, query: Query, limit: int | None, *, wall: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._path = folder / FILE_NAME
        self._query = query
        self._limit = limit
        self._wall = wall
        self._has_begun = False
        # Whether the journal has more than one workspace.
        self.has_several = False
        # When the newest change happened that was seen, and what was seen of each message that changed lately.
        self._newest: float | None = None
        self._seen: dict[Key, tuple[object, ...]] = {}

    def __iter__(self) -> Iterator[list[Entry] | MoleculeError]:
        while True:
            if (file := _identity(self._path)) is None:
                self._has_begun = True
                yield ConfigError(f"there is no journal in {self._folder} yet", hint="start 'molecule connect'")
                continue
            try:
                with Inspection.open(self._folder) as journal:
                    yield from self._follow(journal, file)
            except (ConfigError, JournalError) as exc:
                if not self._has_begun:
                    raise
                yield exc

    def _follow(self, journal: Inspection, file: tuple[int, int]) -> Iterator[list[Entry]]:
        known: int | None = None
        while _identity(self._path) == file:
            revision = journal.revision()
            found = [] if revision == known else self._changes(journal)
            known, self._has_begun = revision, True
            yield found

    def _changes(self, journal: Inspection) -> list[Entry]:
        filters = (self._query.workspace_id, self._query.states, self._only(journal))
        self.has_several = len(journal.workspaces()) > 1
        if self._newest is None:
            found = journal.summaries(*filters, limit=self._limit)[::-1]
            self._newest = min(journal.newest_change(), self._wall())
            changed = journal.changed_since(self._newest - OVERLAP, *filters)
        else:
            changed = journal.changed_since(self._newest - OVERLAP, *filters)
            found = [one for one in changed if self._seen.get(one.key) != _standing(one)]
            # The writer's clock may have been set back.
            self._newest = min(max(self._newest, journal.newest_change()), self._wall())
        self._seen |= {one.key: _standing(one) for one in (*found, *changed)}
        for key in list(self._seen)[:-_MOST_SEEN]:
            del self._seen[key]
        return entries(journal, found)

    def _only(self, journal: Inspection) -> Only:
        try:
            return self._query.only(journal)
        except ConfigError:
            if not self._has_begun:
                raise
            # A new journal learns the names of peers later.
            return Only(callers=())


def _standing(message: MessageSummary) -> tuple[object, ...]:
    return message.state, message.attempt, message.crash_count, message.replay, message.error, message.reason


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
