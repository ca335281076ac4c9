"""Federated LoRA methods by name, each a composition of pieces. A new one is a function of a few lines.

    @methods
    def my_method(rank: int = 16) -> Method:
        \"\"\"The method in one line, with its source.\"\"\"
        return compose("my_method", merge="product", split="mean", remainder={"name": "keep", "rank": rank})

Experimental: methods implemented from a secondary source, or without a part that needs the client's data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from shepherd.errors import UsageError
from shepherd.registry import Registry
from shepherd.server.aggregators import Aggregator, Rule, build_aggregator
from shepherd.server.composition import DEFAULTS, REGISTRIES, name_and_options
from shepherd.server.method import Method, compose
from shepherd.server.optimizer import optimizers

methods = Registry("method")

OTHER_NAMES = {
    "fedavg": 'FedAvg of the factors is "fedit"',
    "fedprox": "FedProx is objective.proximal",
    "scaffold": "SCAFFOLD is objective.scaffold = true",
    "ditto": 'Ditto is personalization.name = "ditto"',
    "ifca": 'IFCA is personalization.name = "ifca"',
    "feddpa": 'FedDPA is personalization.name = "feddpa"',
}
"""Names of methods in the literature that are other settings here."""


@methods
def fedit() -> Method:
    """Separate means of A and of B (FedIT, Zhang et al., 2305.05644)."""
    return compose("fedit", citation="2305.05644")


@methods
def ffa_lora(start: Literal["given", "orthonormal"] = "given") -> Method:
    """A is frozen, B is trained: exact, sums only, half the bytes (FFA-LoRA, Sun et al., 2403.12313)."""
    return compose("ffa_lora", citation="2403.12313", start=start, train="B")


@methods
def rolora() -> Method:
    """B in odd rounds, A in even ones: exact, sums only, half the bytes (RoLoRA, Chen et al., 2502.01755)."""
    return compose("rolora", citation="2502.01755", train="by_round")


@methods
def lora_a2(probe: int = 0) -> Method:
    """RoLoRA in slots that each client chooses over the whole model by a probe, with η_B = 5 η_A (LoRA-A²).

    Koo et al., 2410.22815. A client of rank r_k < r (lora.ranks) sends on average r_k slots per module, and their
    choice; unchosen slots count as zero change. A client of rank r sends all, as in rolora. probe: its local steps, as
    in view "probe". η_B = 5 η_A is the default objective.rate_ratio of the method, and most of its gain in the paper's
    ablation.
    """
    return compose("lora_a2", citation="2410.22815", view={"name": "probe", "steps": probe}, train="by_round",
                   rate_ratio=5.0)  # fmt: skip


@methods
def la_lora() -> Method:
    """Alternating local steps of B and A, both averaged (LA-LoRA, ICLR 2026), without its noise filter.

    The authors' code steps A first, with η_B = 2 η_A. Here B is first, because A has no gradient while B is zero;
    objective.rate_ratio = 2 is their ratio, and 1 is the default.
    """
    return compose("la_lora", citation="ICLR 2026", train="by_step")


@methods
def fedsa_lora() -> Method:
    """A is averaged, B stays local to each client: personal models (FedSA-LoRA, Guo et al., 2410.01463).

    The global adapter has B = 0 and a zero increment: training shows in the personal models alone.
    """
    return compose("fedsa_lora", citation="2410.01463", train="share_A")


@methods
def fedper_lora(blocks: int = 1) -> Method:
    """The adapters of the last blocks stay local to each client, the others are averaged (after FedPer, 1912.00818).

    blocks: the number of local blocks. FedPer keeps the last layers and the head of a network; here the head has no
    adapter. The default is the smallest number with personal models, possible for any model of two blocks; 0 is fedit.
    The global adapter has a zero increment in the local blocks.
    """
    return compose("fedper_lora", citation="1912.00818", home={"name": "last_blocks", "blocks": blocks})


@methods
def fedmomentum(energy: float = 0.9999) -> Method:
    """The exact product; its best part balanced over both factors, the rest kept (FedMomentum, 2603.08014).

    energy: the share of the merged increment's ‖·‖² that is kept; 1 keeps all, and then it is exact.
    """
    return compose("fedmomentum", citation="2603.08014", merge="product", split="svd_balanced",
                   remainder={"name": "keep", "energy": energy})  # fmt: skip


@methods
def fedex_lora(rank: int = 0) -> Method:
    """The means of the factors, and the residual to the exact product kept (FedEx-LoRA, Singhal et al., 2410.09432).

    rank: of the kept part of the residual (the truncated variant); 0 keeps all of it.
    """
    return compose("fedex_lora", citation="2410.09432", merge="product", remainder={"name": "keep", "rank": rank})


@methods
def flora() -> Method:
    """The exact product is added to the remainder; each round has a new adapter (FLoRA, Wang et al., 2409.05976)."""
    return compose("flora", citation="2409.05976", view="fresh", merge="product", split="reinit", remainder="keep")


@methods
def flexlora(scale: Literal["own", "common"] = "own") -> Method:
    """The exact product truncated to the global rank; clients get its first r_k slots (FlexLoRA, 2402.11505).

    scale: "own" is alpha / r_k for each client as in the paper, "common" that of the server for all.
    """
    return compose("flexlora", citation="2402.11505", view={"name": "prefix", "scale": scale}, merge="product",
                   split="svd_left")  # fmt: skip


@methods
def florist(energy: float = 0.99) -> Method:
    """FLoRA with the product truncated to the least rank that keeps this energy (FLoRIST, 2506.09199)."""
    return compose("florist", citation="2506.09199", view="fresh", merge="product", split="reinit",
                   remainder={"name": "keep", "energy": energy})  # fmt: skip


@methods
def hetlora() -> Method:
    """Prefixes of mixed rank, padded with zeros, weighted by the norm of their increments (HetLoRA, 2401.06432).

    A client has one weight, by the norm √Σ ‖s·B_kA_k‖² over all modules that are sent. A weight for each module by
    its norm, or by the sum of the modules' norms, is another reading of the paper.
    """
    return compose("hetlora", citation="2401.06432", view="prefix", weigh="product_norm",
                   experimental="without the penalty on the last slots and the self-pruning of ranks, "
                                "whose formulas were not verified")  # fmt: skip


@methods
def raflora() -> Method:
    """The product with each slot averaged over its owners, then the best rank-r part (raFLoRA, 2602.13486)."""
    return compose("raflora", citation="2602.13486", view="prefix", weigh="slot_owners", merge="product",
                   split="svd_balanced")  # fmt: skip


@methods
def fedilora() -> Method:
    """Means of A and of B with each slot averaged over its owners (FediLoRA, 2509.06984), without its layer editing.

    The weights of a slot are those of the round, renormalised over its owners, as in the authors' code.
    """
    return compose("fedilora", citation="2509.06984", view="prefix", weigh="slot_owners",
                   experimental="without the editing of layers")  # fmt: skip


@methods
def fed_plora() -> Method:
    """All slots frozen but r_k random ones, averaged over their owners (Fed-PLoRA, 2602.16936).

    The mean over the owners of a slot uses the weights of the round (federation.weights); "uniform" is the plain mean,
    an alternative reading of the paper.
    """
    return compose("fed_plora", citation="2602.16936", view="fold", weigh="slot_owners")


@methods
def fedrot_lora(strength: float = 0.5) -> Method:
    """Clients' slots are rotated towards the global factors, then averaged (FedRot-LoRA, 2602.23638)."""
    return compose("fedrot_lora", citation="2602.23638", payload={"name": "rotate", "strength": strength})


