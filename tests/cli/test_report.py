"""Whatever ends a command comes with a next step."""

import click
import pytest

from molecule_connect import errors
from molecule_connect.cli.report import reported

ERRORS = [
    errors.MoleculeError("x"),
    errors.ConfigError("x"),
    errors.LeaseError("x"),
    errors.WorkspaceDeletedError("x"),
    errors.AuthError("x", operation="register", status=401, body=""),
    errors.TransientPlatformError("x", operation="register", status=500),
    click.ClickException("x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_without_a_hint_ends_with_a_next_step_all_the_same(error: Exception) -> None:
    told: list[tuple[str, str]] = []

    def fail(text: str, hint: str, exit_code: int, traceback: str = "") -> None:
        told.append((text, hint))

    with pytest.raises(SystemExit), reported(fail):
        raise error

    ((text, hint),) = told
    assert text == "x"
    assert hint


def test_a_hint_of_its_own_is_kept() -> None:
    hints: list[str] = []

    def fail(text: str, hint: str, exit_code: int, traceback: str = "") -> None:
        hints.append(hint)

    with pytest.raises(SystemExit), reported(fail):
        raise errors.ConfigError("x", hint="do this")

    assert hints == ["do this"]
