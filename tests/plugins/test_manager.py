"""Making a host: what it accepts, what it refuses, and that nothing stays open."""

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest
from tests.plugins.distributions import backends, write_distribution

from molecule_connect import InboxBackend, Request, Response, create_backend, hookimpl
from molecule_connect.errors import BackendNotFoundError, ConfigError, OptionError, PluginError
from molecule_connect.models import Handler, Progress
from molecule_connect.plugins.manager import PluginHost, create_host
from molecule_connect.testing import make_request

SHOUT = """
from typing import Annotated
import attrs
from molecule_connect import BackendConfig, Response, hookimpl, options

closed = []

@attrs.frozen(eq=False, kw_only=True)
class Shout:
    suffix: Annotated[str, "text put after each answer"] = "!"

    @hookimpl
    async def handle_a2a(self, request):
        return Response.from_text(request.text.upper() + self.suffix)

    @hookimpl
    async def close(self):
        closed.append(self.suffix)

def factory(config):
    return Shout(suffix=config.get("suffix", "?"))

async def slow_factory(config):
    return Shout(suffix=config.require("suffix"))

@options(Shout)
def declared(config):
    return config.structure(Shout)

def broken(config):
    raise ValueError("cannot use " + config.require("key"))

def leaving(config):
    raise SystemExit(4)

def returns_class(config):
    return Shout

def returns_none(config):
    Shout()

def stateful(config):
    return Shout(suffix=str(config.state_dir))

constant = 7
"""


def no_progress(update: str | Response) -> Any:
    return None


class Echo:
    def __init__(self) -> None:
        self.closed = 0

    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        return Response.from_text(request.text)

    @hookimpl
    def close(self) -> None:
        self.closed += 1


class Wrap:
    """Puts its mark around what passes."""

    def __init__(self, mark: str = "w") -> None:
        self.mark = mark
        self.closed = 0

    @hookimpl
    def wrap_handler(self, handler: Handler) -> Handler:
        async def wrapped(request: Request, progress: Progress) -> Response:
            inner = attrs.evolve(request, parts=Response.from_text(f"{self.mark}>{request.text}").parts)
            return Response.from_text(f"{(await handler(inner, progress)).text}<{self.mark}")

        return wrapped

    @hookimpl
    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def path(site: Path) -> list[str]:
    names = ("factory", "slow_factory", "declared", "broken", "leaving", "returns_class", "returns_none", "stateful")
    targets = {name: f"shout_mod:{name}" for name in (*names, "constant")}
    targets |= {"shout": "shout_mod:Shout", "module": "shout_mod"}
    return [write_distribution(site, "acme-shout", entry_points=backends(**targets), shout_mod=SHOUT)]


def closed() -> list[str]:
    import sys

    return list(sys.modules["shout_mod"].closed)


async def host_of(backend: object, **more: Any) -> PluginHost:
    return await create_host(workspace_id="ws_1", backend=backend, **more)


async def ask(host: PluginHost, text: str = "hi") -> str:
    return (await host.answering()(make_request(text), no_progress)).text


@pytest.mark.parametrize("name", ["shout", "factory", "slow-factory", "declared"])
async def test_creates_backends_from_classes_and_factories(path: list[str], name: str) -> None:
    async with await host_of(name, options={"suffix": "#"}, path=path) as host:
        assert await ask(host) == "HI#"
    assert closed() == ["#"]


@pytest.mark.parametrize("name", ["shout", "factory", "slow-factory", "declared"])
async def test_repeated_options_warn_or_fail_in_files(path: list[str], name: str) -> None:
    told: list[str] = []
    given = {"suffix": ["#", "!"]}

    await (await host_of(name, options=given, path=path, warn=told.append)).close()
    with pytest.raises(OptionError, match="once"):
        await host_of(name, options=given, path=path, listed=True)

    (warning,) = told
    assert "'suffix'" in warning
    assert "the last value is used" in warning
    assert closed() == ["!"]


@pytest.mark.parametrize("name", ["shout", "factory", "slow-factory", "declared"])
async def test_unknown_options_warn_or_fail_when_strict(path: list[str], name: str) -> None:
    told: list[str] = []
    given = {"suffix": "#", "sufix": "x"}

    await (await host_of(name, options=given, path=path, warn=told.append)).close()
    with pytest.raises(OptionError, match="has no option 'sufix', did you mean 'suffix'"):
        await host_of(name, options=given, path=path, warn=told.append, strict=True)

    assert len(told) == 1
    assert "did you mean 'suffix'" in told[0]
    assert closed() in (["#"], ["#", "#"]), "what was made before the key was found unknown is closed too"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("constant", "shout_mod:constant is an int"),
        ("module", "shout_mod is a module"),
        ("returns-class", "backend returns-class is a class, not an instance"),
        ("returns-none", "backend returns-none is None"),
        ("leaving", "cannot be created: SystemExit: 4"),
        ("broken", "cannot be created: ValueError: cannot use ..."),
    ],
)
async def test_rejects_entry_points_that_create_no_plugin(path: list[str], name: str, text: str) -> None:
    with pytest.raises(PluginError) as caught:
        await host_of(name, options={"key": "s3cret"} if name == "broken" else {}, path=path)

    assert text in str(caught.value)
    assert caught.value.hint
    assert "s3cret" not in str(caught.value)


