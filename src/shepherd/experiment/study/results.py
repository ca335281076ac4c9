"""The results of a study: RUN.json files -> the document study.json and its tidy rows. Loads no PyTorch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shepherd.arms import shown
from shepherd.experiment.study.commands import commands
from shepherd.experiment.study.comparisons import Records, compare_all, over_seeds
from shepherd.experiment.study.design import SCHEMA, Study, flat
from shepherd.experiment.study.folder import Progress, StudyFolder
from shepherd.experiment.study.losses import Record
from shepherd.experiment.study.variants import portable

COLUMNS = ("run", "variant", "seed", "arm", "client", "row", "tokens", "nll")
"""Columns of the tidy table: one row for each run × arm (and client) × held-out row; nll is summed over tokens."""


def finished_records(study: Study, folder: StudyFolder) -> dict[str, dict[int, Record]]:
    """{variant: {seed: RUN.json}} of all finished runs. Raises UsageError for one with other settings."""
    found: dict[str, dict[int, Record]] = {}
    for planned in study.runs:
        if (record := folder.record(planned)) is not None:
            found.setdefault(planned.variant.name, {})[planned.seed] = record
    return found


def document(study: Study, records: Records, states: Sequence[Progress]) -> dict[str, Any]:
    """The contents of study.json but for the tidy rows."""
    compared = compare_all(study.pairs, records)
    done = sum(map(len, records.values()))
    return {
        "schema": SCHEMA,
        "title": study.title,
        "finished": done == len(study.runs),
        "runs_planned": len(study.runs),
        "runs_finished": done,
        "seeds": list(study.file.seeds),
        "test_rows": study.file.test_rows,
        "reference": study.reference,
        "variants": [_variant(study, name, records.get(name, {})) for name in (v.name for v in study.variants)],
        "comparisons": compared,
        "family": _family(compared),
        "runs": [_run(state, records) for state in states],
        "deviations": _deviations(records, study.file.test_rows == "fixed"),
        "environments": _environments(records),
        "commands": commands(study),
        "judge": study.file.judge.model_dump(mode="json") if study.file.judge else None,
        "benchmarks": study.file.benchmarks.model_dump(mode="json") if study.file.benchmarks else None,
        "rounded_to": max((r["rounded_to"] for each in records.values() for r in each.values()), default=None),
    }


def tidy(records: Records) -> Iterator[tuple[Any, ...]]:
    """Rows of the tidy table, in the order of `COLUMNS`."""
    for variant, seeds in records.items():
        for seed, record in seeds.items():
            rows = record["rows"]
            for arm, entry in record["arms"].items():
                each = entry.get("each", {}) if "losses" in entry else {"": entry["nll"]}
                for client, values in each.items():
                    for row, tokens, nll in zip(rows["ids"], rows["tokens"], values, strict=True):
                        yield record["run"], variant, seed, arm, client, row, tokens, nll


def to_csv(records: Records) -> str:
    """The tidy table as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(tidy(records))
    return stream.getvalue()


def to_json(found: Mapping[str, Any], records: Records) -> str:
    """study.json: the document, then {"columns", "rows"} of the tidy table, a line each."""
    head = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)[:-2]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in tidy(records))
    columns = json.dumps(COLUMNS)
    return f'{head},\n "losses": {{"columns": {columns}, "rows": [\n{lines}\n]}}\n}}\n'


