"""What the host's handler does with a backend: threads, answers, progress, checks, closing."""

import asyncio
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

from molecule_connect import Request, Response, TextPart, hookimpl
from molecule_connect.errors import BackendError, CloseError
from molecule_connect.models import Handler, Progress
from molecule_connect.plugins.hooks import run_check, run_close, run_describe
from molecule_connect.plugins.implementations import Impl
from molecule_connect.plugins.manager import PluginHost, create_host
from molecule_connect.plugins.threads import PluginThreads
from molecule_connect.testing import make_request


def no_progress(update: str | Response) -> Any:
    return None


class Plain:
    """A plain backend around *function*."""

    def __init__(self, function: Callable[[Request, Progress], Any]) -> None:
        self.function = function

    @hookimpl
    def handle_a2a(self, request: Request, progress: Progress) -> Any:
        return self.function(request, progress)


class Async:
    """An async backend around *function*."""

    def __init__(self, function: Callable[[Request, Progress], Awaitable[Any]]) -> None:
        self.function = function

    @hookimpl
    async def handle_a2a(self, request: Request, progress: Progress | None = None) -> Any:
        assert progress is not None
        return await self.function(request, progress)


async def host_of(plugin: object, *middleware: object) -> PluginHost:
    return await create_host(workspace_id="ws_1", backend=plugin, middleware=middleware)


async def ask(plugin: object, progress: Any = no_progress) -> Response:
    async with await host_of(plugin) as host:
        return await host.answering()(make_request(), progress)


