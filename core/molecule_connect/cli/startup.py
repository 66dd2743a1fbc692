"""What a process of ours does first: usual signals, memory of its own, and an init where it is a container's first.

For the command line alone: a program that embeds the library decides these things itself.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

_PR_SET_DUMPABLE = 4
_SHELL_SIGNAL_BASE = 128
# Blocking these has no effect, or would hide a crash of the init itself.
_NOT_FORWARDED = frozenset(
    getattr(signal, name)
    for name in (
        "SIGKILL",
        "SIGSTOP",
        "SIGCHLD",
        "SIGSEGV",
        "SIGBUS",
        "SIGFPE",
        "SIGILL",
        "SIGTRAP",
        "SIGSYS",
        "SIGABRT",
    )
    if hasattr(signal, name)
)


def prepare_process() -> None:
    """Prepare this process to run ``molecule``. Starts no thread; forks if this is the first process of a container."""
    occupy_standard_streams()
    hide_memory()
    reset_signals()
    if os.getpid() == 1:
        run_under_init()


def occupy_standard_streams() -> None:
    """Open ``/dev/null`` in place of a closed standard stream.

    Started with a closed stderr (``2>&-``), the journal would become file 2, and get whatever is printed there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def hide_memory(platform: str = sys.platform) -> bool:
    """Keep other processes of this user from reading our memory and environment, where tokens are. Linux only.

    ``/proc/PID/environ``, ``mem``, ``fd`` and ptrace are then left to root alone, and there are no core dumps.
    A program that we start is readable again: exec resets this.

    Returns:
        Whether it is so.
    """
    if platform != "linux":
        return False
    try:
        import ctypes

        # All arguments are unsigned long; ctypes would pass 32 bits of each.
        words = (ctypes.c_ulong(0) for _ in range(4))
        return bool(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, *words) == 0)
    except (ImportError, OSError, AttributeError):  # a Python without ctypes, a C library without prctl
        return False


def reset_signals() -> None:
    """Undo what a parent handed on to us, and we would hand on to children, that keeps programs from being run.

    With SIGCHLD ignored, the system throws exit statuses away; a blocked SIGTERM never arrives. An ignored SIGHUP or
    SIGINT is wanted (nohup, a shell's background job) and stays.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


def run_under_init(leave: Callable[[int], NoReturn] = os._exit) -> None:
    """Fork: the child returns and runs the program; this process becomes its init, and ends as the child does.

    The first process of a container has to collect the exit statuses of orphans. Collecting all of them would take
    those of our own children from asyncio and subprocess, so another process does it. Signals are forwarded.
    """
    forwarded = signal.valid_signals() - _NOT_FORWARDED
    # The first process gets only signals that it handles or blocks.
    signal.pthread_sigmask(signal.SIG_BLOCK, {*forwarded, signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        _take_the_terminal()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return
    leave(_serve_as_init(child, {*forwarded, signal.SIGCHLD}))


def _serve_as_init(child: int, awaited: set[signal.Signals]) -> int:
    while True:
        number = signal.sigwait(awaited)
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
            continue
        # One SIGCHLD may stand for several processes.
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if ended == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else _SHELL_SIGNAL_BASE - code
            if ended == 0:
                break


def _take_the_terminal() -> None:
    """Have Ctrl-C of a terminal reach this process and not its init, which would forward it a second time."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
        for number in range(3):
            if os.isatty(number):
                os.tcsetpgrp(number, os.getpgrp())
                return
