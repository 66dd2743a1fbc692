"""The kit lets good backends pass, and names what is wrong with bad ones."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from tests.plugins.distributions import backends, write_distribution

from molecule_connect.errors import BackendError, BackendNotFoundError, CloseError
from molecule_connect.models import FilePart, Progress, Request, Response
from molecule_connect.plugins.hookspecs import hookimpl
from molecule_connect.testing import check_backend, make_request, running
from molecule_connect.testing.watching import Watch, watch_loop


class Good:
    """As it should be."""

    @hookimpl
    async def handle_a2a(self, request: Request, progress: Progress) -> Response:
        progress("thinking")
        return Response.from_text(f"echo: {request.text}")


class GoodPlain:
    @hookimpl
    def handle_a2a(self, request: Request) -> Response:
        time.sleep(0.01)
        return Response.from_text("done")


class Fails:
    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        raise BackendError("no model is loaded")


class Unready(Good):
    @hookimpl
    def check(self) -> str:
        return "no login"


class OneAtATime:
    def __init__(self) -> None:
        self.busy = False

    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        assert not self.busy, "one at a time"
        self.busy = True
        await asyncio.sleep(0.01)
        self.busy = False
        return Response.from_text("done")


class SwallowsCancellation:
    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        try:
            await asyncio.sleep(0.8 if request.text == "slow" else 0)
        except asyncio.CancelledError:
            await asyncio.sleep(1.5)
        return Response.from_text("done")


class Blocks:
    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        watching = {thread.ident for thread in threading.enumerate() if thread.name == "watch the loop"}
        until = time.monotonic() + 20
        # Until it is noticed, without a call into another file: the place would be there.
        while watching.intersection(sys._current_frames()) and time.monotonic() < until:
            time.sleep(0.05)  # noqa: ASYNC251 - this is what it does wrong
        return Response.from_text("done")


class BlocksOverMuchText(Blocks):
    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        return await super().handle_a2a(request) if len(request.text) > 1000 else Response.from_text("done")


class Prints:
    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        print("debug: here")
        return Response.from_text("done")


class LetsAProgramPrint:
    @hookimpl
    def handle_a2a(self, request: Request) -> Response:
        subprocess.run(["echo", "from a program"], check=True, env={"PATH": os.environ["PATH"]})
        return Response.from_text("done")


class LeaksTheToken:
    @hookimpl
    def handle_a2a(self, request: Request) -> Response:
        subprocess.run(["true"], check=True)
        return Response.from_text("done")


class LeaksTheTokenAsync:
    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        process = await asyncio.create_subprocess_exec("true", env={**os.environ})
        await process.wait()
        return Response.from_text("done")


class SpawnsWithTheToken:
    @hookimpl
    def handle_a2a(self, request: Request) -> Response:
        os.waitpid(os.posix_spawn("/bin/sh", ["sh", "-c", ":"], os.environ), 0)
        return Response.from_text("done")


class PutsTheTokenOnACommandLine:
    @hookimpl
    def handle_a2a(self, request: Request) -> Response:
        words = ["true", os.environ.get("MOLECULE_WORKSPACE_TOKEN", "")]
        subprocess.run(words, check=True, env={"PATH": os.environ["PATH"]})
        return Response.from_text("done")


class NeedsText:
    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        return Response.from_text(request.text.split()[0])


class NeedsNoFiles:
    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        names = [part.name for part in request.parts if isinstance(part, FilePart)]
        if names:
            raise KeyError(names[0])
        return Response.from_text("done")


class ClosesOnce(Good):
    def __init__(self) -> None:
        self.handles = ["open"]

    @hookimpl
    def close(self) -> None:
        self.handles.pop()


@pytest.mark.parametrize("backend", [Good, GoodPlain])
async def test_a_good_backend_passes(backend: type) -> None:
    await check_backend(backend)


@pytest.mark.parametrize(
    ("backend", "check", "words"),
    [
        (Fails, "answers with a response", "no model is loaded"),
        (Unready, "answers with a response", "check() found problems: backend Unready: no login"),
        (OneAtATime, "answers two at once", "AssertionError: one at a time"),
        (SwallowsCancellation, "ends within a second when cancelled", "suppress CancelledError"),
        (Blocks, "keeps the event loop free", "blocked at test_check_backend.py, line"),
        (BlocksOverMuchText, "survives any input", "a big message: the event loop was blocked at test_check"),
        (Prints, "prints nothing", "'debug: here"),
        (LetsAProgramPrint, "prints nothing", "'from a program"),
        (LeaksTheToken, "keeps the token to itself", "started 'true' with the platform's token"),
        (LeaksTheTokenAsync, "keeps the token to itself", "config.child_environment()"),
        (SpawnsWithTheToken, "keeps the token to itself", "started 'sh -c :' with the platform's token"),
        (PutsTheTokenOnACommandLine, "keeps the token to itself", "with the platform's token"),
        (NeedsText, "survives any input", "an empty message: it raised IndexError"),
        (NeedsNoFiles, "survives any input", "a file alone: it raised KeyError"),
        (ClosesOnce, "can be closed twice", "pop from empty list"),
    ],
)
async def test_what_is_wrong_is_named(backend: Callable[[], Any], check: str, words: str) -> None:
    with pytest.raises(AssertionError) as caught:
        await check_backend(backend, slow=make_request("slow"))

    head, *failed = str(caught.value).splitlines()
    assert "breaks rules" in head
    assert any(line.startswith(f"- {check}") and words in line for line in failed), failed


def test_loops_closed_while_watched_raise_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, closed, threads = threading.Event(), threading.Event(), set(threading.enumerate())

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        ask = loop.call_soon_threadsafe

        def late(*given: Any) -> Any:
            asked.set()
            closed.wait(10)
            return ask(*given)

        monkeypatch.setattr(loop, "call_soon_threadsafe", late)
        with watch_loop(Watch()):
            assert asked.wait(10)

    asyncio.run(watched())
    closed.set()
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)


async def test_reports_all_problems_at_once() -> None:
    class Both(Prints):
        def __init__(self) -> None:
            self.handles = ["open"]

        @hookimpl
        def close(self) -> None:
            self.handles.pop()

    with pytest.raises(AssertionError) as caught:
        await check_backend(Both)

    assert [line.partition(":")[0] for line in str(caught.value).splitlines()[1:]] == [
        "- prints nothing",
        "- can be closed twice and unused",
    ]


LAX = """
from molecule_connect import BackendConfig, Response, hookimpl

