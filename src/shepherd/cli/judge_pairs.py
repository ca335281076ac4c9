"""Arms named on the command line to pairs of answers: `federated`, `RUN:federated`, or a file of answers."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shepherd.cli import output
from shepherd.cli.settings import find_run, run_named
from shepherd.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from shepherd.evaluation.answer_files import AnswerFile, AnswerLine
    from shepherd.evaluation.judge.calls.material import Asked
    from shepherd.evaluation.judge.calls.plan import Pair

ARMS = ("federated", "base", "centralised")
"""Names that stand for an arm of each run, even where a folder has the same name."""


class Side(NamedTuple):
    """One arm of a pair. run: None for a file of answers."""

    name: str
    answers: AnswerFile
    run: Path | None


def pairs_of(
    runs: Sequence[Path], named: Sequence[tuple[str, str]], questions: Asked
) -> tuple[list[Pair], dict[str, AnswerLine]]:
    """The pairs of all runs, and one line of answers of each arm by its name in the table.

    named: pairs of the command line; an arm without a run is one of each of `runs`. Without any, those of
    `material.default_pairs`. Runs that differ in the seed only are seeds of one pair. UsageError: two different pairs
    would stand under one name in the table.
    """
    from shepherd.evaluation.judge.calls import material

    found: list[Pair] = []
    lines: dict[str, AnswerLine] = {}
    named_so: dict[tuple[str, str, int | None], tuple[Path, Path]] = {}

    def add(one: Side, other: Side, names: tuple[str, str], seed: int | None) -> None:
        files = one.answers.file, other.answers.file
        if (before := named_so.setdefault((*names, seed), files)) != files:
            raise UsageError(
                f"{before[0]} and {before[1]}, and {files[0]} and {files[1]}, are both {names[0]} and {names[1]}: they "
                "would count as one pair",
                hint="judge them by two commands, with --out FILE in another folder",
            )
        found.append(material.pair_of(one.answers, other.answers, names, seed, questions.ids))
        for name, side in zip(names, (one, other), strict=True):
            if not all(line.question_hash for line in side.answers.lines.values()):
                output.note(f"{side.answers.file} does not hold its questions: they are matched by their ids alone")
            lines.setdefault(name, next(iter(side.answers.lines.values())))

    of_runs = []
    for one, other in named:
        a, b = _elsewhere(one, questions), _elsewhere(other, questions)
        if a is not None and b is not None:
            add(a, b, _distinct(a, b), _seed(a.run) if a.run is not None and a.run == b.run else None)
        elif runs:
            of_runs.append((one, other))
        else:
            raise UsageError(f"neither a file of answers nor RUN:ARM: {other if a else one}",
                             hint="name the run, as in runs/demo:federated")  # fmt: skip
    groups = _groups(runs)
    titles = _titles(set(groups.values()))
    for run in runs if of_runs or not named else ():
        arms = material.answers_of(run, questions)
        for pair in of_runs or material.default_pairs(run, arms, _expected(run), questions):
            a, b = (_elsewhere(name, questions) or _arm(name, run, arms, questions) for name in pair)
            prefix = f"{titles[groups[run]]}:" if len(titles) > 1 else ""
            names = tuple(side.name if side.run != run else f"{prefix}{side.name}" for side in (a, b))
            add(a, b, (names[0], names[1]), _seed(run))
    return found, lines


def _titles(runs: Collection[Path]) -> dict[Path, str]:
    """The name of each run, its whole path where another one has that name too."""
    names = [run.resolve().name for run in runs]
    return {run: name if names.count(name) == 1 else run.as_posix() for run, name in zip(runs, names, strict=True)}


def _elsewhere(name: str, questions: Asked) -> Side | None:
    """A file of answers, RUN:ARM, RUN@ROUND or RUN; None for the name of an arm alone."""
    from shepherd.evaluation.answer_files import read_answers
    from shepherd.evaluation.judge.calls import material
    from shepherd.store.adapters import arm_name

    if Path(name).is_file():
        return Side(name, read_answers(name), None)
    if name in ARMS or name.startswith("local/"):
        return None
    wanted = arm_name(name)
    if ":" not in name and run_named(wanted.run) is None:
        return None
    run, arm = find_run(str(wanted.run)), wanted.model
    arms = material.answers_of(run, questions)
    if wanted.round is not None:
        arm = next((each for each in arms if each.endswith(f"@{wanted.round}")), f"@{wanted.round}")
    return _arm(arm, run, arms, questions)._replace(name=name)


def _arm(name: str, run: Path, arms: Mapping[str, AnswerFile], questions: Asked) -> Side:
    from shepherd.evaluation.judge.calls import material

    if name in arms:
        return Side(name, arms[name], run)
    raise UsageError(
        f"{run} has no answers of {name!r}.{did_you_mean(name, arms)}",
        hint=f"it has those of {', '.join(arms)}; {material.answer_command(run, questions, name)}",
    )


def _distinct(a: Side, b: Side) -> tuple[str, str]:
    """Names for the table: of files the name of their model, where the two differ."""
    shown = [side.name if side.run is not None else side.answers.name for side in (a, b)]
    return (shown[0], shown[1]) if shown[0] != shown[1] else (a.name, b.name)


def _expected(run: Path) -> Collection[str]:
    """The arms that a default comparison needs: base, each kept local client, centralised where the run has it."""
    from shepherd.store.adapters import kept_adapters

    kept = [one for one in kept_adapters(run) if one.round is None]
    local = [f"{one.arm}/{one.label or one.client}" for one in kept if one.client]
    return ["base", *local, *(one.arm for one in kept if one.arm == "centralised")]


def _table(run: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{run}/config.toml cannot be read: {error}", hint="restore it from a copy") from None


def _seed(run: Path) -> int | None:
    """The seed of a run's training."""
    seed = _table(run).get("run", {}).get("seed")
    return seed if isinstance(seed, int) else None


def _groups(runs: Sequence[Path]) -> dict[Path, Path]:
    """Each run's first run of the same settings and another seed, itself included."""
    from shepherd.report.comparison.groups import ASIDE

    found: dict[Path, Path] = {}
    members: dict[str, list[Path]] = {}
    for run in runs:
        rest = {f"{room}.{key}": value for room, keys in _table(run).items() if isinstance(keys, dict)
                for key, value in keys.items() if f"{room}.{key}" not in ASIDE}  # fmt: skip
        same = members.setdefault(json.dumps(rest, sort_keys=True, default=str), [])
        if _seed(run) in map(_seed, same):
            found[run] = run  # a repetition, not another seed
            continue
        same.append(run)
        found[run] = same[0]
    return found