async def test_a_missing_backend_is_its_own_error(path: list[str]) -> None:
    with pytest.raises(BackendNotFoundError):
        await host_of("none-such", path=path)


class UnmarkedClose(Echo):
    def close(self) -> None: ...


class Misspelt(Echo):
    @hookimpl
    def handle_a2a_message(self, request: Request) -> None: ...


class Wrapping(Echo):
    @hookimpl(wrapper=True)
    def handle_a2a(self, request: Request) -> Any:
        yield


class Yielding(Echo):
    @hookimpl
    async def handle_a2a(self, request: Request) -> Any:
        yield Response.from_text("a")


class Greedy(Echo):
    @hookimpl
    async def handle_a2a(self, request: Request, progres: Progress) -> Response:  # type: ignore[override]
        return Response.from_text("a")


class Twice(Echo):
    @hookimpl(specname="handle_a2a")
    async def also(self, request: Request) -> Response:
        return Response.from_text("a")


class Nothing:
    @hookimpl
    def check(self) -> None: ...


def careless(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def careful(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def narrow(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(self: object, request: Request) -> Any:
        return function(self, request, None)

    return wrapper


class MarkedOutside(Echo):
    @hookimpl
    @careless
    async def handle_a2a(self, request: Request) -> Response:
        return Response.from_text("a")


class MarkLost(Echo):
    @careless
    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        return Response.from_text("a")


class Narrowed(Echo):
    @hookimpl
    @narrow
    async def handle_a2a(self, request: Request, progress: Progress) -> Response:
        return Response.from_text("a")


@pytest.mark.parametrize(
    ("plugin", "text", "hint"),
    [
        (Echo, "is a class, not an instance", "returns an instance"),
        (functools, "is a module, not an instance", "returns an instance"),
        (UnmarkedClose(), "close of backend UnmarkedClose is not marked as a hook", "@hookimpl"),
        (Misspelt(), "no hook 'handle_a2a_message'", "docs/hooks.md"),
        (Misspelt(), "did you mean 'handle_a2a'?", "docs/hooks.md"),
        (Wrapping(), "is a pluggy wrapper", "wrap_handler"),
        (Yielding(), "yields instead of returning", "progress"),
        (Greedy(), "has an unknown parameter 'progres', did you mean 'progress'?", "request, progress"),
        (Twice(), "implements handle_a2a more than once", "keep one"),
        (Nothing(), "does not implement handle_a2a", "@hookimpl"),
        (MarkedOutside(), "has no parameter 'request'", "functools.wraps"),
        (MarkLost(), "is not marked as a hook", "outermost"),
        (Narrowed(), "doesn't pass on all arguments", "**kwargs"),
    ],
)
async def test_rejects_plugins_with_ineffective_mistakes(plugin: object, text: str, hint: str) -> None:
    with pytest.raises(PluginError) as caught:
        await host_of(plugin)

    assert text in str(caught.value)
    assert hint in caught.value.hint


async def test_a_careful_decorator_passes() -> None:
    class Decorated(Echo):
        @hookimpl
        @careful
        async def handle_a2a(self, request: Request) -> Response:
            return Response.from_text("decorated")

    async with await host_of(Decorated()) as host:
        assert await ask(host) == "decorated"


async def test_accepts_data_attributes_named_like_hooks() -> None:
    @attrs.frozen(eq=False)
    class Checking:
        check: bool = True

        @hookimpl
        async def handle_a2a(self, request: Request) -> Response:
            return Response.from_text(str(self.check))

    async with await host_of(Checking()) as host:
        assert await ask(host) == "True"
        assert await host.check() == []


async def test_backend_and_middleware_describe_themselves_in_order() -> None:
    class Describing(Echo):
        @hookimpl
        async def describe(self) -> list[str]:
            return ["backend"]

    class Around:
        @hookimpl
        def wrap_handler(self, handler: Handler) -> Handler:
            return handler

        @hookimpl
        def describe(self) -> str:
            return "around"

    async with await host_of(Describing(), middleware=[Around()]) as host:
        assert await host.describe() == ["backend", "around"]
    async with await host_of(Echo()) as host:
        assert await host.describe() == []


async def test_backends_know_the_planned_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import attrs
from molecule_connect import BackendConfig, hookimpl

@attrs.frozen(eq=False)
class Rooted:
    config: BackendConfig

    @hookimpl
    def describe(self):
        return str(self.config.state_root)

    @hookimpl
    def handle_a2a(self, request): ...
"""
    folder = write_distribution(
        tmp_path / "site", "acme-root", entry_points=backends(rooted="root_mod:Rooted"), root_mod=source
    )
    monkeypatch.syspath_prepend(folder)
    root = tmp_path / "state"

    for given in ({"state_dir": root}, {"state_root": root}):
        async with await host_of("rooted", path=[folder], **given) as host:
            assert await host.describe() == [str(root)]
    async with await host_of("rooted", path=[folder]) as host:
        assert await host.describe() == ["None"]
    assert not root.exists()


async def test_ignores_optional_hooks_of_later_versions() -> None:
    class Ahead(Echo):
        @hookimpl(optionalhook=True)
        def later(self, something: str) -> None: ...

    async with await host_of(Ahead()) as host:
        assert await ask(host) == "hi"


async def test_the_first_named_middleware_is_the_outermost() -> None:
    async with await host_of(Echo(), middleware=[Wrap("a"), Wrap("b")]) as host:
        assert await ask(host, "x") == "b>a>x<b<a"


async def test_finds_middleware_by_name_with_its_options(site: Path) -> None:
    source = (
        "import attrs\nfrom molecule_connect import Response, hookimpl\n"
        "@attrs.frozen(eq=False)\nclass Redact:\n    word: str\n    @hookimpl\n    def wrap_handler(self, handler):\n"
        "        async def wrapped(request, progress):\n            answer = await handler(request, progress)\n"
        "            return Response.from_text(answer.text.replace(self.word, '***'))\n        return wrapped\n"
    )
    path = write_distribution(
        site, "redact", entry_points="[molecule_connect.middleware]\nredact = redact_mod:Redact\n", redact_mod=source
    )
    use: dict[str, Any] = {"middleware": ["redact"], "path": [path]}

    async with await host_of(Echo(), middleware_options={"redact.word": "blue"}, **use) as host:
        assert await ask(host, "blue sky") == "*** sky"
    with pytest.raises(OptionError) as caught:
        await host_of(Echo(), **use)
    assert caught.value.hint == "set it: --use-opt redact.word=..."
    for key in ("word", "other.word", "redact."):
        with pytest.raises(PluginError, match=f"'{key}' doesn't belong to any middleware in use"):
            await host_of(Echo(), middleware_options={key: "blue"}, **use)
    with pytest.raises(PluginError, match="named twice"):
        await host_of(Echo(), middleware=["redact", "redact"], path=[path])


@pytest.mark.parametrize(
    ("middleware", "text"),
    [
        (Echo(), "middleware Echo is a second backend"),
        (Nothing(), "does not implement wrap_handler"),
        (Wrap, "is a class, not an instance"),
    ],
)
async def test_rejects_invalid_middleware_and_closes_backend(middleware: object, text: str) -> None:
    backend = Echo()

    with pytest.raises(PluginError, match=text):
        await host_of(backend, middleware=[middleware])

    assert backend.closed == 1


@pytest.mark.parametrize(("returned", "words"), [(None, "None"), (7, "an int"), ("x", "a str")])
async def test_wrap_handler_has_to_return_a_handler(returned: Any, words: str) -> None:
    class Forgetful:
        @hookimpl
        def wrap_handler(self, handler: Handler) -> Any:
            return returned

    with pytest.raises(PluginError, match=f"wrap_handler of middleware Forgetful returned {words}$"):
        await host_of(Echo(), middleware=[Forgetful()])


async def test_rejects_async_wrap_handler_without_a_warning() -> None:
    class Eager:
        @hookimpl
        async def wrap_handler(self, handler: Handler) -> Handler:
            return handler

    with pytest.raises(PluginError, match="returned a coroutine"):
        await host_of(Echo(), middleware=[Eager()])


async def test_closes_everything_once_when_creation_fails() -> None:
    backend, inner = Echo(), Wrap()

    class Failing:
        @hookimpl
        def wrap_handler(self, handler: Handler) -> Handler:
            raise RuntimeError("no")

        @hookimpl
        def close(self) -> None:
            raise OSError("gone")

    with pytest.raises(PluginError, match="wrap_handler of middleware Failing failed: RuntimeError: no") as caught:
        await host_of(backend, middleware=[Failing(), inner])

    assert (backend.closed, inner.closed) == (1, 1)
    assert "could not be closed: OSError: gone" in caught.value.__notes__[0]


async def test_a_refused_plugin_is_closed_too() -> None:
    plugin = Misspelt()

    with pytest.raises(PluginError):
        await host_of(plugin)

    assert plugin.closed == 1


async def test_rejects_equal_middleware_objects() -> None:
    @attrs.frozen
    class Equal:
        @hookimpl
        def wrap_handler(self, handler: Handler) -> Handler:
            return handler

    with pytest.raises(PluginError, match="equals another plugin") as caught:
        await host_of(Echo(), middleware=[Equal(), Equal()])

    assert "eq=False" in caught.value.hint


async def test_a_backend_object_takes_no_options() -> None:
    with pytest.raises(OptionError, match="takes no options"):
        await host_of(Echo(), options={"a": "b"})


async def test_plugin_folders_are_kept_or_temporary(path: list[str], tmp_path: Path) -> None:
    async with await host_of("stateful", path=path, state_dir=tmp_path / "state") as host:
        assert await ask(host, "") == str(tmp_path / "state" / "backends" / "stateful" / "ws_1")

    async with await host_of("stateful", path=path) as host:
        folder = Path(await ask(host, ""))
        there = folder.is_dir()  # noqa: ASYNC240
    assert there
    assert not folder.exists()  # noqa: ASYNC240


async def test_concurrent_folder_requests_get_the_same_folder() -> None:
    for _ in range(20):
        async with await host_of(Echo()) as host:
            ready = threading.Barrier(8)

            def asked(host: PluginHost = host, ready: threading.Barrier = ready) -> Path:
                ready.wait()
                return host.state_folder()

            with ThreadPoolExecutor(8) as pool:
                folders = {each.result() for each in [pool.submit(asked) for _ in range(8)]}

        assert len(folders) == 1


async def test_folders_are_not_created_after_close() -> None:
    async with await host_of(Echo()) as host:
        pass

    with pytest.raises(ConfigError, match="closed"):
        host.state_folder()


def test_folders_are_removed_when_the_loop_ends() -> None:
    class Staying:
        closing = asyncio.Event()

        @hookimpl
        async def handle_a2a(self, request: Request) -> Response:
            return Response.from_text(request.text)

        @hookimpl
        async def close(self) -> None:
            self.closing.set()
            await asyncio.Event().wait()

    async def ends_early() -> Path:
        host = await host_of(Staying())
        folder = host.state_folder()
        closing = asyncio.ensure_future(host.close())
        await asyncio.wait((closing, asyncio.ensure_future(Staying.closing.wait())), return_when="FIRST_COMPLETED")
        return folder

    assert not asyncio.run(ends_early()).exists()


def test_create_backend_makes_the_plugin_itself(path: list[str]) -> None:
    told: list[str] = []

    made = create_backend("shout", {"suffix": "#", "odd": "1"}, path=path, warn=told.append)

    assert made.suffix == "#"
    assert len(told) == 1


def test_create_backend_rejects_async_factories(path: list[str]) -> None:
    with pytest.raises(PluginError, match="async factory"):
        create_backend("slow-factory", {"suffix": "#"}, path=path)


# A backend that leaves its messages to the readers of an inbox


async def test_inboxes_have_no_handler_but_advice() -> None:
    async with await host_of("inbox") as host:
        assert host.handler is None
        assert "molecule mcp" in host.advice
        with pytest.raises(PluginError, match="handles no messages") as refused:
            host.answering()
        assert "molecule mcp" in refused.value.hint
    async with await host_of(Echo()) as host:
        assert host.advice == ""


async def test_factories_may_return_an_inbox() -> None:
    class Elsewhere(InboxBackend):
        @hookimpl
        def check(self) -> list[str]:
            return ["nobody is there"]

    async with await host_of(Elsewhere()) as host:
        assert host.handler is None
        assert [problem.partition(": ")[2] for problem in await host.check()] == ["nobody is there"]


async def test_an_inbox_that_answers_too_is_refused() -> None:
    class Both(InboxBackend):
        @hookimpl
        def handle_a2a(self, request: Request) -> Response:
            return Response.from_text("")

    with pytest.raises(PluginError, match="handles no messages"):
        await host_of(Both())


async def test_inboxes_reject_middleware() -> None:
    class Wrapper:
        @hookimpl
        def wrap_handler(self, handler: Any) -> Any:
            return handler

    with pytest.raises(PluginError, match="nothing to wrap"):
        await create_host(workspace_id="ws_1", backend=InboxBackend(), middleware=[Wrapper()])
