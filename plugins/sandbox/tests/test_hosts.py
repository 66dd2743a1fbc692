"""Only pages of this machine can reach the sandbox through a browser."""

import pytest

from molecule_connect_sandbox.hosts import is_local, is_local_origin
from molecule_connect_sandbox.testing import Sandbox

REGISTER = {"id": "5d3c1f6a-1111-4222-8333-944445555666", "delivery_mode": "poll", "agent_card": {}}


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "localhost.:1", "127.0.0.1", "127.8.9.10:65535", "[::1]", "[::1]:8080"]
)
def test_loopback_names_are_local(host: str) -> None:
    assert is_local(host)
    assert is_local_origin(f"http://{host}")
    assert is_local_origin(f"https://{host}")


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.localhost",
        "evil@127.0.0.1",
        "127.0.0.1@evil.example",
        "127.1",
        "2130706433",
        "0.0.0.0",
        "[::]",
        "[::ffff:127.0.0.1]",
        "::1",
        "10.0.0.1",
        "127.0.0.1:80:80",
        "127.0.0.1\tx",
    ],
)
def test_other_names_are_not_local(host: str) -> None:
    assert not is_local(host)
    assert not is_local_origin(f"http://{host}")


@pytest.mark.parametrize("origin", ["null", "", "file://", "localhost", "http://127.0.0.1/x", "ftp://localhost"])
def test_rejects_malformed_origins(origin: str) -> None:
    assert not is_local_origin(origin)


@pytest.mark.parametrize(
    "header", [{"Host": "evil.example:8080"}, {"Origin": "https://evil.example"}, {"Origin": "null"}]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/registry/register"), ("GET", "/health"), ("PUT", "/sandbox/faults"), ("GET", "/sandbox/faults")],
)
async def test_rejects_foreign_pages_everywhere(
    sandbox: Sandbox, header: dict[str, str], method: str, path: str
) -> None:
    answered = await sandbox.call(method, path, REGISTER, token=sandbox.options.control_token, **header)
    assert answered.status_code == 403
    assert next(iter(header)) in answered.json()["error"]
    assert (await sandbox.call("GET", f"/workspaces/{REGISTER['id']}")).status_code == 404


async def test_rejects_foreign_origin_after_local_one(sandbox: Sandbox) -> None:
    headers = [("Origin", sandbox.url), ("Origin", "https://evil.example")]
    assert (await sandbox.client.get("/health", headers=headers)).status_code == 403


@pytest.mark.parametrize("header", [{}, {"Origin": "http://127.0.0.1:8080"}, {"Host": "localhost:1"}])
async def test_serves_local_programs(sandbox: Sandbox, header: dict[str, str]) -> None:
    assert (await sandbox.call("POST", "/registry/register", REGISTER, **header)).status_code == 200
