"""The blocking client over real sockets: what no fake can do."""

import gzip
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from molecule_connect.errors import ConfigError, Outcome, PageTooLargeError, TransientPlatformError
from molecule_connect.models import FilePart
from molecule_connect.platform import endpoints
from molecule_connect.platform.blocking_client import BlockingTransports, PlatformClient
from molecule_connect.platform.credentials import Credentials

Talk = Callable[[socket.socket], None]
STATE = endpoints.state("ws-1")
NOTIFY = endpoints.notify("ws-1", "hi")
GOOD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n{"status":"online"}'


@attrs.define
class RawServer:
    """Does with each connection what it is told."""

    url: str = ""
    talk: Talk = lambda connection: None
    connections: int = 0


@pytest.fixture
def server() -> Iterator[RawServer]:
    listening = socket.create_server(("127.0.0.1", 0))
    raw = RawServer(f"http://127.0.0.1:{listening.getsockname()[1]}")
    threads: list[threading.Thread] = []

    def talk(connection: socket.socket) -> None:
        with connection:
            try:
                raw.talk(connection)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            raw.connections += 1
            threads.append(threading.Thread(target=talk, args=[connection]))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    yield raw
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    for thread in [accepting, *threads]:
        thread.join(10)


@pytest.fixture
def client(server: RawServer) -> Iterator[PlatformClient]:
    credentials = Credentials("ws-1", origin=server.url, token="token-of-ws-1")
    with PlatformClient(
        server.url, workspace_id="ws-1", credentials=credentials, transports=BlockingTransports()
    ) as made:
        yield made


def request(connection: socket.socket) -> bytes:
    """One request, head and body; empty when the other side is gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    wanted = int(lengths[0].split(b":")[1]) if lengths else 0
    while len(body) < wanted:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def test_threads_that_wait_for_slow_answers_do_not_hold_up_another(client: PlatformClient, server: RawServer) -> None:
    answer, waiting = threading.Event(), threading.Semaphore(0)

    def talk(connection: socket.socket) -> None:
        if b"/notify" in request(connection):
            waiting.release()
            answer.wait(30)
        connection.sendall(GOOD)

    server.talk = talk
    threads = [threading.Thread(target=client.call, args=[NOTIFY]) for _ in range(12)]
    for thread in threads:
        thread.start()
    try:
        assert all(waiting.acquire(timeout=20) for _ in threads)
        assert client.call(STATE) == {"status": "online"}
    finally:
        answer.set()
        for thread in threads:
            thread.join(10)


def test_one_connection_serves_request_after_request(server: RawServer, client: PlatformClient) -> None:
    def talk(connection: socket.socket) -> None:
        while request(connection):
            connection.sendall(GOOD)

    server.talk = talk
    for _ in range(5):
        assert client.call(STATE) == {"status": "online"}

    assert server.connections == 1


def test_a_question_that_is_not_answered_in_time_was_written(server: RawServer, client: PlatformClient) -> None:
    over = threading.Event()

    def talk(connection: socket.socket) -> None:
        request(connection)
        over.wait(10)

    server.talk = talk
    with pytest.raises(TransientPlatformError, match="no answer within") as caught:
        client.call(attrs.evolve(NOTIFY, timeout=0.2))
    over.set()

    assert caught.value.outcome is Outcome.WRITTEN


def test_a_cut_leaves_it_open_whether_it_was_taken(server: RawServer, client: PlatformClient) -> None:
    def talk(connection: socket.socket) -> None:
        request(connection)

    server.talk = talk
    with pytest.raises(TransientPlatformError, match="was cut") as caught:
        client.call(NOTIFY)

    assert caught.value.outcome is Outcome.UNKNOWN


def test_nobody_there_is_not_taken() -> None:
    credentials = Credentials("ws-1", origin="http://127.0.0.1:9", token="token-of-ws-1")
    with (
        PlatformClient(
            "http://127.0.0.1:9", workspace_id="ws-1", credentials=credentials, transports=BlockingTransports()
        ) as client,
        pytest.raises(TransientPlatformError, match="cannot be reached") as caught,
    ):
        client.call(NOTIFY)

    assert caught.value.outcome is Outcome.NOT_TAKEN


def test_an_answer_over_its_cap_is_not_read_to_its_end(server: RawServer, client: PlatformClient) -> None:
    def talk(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        while True:
            connection.sendall(bytes(65536))

    server.talk = talk
    with pytest.raises(PageTooLargeError):
        client.call(attrs.evolve(endpoints.plugin_download("ws-1", "hello"), cap=1 << 20))


def test_what_a_packed_answer_unpacks_to_never_fills_the_memory(server: RawServer, client: PlatformClient) -> None:
    packed = gzip.compress(bytes(64 << 20))

    def talk(connection: socket.socket) -> None:
        request(connection)
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
        connection.sendall(head.encode() + packed)

    server.talk = talk
    tracemalloc.start()
    try:
        with pytest.raises(PageTooLargeError):
            client.call(attrs.evolve(endpoints.plugin_download("ws-1", "hello"), cap=50_000))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_body_goes_to_a_sink_and_not_into_memory(server: RawServer, client: PlatformClient, tmp_path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000)

    server.talk = talk
    with (tmp_path / "plugin").open("w+b") as sink:
        assert client.call(endpoints.plugin_download("ws-1", "hello"), sink=sink) == b""
        assert sink.tell() == 300_000


def test_files_are_sent_from_the_disk(server: RawServer, client: PlatformClient, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"y" * 200_000)
    got: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        got.append(request(connection))
        body = b'{"files":[{"uri":"platform-pending:ws-1/f","name":"a.txt","size":200000}]}'
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    server.talk = talk
    (file,) = client.call(endpoints.upload_files("ws-1", [FilePart(uri="", path=path)]))

    assert (file.uri, file.size) == ("platform-pending:ws-1/f", 200_000)
    assert b"multipart/form-data" in got[0]
    assert got[0].count(b"y" * 200_000) == 1


def test_it_closes_with_the_last_answer_and_takes_no_more(server: RawServer, client: PlatformClient) -> None:
    asked, closed = threading.Event(), threading.Event()
    results: list[object] = []

    def talk(connection: socket.socket) -> None:
        request(connection)
        asked.set()
        closed.wait(10)
        connection.sendall(GOOD)
        assert connection.recv(1) == b""

    server.talk = talk
    thread = threading.Thread(target=lambda: results.append(client.call(STATE)))
    thread.start()
    assert asked.wait(10)
    client.close()
    closed.set()
    thread.join(10)

    assert results == [{"status": "online"}]
    with pytest.raises(ConfigError, match="closed"):
        client.call(STATE)


def test_an_answer_that_drips_in_ends_with_the_patience_of_the_whole(server: RawServer) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 100.0
        return now[0]

    def talk(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.01)

    server.talk = talk
    credentials = Credentials("ws-1", origin=server.url, token="token-of-ws-1")
    transports = BlockingTransports(clock=clock)
    with (
        PlatformClient(server.url, workspace_id="ws-1", credentials=credentials, transports=transports) as client,
        pytest.raises(TransientPlatformError, match="arrives too slowly"),
    ):
        client.call(STATE)
