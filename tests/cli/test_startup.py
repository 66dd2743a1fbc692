"""How a process of ours begins, on real processes: its memory, its signals, and its orphans."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from molecule_connect.cli.startup import hide_memory

linux_alone = pytest.mark.skipif(sys.platform != "linux", reason="prctl and /proc are Linux's")

IGNORE = "import os, signal, sys; signal.signal({0}, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
BLOCK = (
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1]);"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
# Two orphans for each round: one that left its session, and one that ends by itself.
ORPHANS = "(setsid true > /dev/null 2>&1 &); (sleep 0.1 > /dev/null 2>&1 &)"


def python(program: str, *under: str, **options: object) -> "subprocess.CompletedProcess[str]":
    """Run *program*; *under* are programs, each given the rest of the command line."""
    command = [*under, sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload,no-any-return]


# Memory

READERS = """
import ctypes, os, subprocess
from molecule_connect.cli.startup import hide_memory
if os.getuid() == 0:  # root may read everything
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as after exec
def report():
    for name in ("environ", "mem", "maps"):
        opened = subprocess.run(["/bin/sh", "-c", f"exec 2> /dev/null; : < /proc/$PPID/{name}"]).returncode == 0
        print(name, opened)
report()
print(hide_memory())
report()
child = subprocess.run(["/bin/sh", "-c", "cat /proc/$$/environ"], env={"A": "b"}, capture_output=True)
print(child.stdout)
print(os.readlink(f"/proc/self/fd/{os.open('/dev/null', os.O_RDONLY)}"))
"""


@linux_alone
def test_children_cannot_read_process_memory() -> None:
    done = python(READERS, cwd="/")
    if "Operation not permitted" in done.stderr:
        pytest.skip("this user may not become another one")
    before, hidden = done.stdout.split("\nTrue\n", 1)
    if "environ True" not in before:
        pytest.skip("this system lets no process read another one anyway")
    assert "True" not in hidden
    assert hidden.splitlines()[:2] == ["environ False", "mem False"]
    # A child is readable as usual, and we may still look at ourselves.
    assert "b'A=b\\x00" in hidden
    assert hidden.splitlines()[-1] == "/dev/null"


@linux_alone
def test_every_command_hides_its_memory() -> None:
    program = (
        "import ctypes, sys; sys.argv = ['molecule', '--version']\n"
        "from molecule_connect.cli import main\n"
        "try: main()\n"
        "finally: print('dumpable:', ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"
    )
    assert "dumpable: 0" in python(program).stdout


def test_elsewhere_nothing_is_hidden_and_nothing_fails() -> None:
    assert hide_memory("darwin") is False


# Signals

RUNS_A_PROGRAM = """
import asyncio, subprocess, sys
from molecule_connect.cli.startup import prepare_process
prepare_process()
async def run():
    return await (await asyncio.create_subprocess_exec("false")).wait()
print(subprocess.run(["false"]).returncode, asyncio.run(run()))
sys.stdout.flush()
subprocess.run(["cat", "/proc/self/status"])
"""


def mask(status: str, name: str) -> int:
    (line,) = (line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1], 16)


@linux_alone
@pytest.mark.parametrize("before", [IGNORE.format("signal.SIGCHLD"), BLOCK], ids=["ignored", "blocked"])
def test_inherited_signal_settings_are_reset(before: str) -> None:
    done = python(RUNS_A_PROGRAM, sys.executable, "-c", before)
    assert done.stdout.splitlines()[0] == "1 1", done.stderr
    assert mask(done.stdout, "SigBlk") == 0
    assert not mask(done.stdout, "SigIgn") & 1 << (signal.SIGCHLD - 1)


@linux_alone
def test_a_hangup_that_was_ignored_stays_ignored() -> None:
    done = python(RUNS_A_PROGRAM, sys.executable, "-c", IGNORE.format("signal.SIGHUP"))
    assert mask(done.stdout, "SigIgn") & 1 << (signal.SIGHUP - 1)


# The first process of a container

CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
AS_A_SUBREAPER = """
import ctypes
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans become ours, as of the first process
from molecule_connect.cli.startup import run_under_init
run_under_init()
"""
AS_THE_FIRST = """
import os
assert os.getpid() == 1
from molecule_connect.cli.startup import prepare_process
prepare_process()
assert os.getpid() != 1
"""
MAKES_ORPHANS = f"""
import pathlib, subprocess, time
for _ in range(5):
    assert subprocess.run(["/bin/sh", "-c", "{ORPHANS}; exit 3"]).returncode == 3
def left():
    stats = [path.read_text().rpartition(")")[2].split() for path in pathlib.Path("/proc").glob("[0-9]*/stat")]
    return [stat for stat in stats if int(stat[1]) == os.getppid() and stat[0] == "Z"]
import os
until = time.monotonic() + 30
time.sleep(0.3)
while left() and time.monotonic() < until:
    time.sleep(0.05)
print("left:", len(left()))
"""


def can_contain() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture(params=["container", "simulated"])
def first(request: pytest.FixtureRequest) -> tuple[str, list[str]]:
    """The beginning of a program that is the first process, and what it is run under."""
    if request.param == "simulated":
        return AS_A_SUBREAPER, []
    if not can_contain():
        pytest.skip("no container can be made here")
    return AS_THE_FIRST, CONTAINER


@linux_alone
def test_init_reaps_only_orphans(first: tuple[str, list[str]]) -> None:
    begin, under = first
    done = python(begin + MAKES_ORPHANS, *under)
    assert (done.stdout, done.stderr, done.returncode) == ("left: 0\n", "", 0)


@linux_alone
@pytest.mark.parametrize(("end", "code"), [("os._exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)])
def test_init_exits_like_the_program(first: tuple[str, list[str]], end: str, code: int) -> None:
    begin, under = first
    assert python(f"{begin}\nimport os\n{end}", *under).returncode == code


@linux_alone
def test_init_forwards_signals(tmp_path: Path) -> None:
    program = AS_A_SUBREAPER + (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 5


@linux_alone
def test_ctrl_c_reaches_the_program_once() -> None:
    program = (
        "import fcntl, signal, termios, time\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        f"{AS_A_SUBREAPER}\n"
        "heard = []\n"
        "signal.signal(signal.SIGINT, lambda *_: heard.append(1))\n"
        "print('ready', flush=True)\n"
        "while not heard: time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        "print('heard', len(heard), 'times', flush=True)\n"
    )
    screen, terminal = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=terminal, stdout=terminal, start_new_session=True
    ) as process:
        said = b""
        while b"times" not in said:
            said += os.read(screen, 1024)
            if b"ready" in said and b"^C" not in said:
                os.write(screen, b"\x03")
        assert process.wait(30) == 0
    os.close(screen)
    os.close(terminal)
    assert b"heard 1 times" in said
