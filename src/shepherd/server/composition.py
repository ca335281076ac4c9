"""The nine pieces of a federated method, and the rules by which they combine.

    start -> view -> train -> home -> payload -> weigh -> merge -> (server step) -> split -> remainder

In TOML a piece is its name, or a table with its options: view = "prefix", remainder = {name = "keep", rank = 16}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from shepherd.errors import UsageError, did_you_mean
from shepherd.registry import Registry
from shepherd.server.optimizer import Optimizer
from shepherd.server.pieces.local_modules import LocalModules, homes
from shepherd.server.pieces.merge import Merge, merges
from shepherd.server.pieces.payload import Payload, payloads
from shepherd.server.pieces.remainder import Remainder, remainders
from shepherd.server.pieces.schedule import Schedule, schedules
from shepherd.server.pieces.split import Split, splits
from shepherd.server.pieces.start import Start, starts
from shepherd.server.pieces.view import ViewRule, views
from shepherd.server.pieces.weighing import Weighing, weighings

REGISTRIES: dict[str, Registry] = {
    "start": starts,
    "view": views,
    "train": schedules,
    "home": homes,
    "payload": payloads,
    "weigh": weighings,
    "merge": merges,
    "split": splits,
    "remainder": remainders,
}
DEFAULTS: dict[str, Any] = {
    "start": "given",
    "view": "identity",
    "train": "AB",
    "home": "nothing",
    "payload": "plain",
    "weigh": "given",
    "merge": "factor",
    "split": "mean",
    "remainder": "drop",
}
"""The pieces of FedIT (2305.05644). A method names the pieces in which it differs."""


@dataclass(frozen=True)
class Pieces:
    """The nine pieces of a method."""

    start: Start
    view: ViewRule
    train: Schedule
    home: LocalModules
    payload: Payload
    weigh: Weighing
    merge: Merge
    split: Split
    remainder: Remainder

    def names(self) -> dict[str, str]:
        """The name of the piece of each kind."""
        return {field.name: getattr(self, field.name).name for field in fields(self)}

    @property
    def personal(self) -> bool:
        """Whether a factor or some modules stay with the clients, so that each has a personal model."""
        return bool(self.train.local) or self.home.keeps

    @property
    def linear(self) -> bool:
        """Whether the next model depends on the updates through their weighted sum alone, for clients of one rank.

        With mixed ranks the weight of an update in a slot depends on who else has that slot.
        """
        return self.merge.linear and not self.weigh.own and self.payload.name == "plain"

    @property
    def exact(self) -> bool:
        """Whether E' = E + Σ c_k (E_k − E) holds for weights c that are the same in all slots (the exactness law).

        It concerns the modules that are sent; the others stay at their start.
        """
        if self.merge.space == "cores":
            return True
        if self.weigh.by_slot or not self.merge.averages:
            return False
        if self.merge.space == "increments":
            return self.remainder.lossless
        return self.train.one_factor and (self.remainder.lossless or not self.split.resets)


def build_pieces(specs: Mapping[str, Any]) -> Pieces:
    """Pieces from {kind: name or {name, options…}}, FedIT's by default. Raises UsageError with all problems."""
    problems, made = [], {}
    for kind in specs.keys() - REGISTRIES.keys():
        problems.append(f"unknown piece: {kind!r}.{did_you_mean(kind, REGISTRIES)} Pieces: {', '.join(REGISTRIES)}")
    for kind, registry in REGISTRIES.items():
        try:
            name, options = name_and_options(kind, specs.get(kind, DEFAULTS[kind]))
            made[kind] = replace(registry.build(name, options), name=name)
        except UsageError as error:
            problems.append(error.message)
    if problems:
        raise UsageError("\n".join(problems))
    pieces = Pieces(**made)
    _raise_conflicts(conflicts(pieces))
    return pieces


def name_and_options(kind: str, spec: Any) -> tuple[str, dict[str, Any]]:
    """The two parts of a piece in TOML. Raises UsageError for anything but a name or a table with a name."""
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
        return spec["name"], {key: value for key, value in spec.items() if key != "name"}
    raise UsageError(f'{kind} must be a name or a table such as {{name = "…"}}, got {spec!r}')


def check_optimizer(pieces: Pieces, optimizer: Optimizer) -> None:
    """Raise UsageError where the server optimizer conflicts with the pieces."""
    _raise_conflicts(optimizer_conflicts(pieces, optimizer))


