"""`shepherd judge RUN…` against a scripted endpoint on loopback."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from answered_runs import a_run, recorded
from console import Shell
from shepherd.evaluation.answer_files import hash_of
from shepherd.evaluation.judge.calls.client import Endpoint
from shepherd.evaluation.judge.calls.known import budget_of
from shepherd.evaluation.judge.calls.material import asked, default_pairs
from stub_judge import SILENT, StubJudge, error, text

KEY = "sk-verysecret0123456789"


@pytest.fixture
def shell(capsys, monkeypatch, tmp_path) -> Shell:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return Shell(capsys, monkeypatch)


def shown(request) -> list[str]:
    return re.findall(r"ANSWER-[AB]>>>\n(.*?)\n<<<", request["messages"][1]["content"], re.DOTALL)


def by_length(number, request):
    """Rates by length, half a point for a word of five characters."""
    a, b = (min(10.0, len(answer) / 10) for answer in shown(request))
    return text(f"Longer is better.\nSCORES: {a:g} {b:g}")


def judge(shell: Shell, stub: StubJudge, *words, timeout: float = 5):
    return shell("judge", *words, "--judge", "judge", "--endpoint", stub.url, "--key-variable", "JUDGE_KEY",
                 "--timeout", timeout, "--tries", 1)  # fmt: skip


def test_the_default_pairs_are_judged_in_both_orders_and_the_figures_written(shell, tmp_path):
    run = a_run(tmp_path, arms=("base", "centralised", "local/anna", "federated"))
    with StubJudge(by_length) as stub:
        done = judge(shell, stub, "runs/demo")
        assert done.status == 0, done.err
        assert len(stub.requests) == 24 == len(recorded(run))
        found = json.loads((run / "judge" / "judge.json").read_text("utf-8"))
        again = judge(shell, stub, "runs/demo", "--json")
        assert again.status == 0 and len(stub.requests) == 24
    assert "calls.jsonl: 24 calls to make, 0 recorded or equal" in done.err and "0 calls to make, 24" in again.err
    assert [(p["a"], p["b"], p["difference"], p["orders"]) for p in found["pairs"]] == [
        ("base", "federated", 2.25, 2), ("local/anna", "federated", 0.75, 2), ("centralised", "federated", 1.5, 2),
    ]  # fmt: skip
    assert found["judge"]["asked"] == ["judge"] and found["judge"]["hosts"] == [stub.url.split("/")[2]]
    assert found["calls"]["made"] == 24 and json.loads(again.out)["calls"]["cache_hits"] == 24
    assert [arm["base"] for arm in found["arms"]] == ["tiny"] * 4
    assert found["questions"]["licence"] == "Apache-2.0 (FastChat)" and found["budget"] is None
    replayed = shell("judge", "--replay", run / "judge" / "calls.jsonl", "--json")
    assert [p["difference"] for p in json.loads(replayed.out)["pairs"]] == [2.25, 1.5, 0.75]


def test_reference_answers_are_shown_on_request_and_named_where_they_are_not(shell, tmp_path):
    a_run(tmp_path, count=2, reference=("The Alps.",)), a_run(tmp_path, "unknown", count=2)
    with StubJudge(by_length) as stub:
        hidden = judge(shell, stub, "runs/demo", "--json")
        asked_first = len(stub.requests)
        seen = judge(shell, stub, "runs/demo", "--references", "--json")
        none = judge(shell, stub, "runs/unknown", "--references")
        plain = judge(shell, stub, "runs/unknown", "--json")
        texts = [request["messages"][1]["content"] for request in stub.requests]
    assert "2 of 2 questions have reference answers, which the judge does not see (--references" in hidden.err
    assert "reference answers" not in seen.err + plain.err
    assert not any("The Alps." in text for text in texts[:asked_first]) and asked_first == 8
    assert sum("The Alps." in text for text in texts) == 8
    prompts = [json.loads(done.out)["judge"]["prompts"][0]["id"] for done in (hidden, seen)]
    assert prompts == ["fedit-2", "fedit-2-reference"]
    assert json.loads(seen.out)["questions"]["reference_answers_shown"] == 2
    assert json.loads(hidden.out)["questions"]["reference_answers_shown"] == 0
    assert none.status == 2 and "--references: no question has a reference answer" in none.err


def test_questions_without_a_reference_answer_and_pairs_with_different_ones_are_named(shell, tmp_path):
    (
        a_run(tmp_path, count=2, reference=("The Alps.",)),
        a_run(tmp_path, "other", count=2, reference=("Tirol.",), alpha=9),
    )
    a_run(tmp_path, "more", count=4, alpha=8)
    with StubJudge(by_length) as stub:
        some = judge(shell, stub, "runs/demo", "runs/more", "--references")
        differ = judge(shell, stub, "runs/demo", "runs/other", "--references")
    assert some.status == 0 and "2 of 4 questions have no reference answer and are judged without one" in some.err
    assert differ.status == 3 and "reference answers to question 1 differ between two pairs" in differ.err


def test_a_judge_that_sees_reference_answers_has_the_fitness_of_the_plain_prompt(shell, tmp_path):
    run = a_run(tmp_path, count=2, reference=("The Alps.",))
    with StubJudge(by_length) as stub:
        judge(shell, stub, "--probes", "--out", run / "judge" / "judge.json", "--references")
        before = len(stub.requests)
        judge(shell, stub, "--probes", "--out", run / "judge" / "judge.json")
        assert len(stub.requests) == before, "the probes have no reference answers, so their calls are the same"
        seen = judge(shell, stub, "runs/demo", "--references", "--json")
        assert len(stub.requests) == before + 8
    assert json.loads(seen.out)["probes"]["probes"] == 50
    (name,) = json.loads((run / "judge" / "fitness.json").read_text("utf-8"))
    assert " fedit-2 " in name
    replayed = shell("judge", "--replay", run / "judge" / "calls.jsonl", "--json")
    assert json.loads(replayed.out)["probes"]["probes"] == 50


def test_recorded_calls_need_no_key(shell, tmp_path, monkeypatch):
    a_run(tmp_path, count=2)
    with StubJudge(by_length) as stub:
        first = judge(shell, stub, "runs/demo", "--probes", "--json")
        monkeypatch.delenv("JUDGE_KEY")
        monkeypatch.setattr(Endpoint, "on_this_machine", False)
        again = judge(shell, stub, "runs/demo", "--probes", "--json")
        other = judge(shell, stub, "runs/demo", "--seed", 1)
    assert again.status == 0 and json.loads(again.out)["pairs"] == json.loads(first.out)["pairs"]
    assert json.loads(again.out)["probes"] == json.loads(first.out)["probes"]
    assert other.status == 2 and "JUDGE_KEY is not set" in other.err


def test_budgets_of_arms_that_differ_are_named(tmp_path):
    run = a_run(tmp_path)
    for steps, rate, differences in (
        (40, 0.1, []),
        (30, 0.1, ["demo: steps in sequence federated 40, centralised 30"]),
        (40, 0.2, ["demo: learning rates federated 0.1, centralised 0.2"]),
    ):
        budget = {name: {"optimizer_steps_per_client": count, "learning_rate": peak}
                  for name, count, peak in (("federated", 40, 0.1), ("centralised", steps, rate))}  # fmt: skip
        (run / "summary.json").write_text(json.dumps({"budget": budget}), "utf-8")
        assert budget_of([run]) == {"equal": not differences, "differences": differences}
    assert budget_of([tmp_path]) is None


def test_the_key_is_in_no_file_and_no_output(shell, tmp_path):
    run = a_run(tmp_path, arms=("base", "centralised", "federated"), count=2)

    def script(number, request):
        return error(500, f"bad key {KEY}") if number % 2 else by_length(number, request)

    with StubJudge(script) as stub:
        done = judge(shell, stub, "runs/demo")
    assert done.status == 7 and KEY not in done.err + done.out
    files = [path for path in run.rglob("*") if path.is_file()]
    assert files and not [path for path in files if KEY.encode() in path.read_bytes()]


def test_exchanging_a_and_b_exchanges_every_figure_and_makes_no_call(shell, tmp_path):
    a_run(tmp_path)
    with StubJudge(by_length) as stub:
        there = judge(shell, stub, "runs/demo", "--pair", "base", "federated", "--json")
        back = judge(shell, stub, "runs/demo", "--pair", "federated", "base", "--json")
        assert len(stub.requests) == 8
    (one,), (other,) = (json.loads(done.out)["pairs"] for done in (there, back))
    assert (one["a"], one["total_a"], one["wins"], one["relative"], one["relative_ci95"]) == (
        other["b"], other["total_b"], other["losses"], other["inverse"], other["inverse_ci95"],
    )  # fmt: skip
    assert one["difference"] == -other["difference"] and one["ci95"] == [-end for end in reversed(other["ci95"])]


def test_runs_that_differ_in_the_seed_are_seeds_of_one_pair_and_other_runs_are_not(shell, tmp_path):
    a_run(tmp_path, "s0", seed=0), a_run(tmp_path, "s1", seed=1)
    a_run(tmp_path, "wide", seed=0, alpha=32)
    with StubJudge(by_length) as stub:
        two = judge(shell, stub, "runs/s0", "runs/s1", "--json")
        three = judge(shell, stub, "runs/s0", "runs/s1", "runs/wide", "--json")
    assert [(p["a"], p["seeds"]) for p in json.loads(two.out)["pairs"]] == [("base", 2), ("centralised", 2)]
    assert {(p["a"], p["seeds"]) for p in json.loads(three.out)["pairs"]} == {
        ("s0:base", 2), ("s0:centralised", 2), ("wide:base", 1), ("wide:centralised", 1),
    }  # fmt: skip


def test_two_runs_of_one_name_are_two_pairs_and_a_run_named_twice_is_one(shell, tmp_path):
    a_run(tmp_path / "x"), a_run(tmp_path / "y", alpha=32), a_run(tmp_path / "z")
    with StubJudge(by_length) as stub:
        done = judge(shell, stub, "x/runs/demo", "y/runs/demo", "z/runs/demo", "--json")
        again = judge(shell, stub, "x/runs/demo", "./x/runs/demo", "--json")
    assert [(p["a"], p["repeats"]) for p in json.loads(done.out)["pairs"] if "base" in p["a"]] == [
        ("x/runs/demo:base", 1), ("y/runs/demo:base", 1), ("z/runs/demo:base", 1),
    ]  # fmt: skip
    assert [(p["a"], p["repeats"]) for p in json.loads(again.out)["pairs"]] == [("base", 1), ("centralised", 1)]
    assert "named twice is judged once" in again.err and json.loads(again.out)["calls"]["cache_hits"] == 16


def test_two_pairs_of_files_that_would_have_one_name_are_refused(shell, tmp_path):
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        row = {"question_id": 1, "model_id": "fox", "text": place}
        (tmp_path / place / "fox.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    run = a_run(tmp_path / "x", count=1)
    base = str(run / "answers" / "vicuna" / "base.jsonl")
    said = "one/fox.jsonl does not hold its questions: they are matched by their ids alone"
    assert said in shell("judge", "--judge", "local:x", "--pair", base, "one/fox.jsonl", "--dry-run").err
    done = shell("judge", "--judge", "local:x", "--pair", base, "one/fox.jsonl", "--pair", base, "two/fox.jsonl")
    assert done.status == 2 and "they would count as one pair" in done.err and done.out == ""


def test_arms_of_two_runs_and_files_of_answers_are_compared_by_name(shell, tmp_path):
    a_run(tmp_path, "one", ("base", "centralised", "federated", "@3"))
    a_run(tmp_path, "two", seed=1)
    file = "runs/two/answers/vicuna/base.jsonl"
    with StubJudge(by_length) as stub:
        done = judge(shell, stub, "--pair", "runs/one:federated", "runs/two", "--pair", file,
                     "runs/one@3", "--json", "--out", "judged/judge.json")  # fmt: skip
    assert done.status == 0, done.err
    first, second = json.loads(done.out)["pairs"]
    assert (first["a"], first["b"], first["difference"]) == ("runs/one:federated", "runs/two", 0.5)
    assert (second["a"], second["b"]) == ("two:base", "runs/one@3")
    assert (tmp_path / "judged" / "calls.jsonl").exists()


def test_one_order_is_flagged_everywhere(shell, tmp_path):
    run = a_run(tmp_path)
    with StubJudge(by_length) as stub:
        done = judge(shell, stub, "runs/demo", "--pair", "base", "federated", "--one-order", "--latex", "t.tex")
        assert len(stub.requests) == 4
    assert "one order only, a deviation" in done.err and "One order only" in done.out
    (pair,) = json.loads((run / "judge" / "judge.json").read_text("utf-8"))["pairs"]
    assert pair["orders"] == 1 and "Judged in one order only." in (tmp_path / "t.tex").read_text("utf-8")


def test_arms_that_did_not_answer_alike_are_named(shell, tmp_path):
    run = a_run(tmp_path)
    for arm, most in (("base", 64), ("federated", 512)):
        file = run / "answers" / "vicuna" / f"{arm}.jsonl"
        decoding = f'"decoding": {{"max_new_tokens": {most}, "temperature": 0.0}}'
        file.write_text(file.read_text("utf-8").replace('"decoding": {}', decoding), "utf-8")
    with StubJudge(by_length) as stub:
        done = judge(shell, stub, "runs/demo", "--pair", "base", "federated")
    words = "The arms did not answer alike, in decoding: base with max_new_tokens: 64, temperature: 0"
    assert words in done.out.replace("\xa0", " "), done.out


FAULTS = {
    "key": (error(401), 7, "refuses the key in JUDGE_KEY"),
    "model": (error(404, "no such model"), 7, "does not know the model 'judge'"),
    "limit": (error(429, "slow down", {"retry-after": "1"}), 7, "too many requests (status 429)"),
    "server": (error(500, "down"), 7, "fails (status 500): down"),
    "cut": (text("SCORES: 8 7")._replace(cut=True), 7, "ended the connection"),
    "silence": (SILENT, 7, "is silent: no reply within 0.2 s"),
    "empty": (
        text("", choices=[]),
        8,
        "no reply of judge to 4 calls ends with the line that the prompt requires: all are",
    ),
    "prose": (text("Both are good."), 8, "the first begins 'Both are good.'"),
    "name": (text("SCORES: 8 7", model="cheaper"), 0, "the endpoint answers as cheaper, not as 'judge'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_its_name_and_exit_status_and_what_was_paid_for_is_kept(shell, tmp_path, fault):
    reply, status, words = FAULTS[fault]
    run = a_run(tmp_path, count=2)
    with StubJudge(lambda number, request: reply) as stub:
        done = judge(shell, stub, "runs/demo", "--pair", "base", "federated", timeout=0.2)
        assert done.status == status and words in done.err, done.err
        assert "Traceback" not in done.err
        paid = [row for row in recorded(run) if row["outcome"] != "failed"]
        assert len(paid) == {7: 0, 8: 8, 0: 4}[status] and (status == 7 or len(stub.requests) == len(paid))


def test_calls_before_a_fault_are_kept_and_the_same_command_goes_on(shell, tmp_path):
    run = a_run(tmp_path)
    with StubJudge(lambda number, request: by_length(number, request) if number <= 5 else error(401)) as stub:
        done = judge(shell, stub, "runs/demo", "--threads", 1)
        assert done.status == 7 and "5 of 16 calls are recorded in " in done.err and "goes on from there" in done.err
        stub.script = by_length
        assert judge(shell, stub, "runs/demo").status == 0 and len(stub.requests) == 6 + 11
    assert len(recorded(run)) == 17  # with the failed one


def test_a_killed_command_goes_on_and_the_calls_add_up(shell, tmp_path):
    """kill −9 while call 6 is in flight, one at a time: five are recorded, and that one is made again."""
    run = a_run(tmp_path, count=5)
    released = []

    def script(number, request):
        if number == 6 and not released:
            process.kill()
            process.wait()
            released.append(number)
        return by_length(number, request)

    with StubJudge(script) as stub:
        words = ["judge", "runs/demo", "--judge", "judge", "--endpoint", stub.url, "--threads", "1"]
        process = subprocess.Popen([sys.executable, "-m", "shepherd", *words], cwd=tmp_path, stderr=subprocess.PIPE,
                                   stdout=subprocess.PIPE, env=os.environ | {"OPENAI_API_KEY": KEY})  # fmt: skip
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL and len(recorded(run)) == 5
        done = shell(*words, "--json")
        assert done.status == 0, done.err
        assert len(stub.requests) == 20 + 1 and len(recorded(run)) == 20
    assert len({row["key"] for row in recorded(run)}) == 20


def test_a_client_may_have_an_at_sign_in_its_name_and_rounds_are_in_no_default_pair(tmp_path):
    arms = dict.fromkeys(("federated", "base", "local/a@b", "federated@3", "@3"))
    pairs = default_pairs(tmp_path, arms, ["base"], asked("vicuna"))
    assert pairs == [("base", "federated"), ("local/a@b", "federated")]


def test_limits_ask_and_without_a_terminal_refuse(shell, tmp_path):
    run = a_run(tmp_path)
    (tmp_path / "prices.toml").write_text('currency = "EUR"\n[models.judge]\ninput = 1000\noutput = 0\n', "utf-8")
    with StubJudge(by_length) as stub:
        for words, reason in (
            (("--max-calls", "3"), "16 calls are more than 3"),
            (("--max-cost", "0.01", "--prices", "prices.toml"), "is more than 0.01"),
        ):
            done = judge(shell, stub, "runs/demo", *words)
            assert done.status == 2 and reason in done.err and stub.requests == []
        done = judge(shell, stub, "runs/demo", "--max-calls", "3", "--yes")
        assert done.status == 5 and "--max-calls" in done.err and len(stub.requests) == 3, "a given limit is one"
        assert judge(shell, stub, "runs/demo", "--yes").status == 0 and len(stub.requests) == 16
        done = judge(shell, stub, "runs/demo", "--prices", "prices.toml", "--seed", "1")
    assert done.status == 0 and " EUR; at most" in done.err
    # 16 calls of 100 tokens in, as the stub counts, at 1,000 per million
    assert json.loads((run / "judge" / "judge.json").read_text("utf-8"))["calls"]["cost"] == 1.6


@pytest.mark.parametrize(("reply", "status", "calls"), [("y\n", 0, 16), ("n\n", 130, 0)])
def test_a_person_at_a_terminal_decides(shell, tmp_path, monkeypatch, reply, status, calls):
    a_run(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(reply))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with StubJudge(by_length) as stub:
        done = judge(shell, stub, "runs/demo", "--max-calls", "3")
        assert done.status == status and len(stub.requests) == calls and "16 calls are more than 3. Go on?" in done.err


def test_a_dry_run_needs_no_key_makes_no_call_and_writes_nothing(shell, tmp_path, monkeypatch):
    run = a_run(tmp_path)
    monkeypatch.delenv("JUDGE_KEY")
    done = shell("judge", "runs/demo", "--judge", "judge", "--dry-run")
    assert done.status == 0 and "16 calls to make" in done.err and done.out == ""
    assert not (run / "judge").exists()


def test_a_judge_that_is_not_fit_gives_no_verdict(shell, tmp_path):
    run = a_run(tmp_path)
    rows = [
        {"input": f"Q{n}?", "output_1": "short, but right", "output_2": "longer, and not right", "label": 1}
        for n in range(4)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows), "utf-8")
    with StubJudge(by_length) as stub:
        done = judge(shell, stub, "runs/demo", "--calibrate", "pairs.json", "--probes")
        again = judge(shell, stub, "runs/demo", "--json")
    assert (
        done.status == 0
        and "right in 0.0 % (95 %: 0.0 % to 49.0 %)" in done.err.replace("\xa0", " ")
        and "NOT FIT" in done.err
    )
    assert "injection in place: 50 probes move the weak answer by" in done.err
    assert len(recorded(run, "calibration.jsonl")) == 8 and len(recorded(run, "probes.jsonl")) == 210
    found = json.loads(again.out)
    assert {pair["verdict"] for pair in found["pairs"]} == {"judge not fit"} and "judge not fit" in done.out
    assert found["judge"]["calibration"]["fit"] is False and found["probes"]["probes"] == 50
    replayed = json.loads(shell("judge", "--replay", run / "judge" / "calls.jsonl", "--json").out)
    assert {pair["verdict"] for pair in replayed["pairs"]} == {"judge not fit"}, "also from the recorded calls"
    fitness = run / "judge" / "fitness.json"
    for content in (fitness.read_text("utf-8")[:40], "[]"):
        fitness.write_text(content, "utf-8")
        done = shell("judge", "--replay", run / "judge" / "calls.jsonl")
        assert done.status == 3 and f"{fitness} is damaged" in done.err, "no verdict of a judge that may not be fit"


def test_a_judge_is_not_measured_where_calls_of_its_calibration_failed(shell, tmp_path):
    run = a_run(tmp_path, count=1)
    rows = [{"input": f"Q{n}?", "output_1": "right", "output_2": "no", "label": 1} for n in range(4)]
    (tmp_path / "pairs.json").write_text(json.dumps(rows), "utf-8")
    with StubJudge(lambda n, request: error(500) if n % 2 else text("SCORES: 9 2")) as stub:
        done = judge(shell, stub, "runs/demo", "--calibrate", "pairs.json", "--threads", 1)
    assert done.status == 7 and "4 calls of runs/demo/judge/calibration.jsonl failed" in done.err
    assert not (run / "judge" / "fitness.json").exists() and not recorded(run)


MISTAKES = {
    "no judge is named": ("runs/demo",),
    "nothing to judge": ("--judge", "judge"),
    "run not found: runs/dema": ("runs/dema", "--judge", "judge"),
    "runs/bare has no answers to 'vicuna'": ("runs/bare", "--judge", "local:x"),
    "shepherd answer runs/demo --questions mt-bench": ("runs/demo", "--judge", "local:x", "--questions", "mt-bench"),
    "runs/few has no answers of centralised": ("runs/few", "--judge", "local:x"),
    "the environment variable NO_KEY is not set": ("runs/demo", "--judge", "j", "--key-variable", "NO_KEY"),
    "--max-cost needs prices": ("runs/demo", "--judge", "local:x", "--max-cost", "1"),
    "--parameter 'top_p' is not NAME=VALUE": ("runs/demo", "--judge", "local:x", "--parameter", "top_p"),
    "--parameter model is set by the command itself": ("runs/demo", "--judge", "local:x", "--parameter", "model=x"),
    "lacks the answers to 18 questions: 6": ("runs/demo", "--judge", "local:x", "--questions", "fedit20"),
    "has no answers of 'federatid'. Did you mean 'federated'?": (
        "runs/demo", "--judge", "local:x", "--pair", "base", "federatid"),
    "--judge calls a judge, and --replay calls none": ("--replay", "x.jsonl", "--judge", "judge"),
    "prompts do not fit into the judge's window of 600 tokens": (
        "runs/demo", "--judge", "local:x", "--window", "600"),
    "20 calls are more than 2": ("runs/demo", "--judge", "local:x", "--max-calls", "2"),
}  # fmt: skip


def test_mistakes_are_named_before_anything_is_loaded_or_paid_for(shell, tmp_path):
    a_run(tmp_path, count=5), a_run(tmp_path, "bare", arms=()), a_run(tmp_path, "few", arms=("base", "federated"))
    for words, line in MISTAKES.items():
        done = shell("judge", *line)
        assert done.status in (2, 3) and words in done.err and done.out == "", (words, done.err)


def test_a_file_of_questions_names_the_folder_of_its_answers(shell, tmp_path):
    run = a_run(tmp_path, count=2)
    rows = [{"question_id": n, "text": f"Question {n}?"} for n in (1, 2)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    done = shell("judge", "runs/demo", "--judge", "local:x", "--questions", "mine.jsonl", "--dry-run")
    assert done.status == 2 and "shepherd answer runs/demo --questions mine.jsonl" in done.err
    name = re.search(r"has no answers to '(mine-[0-9a-f]{8})'", done.err)[1]
    (run / "answers" / "vicuna").rename(run / "answers" / name)
    done = shell("judge", "runs/demo", "--judge", "local:x", "--questions", "mine.jsonl", "--dry-run")
    assert done.status == 0 and "8 calls to make" in done.err


def test_answers_to_an_id_as_a_number_and_as_a_text_are_refused(shell, tmp_path):
    run = a_run(tmp_path, count=2)
    file = run / "answers" / "vicuna" / "base.jsonl"
    file.write_text(file.read_text("utf-8").replace('"question_id": 2', '"question_id": "1"'), "utf-8")
    done = shell("judge", "runs/demo", "--judge", "local:x")
    assert done.status == 3 and "base.jsonl: question '1' stands there as a number and as a text" in done.err


def test_questions_of_two_wordings_are_not_compared(shell, tmp_path):
    run = a_run(tmp_path)
    file = run / "answers" / "vicuna" / "base.jsonl"
    file.write_text(file.read_text("utf-8").replace(hash_of(["Question 2?"]), hash_of(["Another?"])), "utf-8")
    done = shell("judge", "runs/demo", "--judge", "local:x")
    assert done.status == 3 and "question 2 is not the same in" in done.err


def test_the_answers_of_a_finished_run_are_judged_and_shown_in_its_report(shell, tiny_run, tmp_path):
    shutil.copytree(tiny_run.path, tmp_path / "runs" / "demo")
    rows = [{"question_id": 1, "text": "Why?"}, {"question_id": "two", "turns": ["Who?", "Where?"]}]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    asked = shell("answer", "runs/demo", "--questions", "few.jsonl", "--max-new-tokens", 3)
    assert asked.status == 0, asked.err
    with StubJudge(lambda number, request: text("SCORES: 6 7")) as stub:
        done = judge(shell, stub, "runs/demo", "--questions", "few.jsonl", "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    names = [pair["a"] for pair in found["pairs"]]
    assert names[0] == "base" and names[-1] == "centralised" and len(names) > 2
    assert all(name.startswith("local/") for name in names[1:-1])
    assert {(pair["b"], pair["difference"], pair["first_gain"]) for pair in found["pairs"]} == {("federated", 0, -1)}
    assert found["budget"]["equal"] is True and found["questions"]["source"] == "few.jsonl"
    assert all(arm["cut"] == 1 for arm in found["arms"])
    assert "How the answers were judged" in (tmp_path / "runs" / "demo" / "report.html").read_text("utf-8")