class Blocked:
    """A plain function that returns when the test says so."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.entered = asyncio.Semaphore(0)
        self.loop = asyncio.get_running_loop()

    def __call__(self, request: Request, progress: Progress) -> Response:
        self.loop.call_soon_threadsafe(self.entered.release)
        assert self.release.wait(20)
        return Response.from_text("late")


async def test_plain_backends_run_in_threads_with_context() -> None:
    who: ContextVar[str] = ContextVar("who", default="nobody")
    who.set("the caller")

    def answer(request: Request, progress: Progress) -> Response:
        return Response.from_text(f"{who.get()} {threading.current_thread() is threading.main_thread()}")

    assert (await ask(Plain(answer))).text == "the caller False"


async def test_an_async_backend_runs_on_the_loop() -> None:
    async def answer(request: Request, progress: Progress) -> Response:
        return Response.from_text(str(threading.current_thread() is threading.main_thread()))

    assert (await ask(Async(answer))).text == "True"


async def test_a_plain_function_may_return_an_awaitable() -> None:
    async def later() -> Response:
        return Response.from_text("awaited")

    assert (await ask(Plain(lambda request, progress: later()))).text == "awaited"


async def test_blocked_plain_calls_delay_no_name_resolution() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    blocked = Blocked()
    async with await host_of(Plain(blocked)) as host:
        tasks = [asyncio.ensure_future(host.answering()(make_request(), no_progress)) for _ in range(8)]
        for _ in range(8):
            await blocked.entered.acquire()

        async with asyncio.timeout(10):
            found = await asyncio.get_running_loop().getaddrinfo("localhost", 80)

        assert found
        assert not any(task.done() for task in tasks)
        blocked.release.set()
        assert [(await task).text for task in tasks] == ["late"] * 8


async def test_cancelled_plain_calls_end_with_their_thread() -> None:
    blocked = Blocked()
    async with await host_of(Plain(blocked)) as host:
        task = asyncio.ensure_future(host.answering()(make_request(), no_progress))
        await blocked.entered.acquire()
        task.cancel()
        ended, _ = await asyncio.wait((task,), timeout=0.02)
        assert ended == set()

        blocked.release.set()
        await asyncio.wait((task,))
        assert task.cancelled()


async def test_closing_abandons_calls_that_never_return() -> None:
    blocked = Blocked()
    host = await host_of(Plain(blocked))
    cancelled, waiting = (asyncio.ensure_future(host.answering()(make_request(), no_progress)) for _ in range(2))
    await blocked.entered.acquire()
    await blocked.entered.acquire()
    cancelled.cancel()
    await asyncio.sleep(0)

    await host.close()
    await asyncio.wait((cancelled, waiting))

    assert cancelled.cancelled()
    assert isinstance(waiting.exception(), BackendError)
    with pytest.raises(BackendError, match="is closed"):
        await host.answering()(make_request(), no_progress)
    blocked.release.set()


@pytest.mark.parametrize(
    "raised", [StopIteration("x"), SystemExit(2), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]
)
async def test_exceptions_forbidden_in_tasks_become_backend_errors(raised: BaseException) -> None:
    def answer(request: Request, progress: Progress) -> Response:
        raise raised

    with pytest.raises(BackendError, match=type(raised).__name__) as caught:
        await ask(Plain(answer))

    assert caught.value.retryable


class Panic(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (SystemExit(2), "exit status 2"),
        (asyncio.CancelledError(), "cancelled"),
        (Panic("index"), "failed: Panic: index"),
    ],
)
async def test_async_backends_cannot_end_the_program(raised: BaseException, text: str) -> None:
    async def answer(request: Request, progress: Progress) -> Response:
        raise raised

    with pytest.raises(BackendError, match=text):
        await ask(Async(answer))


async def test_other_exceptions_come_through_as_they_are() -> None:
    def plain(request: Request, progress: Progress) -> Response:
        raise KeyError("mine")

    async def parked(request: Request, progress: Progress) -> Response:
        raise BackendError("later", retry_after=60)

    with pytest.raises(KeyError, match="mine"):
        await ask(Plain(plain))
    with pytest.raises(BackendError) as caught:
        await ask(Async(parked))
    assert caught.value.retry_after == 60


async def test_a_cancelled_async_backend_is_cancelled() -> None:
    entered = asyncio.Event()

    async def answer(request: Request, progress: Progress) -> Response:
        entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with await host_of(Async(answer)) as host:
        task = asyncio.ensure_future(host.answering()(make_request(), no_progress))
        await entered.wait()
        task.cancel()
        await asyncio.wait((task,))

    assert task.cancelled()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, "it returned None"),
        ("hello", "it returned a str"),
        (5, "it returned an int"),
        (Response(), "has no content"),
        (Response.from_text(" \n\t"), "has no content"),
        (Response.from_text("\0 \0"), "has no content"),
        (Response(parts=(TextPart("half"),), final=False), "final=False"),
        (Response(parts="hello"), "a part of its Response is a str"),  # type: ignore[arg-type]
        (Response(parts=(TextPart(7),)), "the text of a part of its Response is an int"),  # type: ignore[arg-type]
    ],
)
async def test_invalid_responses_fail_without_retry(answer: Any, text: str) -> None:
    async def give(request: Request, progress: Progress) -> Any:
        return answer

    for plugin in (Async(give), Plain(lambda request, progress: answer)):
        with pytest.raises(BackendError, match=text) as caught:
            await ask(plugin)
        assert not caught.value.retryable
        assert str(caught.value).startswith(f"no answer from backend {type(plugin).__name__}: ")


async def test_usage_of_another_type_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    response = Response.from_text("hi", usage={"cost_usd": 1})  # type: ignore[arg-type]

    assert await ask(Plain(lambda request, progress: response)) == Response.from_text("hi")
    assert "usage of a Response of backend Plain" in caplog.text


async def test_silence_on_purpose_is_an_answer() -> None:
    assert (await ask(Plain(lambda request, progress: Response.silent()))).is_silent


async def test_middleware_without_an_answer_is_named() -> None:
    class Forgetful:
        @hookimpl
        def wrap_handler(self, handler: Handler) -> Any:
            async def wrapped(request: Request, progress: Progress) -> None:
                await handler(request, progress)

            return wrapped

    async with await host_of(Plain(lambda request, progress: Response.from_text("x")), Forgetful()) as host:
        with pytest.raises(BackendError, match="no answer from middleware Forgetful: it returned None"):
            await host.answering()(make_request(), no_progress)


async def told_by(plugin: object, *middleware: object) -> list[str | Response]:
    told: list[str | Response] = []

    async def progress(update: str | Response) -> None:
        await asyncio.sleep(0)
        told.append(update)

    async with await host_of(plugin, *middleware) as host:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await host.answering()(make_request(), progress)
    return told


async def test_progress_arrives_before_the_response() -> None:
    partial = Response(parts=(TextPart("two"),), final=False)

    async def on_loop(request: Request, progress: Progress) -> Response:
        progress("one")
        await progress(partial)
        progress("three")
        return Response.from_text("done")

    def in_thread(request: Request, progress: Progress) -> Response:
        progress("one")
        progress(partial)
        progress("three")
        return Response.from_text("done")

    assert await told_by(Async(on_loop)) == ["one", partial, "three"]
    assert await told_by(Plain(in_thread)) == ["one", partial, "three"]


async def test_awaiting_progress_waits_until_it_has_arrived() -> None:
    seen: list[str] = []

    async def answer(request: Request, progress: Progress) -> Response:
        await progress("one")
        return Response.from_text(f"{seen}")

    async def arrive(update: str | Response) -> None:
        await asyncio.sleep(0)
        seen.append(str(update))

    assert (await ask(Async(answer), arrive)).text == "['one']"


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_progress_goes_through_middleware(kind: str) -> None:
    class Louder:
        @hookimpl
        def wrap_handler(self, handler: Handler) -> Handler:
            async def wrapped(request: Request, progress: Progress) -> Response:
                def loud(update: str | Response) -> Any:
                    return progress(str(update).upper())

                async def loud_later(update: str | Response) -> None:
                    await asyncio.sleep(0)
                    await progress(str(update).upper())

                return await handler(request, loud_later if kind == "async" else loud)

            return wrapped

    def answer(request: Request, progress: Progress) -> Response:
        progress("half")
        return Response.from_text("done")

    assert await told_by(Plain(answer), Louder()) == ["HALF"]


async def test_progress_failures_fail_no_message(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(request: Request, progress: Progress) -> Response:
        await progress("one")
        progress("two")
        return Response.from_text("done")

    async def later(update: str | Response) -> None:
        raise ValueError("later")

    def at_once(update: str | Response) -> None:
        raise ValueError("at once")

    assert (await ask(Async(answer), later)).text == "done"
    assert (await ask(Async(answer), at_once)).text == "done"
    assert caplog.text.count("dropped a progress report of backend Async") == 4


async def test_progress_after_the_answer_is_dropped() -> None:
    kept: list[Progress] = []
    told: list[str | Response] = []

    async def answer(request: Request, progress: Progress) -> Response:
        kept.append(progress)
        return Response.from_text("done")

    await ask(Async(answer), told.append)
    await kept[0]("late")

    assert told == []


@pytest.mark.parametrize(
    ("update", "error", "words"),
    [
        (7, TypeError, "not an int"),
        (None, TypeError, "not None"),
        (Response.from_text("final"), ValueError, "final=False"),
    ],
)
async def test_progress_refuses_what_is_none(update: Any, error: type[Exception], words: str) -> None:
    async def answer(request: Request, progress: Progress) -> Response:
        progress(update)
        return Response.from_text("done")

    with pytest.raises(error, match=words):
        await ask(Async(answer))


class Checking:
    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        return Response.from_text("x")

    @hookimpl
    def check(self) -> Any:
        return self.function()


def yielding() -> Iterator[str]:
    yield "one"
    yield "two"


async def later(value: Any) -> Any:
    return value


async def strange() -> AsyncIterator[str]:
    yield "x"


@pytest.mark.parametrize(
    ("function", "problems"),
    [
        (lambda: None, []),
        (lambda: "", []),
        (lambda: "no login", ["no login"]),
        (lambda: ("a", "b"), ["a", "b"]),
        (yielding, ["one", "two"]),
        (lambda: later(["late"]), ["late"]),
        (lambda: 7, ["check failed: TypeError: it returned an int"]),
        (strange, ["check failed: TypeError: it returned an async_generator"]),
        (lambda: int("x"), ["check failed: ValueError: invalid literal"]),
        (lambda: sys.exit(3), ["check failed: BackendError: "]),
    ],
)
async def test_check_accepts_problems_in_any_form(function: Callable[[], Any], problems: list[str]) -> None:
    async with await host_of(Checking(function)) as host:
        found = await host.check()

    assert len(found) == len(problems)
    for each, expected in zip(found, problems, strict=True):
        assert each.startswith("backend Checking: ")
        assert expected.removeprefix("check failed: BackendError: ") in each


def impl_of(hook: str, function: Callable[..., Any]) -> Impl:
    return Impl(label="backend x", hook=hook, function=function, positional=(), named=())


async def test_check_and_close_time_out() -> None:
    async def hanging() -> None:
        await asyncio.Event().wait()

    release = threading.Event()
    threads = PluginThreads("x")

    assert await run_check(impl_of("check", hanging), threads, seconds=0.01) == ["check did not return within 0.01 s"]
    problem = await run_close(impl_of("close", hanging), threads, seconds=0.01)
    assert isinstance(problem, CloseError)
    assert "did not close within 0.01 s" in str(problem)
    late = asyncio.ensure_future(run_close(impl_of("close", release.wait), threads, seconds=0.01))
    await asyncio.sleep(0.05)
    threads.abandon()
    assert "did not close" in str(await late)
    release.set()


async def test_describe_is_bounded_and_reports_failures() -> None:
    async def hanging() -> None:
        await asyncio.Event().wait()

    def broken() -> None:
        raise RuntimeError("no folder")

    threads = PluginThreads("x")

    assert await run_describe(impl_of("describe", lambda: "may: read"), threads) == ["may: read"]
    assert await run_describe(impl_of("describe", lambda: None), threads) == []
    assert await run_describe(impl_of("describe", broken), threads) == [
        "backend x: describe failed: RuntimeError: no folder"
    ]
    assert await run_describe(impl_of("describe", hanging), threads, seconds=0.01) == [
        "backend x: describe did not return within 0.01 s"
    ]


async def test_closes_plugins_once_in_reverse_order() -> None:
    order: list[str] = []

    class Closing:
        def __init__(self, name: str, error: BaseException | None = None) -> None:
            self.name, self.error = name, error

        @hookimpl
        async def close(self) -> None:
            order.append(self.name)
            if self.error:
                raise self.error

    class Backend(Closing):
        @hookimpl
        async def handle_a2a(self, request: Request) -> Response:
            return Response.from_text("x")

    class Middle(Closing):
        @hookimpl
        def wrap_handler(self, handler: Handler) -> Handler:
            return handler

    host = await host_of(Backend("backend"), Middle("outer", OSError("gone")), Middle("inner", SystemExit(1)))

    failed = await host.close()
    again = await host.close()

    assert order == ["outer", "inner", "backend"]
    assert failed == again
    assert [str(error).partition(": ")[2] for error in failed] == ["OSError: gone", "SystemExit: 1"]
    assert all(isinstance(error, CloseError) for error in failed)


async def test_failing_close_raises_after_a_good_block() -> None:
    class Failing:
        @hookimpl
        async def handle_a2a(self, request: Request) -> Response:
            return Response.from_text("x")

        @hookimpl
        def close(self) -> None:
            raise OSError("gone")

    with pytest.raises(CloseError, match="gone"):
        async with await host_of(Failing()):
            pass
    with pytest.raises(KeyError):
        async with await host_of(Failing()):
            raise KeyError


async def test_closing_continues_when_its_caller_is_cancelled() -> None:
    entered, release, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Slow:
        @hookimpl
        async def handle_a2a(self, request: Request) -> Response:
            return Response.from_text("x")

        @hookimpl
        async def close(self) -> None:
            entered.set()
            await release.wait()
            closed.set()

    host = await host_of(Slow())
    task = asyncio.ensure_future(host.close())
    await entered.wait()

    task.cancel()
    await asyncio.wait((task,))
    release.set()

    assert await host.close() == []
    assert closed.is_set()
