"""Private CAs, client certificates and proxies: what works, and that what can't is named before any request."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.platform.kit import CERTIFICATES, http, raw_server, read_request

from molecule_connect import AsyncPlatformClient, endpoints
from molecule_connect.app import load_list, load_workspaces
from molecule_connect.cli import diagnostics
from molecule_connect.cli.workspaces import WorkspaceSource
from molecule_connect.config.load import parse_file
from molecule_connect.config.settings import USUAL_TLS, Tls
from molecule_connect.config.workspaces import WorkspacesError
from molecule_connect.errors import ConfigError, TransientPlatformError
from molecule_connect.platform.address import parse_address
from molecule_connect.platform.tls import Trust, proxy_for
from molecule_connect_agent import RemoteAgentClient

CA, SERVER = CERTIFICATES / "ca.pem", CERTIFICATES / "server.pem"
CA_HASH = "b00b5e32"
PLATFORM = parse_address("https://platform.example")
VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *map(str.lower, VARIABLES)):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client_pem(tmp_path: Path) -> Path:
    path = tmp_path / "client.pem"
    shutil.copy(CERTIFICATES / "client.pem", path)
    path.chmod(0o600)
    return path


@asynccontextmanager
async def served(*, asks_for_certificates: bool = False) -> AsyncIterator[tuple[str, list[Any]]]:
    """The address of a platform that knows one workspace, and the certificates that were shown to it."""
    shown: list[Any] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown.append(writer.get_extra_info("peercert"))
        while await read_request(reader):
            writer.write(http(b'{"name":"mine"}'))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SERVER)
    if asks_for_certificates:
        context.load_verify_locations(CA)
        context.verify_mode = ssl.CERT_REQUIRED
    async with raw_server(answer, tls=context) as url:
        yield url, shown


async def look(url: str, tls: Tls = USUAL_TLS) -> str:
    async with AsyncPlatformClient(url, workspace_id="ws-1", token="a-token-of-ws-1", tls=tls) as client:
        return (await client.call(endpoints.workspace("ws-1"))).name


async def test_named_private_ca_is_trusted() -> None:
    async with served() as (url, _):
        with pytest.raises(TransientPlatformError, match=r"certificate of https://localhost:\d+ is not trusted") as no:
            await look(url)
        assert "--ca-file" in no.value.hint
        assert "SSL_CERT_FILE" in no.value.hint
        assert await look(url, Tls(ca_file=CA)) == "mine"


async def test_the_variables_of_openssl_name_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(CA, tmp_path / f"{CA_HASH}.0")
    async with served() as (url, _):
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
        assert await look(url) == "mine"
        monkeypatch.setenv("SSL_CERT_DIR", "/nowhere")
        monkeypatch.setenv("SSL_CERT_FILE", str(CA))
        assert await look(url) == "mine"
        monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
        assert await look(url, Tls(ca_file=CA)) == "mine"


def in_two_files(pem: Path) -> tuple[Path, Path]:
    certificate, key = pem.with_name("certificate.pem"), pem.with_name("key.pem")
    text = pem.read_text()
    at = text.index("-----BEGIN PRIVATE KEY")
    certificate.write_text(text[:at])
    key.write_text(text[at:])
    key.chmod(0o600)
    return certificate, key


async def test_a_client_certificate_is_shown(client_pem: Path) -> None:
    certificate, key = in_two_files(client_pem)
    async with served(asks_for_certificates=True) as (url, shown):
        assert await look(url, Tls(ca_file=CA, client_cert=client_pem)) == "mine"
        assert await look(url, Tls(ca_file=CA, client_cert=certificate, client_key=key)) == "mine"
    assert [dict(each["subject"][0])["commonName"] for each in shown] == ["client", "client"]


async def test_missing_client_certificate_has_a_hint() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SERVER)
    context.load_verify_locations(CA)
    context.verify_mode = ssl.CERT_REQUIRED

    def refuse() -> None:
        connection, _ = server.accept()
        # asyncio's own server closes without the alert that says why.
        with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as tls:
            with contextlib.suppress(ssl.SSLError):
                tls.do_handshake()
            # Closing with something unread would cut the alert off.
            socket.socket.recv(tls, 65536)

    with socket.create_server(("127.0.0.1", 0)) as server:
        refusing = asyncio.create_task(asyncio.to_thread(refuse))
        with pytest.raises(TransientPlatformError) as refused:
            await look(f"https://localhost:{server.getsockname()[1]}", Tls(ca_file=CA))
        await refusing
    assert "--client-cert" in refused.value.hint


async def test_an_agent_shows_it_too(client_pem: Path, tmp_path: Path) -> None:
    def ask() -> str:
        with RemoteAgentClient(
            "ws-1", url, token="a-token-of-ws-1", token_dir=tmp_path, ca_file=str(CA), client_cert=client_pem
        ) as agent:
            return agent.poll_state().status

    async with served(asks_for_certificates=True) as (url, shown):
        await asyncio.to_thread(ask)
    assert len(shown) == 1


def test_rejects_open_or_broken_client_key(client_pem: Path, tmp_path: Path) -> None:
    def fault(**files: Path) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            Trust().check(PLATFORM, Tls(**files))
        assert caught.value.hint
        return caught.value

    assert "No such file" in str(fault(client_cert=tmp_path / "none.pem"))
    assert "without a certificate" in str(fault(client_key=client_pem))
    assert "don't belong together" in str(fault(client_cert=CA, client_key=client_pem))
    client_pem.chmod(0o644)
    open_to_others = fault(client_cert=client_pem)
    assert "is open to others (mode 0644)" in str(open_to_others)
    assert open_to_others.hint == f"run: chmod 600 {client_pem}"


BROKEN: list[tuple[str, str, str]] = [
    ("SSL_CERT_FILE", "/nowhere/ca.pem", "No such file"),
    ("SSL_CERT_FILE", "{empty}", "it holds no certificates"),
    ("SSL_CERT_FILE", "{garbage}", "it holds no certificates"),
    ("SSL_CERT_DIR", "/nowhere", "No such file"),
    ("SSL_CERT_DIR", "{folder}", "no certificates under their hashes"),
    ("SSLKEYLOGFILE", "/nowhere/keys.log", "cannot be written"),
    ("HTTPS_PROXY", "http://user:hunter2@proxy.example:3128\n", "line ending"),
    ("HTTPS_PROXY", "http://user:hunter2@proxy.example:port", "no host and port"),
    ("https_proxy", "http://user:hunter2@proxy.example:99999", "no host and port"),
    ("ALL_PROXY", "ftp://user:hunter2@proxy.example", "not the address of a proxy"),
    ("all_proxy", "http://", "not the address of a proxy"),
    ("HTTPS_PROXY", "proxy example", "blank"),
    ("NO_PROXY", "localhost\nplatform.example", "line ending"),
]


@pytest.fixture(params=BROKEN, ids=lambda each: f"{each[0]}-{each[2]}")
def broken(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    name, value, words = request.param
    (tmp_path / "empty").touch()
    (tmp_path / "garbage").write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    (tmp_path / "folder").mkdir()
    value = value.format(**{each: tmp_path / each for each in ("empty", "garbage", "folder")})
    monkeypatch.setenv(name, value)
    return name, words


def assert_named(error: ConfigError, broken: tuple[str, str]) -> None:
    name, words = broken
    assert name in str(error)
    assert words in str(error)
    assert error.hint
    assert "hunter2" not in f"{error!r} {error.hint} {error.__cause__!r}"


def test_a_broken_variable_is_named(broken: tuple[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Trust().check(PLATFORM)
    assert_named(caught.value, broken)


def test_start_and_dry_run_report_it(broken: tuple[str, str], tmp_path: Path) -> None:
    given = {"workspace_id": "ws_1", "token": "a-token", "api_url": "https://platform.example"}
    with pytest.raises(ConfigError) as caught:
        WorkspaceSource(given, {}, config=None, state_dir=tmp_path).read()
    assert_named(caught.value, broken)


def test_a_list_finds_it(broken: tuple[str, str], tmp_path: Path) -> None:
    listed = '[{"id": "a", "token": "token-a", "api_url": "https://platform.example"}]'
    with pytest.raises(WorkspacesError) as caught:
        load_workspaces({"MOLECULE_WORKSPACES": listed})
    assert_named(caught.value, broken)


async def test_doctor_finds_it(broken: tuple[str, str], tmp_path: Path) -> None:
    given = {"workspace_id": "ws_1", "token": "a-token", "api_url": "https://platform.example"}
    options = {"config": None, "profile": None, "state_dir": str(tmp_path), "journal_url": None}
    found = diagnostics.checkup(options, given, {}, 0.0)
    (finding,) = [each async for each in found if each.level == diagnostics.FAIL]
    assert all(part in finding.text for part in broken)
    assert finding.hint


@pytest.mark.usefixtures("broken")
def test_unused_settings_are_not_checked() -> None:
    Trust().check(parse_address("http://localhost:8080"))


def test_paths_are_relative_to_the_list(tmp_path: Path, client_pem: Path) -> None:
    shutil.copy(CA, tmp_path / "ca.pem")
    config = tmp_path / "list.toml"
    config.write_text(
        '[defaults]\nca_file = "ca.pem"\napi_url = "https://platform.example"\n'
        f'[[workspace]]\nid = "a"\ntoken = "token-of-a"\nclient_cert = "{client_pem.name}"\n'
        '[[workspace]]\nid = "b"\ntoken = "token-of-b"\n'
    )
    config.chmod(0o600)
    one, other = load_list(parse_file(config, {"MOLECULE_CLIENT_CERT": str(client_pem)})).whole()
    assert one.tls == other.tls == Tls(ca_file=tmp_path / "ca.pem", client_cert=client_pem)
    client_pem.unlink()
    with pytest.raises(WorkspacesError, match=r"workspace 1 \(a\): the client certificate .*client.pem cannot be used"):
        load_list(parse_file(config, {})).whole()


def test_variables_name_the_files(client_pem: Path) -> None:
    environ = {"WORKSPACE_ID": "a", "MOLECULE_WORKSPACE_TOKEN": "token-of-a", "MOLECULE_API_URL": "https://p.example"}
    (one,) = load_workspaces({**environ, "MOLECULE_CA_FILE": str(CA), "MOLECULE_CLIENT_CERT": str(client_pem)})
    assert one.tls == Tls(ca_file=CA, client_cert=client_pem)


@contextmanager
def proxy(answer: bytes) -> Iterator[str]:
    """The address of a proxy that gives the same answer to everything."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join(30)


