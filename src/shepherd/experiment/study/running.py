"""The runs of a study, one after another in this process; other processes may work on the same folder.

A run is skipped where its RUN.json is there, where another process holds its lock, or where it failed since this
process began. A stopped run is resumed. A failure is written down and the rest goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shepherd.errors import ShepherdError
from shepherd.experiment.checks import look_first
from shepherd.experiment.study.design import Planned
from shepherd.experiment.study.folder import StudyFolder, first_line

if TYPE_CHECKING:
    from shepherd.experiment.events import Emit

Outcome = str
"""done, failed, taken (by another process) or late (not expected to fit)."""


@dataclass(frozen=True)
class Step:
    """What became of one run. detail: the first line of its error, its time, or that expected."""

    planned: Planned
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0
    record: Mapping[str, Any] | None = None


def carry_out(
    folder: StudyFolder,
    runs: Sequence[Planned],
    expected: Callable[[Planned], float],
    begun: Callable[[Planned], Emit],
    minutes: float | None = None,
) -> Iterator[Step]:
    """Carry out the runs that are left, a step for each.

    expected: seconds of a run, asked for where `minutes` limit this process. begun: the observer of a run that starts.
    """
    start = time.time()
    for planned in runs:
        if folder.record(planned) is not None:
            continue
        if minutes is not None and time.time() - start + (seconds := expected(planned)) > 60 * minutes:
            yield Step(planned, "late", seconds=seconds)
            continue
        with folder.held(planned) as ours:
            if not ours:
                yield Step(planned, "taken")
                continue
            if folder.record(planned) is not None or _failed_since(folder, planned, start):
                continue
            begin = time.perf_counter()
            try:
                _carry_out_one(folder, planned, begun(planned))
            except ShepherdError as error:
                folder.write_error(planned, error.message, error.hint, error.exit_code)
                yield Step(planned, "failed", first_line(error.message), time.perf_counter() - begin)
            except Exception as error:  # the other runs go on, whatever it was
                message = f"unexpected {type(error).__name__}: {error}"
                folder.write_error(planned, message, "", 1)
                yield Step(planned, "failed", first_line(message), time.perf_counter() - begin)
            else:
                yield Step(planned, "done", seconds=time.perf_counter() - begin, record=folder.record(planned))


def _failed_since(folder: StudyFolder, planned: Planned, start: float) -> bool:
    error = folder.error(planned)
    return error is not None and error.get("time", 0.0) >= start


def _carry_out_one(folder: StudyFolder, planned: Planned, observer: Emit) -> None:
    """Start or resume one run, and write its RUN.json."""
    from shepherd.experiment.run import resume, run_checked
    from shepherd.experiment.study.record import record_of
    from shepherd.store.disk import DISK, discard

    run_dir = folder.run(planned)
    if (run_dir / "identity.json").exists():
        resume(run_dir, observer, base_losses=folder.base)
    else:
        checked = look_first(planned.config(folder.runs), lambda _line: None, out=folder.runs)
        discard(DISK, run_dir)  # begun and stopped before it had an identity
        run_checked(checked, observer, folder.runs, base_losses=folder.base)
    folder.write_record(planned, record_of(run_dir, planned))


def expected_seconds(
    folder: StudyFolder, runs: Sequence[Planned], estimate: Callable[[Planned], float]
) -> Callable[[Planned], float]:
    """Seconds that a run is expected to take: the longest finished one of its variant, or its estimate.

    An estimate is multiplied by the largest ratio of measured to estimated seconds among other variants.
    """
    estimated: dict[str, float] = {}
    finished: dict[str, float] = {}

    def of(planned: Planned) -> float:
        name = planned.variant.name
        if name not in estimated:
            estimated[name] = estimate(planned)
        return estimated[name]

    def expected(planned: Planned) -> float:
        for run in runs:
            if run.name not in finished and (record := folder.record(run)) is not None:
                finished[run.name] = float(record["seconds"]["total"])
        done = [(run, finished[run.name]) for run in runs if run.name in finished]
        own = [seconds for run, seconds in done if run.variant.name == planned.variant.name]
        if own:
            return max(own)
        ratios = [seconds / max(of(run), 1e-9) for run, seconds in done]
        return of(planned) * max([1.0, *ratios])

    return expected
