"""Diagnostics of a round in the space of increments: agreement of the clients, and error of the merge.

Computed by Gram matrices and QR of thin factors, a module at a time. Where the total rank of the clients reaches the
size of a module, they are summed in its dense matrix instead, and memory no longer grows with their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from shepherd.lowrank import DENSE_FROM, LowRank, stack, triangle
from shepherd.server.pieces.merge import Merged, Term, padded
from shepherd.server.pieces.payload import Payload, plain
from shepherd.server.pieces.weighing import Weighing, given
from shepherd.server.uploads import Local, Uploads
from shepherd.types import ClientId, ClientModel, ClientUpdate, GlobalModel

PLAIN, GIVEN = plain(), given()
PAIRS_OF = 32
"""The number of clients, first by name, between which cosines are computed; the cost is quadratic in it."""
INDEPENDENT = 1e-2
"""The least norm of a unit vector's residual on the others for which Gram matrices keep twelve digits."""
OPERATIONS = 2e11
"""The budget of a round; where it does not suffice, modules are skipped at even distances."""
AT_ONCE = 8
"""Clients whose products are summed by one multiplication, where a dense matrix is formed."""
GOLDEN = (5**0.5 - 1) / 2
"""The fractional parts of its multiples are equidistributed, with no period of the modules (Weyl, 1916)."""


@dataclass(frozen=True)
class Diagnostics:
    """Diagnostics of a round, measured over `modules` of the modules that were sent.

    deviation: ‖Σ c_k s_k B_kA_k − s·B̄Ā‖ / ‖Σ c_k s_k B_kA_k‖, the error of a mean of factors. cosine_mean, cosine_min:
    between the clients' changes X_k = E_k − E; None for one client. effective_rank: (Σσ)² / Σσ² of the mean product,
    energy_at_rank: the share of Σσ² in its first r; both are means over modules. subspace_move: ‖P − P'‖ / √(2r) of
    the row spaces of A before and after, from 0 to 1. increment_norm: ‖X_k‖.
    """

    deviation: float
    cosine_mean: float | None
    cosine_min: float | None
    effective_rank: float
    energy_at_rank: float
    subspace_move: float
    increment_norm: Mapping[ClientId, float]
    modules: int


def diagnose(
    before: GlobalModel,
    after: GlobalModel,
    views: Mapping[ClientId, ClientModel],
    updates: Sequence[ClientUpdate],
    weights: Mapping[ClientId, float],
    payload: Payload = PLAIN,
    weigh: Weighing = GIVEN,
) -> Diagnostics:
    """Compute the diagnostics of a round, from the models before and after and the updates. Weights sum to one.

    payload, weigh: those of the method, because the error of a mean of factors depends on the factors and weights used.
    """
    uploads = Uploads(before, views, updates, payload.transform)
    clients = [update.client for update in uploads.updates]
    shares_of = weigh.of(uploads, np.array([weights[c] for c in clients]))
    pairs = min(len(clients), PAIRS_OF)
    squares, gram = np.zeros(len(clients)), np.zeros((pairs, pairs))
    lost = total = 0.0
    ranks, energies, moves = [], [], []
    modules = affordable(before, len(clients), uploads.modules)
    for module in modules:
        start, each, shares = uploads.start(module), uploads.each(module), shares_of(module)
        dense = _is_dense(before, module, len(clients))
        small, held = _compressed(start, tuple(islice(each, pairs if dense else None)))
        if dense:
            rest, S = _summed(uploads, module, shares)
        else:
            merged = Merged(start.scale, tuple(Term(c, own) for c, own in zip(shares, held, strict=True)))
            rest, S = merged.residual.norm(), merged.total.singular_values(module)
        lost += rest**2
        total += np.sum(S**2)
        if S.any():
            ranks.append(S.sum() ** 2 / np.sum(S**2))
            energies.append(np.sum(S[: uploads.r] ** 2) / np.sum(S**2))
        moved = [change(small, local) for local in held]
        squares += [x.norm() ** 2 for x in moved] + [change(start, local).norm() ** 2 for local in each]
        gram += gram_of(moved[:pairs])
        moves.append(subspace_move(before.adapter.factors[module].A, after.adapter.factors[module].A))
    norms = np.sqrt(squares)
    cosines = _cosines(gram)
    return Diagnostics(
        deviation=float(np.sqrt(lost / total)) if total > 0 else 0.0,
        cosine_mean=float(cosines.mean()) if cosines.size else None,
        cosine_min=float(cosines.min()) if cosines.size else None,
        effective_rank=float(np.mean(ranks)) if ranks else 0.0,
        energy_at_rank=float(np.mean(energies)) if energies else 1.0,
        subspace_move=float(np.mean(moves)),
        increment_norm=dict(zip(clients, norms.tolist(), strict=True)),
        modules=len(modules),
    )


def subspace_move(A: np.ndarray, B: np.ndarray) -> float:
    """‖P_A − P_B‖_F / √(2r) for the projections on the row spaces of A and B [r, in]: 0 the same, 1 orthogonal."""
    P, Q = (np.linalg.qr(M.astype(np.float64).T)[0] for M in (A, B))
    # ‖P_A − P_B‖² = ‖(I − P_A)Q‖² + ‖(I − P_B)P‖², without cancellation where the two are close.
    apart = np.sum((Q - P @ (P.T @ Q)) ** 2) + np.sum((P - Q @ (Q.T @ P)) ** 2)
    return float(np.sqrt(apart / (P.shape[1] + Q.shape[1])))


