"""What a method sends: numbers up and down, per client and round, from the shapes alone.

Up is what leaves a client: of slots that it picks from the whole model as if they spread evenly, with a quarter of a
number for each truth value that says which. Down is what a client lacks to begin the next round: the new adapter (or
the one factor of it that moved), and the round's addition to the remainder. What follows from the seed is not sent, and
nothing of modules at home. A remainder's rank is an upper bound where it is cut by energy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shepherd.server.method import Method
from shepherd.server.methods import build_method, methods
from shepherd.types import Adapter

SMOLLM2_QV = {
    **{f"layers.{i}.q": (576, 576) for i in range(30)},
    **{f"layers.{i}.v": (576, 192) for i in range(30)},
}
"""(in, out) of q and v in SmolLM2-135M: the worked example, where no model is named."""

Sizes = Mapping[str, tuple[int, int]]


def numbers(method: Method, sizes: Sizes, r: int, ranks: Sequence[int]) -> tuple[float, float]:
    """(up, down): mean numbers per client and round for a cohort of these ranks, over modules of sizes (in, out)."""
    up = down = 0.0
    home = method.home(sizes)
    for n_in, n_out in (size for name, size in sizes.items() if name not in home):
        up += sum(_up(method, n_in, n_out, r, rank) for rank in ranks)
        down += sum(_adapter_down(method, n_in, n_out, r, rank) for rank in ranks)
        down += len(ranks) * _rest_rank(method, n_in, n_out, r, ranks) * (n_in + n_out)
    return up / len(ranks), down / len(ranks)


def bytes_down(
    method: Method, adapter: Adapter, ranks: Sequence[int], scaffold: bool = False, clusters: int = 0
) -> int:
    """Bytes in float32 to a cohort of these ranks; SCAFFOLD's c is as large as what clients send up.

    Each of the clusters' models is as large as the global one.
    """
    if not ranks:
        return 0
    sizes = {name: (A.shape[1], len(B)) for name, (A, B) in adapter.factors.items()}
    down = numbers(method, sizes, adapter.r, ranks)[1]
    # Who is yet to choose its slots needs c in all of them.
    moved = ranks if method.pieces.view.probe is None else [adapter.r] * len(ranks)
    up = numbers(method, sizes, adapter.r, moved)[0]
    return round(4 * len(ranks) * ((1 + clusters) * down + (up if scaffold else 0.0)))


def table(sizes: Sizes = SMOLLM2_QV, r: int = 8, clients: int = 10, bytes_each: int = 4) -> list[dict[str, Any]]:
    """A row for each method: its pieces, bytes per client and round, what it can do, and where it is from."""
    rows = []
    for name in methods:
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
                "sum_only": method.sum_only,
                "sum_dense": method.sum_only and method.mixed_ranks,
                "mixed_ranks": method.mixed_ranks,
                "citation": method.citation,
                "experimental": method.experimental,
            }
        )
    return rows


def _up(method: Method, n_in: int, n_out: int, r: int, rank: int) -> float:
    """One module of one client: mean over the rounds of the schedule."""
    heads = method.pieces.start.heads
    size = {"AB": rank * (n_in + n_out), "A": rank * n_in, "B": rank * n_out, "core": rank * r / max(heads, 1)}
    sends = method.pieces.train.sends
    choice = r / 4 if method.pieces.view.probe is not None and rank < r else 0.0
    return choice + sum(size[part] for part in sends) / len(sends)


def _adapter_down(method: Method, n_in: int, n_out: int, r: int, rank: int) -> float:
    p = method.pieces
    if p.split.resets:
        return 0.0  # known from the seed
    if p.start.heads:
        return r * r / p.start.heads
    if p.view.all_slots:
        rank = r
    if p.train.one_factor and not p.split.rebases and p.merge.space == "factors":
        return _up(method, n_in, n_out, r, rank)
    return rank * (n_in + n_out)


def _rest_rank(method: Method, n_in: int, n_out: int, r: int, ranks: Sequence[int]) -> int:
    p = method.pieces
    if not p.remainder.keeps:
        return 0
    # The mean of factors is one client's worth, whatever the cohort; so is what it leaves beside fixed factors.
    rank = r if p.merge.space == "factors" else p.split.rest_rank(ranks, r)
    return min(rank, p.remainder.rank or rank, n_in, n_out)
