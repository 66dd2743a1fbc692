"""Serve a workspace, which machines share through a database, from one machine alone again."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from molecule_connect.files import files_folder
from molecule_connect.journal import copies, outbox
from molecule_connect.journal.journal import Journal
from molecule_connect.mirrors import JournalMirror, Lease, MemberInfo, MirrorError, WorkspaceOverview
from molecule_connect.worker.lease import lease
from molecule_connect.worker.sharing import RENEW_INTERVAL, SESSION, describe_machine

# Seconds between looks whether the database has everything.
_LOOK_INTERVAL = 1.0


async def leave(folder: Path, workspace_id: str, mirror: JournalMirror, *, notice: Callable[[str, str], None]) -> bool:
    """Make the journal in *folder* current, and remove the workspace from the database.

    It can be repeated after any interruption: the database has the whole workspace until it is removed from there, and
    this journal has it before that.

    Args:
        notice: Called with a text and a hint for the operator.

    Returns:
        Whether it was in the database. Otherwise, it is served from this machine alone already.

    Raises:
        LeaseError: A process of this machine serves it.
        MirrorError: A member has its lease, or the database can't be used.
        JournalError: The journal can't be used.
        ConfigError: Neither the database nor the journal has the workspace.
    """
    with lease(folder, workspace_id):
        async with Journal.open(folder, wall=time.time, notice=notice) as journal:
            found = await mirror.overview([workspace_id])
            if not found:
                _check_alone(journal, workspace_id, mirror.where)
            else:
                _check_free(found[0])
                async with _leased(mirror, workspace_id) as (session, taken):
                    files = files_folder(folder, workspace_id)
                    await _exchange(journal, mirror, session, taken, files, notice)
                    # Another machine can still take the workspace, so this one must not serve it alone yet.
                    await journal.writer.put(lambda db: outbox.leave(db, workspace_id), durable=True)
                    await mirror.delete(session, workspace_id)
            await journal.writer.put(lambda db: outbox.forget(db, workspace_id), durable=True)
            return bool(found)


def _check_alone(journal: Journal, workspace_id: str, where: str) -> None:
    """Check that a workspace which isn't in the database is served from this machine alone.

    Raises:
        MirrorError: It isn't known whether the journal is current.
        ConfigError: The journal doesn't have the workspace.
    """
    known = outbox.shared(journal.reader, workspace_id)
    if known is None:
        copies.check_known(journal.path, workspace_id)
    elif known.is_leaving and known.target == where:
        pass  # it was interrupted after the copy was deleted
    elif known.target != where:
        raise MirrorError(
            f"{workspace_id} isn't in {where}: it was shared through {known.target}", hint="pass the URL of that one"
        )
    else:
        raise MirrorError(
            f"{workspace_id} isn't in {where} any more: it left from another machine, or the database was replaced",
            hint="serve it from the machine where it left; this one has its messages as of when it served it last",
        )


def _check_free(found: WorkspaceOverview) -> None:
    if found.holder is not None and found.is_alive:
        raise MirrorError(
            f"{found.workspace_id} is served by process {found.holder.pid} on {found.holder.host}",
            hint="remove it from the list there, or stop that process; if it was killed, try again in"
            f" {SESSION:.0f} seconds",
        )


@contextlib.asynccontextmanager
async def _leased(mirror: JournalMirror, workspace_id: str) -> AsyncIterator[tuple[str, Lease]]:
    """A session, and the lease of the workspace, inside the block."""
    # It takes no share of the workspaces.
    info = MemberInfo(host=socket.gethostname(), pid=os.getpid(), machine=describe_machine(), capacity=0, listing="")
    session = await mirror.begin(info, seconds=SESSION)
    try:
        taken = await mirror.take(session, [workspace_id])
        if not taken:
            raise MirrorError(
                f"another machine has just taken {workspace_id}",
                hint="remove it from the lists of the other machines, then try again",
            )
        renewing = asyncio.ensure_future(_renew(mirror, session, info))
        try:
            yield session, taken[0]
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
    finally:
        with contextlib.suppress(MirrorError):
            await mirror.end(session)


async def _renew(mirror: JournalMirror, session: str, info: MemberInfo) -> None:
    with contextlib.suppress(MirrorError):
        while True:
            await asyncio.sleep(RENEW_INTERVAL)
            await mirror.renew(session, info, seconds=SESSION)


async def _exchange(
    journal: Journal, mirror: JournalMirror, session: str, taken: Lease, files: Path, notice: Callable[[str, str], None]
) -> None:
    """Load the copy unless the journal is current, and ship the changes that it doesn't have."""
    async with journal.sharing(mirror, lost=lambda workspace_id: None, notice=notice) as shipper:
        shipper.session = session
        await shipper.begin(taken, has_file=lambda name: (files / name).exists())
        shipped = asyncio.ensure_future(shipper.flush(taken.workspace_id))
        while not shipped.done():
            await asyncio.wait([shipped], timeout=_LOOK_INTERVAL)
            if shipper.error is not None:
                raise shipper.error
        await shipped
