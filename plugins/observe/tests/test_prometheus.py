"""A real Prometheus scrapes a loaded connector, and each alert fires when its fault is switched on."""

import asyncio
import contextlib
import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs
import pytest
from tests.e2e.kit import mounted

from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import Connector, free_port, get, until_ready

FAST = (
    # Minutes of the shipped rules, in seconds.
    (r"for: \d+m", "for: 2s"),
    (r"\[5m\]", "[60s]"),
    (r"\[15m\]", "[60s]"),
    (r"\[6h\]", "[60s]"),
    (r"molecule_oldest_waiting_seconds > 600", "molecule_oldest_waiting_seconds > 5"),
    (r"molecule_oldest_unsent_seconds > 300", "molecule_oldest_unsent_seconds > 5"),
)
CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: molecule
    static_configs: [{{targets: ['127.0.0.1:{port}']}}]
"""
NAMES = ("good", "deaf", "mute", "refused", "slow", "dying", "poor")
DYING = """echo '{"type": "error", "message": "no", "retryable": false}'"""
DEAR = """echo '{"type": "response", "text": "done", "usage": {"cost_usd": 0.5}}'"""


@attrs.frozen
class Prometheus:
    """A running Prometheus."""

    port: int

    async def ask(self, path: str) -> Any:
        _, body = await get(self.port, path)
        return json.loads(body)["data"]

    async def firing(self) -> set[tuple[str, str]]:
        """Alert and workspace of each alert that fires."""
        alerts = (await self.ask("/api/v1/alerts"))["alerts"]
        return {
            (one["labels"]["alertname"].removeprefix("Molecule"), one["labels"].get("workspace", ""))
            for one in alerts
            if one["state"] == "firing"
        }

    async def until_fires(self, *alerts: tuple[str, str]) -> None:
        """Wait until all of *alerts* fire."""
        found: set[tuple[str, str]] = set()
        try:
            async with asyncio.timeout(90):
                while not (found := await self.firing()) >= set(alerts):  # noqa: ASYNC110 - another process decides
                    await asyncio.sleep(0.5)
        except TimeoutError:
            raise AssertionError(f"{set(alerts) - found} did not fire, only {found}") from None

    async def until_scraped(self) -> None:
        """Wait until the connector was scraped a few times."""
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError, IndexError, KeyError):
                    found = (await self.ask("/api/v1/query?query=count_over_time(molecule_workspaces[1m])"))["result"]
                    if found and float(found[0]["value"][1]) >= 5:
                        return
                await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def prometheus(folder: Path, port: int) -> AsyncIterator[Prometheus]:
    """A Prometheus that scrapes *port* every second, with the shipped rules."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed: apt install prometheus")
    folder.mkdir()  # noqa: ASYNC240
    rules = (files("molecule_connect_observe") / "monitoring" / "molecule.rules.yml").read_text()
    for pattern, replacement in FAST:
        rules, count = re.subn(pattern, replacement, rules)
        assert count, pattern
    (folder / "rules.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(CONFIG.format(rules=folder / "rules.yml", port=port))
    own = free_port()
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{own}",
            stdout=log,
            stderr=log,
        )
        try:
            yield Prometheus(own)
        finally:
            process.terminate()
            await process.wait()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB."""
    with mounted(tmp_path / "disk", "32m") as place:
        yield place


def block(name: str, workspace: Workspace) -> str:
    backends = {
        "slow": 'backend = "exec"\nconcurrency = 1\noptions.cmd = "sleep 300"',
        "dying": f'backend = "exec"\noptions.format = "json"\noptions.cmd = """{DYING}"""',
        "poor": f'backend = "exec"\nmax_cost_per_day = 0.1\noptions.format = "json"\noptions.cmd = """{DEAR}"""',
    }
    more = backends.get(name, 'backend = "mock"')
    return f'[[workspace]]\nid = "{workspace.id}"\ntoken = "{workspace.token}"\nlabels = {{name = "{name}"}}\n{more}\n'


async def chat(sandbox: Sandbox, workspace: Workspace) -> None:
    """Write to *workspace* ten times a second."""
    while True:
        await sandbox.say(workspace, "hello")
        await asyncio.sleep(0.1)


@pytest.mark.drill
@pytest.mark.timeout(400)
async def test_each_alert_fires_for_its_fault(small_disk: Path, tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    config.touch(mode=0o600)
    async with contextlib.AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(Sandbox.over_loopback())
        fleet = {name: await sandbox.workspace(name) for name in NAMES}
        ids = {name: workspace.id for name, workspace in fleet.items()}
        config.write_text(
            f'[defaults]\napi_url = "{sandbox.url}"\n' + "".join(block(name, one) for name, one in fleet.items())
        )
        arguments = ("--config", str(config), "--state-dir", str(small_disk / "state"), "--grace", "1")
        connector = await stack.enter_async_context(Connector(*arguments))
        port = await connector.port()
        await until_ready(port)
        watcher = await stack.enter_async_context(prometheus(tmp_path / "prometheus", port))
        chatting = asyncio.create_task(chat(sandbox, fleet["good"]))
        stack.callback(chatting.cancel)
        await watcher.until_scraped()
        assert await watcher.firing() == set()

        await sandbox.faults(
            f"status=500,path=/workspaces/{ids['deaf']}/activity",
            f"status=503,path=/workspaces/{ids['mute']}/notify",
            f"status=401,path=/workspaces/{ids['refused']}/activity",
        )
        for name in ("mute", "slow", "slow", "dying", "poor", "poor"):
            await sandbox.say(fleet[name], "hello", contextId=name)
        config.write_text(config.read_text() + "[[workspace]]\n")
        connector.reload()
        await watcher.until_fires(
            ("Deaf", ids["deaf"]),
            ("Mute", ids["mute"]),
            ("AuthFailing", ids["refused"]),
            ("Lagging", ids["slow"]),
            ("DeadLettersGrowing", ids["dying"]),
            ("BudgetSpent", ids["poor"]),
            ("ReloadRefused", ""),
        )
        with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
            while ballast.write(b"x" * 4096):
                pass
        await watcher.until_fires(("DiskFilling", ""))
        (small_disk / "ballast").unlink()

        firing = await watcher.firing()
        assert not [alert for alert, workspace in firing if workspace == ids["good"] and alert != "DiskFilling"], firing
        targets = await watcher.ask("/api/v1/targets")
        assert [one["health"] for one in targets["activeTargets"]] == ["up"]

        await sandbox.faults()
        await connector.stop()
        await watcher.until_fires(("Down", ""))
