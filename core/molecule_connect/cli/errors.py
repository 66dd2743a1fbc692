"""Error reports of commands: a line with the error, a line with the hint, and an exit code."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import click

from molecule_connect import errors
from molecule_connect.console.sanitize import failure
from molecule_connect.errors import ConfigError, FleetError, MoleculeError, without_credentials

CLEAN = 0
BUG = 1
REFUSED = 2
TOKEN_REFUSED = 3
WORKSPACE_DELETED = 4
SERVED_ELSEWHERE = 5
OUT_OF_REACH = 6
NOT_NOW = 7
# A restart may help, without any change.
MAY_RECOVER = frozenset({TOKEN_REFUSED, OUT_OF_REACH, NOT_NOW})
# The codes with which a shell reports SIGINT and SIGPIPE.
INTERRUPTED = 130
BROKEN_PIPE = 141

ISSUE_HINT = "this is a bug in molecule-connect or in a plugin: report it with the lines above"

# The first class that fits decides, so a class precedes its bases.
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
_NEXT_STEPS = {
    TOKEN_REFUSED: "use a current token (canvas, workspace tokens)",
    WORKSPACE_DELETED: "create a new workspace on the platform and start with its id",
    SERVED_ELSEWHERE: "'molecule status' shows which process serves it",
    NOT_NOW: "try again later; if it persists, 'molecule doctor WORKSPACE_ID' looks for the cause",
    OUT_OF_REACH: "try again later; 'molecule doctor WORKSPACE_ID' looks for the cause",
}


class Fail(Protocol):
    """Shows why the program exits."""

    def __call__(self, text: str, hint: str, exit_code: int, traceback: str = "") -> None: ...


def exit_code(error: BaseException) -> int:
    """The exit code for *error*. Unexpected errors are bugs.

    For several workspaces, the lowest of their codes, preferring codes that may recover.
    """
    if isinstance(error, FleetError):
        codes = {exit_code(one) for one in error.errors.values()}
        return BUG if BUG in codes else min(codes & MAY_RECOVER or codes)
    # Here, because help needs no attrs.
    from molecule_connect.mirrors import MirrorError, MirrorUnreachableError

    if isinstance(error, MirrorError):
        return OUT_OF_REACH if isinstance(error, MirrorUnreachableError) else REFUSED
    code = next((code for kind, code in _CODES if isinstance(error, kind)), BUG)
    return NOT_NOW if code == REFUSED and isinstance(error, MoleculeError) and error.may_heal else code


def decisive(error: BaseException) -> BaseException:
    """The error of a group that is reported: the first one that was raised on purpose, or else the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [decisive(inner) for inner in error.exceptions]
    return next((leaf for leaf in leaves if isinstance(leaf, MoleculeError)), leaves[0])


@contextlib.contextmanager
def reported(fail: Fail) -> Iterator[None]:
    """Report any error with *fail*, then exit with its code."""
    try:
        yield
    except (click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
        raise
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted", "", INTERRUPTED)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of the output has exited (`molecule backends | head -1`).
        discard_output()
        sys.exit(BROKEN_PIPE)
    except Exception as error:  # the top of the program
        sys.exit(_report(fail, error))


def fail_on_stderr(text: str, hint: str, exit_code: int, traceback: str = "") -> None:
    """Implements ``Fail`` without a screen."""
    click.echo(failure(text, hint, traceback), err=True)


def next_step(error: MoleculeError) -> str:
    """The hint of *error*, or one for errors of its kind."""
    general = "fix this, then try again; 'molecule doctor WORKSPACE_ID' checks everything else"
    return error.hint or _NEXT_STEPS.get(exit_code(error), general)


def _report(fail: Fail, error: BaseException) -> int:
    error = decisive(error)
    if isinstance(error, click.ClickException):
        fail(without_credentials(error.format_message()), _usage_hint(error), error.exit_code)
        return error.exit_code
    if isinstance(error, OSError) and _is_output_error(error):
        error = _output_error(error)
    elif isinstance(error, FileNotFoundError) and _is_working_directory_gone():
        error = ConfigError("the current folder was deleted", hint="change to another folder, or use absolute paths")
    code = exit_code(error)
    if isinstance(error, MoleculeError):
        fail(str(error), next_step(error), code)
    else:
        import traceback

        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        lines = "".join(traceback.format_exception(error))
        fail(without_credentials(text), ISSUE_HINT, code, without_credentials(lines))
    return code


def _usage_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"see '{context.command_path} --help'" if context is not None else "see 'molecule --help'"


def _is_output_error(error: OSError) -> bool:
    from traceback import walk_tb

    # All commands print with it, and nothing else in it raises an OSError.
    return any(frame.f_code is click.echo.__code__ for frame, _ in walk_tb(error.__traceback__))


def _output_error(error: OSError) -> ConfigError:
    discard_output()
    return ConfigError(
        f"standard output cannot be written: {error.strerror or type(error).__name__}",
        hint="free disk space, or redirect the output, then try again",
    )


def _is_working_directory_gone() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def discard_output() -> None:
    """Send the rest of standard output to ``/dev/null``."""
    # Unwritten output is still in the buffer, and the interpreter's own flush must not fail.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
