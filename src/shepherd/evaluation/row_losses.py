"""Held-out losses by row with the rows' ids, as a run directory keeps them in evaluation/losses.safetensors.

    losses = read_losses("runs/demo")
    losses.models["federated"].nll - losses.models["local/anna"].nll      # nats, in the order of losses.ids

Loads no PyTorch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from shepherd.errors import DataError
from shepherd.evaluation.ratios import ratio
from shepherd.model.arrays import from_file, to_bytes
from shepherd.types import ClientId, Stat
from shepherd.updates.privacy.publication import place_of

LOSSES = "evaluation/losses.safetensors"
"""The file in a run directory."""
_SCHEMA = "1"


@dataclass(frozen=True)
class RowLosses:
    """Losses per held-out row: nll float64[rows] (summed, nats), tokens int64[rows] (targets), hits int64[rows]."""

    nll: np.ndarray
    tokens: np.ndarray
    hits: np.ndarray

    def select(self, rows: np.ndarray) -> RowLosses:
        """The rows of an index or boolean array."""
        return RowLosses(self.nll[rows], self.tokens[rows], self.hits[rows])

    @property
    def stat(self) -> Stat:
        """Loss per target token, in nats."""
        return Stat(float(self.nll.sum()), float(self.tokens.sum()))

    @property
    def stderr(self) -> float:
        """Standard error of the loss over rows, linearised; NaN below two rows or without targets."""
        return ratio(self.nll, self.tokens).stderr

    def summary(self) -> dict[str, float]:
        """The means by name: loss (nats per token), perplexity, token_accuracy, stderr, rows, tokens."""
        loss = self.stat.mean
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "token_accuracy": Stat(float(self.hits.sum()), float(self.tokens.sum())).mean,
            "stderr": self.stderr,
            "rows": len(self.nll),
            "tokens": int(self.tokens.sum()),
        }


@dataclass(frozen=True)
class HeldOutLosses:
    """The losses of every model of a run on the same held-out rows.

    ids: of the rows, in the order of all arrays. groups: the category of each row, or its source where sources divide
    the rows; holds: the groups of each client. models: "base", "federated", "centralised", "local/" and a client's id.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    holds: Mapping[ClientId, tuple[str, ...]]
    models: Mapping[str, RowLosses]

    def own(self, client: ClientId) -> np.ndarray:
        """Indices of the client's own held-out rows: those of the groups that it holds. int64[own rows]"""
        held = set(self.holds[client])
        return np.array([i for i, group in enumerate(self.groups) if group in held], np.int64)

    @property
    def pooled(self) -> dict[str, RowLosses]:
        """The losses of the arms that have one model, by their names."""
        return {name: losses for name, losses in self.models.items() if "/" not in name}

    @property
    def each(self) -> dict[str, dict[ClientId, RowLosses]]:
        """The losses of the arms that have one model per client: {arm: {client: losses}}."""
        found: dict[str, dict[ClientId, RowLosses]] = {}
        for name, losses in self.models.items():
            arm, of_client, client = name.partition("/")
            if of_client:
                found.setdefault(arm, {})[client] = losses
        return found

    @property
    def local(self) -> Mapping[ClientId, RowLosses]:
        """The losses of each client that trained alone."""
        return self.each.get("local", {})


def losses_bytes(losses: HeldOutLosses) -> bytes:
    """A safetensors file: tokens int64[rows], nll float64[models, rows], hits int64[models, rows]; in the metadata the
    names of rows, groups and models as JSON."""
    models = list(losses.models.values())
    named = {
        "ids": losses.ids,
        "groups": losses.groups,
        "holds": dict(losses.holds),
        "models": list(losses.models),
    }
    return to_bytes(
        {
            "tokens": models[0].tokens,
            "nll": np.stack([model.nll for model in models]),
            "hits": np.stack([model.hits for model in models]),
        },
        {"schema": _SCHEMA, **{key: json.dumps(value, ensure_ascii=True) for key, value in named.items()}},
    )


def read_losses(run_dir: Path | str) -> HeldOutLosses:
    """The losses of all models of a finished run. Raises DataError where it has none, or where they are damaged."""
    file = place_of(Path(run_dir), LOSSES)
    if not file.is_file():
        raise DataError(
            f"{run_dir} has no {LOSSES}: it did not get to its end, or is of a version that did not write it",
            hint=f"shepherd resume {run_dir} finishes it; else run it again with shepherd run {run_dir}/config.toml",
        )
    try:
        arrays, named = from_file(file)
        if named.get("schema") != _SCHEMA:
            raise ValueError(f"schema {named.get('schema')}, this version reads {_SCHEMA}")
        ids, groups, holds, models = (json.loads(named[key]) for key in ("ids", "groups", "holds", "models"))
        tokens, nll, hits = (arrays[key] for key in ("tokens", "nll", "hits"))
        if not (len(ids) == len(groups) == len(tokens) and nll.shape == hits.shape == (len(models), len(ids))):
            raise ValueError(f"{len(ids)} ids and {len(models)} models do not fit losses of shape {nll.shape}")
        return HeldOutLosses(
            tuple(ids),
            tuple(groups),
            {client: tuple(held) for client, held in holds.items()},
            {name: RowLosses(nll[i], tokens, hits[i]) for i, name in enumerate(models)},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise DataError(f"{file} is damaged: {error}", hint="restore it from a copy, or repeat the run") from None
