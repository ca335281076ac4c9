"""The history of a run over sites from lines of a journal, and of a site from its own log."""

from __future__ import annotations

import json

import pytest

from shepherd.outcomes import VERDICTS
from shepherd.report.page import Limits
from shepherd.report.sites import tables
from shepherd.report.sites.history import history, read_history
from shepherd.report.sites.section import sentences
from shepherd.report.sites.site_log import OFFERS, OWN_MODEL, read_site_log
from shepherd.report.sites.site_page import site_text

FACTS = {"session": "0" * 32, "rows": 40, "digest": "ab" * 32}


def line(event, at=0.0, **about):
    return {"at": at, "what": "sites", "event": event, **about}


def admitted(*names):
    for name in names:
        yield line("connection", client=name, present=True)
        yield line("site", client=name, state="offered")
        yield line("site", client=name, state="admitted", **FACTS)


def trained(number, attempt, *names):
    yield line("eligible", round=number, clients=list(names))
    yield line("run", state="round", round=number)
    yield line("attempt", attempt=attempt, round=number, clients=list(names), **{"for": "train"})
    for name in names:
        yield line("site", client=name, state="working", round=number, attempt=attempt, end=8)


def test_a_pause_has_its_round_its_length_and_whom_it_waited_for():
    lines = [
        line("run", 1.0, state="drafted"), line("run", 2.0, state="open"), *admitted("a", "b", "c"),
        *trained(1, 1, "a", "b", "c"), *(line("site", client=n, state="answered", round=1) for n in "abc"),
        line("connection", client="b", present=False), line("site", client="c", state="removed"),
        line("run", 10.0, state="paused", round=1),
    ]  # fmt: skip
    found = history(lines)
    assert found["pauses"] == [{"round": 2, "from": 10.0, "until": None, "missing": ["b"]}]
    assert any("it waits for b." in text for text in sentences(found)) and "c was removed." in sentences(found)
    found = history([*lines, line("connection", client="b", present=True), *trained(2, 2, "a", "b")])
    assert found["pauses"][0]["until"] == 0.0 and found["sites"]["c"]["rounds"] == {"1": "trained", "2": "removed"}
    assert found["sites"]["a"]["rounds"]["2"] == "working", "no answer so far"
    table = tables.pauses_table([{**found["pauses"][0], "until": 100.0}], Limits())
    assert [row[2:] for row in table.rows] == [["1 min 30 s", "b"]]


@pytest.mark.parametrize(
    ("ends", "outcome", "reason"),
    [
        ([("late", "")], "late", "connected, and without an answer at the deadline"),
        ([("lost", "hang")], "lost", "no step for as long as the coordinator waits for one"),
        ([("lost", "window")], "lost", VERDICTS["window"]),
        ([("failed", "error:ValueError")], "failed", "its training raised ValueError"),
        ([("rejected", "damaged")], "rejected", "its answer could not be used: damaged"),
        ([("rejected", "damaged"), ("answered", "")], "trained", ""),
        ([("answered", ""), ("rejected", "")], "rejected", ""),
    ],
)
def test_the_last_line_of_a_site_in_a_round_is_its_outcome(ends, outcome, reason):
    lines = [*admitted("a"), *trained(1, 1, "a")]
    lines += [line("site", client="a", state=state, round=1, **({"reason": why} if why else {})) for state, why in ends]
    site = history(lines)["sites"]["a"]
    assert site["rounds"] == {"1": outcome} and tables.why(outcome, site["reasons"].get("1", "")) == reason


def test_a_site_that_was_sampled_and_is_not_back_is_lost_and_one_that_comes_later_was_absent():
    lines = [*admitted("a", "b"), *trained(1, 1, "a", "b"), line("ignored", client="b", reason="unreached", round=1),
             line("ignored", client="a", reason="lease", round=1), *admitted("d")]  # fmt: skip
    sites = history(lines)["sites"]
    assert sites["b"]["rounds"] == {"1": "lost"} and sites["d"]["rounds"] == {"1": "absent"}
    assert sites["a"]["ignored"] == {"lease": 1}
    table = tables.ignored_table(sites, Limits())
    assert table.rows == [("a", "a message of a process that does not hold the site's lease", "1")]


