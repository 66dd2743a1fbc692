"""A plugin's implementations of hooks: found, held against the specs, called."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
import pluggy

from molecule_connect.errors import PluginError
from molecule_connect.plugins import hookspecs
from molecule_connect.plugins.inbox import InboxBackend
from molecule_connect.plugins.threads import WorkerThreads
from molecule_connect.plugins.wording import kind, nearest

# What each hook gives its implementations, and what they cannot do without.
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "handle_a2a": ("request", "progress"),
    "wrap_handler": ("handler",),
    "check": (),
    "describe": (),
    "close": (),
}
NEEDED: Mapping[str, str] = {"handle_a2a": "request", "wrap_handler": "handler"}

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@attrs.frozen(eq=False, kw_only=True)
class Impl:
    """One implementation of one hook. ``label`` names its plugin."""

    label: str
    hook: str
    function: Callable[..., Any]
    positional: tuple[str, ...]
    named: tuple[str, ...]

    async def run(self, threads: WorkerThreads, **arguments: Any) -> Any:
        """Call it: an ``async def`` on the loop, anything else in one of *threads*; what it returns is awaited."""
        call = partial(self.call, **arguments)
        result = call() if inspect.iscoroutinefunction(self.function) else await threads.run(call)
        return await result if inspect.isawaitable(result) else result

    def call(self, **arguments: Any) -> Any:
        """Call it as it is, with those of *arguments* that it names."""
        return self.function(
            *(arguments[name] for name in self.positional), **{name: arguments[name] for name in self.named}
        )


def new_manager() -> pluggy.PluginManager:
    """A plugin manager that knows our hooks."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def register(manager: pluggy.PluginManager, plugin: object, label: str) -> dict[str, Impl]:
    """Register *plugin* and return what it implements, by hook.

    Raises:
        PluginError: The plugin is none, or would not do what its author meant.
    """
    _refuse_uninstantiated(plugin, label)
    found: dict[str, Impl] = {}
    for impl in filter(None, (_examined(manager, plugin, name, label) for name in dir(plugin))):
        if impl.hook in found:
            raise PluginError(f"{label} implements {impl.hook} more than once", hint=f"leave one. {_SEE}")
        found[impl.hook] = impl
    try:
        manager.register(plugin, label)
    except ValueError as exc:
        raise PluginError(
            f"{label} is there twice, or equals another plugin",
            hint="name each plugin once, and write its class with @attrs.frozen(eq=False)",
        ) from exc
    except pluggy.PluginValidationError as exc:
        raise PluginError(f"{label} does not fit the hooks: {' '.join(str(exc).split())}", hint=_SEE) from exc
    return found


def close_impl(manager: pluggy.PluginManager, plugin: object, label: str) -> Impl | None:
    """How to close *plugin*, also where the rest of it was refused; None for what is no instance."""
    if inspect.isclass(plugin) or inspect.ismodule(plugin):
        return None
    for name in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, name)
        if options is not None and (options.get("specname") or name) == "close":
            with contextlib.suppress(PluginError):
                return _bound("close", getattr(plugin, name), label)
    return None


ENTRY_POINT_RULE = "an entry point names an attrs class, or a function that takes a BackendConfig, as module:name"


def kind_of(target: object) -> str:
    """What *target* is, where it can make no plugin."""
    return "a module" if inspect.ismodule(target) else kind(target)


def hook_problem(target: Any, label: str) -> str:
    """Why an instance of the backend class *target* would be refused, or an empty string; nothing of it is run.

    What only a factory or ``__init__`` could tell is not told.
    """
    if not callable(target):
        return f"the entry point of {label} names {kind_of(target)} -> {ENTRY_POINT_RULE}"
    if not inspect.isclass(target):
        return ""
    try:
        blank = object.__new__(target)
    except TypeError:  # abstract, or of a builtin: only its own way of being made could tell
        return ""
    manager, hooks = new_manager(), set[str]()
    try:
        for name in dir(target):
            static = inspect.getattr_static(target, name)
            if inspect.isroutine(static) or isinstance(static, staticmethod | classmethod):
                impl = _examined(manager, blank, name, label)
                hooks |= {impl.hook} if impl else set()
    except PluginError as exc:
        return f"{exc} -> {exc.hint}"
    made_later = getattr(getattr(target.__init__, "__code__", None), "co_names", ())
    if issubclass(target, InboxBackend):
        return ""
    if "handle_a2a" in (*hooks, *dir(target), *made_later) or hasattr(target, "__getattr__"):
        return ""
    return f"{label} does not implement handle_a2a -> is @hookimpl above the method?"


_SEE = "docs/hooks.md tells what each hook is given"


def _refuse_uninstantiated(plugin: object, label: str) -> None:
    kind = "class" if inspect.isclass(plugin) else "module" if inspect.ismodule(plugin) else ""
    if kind:
        raise PluginError(f"{label} is a {kind}, not an instance", hint="an entry point's factory returns an instance")
    if plugin is None:
        raise PluginError(f"{label} is None", hint="does the factory return the plugin that it makes?")


def _examined(manager: pluggy.PluginManager, plugin: object, name: str, label: str) -> Impl | None:
    options = manager.parse_hookimpl_opts(plugin, name)
    if options is None:
        static = inspect.getattr_static(plugin, name, None)
        if name in ARGUMENTS and (callable(static) or isinstance(static, staticmethod | classmethod)):
            raise PluginError(
                f"{name} of {label} is not marked as a hook",
                hint=f"put @hookimpl above it, outermost, or give it another name than {name}",
            )
        return None
    hook = options.get("specname") or name
    if options["wrapper"] or options["hookwrapper"]:
        raise PluginError(
            f"{name} of {label} is a pluggy wrapper, which sees no answers, only coroutines",
            hint="implement wrap_handler instead",
        )
    if hook not in ARGUMENTS:
        if options["optionalhook"]:
            return None
        raise PluginError(
            f"there is no hook {hook!r} for {label} to implement{nearest(hook, list(ARGUMENTS))}", hint=_SEE
        )
    function = getattr(plugin, name)
    may_yield = hook in ("check", "describe")
    if inspect.isasyncgenfunction(function) or (inspect.isgeneratorfunction(function) and not may_yield):
        raise PluginError(f"{name} of {label} yields, and must return", hint="tell what happens meanwhile to progress")
    return _bound(hook, function, label)


def _bound(hook: str, function: Callable[..., Any], label: str) -> Impl:
    given = ARGUMENTS[hook]
    positional: list[str] = []
    named: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in given and parameter.kind not in _VARIADIC:
            (positional if parameter.kind is inspect.Parameter.POSITIONAL_ONLY else named).append(parameter.name)
        elif parameter.default is inspect.Parameter.empty and parameter.kind not in _VARIADIC:
            raise PluginError(
                f"{hook} of {label} asks for {parameter.name!r}, which it is not given{nearest(parameter.name, given)}",
                hint=f"it is given {' and '.join(given) or 'nothing'}",
            )
    needed = NEEDED.get(hook)
    if needed and needed not in (*positional, *named):
        raise PluginError(
            f"{hook} of {label} has no parameter {needed!r}",
            hint="if a decorator hides it, put functools.wraps on the function that the decorator returns",
        )
    try:
        inspect.signature(function, follow_wrapped=False).bind(*positional, **dict.fromkeys(named))
    except TypeError as exc:
        raise PluginError(
            f"a decorator on {hook} of {label} passes on less than it shows: {exc}",
            hint="let the function that it returns take *args and **kwargs",
        ) from exc
    return Impl(label=label, hook=hook, function=function, positional=tuple(positional), named=tuple(named))
