"""Communication cost of a method: numbers uploaded and downloaded per client and round, from the shapes alone.

Up is a client's update; chosen slots count as if spread evenly over the modules, plus a quarter of a number for each
boolean of the choice. Down is the difference between two global models: the new adapter (or the one trained factor),
and the round's addition to the remainder. Tensors that follow from the seed, local factors and local modules are not
sent. Where the remainder is truncated by energy, its rank is an upper bound until a round has determined it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from shepherd.lowrank import LowRank
from shepherd.server.method import Method
from shepherd.server.methods import build_method, methods
from shepherd.types import Adapter

SMOLLM2_QV = {
    **{f"layers.{i}.q": (576, 576) for i in range(30)},
    **{f"layers.{i}.v": (576, 192) for i in range(30)},
}
"""(in, out) of q and v in SmolLM2-135M, the example where no model is named."""

Sizes = Mapping[str, tuple[int, int]]


def numbers(method: Method, sizes: Sizes, r: int, ranks: Sequence[int]) -> tuple[float, float]:
    """(up, down): mean numbers per client and round for a cohort of these ranks, over modules of sizes (in, out).

    The mean over the rounds of the schedule.
    """
    rounds = range(1, len(method.pieces.train.sends) + 1)
    both = [_numbers(method, sizes, r, number, ranks, ranks) for number in rounds]
    up, down = (sum(of) / len(rounds) / len(ranks) for of in zip(*((u + c, d) for u, c, d in both), strict=True))
    return up, down


def round_bytes(
    method: Method,
    adapter: Adapter,
    number: int,
    ranks: Sequence[int],
    merged: Sequence[int] | None = None,
    scaffold: bool = False,
    clusters: int = 0,
    rest: Mapping[str, int] | None = None,
) -> tuple[int, int]:
    """(up, down): bytes in float32 of round `number` (from 1) for a cohort of these ranks, if all reply.

    merged: the ranks of the clients whose updates count; None for all. rest: {module: rank that the round added to the
    remainder}, if known. SCAFFOLD's c is as large as an upload. The model of each cluster is as large as the global
    one, and a client sends an update of one of them.
    """
    sizes = {name: (A.shape[1], len(B)) for name, (A, B) in adapter.factors.items()}
    merged = ranks if merged is None else merged
    up, choices, down = _numbers(method, sizes, adapter.r, number, ranks, merged, rest)
    # A client that has not yet chosen its slots needs c in all of them.
    moved = ranks if method.pieces.view.probe is None else [adapter.r] * len(ranks)
    control = _numbers(method, sizes, adapter.r, number, moved, merged)[0] if scaffold else 0.0
    trained = 1 + scaffold + (clusters > 0)
    return round(4 * (trained * up + choices)), round(4 * ((1 + clusters) * down + control))


def added_ranks(before: Mapping[str, LowRank], after: Mapping[str, LowRank]) -> dict[str, int]:
    """The rank that a round added to the remainder, by module, without modules with a dense remainder."""
    return {
        name: now.q - (before[name].q if name in before else 0) for name, now in after.items() if now.q < min(now.shape)
    }


def bounds(method: Method, adapter: Adapter, mixed: bool, one_step: bool) -> tuple[str, str]:
    """(up, down): whether the bytes of `round_bytes` are "exact", "about" or "at most" the bytes sent.

    mixed: some ranks are below r. one_step: no client takes more than one local step.
    """
    p = method.pieces
    sizes = [(A.shape[1], len(B)) for A, B in adapter.factors.values()]
    widths = {"A": {n_in for n_in, _ in sizes}, "B": {n_out for _, n_out in sizes}, "AB": {sum(s) for s in sizes}}
    uneven = any(len(widths[part]) > 1 for part in p.train.sends if part in widths)
    # Clients with a common factor give fewer columns than they have slots, as after one step from B = 0, which
    # changes B alone.
    common = p.train.one_factor or (one_step and not p.start.needs_base)
    less = p.remainder.keeps and (p.remainder.energy < 1 or common)
    return "about" if p.view.probe is not None and mixed and uneven else "exact", "at most" if less else "exact"


def table(sizes: Sizes = SMOLLM2_QV, r: int = 8, clients: int = 10, bytes_each: int = 4) -> list[dict[str, Any]]:
    """One row for each method: its pieces, bytes per client and round, capabilities and citation."""
    rows = []
    for name in methods.known():
        method = build_method(name)
        up, down = numbers(method, sizes, r, [r] * clients)
        energy = method.pieces.remainder.energy
        rows.append(
            {
                "name": name,
                "about": methods.describe(name),
                **method.pieces.names(),
                "bytes_up": round(up * bytes_each),
                "bytes_down": round(down * bytes_each),
                "exact": "yes" if method.exact else f"to {energy:g}" if 0 < energy < 1 else "no",
                "sum_only": method.linear,
                "sum_dense": method.linear and method.mixed_ranks,
                "mixed_ranks": method.mixed_ranks,
                "citation": method.citation,
                "experimental": method.experimental,
            }
        )
    return rows


def _numbers(
    method: Method,
    sizes: Sizes,
    r: int,
    number: int,
    ranks: Sequence[int],
    merged: Sequence[int],
    rest: Mapping[str, int] | None = None,
) -> tuple[float, float, float]:
    """(up, choices of slots, down): numbers of one round for a whole cohort."""
    sends, counts, local = method.pieces.train.of(number)[1], Counter(ranks), method.local_modules(sizes)
    up = choices = down = 0.0
    for name, (n_in, n_out) in sizes.items():
        if name in local:
            continue
        for rank, count in counts.items():
            up += count * _up(method, n_in, n_out, r, rank, sends)
            down += count * _adapter_down(method, n_in, n_out, r, rank, sends)
            choices += count * (r / 4 if method.pieces.view.probe is not None and rank < r else 0.0)
        most = _rest_rank(method, n_in, n_out, r, merged)
        down += len(ranks) * min(most, (rest or {}).get(name, most)) * (n_in + n_out)
    return up, choices, down


def _up(method: Method, n_in: int, n_out: int, r: int, rank: int, sends: str) -> float:
    """Numbers that one client uploads for one module."""
    heads = method.pieces.start.heads
    return {"AB": rank * (n_in + n_out), "A": rank * n_in, "B": rank * n_out, "core": rank * r / max(heads, 1)}[sends]


def _adapter_down(method: Method, n_in: int, n_out: int, r: int, rank: int, sends: str) -> float:
    p = method.pieces
    if p.split.resets:
        return 0.0  # known from the seed
    if p.start.heads:
        return r * r / p.start.heads
    if p.view.all_slots:
        rank = r
    if not p.split.rebases and p.merge.space == "factors":
        return _up(method, n_in, n_out, r, rank, sends)  # factors that are not sent do not change
    return rank * (n_in + n_out)


def _rest_rank(method: Method, n_in: int, n_out: int, r: int, ranks: Sequence[int]) -> int:
    p = method.pieces
    if not p.remainder.keeps or not ranks:
        return 0
    # A mean of factors has the rank of one client for any cohort, and so has its rest with fixed factors.
    rank = r if p.merge.space == "factors" else p.split.rest_rank(ranks, r)
    return min(rank, p.remainder.rank or rank, n_in, n_out)
