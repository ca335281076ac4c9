"""Registries of named factories. One decorator adds a name in TOML, a line in `shepherd list` and table tests.

    partitioners = Registry("partitioner")

    @partitioners
    def by_length(descending: bool = False) -> Partitioner:
        \"\"\"Sort by length, cut into equal parts.\"\"\"
        def partition(examples, clients, rng): ...
        return partition

    partitioners.build("by_length", {"descending": True})

A factory's arguments are its options in the recipe. `"package.module:function"` imports one that is not registered.

A package adds names with an entry point of the group `shepherd.plugins` that names a module: it is imported when a
registry is asked for a name that it lacks, or for all names.

    >>> shouts = Registry("shout")
    >>> @shouts
    ... def louder(marks: int = 1):
    ...     \"\"\"Exclamation marks after the text.\"\"\"
    ...     return lambda text: text + "!" * marks
    >>> shouts.build("louder", {"marks": 3})("baa")
    'baa!!!'
    >>> list(shouts), shouts.describe("louder")
    (['louder'], 'Exclamation marks after the text.')
    >>> shouts.build("louder", {"mark": 3})
    Traceback (most recent call last):
    shepherd.errors.UsageError: shout 'louder' has no option 'mark'. Did you mean 'marks'? Its options: marks
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from shepherd.errors import UsageError, did_you_mean

GROUP = "shepherd.plugins"


@dataclass(frozen=True)
class Plugin:
    """A module that an entry point of the group `shepherd.plugins` names.

    package: name and version of the distribution that has the entry point. error: why the import failed, or "".
    """

    module: str
    package: str
    error: str = ""


class Registry:
    """A table of named factories of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._factories: dict[str, Callable[..., Any]] = {}
        self._packages: dict[str, str] = {}

    def __call__(self, factory: Callable[..., Any]) -> Callable[..., Any]:
        name = factory.__name__
        known = self._factories.get(name)
        # A cell of a notebook that is run again, and a module that is reloaded, replace what they registered.
        if known is not None and (known.__module__, known.__qualname__) != (factory.__module__, factory.__qualname__):
            raise UsageError(
                f"{self.kind} {name!r} is registered twice: by {known.__module__} and by {factory.__module__}",
                hint="give the function another name",
            )
        self._factories[name] = factory
        if known is None and _importing is not None:
            self._packages[name] = _importing.package
        return factory

    def __iter__(self) -> Iterator[str]:
        """The names that are registered so far, sorted. Plug-ins that were not needed yet are not among them."""
        return iter(sorted(self._factories))

    def known(self) -> list[str]:
        """All names, those of plug-ins included, sorted."""
        plugins()
        return list(self)

    def package(self, name: str) -> str:
        """The package, with its version, whose plug-in registered the name; "" for any other name."""
        return self._packages.get(name, "")

    @contextmanager
    def including(self, factory: str | Callable[..., Any]) -> Iterator[str]:
        """Context in which a factory is registered, under the name that is given back. A name stands for itself."""
        if isinstance(factory, str) or self._factories.get(factory.__name__) is factory:
            yield factory if isinstance(factory, str) else factory.__name__
            return
        self(factory)
        try:
            yield factory.__name__
        finally:
            del self._factories[factory.__name__]

    def describe(self, name: str) -> str:
        """The first line of the factory's docstring."""
        return (inspect.getdoc(self.get(name)) or "").split("\n")[0]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The factory's options by name, as `inspect.Parameter`s (annotation, default)."""
        return dict(inspect.signature(self.get(name), eval_str=True).parameters)

    def get(self, name: str) -> Callable[..., Any]:
        """The factory called `name`; `"module:function"` is imported. Raises UsageError with the nearest known name."""
        if name not in self._factories and ":" not in name:
            plugins()
        if name in self._factories:
            return self._factories[name]
        if ":" in name:
            module, _, attribute = name.partition(":")
            try:
                factory = getattr(importlib.import_module(module), attribute)
            except Exception as error:  # user code can raise anything
                raise UsageError(f"{self.kind} {name!r} cannot be imported: {type(error).__name__}: {error}") from error
            if not callable(factory):
                raise UsageError(f"{self.kind} {name!r} is not callable: {factory!r}")
            return factory
        known = ", ".join(self) or "none"
        raise UsageError(f"unknown {self.kind}: {name!r}.{did_you_mean(name, self)} Known: {known}", broken_plugins())

    def build(self, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """Call the factory with `options`.

        Unknown or missing options, and values of another type than the factory's annotation, raise UsageError.
        """
        options = dict(options or {})
        parameters = self.options(name)
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        for key in options:
            if key not in parameters and not takes_any:
                known = ", ".join(sorted(parameters)) or "none"
                raise UsageError(
                    f"{self.kind} {name!r} has no option {key!r}.{did_you_mean(key, parameters)} Its options: {known}"
                )
        try:
            inspect.signature(self.get(name)).bind(**options)
        except TypeError as error:
            raise UsageError(f"{self.kind} {name!r}: {error}") from error
        problems = []
        for key, value in options.items():
            try:
                options[key] = _converted(value, parameters[key].annotation if key in parameters else Any)
            except ValueError as error:
                problems.append(f"{key} must be {error}, got {value!r}")
        if problems:
            raise UsageError(f"{self.kind} {name!r}: {'; '.join(problems)}")
        try:
            return self.get(name)(**options)
        except ValueError as error:
            raise UsageError(f"{self.kind} {name!r}: {error}") from error


_plugins: list[Plugin] | None = None
_importing: Plugin | None = None
"""The plug-in whose module is being imported: what is registered meanwhile is its own."""


def plugins() -> list[Plugin]:
    """The plug-ins of the installed packages, imported by the first call. One that fails has its error."""
    global _plugins, _importing
    if _plugins is not None:
        return _plugins
    from importlib.metadata import entry_points

    _plugins = []  # a plug-in may ask a registry for a name
    points = entry_points(group=GROUP)
    found = {Plugin(p.module, f"{p.dist.name} {p.dist.version}" if p.dist is not None else p.name) for p in points}
    for plugin in sorted(found, key=lambda plugin: (plugin.package, plugin.module)):
        error, _importing = "", plugin
        try:
            importlib.import_module(plugin.module)
        except (Exception, SystemExit) as reason:  # user code can raise anything
            error = f"{type(reason).__name__}: {reason}"
        finally:
            _importing = None
        _plugins.append(Plugin(plugin.module, plugin.package, error))
    return _plugins


def broken_plugins() -> str:
    """The plug-ins that cannot be imported, and why; "" where there are none."""
    return "; ".join(
        f"the plug-in {p.module} of {p.package} cannot be imported: {p.error}" for p in plugins() if p.error
    )


def _converted(value: Any, annotation: Any) -> Any:
    """Convert `value` to `annotation`: an int to a float, a list to a tuple. ValueError names the expected type."""
    if annotation in (Any, inspect.Parameter.empty) or isinstance(annotation, str):
        return value
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    try:
        accepts = TypeAdapter(annotation).validate_python
    except PydanticUserError:  # a class that pydantic has no rules for
        return value
    try:
        return accepts(value, strict=True)
    except ValidationError:
        pass
    if isinstance(value, list):  # TOML has no tuples
        try:
            return accepts(tuple(value), strict=True)
        except ValidationError:
            pass
    raise ValueError(_expected(annotation))


def _expected(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(map(repr, get_args(annotation)))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(annotation) or inspect.formatannotation(annotation)
