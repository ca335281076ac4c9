"""What a study found, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shepherd.arms import parts_of
from shepherd.errors import plural
from shepherd.report.arms import every_arm
from shepherd.report.wording import ABSENT, MINUS, digits, listing, number, signed

Document = Mapping[str, Any]
PLACES = 4
"""Decimals of differences in nats per token."""


def title(found: Document) -> str:
    """The heading: an unfinished study is named so."""
    if found["finished"]:
        return str(found["title"])
    return f"{found['title']} (unfinished: {found['runs_finished']} of {plural(found['runs_planned'], 'run')})"


def facts(found: Document) -> list[str]:
    """The line below the heading."""
    return [
        plural(len(found["variants"]), "variant"),
        plural(len(found["seeds"]), "seed"),
        f"{found['runs_finished']} of {plural(found['runs_planned'], 'run')} finished",
        f"test rows {found['test_rows']}",
    ]


def arm_text(arm: str) -> str:
    """An arm of a comparison in words: `local:mean` is "clients alone, mean"."""
    name, pick, client = parts_of(arm)
    if client:
        return f"{client} alone" if name == "local" else f"{client}, {_label(name)}"
    label = _label(name)
    return f"{label}, {pick}" if pick else label


def _label(name: str) -> str:
    return "clients alone" if name == "local" else every_arm([name])[name].label


def comparison_text(entry: Mapping[str, Any], reference: str) -> str:
    """`federated − base`, with the variant where it is not the reference, or the two variants."""
    a, b = entry["a"], entry["b"]
    own = ", own rows" if entry["rows"] == "own" else ""
    if a["variant"] == b["variant"]:
        where = "" if a["variant"] == reference else f" ({a['variant']})"
        return f"{arm_text(a['arm'])} {MINUS} {arm_text(b['arm'])}{where}{own}"
    return f"{_side(a)} {MINUS} {_side(b)}{own}"


def chart_label(entry: Mapping[str, Any], reference: str) -> str:
    """A short name of a comparison, where rows of a picture have little room: `− base` for federated − base, `− alone,
    best` for federated − clients alone, best."""
    text = comparison_text(entry, reference).replace("clients alone, ", "alone, ")
    return text.removeprefix("federated ") if entry["a"]["arm"] == "federated" else text


def _side(side: Mapping[str, Any]) -> str:
    return side["variant"] if side["arm"] == "federated" else f"{side['variant']}, {arm_text(side['arm'])}"


def interval_text(ends: Any) -> str:
    """`−0.1850 to −0.1300`."""
    return f"{signed(ends[0], PLACES)} to {signed(ends[1], PLACES)}" if ends else ABSENT


def p_text(value: Any) -> str:
    """A p value with three decimals, or as below 0.001 by its power of ten."""
    p = number(value)
    if p is None:
        return ABSENT
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def verdict_text(entry: Mapping[str, Any]) -> str:
    """The verdict on the first side; lower is better."""
    if entry["reason"]:
        return f"not compared: {entry['reason']}"
    words = {"lower": "lower (better)", "higher": "higher (worse)"}
    return words.get(entry["verdict"], entry["verdict"])


def sentences(found: Document) -> list[str]:
    """The lead of the page: a sentence for each comparison."""
    if not found["runs_finished"]:
        return ["No run is finished yet."]
    return [_sentence(entry, found["reference"]) for entry in found["comparisons"]]


def _sentence(entry: Mapping[str, Any], reference: str) -> str:
    name = comparison_text(entry, reference)
    if entry["reason"]:
        return f"{name}: not compared, {entry['reason']}."
    value = signed(entry["difference"], PLACES)
    if entry["ci95"] is None:
        return f"{name}: {value} nats per token, without an interval, as nothing varies."
    over = "" if len(entry["seeds"]) > 1 else ", for this training alone"
    numbers = f"{value} nats per token (95\N{NO-BREAK SPACE}%: {interval_text(entry['ci95'])}"
    verdict = {
        "lower": "the first is lower, which is better",
        "higher": "the first is higher, which is worse",
        "equal within the margin": f"equal within the margin of {digits(entry['margin'], PLACES)}",
    }.get(entry["verdict"], f"not distinguishable; this design sees {digits(entry['smallest_difference'], PLACES)}")
    return f"{name}: {numbers}; Holm p = {p_text(entry['holm_p'])}): {verdict}{over}."


def warnings(found: Document) -> list[str]:
    """What to read first: failures, seeds, deviations, parts that were not done."""
    lines = []
    if not found["finished"]:
        left = found["runs_planned"] - found["runs_finished"]
        lines.append(f"The study is unfinished: {plural(left, 'run')} of {found['runs_planned']} "
                     "are missing, and verdicts may change.")  # fmt: skip
    failed = [run for run in found["runs"] if run["state"] == "failed"]
    lines += [f"{run['run']} failed: {run['detail']}" for run in failed[:20]]
    if len(failed) > 20:
        lines.append(f"{plural(len(failed) - 20, 'further run')} failed.")
    lines += _notes(found)
    lines += list(found["deviations"])
    if found["judge"]:
        lines.append(f"Answers were not judged here: the last section has the commands, for {found['judge']['model']}.")
    if found["benchmarks"]:
        tasks = listing(list(found["benchmarks"]["tasks"]))
        lines.append(f"Benchmarks were not measured here: the last section has the commands, for {tasks}.")
    return lines


def _notes(found: Document) -> list[str]:
    """The notes of comparisons, each with those that it is about."""
    by: dict[str, list[str]] = {}
    for entry in found["comparisons"]:
        for note in entry.get("notes", ()):
            by.setdefault(note, []).append(comparison_text(entry, found["reference"]))
    every = sum(not entry["reason"] for entry in found["comparisons"])
    return [
        f"{note[:1].upper()}{note[1:]}" + ("." if len(about) == every else f": {listing(about, 4)}.")
        for note, about in by.items()
    ]


def method_text(found: Document) -> list[str]:
    """How the table was computed."""
    kinds = {entry.get("interval") for entry in found["comparisons"]} - {None}
    intervals = {
        "two-way": "Intervals count the variation of rows and of seeds (two-way, Student's t with Satterthwaite's "
        "degrees of freedom).",
        "seeds": "Where each seed has other test rows, intervals are Student's t over seeds.",
        "rows": "With one seed intervals count the variation of rows alone; other seeds may turn a verdict.",
    }
    rounded = f" Losses of rows are rounded to {found['rounded_to']:g} nats." if found["rounded_to"] else ""
    return [
        "A difference is the loss of the first minus that of the second on the same held-out rows, in nats per "
        "response token: below 0 the first is better. " + " ".join(intervals[k] for k in intervals if k in kinds),
        f"p values are adjusted by Holm over {found['family']}, at 5\N{NO-BREAK SPACE}%. Equal within the margin: two "
        f"one-sided tests reject a difference beyond the margin, which was fixed in the study file.{rounded}",
    ]
