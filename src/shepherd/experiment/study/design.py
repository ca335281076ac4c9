"""A study file, resolved: its variants, seeds and comparisons, and how a folder that holds another study differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shepherd.config import Config
from shepherd.errors import UsageError, did_you_mean
from shepherd.experiment.checks import registry_problems
from shepherd.experiment.study.file import StudyFile, problems_of, read_study_file
from shepherd.experiment.study.sides import Pair, pairs_of
from shepherd.experiment.study.variants import Variant, digest_of, portable, run_name, variants_of

SCHEMA = 1


@dataclass(frozen=True)
class Planned:
    """One run of a study."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        return run_name(self.variant.name, self.seed)

    def config(self, out: Path) -> Config:
        return self.variant.config_of(self.seed, out)

    @property
    def settings(self) -> dict[str, Any]:
        """What its results depend on, as RUN.json has it."""
        return portable(self.variant.config_of(self.seed))

    @property
    def digest(self) -> str:
        return digest_of(self.settings)


@dataclass(frozen=True)
class Study:
    """A study file, resolved. runs: seed by seed, so that a study that is stopped early has whole seeds."""

    path: Path
    title: str
    file: StudyFile
    overrides: tuple[str, ...]
    variants: tuple[Variant, ...]
    reference: str
    pairs: tuple[Pair, ...]

    @property
    def runs(self) -> list[Planned]:
        return [Planned(v, seed) for seed in self.file.seeds for v in self.variants if seed in v.seeds]

    @property
    def sets_threads(self) -> bool:
        """Whether a variant sets run.threads."""
        return any(variant.config.run.threads for variant in self.variants)

    def variant(self, name: str) -> Variant:
        return next(variant for variant in self.variants if variant.name == name)

    def picked(self, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Planned]:
        """The runs of some variants, by name or family, and seeds. Raises UsageError for one that is not there."""
        names = {name for variant in self.variants for name in (variant.name, variant.family)}
        for name in only:
            if name not in names:
                known = ", ".join(variant.name for variant in self.variants)
                raise UsageError(f"--only {name!r} is not a variant.{did_you_mean(name, names)}", hint=known)
        for seed in seeds:
            if seed not in self.file.seeds:
                known = ", ".join(map(str, self.file.seeds))
                raise UsageError(f"--seeds {seed} is not a seed of the study", hint=f"its seeds: {known}")
        return [
            run
            for run in self.runs
            if (not only or {run.variant.name, run.variant.family} & set(only)) and (not seeds or run.seed in seeds)
        ]

    @property
    def document(self) -> dict[str, Any]:
        """The design as its folder keeps it: what may not change between two processes that share it."""
        file = self.file
        return {
            "schema": SCHEMA,
            "seeds": {variant.name: list(variant.seeds) for variant in self.variants},
            "variants": {variant.name: portable(variant.config) for variant in self.variants},
            "reference": self.reference,
            "compare": {
                pair.label: {"margin": pair.margin, "row_sd": pair.row_sd, "seed_sd": pair.seed_sd}
                for pair in self.pairs
            },
            "judge": file.judge.model_dump(mode="json") if file.judge else None,
            "benchmarks": file.benchmarks.model_dump(mode="json") if file.benchmarks else None,
        }


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read and resolve a study file; `overrides` are set in every run. Raises a UsageError with all mistakes."""
    file = read_study_file(path)
    problems: list[str] = []
    variants = variants_of(file, path.stem, overrides, (registry_problems,), problems)
    reference = file.reference or (variants[0].name if variants else "")
    if variants and reference not in (names := [variant.name for variant in variants]):
        family = [variant.name for variant in variants if variant.family == reference]
        if len(family) == 1:
            reference = family[0]
        else:
            near = did_you_mean(reference, names)
            points = f" Name a point of the grid: {', '.join(family)}." if family else ""
            problems.append(f"reference: {reference!r} is not a variant.{near}{points} Variants: {', '.join(names)}")
    for variant in variants:
        privacy = variant.config.privacy
        if privacy.unit != "none" and not privacy.publish_nothing:
            problems.append(
                f"{variant.name}: a study keeps whole records of its runs, with figures that carry no noise; set "
                "privacy.publish_nothing = true, or carry out the run with shepherd run"
            )
    pairs: list[Pair] = []
    if variants and not problems:
        pairs = pairs_of(file, variants, reference, problems)
    if problems:
        raise problems_of(path, list(dict.fromkeys(problems)))
    return Study(path, file.title or path.stem, file, tuple(overrides), tuple(variants), reference, tuple(pairs))


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each value that differs: `variants.fedit.training.learning_rate: 0.0005 then, 0.001 now`."""
    before, after = dict(flat(then)), dict(flat(now))
    return [
        f"{key}: {_shown(before.get(key))} then, {_shown(after.get(key))} now"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested tables."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
