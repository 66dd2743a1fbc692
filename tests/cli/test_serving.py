"""``molecule connect`` as a process of its own against a platform of a few lines: its ends, and what they print."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import attrs
import pytest
from tests.plugins.distributions import backends, write_distribution

SLOW = """
import asyncio, time
from molecule_connect import Response, hookimpl

class Backend:
    @hookimpl
    async def handle_a2a(self, request):
        if request.text == "block":
            print("blocking", flush=True)
            time.sleep(60)
        return Response.from_text(request.text.upper())

def make(config):
    return Backend()
"""


@attrs.define
class Platform:
    """The barest platform: each path prefix answers with one status and JSON; one message waits, if any."""

    answers: dict[str, tuple[int, object]] = attrs.field(factory=dict)
    waiting: list[str] = attrs.field(factory=list)
    sent: list[str] = attrs.field(factory=list)
    was_answered: threading.Event = attrs.field(factory=threading.Event)
    url: str = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        for prefix, answer in self.answers.items():
            if path.startswith(prefix):
                return answer
        if path.startswith("/workspaces/ws_1/activity"):
            rows = [
                {
                    "id": f"act-{text}",
                    "activity_type": "a2a_receive",
                    "source_id": "ws_2",
                    "method": "message/send",
                    "request_body": {"params": {"message": {"parts": [{"type": "text", "text": text}]}}},
                }
                for text in self.waiting
            ]
            self.waiting.clear()
            return 200, rows
        if path == "/workspaces/ws_2/a2a":
            self.sent.append(json.loads(body)["params"]["message"]["parts"][0]["text"])
            self.was_answered.set()
            return 200, {"status": "queued"}
        return (200, {}) if path.startswith("/registry/") else (404, None)


@pytest.fixture
def platform() -> Iterator[Platform]:
    platform = Platform()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = platform.answer(self.command, self.path, body)
            said = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_POST = do_GET  # noqa: N815 - the name is the standard library's

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    platform.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield platform
    server.shutdown()
    thread.join()
    server.server_close()


@attrs.define
class Run:
    """One ``molecule connect`` that runs."""

    process: subprocess.Popen[str]
    seen: list[str] = attrs.field(factory=list)
    ended: bool = False

    def wait_for(self, words: str) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.seen.append(line)
            if words in line:
                return
        raise AssertionError("".join(self.seen))

    def end(self) -> tuple[int, str]:
        if not self.ended:
            self.seen.append(self.process.communicate(timeout=30)[1] or "")
            self.ended = True
        return self.process.returncode, "".join(self.seen)


Connect = Callable[..., Run]


@pytest.fixture
def connect(environ: dict[str, str], plugins: Path, platform: Platform, token: str) -> Iterator[Connect]:
    runs: list[Run] = []
    write_distribution(plugins, "fake-slow", entry_points=backends(slow="fake_slow:make"), fake_slow=SLOW)

    def start(*flags: str, stderr: int = subprocess.PIPE) -> Run:
        arguments = ["connect", "ws_1", "--api-url", platform.url, "--backend", "slow", "--interval-ms", "50", *flags]
        process = subprocess.Popen(
            [sys.executable, "-m", "molecule_connect", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**environ, "MOLECULE_WORKSPACE_TOKEN": token},
        )
        runs.append(Run(process))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        assert token not in run.end()[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_it_cleanly(connect: Connect, platform: Platform, number: signal.Signals) -> None:
    platform.waiting.append("hello")
    run = connect()
    run.wait_for("delivered")
    run.process.send_signal(number)

    code, told = run.end()

    assert (code, platform.sent) == (0, ["HELLO"])
    assert "stopped" in told


def test_second_signal_exits_despite_blocked_loop(connect: Connect, platform: Platform) -> None:
    platform.waiting.append("block")
    run = connect()
    assert run.process.stdout is not None
    assert run.process.stdout.readline() == "blocking\n"
    run.process.send_signal(signal.SIGTERM)
    # The kernel may hand a signal that comes at the same moment to another thread: press Ctrl-C as a person would.
    while run.process.poll() is None:
        run.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(0.2)
    code, told = run.end()

    assert code in (130, 143), "whichever of the two was delivered second"
    assert "stopped at once" in told


def test_a_closed_stderr_does_not_stop_it(connect: Connect, platform: Platform) -> None:
    reading, writing = os.pipe()
    run = connect(stderr=writing)
    os.close(writing)
    with os.fdopen(reading) as stderr:
        for line in stderr:
            if "registered" in line:
                break
    platform.waiting.append("unseen")
    assert platform.was_answered.wait(20)
    run.process.send_signal(signal.SIGTERM)

    assert run.end()[0] == 0
    assert platform.sent == ["UNSEEN"]


def test_serves_without_stderr(environ: dict[str, str], platform: Platform, connect: Connect, token: str) -> None:
    platform.waiting.append("unseen")
    command = f"exec {sys.executable} -m molecule_connect connect ws_1 --backend slow --once 2>&-"
    more = {"MOLECULE_WORKSPACE_TOKEN": token, "MOLECULE_API_URL": platform.url}

    done = subprocess.run(["sh", "-c", command], env={**environ, **more}, timeout=30, check=False)

    assert done.returncode == 0
    assert platform.sent == ["UNSEEN"]


def test_once_answers_what_waits_and_ends(connect: Connect, platform: Platform) -> None:
    platform.waiting.extend(["one", "two"])

    code, _ = connect("--once").end()

    assert (code, platform.sent) == (0, ["ONE", "TWO"])


def test_refused_token_exits_3(connect: Connect, platform: Platform) -> None:
    platform.answers["/registry/register"] = (401, {"error": "invalid workspace auth token"})

    code, told = connect().end()

    assert code == 3
    assert "error: register: 401" in told
    assert "what to do: workspace ws_1, token from MOLECULE_WORKSPACE_TOKEN: " in told


def test_refused_registration_exits_7(connect: Connect, platform: Platform) -> None:
    platform.answers["/registry/register"] = (400, {"error": "agent_card is required"})

    code, told = connect().end()

    assert code == 7
    assert "agent_card is required" in told


def test_a_deleted_workspace_ends_it_with_4(connect: Connect, platform: Platform) -> None:
    platform.answers["/workspaces/ws_1"] = (410, {"error": "workspace removed", "hint": "make a new one"})

    code, told = connect().end()

    assert code == 4
    assert "error: " in told
    assert "what to do: " in told


def test_second_process_exits_5(connect: Connect) -> None:
    first = connect()
    first.wait_for("registered")

    code, told = connect().end()

    assert code == 5
    assert str(first.process.pid) in told


def test_signal_before_registration_exits_0(connect: Connect, platform: Platform) -> None:
    platform.answers["/registry/register"] = (503, {"error": "not yet"})
    run = connect()
    run.wait_for("register")
    run.process.send_signal(signal.SIGTERM)

    assert run.end()[0] == 0
