"""An id that the platform does not know, with a token that it accepts: the token of another workspace."""

import uuid
from pathlib import Path

import attrs
import pytest

from molecule_connect_sandbox.testing import Sandbox

from .kit import Connector, registered

REGISTER = ("POST", "/registry/register")


@pytest.mark.parametrize("platform", ["2026-05", "2026-08"])
async def test_mistyped_id_creates_no_workspace(platform: str, tmp_path: Path) -> None:
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        mistyped = attrs.evolve(await sandbox.workspace(), id=str(uuid.uuid4()))
        async with Connector(sandbox, mistyped, tmp_path) as connector:
            assert await connector.ended() == 2
        assert REGISTER not in await sandbox.requests()
    assert f"error: the platform has no workspace {mistyped.id}" in connector.output
    assert "what to do: compare the id with the platform's; --create" in connector.output


async def test_flag_or_variable_creates_a_workspace(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        owner = await sandbox.workspace()
        for number, (flags, variables) in enumerate([(["--create"], {}), ([], {"MOLECULE_CREATE": "1"})]):
            new = attrs.evolve(owner, id=str(uuid.uuid4()))
            state = tmp_path / f"{number}"
            async with Connector(sandbox, new, state, "--backend", "mock", *flags, **variables) as connector:
                await registered(sandbox, new)
                await connector.says("the platform issued a token")
            assert (state / f"{new.id}.token").exists()


async def test_list_can_create_a_workspace(tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    async with Sandbox.over_loopback() as sandbox:
        new = attrs.evolve(await sandbox.workspace(), id=str(uuid.uuid4()))
        config.touch(mode=0o600)
        config.write_text(
            f'[[workspace]]\nid = "{new.id}"\ntoken = "{new.token}"\napi_url = "{sandbox.url}"\n'
            'backend = "mock"\ncreate = true\n'
        )
        async with Connector.of_a_list(config, tmp_path / "state"):
            await registered(sandbox, new)


async def test_registers_when_workspaces_cannot_be_looked_up(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        await sandbox.faults(f"bare-status=404,method=GET,path=/workspaces/{workspace.id}")
        async with Connector(sandbox, workspace, tmp_path):
            await registered(sandbox, workspace)
