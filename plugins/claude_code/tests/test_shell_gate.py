"""The hook that refuses shell commands without a rule of the operator."""

import json
import subprocess
import sys

import pytest

from molecule_connect_claude_code import shell_gate
from molecule_connect_claude_code.shell_gate import is_permitted

RULES = ["git log *", "npm run test:*", "make", "ls * --color=never"]


@pytest.mark.parametrize(
    "command",
    [
        "git log", "git log --oneline -3", " git log ", "git log -1 && git log -2", "git log; make", "git log | make",
        "git log --grep='a; b | c & d'", 'git log --format="%an <%ae>"', r"git log a\;b", "git log 2>&1", "git log -1;",
        "npm run test", "npm run test:unit", "make", "ls -l --color=never", "git log '$(x)'", "git log \\\n -1",
    ],
)  # fmt: skip
def test_permits_commands_that_match_a_rule(command: str) -> None:
    assert is_permitted(command, RULES)


@pytest.mark.parametrize(
    "command",
    [
        "", " ", "cat .env", "rev .env", "ps aux", "git show HEAD:.env", "git logs", "git log && cat .env",
        "git log; cat .env", "git log | tac .env", "git log & cat .env", "git log\ncat .env", "git log || id",
        "git log $(cat .env)", "git log `cat .env`", 'git log "$(cat .env)"', "git log <(cat .env)", "(git log)",
        "cat < .env", "X=1 git log", "make all", "ls -l", "git  log", "git log ';' ; cat .env", "git log '\\' ; id",
        "git log \"a\\\" ; x\" ; id", "git log &>x & id", "git log >&1; id",
        "git log # it's\nrev .env", "git log 'open", "git log $'\\'' ; id ''", "git log;#'\nid '",
    ],
)  # fmt: skip
def test_refuses_commands_without_a_rule(command: str) -> None:
    assert not is_permitted(command, RULES)


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (json.dumps({"tool_input": {"command": "git log"}}), 0),
        (json.dumps({"tool_input": {"command": "id"}}), 2),
        (json.dumps({"tool_input": {"command": 1}}), 2),
        ("not JSON", 2),
        ("[]", 2),
        ("", 2),
    ],
)
def test_exit_status_reports_the_decision(call: str, status: int) -> None:
    program = [sys.executable, "-I", shell_gate.__file__, "git log *"]

    done = subprocess.run(program, input=call, capture_output=True, text=True)

    assert done.returncode == status
    assert ("git log *" in done.stderr) == (status == 2)
