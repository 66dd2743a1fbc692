"""The limit on open files and connections of this process."""

import resource

from molecule_connect.errors import ConfigError

# Journal, log, event loop, shared connections and a few child processes of backends. Measured: 23 when idle.
SHARED = 48
# A lock file and a connection for calls. The event stream of a workspace comes on top.
PER_WORKSPACE = 2
# macOS rejects a higher soft limit even if the hard limit is infinite.
MOST_ON_MACOS = 10_240
HOW_TO_RAISE = "raise the limit (LimitNOFILE= in a systemd unit, 'ulimit -Hn' in a shell), or serve fewer workspaces"


def raise_limit() -> None:
    """Raise the soft limit of this process to the hard limit, or as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, MOST_ON_MACOS):
        if soft == hard or (wanted != resource.RLIM_INFINITY and soft >= wanted):
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            continue
        return


def limit() -> int | None:
    """Return the soft limit of this process, or None if it is unlimited."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def most_streams(workspaces: int, limit: int | None) -> tuple[int | None, str]:
    """Return how many event streams fit into *limit*, and a warning if some workspaces get none.

    None means no restriction. Workspaces without a stream are polled.

    Raises:
        ConfigError: *limit* is too low to serve the workspaces at all.
    """
    if limit is None:
        return None, ""
    least = SHARED + PER_WORKSPACE * workspaces
    needed = least + workspaces
    served = f"{workspaces} workspaces need" if workspaces > 1 else "a workspace needs"
    if limit < SHARED + workspaces:
        raise ConfigError(
            f"{served} {needed} open files, at least {SHARED + workspaces}, but this process may open only {limit}",
            hint=HOW_TO_RAISE,
        )
    if limit >= needed:
        return None, ""
    streams = max(0, limit - least)
    return streams, (
        f"{served} {needed} open files, but this process may open only {limit}: "
        f"{workspaces - streams} of them are polled, without an event stream; {HOW_TO_RAISE}"
    )
