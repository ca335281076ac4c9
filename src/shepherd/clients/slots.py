"""Selection of rank slots by a client (LoRA-A²): from a probe of local training to bool[r] by module.

LoRA-A² (2410.22815): a client of rank r_k trains all slots for some steps, scores each by the change of its increment,
and keeps the best r_k · N over all N modules. The round then restarts from the same client model, in these slots alone.
"""

from __future__ import annotations

import math

import numpy as np

from shepherd.types import Adapter, SlotChoice, Tensors, Work


def probe_work(work: Work, choice: SlotChoice, held: int) -> Work:
    """The work of a client's probe: the first steps of the round's rows and rates, for a client of `held` rows.

    A probe of more steps than the round continues in the row order at the last rate.
    """
    steps = choice.steps or min(work.steps, math.ceil(held * work.steps / work.rows))
    rates = work.learning_rates[:steps] + work.learning_rates[-1:] * (steps - work.steps)
    return Work(work.client, work.first_row, work.rows_of(steps), rates)


def best_slots(start: Adapter, trained: Tensors, budget: int) -> dict[str, np.ndarray]:
    """bool[r] by module: the `budget` slots of highest score over all modules, the first among equals.

    trained: all A and B after the probe, by name. The score of slot i is ‖B'[:, i] A'[i] − B[:, i] A[i]‖, which is
    ‖ΔB[:, i]‖·‖A[i]‖ where only B moved and ‖B[:, i]‖·‖ΔA[i]‖ where only A did (2410.22815). In float64.
    """
    scores = np.concatenate(
        [_scores(A, B, trained[f"{name}.A"], trained[f"{name}.B"]) for name, (A, B) in start.factors.items()]
    )
    keep = np.zeros(len(scores), bool)
    keep[np.argsort(-scores, kind="stable")[:budget]] = True
    return dict(zip(start.factors, keep.reshape(-1, start.r), strict=True))


def _scores(A: np.ndarray, B: np.ndarray, A_after: np.ndarray, B_after: np.ndarray) -> np.ndarray:
    """float64[r], by b'a' − ba = (b' − b)a' + b(a' − a), which avoids cancellation where a slot changed little."""
    A, A_after, B, B_after = (np.asarray(x, np.float64) for x in (A, A_after, B.T, B_after.T))
    dA, dB = A_after - A, B_after - B
    inner = lambda x, y: np.einsum("ij,ij->i", x, y)  # noqa: E731
    squares = inner(dB, dB) * inner(A_after, A_after) + inner(B, B) * inner(dA, dA)
    return np.sqrt(np.maximum(squares + 2 * inner(dB, B) * inner(A_after, dA), 0.0))