def conflicts(p: Pieces) -> Iterator[str]:
    """One sentence for every conflicting pair of pieces: both names, the reason, and a compatible choice."""

    def pair(one: str, other: str, why: str, instead: str) -> str:
        names = p.names()
        return f'{one} "{names[one]}" and {other} "{names[other]}" do not fit: {why}; {instead}'

    cores = {"start": p.start.heads > 0, "view": p.view.of_cores, "train": p.train.sends == ("core",),
             "merge": p.merge.space == "cores"}  # fmt: skip
    if any(cores.values()) and not all(cores.values()):
        has, lacks = next(k for k, v in cores.items() if v), next(k for k, v in cores.items() if not v)
        yield pair(has, lacks, "a core needs a start, a view, training and a merge of cores",
                   'use start "cores", view "heads", train "core" and merge "core"')  # fmt: skip
        return
    if all(cores.values()):
        if p.split.name != "mean":
            yield pair("split", "merge", "B is made of the core and must stay so", 'use split "mean"')
        if p.remainder.keeps:
            yield pair("remainder", "merge", "a core loses nothing, so there is no rest", 'use remainder "drop"')
        if p.payload.needs_both:
            yield pair("payload", "merge", "it turns A, which is fixed", 'use payload "plain"')
        if p.home.keeps:
            yield pair("home", "merge", "a client keeps both A and B of its local modules, and a core stands for B",
                       'use home "nothing"')  # fmt: skip
        return
    factors = p.merge.space == "factors"
    if p.view.gauge == "own" and factors:
        yield pair("view", "merge", "slot j of one client is not slot j of another, so their mean means nothing",
                   'use merge "product", or view "prefix"')  # fmt: skip
    if p.view.gauge == "own" and p.weigh.by_slot:
        yield pair("view", "weigh", "the clients' slots are not the server's", 'use weigh "given", or view "prefix"')
    if p.view.needs_zero_B and not p.split.empties:
        yield pair("view", "split", "the view begins with B = 0 and would lose the adapter", 'use split "reinit"')
    if p.view.needs_zero_B and p.start.needs_base:
        yield pair("view", "start", "the view begins with B = 0 and would lose the adapter", 'use start "given"')
    if p.split.resets and not p.remainder.keeps:
        yield pair("split", "remainder", "nothing of what the clients learned would be left", 'use remainder "keep"')
    if p.split.name == "fixed" and not p.start.needs_base:
        yield pair("split", "start", "no factors were fixed at the start", 'use start "principal"')
    if p.split.name == "ridge" and factors:
        yield pair("split", "merge", "the means of factors leave no residual to fit", 'use merge "product"')
    if p.remainder.keeps and factors and not p.split.resets:
        yield pair("remainder", "merge", "the means of factors leave no rest", 'use merge "product"')
    if p.payload.needs_both and p.train.one_factor:
        yield pair("payload", "train", "turning one factor turns the other, which is not sent", 'use train "AB"')
    if p.payload.needs_both and p.view.name != "identity":
        yield pair("payload", "view", "it turns slots into each other, which clients of few slots lack",
                   'use view "identity"')  # fmt: skip
    if p.train.local and (p.view.name != "identity" or not factors or p.split.name != "mean"):
        kind = "view" if p.view.name != "identity" else "split" if factors else "merge"
        yield pair("train", kind, "a factor that stays with the clients belongs to the global slots as they are",
                   'use view "identity", merge "factor" and split "mean"')  # fmt: skip
    if p.home.keeps and p.view.probe is not None:
        yield pair("home", "view", "a client reports its slots of all modules, and nothing of the local modules "
                   "may be sent", 'use view "fold" or "identity"')  # fmt: skip
    only_A = not p.train.local and "A" in p.train.sends and ("B" not in p.train.sends or p.split.empties)
    if only_A and not p.start.needs_base:
        other = "split" if p.split.empties else "start"
        yield pair("train", other, "where B is zero, A has no gradient and nothing ever moves", 'use train "AB" or "B"')


def from_outside(p: Pieces, optimizer: Optimizer) -> Iterator[tuple[str, str]]:
    """(setting, name) of each part that sees single updates, or sets their weights, and is not of this package.

    What a plug-in declares of itself (`linear`, `own`, `by_steps`) is not known to be true.
    """
    parts = {
        ("method.view", p.view.name): (p.view.make,),
        ("method.payload", p.payload.name): (p.payload.transform,),
        ("method.weigh", p.weigh.name): (p.weigh.of,),
        ("method.merge", p.merge.name): (p.merge.of,),
        ("server.optimizer", optimizer.name): (optimizer.coefficients, optimizer.init, optimizer.step),
    }
    for part, functions in parts.items():
        if any(not _is_own(function) for function in functions):
            yield part


