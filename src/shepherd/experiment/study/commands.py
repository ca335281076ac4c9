"""The commands that repeat a study, and those that judge its answers and measure its benchmarks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from shepherd.experiment.study.design import Planned, Study

Command = tuple[str, str]
"""(what it does, the line)"""


def commands(study: Study) -> list[Command]:
    """The lines of a report, in order. Those on runs are for the folder of the study, where runs/ still holds them."""
    sets = [part for override in study.overrides for part in ("--set", _published(override))]
    line = ["shepherd", "study", "run", study.path.name, *sets]
    first = study.runs[0]
    one = [*line, "--only", first.variant.name, "--seeds", str(first.seed)]
    found = [("the study", shlex.join(line)), ("one run", shlex.join(one))]
    return [*found, *_judging(study), *_benchmarks(study)]


def _published(override: str) -> str:
    """A setting of the command line with the file's name in place of a path of this machine: outputs are published."""
    key, sign, value = override.partition("=")
    path = Path(value.strip().strip("\"'"))
    return f"{key}={path.name}" if sign and path.is_absolute() else override


def _judging(study: Study) -> Iterator[Command]:
    """Answers and verdicts; the runs of a variant are seeds of the same pairs."""
    judge = study.file.judge
    if judge is None:
        return
    for name, runs in _by_variant(study).items():
        asked = ["--questions", judge.questions]
        yield f"answers, {name}", shlex.join(["shepherd", "answer", *runs, *asked, "--limit", str(judge.number)])
        options = ["--judge", judge.model, *(["--endpoint", judge.endpoint] if judge.endpoint else []), *asked]
        options += ["--protocol", judge.protocol, "--repeats", str(judge.repeats)]
        options += ["--one-order"] if judge.orders == "one" else []
        options += ["--prices", judge.prices] if judge.prices else []
        yield f"judge, {name}", shlex.join(["shepherd", "judge", *runs, *options])


def _benchmarks(study: Study) -> Iterator[Command]:
    """A line for each run, whose directory takes the results."""
    table = study.file.benchmarks
    if table is None:
        return
    limit = ["--limit", str(table.limit)] if table.limit else []
    for planned in study.runs:
        models = [f"{_place(planned)}:{arm}" for arm in table.on]
        line = ["shepherd", "benchmark", *models, "--tasks", ",".join(table.tasks), *limit]
        yield f"benchmarks, {planned.name}", shlex.join(line)


def _by_variant(study: Study) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for planned in study.runs:
        found.setdefault(planned.variant.name, []).append(_place(planned))
    return found


def _place(planned: Planned) -> str:
    return f"runs/{planned.name}"
