"""A long run stays as small as a short one: memory, open files and disk do not grow with the rounds."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import psutil
import pytest

from shepherd.experiment import run as experiment
from shepherd.recipe import load
from tiny import tiny_model

KEEP, MB = 3, 1e6
RUN = (
    "model.dtype=float32", "model.device=cpu", "run.threads=1", "run.name=soak",
    "lora.r=2", "lora.alpha=4", 'lora.targets=["q_proj"]',
    "data.rows_per_category=3", "data.held_out_per_category=1", "data.max_length=64",
    "partition.name=iid", "partition.clients=8",
    "training.local_steps=1", "training.batch_size=1", "training.learning_rate=1e-3",
    "objective.scaffold=true", "server.optimizer=fedadam", f"checkpoints.keep={KEEP}",
    "evaluation.arms=base,federated", "evaluation.every=20", "evaluation.generate=0",
)  # fmt: skip


def soak(rounds: int, folder: Path) -> dict[str, np.ndarray]:
    """A run of eight clients; after each round: resident bytes, open files, bytes of the two logs, of checkpoints."""
    model = tiny_model("llama", folder, num_hidden_layers=1)
    config = load(None, [f"model.base={model}", f"federation.rounds={rounds}", *RUN])
    process, run = psutil.Process(), folder / config.run.name
    figures = {name: np.zeros(rounds) for name in ("resident", "open", "rounds", "journal", "kept", "checkpoints")}

    def observe(event) -> None:
        if event["event"] != "round":
            return
        kept = list((run / "checkpoints").iterdir())
        for name, value in {
            "resident": process.memory_info().rss,
            "open": process.num_fds(),
            "rounds": (run / "rounds.jsonl").stat().st_size,
            "journal": (run / "journal.jsonl").stat().st_size,
            "kept": len(kept),
            "checkpoints": sum(file.stat().st_size for round_folder in kept for file in round_folder.iterdir()),
        }.items():
            figures[name][event["round"] - 1] = value

    gc.collect()
    experiment.run(config, observer=observe, out_dir=folder)
    return figures


def growth(sizes: np.ndarray) -> float:
    """Slope of the line through the second half, per 100 rounds."""
    half = sizes[len(sizes) // 2 :]
    return 100 * float(np.polyfit(np.arange(len(half)), half, 1)[0])


@pytest.mark.skipif(not hasattr(psutil.Process, "num_fds"), reason="counts open files as POSIX systems do")
@pytest.mark.parametrize(
    ("rounds", "memory"),
    [(60, 4 * MB), pytest.param(500, MB, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_a_long_run_takes_no_more_memory_files_or_disk_than_a_short_one(tmp_path, rounds, memory):
    figures = soak(rounds, tmp_path)
    second_half = slice(rounds // 2, None)
    said = {name: (values[0], values[rounds // 2], values[-1]) for name, values in figures.items()}
    print(json.dumps({"resident bytes in 100 rounds": growth(figures["resident"]), **said}))
    assert growth(figures["resident"]) < memory, said["resident"]
    assert figures["open"].max() == figures["open"].min(), said["open"]
    assert figures["kept"].max() <= KEEP + 1, "the last ones and the best"
    size = figures["checkpoints"] / figures["kept"]
    assert size[second_half].max() < 1.02 * size[second_half].min(), (size[rounds // 2], size[-1])
    for name in ("rounds", "journal"):
        lines = np.diff(figures[name])  # the bytes that each round added
        assert lines.max() < 1.5 * np.median(lines) and lines.min() > 0, (name, lines.min(), lines.max())
        early, late = (float(np.mean(part)) for part in np.array_split(lines, 2))
        assert late < 1.05 * early, (name, early, late)
