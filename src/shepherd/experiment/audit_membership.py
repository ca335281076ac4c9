"""Membership inference on a run: its training rows against held-out rows of the same source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shepherd.errors import EvaluationError, UsageError
from shepherd.evaluation.attacks.membership import FALSE_POSITIVES, FEWEST, auc, auc_within, true_positive_rate
from shepherd.evaluation.losses import row_losses
from shepherd.experiment.inputs import Inputs
from shepherd.experiment.rows import FederatedData
from shepherd.experiment.rows_seen import rows_trained
from shepherd.rng import stream
from shepherd.types import ClientId, GlobalModel, Tokens

FEWEST_INSIDE = 20
"""Rows of a client, trained on, below which it has no figures of its own."""
SCORES = {
    "difference": "loss of the base minus loss of the tuned model: the attack",
    "loss": "minus the loss of the tuned model",
    "base": "minus the loss of the base, which saw none of these rows: the baseline",
}
"""Scores by which rows are ranked."""


def attack_membership(
    inputs: Inputs,
    model: GlobalModel,
    lines: Sequence[Mapping[str, Any]],
    most: int,
    seed: int,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """AUC and true positive rate at 1 % false positives of rows trained on against rows held out, `most` of each.

    Where there are more, `seed` draws them. Raises EvaluationError below 100 rows that were never trained on,
    UsageError for `most` below 100.
    """
    if most < FEWEST:
        raise UsageError(f"{most} rows of each kind: a false positive rate of 1 % needs {FEWEST}", hint="leave it out")
    data = inputs.data
    seen = rows_trained(lines, data, inputs.seed, inputs.plan.examples is not None)
    inside, outside, twins = _sides(data, lines, seen)
    if len(outside) < FEWEST:
        raise EvaluationError(
            f"{len(outside)} rows of the source were never trained on, and a false positive rate of 1 % needs {FEWEST}",
            hint="a run with more held-out rows can be audited: data.held_out_per_category, or data.held_out_source",
        )
    if not inside:
        raise EvaluationError("no row of a client was trained on", hint="audit a run with more rounds")
    inside, outside = (_some(rows, most, seed, side) for side, rows in (("in", inside), ("out", outside)))
    note(f"membership: {len(inside)} rows trained on, {len(outside)} held out, under two models")
    losses = _losses(inputs, model, (*inside, *outside))
    first = len(inside)
    scores = {
        "difference": losses["base"] - losses["tuned"],
        "loss": -losses["tuned"],
        "base": -losses["base"],
    }
    if not all(np.isfinite(values).all() for values in scores.values()):
        raise EvaluationError("some rows have no finite loss", hint="the adapter may have diverged")
    groups = np.array([row.category for row in (*inside, *outside)])
    found = {
        name: _figures(values[:first], values[first:], groups[:first], groups[first:])
        for name, values in scores.items()
    }
    difference = scores["difference"]
    return {
        "inside": len(inside),
        "outside": len(outside),
        "twins_left_out": twins,
        "false_positive_rate": FALSE_POSITIVES,
        "compared": compared(inputs, [row.category for row in inside], [row.category for row in outside]),
        "scores": dict(SCORES),
        **found,
        "clients": _by_client(data, inside, outside, difference[:first], difference[first:]),
    }


def compared(inputs: Inputs, inside: Sequence[str], outside: Sequence[str]) -> dict[str, Any]:
    """Which rows are compared: a sentence, and how far apart the shares of their categories are, in total variation."""
    a, b = Counter(inside), Counter(outside)
    apart = sum(abs(a[c] / len(inside) - b[c] / len(outside)) for c in a.keys() | b.keys()) / 2
    if inputs.config.data.held_out_source:
        text = "outsiders come from data.held_out_source, which may have another distribution than the training rows"
    else:
        text = (
            "outsiders were split off by category before the partition, so that within a category both kinds have one "
            "distribution; the shares of the categories differ"
        )
    if inputs.plan.examples is not None:
        text += "; which rows a step drew is secret, so all rows of clients that took part stand for those trained on"
    return {"rows": text, "categories_apart": apart}


def _sides(
    data: FederatedData, lines: Sequence[Mapping[str, Any]], seen: Mapping[str, int] | None
) -> tuple[list[Tokens], list[Tokens], int]:
    """(rows trained on without canaries, held-out rows, how many of these were left out as equal to a training row).

    seen: how often each row was trained on; None: unknown, so that all rows of clients whose updates counted are taken.
    """
    planted = {f"canary/{canary.number:03d}/{copy}" for canary in data.canaries for copy in range(canary.copies)}
    held_by = {row.id: row for client in sorted(data.clients) for row in data.clients[client] if row.id not in planted}
    counted = {client for line in lines for client in line.get("examples", data.clients)}
    taken = {row.id for client in counted for row in data.clients[client] if seen is None or seen[row.id]}
    inside = [row for row in held_by.values() if row.id in taken]
    contents = {row.input_ids.tobytes() for row in held_by.values()}
    outside = [row for row in data.held_out if row.input_ids.tobytes() not in contents]
    return inside, outside, len(data.held_out) - len(outside)


def _some(rows: Sequence[Tokens], most: int, seed: int, side: str) -> list[Tokens]:
    if len(rows) <= most:
        return list(rows)
    picks = np.sort(stream(seed, "audit", "membership", side).choice(len(rows), most, replace=False))
    return [rows[i] for i in picks.tolist()]


def _losses(inputs: Inputs, model: GlobalModel, rows: Sequence[Tokens]) -> dict[str, np.ndarray]:
    """The mean loss per target of each row under both models, in nats: float64[rows]."""
    lora = inputs.trainer.make_lora().load(model)
    found = {}
    for name, slot in (("base", None), ("tuned", lora)):
        losses = row_losses(inputs.trainer.packed, rows, slot)[0]
        found[name] = losses.nll / losses.tokens
    return found


def _figures(
    inside: np.ndarray, outside: np.ndarray, groups_in: np.ndarray | None = None, groups_out: np.ndarray | None = None
) -> dict[str, Any]:
    rate = true_positive_rate(inside, outside)
    found = {**auc(inside, outside), "tpr": rate["tpr"], "tpr_ci95": rate["ci95"]}
    if groups_in is not None and groups_out is not None:
        found["within_categories"] = auc_within(inside, outside, groups_in, groups_out)
    return found


def _by_client(
    data: FederatedData,
    inside: Sequence[Tokens],
    outside: Sequence[Tokens],
    scores_in: np.ndarray,
    scores_out: np.ndarray,
) -> dict[ClientId, dict[str, Any]]:
    """The attack on the rows of each client against the held-out rows of its groups, where there are enough of both."""
    owner = {row.id: client for client, rows in data.clients.items() for row in rows}
    own_out = {client: {data.held_out[i].id for i in data.held_out_of(client)} for client in data.clients}
    found = {}
    for client in sorted(data.clients):
        a = scores_in[[owner[row.id] == client for row in inside]]
        b = scores_out[[row.id in own_out[client] for row in outside]]
        if len(a) >= FEWEST_INSIDE and len(b) >= FEWEST:
            found[client] = {"inside": len(a), "outside": len(b), **_figures(a, b)}
    return found
