r"""A LaTeX table with booktabs rules: texts, and measured values with ± and a mark of their verdict.

    latex.table(("Pair", "Difference"), [("a, b", Measured(-0.106, 0.434))], caption="…", label="tab:judge")

The table needs \usepackage{booktabs}; names that are not Latin need a font that has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shepherd.report.wording import ABSENT, MINUS, clean, digits, number, signed

MARKS: Mapping[str, tuple[str, str]] = {
    "higher": (r"\uparrow", "higher"),
    "lower": (r"\downarrow", "lower"),
    "equal within the margin": (r"\approx", "equal within the margin"),
    "not distinguishable": ("", ""),
    "no interval": (r"\circ", "no interval"),
    "judge not fit": (r"\times", "no verdict, as the judge is not fit"),
}
"""Verdict -> the sign in mathematics that marks a value, and its meaning below the table; no sign, no meaning."""
LEVEL = r"after Holm's adjustment, at 5\,\%"
_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
        "|": r"\textbar{}", '"': r"\textquotedbl{}", "\n": " ", "\t": " ", MINUS: "$-$", "±": r"$\pm$",
        "\N{NO-BREAK SPACE}": "~", "…": r"\dots{}", "–": "--", "—": "---", "×": r"$\times$", "λ": r"$\lambda$",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A value of a table.

    spread: the number after ±, such as the half width of a 95 % interval; the caption has to name which. verdict: a key
    of `MARKS`, or none. best: set in bold. signs: a positive value has its plus.
    """

    value: float | None
    spread: float | None = None
    verdict: str = ""
    best: bool = False
    places: int = 3
    signs: bool = False


Cell = str | Measured


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    caption: str,
    label: str,
    notes: Sequence[str] = (),
    groups: Sequence[tuple[str, int]] = (),
    rules: Sequence[int] = (),
) -> str:
    r"""The lines of a table environment.

    Columns of `Measured` cells are aligned right, others left. groups: headings over several columns as (text, number
    of columns), which together have all columns. rules: numbers of rows, from 0, with a \midrule above. notes: below
    the table, before the meanings of the marks in use. ValueError: a row or the groups have another number of columns.
    """
    if any(len(row) != len(columns) for row in rows) or (groups and sum(n for _, n in groups) != len(columns)):
        raise ValueError(f"rows and groups of a table have its {len(columns)} columns")
    right = [bool(rows) and all(isinstance(row[i], Measured) for row in rows) for i in range(len(columns))]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(caption)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{{''.join('r' if each else 'l' for each in right)}}}",
        r"\toprule",
        *_over(groups),
        _line([escaped(column) for column in columns]),
        r"\midrule",
    ]
    for place, row in enumerate(rows):
        if place in rules and place:
            lines.append(r"\midrule")
        lines.append(_line([_measured(cell) if isinstance(cell, Measured) else escaped(cell) for cell in row]))
    lines += [r"\bottomrule", r"\end{tabular}"]
    below = [*map(escaped, notes), *_meanings(rows)]
    if below:
        lines += [r"\par\medskip", rf"{{\footnotesize {' '.join(below)}\par}}"]
    return "\n".join([*lines, r"\end{table}", ""])


def escaped(text: Any) -> str:
    """A text on one line in which no character has a meaning for LaTeX."""
    return clean(str(text)).translate(_ESCAPES)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _over(groups: Sequence[tuple[str, int]]) -> list[str]:
    if not groups:
        return []
    cells, rules, first = [], [], 1
    for text, columns in groups:
        cells.append(rf"\multicolumn{{{columns}}}{{c}}{{{escaped(text)}}}")
        if text:
            rules.append(rf"\cmidrule(lr){{{first}-{first + columns - 1}}}")
        first += columns
    return [_line(cells), " ".join(rules)]


def _measured(cell: Measured) -> str:
    if number(cell.value) is None:
        return ABSENT
    write = signed if cell.signs else digits
    text = write(cell.value, cell.places).replace(MINUS, "-").replace(",", "{,}")
    if cell.best:
        text = rf"\mathbf{{{text}}}"
    if number(cell.spread) is not None:
        text += rf" \pm {digits(cell.spread, cell.places).replace(',', '{,}')}"
    mark = MARKS[cell.verdict][0] if cell.verdict else ""
    return f"${text}^{{{mark}}}$" if mark else f"${text}$"


def _meanings(rows: Sequence[Sequence[Cell]]) -> list[str]:
    used = {cell.verdict for row in rows for cell in row if isinstance(cell, Measured) and cell.verdict}
    meanings = [rf"${sign}$ {meaning}" for verdict, (sign, meaning) in MARKS.items() if verdict in used and sign]
    if not used:
        return []
    unmarked = ["no mark: not distinguishable"] if "not distinguishable" in used else []
    text = ", ".join([*meanings, *unmarked])
    return [f"{text[0].upper() if text[0] != '$' else '$'}{text[1:]} ({LEVEL})."]
