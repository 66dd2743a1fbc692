"""Refused workspaces of a list are checked again without a signal."""

import asyncio
from pathlib import Path

from molecule_connect import events
from molecule_connect.app import deploy
from molecule_connect.cli.reloading import follow_the_list
from molecule_connect.cli.service_report import ServiceReport
from molecule_connect.cli.signals import StopSignals
from molecule_connect.cli.workspaces import WorkspaceSource
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.console.screen import Summary
from molecule_connect.process.notify import ServiceManager
from molecule_connect_sandbox.testing import Sandbox


class Recorder:
    """A screen that keeps what it is told."""

    def __init__(self) -> None:
        self.troubles: list[events.Trouble] = []
        self.notes: list[str] = []
        self.opened: list[str] = []

    def open(self, summaries: list[Summary]) -> None:
        self.opened += [summary.workspace_id for summary in summaries]

    def plan(self, summaries: list[Summary]) -> None: ...

    def forget(self, workspace_id: str) -> None: ...

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.Trouble):
            self.troubles.append(event)

    def note(self, level: str, text: str, hint: str = "") -> None:
        self.notes.append(text)

    def fail(self, text: str, hint: str, exit_code: int, traceback: str = "") -> None: ...

    def last_words(self, text: str, exit_code: int) -> str:
        return text

    def close(self) -> None: ...


def summary(settings: WorkspaceSettings) -> Summary:
    return Summary(workspace_id=settings.workspace_id, backend="", mode="", api_url="", state_dir="")


async def test_notices_new_token_file_without_signal(tmp_path: Path) -> None:
    config, state, screen = tmp_path / "fleet.toml", tmp_path / "state", Recorder()
    async with Sandbox.over_loopback() as sandbox:
        good, late = await sandbox.workspace("good"), await sandbox.workspace("late")
        config.touch(mode=0o600)
        config.write_text(
            f'[defaults]\nbackend = "mock"\napi_url = "{sandbox.url}"\n'
            f'[[workspace]]\nid = "{good.id}"\ntoken = "{good.token}"\n'
            f'[[workspace]]\nid = "{late.id}"\ntoken_file = "late"\n'
            '[[workspace]]\nid = "a b"\ntoken = "t0k3n-1234"\n'
        )
        source = WorkspaceSource({}, {}, config=config, state_dir=state)
        listing = source.read()
        state.mkdir()
        stop = asyncio.Event()
        async with deploy(listing, state, screen, strict=False) as deployment:
            running = asyncio.ensure_future(deployment.run(stop))
            following = asyncio.ensure_future(
                follow_the_list(
                    source,
                    asyncio.Event(),
                    deployment,
                    screen=screen,
                    listener=screen,
                    signals=StopSignals(grace=1.0, spell=lambda text, code: text),
                    summary=summary,
                    report=ServiceReport(ServiceManager()),
                    retry=0.05,
                )
            )
            await sandbox.beats(good, 1)
            (tmp_path / "new").touch(mode=0o600)
            (tmp_path / "new").write_text(late.token)
            (tmp_path / "new").rename(tmp_path / "late")
            await sandbox.beats(late, 1)
            following.cancel()
            stop.set()
            await asyncio.gather(running, following, return_exceptions=True)
    listed = [(event.workspace_id, event.reason.split(": ")[0]) for event in screen.troubles if event.part == "list"]
    assert listed == [(late.id, f"workspace 2 ({late.id})"), ("workspace 3", "workspace 3")]
    assert (screen.opened, screen.notes) == ([late.id], [])