def _variant(study: Study, name: str, records: Mapping[int, Record]) -> dict[str, Any]:
    variant = study.variant(name)
    own, reference = (dict(flat(portable(v.config))) for v in (variant, study.variant(study.reference)))
    keys = [key for key in dict.fromkeys([*reference, *own]) if own.get(key) != reference.get(key)]
    first = next(iter(records.values()), None)
    return {
        "name": name,
        "seeds": list(variant.seeds),
        "finished": list(records),
        "differs": {key: own.get(key) for key in keys},
        "arms": _arms(records),
        "budget": first["budget"] if first else {},
        "bytes_up": first["bytes_up"] if first else None,
        "bytes_down": first["bytes_down"] if first else None,
        "seconds": _mean([record["seconds"]["total"] for record in records.values()]),
        "deviation": _mean([record.get("deviation") for record in records.values()]),
        "curve": _curve(records),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return over_seeds(known)[0] if known else None


def _arms(records: Mapping[int, Record]) -> list[dict[str, Any]]:
    """The losses of each arm by seed: `losses` in order of the seeds, their mean and standard error."""
    values: dict[str, dict[int, float]] = {}
    for seed, record in records.items():
        total = sum(record["rows"]["tokens"])
        for arm in shown(record["arms"]):
            entry = record["arms"][arm]
            if "losses" not in entry:
                values.setdefault(arm, {})[seed] = entry["loss"]
                continue
            losses = list(entry["losses"].values())
            best = [v for v in entry["best"] if v is not None]
            for pick, value in (
                ("worst", max(losses)), ("mean", entry["loss"]), ("best", sum(best) / total),
            ) if len(losses) > 1 else (("mean", entry["loss"]),):  # fmt: skip
                values.setdefault(f"{arm}:{pick}", {})[seed] = value
    return [
        {"arm": arm, "losses": {str(seed): value for seed, value in found.items()},
         **dict(zip(("mean", "stderr"), over_seeds(list(found.values())), strict=True))}
        for arm, found in values.items()
    ]  # fmt: skip


def _curve(records: Mapping[int, Record]) -> list[list[float]]:
    """The mean federated loss after each round that all seeds measured."""
    curves = [dict(record["curves"].get("federated") or ()) for record in records.values()]
    if not curves:
        return []
    shared = [n for n in curves[0] if all(c.get(n) is not None for c in curves)]
    return [[n, sum(c[n] for c in curves) / len(curves)] for n in sorted(shared)]


def _run(state: Progress, records: Records) -> dict[str, Any]:
    planned = state.planned
    record = records.get(planned.variant.name, {}).get(planned.seed)
    return {
        "run": planned.name,
        "variant": planned.variant.name,
        "seed": planned.seed,
        "state": state.state,
        "detail": state.detail,
        "finished": record["finished"] if record else None,
        "seconds": record["seconds"]["total"] if record else None,
        "digests": record["digests"] if record else None,
        "failed_clients": [failure["client"] for failure in record["failed"]] if record else [],
    }


def _family(compared: Sequence[Mapping[str, Any]]) -> str:
    known = sum(entry.get("p") is not None for entry in compared)
    return (
        f"all {len(compared)} comparisons of the study file, of which {known} have a p value"
        if known < len(compared)
        else f"all {len(compared)} comparisons of the study file"
    )


def _deviations(records: Records, fixed: bool) -> list[str]:
    """What is not equal between arms of one variant, or differs from what was planned."""
    found = []
    for variant, seeds in records.items():
        budgets = next(iter(seeds.values()))["budget"] if seeds else {}
        for key, what in (
            ("optimizer_steps_per_client", "optimizer steps in sequence"), ("learning_rate", "peak learning rate"),
        ):  # fmt: skip
            values = {arm: budget[key] for arm, budget in budgets.items() if key in budget}
            if len({round(v, 9) for v in values.values()}) > 1:
                listed = ", ".join(f"{arm} {value:g}" for arm, value in values.items())
                found.append(f"{variant}: the arms differ in {what}: {listed}.")
        failed = {seed: [f["client"] for f in r["failed"]] for seed, r in seeds.items() if r["failed"]}
        found += [f"{variant}, seed {seed}: training alone failed for {', '.join(c)}." for seed, c in failed.items()]
    for what in ("base", "tokenizer", "code", *(("held-out rows",) if fixed else ())):
        key = what.replace("held-out rows", "held_out")
        digests = {r["digests"].get(key) for each in records.values() for r in each.values()}
        if len(digests) > 1:
            found.append(f"Not all runs are of one state: {len(digests)} different digests of {what}.")
    states: dict[str, set[Any]] = {}
    for seeds in records.values():
        for record in seeds.values():
            given = {key: value for key, value in record["config"].get("data", {}).items() if key != "seed"}
            states.setdefault(json.dumps(given, sort_keys=True), set()).add(record["digests"].get("data"))
    if most := max((len(digests) for digests in states.values() if len(digests) > 1), default=0):
        found.append(f"Not all runs are of one state: {most} different digests of data with the same settings.")
    return found


def _environments(records: Records) -> list[dict[str, Any]]:
    """The distinct machines and versions of the runs."""
    every = [dict(record["environment"]) for each in records.values() for record in each.values()]
    return [e for i, e in enumerate(every) if e not in every[:i]]