def test_bytes_are_those_of_all_attempts_and_seconds_those_of_the_training(tmp_path):
    lines = [*admitted("a"), line("attempt", attempt=1, round=0, clients=["a"], **{"for": "offer"}),
             line("exchanged", attempt=1, down={"a": 10}, up={"a": 5}, seconds={"a": 0.1}), *trained(1, 2, "a"),
             line("exchanged", attempt=2, down={"a": 100}, up={"a": 60}, seconds={"a": 7.5}),
             line("attempt", attempt=3, round=1, clients=["a"], **{"for": "measure"}),
             line("exchanged", attempt=3, down={"a": 90}, up={}, seconds={})]  # fmt: skip
    site = history(lines)["sites"]["a"]
    assert (site["bytes_up"], site["bytes_down"], site["seconds"]) == (65, 200, {"1": 7.5})
    assert site["by_round"] == {"0": [5, 10], "1": [60, 190]}
    text = "\n".join(map(json.dumps, lines)) + '\n{"at": 1, "what": "sites"}\nnull\n[]\n{"what": "sites", "ev'
    (tmp_path / "journal.jsonl").write_text(text)
    assert read_history(tmp_path) == history(lines), "what is no line of a federation is left out"
    assert read_history(tmp_path / "nowhere") == {} == history([{"at": 1.0, "what": "started"}])


def test_rounds_in_short():
    assert tables.spans([1, 2, 3, 5, 8, 9]) == "1–3, 5, 8–9"


def test_the_log_of_a_site_is_read_by_run_and_round_and_a_broken_line_is_left_out(tmp_path):
    run = tmp_path / "runs" / "r1"
    run.mkdir(parents=True)
    (run / "card.json").write_text(json.dumps({"name": "demo", "federation": {"method": "fedit", "rounds": 2}}))
    (run / "run.json").write_text(json.dumps({"card": "c1", "rows": 40, "digest": "d", "left": True}))
    (run / "decision.json").write_text(json.dumps({"card": "c1", "verdict": "admitted", "time": "2026-11-30T12:00:00"}))
    about = {"run": "r1", "time": "2026-11-30T12:00:01"}
    lines = [
        {**about, "event": "offer", "round": 0, "bytes_in": 9, "bytes_out": 4, "verdict": "approval"},
        {**about, "event": "train", "round": 1, "bytes_in": 90, "bytes_out": 50, "bytes_progress": 6, "loss": 2.5,
         "verdict": ""},
        {**about, "event": "measure", "round": 1, "bytes_in": 10, "bytes_out": 5, "of": "base", "loss": 3.0,
         "verdict": ""},
        {**about, "event": "measure", "round": 1, "bytes_in": 70, "bytes_out": 5, "of": "global", "loss": 2.0,
         "verdict": "few-held-out"},
        {**about, "event": "finish", "round": 2, "bytes_in": 80, "bytes_out": 5, "loss": 1.0, "verdict": ""},
        {**about, "event": "offer", "run": "another", "round": 0, "bytes_in": 7, "bytes_out": 3, "verdict": "base"},
        {**about, "event": "offer", "run": "third", "round": 0, "bytes_in": 1, "bytes_out": 2, "verdict": "rounds"},
        {**about, "event": "offer", "run": "another", "round": 0, "bytes_in": 7, "bytes_out": 3, "verdict": "method"},
        {"event": "unreadable", "verdict": "format"},
    ]  # fmt: skip
    log = tmp_path / "audit.jsonl"
    log.write_text("\n".join(map(json.dumps, lines)) + '\nnull\n{"event": "tr')
    found = read_site_log([run], log)
    about = found["runs"]["r1"]
    assert (about["bytes_in"], about["bytes_out"], about["state"], about["decision"]) == (259, 75, "left", "admitted")
    assert (about["base_loss"], about["own_loss"]) == (3.0, 1.0)
    assert about["rounds"].keys() == {OFFERS, "1", OWN_MODEL}
    first = about["rounds"]["1"]
    assert (first["train_loss"], first["loss"], first["bytes_out"], first["against"]) == (
        2.5,
        2.0,
        66,
        ["few-held-out"],
    )
    assert found["other"] == {"unreadable": 1}
    assert found["refused"]["another"] == {
        "verdicts": {"base": 1, "method": 1}, "bytes_in": 14, "bytes_out": 6, "last": "2026-11-30T12:00:01",
    }  # fmt: skip
    assert (
        "Refused, with no row read: another (the site has another base model, or its policy allows another one only; "
        "the policy does not allow the method, or it is none of the built-in ones), third (more rounds than the "
        "policy allows). 8 B left this site in the answers."
    ) in site_text(found, ())
    assert read_site_log([run], log, whole=False)["refused"] == {}
    alone = site_text(read_site_log([], log), ())
    assert alone.startswith("No folder of a run is here.") and "r1 (" not in alone
    assert "75 B left this site in runs whose folders are gone: r1." in alone and "Refused, with no row read" in alone
    log.write_text("\n".join(json.dumps(line) for line in lines if line.get("run") in ("another", "third")))
    assert site_text(read_site_log([], log), ()).startswith("This site has taken part in no run.")
    assert read_site_log([], tmp_path / "nowhere") == {"runs": {}, "refused": {}, "removed": {}, "other": {}}
    assert site_text(read_site_log([], tmp_path / "nowhere"), ()).startswith("No run was offered to this site.")