def _is_own(function: Any) -> bool:
    module = getattr(function, "__module__", None) or type(function).__module__
    return module.partition(".")[0] == __name__.partition(".")[0]


def aggregator_conflicts(p: Pieces) -> Iterator[str]:
    """Why a rule over stacked deltas cannot take the place of the merge: one sentence for each reason."""
    if p.merge.space != "factors":
        yield f'its merge "{p.merge.name}" is no mean of factors, and an aggregator sees one factor of all clients'
    if p.weigh.by_slot:
        yield f'its weigh "{p.weigh.name}" weighs each rank slot apart, and an aggregator has one weight per client'
    if p.view.probe is not None:
        yield f'with its view "{p.view.name}" clients send slots of their choice, and an aggregator needs all of them'


def optimizer_conflicts(p: Pieces, optimizer: Optimizer) -> Iterator[str]:
    """The conflicts between the server optimizer and the pieces."""
    if optimizer.by_steps and not p.merge.averages:
        yield (
            f'server.optimizer "{optimizer.name}" and federation.aggregator "{p.merge.name}" do not fit: it divides '
            f'each client\'s change by its steps, and the weights of an aggregator sum to one; use "fedavg"'
        )
    if optimizer.by_steps and p.train.in_turn:
        yield (
            f'server.optimizer "{optimizer.name}" and train "{p.train.name}" do not fit: A and B take other numbers of '
            f'a client\'s steps, one of them perhaps none, and its change is divided by one number; use "fedavg", or '
            f'train "AB" or "by_round"'
        )  # fmt: skip
    if optimizer.memoryless:
        return
    if p.merge.space == "increments" and not optimizer.on_increments:
        yield (
            f'server.optimizer "{optimizer.name}" and merge "{p.merge.name}" do not fit: it steps in each coordinate '
            f'of the factors, and a product has none; use "fedavg" or "fedavgm", which also step on increments, or a '
            f'merge of factors'
        )  # fmt: skip
    if p.merge.space == "factors" and p.split.rebases:
        yield (
            f'server.optimizer "{optimizer.name}" and split "{p.split.name}" do not fit: the moments refer to rank '
            f'slots that the split replaces; use "fedavg", or split "mean"'
        )  # fmt: skip


def control_conflicts(p: Pieces, weights: str, mixed_ranks: bool) -> Iterator[str]:
    """The conflicts with SCAFFOLD, whose control variates persist by rank slot, with c = Σ p_k c_k of fixed p_k."""
    setting, instead = "", ""
    if p.weigh.own:
        setting, instead = f'method.weigh = "{p.weigh.name}"', 'method.weigh = "given"'
    elif weights == "tokens":
        setting, instead = 'federation.weights = "tokens"', 'federation.weights = "examples" or "uniform"'
    if setting:
        yield (
            f"objective.scaffold = true and {setting} do not fit: these weights change from round to round, and the "
            f"mean of the clients' control variates needs the same in all rounds; use {instead}"
        )  # fmt: skip
    if not p.merge.averages:
        yield (
            f'objective.scaffold = true and federation.aggregator "{p.merge.name}" do not fit: the clients are '
            f"corrected towards the mean of their gradients, and the model does not move by a mean; leave one out"
        )
    if p.split.rebases or p.view.gauge == "own":
        kind, name = ("split", p.split.name) if p.split.rebases else ("view", p.view.name)
        yield (
            f'objective.scaffold = true and {kind} "{name}" do not fit: control variates belong to rank slots, and '
            f'after each round a slot is another one; use federation.method = "fedit", "ffa_lora", "rolora" or '
            f'"fedex_lora", or objective.scaffold = false'
        )  # fmt: skip
    elif mixed_ranks and not p.view.all_slots:
        yield (
            f'objective.scaffold = true and lora.ranks do not fit with view "{p.view.name}": a control variate has the '
            f'shape of the global adapter; use one rank for all clients, or federation.method = "fed_plora"'
        )  # fmt: skip


def _raise_conflicts(found: Iterator[str]) -> None:
    problems = list(found)
    if problems:
        raise UsageError("\n".join(problems))
