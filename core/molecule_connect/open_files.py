"""How many files and connections this process may open, and how many a number of workspaces needs."""

import resource

from molecule_connect.errors import ConfigError

# Journal, log, event loop, connections that workspaces share, and a few programs of a backend. Measured: 23 at rest.
SHARED = 48
# A lock, and a connection for a call; what else a workspace has is its event stream.
PER_WORKSPACE = 2
# macOS refuses a soft limit above this, although its hard limit has no end.
MOST_ON_MACOS = 10_240
HOW_TO_RAISE = "raise the limit (LimitNOFILE= in a systemd unit, 'ulimit -Hn' in a shell), or serve fewer workspaces"


def raise_limit() -> None:
    """Raise the soft limit of this process to its hard one, as far as the system allows it."""
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
    """How many this process may have open; None: there is no limit."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def most_streams(workspaces: int, limit: int | None) -> tuple[int | None, str]:
    """How many event streams may be open beside all that *workspaces* need, and a warning if those are too few.

    None: as many as are asked for. A workspace without a stream is polled.

    Raises:
        ConfigError: The workspaces can't be served under *limit* at all.
    """
    if limit is None:
        return None, ""
    least = SHARED + PER_WORKSPACE * workspaces
    needed = least + workspaces
    served = f"{workspaces} workspaces need" if workspaces > 1 else "a workspace needs"
    if limit < SHARED + workspaces:
        raise ConfigError(
            f"{served} {needed} open files, {SHARED + workspaces} at the least, and this process may open {limit}",
            hint=HOW_TO_RAISE,
        )
    if limit >= needed:
        return None, ""
    streams = max(0, limit - least)
    return streams, (
        f"{served} {needed} open files, and this process may open {limit}: "
        f"{workspaces - streams} of them get no event stream and are polled instead; {HOW_TO_RAISE}"
    )
