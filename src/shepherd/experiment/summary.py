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
from shepherd.evaluation.losses import RowLosses
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
    own: Mapping[str, RowLosses],
    arms: Mapping[str, RowLosses],
    local: Mapping[str, RowLosses],
    rows: FederatedData,
    shares: Mapping[str, float],
) -> dict[str, Any]:
    """Each client's losses on its own held-out rows under the base, its local, the global and its personal model.

    shares: the mean λ of models that mix, as "share".
    """
    found = {}
    for client, losses in sorted(own.items()):
        at = np.array(rows.held_out_of(client))
        models = {"base": arms["base"], "global": arms["federated"]}
        if client in local:
            models["local"] = local[client]
        found[client] = {
            **{name: finite(measured.select(at).summary())["loss"] for name, measured in models.items()},
            "personal": finite(losses.summary())["loss"],
            "rows": len(at),
            **finite({"share": shares[client]} if client in shares else {}),
        }
    return found


def differences(
    arms: Mapping[str, RowLosses], each: Mapping[str, Mapping[str, RowLosses]], seed: int
) -> list[dict[str, Any]]:
    """Federated against every other arm, and every baseline against the base, on the same rows.

    each: the arms that have one model per client; federated is compared with the mean and the best of these.
    a − b by the rules of `paired_difference`: below 0, a is better.
    """
    others = {name: losses for name, losses in arms.items() if name != "federated"}
    for name, models in each.items():
        if not models:
            continue
        everyone = list(models.values())
        mean = RowLosses(
            np.mean([losses.nll for losses in everyone], axis=0),
            everyone[0].tokens,
            np.mean([losses.hits for losses in everyone], axis=0),
        )
        best = min(models, key=lambda client: models[client].stat.mean)
        others |= {f"{name} mean": mean, f"{name}:{best}": models[best]}
    pairs = [("federated", name, arms["federated"], losses) for name, losses in others.items()]
    pairs += [(name, "base", losses, arms["base"]) for name, losses in arms.items() if name not in COMPARED]
    return [
        {"a": a, "b": b, **paired_difference(first, second, stream(seed, "bootstrap", b))}
        for a, b, first, second in pairs
    ]


def own_rows(federated: RowLosses, locals_: Mapping[str, RowLosses], rows: FederatedData) -> dict[str, dict[str, Any]]:
    """Federated − alone of each client that trained alone, on the held-out rows of the categories that it holds."""
    at = {client: np.array(rows.held_out_of(client), np.int64) for client in sorted(locals_)}
    return {client: paired_difference(federated.select(own), locals_[client].select(own)) for client, own in at.items()}


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
