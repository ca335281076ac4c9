"""The live table and the plain lines: the events of a run -> what a person sees."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from shepherd.cli import event_lines, live_table, progress

START = {
    "event": "start", "run": "runs/demo", "config": {}, "model": "tiny", "clients": ["a", "b"], "rounds": 3,
    "labels": {}, "arms": ["base", "federated"], "round": 0, "fraction": 0.0,
}  # fmt: skip
ROUND = {
    "event": "round", "round": 2, "cohort": ["a", "b"], "missing": [], "train_loss": {"a": 2.0, "b": 3.0},
    "rejected": [{"client": "b", "code": "non-finite", "detail": "3 values"}], "held_out_loss": 2.25,
    "bytes_up": 1000, "seconds": {"train": 3.0, "aggregate": 0.5},
}  # fmt: skip


def step(states: dict[str, str], **changes) -> dict:
    row = {"step": 2, "steps": 4, "loss": 2.31, "tokens": 812, "seen_tokens": 1200, "tokens_per_second": 150.4}
    rows = {name: {**row, "state": s} for name, s in states.items()}
    known = {"event": "step", "arm": "federated", "round": 1, "rounds": 3, "clients": rows}
    return {**known, "tokens_per_second": 412.0, "fraction": 0.37, "eta_seconds": 41.0, **changes}


def plain(text: str) -> str:
    """Numbers are held together with their units by spaces that do not break."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


def drawn(table: live_table.LiveTable, width: int = 100) -> list[str]:
    console = Console(width=width, height=40, file=io.StringIO())
    console.print(table.render())
    return [line.rstrip() for line in plain(console.file.getvalue()).splitlines()]


def screen(table: live_table.LiveTable) -> list[str]:
    """What is drawn but the third line, whose memory is never the same."""
    title, bar, _, *rows = drawn(table)
    return [title, bar, *rows]


@pytest.fixture
def table():
    live = live_table.LiveTable(Console(width=100, height=40, file=io.StringIO(), force_terminal=True))
    with live:
        yield live


def test_the_table_has_a_row_for_each_client_with_state_step_loss_and_speed(table):
    table(START)
    table(step({"a": "training", "b": "done"}))
    title, bar, head, first, second = screen(table)
    assert title == "demo  tiny  federated, round 1/3"
    assert "37 %" in bar and "41.0 s left" in bar and "412 tokens/s" in bar
    assert head.split() == ["client", "state", "step", "loss", "tokens/s"]
    assert first.split() == ["a", "training", "2/4", "2.310", "150"] and second.split()[:2] == ["b", "done"]


def test_clients_can_be_told_apart_on_a_narrow_terminal():
    console = Console(width=40, height=40, file=io.StringIO(), force_terminal=True)
    with live_table.LiveTable(console) as table:
        table(START)
        table(step({"client-000": "training", "client-001": "training"}))
        shown = Console(width=40, file=io.StringIO())
        shown.print(table.render())
    lines = plain(shown.file.getvalue()).splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["client-000", "client-001"]
    assert sum("37 %" in line and "left" in line for line in lines) == 1, (
        "the bar leaves room for what stands beside it"
    )


def test_a_client_has_a_row_from_the_moment_it_is_asked_to_the_end_of_the_round(table):
    waiting = {"step": 0, "steps": 0, "loss": None, "tokens": 0, "seen_tokens": 0, "tokens_per_second": None}
    cohort = {"event": "clients", "arm": "federated", "round": 1, "rounds": 3}
    table(START)
    table({**cohort, "clients": {c: {**waiting, "state": "waiting"} for c in "abc"}})
    assert [row.split() for row in screen(table)[3:]] == [["a", "waiting"], ["b", "waiting"], ["c", "waiting"]]
    table(step({"a": "done"}))
    table(step({"b": "training"}))
    first, second, third = (row.split() for row in screen(table)[3:])
    assert first == ["a", "done", "2/4", "2.310", "150"] and second[1] == "training" and third == ["c", "waiting"]
    table({**cohort, "round": 2, "clients": {"c": {**waiting, "state": "waiting"}}})
    assert [row.split() for row in screen(table)[3:]] == [["c", "waiting"]]


