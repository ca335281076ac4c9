"""Wall time by phase of the run and of each round, and peak memory."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from shepherd.arms import registered
from shepherd.report import charts
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table
from shepherd.report.wording import duration, left_out, number, percent, sentence, size

PHASES = {
    "prepare data": "reading the data",
    "load model": "loading the model",
    "prepare model": "preparing the model",
    "personal models": "training, personal models",
    "save adapter": "saving the adapter",
    "evaluate": "measuring all arms",
    "generate": "generating answers",
}
"""Names of the phases that are not the training of an arm."""
STYLES = ("s4", "s5", "s6", "s1", "s2", "s3")
THIN = 0.02
"""Smallest share with a part in the picture; the table has all."""


def time(record: RunRecord, limits: Limits) -> Section:
    """Seconds by phase of the run, and by phase of each round."""
    seconds = dict(record.summary.get("seconds") or {})
    total, other = number(seconds.pop("total", None)), number(seconds.pop("other", None)) or 0.0
    parts = [(name, value) for name, raw in seconds.items() if (value := number(raw)) is not None]
    spent = sum(value for _, value in parts) + other
    text = [f"The run took {duration(total)}."] if parts and total else []
    items: list[Figure | Table] = []
    if parts:
        if total and total - spent > 0.005 * total:
            other += total - spent
        elif total and spent > 1.005 * total:
            text.append(f"Some phases are nested in others: their sum is {duration(spent)}.")
        parts += [("other", other)] if other else []
        items.append(_by_phase(parts, spent if total is None else total))
    if peak := number(record.summary.get("peak_memory_bytes")):
        text.append(f"Peak memory: {size(peak)}.")
    if any(line.get("seconds") for line in record.rounds):
        items.append(_by_round(record, limits))
    return Section("time", "Time and memory", text or ["No times are recorded yet."], items)


def _by_phase(parts: Sequence[tuple[str, float]], total: float) -> Figure:
    whole = sum(value for _, value in parts)
    rows = [[_phase(name), duration(value), percent(value / whole if whole else None)] for name, value in parts]
    table = Table("Time by phase", ("Phase", "Time", "Share"), [*rows, ["total", duration(total), ""]])
    return Figure(_picture(parts, whole), "Wall time of the run by phase.", table)


def _picture(parts: Sequence[tuple[str, float]], whole: float) -> Markup:
    wide = [(name, value) for name, value in parts if name != "other" and value >= THIN * whole]
    styles = iter(STYLES * len(wide))
    fixed = {name: arm.style for name, arm in registered().items()}
    drawn = [(_phase(name), fixed.get(name) or next(styles), value) for name, value in wide]
    rest = whole - sum(value for _, value in wide)
    return charts.stacked_bar(
        [*drawn, ("other", "base", rest)],
        title="Time by phase",
        description=sentence([f"{_phase(name)}: {duration(value)}" for name, value in parts]),
        write=duration,
    )


def _phase(name: str) -> str:
    """A phase in words. The training of an arm has the arm's name; so has what another program trained, as it is."""
    arm = registered().get(name)
    return PHASES.get(name) or (arm.phase if arm else name)


def _by_round(record: RunRecord, limits: Limits) -> Table:
    phases = list(dict.fromkeys(phase for line in record.rounds for phase in line.get("seconds") or {}))
    rows = [
        [f"{line['round']}", *(duration((line.get("seconds") or {}).get(phase)) for phase in phases)]
        for line in charts.thin(record.rounds, limits.rows)
    ]
    note = left_out(len(record.rounds), limits.rows, "round")
    return Table("Time in each round", ("Round", *phases), rows, note=note)
