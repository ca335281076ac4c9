"""The view of a site: one line for what is asked, done and sent; the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from shepherd.cli.site_view import SiteView

RUN = "0123456789abcdef"
OFFER = {
    "event": "offer",
    "run": RUN,
    "round": 0,
    "attempt": 1,
    "bytes_in": 900,
    "bytes_out": 400,
    "verdict": "approval",
}
STEP = {"event": "progress", "run": RUN, "round": 3, "step": 4, "steps": 16, "loss": 2.345}
TRAINED = {**OFFER, "event": "train", "round": 3, "bytes_out": 2_000_000, "verdict": ""}
EVENTS = [
    {"event": "waiting", "code": "unreachable", "why": "nobody listens at lab:7100"},
    {"event": "connected"}, OFFER, OFFER, {**OFFER, "verdict": "declined"}, {**OFFER, "verdict": "admitted"},
    STEP, {**STEP, "step": 5}, TRAINED, {**TRAINED, "event": "measure", "verdict": "few-held-out", "bytes_out": 300},
    {"event": "bye", "run": RUN, "round": 3, "bytes_in": 90, "bytes_out": 0, "verdict": ""},
    {"event": "lost", "why": "…"},
]  # fmt: skip


def test_each_event_has_at_most_one_line_and_what_was_sent_is_summed(capsys):
    view = SiteView(Path("sites/a"))
    for event in EVENTS:
        view(event)
    view.close()
    assert capsys.readouterr().err.replace("\N{NO-BREAK SPACE}", " ").splitlines() == [
        "waiting: nobody listens at lab:7100",
        "connected to the coordinator; waiting for a run",
        "run 0123456789ab waits for you: shepherd site approve 0123456789ab",
        "run 0123456789ab: this site does not take part: a person at the site has declined the card",
        "run 0123456789ab: this site takes part",
        "round 3: step 4/16, loss 2.345",
        "round 3: trained; sent 2.00 MB",
        "round 3: the site has fewer held-out rows than its policy shows; sent 300 B",
        "run 0123456789ab is over: 2.00 MB sent in 6 messages",
        "the coordinator is not reached; trying again",
        "sent in all: 2.00 MB in 6 messages; each has a line in sites/a/audit.jsonl",
    ]


def test_with_json_each_event_is_a_line_on_stdout(capsys):
    view = SiteView(Path("sites/a"), as_json=True)
    for event in EVENTS:
        view(event)
    view.close()
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == EVENTS and err == ""


def test_what_became_of_the_rows_is_shown_to_the_operator(capsys):
    view = SiteView(Path("sites/a"))
    notes = ["1 row refused: empty answer (first: a:3)", "2 rows cut to data.max_length, 90 tokens in all"]
    view({"event": "rows", "run": RUN, "trained_on": 26, "held_out": 4, "notes": notes})
    view({"event": "rows", "run": RUN, "error": "rows.jsonl: not readable", "hint": "restore it"})
    assert capsys.readouterr().err.splitlines() == [
        "26 rows of this site trained on, 4 held out", *(f"  {note}" for note in notes),
        "the rows cannot be used: rows.jsonl: not readable (restore it)",
    ]  # fmt: skip
