"""RUN.json: what a study keeps of a finished run: per-row losses of every arm, digests, settings, budget; ≤ 300 kB.

Losses of rows are rounded (`rounded_to`, nats summed over the row's tokens); means of arms are not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shepherd.errors import DataError, ResourceError
from shepherd.evaluation.row_losses import HeldOutLosses, read_losses
from shepherd.evaluation.selection import Best, best_of
from shepherd.experiment.study.design import SCHEMA, Planned
from shepherd.rng import stream
from shepherd.store import read_json
from shepherd.store.records import read_rounds
from shepherd.updates.privacy.publication import place_of

LARGEST = 300_000
"""Bytes of one RUN.json."""
LEVELS = ((3, True), (2, True), (2, False))
"""(decimals of a row's loss, whether losses of single clients are kept); the first one that is small enough."""
_DIGESTS = {"data": "data", "held_out": "held_out", "partition": "partition", "base": "base", "tokenizer": "tokenizer",
            "code": "code"}  # fmt: skip
_VERSIONS = ("shepherd", "python", "numpy", "torch", "transformers", "peft", "threads", "device", "processor")


def record_of(run_dir: Path, planned: Planned) -> bytes:
    """The contents of RUN.json for a finished run directory.

    Raises DataError where a file of it is missing or damaged, ResourceError where the record would be larger than
    `LARGEST`.
    """
    losses = read_losses(run_dir)
    summary, identity, metrics = (
        read_json(place_of(run_dir, name)) for name in ("summary.json", "identity.json", "evaluation/metrics.json")
    )
    rounds = read_rounds(run_dir)
    _check_finite(run_dir, losses)
    _check_means(run_dir, losses, summary)
    # The same halves as in the run's own metrics.json.
    best = {arm: best_of(m, losses.groups, stream(planned.seed, "halves", arm)) for arm, m in losses.each.items()}
    for decimals, whole in LEVELS:
        found = {
            "schema": SCHEMA,
            "run": planned.name,
            "variant": planned.variant.name,
            "seed": planned.seed,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "digests": {
                "config": planned.digest,
                **{name: identity.get(key) for name, key in _DIGESTS.items()},
                "adapter": summary["adapter_sha256"],
            },
            "config": planned.settings,
            "environment": {key: identity.get(key) for key in _VERSIONS},
            "model": {key: summary["model"].get(key) for key in ("name", "parameters", "dtype", "device", "licence")},
            "data": {key: summary["data"].get(key) for key in ("name", "licence", "rows", "train_rows")},
            "clients": summary["clients"],
            "labels": summary.get("labels") or {},
            "seconds": summary["seconds"],
            **{key: summary[key] for key in ("bytes_up", "bytes_down", "budget", "failed")},
            "reload_check": summary.get("reload_check"),
            "deviation": rounds[-1].get("deviation") if rounds else None,
            "curves": _curves(metrics.get("curves") or {}),
            "rounded_to": 10.0**-decimals,
            "left_out": "" if whole else "losses of single clients, which would not fit",
            "rows": {
                "ids": list(losses.ids),
                "tokens": losses.models["base"].tokens.tolist(),
                "own": {client: losses.own(client).tolist() for client in losses.holds},
            },
            "arms": _arms(losses, best, summary["arms"], decimals, whole),
        }
        encoded = _encoded(found)
        if len(encoded) <= LARGEST:
            return encoded
    raise ResourceError(
        f"the record of {run_dir} would be {len(encoded):,} bytes, more than {LARGEST:,}",
        hint="lower data.held_out_per_category",
    )


def _arms(
    losses: HeldOutLosses, best: Mapping[str, Best], means: Mapping[str, Any], decimals: int, whole: bool
) -> dict[str, Any]:
    tokens = losses.models["base"].tokens
    found: dict[str, Any] = {
        arm: {"loss": means[arm]["loss"], "nll": _rounded(model.nll, decimals)} for arm, model in losses.pooled.items()
    }
    for arm, each in losses.each.items():
        models = {client: model.nll for client, model in each.items()}
        found[arm] = {
            "loss": float(np.mean([nll.sum() for nll in models.values()]) / tokens.sum()),
            "mean": _rounded(np.mean(list(models.values()), axis=0), decimals),
            "best": _rounded(best[arm].losses.nll, decimals),
            "best_clients": list(best[arm].chosen),
            "best_on_same_rows": best[arm].same_rows,
            "losses": {client: means[arm][client]["loss"] for client in models},
            "each": {client: _rounded(nll, decimals) for client, nll in models.items()} if whole else {},
        }
    return found


def _check_finite(run_dir: Path, losses: HeldOutLosses) -> None:
    """Raise DataError for a model without a finite loss, of which no mean and no comparison exists."""
    for name, model in losses.models.items():
        if broken := int(np.count_nonzero(~np.isfinite(model.nll))):
            raise DataError(
                f"{run_dir}: {broken} of {len(losses.ids)} held-out rows have no finite loss under {name}: it diverged",
                hint="lower training.learning_rate in this variant, or leave the variant out",
            )


def _check_means(run_dir: Path, losses: HeldOutLosses, summary: Mapping[str, Any]) -> None:
    """Raise DataError where the rows do not give the losses that the run reported."""
    for arm, model in losses.pooled.items():
        loss, reported = model.stat.mean, summary["arms"][arm]["loss"]
        if not abs(loss - reported) <= 1e-6 * max(1.0, abs(reported)):
            raise DataError(
                f"{run_dir}: the rows of the {arm} arm give a loss of {loss:.6f}, summary.json has {reported:.6f}",
                hint="the run directory was changed: delete it, and the study repeats the run",
            )


def _curves(curves: Mapping[str, Any]) -> dict[str, Any]:
    """The curves of arms with one model, rounded to five decimals."""
    return {
        arm: [[number, None if loss is None else round(loss, 5)] for number, loss in curve]
        for arm, curve in curves.items()
        if isinstance(curve, list)
    }


def _rounded(values: np.ndarray, decimals: int) -> list[float | None]:
    return [round(float(value), decimals) if np.isfinite(value) else None for value in values]


def _encoded(found: Mapping[str, Any]) -> bytes:
    """A line for each key: small, and a diff that one can read."""
    lines = [
        f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(',', ':'))}"
        for key, value in found.items()
    ]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()
