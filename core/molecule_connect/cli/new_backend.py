"""``molecule new-backend``: a distribution to begin with."""

import shlex
import shutil
import sys
from pathlib import Path

import click

from molecule_connect.cli.scaffold import check_name, distribution_name, files
from molecule_connect.errors import ConfigError


@click.command("new-backend", short_help="Write the distribution of a backend of your own.")
@click.argument("name")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Where its folder goes; the current folder if not given.",
)
def new_backend(name: str, into: Path) -> None:
    """Write a folder molecule-connect-NAME: a backend that answers, its tests, and what an index needs.

    \b
    molecule new-backend acme
    molecule new-backend acme --into ~/projects
    """
    check_name(name)
    folder = into / distribution_name(name)
    _write(folder, files(name))
    click.echo(_next_steps(name, folder))


def _write(folder: Path, texts: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True)
        for path, text in texts.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise ConfigError(
            f"{error.filename} exists already, and nothing was written over it",
            hint="choose another name, or another place with --into DIR",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder} cannot be written: {error.strerror}", hint="choose another place with --into"
        ) from error


def _next_steps(name: str, folder: Path) -> str:
    python = _python()
    return "\n".join(
        [
            f"wrote {folder}",
            "next:",
            f"  cd {shlex.quote(str(folder))}",
            f'  {python} -m pip install -e ".[test]"',
            f"  {python} -m pytest",
            f'  molecule try {name} "hi"',
            f"then make {folder.name.replace('-', '_')}/__init__.py your own, choose a licence, and publish it:",
            f"  {python} -m pip install build twine",
            f"  {python} -m build",
            f"  {python} -m twine upload dist/*",
        ]
    )


def _python() -> str:
    """How this interpreter is called here: a bare name where that leads to the same environment."""
    found = shutil.which("python")
    is_same = found is not None and Path(found).parent == Path(sys.executable).parent
    return "python" if is_same else shlex.quote(sys.executable)
