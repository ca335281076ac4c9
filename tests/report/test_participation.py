"""Participation, diagnostics and caveats of a run, as its page shows them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from report_runs import Page, change, check, write_run
from shepherd.report import write_report
from shepherd.report.load import load_run
from shepherd.report.sections.alerts import alerts as caveats_of


def page(run, **options) -> Page:
    return Page(write_report(run, **options))


def test_late_ignored_and_quarantined_clients_and_skipped_rounds_are_named(tmp_path):
    run = write_run(tmp_path / "demo", rounds=3)
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    first, second = lines[0]["cohort"][:2]
    lines[0] |= {"late": [first], "ignored": [{"client": second, "code": "duplicate", "detail": "has answered"}]}
    lines[2] |= {"skipped": True, "quarantined": [second], "weights": {}, "train_loss": {}, "update_norm": {}}
    lines[2] |= {"steps": {}, "examples": {}, "tokens": {}, "bytes_up": 0}
    (run / "rounds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    parsed = page(run)
    check(parsed)
    for text in ("1 late", "after the deadline, or after enough others", "duplicate", "not sampled from here on",
                 "so the model is unchanged in round 3."):  # fmt: skip
        assert text in parsed.text, text


def test_the_diagnostics_of_each_round_are_drawn_and_a_skipped_round_leaves_a_gap(tmp_path):
    run = write_run(tmp_path / "demo", rounds=4)
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    lines[1] |= {"skipped": True, "diagnostics": {}, "deviation": 0.0, "update_norm": {}}
    lines[3]["diagnostics"] |= {"cosine_mean": None, "cosine_min": None}  # one client alone
    (run / "rounds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    parsed = page(run)
    check(parsed)
    for text in ("Diagnostics", "Effective rank", "Skipped rounds leave a gap: 2.", "over 60 modules"):
        assert text in parsed.text, text
    assert "<desc>deviation ends at 0.120</desc>" in parsed.source.replace(".</desc>", "</desc>")
    gap = parsed.source.split("<title>Deviation per round</title>")[1].split("</svg>")[0]
    assert gap.count("<circle") == 4, "three rounds and the mark of the name"
    assert gap.count("<polyline") == 2, "two pieces"


def test_a_run_from_before_the_diagnostics_shows_what_it_has(tmp_path):
    run = write_run(tmp_path / "demo", diagnostics=False)
    config = (run / "config.toml").read_text()
    config = re.sub(r"\[(selection|server|method)\]\n(.+\n)*", "", config)
    config = config.replace('method = "fedit"', 'selection = "uniform"\naggregation = "fedit"')
    (run / "config.toml").write_text(config)
    parsed = page(run)
    check(parsed)
    assert "method fedit" in parsed.text
    assert "selection uniform" in parsed.text
    assert "Personal models" not in parsed.text
    assert "Norm of the increments" in parsed.text
    assert "Effective rank" not in parsed.text
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    bare = [{"round": line["round"], "cohort": line["cohort"]} for line in lines]
    (run / "rounds.jsonl").write_text("\n".join(map(json.dumps, bare)))
    parsed = page(run)
    check(parsed)
    assert "No diagnostics were recorded" in parsed.text


def test_a_client_that_is_sampled_once_is_sampled_1_time(tmp_path):
    assert "each client was sampled 1 time in 1 round." in page(write_run(tmp_path / "demo", rounds=1)).text


def test_participation_counts_samplings_codes_and_rounds_without_a_cohort(tmp_path):
    run = write_run(tmp_path / "demo", rounds=3, overrides=("selection.name=poisson",))
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    lines[2] |= {"cohort": [], "skipped": True, "weights": {}, "diagnostics": {}}
    lines[0]["cohort"] = lines[0]["cohort"][1:]
    lines[0]["rejected"] = [{"client": lines[0]["cohort"][0], "code": "non-finite", "detail": ""}]
    (run / "rounds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    parsed = page(run)
    check(parsed)
    for text in (
        "With the selection poisson each client was sampled 1 to 2 times in 3 rounds.",
        "Updates that did not count, by code",
        "No client was sampled, so the model is unchanged in round 3.",
        "non-finite rejected 2 1 client-001",
    ):
        assert text in parsed.text, text


def alerts(parsed):
    text = parsed.text
    return text[text.index("Read with this in mind") :][:600] if "Read with this in mind" in text else ""


def test_who_reads_the_first_page_alone_learns_what_was_not_as_it_should_be(tmp_path):
    assert not alerts(page(write_run(tmp_path / "calm", clients=3, rounds=2)))
    run = write_run(tmp_path / "run", clients=5, rounds=3)  # the second of three rounds has one missing, one rejected
    change(run / "summary.json", lambda s: s.update(forced=["torch"], failed=[{"client": "x", "detail": "NaN"}]))
    change(run / "evaluation" / "metrics.json", lambda m: m["arms"]["centralised"].update(loss=float("nan")))
    caveats = alerts(page(run))
    assert "resumed with --force" in caveats
    assert "2 updates of 15 did not count" in caveats
    assert "Training alone failed for 1 client," in caveats
    assert "No finite held-out loss was measured for: Centralised." in caveats


def test_losses_that_sites_keep_back_are_explained_by_both_settings(tmp_path):
    run = write_run(tmp_path / "run", clients=2, rounds=1)
    change(run / "evaluation" / "metrics.json", lambda m: m["arms"]["federated"].update(loss=None))
    record = load_run(run)
    data = {"source": "sites:rows", "held_out_per_category": 4}
    (found,) = [line for line in caveats_of(replace(record, config={"data": data})) if "No finite" in line]
    assert "at least policy.least_group held-out rows, 10 in a new site.toml" in found
    assert found.endswith("at most data.held_out_per_category = 4.")
    for other in ({"held_out_source": "rows"}, {"source": "rows.jsonl"}, {"held_out_per_category": 0}):
        assert not any("least_group" in line for line in caveats_of(replace(record, config={"data": data | other})))


def test_updates_that_were_clipped_are_counted(tmp_path):
    run = write_run(tmp_path / "demo", rounds=3)
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    counted = sum(len(line["weights"]) for line in lines)
    assert "clipped" not in page(run).text
    for line, clipped in zip(lines, (0, 2, 1), strict=True):
        line |= {"clipped": clipped, "clip_norm": 0.25}
    (run / "rounds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = (run / "config.toml").read_text()
    for value, words in (("0.25", "an L2 norm of 0.250"), ('"median"', "the median norm of the round before")):
        changed = config.replace("[federation]\n", f"[federation]\nclip_update_norm = {value}\n")
        (run / "config.toml").write_text(changed)
        assert f"3 of {counted} updates that count were clipped to {words}." in page(run).text
