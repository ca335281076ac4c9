"""The table of judged pairs for a paper."""

from __future__ import annotations

from shepherd.report import latex
from shepherd.report.judge.facts import UNKNOWN
from shepherd.report.judge.figures import Judged, labels
from shepherd.report.judge.sentences import cautions
from shepherd.report.latex import Measured
from shepherd.report.wording import listing, number


def judged_table(judged: Judged) -> str:
    """Relative scores and differences ± half of their 95 % intervals, marked by verdict, one row per pair."""
    pairs = judged["pairs"]
    rows = [
        (
            name,
            Measured(pair["questions"], places=0),
            Measured(pair["relative"], _half(pair["relative_ci95"])),
            Measured(pair["difference"], _half(pair["ci95"]), pair["verdict"], signs=True),
            f"{pair['wins']}/{pair['losses']}/{pair['ties']}",
        )
        for name, pair in zip(labels(pairs), pairs, strict=True)
    ]
    judge = listing(judged["judge"]["asked"] or [UNKNOWN], 3)
    seeds = max(pair["seeds"] for pair in pairs)
    notes = [
        f"Judge: {judge}.",
        "Intervals over questions and seeds."
        if seeds > 1
        else "Intervals over questions; one seed, so that other seeds may turn a verdict.",
    ]
    notes += [
        caution for caution in cautions(judged) if caution.startswith(("Judged in one order", "This judge is not"))
    ]
    return latex.table(
        ("Pair", "Questions", "Relative score", "Difference", "Won/lost/tied"),
        rows,
        caption="Judged answers: relative score and mean difference in points per question ± half of the 95 % "
        "interval, first of a pair against the second.",
        label="tab:judge",
        notes=notes,
    )


def _half(ends: list[float] | None) -> float | None:
    return None if not ends or None in map(number, ends) else (ends[1] - ends[0]) / 2