def _is_dense(model: GlobalModel, module: str, clients: int) -> bool:
    """Whether the total rank of the clients is about the size of the module."""
    A, B = model.adapter.factors[module]
    return clients * model.adapter.r >= DENSE_FROM * min(A.shape[1], len(B))


def _summed(uploads: Uploads, module: str, shares: np.ndarray) -> tuple[float, np.ndarray]:
    """‖Σ c_k s (B_k − B̄)(A_k − Ā)‖, and the singular values of Σ c_k s B_kA_k, by summing [out, in] matrices."""
    start, r = uploads.start(module), uploads.r

    def terms() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return ((c, *padded(local, r, start.scale)) for c, local in zip(shares, uploads.each(module), strict=True))

    mean_A, mean_B = np.zeros_like(start.A), np.zeros_like(start.B)
    for c, A, B in terms():
        mean_A += c[:, None] * A
        mean_B += c * B
    total, rest = (np.zeros((len(mean_B), mean_A.shape[1])) for _ in range(2))
    each = terms()
    while some := tuple(islice(each, AT_ONCE)):
        total += np.hstack([start.scale * c * B for c, _, B in some]) @ np.vstack([A for _, A, _ in some])
        # From the centred factors: a subtraction would lose all digits when clients agree.
        centred = np.hstack([start.scale * c * (B - mean_B) for c, _, B in some])
        rest += centred @ np.vstack([A - mean_A for _, A, _ in some])
    lost = float(np.linalg.norm(rest))
    del rest, centred  # frees memory for the workspace of the next steps
    return lost, LowRank.beside_identity(total).singular_values(module)


def change(start: Local, local: Local) -> LowRank:
    """X_k = s·(B_kA_k − BA) of one module of a client of any rank."""
    A, B = padded(local, len(start.A), start.scale)
    # B_kA_k − BA = (B_k − B)A_k + B(A_k − A), without cancellation where the client changed little.
    return stack([LowRank(start.scale * (B - start.B), A), LowRank(start.scale * start.B, A - start.A)])


def _compressed(start: Local, locals_: Sequence[Local]) -> tuple[Local, Sequence[Local]]:
    """The factors in coordinates of orthonormal bases of their joint span.

    Norms, inner products and singular values of increments are preserved, and their cost depends on the total rank of
    the clients instead of the size of the module.
    """
    A = _coordinates([start.A.T, *(local.A.T - start.A.T[:, : len(local.A)] for local in locals_)])
    B = _coordinates([start.B, *(local.B - start.B[:, : local.B.shape[1]] for local in locals_)])
    small = [
        replace(local, A=(A_k + A[0][:, : len(local.A)]).T, B=B_k + B[0][:, : len(local.A)])
        for local, A_k, B_k in zip(locals_, A[1:], B[1:], strict=True)
    ]
    return replace(start, A=A[0].T, B=B[0]), small


def _coordinates(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Columns [n, c_i] in an orthonormal basis of all of them; unchanged where n is at most their number."""
    columns = np.concatenate(parts, axis=1)
    if len(columns) > columns.shape[1]:
        columns = _triangle(columns)
    return np.split(columns, np.cumsum([part.shape[1] for part in parts[:-1]]), axis=1)


def _triangle(columns: np.ndarray) -> np.ndarray:
    """R[c, c] of a QR of columns [n, c]; by Cholesky, several times as fast, if they are well conditioned."""
    lengths = np.linalg.norm(columns, axis=0)
    safe = np.where(lengths > 0, lengths, 1.0)
    gram = columns.T @ columns / np.outer(safe, safe)
    gram[np.diag_indices_from(gram)] = 1.0  # a zero column gets an independent direction, and the length zero
    try:
        R = np.linalg.cholesky(gram).T
    except np.linalg.LinAlgError:
        return triangle(columns)
    return R * lengths if R.diagonal().min() > INDEPENDENT else triangle(columns)


def gram_of(changes: Sequence[LowRank]) -> np.ndarray:
    """⟨X_i, X_j⟩ for all pairs, [K, K]."""
    L = np.concatenate([change.L for change in changes], axis=1)
    R = np.concatenate([change.R for change in changes], axis=0)
    count = len(changes)
    products = L.T @ L
    products *= R @ R.T
    return products.reshape(count, L.shape[1] // count, count, L.shape[1] // count).sum(axis=(1, 3))


def _cosines(gram: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of clients with nonzero changes."""
    norms = np.sqrt(np.diag(gram))
    moved = norms > 0
    unit = gram[np.ix_(moved, moved)] / np.outer(norms[moved], norms[moved])
    return unit[np.triu_indices(len(unit), 1)]


def affordable(model: GlobalModel, clients: int, names: Sequence[str]) -> list[str]:
    """Evenly spread modules whose total cost is at most OPERATIONS; at least one."""
    chosen: list[int] = []
    spent = 0.0
    for index in sorted(range(len(names)), key=lambda index: index * GOLDEN % 1):
        spent += _cost(model, names[index], clients)
        if chosen and spent > OPERATIONS:
            break
        chosen.append(index)
    return [names[index] for index in sorted(chosen)]


def _cost(model: GlobalModel, module: str, clients: int) -> float:
    """The approximate number of operations of a module: Gram matrices; if dense, products and singular values."""
    A, B = model.adapter.factors[module]
    n_in, n_out, r = A.shape[1], len(B), model.adapter.r
    if not _is_dense(model, module, clients):
        return 6 * (clients * r) ** 2 * (n_in + n_out)
    pairs = 6 * (min(clients, PAIRS_OF) * r) ** 2 * (n_in + n_out)
    return pairs + 4 * n_in * n_out * (clients * r + min(n_in, n_out))
