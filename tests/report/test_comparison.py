"""Several runs side by side."""

from __future__ import annotations

import math
import re

import pytest
from rich.cells import cell_len

from report_runs import HOSTILE, Page, change, check, write_run
from shepherd.errors import DataError
from shepherd.report.comparison.page import compare
from shepherd.report.comparison.ranking import ranking


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


def rivals(tmp_path, ours, theirs):
    """The verdict on two sets of settings whose federated losses are given by seed."""
    a = seeds(tmp_path / "a", ours)
    b = seeds(tmp_path / "b", theirs, overrides=("lora.r=16",))
    return compare([*a, *b])


def test_a_lead_over_all_seeds_is_distinguished_from_one_that_is_not(tmp_path):
    # differences −0.19, −0.20, −0.21: mean −0.2, s = 0.01, s / √3 = 0.00577, t(2) = 4.303, so ± 0.0248
    steady = rivals(tmp_path / "steady", [2.00, 2.10, 2.20], [2.19, 2.30, 2.41])
    assert "Lowest federated loss: seed-0 and 2 more seeds, 2.100" in steady.verdict[0]
    assert "better than seed-0 and 2 more seeds (2): −0.200, 95\xa0% interval −0.225 to −0.175" in steady.verdict[1]
    # differences −0.1, −0.2, −0.3: the same mean, s = 0.1, so ± 0.248
    loose = rivals(tmp_path / "loose", [2.00, 2.10, 2.20], [2.10, 2.30, 2.50])
    assert "not distinguishable from" in loose.verdict[1]
    assert "−0.448 to +0.048" in loose.verdict[1]
    assert loose.verdict[1] in loose.to_text()
    assert loose.verdict[1] in Page(loose.write_html(tmp_path / "c.html")).text.replace(" %", "\xa0%")


def test_one_seed_decides_nothing_and_other_seeds_or_rows_are_not_compared(tmp_path):
    one = rivals(tmp_path / "one", [2.0], [2.5])
    assert "−0.500 with the one seed in common" in one.verdict[1]
    assert "inconclusive" in one.verdict[1]
    runs = [*seeds(tmp_path / "x", [2.0]), *seeds(tmp_path / "y", [2.5], overrides=("lora.r=16",))]
    change(runs[1] / "partition.json", lambda p: p["held_out"].pop())
    found = compare(runs)
    assert found.verdict[0] == "No setting can be ranked the lowest."
    assert "same held-out rows: seed-0, seed-0 (2)." in found.verdict[1]
    assert "Lowest" not in found.to_text()
    assert compare(runs[:1]).verdict == ()


def test_no_setting_wins_on_other_rows_or_by_seeds_that_the_others_lack():
    a, b, c = {1: 2.0, 2: 2.2, 3: 1.0}, {1: 2.1, 2: 2.4}, {9: 0.5}
    found = ranking([("a", a), ("b", b), ("c", c)])
    # Over seeds 1 and 2: a (2.0 + 2.2) / 2 = 2.1, b 2.25; c was measured on other rows and leads nobody.
    assert found[0] == "Among a, b: Lowest federated loss over 2 shared seeds: a, 2.100 nats per token."
    assert "not distinguishable from b: −0.150" in found[1]
    assert found[2].endswith("on the same held-out rows: c.")
    assert ranking([("a", {1: 2.0}), ("c", c)])[0] == "No setting can be ranked the lowest."


def test_settings_of_one_loss_are_equal_and_none_of_them_is_the_lowest():
    same = {(seed, "m", "rows"): 2.0 + seed / 10 for seed in (0, 1)}
    assert ranking([("a", same), ("b", dict(same))]) == [
        "The federated losses of a, b are equal, 2.050 nats per token."
    ]


def test_the_same_lead_with_every_seed_has_no_interval():
    found = ranking([("a", {1: 2.0, 2: 2.2}), ("b", {1: 2.1, 2: 2.3})])
    assert (
        found[1] == "Against b the difference is −0.100 with every seed (paired over 2 seeds), so there is no interval."
    )


