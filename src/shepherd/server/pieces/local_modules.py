"""Local modules, which clients train and never send (FedPer): rules that choose them among all modules.

A client keeps its local modules for its next round. On the server they keep their initial value, a zero increment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from shepherd.errors import UsageError, did_you_mean
from shepherd.registry import Registry

homes = Registry("home")

ALONE = 'a client that shares nothing trains alone: evaluation.arms = ["base", "federated", "local"] measures that'


@dataclass(frozen=True)
class LocalModules:
    """A rule for local modules: of(modules in the order of the model) -> the local ones. keeps: whether there are any.

    `of` raises UsageError where the rule does not apply to these modules, or where no module would be sent.
    """

    of: Callable[[Sequence[str]], frozenset[str]]
    keeps: bool = True
    name: str = ""


@homes
def nothing() -> LocalModules:
    """Every module is sent."""
    return LocalModules(lambda modules: frozenset(), keeps=False)


@homes
def last_blocks(blocks: int = 1) -> LocalModules:
    """The modules of the last blocks of the model (after FedPer, 1912.00818); 0 keeps none local.

    blocks: the number of blocks, among those with adapters. The number of a block is the first numeric part of the
    name of a module.
    """
    if blocks < 0:
        raise ValueError(f"blocks must be at least 0, got {blocks}")

    def of(modules: Sequence[str]) -> frozenset[str]:
        places = {module: _block(module) for module in modules}
        stacks = sorted({stack for stack, _ in places.values()})
        if len(stacks) > 1:
            raise UsageError(
                f'home "last_blocks": there are blocks of more than one kind, {stacks[0]!r} and {stacks[1]!r}, so it '
                f"is not said which are the last",
                hint=_by_name(modules),
            )
        numbers = sorted({number for _, number in places.values()})
        if blocks >= len(numbers):
            raise UsageError(
                f'home "last_blocks": the last {blocks} blocks are to stay with the clients, and the adapter lies in '
                f"{len(numbers)}: nothing would travel",
                hint=f"set blocks to at most {len(numbers) - 1}" if len(numbers) > 1 else ALONE,
            )
        return frozenset(module for module, (_, number) in places.items() if number in numbers[-blocks:])

    return LocalModules(of) if blocks else nothing()


@homes
def modules(names: tuple[str, ...]) -> LocalModules:
    """The modules with these whole parts in their full names, as in "layers.29", "v_proj", "layers.2?.mlp".

    names: * matches any text, ? one character, [0-3] one of a range. Each must match some module.
    """
    if not names:
        raise ValueError('names is empty; to keep nothing at home is home "nothing"')

    def of(modules: Sequence[str]) -> frozenset[str]:
        found: set[str] = set()
        for name in names:
            meant = [module for module in modules if fnmatchcase(f".{module}.", f"*.{name}.*")]
            if not meant:
                parts = dict.fromkeys(part for module in modules for part in module.split(".") if not part.isdecimal())
                raise UsageError(
                    f'home "modules": no adapted module has {name!r} in its name.{did_you_mean(name, parts)}',
                    hint=f"the last of the {len(modules)} adapted modules is {modules[-1]}",
                )
            found.update(meant)
        if len(found) == len(modules):
            raise UsageError(
                f'home "modules": {", ".join(names)} are all {len(modules)} modules of the adapter, and nothing would '
                f"travel",
                hint=ALONE,
            )
        return frozenset(found)

    return LocalModules(of)


def _block(module: str) -> tuple[str, int]:
    """(the name up to the number of a module's block, the number)."""
    parts = module.split(".")
    at = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
    if at is None:
        raise UsageError(
            f'home "last_blocks": the name of {module} has no number, so it is not said in which block it lies',
            hint=_by_name([module]),
        )
    return ".".join(parts[:at]), int(parts[at])


def _by_name(modules: Sequence[str]) -> str:
    return f'say by name what stays at home: method.home = {{name = "modules", names = ["{modules[-1]}"]}}'
