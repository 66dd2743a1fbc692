"""``check_backend``: checks of the rules that every backend must follow."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import attrs

from molecule_connect.errors import BackendError, MoleculeError, OptionError
from molecule_connect.models import FilePart, Request
from molecule_connect.plugins.hooks import run_close
from molecule_connect.plugins.implementations import close_impl, new_manager
from molecule_connect.plugins.raw_options import Value
from molecule_connect.plugins.threads import PluginThreads
from molecule_connect.testing.requests import make_request
from molecule_connect.testing.running import Running, running
from molecule_connect.testing.watching import Watch, watch_loop, watch_output, watch_programs

CANCEL_SECONDS = 1.0
BIG_CHARACTERS = 1_000_000
UNICODE = "grüße 你好 🦊 e\u0301 \u202eabc\u202c \x00 \ud800"
UNKNOWN = "no-option-has-this-name"


async def check_backend(
    backend: str | Callable[[], object],
    options: Mapping[str, Value] | None = None,
    *,
    request: Request | None = None,
    slow: Request | None = None,
    seconds: float = 30.0,
    path: Sequence[str] | None = None,
) -> None:
    """Check that a backend follows the rules that a worker relies on. Call it in a test.

    Args:
        backend: The name of an installed backend, or a callable that creates a plugin, such as its class.
        options: The options of a named backend.
        request: A message that it can handle; by default, "hello".
        slow: A message that takes more than a second, to be cancelled; by default, *request*.
        seconds: The timeout for one message.
        path: Replaces ``sys.path``.

    Raises:
        AssertionError: It breaks a rule. The message lists the problems and how to fix them.
    """
    asked = request or make_request()
    trial = _Trial(backend, options or {}, asked, slow or asked, seconds, path)
    failed = []
    for check in ALL if isinstance(backend, str) else ALL[:-1]:
        problem = await _problem(check, trial)
        if problem:
            failed.append(f"{check.__name__.strip('_').replace('_', ' ')}: {problem}")
        if problem and check is ALL[0]:
            break
    if failed:
        raise AssertionError(
            "\n".join(["this backend breaks rules that a worker relies on:", *(f"- {one}" for one in failed)])
        )


@attrs.frozen(eq=False)
class _Trial:
    backend: str | Callable[[], object]
    options: Mapping[str, Value]
    request: Request
    slow: Request
    seconds: float
    path: Sequence[str] | None

    @contextlib.asynccontextmanager
    async def running(self, **more: Value) -> AsyncIterator[Running]:
        if isinstance(self.backend, str):
            made = running(self.backend, {**self.options, **more}, strict=bool(more), path=self.path)
        else:
            made = running(self.backend())
        async with made as started:
            yield started

    async def ask(self, started: Running, request: Request) -> str:
        """Why there was no response; empty if there was one."""
        try:
            async with asyncio.timeout(self.seconds):
                await started.ask(request)
        except TimeoutError:
            return f"no response within {self.seconds:g} s; pass seconds= if that is too short"
        except BackendError as exc:
            return f"it raised BackendError: {exc}"
        return ""


Check = Callable[[_Trial], Awaitable[str]]


async def _problem(check: Check, trial: _Trial) -> str:
    try:
        return await check(trial)
    except MoleculeError as exc:
        return f"{exc}; {exc.hint}" if exc.hint else str(exc)
    except Exception as exc:  # plugin code
        return f"it raised {type(exc).__name__}: {exc}; raise BackendError for messages that cannot be handled"


async def _answers_with_a_response(trial: _Trial) -> str:
    async with trial.running() as started:
        if problems := await started.check():
            return f"check() found problems: {'; '.join(problems)}"
        problem = await trial.ask(started, trial.request)
    return f"{problem}; pass request= with a message that it can handle" if problem else ""


async def _answers_two_at_once(trial: _Trial) -> str:
    async with trial.running() as started:
        requests = [attrs.evolve(trial.request, message_id=f"two-{n}", context_id=f"context-{n}") for n in "ab"]
        problems = await asyncio.gather(*(trial.ask(started, each) for each in requests))
    return next(filter(None, problems), "")


async def _ends_within_a_second_when_cancelled(trial: _Trial) -> str:
    for delay in (0.0, 0.05, 0.5):
        async with trial.running() as started:
            task = asyncio.ensure_future(started.ask(trial.slow))
            await asyncio.wait((task,), timeout=delay)
            task.cancel()
            await asyncio.wait((task,), timeout=CANCEL_SECONDS)
            if not task.done():
                return (
                    f"it was cancelled after {delay:g} s, but ran for another {CANCEL_SECONDS:g} s; "
                    "don't suppress CancelledError, and don't block in a plain function"
                )
            if not task.cancelled():
                task.exception()
    return ""


async def _keeps_the_event_loop_free(trial: _Trial) -> str:
    watch = Watch()
    async with trial.running() as started:
        with watch_loop(watch):
            await trial.ask(started, trial.request)
    return _blocked(watch)


async def _prints_nothing(trial: _Trial) -> str:
    watch = Watch()
    with watch_output(watch):
        async with trial.running() as started:
            await trial.ask(started, trial.request)
    if watch.printed:
        return f"it wrote {watch.printed[:60]!r} to standard output; use logging or progress"
    return ""


async def _keeps_the_token_to_itself(trial: _Trial) -> str:
    watch, token = Watch(), f"token-{secrets.token_hex(8)}"
    with watch_programs(watch, token):
        async with trial.running() as started:
            await trial.ask(started, trial.request)
    if watch.leaks:
        return f"it started {watch.leaks[0]!r} with the platform's token; pass env=config.child_environment()"
    return ""


async def _survives_any_input(trial: _Trial) -> str:
    file = FilePart(uri="https://platform.example/files/1", name="../a \n.png", mime_type="image/png", size=3)
    on_disk = attrs.evolve(file, path=Path(__file__))
    unusual = {
        "a big message": make_request("x" * BIG_CHARACTERS),
        "an empty message": make_request(""),
        "a message without parts": make_request(parts=()),
        "unicode": make_request(UNICODE),
        "a file alone": make_request(parts=(file,)),
        "a file on disk alone": make_request(parts=(on_disk,)),
        "a peer's message without a conversation": make_request(caller_id="ws_2", context_id=None, task_id=None),
    }
    for name, request in unusual.items():
        watch = Watch()
        async with trial.running() as started:
            with watch_loop(watch):
                problem = await _outcome_of(trial, started, request)
        if problem := problem or _blocked(watch):
            return f"{name}: {problem}"
    return ""


async def _outcome_of(trial: _Trial, started: Running, request: Request) -> str:
    """The problem with its handling of *request*. A response and a BackendError are both fine."""
    try:
        async with asyncio.timeout(trial.seconds):
            await started.ask(request)
    except BackendError:
        return ""
    except TimeoutError:
        return f"no response within {trial.seconds:g} s"
    except Exception as exc:  # plugin code
        return f"it raised {type(exc).__name__}: {exc}; handle it, or raise BackendError"
    return ""


def _blocked(watch: Watch) -> str:
    if not watch.blocked_at:
        return ""
    return f"the event loop was blocked at {watch.blocked_at}; await there, or use a plain def"


async def _can_be_closed_twice_and_unused(trial: _Trial) -> str:
    async with trial.running():
        pass
    async with trial.running() as started:
        await trial.ask(started, trial.request)
        close = close_impl(new_manager(), started.host.backend, "the backend")
        threads = PluginThreads("the backend")
        problems = [close and await run_close(close, threads) for _ in range(2)]
    return next((f"{problem}; close() must be safe to call twice" for problem in problems if problem), "")


async def _refuses_unknown_options(trial: _Trial) -> str:
    try:
        async with trial.running(**{UNKNOWN: "1"}):
            pass
    except OptionError:
        return ""
    return "it accepted an unknown option under --strict; read options by name, or declare @options(...)"


# The last one applies only to named backends.
ALL: tuple[Check, ...] = (
    _answers_with_a_response,
    _answers_two_at_once,
    _ends_within_a_second_when_cancelled,
    _keeps_the_event_loop_free,
    _prints_nothing,
    _keeps_the_token_to_itself,
    _survives_any_input,
    _can_be_closed_twice_and_unused,
    _refuses_unknown_options,
)
