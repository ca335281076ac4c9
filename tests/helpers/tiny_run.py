"""A whole run on a tiny random model, in seconds: what chat, export and the like start from.

run = tiny_run(tmp_path)      # a run directory whose adapter is far from zero
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shepherd import recipe
from tiny import CHAT_TEMPLATE, tiny_model


def tiny_run(
    folder: Path, kind: str = "llama", *settings: str, chat_template: str | None = CHAT_TEMPLATE, **changes: Any
) -> Path:
    """Tune a tiny model of `kind` on a few built-in rows; `settings` are further `key=value` overrides.

    The model lies in `folder/kind`, the run in `folder/runs`; `changes` go into the model's config.
    """
    from shepherd.experiment import run as experiment

    model = folder / kind
    if not model.exists():
        tiny_model(kind, folder, chat_template=chat_template, **changes)
    overrides = [
        f"model.base={model}", "model.dtype=float32", "model.device=cpu", "run.threads=1", f"run.out={folder / 'runs'}",
        "data.rows_per_category=6", "data.held_out_per_category=1",
        f"data.max_length={min(384, changes.get('n_positions', 384))}",
        "partition.name=iid", "partition.clients=2",
        "federation.rounds=1", "training.local_steps=2", "training.learning_rate=0.01",
        "evaluation.arms=base,federated", "evaluation.generate=2", "evaluation.max_new_tokens=4", *settings,
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHEPHERD_CACHE", str(folder / "cache"))
        return experiment.run(recipe.load(overrides=overrides)).path