class Lax:
    @hookimpl
    async def handle_a2a(self, request):
        return Response.from_text("done")

def create(config: BackendConfig) -> Lax:
    dict(config.options)
    return Lax()

def strict(config: BackendConfig) -> Lax:
    config.get("known")
    return Lax()
"""


async def test_named_backends_must_reject_unknown_options(site: Path) -> None:
    path = [write_distribution(site, "lax", entry_points=backends(lax="lax:create", strict="lax:strict"), lax=LAX)]

    await check_backend("strict", path=path)
    with pytest.raises(AssertionError, match="refuses unknown options: it accepted an unknown option"):
        await check_backend("lax", path=path)
    with pytest.raises(AssertionError, match="no backend named 'gone'"):
        await check_backend("gone", path=path)


async def test_slow_backends_learn_to_report_progress() -> None:
    class Slow:
        @hookimpl
        async def handle_a2a(self, request: Request) -> Response:
            await asyncio.Event().wait()
            raise AssertionError

    with pytest.raises(AssertionError, match=r"no response within 0\.05 s; pass seconds="):
        await check_backend(Slow, seconds=0.05)


async def test_checks_leave_the_process_unchanged(capfd: pytest.CaptureFixture[str]) -> None:
    before, stdout = dict(os.environ), sys.stdout

    with pytest.raises(AssertionError):
        await check_backend(Prints)

    print("still here")
    assert (dict(os.environ), sys.stdout) == (before, stdout)
    assert "still here" in capfd.readouterr().out


async def test_running_makes_asks_and_closes() -> None:
    closed = []

    @attrs.frozen(eq=False)
    class Closing(Good):
        @hookimpl
        def close(self) -> None:
            closed.append(self)

    async with running(Closing()) as started:
        assert (await started.ask("hi")).text == "echo: hi"
        assert (await started.ask(make_request("a request"))).text == "echo: a request"
        assert started.progress == ["thinking", "thinking"]
        assert await started.check() == []
        assert closed == []
    assert len(closed) == 1


async def test_running_tells_what_a_connection_would() -> None:
    class Silent:
        @hookimpl
        async def handle_a2a(self, request: Request) -> None:
            return None

        @hookimpl
        async def close(self) -> None:
            raise OSError("no")

    with pytest.raises(CloseError):  # noqa: PT012 - it is raised by the end of the block
        async with running(Silent()) as started:
            with pytest.raises(BackendError, match="no answer"):
                await started.ask()
    with pytest.raises(BackendNotFoundError):
        async with running("no-such-backend"):
            pass
