"""Studies without a training: a study file, and the RUN.json of its runs with losses that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shepherd.evaluation.row_losses import LOSSES, HeldOutLosses, RowLosses, losses_bytes
from shepherd.experiment.study.design import Planned, Study, load_study
from shepherd.experiment.study.folder import StudyFolder
from shepherd.experiment.study.record import record_of

BASE = 'seeds = [0, 1, 2]\nbase = ["evaluation.arms=base,federated,local,centralised"]\n'
TWO = BASE + '[variants]\nfedit = []\nflora = ["federation.method=flora"]\n'
CLIENTS = ("north", "south")


def study_of(folder: Path, text: str = TWO, **options: Any) -> Study:
    """The study of a file with this text."""
    file = folder / "study.toml"
    file.write_text(text, encoding="utf-8")
    return load_study(file, **options)


def held_out(
    tokens: np.ndarray, pooled: Mapping[str, np.ndarray], local: Mapping[str, np.ndarray], ids: Sequence[str] = ()
) -> HeldOutLosses:
    """Losses by row: nll of pooled arms, and of clients that hold the rows of even (the first) and odd place."""
    tokens = np.asarray(tokens, np.int64)
    every = {**pooled, **{f"local/{client}": nll for client, nll in local.items()}}
    models = {name: RowLosses(np.asarray(nll, float), tokens, np.zeros_like(tokens)) for name, nll in every.items()}
    names = tuple(ids) or tuple(f"row:{i}" for i in range(len(tokens)))
    groups = tuple("even" if i % 2 == 0 else "odd" for i in range(len(tokens)))
    holds = dict(zip(local, (("even",), ("odd",)), strict=False))
    return HeldOutLosses(names, groups, {client: holds.get(client, ()) for client in local}, models)


def losses_of(planned: Planned, rows: int = 12) -> HeldOutLosses:
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
    return held_out(tokens, {"base": arm(2.7), "federated": arm(2.4 - shift), "centralised": arm(2.3 - shift)}, alone)


def write_results(
    study: Study,
    folder: StudyFolder,
    losses: Callable[[Planned], HeldOutLosses] = losses_of,
    leave_out: tuple[str, ...] = (),
) -> None:
    """Write a RUN.json for every run of a study but those in `leave_out`, and the design."""
    folder.open(study)
    for planned in study.runs:
        if planned.name not in leave_out:
            with folder.held(planned) as ours:
                assert ours
                folder.write_record(planned, record(planned, losses(planned), folder.path))


def record(planned: Planned, losses: HeldOutLosses, work: Path) -> bytes:
    """The RUN.json of a run directory made up for it."""
    return record_of(run_directory(planned, losses, work), planned)


def run_directory(planned: Planned, losses: HeldOutLosses, work: Path) -> Path:
    """A finished run directory with what RUN.json is made of."""
    run_dir = work / "made-up" / planned.name
    (run_dir / "evaluation").mkdir(parents=True, exist_ok=True)
    (run_dir / LOSSES).write_bytes(losses_bytes(losses))
    for name, value in _files(planned, losses).items():
        (run_dir / name).write_text(json.dumps(value), encoding="utf-8")
    return run_dir


def _files(planned: Planned, losses: HeldOutLosses) -> dict[str, Any]:
    arms: dict[str, Any] = {arm: {"loss": model.stat.mean} for arm, model in losses.pooled.items()}
    for arm, models in losses.each.items():
        arms[arm] = {client: {"loss": model.stat.mean} for client, model in models.items()}
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