@methods
def lora_fair(strength: float = 0.01) -> Method:
    """The mean of A, and the B that fits the exact product best (LoRA-FAIR, Bian et al., 2411.14961), by ridge."""
    return compose("lora_fair", citation="2411.14961", merge="product", split={"name": "ridge", "strength": strength},
                   experimental="a ridge regression in closed form stands for the paper's gradient descent on a cosine"
                   )  # fmt: skip


@methods
def frlora() -> Method:
    """Rounds start from the principal directions of the base; the remainder keeps the rest (FRLoRA, ICLR 2025)."""
    return compose("frlora", citation="ICLR 2025", start="principal", split="fixed", remainder="keep",
                   experimental="after notes of a re-implementation; A and B hold 1/√s, so that s·BA is principal"
                   )  # fmt: skip


@methods
def fedsvd() -> Method:
    """B is trained; the server refactors the product so that A has orthonormal rows (FedSVD, Lee et al., 2505.12805).

    Only B is trained, so the row space of A is constant; with SGD it equals ffa_lora with an orthonormal A.
    """
    return compose("fedsvd", citation="2505.12805", start="orthonormal", train="B", split="regauge")


@methods
def fed_sb() -> Method:
    """An r × r core between fixed bases is trained and averaged: exact, r² numbers (Fed-SB, 2502.15436)."""
    return compose("fed_sb", citation="2502.15436", start="cores", view="heads", train="core", merge="core",
                   experimental="random orthonormal bases and a core of zeros; the paper takes both from the SVD of a "
                                "gradient on data, which is not private")  # fmt: skip


