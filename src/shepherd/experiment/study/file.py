"""A study file (TOML): its tables, types and known keys. All mistakes are reported at once, with the nearest keys."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from shepherd.config import Table
from shepherd.errors import UsageError, did_you_mean, plural

Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Settings = Mapping[str, Any] | tuple[str, ...]
"""Settings as a list of "table.key=value", or as tables of a recipe."""
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, strict=True)]


class CompareTable(Table):
    """One comparison, a − b of held-out losses, fixed before the runs."""

    a: str
    """VARIANT, ARM or VARIANT:ARM; an arm is base, federated, centralised, local:mean, local:best or local/NAME."""
    b: str
    """The same. An arm without a variant stands for that of each variant, or for that of the other side's variant."""
    margin: Positive | None = None
    """The difference, in nats per token, within which the two count as equal."""
    rows: Literal["all", "own"] = "all"
    """all held-out rows, or each client's own rows, with clients as units."""
    row_sd: Positive | None = None
    """Expected standard deviation of the difference over rows, in nats per token, for `check`."""
    seed_sd: Annotated[float, Field(ge=0)] | None = None
    """Expected standard deviation of the mean difference over seeds, beyond that of rows, for `check`."""


class JudgeTable(Table):
    """How answers are to be judged (`shepherd judge`); counted by `check`."""

    model: str = Field(min_length=1)
    """The judge, as its endpoint names it."""
    endpoint: str = ""
    """Base URL of an OpenAI-compatible endpoint."""
    protocol: Literal["pairwise", "fedit"] = "pairwise"
    """Verdicts with tie, or ratings from 1 to 10."""
    questions: str = "held-out"
    """A file of questions, vicuna, mt-bench or held-out."""
    number: Count = 80
    """Questions of each pair."""
    orders: Literal["both", "one"] = "both"
    """Both orders, or one, which favours the answer shown first."""
    repeats: Count = 1
    """Judgements of each pair, question and order."""
    prices: str = ""
    """TOML file of prices as `shepherd judge --prices` reads it: [models.NAME] with input and output, per million."""


class BenchmarksTable(Table):
    """Benchmarks of lm-evaluation-harness (`shepherd benchmark`)."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of tasks."""
    on: tuple[Literal["base", "federated", "merged"], ...] = Field(("base", "federated"), min_length=1)
    """The models of each run that are measured."""
    limit: Annotated[int, Field(ge=0, strict=True)] = 0
    """Rows of each task; 0 takes all."""


class BudgetTable(Table):
    """Limits above which nothing is started."""

    hours: Positive | None = None
    """Hours of this machine for all runs."""
    disk_gb: Positive | None = None
    """Gigabytes of all run directories."""
    judge_calls: Count | None = None
    """Calls of the judge."""
    judge_cost: Positive | None = None
    """Cost of the judge, in the currency of judge.prices."""

    @property
    def limits(self) -> bool:
        """Whether anything is limited."""
        return any(getattr(self, name) is not None for name in type(self).model_fields)


class StudyFile(Table):
    """A study file as it is written."""

    title: str = ""
    """The heading of its page; the name of the file where empty."""
    recipe: str | Annotated[tuple[str, ...], Field(max_length=1)] = ()
    """The recipe under all variants: a packaged one's name or a path; none: the defaults."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    """Seeds of every variant."""
    test_rows: Literal["fixed", "by seed"] = "fixed"
    """fixed: data.seed is the first seed in every run, so all share the test rows. by seed: run.seed draws them."""
    reference: str = ""
    """The variant that others are compared with; the first one where empty."""
    base: Settings = ()
    """Settings of every run."""
    variants: Mapping[str, Settings] = Field(default_factory=dict)
    """Settings by the name of the variant."""
    grid: Mapping[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Setting -> its values; every variant is run at every point of their product."""
    exclude: tuple[Mapping[str, Any], ...] = ()
    """Runs that are left out: tables of variant, seed and settings of the grid, which all hold."""
    compare: tuple[CompareTable, ...] = ()
    """The comparisons of the table; without any, those with the reference and between its arms."""
    judge: JudgeTable | None = None
    benchmarks: BenchmarksTable | None = None
    budget: BudgetTable = BudgetTable()

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            raise ValueError(f"names {twice[0]} twice")
        return seeds

    @property
    def recipe_name(self) -> str | None:
        names = (self.recipe,) if isinstance(self.recipe, str) else self.recipe
        return names[0] if names and names[0] else None


def read_study_file(path: Path) -> StudyFile:
    """Read a study file. Raises UsageError for one that is missing, is not TOML, or has mistakes: all of them."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        near = did_you_mean(path.name, [other.name for other in path.parent.glob("*.toml")])
        raise UsageError(f"study file not found: {path}.{near}", hint="give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        return StudyFile.model_validate(values)
    except ValidationError as error:
        problems = list(dict.fromkeys(_problem(entry) for entry in error.errors()))
    raise problems_of(path, problems)


def problems_of(path: Path, problems: list[str]) -> UsageError:
    """The error that lists what is wrong with a study file."""
    lines = "\n".join(f"  {line}" for problem in problems for line in problem.split("\n"))
    return UsageError(
        f"{plural(len(problems), 'problem')} in {path}:\n{lines}",
        hint="docs/studies.md describes the file",
    )


def _problem(entry: Mapping[str, Any]) -> str:
    place = [str(part + 1) if isinstance(part, int) else part for part in entry["loc"]]
    kind = entry["type"]
    if kind == "extra_forbidden":
        *tables, key = place
        table: type[BaseModel] = StudyFile
        for name in tables:
            if name in table.model_fields:
                table = _TABLES.get(name, table)
        known = list(table.model_fields)
        where = f" in [{'.'.join(tables)}]" if tables else ""
        near = did_you_mean(key, known) or did_you_mean(key, [*StudyFile.model_fields])
        return f"unknown key {key!r}{where}.{near} Known: {', '.join(known)}"
    where = ".".join(part for part in place if part not in _BRANCHES)
    if kind == "missing":
        return f"{where} is missing"
    text = entry["msg"].removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    shown = "" if isinstance(entry["input"], Mapping) or text.startswith("names ") else f", got {entry['input']!r}"
    return f"{where}: {text}{shown}"


_TABLES: Mapping[str, type[BaseModel]] = {
    "compare": CompareTable,
    "judge": JudgeTable,
    "benchmarks": BenchmarksTable,
    "budget": BudgetTable,
}
_BRANCHES = {"mapping[str,any]", "tuple[str, ...]", "str", "constrained-tuple", "tuple[str,...]"}
