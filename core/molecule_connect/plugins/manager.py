"""The plugins of one worker: created, checked, combined into one handler, and closed."""

import asyncio
import inspect
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import pluggy

from molecule_connect.errors import ConfigError, MoleculeError, OptionError, PluginError
from molecule_connect.models import Handler
from molecule_connect.plugins.discovery import find
from molecule_connect.plugins.entry_points import BACKENDS, MIDDLEWARE
from molecule_connect.plugins.hooks import run_check, run_close, run_describe
from molecule_connect.plugins.implementations import Impl, close_impl, new_manager, register
from molecule_connect.plugins.inbox import InboxBackend
from molecule_connect.plugins.loader import Creation, Warn, log_warning, split_options
from molecule_connect.plugins.middleware import Layer
from molecule_connect.plugins.raw_options import GivenOptions, Value
from molecule_connect.plugins.threads import PluginThreads
from molecule_connect.plugins.wording import first_line, kind


class PluginHost:
    """A backend and its middleware, created by ``create_host``.

    Attributes:
        handler: Handles a request; raises BackendError or any other exception of the backend. If the backend is a
            plain function, a cancelled call returns only when its thread does. None if the backend is an
            ``InboxBackend``: messages wait for readers.
    """

    handler: Handler | None

    def __init__(self) -> None:
        self._plugins: list[tuple[str, object]] = []
        self._checks: list[Impl] = []
        self._descriptions: list[Impl] = []
        self._answers = PluginThreads("the backend")
        self._chores = PluginThreads("the plugin")
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._scratch_lock = threading.Lock()
        self._scratch_ended = False
        self._closing: asyncio.Task[list[Exception]] | None = None

    @property
    def backend(self) -> object:
        """The backend plugin."""
        return self._plugins[0][1]

    @property
    def advice(self) -> str:
        """How messages are read if the backend is an ``InboxBackend``, for the operator; empty otherwise."""
        return self.backend.advice if isinstance(self.backend, InboxBackend) else ""

    async def check(self) -> list[str]:
        """Problems that prevent serving, from the plugins' ``check``; exceptions and timeouts are problems, too."""
        return [f"{impl.label}: {problem}" for impl in self._checks for problem in await run_check(impl, self._chores)]

    async def describe(self) -> list[str]:
        """The permissions of the plugins on this machine, from their ``describe``."""
        return [line for impl in self._descriptions for line in await run_describe(impl, self._chores)]

    async def close(self) -> list[Exception]:
        """Close the plugins in reverse order, each once and with a timeout. Returns the errors.

        Call it after the last message; calls of plain functions that still run are abandoned. Further calls return the
        same errors.
        """
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close_all())
        return await asyncio.shield(self._closing)

    async def __aenter__(self) -> "PluginHost":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = await self.close()
        if failed and exc is None:
            raise failed[0]

    def state_folder(self) -> Path:
        """A temporary folder that is removed when the host closes, for a host without ``state_dir``. Thread-safe.

        Raises:
            ConfigError: The host is closed.
        """
        with self._scratch_lock:
            if self._scratch_ended:
                raise ConfigError(
                    "the plugins are closed, and their folder was removed", hint="stop background work in close()"
                )
            if self._scratch is None:
                self._scratch = tempfile.TemporaryDirectory(prefix="molecule-", ignore_cleanup_errors=True)
            return Path(self._scratch.name)

    def own(self, plugin: object, label: str) -> None:
        """Add *plugin*, to be closed with the host."""
        taken = [known for known, _ in self._plugins]
        self._plugins.append((f"{label} ({len(taken) + 1})" if label in taken else label, plugin))

    def assemble(self) -> None:
        """Build the handler from the plugins: the backend first, then middleware from the innermost out.

        Raises:
            PluginError: A plugin doesn't implement the hooks as required.
        """
        (label, backend), *middleware = self._plugins
        # Not kept: thousands of workspaces have one each.
        manager = new_manager()
        hooks = self._register(manager, backend, label)
        if isinstance(backend, InboxBackend):
            self._leave_to_readers(label, hooks, middleware)
            return
        if "handle_a2a" not in hooks:
            raise PluginError(f"{label} does not implement handle_a2a", hint="is @hookimpl above the method?")
        backend_handler = Layer(partial(hooks["handle_a2a"].run, self._answers), label)
        self.handler = self._wrapped(backend_handler.handle, hooks)
        for label, plugin in middleware:
            hooks = self._register(manager, plugin, label)
            if "handle_a2a" in hooks:
                raise PluginError(
                    f"{label} is a second backend", hint="a workspace has one backend, named by --backend"
                )
            if "wrap_handler" not in hooks:
                raise PluginError(f"{label} does not implement wrap_handler", hint="is @hookimpl above the method?")
            self.handler = self._wrapped(self.handler, hooks)

    def answering(self) -> Handler:
        """The handler.

        Raises:
            PluginError: The backend leaves messages to the readers of an inbox.
        """
        if self.handler is None:
            raise PluginError(
                f"{self._plugins[0][0]} handles no messages: they wait for the readers of its inbox",
                hint="serve it with 'molecule connect', and read it with 'molecule mcp' or open_inbox()",
            )
        return self.handler

    def _leave_to_readers(
        self, label: str, hooks: Mapping[str, Impl], middleware: Sequence[tuple[str, object]]
    ) -> None:
        if "handle_a2a" in hooks or "wrap_handler" in hooks:
            raise PluginError(f"{label} is an InboxBackend, which handles no messages", hint="remove its handle_a2a")
        if middleware:
            raise PluginError(
                f"{middleware[0][0]} has nothing to wrap: {label} handles no messages", hint="remove --use"
            )
        self.handler = None

    def _register(self, manager: pluggy.PluginManager, plugin: object, label: str) -> dict[str, Impl]:
        hooks = register(manager, plugin, label)
        if "check" in hooks:
            self._checks.append(hooks["check"])
        if "describe" in hooks:
            self._descriptions.append(hooks["describe"])
        return hooks

    def _wrapped(self, handler: Handler, hooks: Mapping[str, Impl]) -> Handler:
        impl = hooks.get("wrap_handler")
        if impl is None:
            return handler
        try:
            outer = impl.call(handler)
        except MoleculeError:
            raise
        except Exception as exc:  # plugin code
            raise PluginError(
                f"wrap_handler of {impl.label} failed: {first_line(exc)}", hint="report it to its author"
            ) from exc
        if inspect.iscoroutine(outer):
            outer.close()
        if not callable(outer):
            raise PluginError(
                f"wrap_handler of {impl.label} returned {kind(outer)}",
                hint="it must be a plain function that returns an async function of request and progress",
            )
        return Layer(outer, impl.label).handle

    async def _close_all(self) -> list[Exception]:
        self._answers.abandon()
        manager = new_manager()
        failed: list[Exception] = []
        try:
            for label, plugin in reversed(self._plugins):
                impl = close_impl(manager, plugin, label)
                problem = impl and await run_close(impl, self._chores)
                if problem:
                    failed.append(problem)
        finally:
            self._chores.abandon()
            with self._scratch_lock:
                self._scratch_ended = True
                if self._scratch is not None:
                    self._scratch.cleanup()
        return failed


