"""One table from errors to exit codes."""

import errno
import sqlite3

import pytest

from molecule_connect import errors
from molecule_connect.cli.errors import decisive, exit_code
from molecule_connect.mirrors import MirrorError, MirrorUnreachableError, SessionEndedError

TRANSIENT = errors.TransientPlatformError("no answer", operation="register")


def caused_by(error: errors.MoleculeError, cause: Exception) -> errors.MoleculeError:
    error.__cause__ = cause
    return error


def full_disk() -> sqlite3.Error:
    db = sqlite3.connect(":memory:")
    db.execute("PRAGMA max_page_count=1")
    try:
        db.execute("CREATE TABLE t (x)")
    except sqlite3.Error as exc:
        return exc
    finally:
        db.close()
    raise AssertionError


REFUSED = errors.PermanentPlatformError("no", operation="register", status=400, body="")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.OptionError("x"), 2),
        (errors.PluginError("x"), 2),
        (errors.BackendNotFoundError("x", available=()), 2),
        (errors.JournalError("x"), 2),
        (REFUSED, 7),
        (caused_by(errors.ConfigError("x"), OSError(errno.ENOSPC, "x")), 7),
        (caused_by(errors.ConfigError("x"), OSError(errno.EMFILE, "x")), 7),
        (caused_by(errors.ConfigError("x"), PermissionError(errno.EACCES, "x")), 2),
        (caused_by(errors.JournalError("x"), full_disk()), 7),
        (errors.AuthError("x", operation="register", status=401, body=""), 3),
        (errors.WorkspaceDeletedError("x"), 4),
        (errors.LeaseError("x"), 5),
        (MirrorError("x"), 2),
        (SessionEndedError("x"), 2),
        (MirrorUnreachableError("x"), 6),
        (TRANSIENT, 6),
        (errors.PageTooLargeError("x", operation="activity"), 6),
        (errors.CloseError("x"), 1),
        (errors.BackendError("x"), 1),
        (errors.FleetError({"a": TRANSIENT, "b": errors.LeaseError("x")}, of=2), 6),
        (errors.FleetError({"a": errors.LeaseError("x"), "b": errors.WorkspaceDeletedError("x")}, of=2), 4),
        (errors.FleetError({"a": TRANSIENT, "b": RuntimeError("x")}, of=3), 1),
        (RuntimeError("x"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_error_has_its_code(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_every_error_class_was_thought_of() -> None:
    def kinds(base: type[Exception]) -> set[type[Exception]]:
        return {base}.union(*(kinds(sub) for sub in base.__subclasses__()))

    ours = {kind for kind in kinds(errors.MoleculeError) if kind.__module__ == errors.__name__}
    ours.remove(errors.FleetError)  # its code is that of one that it holds
    left_at_1 = {kind.__name__ for kind in ours if exit_code(kind.__new__(kind)) == 1}
    assert left_at_1 == {"MoleculeError", "BackendError", "CloseError", "PlatformError"}


def test_intended_error_of_a_group_counts() -> None:
    group = ExceptionGroup("both", [RuntimeError("noise"), ExceptionGroup("inner", [TRANSIENT])])

    assert decisive(group) is TRANSIENT
    assert decisive(REFUSED) is REFUSED
