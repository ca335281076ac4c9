"""Several runs side by side."""

from __future__ import annotations

import math
import re

import pytest

from report_runs import Page, change, write_run
from shepherd.errors import DataError
from shepherd.report import compare
from test_report_html import HOSTILE, check


def seeds(tmp_path, losses, **options):
    """One run per seed; the federated loss of seed i is `losses[i]`."""
    runs = []
    for seed, loss in enumerate(losses):
        run = write_run(tmp_path / f"seed-{seed}", seed=seed, **options)
        change(run / "evaluation/metrics.json", lambda m, loss=loss: m["arms"]["federated"].update(loss=loss))
        runs.append(run)
    return runs


def test_runs_that_differ_in_the_seed_only_are_one_group_with_mean_and_standard_error(tmp_path):
    comparison = compare(seeds(tmp_path, [2.0, 2.1, 2.3]))
    (group,) = comparison.groups
    assert group.seeds == (0, 1, 2)
    mean, error = group.losses["federated"]
    # mean = 6.4 / 3; deviations −0.1333, −0.0333, 0.1667; s² = 0.04667 / 2; s / √3 = 0.08819
    assert mean == pytest.approx(6.4 / 3)
    assert error == pytest.approx(math.sqrt(0.046667 / 2 / 3), rel=1e-4)
    assert "2.133 ± 0.088" in comparison.to_text()


def test_runs_that_differ_in_a_setting_are_two_groups_without_standard_error(tmp_path):
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", overrides=("lora.r=16",))
    comparison = compare([a, b])
    assert [group.runs for group in comparison.groups] == [("a",), ("b",)]
    assert all(error is None for group in comparison.groups for _, error in group.losses.values())
    assert comparison.differing == {"lora.r": ("8", "16")}


def test_a_seed_that_occurs_twice_is_counted_once_and_that_is_said(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("first", "again")]
    comparison = compare(runs)
    (group,) = comparison.groups
    assert group.seeds == (0,) and group.losses["federated"][1] is None
    assert any("again has the settings and the seed of first" in text for text in comparison.warnings)


def test_runs_measured_on_different_rows_carry_a_warning(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert not any("held-out rows" in text for text in compare([a, b]).warnings)
    change(b / "partition.json", lambda p: p["held_out"].pop())
    assert any("not all measured on the same held-out rows" in text for text in compare([a, b]).warnings)


def test_an_unfinished_run_is_compared_as_far_as_it_is_and_never_averaged_with_finished_ones(tmp_path):
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", seed=1, finished=False)
    comparison = compare([a, b])
    assert len(comparison.groups) == 2
    assert comparison.rows[1].losses["federated"] is not None
    assert any("b has not ended" in text for text in comparison.warnings)
    assert "unfinished" in comparison.to_text()


def test_the_text_has_one_line_per_run_and_no_escape_codes(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", overrides=('data.source="\\u001b[31mx"',))]
    text = compare(runs).to_text()
    assert "\x1b" not in text
    lines = text.splitlines()
    assert sum(line.startswith("a ") for line in lines) == 3 and "data.source" in text
    for arm in ("Base", "Mean alone", "Federated", "Centralised", "22.1 MB", "55.4 s"):
        assert arm in text


def test_the_star_stands_only_where_the_interval_leaves_out_zero(tmp_path):
    run = write_run(tmp_path / "a")
    change(run / "evaluation/metrics.json", lambda m: m["differences"][0].update(difference=-0.3, ci95=[-0.4, -0.2]))
    assert "−0.300*" in compare([run]).to_text()
    change(run / "evaluation/metrics.json", lambda m: m["differences"][0].update(ci95=[-0.7, 0.1]))
    assert "−0.300 " in compare([run]).to_text()


def test_the_page_of_a_comparison_is_whole_and_escapes_what_it_shows(tmp_path):
    runs = seeds(tmp_path, [2.0, 2.1])
    runs.append(write_run(tmp_path / "<b onclick=x>", overrides=("data.source=" + HOSTILE[4],)))
    for run in runs[2:]:
        change(run / "summary.json", lambda s: s["model"].update(name=HOSTILE[0]))
    parsed = Page(compare(runs).write_html(tmp_path / "compare.html"))
    check(parsed)
    assert "<b onclick=x>" in parsed.text and HOSTILE[0] in parsed.text
    assert len(parsed.having("svg")) == 2


def test_more_runs_than_colours_are_all_in_the_table(tmp_path):
    runs = [write_run(tmp_path / f"run-{i}", overrides=(f"lora.r={i + 1}",)) for i in range(9)]
    parsed = Page(compare(runs).write_html(tmp_path / "compare.html"))
    check(parsed)
    assert "The first 7 of 9 runs are drawn" in parsed.text
    assert len(set(re.findall(r"run-\d", parsed.text))) == 9


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / "x" / "demo"), write_run(tmp_path / "y" / "demo", seed=1)]
    assert "demo (2)" in compare(runs).to_text()


def test_nothing_to_compare_is_an_error_that_says_how_to_ask():
    with pytest.raises(DataError) as caught:
        compare([])
    assert "shepherd compare" in caught.value.hint