@methods
def ravan(heads: int = 4) -> Method:
    """Several cores between orthonormal bases, each averaged over its owners (Ravan, 2506.05568)."""
    return compose("ravan", citation="2506.05568", start={"name": "cores", "heads": heads}, view="heads", train="core",
                   weigh="slot_owners", merge="core",
                   experimental="the heads' own scales are fixed at 1, and weak clients train random heads, not those "
                                "with the best score on their data")  # fmt: skip


def build_method(
    name: str,
    table: Mapping[str, Any] | None = None,
    optimizer: str = "fedavg",
    optimizer_options: Mapping[str, Any] | None = None,
    aggregator: str | Mapping[str, Any] | Rule | Aggregator = "",
) -> Method:
    """The method of a recipe, from its name, the table [method] of pieces and options, the server optimizer, and the
    aggregator that takes the place of its merge, if any.

    Keys of the table that name a piece replace that piece; the others are options of the method. Raises UsageError.
    """
    if (meant := OTHER_NAMES.get(name.casefold())) and name not in methods.known():
        raise UsageError(f"unknown method: {name!r}. {meant}")
    table = dict(table or {})
    options_of_method = methods.options(name)
    overrides = {key: table.pop(key) for key in list(table) if key in REGISTRIES and key not in options_of_method}
    try:
        method = methods.build(name, table)
    except UsageError as error:
        unknown = [key for key in table if key not in options_of_method]
        if not unknown:
            raise
        raise UsageError(f"{error.message}; pieces: {', '.join(REGISTRIES)}", hint=error.hint) from None
    if overrides:
        method = method.changed({kind: _with_name(method, kind, spec) for kind, spec in overrides.items()})
    server = replace(optimizers.build(optimizer, optimizer_options), name=optimizer)
    method = method.with_optimizer(server)
    return method.with_aggregator(build_aggregator(aggregator)) if aggregator else method


def _with_name(method: Method, kind: str, spec: Any) -> Any:
    """The piece of a table, with the method's name where the table has none: remainder = {rank = 4}."""
    if not isinstance(spec, Mapping) or "name" in spec:
        return spec
    name, options = name_and_options(kind, method.specs.get(kind, DEFAULTS[kind]))
    return {"name": name, **options, **spec}


def check_ranks(method: Method, ranks: Mapping[str, int] | Sequence[int], r: int) -> None:
    """Raise UsageError for client ranks, each from 1 to r, that the method does not support."""
    values = list(ranks.values() if isinstance(ranks, Mapping) else ranks)
    heads = method.pieces.start.heads
    if heads and r % heads:
        raise UsageError(f"{heads} heads do not divide lora.r = {r}", hint="set lora.r to a multiple of the heads")
    if heads > 1 and any(rank % (r // heads) for rank in values):
        raise UsageError(f"{method.name} trains whole heads of rank {r // heads}, lora.ranks has {sorted(set(values))}")
    if any(rank != r for rank in values) and method.aggregator is not None:
        raise UsageError(
            f'federation.aggregator = "{method.aggregator.name}" and lora.ranks do not fit: it stacks one factor of '
            "all clients, and at other ranks its shape is another",
            hint="leave lora.ranks out, or leave federation.aggregator out",
        )
    if any(rank != r for rank in values) and not method.mixed_ranks:
        fitting = [name for name in methods if methods.build(name).mixed_ranks]
        raise UsageError(
            f"{method.name} gives all clients the rank {r}, lora.ranks has {', '.join(map(str, sorted(set(values))))}",
            hint=f"methods of mixed ranks: {', '.join(fitting)}",
        )
