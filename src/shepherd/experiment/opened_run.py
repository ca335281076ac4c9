"""A run directory in Python: what it holds, without PyTorch until its model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shepherd.store import open_run as folder_of
from shepherd.store import read_json
from shepherd.store.adapters import kept_adapters
from shepherd.store.records import read_rounds
from shepherd.updates.privacy.publication import place_of

if TYPE_CHECKING:
    from shepherd.evaluation.row_losses import HeldOutLosses
    from shepherd.serving.tuned import Tuned


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, and what summary.json holds."""

    path: Path
    summary: Mapping[str, Any]

    @property
    def adapter_path(self) -> Path:
        """The PEFT folder of the final federated adapter."""
        return self.path / "adapter"

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What evaluation/metrics.json holds: the losses and scores of every arm, and their differences."""
        return read_json(place_of(self.path, "evaluation/metrics.json"))

    def rounds(self) -> list[Mapping[str, Any]]:
        """The record of each round, as rounds.jsonl has it: cohort, weights, losses, bytes, seconds.

        Raises DataError for a line that is not the record of a round.
        """
        return read_rounds(self.path)

    def report(self) -> Path:
        """Write report.html anew from the run's files, and give its path."""
        from shepherd.report import write_report

        return write_report(self.path)

    def losses(self) -> HeldOutLosses:
        """The losses of every model on each held-out row, with the rows' ids. Raises DataError where there are none."""
        from shepherd.evaluation.row_losses import read_losses

        return read_losses(self.path)

    def adapters(self) -> list[str]:
        """The names of all adapters that the run holds, as `load_tuned` takes them: RUN, RUN:centralised,
        RUN:local/NAME, RUN@ROUND."""
        return [kept.name(self.path) for kept in kept_adapters(self.path)]

    def load(self, round: int | None = None) -> Tuned:
        """The tuned model; see `load_tuned`."""
        return load_tuned(self, round=round)


def open_run(path: Path | str | Run) -> Run:
    """A finished run from its directory. Raises UsageError, with what to do, where there is none or it was stopped."""
    if isinstance(path, Run):
        return path
    folder = folder_of(path, "summary.json")
    return Run(folder, read_json(place_of(folder, "summary.json")))


def load_tuned(run: Run | Path | str, *, round: int | None = None, dtype: str = "", device: str = "") -> Tuned:
    """What a run tuned, on its base: the final adapter, or that of a round whose checkpoint was kept; or another of its
    adapters by name, "runs/demo:centralised", "runs/demo:local/NAME".

    dtype and device replace those of the run. Raises UsageError where the adapter is not there, ModelError where the
    base is no longer the one that the adapter was trained on.
    """
    from shepherd.serving import tuned

    return tuned.load_tuned(_path(run), round_number=round, dtype=dtype, device=device)


def evaluate(run: Run | Path | str, round: int | None = None) -> dict[str, Any]:
    """Measure a run's adapter again, from its files: {"base": …, "federated": …, "difference": …} as in metrics.json.

    Raises EvaluationError where data, held-out rows or tokenizer are not those of the run.
    """
    from shepherd.experiment.remeasure import evaluate_run

    return evaluate_run(_path(run), round)


def _path(run: Run | Path | str) -> Path:
    return run.path if isinstance(run, Run) else Path(run)
