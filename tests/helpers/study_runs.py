"""Studies without a training: a study file, and the RUN.json of its runs with losses that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shepherd.experiment.study.design import Planned, Study, load_study
from shepherd.experiment.study.folder import StudyFolder
from shepherd.experiment.study.record import RowTable, record_of

BASE = 'seeds = [0, 1, 2]\nbase = ["evaluation.arms=base,federated,local,centralised"]\n'
TWO = BASE + '[variants]\nfedit = []\nflora = ["federation.method=flora"]\n'
CLIENTS = ("north", "south")


def study_of(folder: Path, text: str = TWO, **options: Any) -> Study:
    """The study of a file with this text."""
    file = folder / "study.toml"
    file.write_text(text, encoding="utf-8")
    return load_study(file, **options)


def losses_of(planned: Planned, rows: int = 12) -> RowTable:
    """Losses per token that fall from the base over clients alone and federated to centralised, with noise by seed.

    In the variant flora all but the base are 0.1 lower.
    """
    rng = np.random.default_rng([planned.seed, sum(planned.variant.name.encode())])
    tokens = np.arange(20, 20 + rows)
    hard = np.random.default_rng(7).normal(0, 0.3, rows)
    shift = 0.1 if "flora" in planned.variant.name else 0.0

    def arm(loss: float) -> np.ndarray:
        return tokens * (loss + hard + rng.normal(0, 0.01, rows))

    alone = {client: arm(2.5 - shift + 0.02 * i) for i, client in enumerate(CLIENTS)}
    pooled = {"base": arm(2.7), "federated": arm(2.4 - shift), "centralised": arm(2.3 - shift)}
    return RowTable(tuple(f"row:{i}" for i in range(rows)), tokens, pooled, {"local": alone})


def own_of(rows: int = 12) -> dict[str, list[int]]:
    return {"north": list(range(0, rows, 2)), "south": list(range(1, rows, 2))}


def write_results(
    study: Study,
    folder: StudyFolder,
    losses: Callable[[Planned], RowTable] = losses_of,
    leave_out: tuple[str, ...] = (),
) -> None:
    """Write a RUN.json for every run of a study but those in `leave_out`, and the design."""
    folder.open(study)
    for planned in study.runs:
        if planned.name not in leave_out:
            with folder.held(planned) as ours:
                assert ours
                folder.write_record(planned, record(planned, losses(planned), folder.path))


def record(planned: Planned, rows: RowTable, work: Path, own: Mapping[str, list[int]] | None = None) -> bytes:
    """The RUN.json of a run directory made up for it."""
    run_dir = work / "made-up" / planned.name
    (run_dir / "evaluation").mkdir(parents=True, exist_ok=True)
    for name, value in _files(planned, rows).items():
        (run_dir / name).write_text(json.dumps(value), encoding="utf-8")
    return record_of(run_dir, planned, rows, own_of(len(rows.ids)) if own is None else own)


def _files(planned: Planned, rows: RowTable) -> dict[str, Any]:
    total = int(rows.tokens.sum())
    arms: dict[str, Any] = {arm: {"loss": float(nll.sum() / total)} for arm, nll in rows.pooled.items()}
    for arm, models in rows.each.items():
        arms[arm] = {client: {"loss": float(nll.sum() / total)} for client, nll in models.items()}
    spent = {"optimizer_steps": 12, "optimizer_steps_per_client": 6.0, "rows": 24, "target_tokens": 480,
             "learning_rate": 5e-4}  # fmt: skip
    summary = {
        "arms": arms, "adapter_sha256": "a" * 64, "model": {"name": "tiny"}, "data": {"name": "made-up"},
        "clients": 2, "labels": {"south": "the south"}, "seconds": {"total": 60.0 + planned.seed},
        "bytes_up": 1000, "bytes_down": 2000, "budget": {arm: spent for arm in arms if arm != "base"}, "failed": [],
    }  # fmt: skip
    digests = {key: key[0] * 64 for key in ("data", "held_out", "partition", "base", "tokenizer", "code")}
    curve = [[0, 2.7], [1, 2.5], [2, 2.4]]
    return {
        "summary.json": summary,
        "identity.json": {**digests, "shepherd": "0", "python": "3.11", "threads": 1, "device": "cpu"},
        "evaluation/metrics.json": {"curves": {"federated": curve}},
    }
