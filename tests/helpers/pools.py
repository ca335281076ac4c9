"""Pools of twenty clients with sizes and histories, and availability traces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shepherd.clients.pool import Pool

N = 20
CLIENTS = tuple(f"c{k:02}" for k in range(N))
SIZES = {c: k + 1 for k, c in enumerate(CLIENTS)}  # 1 … 20, 210 together
P = np.array([SIZES[c] for c in CLIENTS]) / 210
BY = {"examples": P, "uniform": np.full(N, 1 / N)}


def pool(weights: str = "examples", number: int = 5, clients: tuple[str, ...] = CLIENTS, **known) -> Pool:
    shares = dict(zip(CLIENTS, BY.get(weights, ()), strict=False)) if weights in BY else {}
    return replace(Pool(number, CLIENTS, SIZES, shares, **known), clients=clients)


SEEN = {
    "rounds": dict.fromkeys(CLIENTS[:12], 3),
    "losses": {c: 1.0 + 0.1 * k for k, c in enumerate(CLIENTS[:12])},
    "seconds": {c: 1.0 + k for k, c in enumerate(CLIENTS[:12])},
}


def trace(folder, text: str, name: str = "trace.json") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


JSON = '{"c00": [[1, 2], [4, null]], "c01": [], "c02": [[3, 3]]}'