def test_who_trains_alone_keeps_its_row_while_others_go_through_the_same_rounds(table):
    table(START)
    table(step({"a": "done"}, arm="local", round=3))
    table(step({"b": "training"}, arm="local", round=1))
    assert [row.split()[:2] for row in screen(table)[3:]] == [["a", "done"], ["b", "training"]]


def test_a_large_cohort_shows_those_that_train_and_counts_the_rest(table):
    states = {f"client-{i:03d}": "done" if i % 2 else "training" for i in range(60)}
    table(START)
    table(step(states))
    rows = screen(table)[3:]
    assert len(rows) == live_table.CLIENTS_SHOWN + 1
    assert all("training" in row for row in rows[:-1])
    assert rows[-1].split("  ")[0] == "and 44 more" and "30 done, 14 training" in rows[-1]


def test_a_failed_client_is_never_among_those_that_are_only_counted(table):
    table(START)
    table(step({f"client-{i:03d}": "training" for i in range(60)} | {"zoo": "failed"}))
    assert screen(table)[3].split()[:2] == ["zoo", "failed"]


def test_between_trainings_the_table_shows_the_phase_and_no_stale_clients(table):
    table(START)
    table(step({"a": "training"}))
    table({"event": "phase", "phase": "generate", "arm": None, "detail": ""})
    assert screen(table)[0] == "demo  tiny  generate" and len(screen(table)) == 2
    assert screen(table)[1].endswith("37 %"), "time left and speed are those of a training"


def test_a_client_whose_name_is_markup_or_an_escape_is_shown_as_text(table):
    table(START)
    table(step({"[bold red]x[/]": "training", "\x1b[2Jy": "training"}))
    shown = "\n".join(screen(table))
    assert "[bold red]x[/]" in shown and "\x1b" not in shown


def test_rounds_and_warnings_stay_on_the_screen_above_the_table(table):
    table(START)
    table({"event": "warning", "message": "category [x]: 2 rows"})
    table(ROUND)
    written = plain(table.console.file.getvalue())
    assert "warning: category [x]: 2 rows" in written
    assert "round 2/3, 2 clients, training loss 2.500, held-out loss 2.250, 1.00 kB up, 3.50 s" in written


def test_a_rejected_update_is_told_with_client_and_reason():
    assert "rejected b (non-finite: 3 values)" in progress.describe(ROUND, START)
    assert "lost a" in progress.describe({**ROUND, "missing": ["a"]}, START)
    assert "late a" in progress.describe({**ROUND, "late": ["a"]}, START)


def test_plain_lines_are_one_per_event_and_leave_out_steps_that_come_fast(capsys):
    lines = progress.observer(plain=True)
    assert isinstance(lines, progress.PlainLines)
    for event in (START, step({"a": "training"}), step({"a": "done"}), ROUND):
        lines(event)
    start, last = capsys.readouterr().err.splitlines()
    assert start == "run runs/demo: tiny, 2 clients, 3 rounds; arms: base, federated" and last.startswith("round 2/3")


def test_a_long_round_gives_a_sign_of_life(capsys, monkeypatch):
    lines = progress.PlainLines()
    lines.last_line -= event_lines.SECONDS_BETWEEN_LINES
    lines(step({"a": "training"}))
    assert plain(capsys.readouterr().err) == "federated, round 1/3: 37 % done, 412 tokens/s, 41.0 s left\n"


