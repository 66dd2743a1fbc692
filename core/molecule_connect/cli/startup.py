"""Prepare the process: standard streams, private memory, default signals, and an init for containers.

Only for the command line. Programs that embed the library make their own choices.
"""

import contextlib
import os
import signal
import sys

_PR_SET_DUMPABLE = 4
_SHELL_SIGNAL_BASE = 128
# Blocking these has no effect, or would hide a crash of the init.
_NOT_FORWARDED = {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGSEGV, signal.SIGBUS,
    signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS, signal.SIGABRT,
}  # fmt: skip


def prepare_process() -> None:
    """Prepare this process to run ``molecule``. Fork if it is the first process of a container."""
    occupy_standard_streams()
    hide_memory()
    reset_signals()
    if os.getpid() == 1:
        run_under_init()


def occupy_standard_streams() -> None:
    """Open ``/dev/null`` for each closed standard stream.

    Otherwise, with a closed stderr (``2>&-``), the journal would become file descriptor 2, and receive error output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def hide_memory(platform: str = sys.platform) -> bool:
    """Prevent other processes of this user from reading the memory and environment, which contain tokens. Linux only.

    Only root can then use ``/proc/PID/environ``, ``mem``, ``fd`` and ptrace, and there are no core dumps. Child
    programs aren't protected: exec resets this.

    Returns:
        Whether the process is protected.
    """
    if platform != "linux":
        return False
    try:
        import ctypes

        # All arguments are unsigned long; ctypes would pass only 32 bits of each.
        words = (ctypes.c_ulong(0) for _ in range(4))
        return bool(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, *words) == 0)
    except (ImportError, OSError, AttributeError):  # a Python without ctypes, a C library without prctl
        return False


def reset_signals() -> None:
    """Reset inherited signal settings that would break this process and its children.

    If SIGCHLD is ignored, the system discards exit statuses; a blocked SIGTERM never arrives. An ignored SIGHUP or
    SIGINT is intended (nohup, a background job of a shell) and stays.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def run_under_init() -> None:
    """Fork: the child returns and runs the program; this process becomes its init, and exits with its code.

    The first process of a container must reap orphans. In the process of the program that would take exit statuses
    away from asyncio and subprocess, so a separate process does it. It forwards signals.
    """
    forwarded = signal.valid_signals() - _NOT_FORWARDED
    # The first process receives only signals that it handles or blocks.
    signal.pthread_sigmask(signal.SIG_BLOCK, {*forwarded, signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        _take_the_terminal()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return
    os._exit(_serve_as_init(child, {*forwarded, signal.SIGCHLD}))


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
    """Let Ctrl-C reach this process and not its init, which would forward it a second time."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
        for number in range(3):
            if os.isatty(number):
                os.tcsetpgrp(number, os.getpgrp())
                return
