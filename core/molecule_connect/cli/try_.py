"""``molecule try``: send one message to a backend, without a platform."""

import contextlib
import json
import signal
import sys
import traceback
from typing import TYPE_CHECKING

import click

from molecule_connect.cli.option_keys import complete_option_keys
from molecule_connect.cli.options import PluginName
from molecule_connect.console.sanitize import one_line
from molecule_connect.errors import BackendError, ConfigError, MoleculeError
from molecule_connect.plugins.entry_points import BACKENDS, MIDDLEWARE

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from molecule_connect.models import Request, Response

    # The response, and errors while closing.
    Outcome = tuple[Response, list[Exception]]


@click.command("try")
@click.argument("name", type=PluginName(BACKENDS))
@click.argument("text", required=False)
@click.option(
    "--backend-opt",
    "backend_opts",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the backend. Repeatable.",
    shell_complete=complete_option_keys,
)
@click.option(
    "--use",
    "middleware",
    type=PluginName(MIDDLEWARE),
    multiple=True,
    help="A middleware around the backend. Repeatable.",
)
@click.option(
    "--use-opt",
    "middleware_opts",
    multiple=True,
    metavar="NAME.KEY=VALUE",
    help="An option of a middleware. Repeatable.",
)
@click.option("--strict", is_flag=True, help="Treat unknown options as errors.")
def try_command(
    name: str,
    text: str | None,
    backend_opts: tuple[str, ...],
    middleware: tuple[str, ...],
    middleware_opts: tuple[str, ...],
    strict: bool,
) -> None:
    """Send TEXT to the backend NAME and print its response. Without TEXT, the message is read from standard input.

    \b
    molecule try mock "hello"
    molecule try exec --backend-opt cmd="tr a-z A-Z" "hello"
    """
    import asyncio

    from molecule_connect.plugins.options import parse_options

    if text is None:
        if sys.stdin is None or sys.stdin.isatty():  # None: it was closed
            raise ConfigError("no text to send", hint=f'add it after the name: molecule try {name} "hello"')
        text = sys.stdin.read()
    asking = _ask(name, text, parse_options(backend_opts), middleware, parse_options(middleware_opts), strict)
    response, unclosed = asyncio.run(_until_signal(asking))
    _print(response)
    if unclosed:
        raise unclosed[0]


async def _until_signal(asking: "Coroutine[object, object, Outcome]") -> "Outcome":
    """The result of *asking*. SIGTERM and a closed terminal cancel it, like Ctrl-C."""
    import asyncio

    loop, received = asyncio.get_running_loop(), list[signal.Signals]()
    task = asyncio.ensure_future(asking)

    def end(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)  # a second signal has its default effect
        received.append(number)
        task.cancel()

    # Only the main thread can have handlers, and nohup ignores SIGHUP.
    with contextlib.suppress(ValueError, RuntimeError):
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                loop.add_signal_handler(number, end, number)
    try:
        return await task
    except (asyncio.CancelledError, MoleculeError):
        if not received:
            raise
        _print_error("error: interrupted")
        raise SystemExit(128 + received[0]) from None


async def _ask(
    name: str,
    text: str,
    options: dict[str, str | list[str]],
    middleware: tuple[str, ...],
    middleware_options: dict[str, str | list[str]],
    strict: bool,
) -> "Outcome":
    from molecule_connect.plugins.manager import create_host
    from molecule_connect.plugins.wording import first_line

    host = await create_host(
        workspace_id="try",
        backend=name,
        options=options,
        middleware=middleware,
        middleware_options=middleware_options,
        strict=strict,
        warn=_print_error,
    )
    failed: list[Exception] = []
    try:
        if problems := await host.check():
            raise ConfigError(f"not ready: {'; '.join(problems)}", hint="fix this, then try again")
        response = await host.answering()(_request(text), _progress)
    except BackendError as error:
        error.hint = error.hint or f"'molecule backends {name}' shows its options"
        raise
    except MoleculeError:
        raise
    except Exception as exc:  # plugin code
        broken = BackendError(first_line(exc))
        broken.hint = f"look at {_place(exc, host.backend)}, where the backend raised it"
        raise broken from exc
    finally:
        failed = await host.close()
        for each in failed:
            _print_error(f"warning: {each}")
    return response, failed


def _place(exc: Exception, backend: object) -> str:
    """File and line of the innermost frame in the backend's package, or of the innermost frame."""
    package = type(backend).__module__.partition(".")[0]
    frames = list(traceback.walk_tb(exc.__traceback__))
    own = [each for each in frames if str(each[0].f_globals.get("__name__")).partition(".")[0] == package]
    frame, line = (own or frames)[-1]
    return f"{frame.f_code.co_filename}:{line}"


def _request(text: str) -> "Request":
    from molecule_connect.models import Request, TextPart

    body = {
        "jsonrpc": "2.0",
        "method": "message/send",
        "params": {"message": {"parts": [{"kind": "text", "text": text}]}},
    }
    return Request(
        workspace_id="try",
        message_id="try-1",
        idempotency_key="try-1",
        context_id="try",
        parts=(TextPart(text),),
        raw=json.dumps(body),
    )


def _print(response: "Response") -> None:
    from molecule_connect.models import DataPart, FilePart

    if response.is_silent:
        _print_error("the backend chose to send nothing")
    for part in response.parts:
        if isinstance(part, DataPart):
            click.echo(json.dumps(part.data, indent=2, ensure_ascii=False, default=str))
        elif isinstance(part, FilePart):
            click.echo(f"file {part.name or part.uri}")
        else:
            click.echo(part.text)


def _print_error(text: str) -> None:
    click.echo(one_line(text, 400), err=True)


async def _progress(update: "str | Response", /) -> None:
    _print_error(f"... {update if isinstance(update, str) else update.text}")
