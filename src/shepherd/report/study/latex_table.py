"""study.tex: the comparisons of a study as a LaTeX table."""

from __future__ import annotations

from shepherd.report import latex
from shepherd.report.study.words import PLACES, Document, comparison_text, p_text, title


def latex_table(found: Document) -> str:
    """The comparisons with the half width of their 95 % intervals, and a mark of each verdict."""
    rows: list[list[latex.Cell]] = []
    for entry in found["comparisons"]:
        name = comparison_text(entry, found["reference"])
        if entry["reason"]:
            rows.append([name, "0", latex.Measured(None), "", ""])
            continue
        ends = entry["ci95"]
        half = (ends[1] - ends[0]) / 2 if ends else None
        value = latex.Measured(entry["difference"], half, entry["verdict"], places=PLACES, signs=True)
        margin = f"{entry['margin']:g}" if entry["margin"] is not None else ""
        rows.append([name, str(len(entry["seeds"])), value, p_text(entry["holm_p"]), margin])
    return latex.table(
        ("First minus second", "Seeds", "Difference", "Holm p", "Margin"),
        rows,
        caption=f"{title(found)}. Differences in held-out loss, nats per response token, ± half of the 95 % interval; "
        "below 0 the first is better.",
        label="tab:study",
        notes=[f"p adjusted by Holm over {found['family']}."],
    )
