"""A run's adapter, measured again from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shepherd.config import Config
from shepherd.errors import EvaluationError
from shepherd.evaluation.losses import row_losses
from shepherd.evaluation.statistics import paired_difference
from shepherd.experiment.identity import FILE, held_out_digest
from shepherd.experiment.rows import FederatedData, prepare_rows
from shepherd.experiment.summary import arm_metrics
from shepherd.model.forward import PackedModel
from shepherd.rng import stream
from shepherd.serving.tuned import load_tuned, named
from shepherd.store import read_json
from shepherd.store.adapters import ArmName
from shepherd.updates.privacy.publication import place_of


def evaluate_run(run_dir: ArmName | Path | str, round_number: int | None = None) -> dict[str, Any]:
    """Measure a run's adapter again, from its files: {"base": …, "federated": …, "difference": …}.

    Reads config.toml and adapter/ of the run directory, another of its adapters by name (as "federated" all the same),
    or the checkpoint of a round, and its data from where the recipe says. Raises EvaluationError when data, held-out
    rows or tokenizer are not those of the run.
    """
    tuned, run = load_tuned(run_dir, round_number=round_number), named(run_dir, round_number).run
    config = tuned.config
    data = same_rows(run, config, tuned.base.tokenizer, tuned.base.tokenizer_digest)
    packed = PackedModel(tuned.base.model)
    before, after = (row_losses(packed, data.held_out, lora)[0] for lora in (None, tuned.lora))
    return {
        "base": arm_metrics(before, data),
        "federated": arm_metrics(after, data),
        "difference": paired_difference(after, before, stream(config.run.seed, "bootstrap", "base")),
    }


def same_rows(run: Path, config: Config, tokenizer: Any, tokenizer_digest: str) -> FederatedData:
    """The rows of a run, read again from where its recipe says. Raises EvaluationError where data, held-out rows or
    tokenizer are not those of the run."""
    data, _ = prepare_rows(config, tokenizer)
    divided, made_with = (read_json(place_of(run, name)) for name in ("partition.json", FILE))
    apart = config.data.held_out_source or config.data.source
    for what, then, now, source in (
        ("held-out rows are not those", made_with.get("held_out"), held_out_digest(data), apart),
        ("data are not those", divided.get("dataset_digest"), data.partition.dataset_digest, config.data.source),
        ("tokenizer is not that", made_with.get("tokenizer"), tokenizer_digest, config.model.base),
    ):
        if then != now:
            raise EvaluationError(
                f"the {what} of the run: digest {now[:12]}, then {str(then or 'unknown')[:12]}",
                hint=f"give back what {source} held, and the config.toml that the run wrote",
            )
    return data