def test_rows_are_the_same_by_their_contents_and_losses_only_over_the_same_tokens(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", overrides=("lora.r=16",))
    change(b / "partition.json", lambda p: p.update(dataset_digest="0" * 64))  # other training rows
    assert not {"Lowest", "are equal"} & set(re.findall("Lowest|are equal", compare([a, b]).to_text()))
    for run in (a, b):
        (run / "identity.json").write_text('{"held_out": "5f"}')
    same = compare([a, b])
    assert "are equal" in same.to_text()
    assert not any("held-out rows" in text for text in same.warnings)
    change(b / "evaluation/metrics.json", lambda m: m.update(held_out_tokens=7))
    cut = compare([a, b])
    assert not cut.verdict or "are equal" not in cut.to_text()
    assert "Lowest" not in cut.to_text()
    assert any("not on the same tokens" in text for text in cut.warnings)


def test_a_lead_is_held_against_eight_settings_and_the_rest_are_counted():
    found = ranking([(f"settings {n}", {("seed 0",): float(n)}) for n in range(10)])
    assert len(found) == 1 + 8 + 1
    assert found[0].startswith("Lowest federated loss: settings 0")
    assert found[-1] == "The table lists 1 further setting."


def test_an_unfinished_run_leads_nobody(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", overrides=("lora.r=16",), rounds=9, finished=False)]
    assert compare(runs).verdict == ()


def test_settings_with_several_seeds_are_drawn_as_their_mean(tmp_path):
    comparison = rivals(tmp_path, [2.0, 2.1], [2.2, 2.4])
    one, other = (dict(row.curve) for row in comparison.rows[:2])
    assert dict(comparison.groups[0].curve) == pytest.approx({x: (one[x] + other[x]) / 2 for x in one})
    text = Page(comparison.write_html(tmp_path / "c.html")).text
    assert "mean over seeds" in text
    assert "seed-0 and 1 more seed (2)" in text
    named = re.findall(r"<title>(seed[^<]*), round 0: ", (tmp_path / "c.html").read_text(encoding="utf-8"))
    assert named == ["seed-0 and 1 more seed", "seed-0 and 1 more seed (2)"]


def test_a_seed_that_occurs_twice_is_counted_once_and_that_is_said(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("first", "again")]
    comparison = compare(runs)
    (group,) = comparison.groups
    assert group.seeds == (0,)
    assert group.losses["federated"][1] is None
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
    assert any("b is unfinished" in text for text in comparison.warnings)
    assert "unfinished" in comparison.to_text()


def test_the_text_has_one_line_per_run_and_no_escape_codes(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", overrides=('data.source="\\u001b[31mx"',))]
    text = compare(runs).to_text()
    assert "\x1b" not in text
    lines = text.splitlines()
    assert sum(line.startswith("a ") for line in lines) == 3
    assert "data.source" in text
    for arm in ("Base", "Mean alone", "Federated", "Centralised", "22.1 MB", "55.4 s"):
        assert arm in text


def test_the_columns_of_the_text_stand_under_each_other_in_every_script(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("医院-東京", "mu\u0308nchen", "x" * 200)]
    block = compare(runs).to_text().split("\n\n")[3].splitlines()  # the losses of each run
    assert len({cell_len(line) for line in block[1:5]}) == 1  # rich measures as a terminal does
    assert len(block[-2]) <= 120
    assert "…" in block[-2]


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
    assert "<b onclick=x>" in parsed.text
    assert HOSTILE[0] in parsed.text
    assert len(parsed.having("svg")) == 2


def test_more_runs_than_colours_are_all_in_the_table(tmp_path):
    runs = [write_run(tmp_path / f"run-{i}", overrides=(f"lora.r={i + 1}",)) for i in range(9)]
    parsed = Page(compare(runs).write_html(tmp_path / "compare.html"))
    check(parsed)
    assert "The first 7 of 9 runs are drawn" in parsed.text
    assert len(set(re.findall(r"run-\d", parsed.text))) == 9


def test_runs_of_the_same_name_get_different_names(tmp_path):
    runs = [write_run(tmp_path / "x" / "demo"), write_run(tmp_path / "y" / "demo", seed=1)]
    assert "demo (2)" in compare(runs).to_text()


def test_nothing_to_compare_is_an_error_that_says_how_to_ask():
    with pytest.raises(DataError) as caught:
        compare([])
    assert "shepherd compare" in caught.value.hint