def test_no_colour_and_no_terminal_mean_plain_lines(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert isinstance(progress.observer(), live_table.LiveTable)
    monkeypatch.setenv("NO_COLOR", "1")
    assert isinstance(progress.observer(), progress.PlainLines)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(progress.observer(), progress.PlainLines)


def test_the_third_line_says_loss_upload_so_far_and_memory(table):
    table(START)
    table(step({"a": "training"}))
    assert drawn(table)[2].startswith("memory ") and drawn(table)[2].endswith(("MB", "GB"))
    table(ROUND)
    table({**ROUND, "round": 3, "held_out_loss": None})
    so_far = drawn(table)[2].split(" · ")
    assert so_far[:2] == ["held-out loss 2.250 after round 2", "2.00 kB sent by clients"]


def test_a_narrow_terminal_breaks_no_line_of_the_table_and_no_word_above_it():
    narrow = live_table.LiveTable(
        Console(width=80, height=40, file=io.StringIO(), force_terminal=True, color_system=None)
    )
    with narrow:
        narrow({**START, "run": "runs/" + "long" * 10, "model": "/home/someone/models/of/a/long/path/smollm2-135m"})
        narrow(step({"client-" + "x" * 60: "training"}, eta_seconds=3599.0, tokens_per_second=123_456.0))
        lines = drawn(narrow, 80)
        assert len(lines) == 5 and max(map(len, lines)) <= 80
        narrow(
            {
                "event": "warning",
                "message": "43 rows lost a part: turns after the last answer (first: a:1, a:3, computers:4)",
            }
        )
    assert "computers:4" in plain(narrow.console.file.getvalue())


def test_a_run_that_is_resumed_shows_at_once_how_far_it_is_and_the_rounds_before(table):
    table({"event": "phase", "phase": "load model", "arm": None, "detail": ""})
    assert len(drawn(table)) == 2, "no bar at 0 % while nobody knows yet"
    table({**START, "round": 2, "fraction": 0.61})
    table({**ROUND, "event": "committed", "round": 1, "held_out_loss": None})
    table({**ROUND, "event": "committed"})
    table({"event": "phase", "phase": "evaluate", "arm": "base", "detail": ""})
    title, bar, so_far = drawn(table)
    assert title == "demo  tiny  evaluate base" and "61 %" in bar
    assert so_far.startswith("held-out loss 2.250 after round 2 · 2.00 kB sent by clients · ")
    written = plain(table.console.file.getvalue())
    assert "arms: base, federated; resumed after round 2" in written
    assert "round 1/3 (before), 2 clients, training loss 2.500, 1.00 kB up" in written
    assert "round 2/3 (before), 2 clients, training loss 2.500, held-out loss 2.250, 1.00 kB up" in written
    table(step({"a": "training"}, fraction=0.63))
    assert "63 %" in screen(table)[1]


def test_a_run_that_never_stopped_begins_at_zero_and_tells_of_no_rounds_before(table, capsys):
    table({**START, "round": 0, "fraction": 0.0})
    assert " 0 %" in drawn(table)[1]
    assert "resumed" not in table.console.file.getvalue()


def test_of_many_rounds_before_the_last_ones_are_shown(capsys):
    lines = progress.observer(plain=True)
    lines({**START, "round": 195, "rounds": 200, "fraction": 0.9})
    for number in range(1, 196):
        lines({**ROUND, "event": "committed", "round": number})
    start, *before = capsys.readouterr().err.splitlines()
    assert "resumed after round 195" in start
    assert [line.split(" (before)")[0] for line in before] == [f"round {number}/200" for number in range(191, 196)]


SITE = {"state": "", "reason": "", "present": True, "last": 0.0, "bytes_down": 0, "bytes_up": 0}


def test_a_run_over_sites_has_a_row_for_each_site_with_its_state_bytes_and_last_sign(table):
    table(START)
    rows = {
        "a": {**SITE, "state": "working", "bytes_down": 20_000, "bytes_up": 1_000},
        "b": {**SITE, "state": "offered", "reason": "approval"},
        "c": {**SITE, "present": False, "last": time.time() - 120},
        "d": {**SITE, "present": False, "last": None},
    }
    table({"event": "sites", "sites": rows})
    table(step({"a": "training"}))
    head, *lines = screen(table)[2:]
    assert head.split() == ["site", "state", "step", "loss", "received", "sent", "last", "sign"]
    assert [line.split() for line in lines] == [
        ["a", "training", "2/4", "2.310", "20.0", "kB", "1.00", "kB", "now"],
        ["b", "not", "approved", "yet", "now"],
        ["c", "not", "there", "2", "min", "00", "s", "ago"],
        ["d", "not", "there"],
    ]


def test_lines_of_a_run_over_sites_name_who_comes_and_goes(capsys):
    lines = progress.PlainLines()
    for present in (True, True, False):
        lines({"event": "sites", "sites": {"a": {**SITE, "present": present}, "b": {**SITE, "present": False}}})
    assert capsys.readouterr().err.splitlines() == ["a is connected", "a is gone"]