async def create_host(
    *,
    workspace_id: str,
    backend: str | object,
    options: Mapping[str, Value] | None = None,
    middleware: Sequence[str | object] = (),
    middleware_options: Mapping[str, Value] | None = None,
    strict: bool = False,
    listed: bool = False,
    state_dir: Path | None = None,
    state_root: Path | None = None,
    warn: Warn = log_warning,
    secrets: Iterable[str] = (),
    path: Sequence[str] | None = None,
) -> PluginHost:
    """Create the plugins of one worker. If that fails, those already created are closed.

    Args:
        middleware: Names or objects, the outermost first.
        middleware_options: Options by ``name.key``.
        listed: The options come from a list of workspaces; hints spell them accordingly.
        state_dir: Where plugins keep files; None gives them a temporary folder.
        state_root: Without ``state_dir``, the folder that a start would use, if known.
        secrets: Values to remove from the environment of child processes.
        path: Replaces ``sys.path`` in the search for plugins.

    Raises:
        BackendNotFoundError: No backend has this name.
        OptionError: An option is invalid, or it is unknown and ``strict`` is set.
        PluginError: A plugin cannot be loaded, created or used.
    """
    names = [each for each in middleware if isinstance(each, str)]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise PluginError(f"middleware {doubled[0]} is named twice", hint=f"remove one --use {doubled[0]}")
    short_names = [name.rpartition(":")[2] for name in names]
    options_of = split_options(middleware_options or {}, short_names, listed=listed)
    if options and not isinstance(backend, str):
        raise OptionError("a backend object takes no options", hint="pass them to its class, or pass a name")
    host = PluginHost()
    make = partial(
        Creation,
        workspace_id=workspace_id,
        state_folder=host.state_folder if state_dir is None else lambda: state_dir,
        state_root=state_dir or state_root,
        secrets=frozenset(secrets),
        strict=strict,
        listed=listed,
        warn=warn,
    )
    try:
        await _add(host, BACKENDS, backend, options or {}, make, path)
        for each in reversed(middleware):
            given = options_of[each.rpartition(":")[2]] if isinstance(each, str) else {}
            await _add(host, MIDDLEWARE, each, given, make, path)
        host.assemble()
    except BaseException as exc:
        for failed in await host.close():
            exc.add_note(str(failed))
        raise
    return host


def create_backend(
    name: str,
    options: Mapping[str, Value] | None = None,
    *,
    workspace_id: str = "",
    state_dir: Path | None = None,
    warn: Warn = log_warning,
    path: Sequence[str] | None = None,
) -> Any:
    """Create the installed backend *name*, for ``connect`` or a test. ``connect`` closes it; otherwise the caller does.

    Raises:
        BackendNotFoundError: No backend has this name.
        OptionError: An option is missing or invalid. Unknown options are passed to ``warn``.
        PluginError: It cannot be loaded or created, or its factory is ``async``.
    """
    creation = Creation(
        installed=find(BACKENDS, name, path=path),
        given=GivenOptions(options, by_flags=True),
        workspace_id=workspace_id,
        state_folder=None if state_dir is None else lambda: state_dir,
        state_root=state_dir,
        warn=warn,
    )
    made = creation.start()
    if inspect.isawaitable(made):
        if inspect.iscoroutine(made):
            made.close()
        raise PluginError(f"{creation.installed.label} has an async factory", hint="give connect() its name instead")
    creation.finish()
    return made


async def _add(
    host: PluginHost,
    group: str,
    plugin: str | object,
    given: Mapping[str, Value],
    make: "partial[Creation]",
    path: Sequence[str] | None,
) -> None:
    if not isinstance(plugin, str):
        host.own(plugin, f"{'backend' if group == BACKENDS else 'middleware'} {type(plugin).__name__}")
        return
    creation = make(
        installed=find(group, plugin, path=path), given=GivenOptions(given, by_flags=not make.keywords["listed"])
    )
    made = creation.start()
    if inspect.isawaitable(made):
        with creation.authors_code():
            made = await made
    host.own(made, creation.installed.label)
    creation.finish()
