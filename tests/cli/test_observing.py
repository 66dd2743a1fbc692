"""``molecule connect --http``: the address, and the plugin that serves it."""

import asyncio
import io
from pathlib import Path
from typing import Any

import attrs
import pytest
from tests.plugins.distributions import write_distribution

from molecule_connect import events
from molecule_connect.cli.observing import Observation, asks_for_traces, parse_listen_address
from molecule_connect.console.select import choose
from molecule_connect.errors import ConfigError, PluginError
from molecule_connect.observers import ObserverConfig, Step

from .conftest import Molecule

EVENT = events.Notice(workspace_id="ws_1", text="hi")


@attrs.define
class Watcher:
    """An observer that keeps what it is told, or fails."""

    config: ObserverConfig
    fails_at: str = ""
    told: list[Any] = attrs.field(factory=list)

    async def start(self) -> None:
        self._note("start")

    def event(self, event: events.Event) -> None:
        self._note(event)

    async def close(self) -> None:
        self._note("close")

    def _note(self, what: Any) -> None:
        self.told.append(what)
        if self.fails_at and what in (self.fails_at, EVENT):
            raise RuntimeError("a bug")


class Making:
    """Creates a watcher."""

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at = fails_at

    def __call__(self, config: ObserverConfig) -> Watcher:
        self.made = Watcher(config, self.fails_at)
        return self.made


def observation(make: Making | None) -> Observation:
    return Observation(
        {} if make is None else {"http": make},
        ("127.0.0.1", 9090),
        choose(io.StringIO(), "lines"),
        workspace_labels=False,
    )


async def test_observer_gets_its_configuration_and_every_event() -> None:
    make, shown = Making(), list[events.Event]()
    observed = observation(make)
    async with observed.running():
        observed.following(shown.append)(EVENT)
        config = make.made.config
        assert (config.host, config.port, config.workspace_labels) == ("127.0.0.1", 9090, False)
        state = await config.process.snapshot()
        assert (state.is_started, state.is_stopping, state.workspaces) == (False, False, ())
    assert (make.made.told, shown) == (["start", EVENT, "close"], [EVENT])


async def test_failing_observer_affects_no_listener() -> None:
    found: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: found.append(context["exception"]))
    shown, observed = list[events.Event](), observation(Making("event"))
    async with observed.running():
        observed.following(shown.append)(EVENT)
    assert shown == [EVENT]
    assert [str(one) for one in found] == ["a bug"]


async def test_observer_that_cannot_start_is_an_error() -> None:
    with pytest.raises(PluginError, match="observer http failed: RuntimeError: a bug"):
        async with observation(Making("start")).running():
            pass


async def test_without_an_observer_nothing_is_added() -> None:
    observed, shown = observation(None), list[events.Event]()
    async with observed.running():
        assert observed.following(shown.append) == shown.append


class TracingWatcher(Watcher):
    """Gives steps a context, or fails."""

    def trace(self, step: Step) -> str:
        if step.row_id == "bad":
            raise RuntimeError("a bug")
        return f"00-{step.row_id}"


async def test_failing_tracer_affects_no_message() -> None:
    found: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: found.append(context["exception"]))
    screen = choose(io.StringIO(), "lines")
    observed = Observation({"http": Watcher, "otel": TracingWatcher}, ("", 0), screen)
    step = Step(name="handler", workspace_id="ws_1", backend="mock", row_id="r1", caller_id=None, attempt=1, sent="s")
    async with observed.running():
        assert (trace := observed.tracer) is not None
        assert [trace(step), trace(attrs.evolve(step, row_id="bad"))] == ["00-r1", "s"]
        assert trace(attrs.evolve(step, row_id="bad", name="send")) == ""
    assert [str(one) for one in found] == ["a bug", "a bug"]


async def test_all_observers_get_every_event() -> None:
    first, second, shown = Making("event"), Making(), list[events.Event]()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    observed = Observation({"http": first, "otel": second}, ("", 0), choose(io.StringIO(), "lines"))
    async with observed.running():
        observed.following(shown.append)(EVENT)
        assert observed.tracer is None
    assert first.made.told == second.made.told == ["start", EVENT, "close"]
    assert shown == [EVENT]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "console, otlp"},
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "TRUE"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "false"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_standard_variables_ask_for_traces(environ: dict[str, str], expected: str) -> None:
    assert asks_for_traces(environ) == expected


def test_missing_extra_costs_a_warning(molecule: Molecule, plugins: Path, tmp_path: Path, token: str) -> None:
    entry_points = {"molecule_connect.observers": {"otel": "lacking:TraceObserver"}}
    write_distribution(plugins, "molecule-connect-observe", entry_points=entry_points, lacking="import opentelemetry_x")
    arguments = ("connect", "ws_1", "--backend", "parrot", "--dry-run", "--state-dir", str(tmp_path / "state"))
    result = molecule(*arguments, MOLECULE_WORKSPACE_TOKEN=token, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert result.code == 0
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set, but no traces are sent: observer otel" in result.stderr
    assert "No module named 'opentelemetry_x'" in result.stderr
    assert 'pip install "molecule-connect[otel]"' in result.stderr


def test_missing_plugin_is_named(molecule: Molecule, plugins: Path, tmp_path: Path, token: str) -> None:
    write_distribution(plugins, "molecule-connect-observe")
    arguments = ("connect", "ws_1", "--backend", "parrot", "--state-dir", str(tmp_path / "state"), "--http", ":0")
    result = molecule(*arguments, MOLECULE_WORKSPACE_TOKEN=token)
    assert result.code == 2
    assert "--http needs a plugin that is not installed" in result.stderr
    assert 'pip install "molecule-connect[observe]"' in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9090", ("127.0.0.1", 9090)),
        (":9090", ("127.0.0.1", 9090)),
        ("[::1]:9090", ("::1", 9090)),
        ("[::]:0", ("::", 0)),
        ("0.0.0.0:9090", ("0.0.0.0", 9090)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_listen_addresses_are_parsed(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "9090", "127.0.0.1", "127.0.0.1:", "::1:9090", "::1", "[::1]", ":65536", ":-1", ":9o", ":٣", "a:b:1"]
)
def test_invalid_listen_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--http") as caught:
        parse_listen_address(text)
    assert "[::1]:9090" in caught.value.hint


def test_dry_run_checks_the_listen_address(molecule: Molecule, tmp_path: Path, token: str) -> None:
    arguments = ("connect", "ws_1", "--backend", "parrot", "--dry-run", "--state-dir", str(tmp_path / "state"))
    result = molecule(*arguments, "--http", "nonsense", MOLECULE_WORKSPACE_TOKEN=token)
    assert result.code == 2
    assert "--http 'nonsense' is not an address with a port" in result.stderr
    assert molecule(*arguments, MOLECULE_WORKSPACE_TOKEN=token, MOLECULE_HTTP=":0").code == 0
