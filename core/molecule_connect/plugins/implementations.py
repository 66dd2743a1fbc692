"""Find, validate and call the hook implementations of a plugin."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
import pluggy

from molecule_connect.errors import PluginError, did_you_mean
from molecule_connect.plugins import hookspecs
from molecule_connect.plugins.inbox import InboxBackend
from molecule_connect.plugins.threads import PluginThreads
from molecule_connect.plugins.wording import kind

# The arguments of each hook, and the one that implementations must accept.
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
    """An implementation of a hook.

    Attributes:
        label: Names its plugin.
        positional, named: The arguments that the function accepts.
    """

    label: str
    hook: str
    function: Callable[..., Any]
    positional: tuple[str, ...]
    named: tuple[str, ...]
    is_async: bool = attrs.field(init=False)

    @is_async.default
    def _is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.function)

    def call(self, *arguments: Any) -> Any:
        """Call it with those of the *arguments* that it accepts. They are in the order of ``ARGUMENTS``."""
        given = dict(zip(ARGUMENTS[self.hook], arguments, strict=True))
        return self.function(*map(given.get, self.positional), **{name: given[name] for name in self.named})

    async def run(self, threads: PluginThreads, *arguments: Any) -> Any:
        """Call it, in a thread unless it is an ``async def``, and await the result if it is awaitable."""
        if self.is_async:
            return await self.call(*arguments)
        result = await threads.run(partial(self.call, *arguments))
        return await result if inspect.isawaitable(result) else result


def new_manager() -> pluggy.PluginManager:
    """A plugin manager with the hook specs of molecule-connect."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def register(manager: pluggy.PluginManager, plugin: object, label: str) -> dict[str, Impl]:
    """Register *plugin* and return its implementations by hook.

    Raises:
        PluginError: It isn't a plugin, or an implementation is invalid.
    """
    _refuse_uninstantiated(plugin, label)
    found: dict[str, Impl] = {}
    for impl in filter(None, (_examined(manager, plugin, name, label) for name in dir(plugin))):
        if impl.hook in found:
            raise PluginError(f"{label} implements {impl.hook} more than once", hint=f"keep one. {_SEE}")
        found[impl.hook] = impl
    try:
        manager.register(plugin, label)
    except ValueError as exc:
        raise PluginError(
            f"{label} is registered twice, or equals another plugin",
            hint="name each plugin once, and use @attrs.frozen(eq=False) for its class",
        ) from exc
    except pluggy.PluginValidationError as exc:
        raise PluginError(f"{label} doesn't match the hook specs: {' '.join(str(exc).split())}", hint=_SEE) from exc
    return found


def close_impl(manager: pluggy.PluginManager, plugin: object, label: str) -> Impl | None:
    """The ``close`` implementation of *plugin*, even if its other hooks are invalid; None if it isn't an instance."""
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
    """The kind of object that *target* is, for an error message."""
    return "a module" if inspect.ismodule(target) else kind(target)


def hook_problem(target: Any, label: str) -> str:
    """Why an instance of the backend class *target* would be rejected; empty if it's fine. Runs no code of the plugin.

    Problems that only show when the factory or ``__init__`` runs aren't found.
    """
    if not callable(target):
        return f"the entry point of {label} names {kind_of(target)} -> {ENTRY_POINT_RULE}"
    if not inspect.isclass(target):
        return ""
    try:
        blank = object.__new__(target)
    except TypeError:  # abstract, or a subclass of a built-in
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


_SEE = "see docs/hooks.md for the arguments of each hook"


def _refuse_uninstantiated(plugin: object, label: str) -> None:
    kind = "class" if inspect.isclass(plugin) else "module" if inspect.ismodule(plugin) else ""
    if kind:
        raise PluginError(f"{label} is a {kind}, not an instance", hint="an entry point's factory returns an instance")
    if plugin is None:
        raise PluginError(f"{label} is None", hint="does the factory return the plugin?")


def _examined(manager: pluggy.PluginManager, plugin: object, name: str, label: str) -> Impl | None:
    options = manager.parse_hookimpl_opts(plugin, name)
    if options is None:
        static = inspect.getattr_static(plugin, name, None)
        if name in ARGUMENTS and (callable(static) or isinstance(static, staticmethod | classmethod)):
            raise PluginError(
                f"{name} of {label} is not marked as a hook",
                hint="add @hookimpl as the outermost decorator, or rename it",
            )
        return None
    hook = options.get("specname") or name
    if options["wrapper"] or options["hookwrapper"]:
        raise PluginError(
            f"{name} of {label} is a pluggy wrapper, which would see coroutines instead of responses",
            hint="implement wrap_handler instead",
        )
    if hook not in ARGUMENTS:
        if options["optionalhook"]:
            return None
        raise PluginError(
            f"there is no hook {hook!r} for {label} to implement{did_you_mean(hook, list(ARGUMENTS))}", hint=_SEE
        )
    function = getattr(plugin, name)
    may_yield = hook in ("check", "describe")
    if inspect.isasyncgenfunction(function) or (inspect.isgeneratorfunction(function) and not may_yield):
        raise PluginError(
            f"{name} of {label} yields instead of returning", hint="use progress to report intermediate results"
        )
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
                f"{hook} of {label} has an unknown parameter {parameter.name!r}{did_you_mean(parameter.name, given)}",
                hint=f"its parameters can be: {', '.join(given) or 'none'}",
            )
    needed = NEEDED.get(hook)
    if needed and needed not in (*positional, *named):
        raise PluginError(
            f"{hook} of {label} has no parameter {needed!r}",
            hint="if a decorator hides it, use functools.wraps in the decorator",
        )
    try:
        inspect.signature(function, follow_wrapped=False).bind(*positional, **dict.fromkeys(named))
    except TypeError as exc:
        raise PluginError(
            f"a decorator on {hook} of {label} doesn't pass on all arguments: {exc}",
            hint="the function it returns should take *args and **kwargs",
        ) from exc
    return Impl(label=label, hook=hook, function=function, positional=tuple(positional), named=tuple(named))
