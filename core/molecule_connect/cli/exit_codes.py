"""Which error ends the program with which code."""

from molecule_connect import errors

CLEAN = 0
BUG = 1
REFUSED = 2
TOKEN_REFUSED = 3
WORKSPACE_DELETED = 4
SERVED_ELSEWHERE = 5
OUT_OF_REACH = 6
# As a shell shows a death by SIGINT and by SIGPIPE.
INTERRUPTED = 130
BROKEN_PIPE = 141

# The first class that fits decides, so a class stands before its bases.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.ConfigError, REFUSED),
    (errors.ArchiveError, REFUSED),
    (errors.JournalError, REFUSED),
    (errors.LeaseError, SERVED_ELSEWHERE),
    (errors.WorkspaceDeletedError, WORKSPACE_DELETED),
    (errors.AuthError, TOKEN_REFUSED),
    (errors.PermanentPlatformError, REFUSED),
    (errors.TransientPlatformError, OUT_OF_REACH),
)


def exit_code(error: BaseException) -> int:
    """The code for *error*; what nobody raised on purpose is a bug. Of several workspaces, the lowest."""
    if isinstance(error, errors.FleetError):
        return min(exit_code(one) for one in error.errors.values())
    return next((code for kind, code in _CODES if isinstance(error, kind)), BUG)


def decisive(error: BaseException) -> BaseException:
    """The error that a group of them is about: the first that was raised on purpose, else the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [decisive(inner) for inner in error.exceptions]
    return next((leaf for leaf in leaves if isinstance(leaf, errors.MoleculeError)), leaves[0])
