"""Detect misbehavior of a backend: blocking the event loop, printing, passing on the token."""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

# A loop blocked for longer delays heartbeats and other conversations.
BLOCKED_SECONDS = 0.4

_LIBRARY = str(Path(asyncio.__file__).parent)


@attrs.define
class Watch:
    """The findings.

    Attributes:
        blocked_at: Where the event loop was blocked; empty if it wasn't.
        printed: The start of the text written to standard output.
        leaks: Programs that were started with the token in their environment or command line.
    """

    blocked_at: str = ""
    printed: str = ""
    leaks: list[str] = attrs.field(factory=list)


@contextlib.contextmanager
def watch_loop(watch: Watch, *, seconds: float = BLOCKED_SECONDS) -> Iterator[None]:
    """Record where the running loop is blocked for longer than *seconds*."""
    loop, thread_id = asyncio.get_running_loop(), threading.get_ident()
    over = threading.Event()

    def look() -> None:
        while not over.is_set() and not watch.blocked_at:
            answered = threading.Event()
            try:
                loop.call_soon_threadsafe(answered.set)
            except RuntimeError:  # the loop is closed
                return
            if not answered.wait(seconds) and not over.is_set():
                frame = sys._current_frames().get(thread_id)
                place = _place(frame) if frame is not None else ""
                # If the whole machine was stalled, the loop is in its own code.
                if place and not answered.wait(seconds / 4):
                    watch.blocked_at = place
            over.wait(0.02)

    looking = threading.Thread(target=look, name="watch the loop", daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()


@contextlib.contextmanager
def watch_output(watch: Watch) -> Iterator[None]:
    """Record standard output, of Python and of child processes."""
    python, ours = sys.stdout, os.dup(1)
    with tempfile.TemporaryFile() as caught:
        python.flush()
        os.dup2(caught.fileno(), 1)
        with open(os.dup(caught.fileno()), "w", encoding="utf-8", errors="replace", buffering=1) as stand_in:  # noqa: PTH123
            sys.stdout = stand_in
            try:
                yield
            finally:
                sys.stdout = python
                os.dup2(ours, 1)
                os.close(ours)
        caught.seek(0)
        watch.printed = watch.printed or caught.read(200).decode(errors="replace")


@contextlib.contextmanager
def watch_programs(watch: Watch, token: str) -> Iterator[None]:
    """Set *token* as the operator's token, and record programs that are started with it."""
    active = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not active:
            return
        if event in ("subprocess.Popen", "os.posix_spawn"):
            command, environment = arguments[1], arguments[-1]
            shown = command if isinstance(command, str) else subprocess.list2cmdline(map(os.fsdecode, command))
            given = os.environ if environment is None else environment
            # All users of the machine can read command lines.
            if any(token in os.fsdecode(value) for value in (shown, *given.values())):
                watch.leaks.append(shown[:200])
        elif event == "os.system":
            watch.leaks.append(os.fsdecode(arguments[0])[:200])

    # An audit hook cannot be removed, only disabled.
    sys.addaudithook(hook)
    name = "MOLECULE_WORKSPACE_TOKEN"
    before = os.environ.get(name)
    os.environ[name] = token
    try:
        yield
    finally:
        active = False
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _place(frame: Any) -> str:
    """Where the loop's thread is in a callback; empty while it is in the loop's own code."""
    stack = traceback.extract_stack(frame)
    turns = [number for number, each in enumerate(stack) if each.name == "_run_once"]
    inner = [each for each in stack[turns[-1] + 1 :] if not each.filename.startswith(_LIBRARY)] if turns else []
    if not inner or inner[-1].filename.endswith("selectors.py"):
        return ""
    return f"{Path(inner[-1].filename).name}, line {inner[-1].lineno}, in {inner[-1].name}"
