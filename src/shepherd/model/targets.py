"""Target modules of an adapter: the linear layers of the decoder's blocks, and their share of the weights.

names = pick_targets(model, "all-linear")       # ("model.layers.0.self_attn.q_proj", …)
reach(model, "all-linear", names)               # the share of the blocks' weights, and what is left out
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from shepherd.errors import ModelError, UsageError, did_you_mean

NEARLY_ALL = 0.98  # norms, biases and small gates aside


def is_linear(module: nn.Module) -> bool:
    """Whether a module can carry an adapter: torch's Linear, bitsandbytes' subclasses of it, GPT-2's Conv1D."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def linear_names(model: nn.Module) -> list[str]:
    """Full names of the linear layers inside the decoder's blocks, in model order; no embeddings, no output head."""
    prefix, blocks = blocks_of(model)
    return [f"{prefix}.{name}" for name, module in blocks.named_modules() if is_linear(module)]


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder blocks and their full name: the longest list of modules that is not inside another list.

    Experts are lists inside blocks, and a vision tower has separate blocks, so the search starts at the decoder.
    Raises ModelError without such a list.
    """
    get_decoder = getattr(model, "get_decoder", None)
    decoder = model if get_decoder is None else get_decoder()
    names = {module: name for name, module in model.named_modules()}
    found: list[tuple[str, nn.ModuleList]] = []
    for module in (decoder if decoder in names else model).modules():
        if isinstance(module, nn.ModuleList):
            name = names[module]
            if not any(name.startswith(outer + ".") for outer, _ in found):
                found.append((name, module))
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no list of blocks to adapt", hint="use a decoder-only transformer"
        )
    return max(found, key=lambda pair: len(pair[1]))


def pick_targets(model: nn.Module, targets: str | Sequence[str]) -> tuple[str, ...]:
    """Full module names to adapt, in model order: `"all-linear"`, or names such as "q_proj" or "mlp.down_proj".

    A name selects every linear layer of the blocks whose full name ends with it. Raises ModelError for a name without
    a match, listing the valid names and explaining what the name refers to, if anything.
    """
    names = linear_names(model)
    if targets == "all-linear":
        if not names:
            raise ModelError(f"{type(model).__name__} has no linear layer in its blocks", hint="choose another model")
        return tuple(names)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    if not wanted:
        raise UsageError("lora.targets is empty", hint='set lora.targets = "all-linear"')
    short = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
    for target in wanted:
        if not any(_means(target, name) for name in names):
            what = _instead(model, target) or f".{did_you_mean(target, short)}"
            raise ModelError(
                f"lora.targets: this model has no linear layer {target!r}{what}",
                hint=f"its linear layers: {', '.join(short)}",
            )
    return tuple(name for name in names if any(_means(target, name) for target in wanted))


def _means(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _instead(model: nn.Module, target: str) -> str:
    """What a name without a matching linear layer refers to, or an empty string."""
    routed = _routed(model)
    found = [name for name in routed if _means(target, name) or f".{target}." in f".{name}"]
    if found:
        shape = " × ".join(map(str, routed[found[0]]))
        return (
            f" but experts' matrices of that name ({found[0]}: {shape}): tokens are routed among them, one after the "
            "other of a whole pass, and no adapter of a client can sit on them"
        )
    prefix, _ = blocks_of(model)
    outside = [n for n, m in model.named_modules() if _means(target, n) and not f"{n}.".startswith(f"{prefix}.")]
    if outside and any(True for _ in model.get_submodule(outside[0]).parameters()):
        return f" in its blocks; {outside[0]} lies outside of them, where embeddings and heads stay as they are"
    inside = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if _means(target, n) and any(m.children())}
    return f" but a group of layers of that name; name its layers, such as {target}.…" if inside else ""


def _routed(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The blocks' stacked parameters (experts), as {full name: shape}."""
    prefix, blocks = blocks_of(model)
    return {
        f"{prefix}.{name}": tuple(parameter.shape)
        for name, parameter in blocks.named_parameters()
        if parameter.ndim >= 3 and "conv" not in name
    }


# Share of the weights


@dataclass(frozen=True)
class Reach:
    """The coverage of the blocks by adapted layers.

    share: adapted layers' weights among all weights of the blocks; left: {kind of matrix: its share} without an
    adapter; notes: warnings of unexpected coverage.
    """

    share: float
    left: Mapping[str, float]
    notes: tuple[str, ...]


def reach(model: nn.Module, targets: str | Sequence[str], names: Sequence[str]) -> Reach:
    """The coverage of the blocks by the adapted layers `names`; `model` may be on the meta device."""
    prefix, blocks = blocks_of(model)
    adapted = set(names)
    counts: dict[str, int] = {}
    total = reached = 0
    for name, parameter in blocks.named_parameters():
        total += parameter.numel()
        if f"{prefix}.{name}".rpartition(".")[0] in adapted:
            reached += parameter.numel()
        else:
            kind = _kind(name)
            counts[kind] = counts.get(kind, 0) + parameter.numel()
    share = reached / max(total, 1)
    left = {kind: count / total for kind, count in sorted(counts.items(), key=lambda pair: -pair[1])}
    notes = []
    if targets == "all-linear":
        if share < NEARLY_ALL:
            routed = {_kind(name.removeprefix(f"{prefix}.")) for name in _routed(model)}
            large = [kind for kind in left if left[kind] >= 0.01] or list(left)[:1]
            experts = sum(left.get(kind, 0.0) for kind in routed)
            why = f" ({_percent(experts)} are experts', which are routed and carry none)" if experts else ""
            notes.append(
                f"all-linear adapts {_percent(share)} of the weights of the model's blocks; without an adapter: "
                f"{', '.join(large[:4])}{why}"
            )
    else:
        for target in [targets] if isinstance(targets, str) else targets:
            notes += _partly(model, target, names, len(blocks), prefix)
    return Reach(share, left, tuple(notes))


def _partly(model: nn.Module, target: str, names: Iterable[str], blocks: int, prefix: str) -> list[str]:
    """A note where a target name matches only some of the blocks or matrices of that name."""
    found = [name for name in names if _means(target, name)]
    inside = {name.removeprefix(f"{prefix}.").split(".", 1)[0] for name in found}
    notes = []
    if len(inside) < blocks and not re.search(r"\.\d+\.", f".{target}"):
        notes.append(f"lora.targets: {target!r} is in {len(inside)} of the {blocks} blocks")
    experts = [name for name in _routed(model) if _means(target, name)]
    if experts:
        notes.append(
            f"lora.targets: {target!r} adapts {_kind(found[0].removeprefix(f'{prefix}.'))}, not the experts' matrices "
            f"of that name ({_kind(experts[0].removeprefix(f'{prefix}.'))})"
        )
    return notes


def _kind(name: str) -> str:
    """The name of a block's parameter without numbers and ".weight": "mlp.experts.down_proj"."""
    parts = [part for part in name.split(".") if not part.isdigit()]
    return ".".join(parts).removesuffix(".weight")


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 or share == 0 else max(1, math.ceil(-math.log10(share)) - 1)}f} %"
