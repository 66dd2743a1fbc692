"""Periodic cleanup."""

import asyncio

from molecule_connect_sandbox.platform import Platform

TICK = 15.0
# A workspace that was created by registering goes offline after this long without a heartbeat, in seconds.
BARE_STALE_AFTER = 180.0
RETENTION = 7 * 24 * 3600 * 1_000_000
HARD_RETENTION = 30 * 24 * 3600 * 1_000_000
ACKED_UPLOAD_LIFE = 3600 * 1_000_000


def sweep(platform: Platform) -> None:
    """Update the status of silent workspaces, and delete expired rows and uploads."""
    _mark_silent_workspaces(platform)
    _delete_uploads(platform)
    _delete_rows(platform)


def _mark_silent_workspaces(platform: Platform) -> None:
    now = platform.now()
    rules = (
        ("= 'external'", platform.generation.stale_after, "awaiting_agent"),
        ("!= 'external'", BARE_STALE_AFTER, "offline"),
    )
    for runtime, seconds, status in rules:
        silent = platform.store.workspaces(
            f"status IN ('online', 'degraded') AND runtime {runtime} AND coalesce(last_beat, 0) < ?",
            now - int(seconds * 1_000_000),
        )
        for workspace in silent:
            platform.set_status(workspace, status, f"WORKSPACE_{status.upper()}")


def _delete_uploads(platform: Platform) -> None:
    now = platform.now()
    platform.store.db.execute(
        "DELETE FROM uploads WHERE expires_at < ? OR acked_at < ?", (now, now - ACKED_UPLOAD_LIFE)
    )


def _delete_rows(platform: Platform) -> None:
    now = platform.now()
    if not platform.generation.seq:
        platform.store.db.execute("DELETE FROM activity WHERE created_at < ?", (now - RETENTION,))
        return
    platform.store.db.execute(
        "DELETE FROM activity WHERE created_at < ? OR created_at < ? AND seq <= "
        "(SELECT acked_seq FROM workspaces w WHERE w.id = activity.workspace_id)",
        (now - HARD_RETENTION, now - RETENTION),
    )


async def clean_up_periodically(platform: Platform) -> None:
    """Sweep every ``TICK`` seconds."""
    while True:
        await asyncio.sleep(TICK)
        sweep(platform)
