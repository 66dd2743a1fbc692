"""Every way a command can fail, as one line of what, one line of what to do, and an exit code."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import click

from molecule_connect.cli import exit_codes
from molecule_connect.console.sanitize import failure
from molecule_connect.errors import ConfigError, MoleculeError, without_credentials

ISSUE_HINT = "this is a bug in molecule-connect or in a plugin: report it with the lines above"

_NEXT_STEPS = {
    exit_codes.TOKEN_REFUSED: "give a current token (canvas, workspace tokens)",
    exit_codes.WORKSPACE_DELETED: "make a new workspace on the platform, and start with its id",
    exit_codes.SERVED_ELSEWHERE: "'molecule status' tells which process that is",
    exit_codes.NOT_NOW: "try again later; if it goes on, 'molecule doctor WORKSPACE_ID' looks for what is in the way",
    exit_codes.OUT_OF_REACH: "try again later; 'molecule doctor WORKSPACE_ID' looks for what is in the way",
}


class Fail(Protocol):
    """Shows why the program ends."""

    def __call__(self, text: str, hint: str, exit_code: int, traceback: str = "") -> None: ...


@contextlib.contextmanager
def reported(fail: Fail) -> Iterator[None]:
    """Let *fail* tell whatever goes wrong inside, then exit with its code."""
    try:
        yield
    except (click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
        raise
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted", "", exit_codes.INTERRUPTED)
        sys.exit(exit_codes.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone (`molecule backends | head -1`).
        give_output_up()
        sys.exit(exit_codes.BROKEN_PIPE)
    except Exception as error:  # the top of the program: nobody above could tell it better
        sys.exit(_tell(fail, error))


def fail_on_stderr(text: str, hint: str, exit_code: int, traceback: str = "") -> None:
    """The plain way to show why the program ends."""
    click.echo(failure(text, hint, traceback), err=True)


def next_step(error: MoleculeError) -> str:
    """The hint of *error*; where it has none, what helps with most errors of its kind."""
    general = "mend what it names, then try again; 'molecule doctor WORKSPACE_ID' looks at everything else"
    return error.hint or _NEXT_STEPS.get(exit_codes.exit_code(error), general)


def _tell(fail: Fail, error: BaseException) -> int:
    error = exit_codes.decisive(error)
    if isinstance(error, click.ClickException):
        fail(without_credentials(error.format_message()), _usage_hint(error), error.exit_code)
        return error.exit_code
    if isinstance(error, OSError) and _is_of_output(error):
        error = _no_output(error)
    elif isinstance(error, FileNotFoundError) and _is_nowhere():
        error = ConfigError(
            "the folder that this was started in was deleted", hint="change to one that is there, or give whole paths"
        )
    code = exit_codes.exit_code(error)
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


def _is_of_output(error: OSError) -> bool:
    from traceback import walk_tb

    # All commands print by it, and what it does beside writing raises nothing of the kind.
    return any(frame.f_code is click.echo.__code__ for frame, _ in walk_tb(error.__traceback__))


def _no_output(error: OSError) -> ConfigError:
    give_output_up()
    return ConfigError(
        f"standard output cannot be written: {error.strerror or type(error).__name__}",
        hint="make room there, or send the output elsewhere, then try again",
    )


def _is_nowhere() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def give_output_up() -> None:
    """Nobody reads what was printed, or nothing holds it."""
    # What could not be written is still in the buffer, and the interpreter's own flush must not complain.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
