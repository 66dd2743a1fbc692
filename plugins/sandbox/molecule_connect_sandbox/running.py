"""The sandboxes that ``molecule sandbox --serve`` runs on this machine, so that other commands find them.

Each has a file with its address. It contains no token: the sandbox recognizes programs of the same user.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import click

from molecule_connect import files


@attrs.frozen(kw_only=True)
class RunningSandbox:
    """A sandbox. ``boot`` proves that the program at the address is the one that wrote the file."""

    url: str
    boot: str
    pid: int
    started: float


def sandboxes_folders(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Where these files are: below the state folder if one is set, and beside the default one."""
    bases = [Path(environ["MOLECULE_STATE_DIR"])] if environ.get("MOLECULE_STATE_DIR") else []
    with contextlib.suppress(RuntimeError):  # The user has no home directory.
        home = environ.get("HOME")
        bases.append((Path(home) if home else Path.home()) / ".config" / "molecule")
    return [base.absolute() / "sandboxes" for base in bases]


@contextlib.contextmanager
def registered(url: str, boot: str) -> Iterator[None]:
    """Keep the file of a sandbox while the block runs. If it can't be written, only a warning is shown."""
    try:
        path = next(iter(sandboxes_folders())) / f"{url.rpartition(':')[2]}.json"
        files.make_folder(path.parent)
        about = RunningSandbox(url=url, boot=boot, pid=os.getpid(), started=time.time())
        files.replace(path, json.dumps(attrs.asdict(about)).encode())
    except (OSError, StopIteration) as exc:
        reason = getattr(exc, "strerror", None) or "there is no home directory"
        click.echo(f"warning: 'molecule sandbox say' needs --url {url}: {reason}", err=True)
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def running_sandboxes(environ: Mapping[str, str] = os.environ) -> list[RunningSandbox]:
    """The sandboxes whose process exists, newest first. The files of others are removed."""
    found = []
    for path in [path for folder in sandboxes_folders(environ) for path in folder.glob("*.json")]:
        try:
            one = RunningSandbox(**json.loads(files.read(path)))
            os.kill(one.pid, 0)
        except (ValueError, TypeError, OverflowError, ProcessLookupError):
            with contextlib.suppress(OSError):
                path.unlink()
        except OSError:
            continue
        else:
            found.append(one)
    return sorted(found, key=lambda one: one.started, reverse=True)