@pytest.mark.parametrize(
    ("answer", "text", "hint"),
    [
        (b"407 Proxy Authentication Required", "refuses the credentials", "correct user name and password in {}"),
        (b"403 Forbidden", "refuses the connection", "check the proxy in {}"),
    ],
)
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "all_proxy"])
async def test_a_proxy_that_refuses_is_named(
    answer: bytes, text: str, hint: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy(b"HTTP/1.1 " + answer + b"\r\nContent-Length: 0\r\n\r\n") as place:
        monkeypatch.setenv(variable, f"http://user:hunter2@{place}")
        with pytest.raises(TransientPlatformError, match=f"on the way to https://platform.example {text}") as no:
            await look("https://platform.example")
    assert hint.format(variable) in no.value.hint
    assert "hunter2" not in f"{no.value} {no.value.hint} {no.value.__cause__!r}"


async def test_refusing_http_proxy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ask() -> None:
        with RemoteAgentClient("ws-1", url, token="a-token-of-ws-1", token_dir=tmp_path, insecure=True) as agent:
            agent.register()

    url = "http://platform.example"
    with proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n") as place:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:hunter2@{place}")
        client = AsyncPlatformClient(url, workspace_id="ws-1", token="a-token-of-ws-1", insecure=True)
        async with client:
            with pytest.raises(TransientPlatformError, match="refuses the credentials") as no:
                await client.call(endpoints.workspace("ws-1"))
        with pytest.raises(TransientPlatformError, match="refuses the credentials"):
            await asyncio.to_thread(ask)
    assert "HTTP_PROXY" in no.value.hint


async def test_unreachable_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hunter2@127.0.0.1:1")
    with pytest.raises(TransientPlatformError, match="cannot be reached by way of the proxy") as no:
        await look("https://platform.example")
    assert "HTTPS_PROXY" in no.value.hint


def test_no_proxy_hosts_are_reached_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    assert proxy_for(PLATFORM) == "http://proxy.example:3128"
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8, .example")
    assert proxy_for(PLATFORM) is None
