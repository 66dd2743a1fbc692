"""The blocking client's thread: it starts when needed, serves callers of any thread, and ends with the client."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from molecule_connect import ConfigError
from molecule_connect_agent import RemoteAgentClient

from .kit import API, ME, PEER, TOKEN

ONLINE = httpx.Response(200, json={"status": "online"})


class Slow(httpx.AsyncBaseTransport):
    """Answers when ``release`` is called. Requests that wait are counted by ``waiting``."""

    def __init__(self) -> None:
        self.waiting = threading.Semaphore(0)
        self.cancelled = threading.Event()
        self._released = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._loop = asyncio.get_running_loop()
        self.waiting.release()
        try:
            await self._released.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return httpx.Response(200, json={"status": "online"})

    def release(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._released.set)


@pytest.fixture
def before() -> set[threading.Thread]:
    return set(threading.enumerate())


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def client(slow: Slow, before: set[threading.Thread], tmp_path: Path) -> Iterator[RemoteAgentClient]:
    with RemoteAgentClient(ME, API, token=TOKEN, token_dir=tmp_path, transport=slow) as client:
        yield client


def test_client_that_sends_nothing_starts_no_thread(client: RemoteAgentClient, before: set[threading.Thread]) -> None:
    client.load_token()

    assert set(threading.enumerate()) == before


def test_closing_leaves_no_thread(before: set[threading.Thread], tmp_path: Path) -> None:
    transport = httpx.MockTransport(lambda request: ONLINE)
    with RemoteAgentClient(ME, API, token=TOKEN, token_dir=tmp_path, transport=transport) as client:
        client.poll_state()
        assert set(threading.enumerate()) > before

    # A thread that ran a file operation ends by itself.
    assert not [each for each in set(threading.enumerate()) - before if each.name == "molecule-connect-agent"]


def test_closing_lets_running_calls_finish(
    client: RemoteAgentClient, slow: Slow, before: set[threading.Thread]
) -> None:
    states: list[str] = []
    caller = threading.Thread(target=lambda: states.append(client.poll_state().status))
    caller.start()
    assert slow.waiting.acquire(timeout=30)
    client.close()
    with pytest.raises(ConfigError, match="closed"):
        client.poll_state()
    slow.release()
    caller.join(30)

    assert states == ["online"]
    assert set(threading.enumerate()) <= before


def test_slow_calls_do_not_delay_others(client: RemoteAgentClient, slow: Slow) -> None:
    callers = [threading.Thread(target=client.call_peer, args=[PEER, "hello"]) for _ in range(12)]
    for caller in callers:
        caller.start()
    for _ in callers:
        assert slow.waiting.acquire(timeout=30)
    slow.release()
    for caller in callers:
        caller.join(30)

    assert client.poll_state().status == "online"


def test_task_supplier_can_call_the_client(tmp_path: Path) -> None:
    def supply() -> dict[str, object]:
        return {"current_task": agent.poll_state().status}

    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"status": "online"}))
    with RemoteAgentClient(ME, API, token=TOKEN, token_dir=tmp_path, transport=transport) as agent:
        assert agent.run_heartbeat_loop(1, supply) == "max_iterations"


def test_ctrl_c_cancels_the_running_call(tmp_path: Path) -> None:
    program = (
        "import pathlib, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
        "from plugins.agent.tests.test_portal import Slow\n"
        "from molecule_connect_agent import RemoteAgentClient\n"
        "import threading\n"
        "slow = Slow()\n"
        "def tell():\n"
        "    slow.waiting.acquire()\n"
        "    print('waiting', flush=True)\n"
        "threading.Thread(target=tell).start()\n"
        "try:\n"
        f"    with RemoteAgentClient({ME!r}, {API!r}, token={TOKEN!r}, token_dir='.', transport=slow) as client:\n"
        "        client.poll_state()\n"
        "except KeyboardInterrupt:\n"
        "    left = [thread.name for thread in threading.enumerate() if 'agent' in thread.name]\n"
        "    print('interrupted', slow.cancelled.is_set(), left)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "interrupted True []\n"
    assert process.returncode == 0
