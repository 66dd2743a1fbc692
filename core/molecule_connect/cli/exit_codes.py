"""Which error ends the program with which code."""

from molecule_connect import errors

CLEAN = 0
BUG = 1
REFUSED = 2
TOKEN_REFUSED = 3
WORKSPACE_DELETED = 4
SERVED_ELSEWHERE = 5
OUT_OF_REACH = 6
NOT_NOW = 7
# What may heal although nobody changes anything, so a restart is right.
MAY_HEAL = frozenset({TOKEN_REFUSED, OUT_OF_REACH, NOT_NOW})
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
    (errors.PermanentPlatformError, NOT_NOW),
    (errors.TransientPlatformError, OUT_OF_REACH),
)


def exit_code(error: BaseException) -> int:
    """The code for *error*; one that was not raised on purpose is a bug.

    Of several workspaces the lowest, among those that may heal where there are some.
    """
    if isinstance(error, errors.FleetError):
        codes = {exit_code(one) for one in error.errors.values()}
        return BUG if BUG in codes else min(codes & MAY_HEAL or codes)
    code = next((code for kind, code in _CODES if isinstance(error, kind)), BUG)
    return NOT_NOW if code == REFUSED and isinstance(error, errors.MoleculeError) and error.may_heal else code


def decisive(error: BaseException) -> BaseException:
    """The error that a group of them is about: the first that was raised on purpose, else the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [decisive(inner) for inner in error.exceptions]
    return next((leaf for leaf in leaves if isinstance(leaf, errors.MoleculeError)), leaves[0])
