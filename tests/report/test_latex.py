"""LaTeX tables: rules of booktabs, ± and marks, and texts without a meaning for LaTeX."""

from __future__ import annotations

import re

import pytest

from shepherd.report import latex
from shepherd.report.latex import Measured

ROWS = [
    ("base", Measured(2.6934, 0.0123, best=True), Measured(None)),
    ("R&D_1", Measured(1234.5, places=1), Measured(-0.1062, 0.4339, "lower", signs=True)),
    ("50 % ^", Measured(0.0), Measured(0.25, 0.1, "not distinguishable", places=2, signs=True)),
]


def made(**more) -> str:
    return latex.table(("Arm", "Loss", "Difference"), ROWS, caption="Loss, mean ± 95 %", label="tab:x", **more)


def test_a_table_has_the_rules_of_booktabs_and_one_line_per_row():
    lines = made(rules=[0, 2]).splitlines()
    assert lines[0] == r"% needs \usepackage{booktabs}" and lines[1] == r"\begin{table}"
    assert lines[3:6] == [r"\caption{Loss, mean $\pm$ 95 \%}", r"\label{tab:x}", r"\begin{tabular}{lrr}"]
    body = lines[lines.index(r"\toprule") : lines.index(r"\bottomrule")]
    assert body == [
        r"\toprule",
        r"Arm & Loss & Difference \\",
        r"\midrule",
        r"base & $\mathbf{2.693} \pm 0.012$ & n/a \\",
        r"R\&D\_1 & $1{,}234.5$ & $-0.106 \pm 0.434^{\downarrow}$ \\",
        r"\midrule",
        r"50 \% \textasciicircum{} & $0.000$ & $+0.25 \pm 0.10$ \\",
    ]


def test_only_marks_in_use_are_explained_below_the_notes():
    text = made(notes=["Over 80 questions."])
    assert r"{\footnotesize Over 80 questions. $\downarrow$ lower, no mark: not distinguishable (after Holm" in text
    plain = latex.table(("a",), [(Measured(1.0),)], caption="c", label="l")
    assert "footnotesize" not in plain
    alone = latex.table(("a",), [(Measured(1.0, verdict="not distinguishable"),)], caption="c", label="l")
    assert r"{\footnotesize No mark: not distinguishable (" in alone


def test_headings_over_columns_have_their_rules():
    lines = made(groups=[("", 1), ("Held out", 2)]).splitlines()
    at = lines.index(r"\toprule")
    assert lines[at + 1] == r"\multicolumn{1}{c}{} & \multicolumn{2}{c}{Held out} \\"
    assert lines[at + 2] == r"\cmidrule(lr){2-3}"


def test_rows_and_groups_of_another_width_are_refused():
    with pytest.raises(ValueError, match="3 columns"):
        made(groups=[("one", 2)])
    with pytest.raises(ValueError, match="1 columns"):
        latex.table(("a",), [("b", "c")], caption="", label="")


def test_no_character_of_a_text_keeps_its_meaning():
    hostile = "\\input{x} $y$ 100% a_b^c ~ # & <|> \x1b[31m\nend"
    shown = latex.escaped(hostile)
    assert "\n" not in shown and "\x1b" not in shown
    left = re.sub(r"\\text[a-z]+\{\}|\\[{}$&#%_]", "", shown)
    assert not set(left) & set("\\{}$&#%_~^<>|")


def test_every_verdict_of_a_comparison_has_a_mark():
    from typing import get_args

    from shepherd.evaluation.judge.statistics import Judged
    from shepherd.evaluation.judge.summary import UNFIT

    assert set(latex.MARKS) == {*get_args(Judged), UNFIT}
