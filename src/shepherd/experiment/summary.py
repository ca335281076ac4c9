"""Losses, answers and counts of a finished run -> metrics.json, generations.jsonl and summary.json, as plain dicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from shepherd.arms import COMPARED
from shepherd.data.audit import Audit
from shepherd.data.tally import RowsByReason
from shepherd.evaluation.answers import FIRST
from shepherd.evaluation.row_losses import HeldOutLosses, RowLosses
from shepherd.evaluation.selection import Best, best_of
from shepherd.evaluation.statistics import paired_difference
from shepherd.experiment.rows import FederatedData
from shepherd.rng import stream


def arm_metrics(losses: RowLosses, rows: FederatedData) -> dict[str, Any]:
    """An arm's entry in metrics.json: over all held-out rows, per category, and per client's own categories."""
    categories = np.array([row.category for row in rows.held_out])
    return {
        **finite(losses.summary()),
        "per_category": {
            str(name): finite(losses.select(categories == name).summary()) for name in sorted(set(categories))
        },
        "per_client": {
            client: finite(losses.select(np.array(indices)).summary())
            for client in sorted(rows.clients)
            if (indices := rows.held_out_of(client))
        },
        "generation": None,
    }


def personal_metrics(
    own: Mapping[str, RowLosses], losses: HeldOutLosses, shares: Mapping[str, float]
) -> dict[str, Any]:
    """Each client's losses on its own held-out rows under the base, its local, the global and its personal model.

    shares: the mean λ of models that mix, as "share".
    """
    found = {}
    for client, personal in sorted(own.items()):
        at = losses.own(client)
        models = {"base": losses.models["base"], "global": losses.models["federated"]}
        if client in losses.local:
            models["local"] = losses.local[client]
        found[client] = {
            **{name: finite(measured.select(at).summary())["loss"] for name, measured in models.items()},
            "personal": finite(personal.summary())["loss"],
            "rows": len(at),
            **finite({"share": shares[client]} if client in shares else {}),
        }
    return found


def best_clients(losses: HeldOutLosses, seed: int) -> dict[str, Best]:
    """The best client of each arm that has a model per client, where it has more than one, by `best_of`."""
    each = losses.each.items()
    return {arm: best_of(m, losses.groups, stream(seed, "halves", arm)) for arm, m in each if len(m) > 1}


def differences(losses: HeldOutLosses, best: Mapping[str, Best], seed: int) -> list[dict[str, Any]]:
    """Federated against every other arm, and every baseline against the base, on the same rows.

    Of an arm with one model per client federated is compared with the mean and the best, whose entry names the
    `clients`, and `same_rows` where they were chosen on the rows of the comparison.
    a − b by the rules of `paired_difference`: below 0, a is better.
    """
    arms = losses.pooled
    about = {f"{name} best": {"clients": list(one.chosen), "same_rows": one.same_rows} for name, one in best.items()}
    others = {name: one for name, one in arms.items() if name != "federated"}
    for name, models in losses.each.items():
        everyone = list(models.values())
        mean = RowLosses(
            np.mean([one.nll for one in everyone], axis=0),
            everyone[0].tokens,
            np.mean([one.hits for one in everyone], axis=0),
        )
        alone = {f"{name}:{client}": one for client, one in models.items()}
        others |= {f"{name} mean": mean} | ({f"{name} best": best[name].losses} if name in best else alone)
    pairs = [("federated", name, arms["federated"], one) for name, one in others.items()]
    pairs += [(name, "base", one, arms["base"]) for name, one in arms.items() if name not in COMPARED]
    return [
        {"a": a, "b": b, **paired_difference(first, second, stream(seed, "bootstrap", b)), **about.get(b, {})}
        for a, b, first, second in pairs
    ]


def best_metrics(best: Best) -> dict[str, Any]:
    """The best client of an arm in summary.json: who, its loss, and whether it was chosen on the rows of this loss."""
    return {"clients": list(best.chosen), **finite({"loss": best.losses.stat.mean}), "same_rows": best.same_rows}


def own_rows(losses: HeldOutLosses) -> dict[str, dict[str, Any]]:
    """Federated − alone of each client that trained alone, on the held-out rows of the categories that it holds."""
    federated, alone = losses.models["federated"], losses.local
    at = {client: losses.own(client) for client in sorted(alone)}
    return {client: paired_difference(federated.select(own), alone[client].select(own)) for client, own in at.items()}


def reasons(rows: RowsByReason) -> dict[str, list[Any]]:
    """{reason: [rows, the first ids]} of rows that were refused or changed."""
    return {reason: [len(ids), list(ids[:FIRST])] for reason, ids in rows.items()}


def audit_findings(audit: Audit) -> list[dict[str, Any]]:
    """The findings of an audit, each with the first groups of ids that share it and at most as many ids of a group."""
    return [
        {"kind": f.kind, "count": f.count, "groups": [list(group[:FIRST]) for group in f.groups[:FIRST]]}
        for f in audit.findings
    ]


def brief(measured: Mapping[str, Any]) -> dict[str, Any]:
    """An arm in summary.json: its loss, and the loss of each category."""
    return {"loss": measured["loss"], "per_category": {k: v["loss"] for k, v in measured["per_category"].items()}}


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """NaN and infinity become null: JSON has neither."""
    return {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}
