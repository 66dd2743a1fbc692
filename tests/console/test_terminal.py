"""The live view on a real terminal."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.console.kit import PROGRAM, Child

CTRL_S = "\x13"
HIDE_CURSOR, NO_WRAP, WRAP = "\x1b[?25l", "\x1b[?7l", "\x1b[?7h"
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    children: list[Child] = []

    def start(state: str = str(tmp_path), until: str = "online") -> Child:
        children.append(Child(program, state))
        children[-1].wait_for(lambda seen: until in seen)
        return children[-1]

    yield start
    for child in children:
        child.close()


@pytest.fixture
def child(start: Callable[..., Child]) -> Child:
    return start()


def assert_restored(child: Child) -> None:
    """The terminal is as usual: cursor, echo, wrapping, normal screen."""
    assert HIDE_CURSOR not in child.seen
    assert child.seen.rfind(NO_WRAP) < child.seen.rfind(WRAP)
    assert child.seen.rfind(ENTER) < child.seen.rfind(LEAVE)
    assert child.echoes()


def test_ends_with_the_failure_on_the_normal_screen(child: Child) -> None:
    child.type("end\n")
    assert child.ended() == 0

    normal, _ = child.screens()
    assert normal[-3].startswith("stopped; today: handled 0, failed 0, cost $0.00; 1 unfinished")
    assert normal[-2:] == ["error: it ended", "what to do: begin again"]
    assert_restored(child)


def test_keys_and_resizes_leave_no_stray_headers(child: Child) -> None:
    for number, size in enumerate([(40, 10), (200, 50), (80, 24)]):
        child.type("\n\n\n")
        child.resize(*size)
        child.wait_for_text("\x1b[2J", times=number + 2)
        child.type(f"after {number}\n")
        child.wait_for_text(f"after {number}")
        _, view = child.screens()
        assert [line for line in view if line.startswith("ws_1")] == view[:1]
        assert len(view) <= size[1]
    child.type("end\n")
    child.ended()

    normal, _ = child.screens()
    assert [line for line in normal if "online" in line or line.startswith("ws_1")] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_restores_the_terminal(child: Child, number: signal.Signals) -> None:
    child.process.send_signal(number)
    child.process.send_signal(signal.SIGCONT)
    while child.process.poll() is None:
        child.process.send_signal(number)
        child.read()

    assert child.ended() == 128 + number
    assert_restored(child)
    assert child.seen.rstrip().endswith("the next start continues unfinished messages")


def test_exceptions_restore_the_terminal(child: Child) -> None:
    child.type("raise\n")
    assert child.ended() == 1

    assert_restored(child)
    assert child.seen.rindex("a bug") > child.seen.rindex(LEAVE)


def test_quit_restores_the_terminal(child: Child) -> None:
    child.process.send_signal(signal.SIGQUIT)
    assert child.ended() == -signal.SIGQUIT

    assert_restored(child)


def test_kill_leaves_cursor_and_wrapping(child: Child) -> None:
    child.process.kill()
    child.ended()

    assert HIDE_CURSOR not in child.seen
    assert child.seen.rfind(NO_WRAP) < child.seen.rfind(WRAP)


def test_suspending_restores_the_terminal_and_resuming_draws_again(child: Child) -> None:
    child.process.send_signal(signal.SIGTSTP)
    assert os.WIFSTOPPED(os.waitpid(child.process.pid, os.WUNTRACED)[1])
    child.wait_for(lambda seen: LEAVE in seen)
    assert_restored(child)

    child.process.send_signal(signal.SIGCONT)
    child.wait_for(lambda seen: seen.rfind("ws_1") > seen.rfind(ENTER) > seen.rfind(LEAVE))
    assert not child.echoes()
    child.type("end\n")
    child.ended()
    assert_restored(child)


def test_a_stopped_terminal_blocks_nothing(child: Child) -> None:
    child.type(CTRL_S)
    for number in range(20):
        child.type(f"message {number}\n")
    child.type("end\n")

    assert child.process.wait(20) == 0
    with pytest.raises(AssertionError):
        child.wait_for(lambda seen: "begin again" in seen, seconds=0.2)


def test_printed_lines_reach_the_view_and_the_normal_screen(child: Child) -> None:
    child.type("print\n")
    child.wait_for(lambda seen: "printed by a plugin" in seen)
    child.type("end\n")
    child.ended()

    assert any(line.startswith("printed by a plugin") for line in child.screens()[0])


def test_a_bug_of_the_view_ends_only_the_view(start: Callable[..., Child]) -> None:
    child = start("BUG", until="the live view failed")
    assert child.echoes()
    child.type("end\n")
    assert child.ended() == 0

    assert child.screens()[0][-1] == "what to do: begin again"
