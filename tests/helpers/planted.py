"""Faults planted in the source of a module, and laws that are called as pytest would."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest


def plant(patch: pytest.MonkeyPatch, module: ModuleType, text: str, instead: str) -> None:
    """Give the module's functions and constants what they would be with `instead` in place of `text`.

    Functions keep their identity, so that it does not matter who has imported them already.
    """
    source = inspect.getsource(module)
    assert source.count(text) == 1, f"{text!r} stands {source.count(text)} times in {module.__name__}"
    code = compile(source.replace(text, instead), module.__file__, "exec", dont_inherit=True)
    other: dict[str, Any] = {"__name__": module.__name__}
    changed = dict(codes(code))
    for function in functions(module):
        new = changed[function.__code__.co_qualname]
        if (new.co_code, new.co_consts, new.co_names) != (
            function.__code__.co_code, function.__code__.co_consts, function.__code__.co_names,
        ):  # fmt: skip
            patch.setattr(function, "__code__", new)
    exec(code, other)
    for name, value in vars(module).items():
        if isinstance(value, int | float | str | tuple) and not name.startswith("__") and other[name] != value:
            patch.setattr(module, name, other[name])


def codes(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner.co_qualname, inner
            yield from codes(inner)


def functions(module: ModuleType) -> Iterator[FunctionType]:
    """What is defined in the module, methods too, without what decorators put around it."""
    for value in vars(module).values():
        for found in (value, *(vars(value).values() if isinstance(value, type) else ())):
            found = inspect.unwrap(getattr(found, "__func__", getattr(found, "fget", found)))
            if isinstance(found, FunctionType) and found.__code__.co_filename == module.__file__:
                yield found


def call(law: Any, folder: Path, built: Mapping[str, Callable[[Path], Any]]) -> None:
    """Run a test with fixtures of its own; `built` makes those beside tmp_path and monkeypatch, in a folder."""
    folder.mkdir()
    wanted = inspect.signature(law).parameters.keys() - getattr(law, "keywords", {}).keys()
    with pytest.MonkeyPatch.context() as patch:
        fixtures = {"tmp_path": lambda: folder, "monkeypatch": lambda: patch}
        made = {name: {**fixtures, **built}[name] for name in wanted}
        law(**{name: make() if name in fixtures else make(folder) for name, make in made.items()})


def texts_that_are_not_there_once(faults: Sequence[Sequence[Any]]) -> dict[str, int]:
    """{text: how often its module has it} of the faults that cannot be planted as they stand."""
    found = {text: inspect.getsource(module).count(text) for module, text, *_ in faults}
    return {text: times for text, times in found.items() if times != 1}


def notice(fault: Sequence[Any], patch: pytest.MonkeyPatch, folder: Path, built: Mapping[str, Any]) -> None:
    """Assert that the law beside a fault holds without it and fails with it."""
    module, text, instead, law = fault
    if law not in HELD:  # once: some take seconds
        call(law, folder / "whole", built)
        HELD.append(law)
    plant(patch, module, text, instead)
    with pytest.raises((Exception, pytest.fail.Exception)) as caught:
        call(law, folder / "faulty", built)
    assert not isinstance(caught.value, NameError), "the fault itself is broken"


HELD: list[Any] = []
"""Laws that were seen to hold without a fault."""
