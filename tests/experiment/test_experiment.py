"""Whole runs on a tiny model: what is written, what repeats, what the arms spend, what happens when things break."""

from __future__ import annotations

import html
import json
import math
import shlex
import socket
import subprocess
import sys
import time
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers

import shepherd
from console import Shell
from prepared import trainer_of
from shepherd import recipe
from shepherd.arms import arm_named
from shepherd.clients import cohort, row_order
from shepherd.data.tokenize import encode_prompt
from shepherd.errors import ClientError, EvaluationError, UsageError
from shepherd.evaluation.answers import Generation, generation_record
from shepherd.evaluation.losses import row_losses
from shepherd.experiment import outputs
from shepherd.experiment import run as experiment
from shepherd.experiment.baselines import Baseline
from shepherd.experiment.estimate import plan
from shepherd.experiment.remeasure import evaluate_run
from shepherd.experiment.rows import prepare_rows
from shepherd.experiment.schedule import prepare_schedule
from shepherd.model.adapter import WEIGHTS, digest, load_adapter, save_adapter
from shepherd.model.base import load_base, load_tokenizer
from shepherd.model.generate import Answer
from shepherd.types import Adapter, Example, Factors, Message
from shepherd.updates import gate
from tiny import tiny_model

CATEGORIES = [
    "brainstorming", "classification", "closed_qa", "creative_writing", "general_qa", "information_extraction",
    "open_qa", "summarization",
]  # fmt: skip
JUST_ROUNDS = ("evaluation.arms=base,federated", "evaluation.generate=0")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def loss_of(summary: dict, arm: str) -> np.ndarray:
    entry = summary["arms"][arm]
    return np.array([entry["loss"], *entry["per_category"].values()])


def jsonl(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    text = "".join(
        json.dumps({"instruction": i, "response": r, "category": c}, ensure_ascii=False) + "\n" for i, r, c in rows
    )
    path.write_text(text, encoding="utf-8")
    return path


# What a run leaves


def test_a_run_leaves_every_file_that_was_promised_and_nothing_half_written(tiny_run):
    found = {str(path.relative_to(tiny_run.path)) for path in tiny_run.path.rglob("*") if path.is_file()}
    promised = {
        "config.toml", "partition.json", "rounds.jsonl", "journal.jsonl", "env.json", "summary.json", "report.html",
        "evaluation/metrics.json", "evaluation/generations.jsonl", "evaluation/rows_seen.jsonl",
        "evaluation/left_out.jsonl",
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/README.md",
        "adapter/tokenizer.json", "adapter/tokenizer_config.json",
        "checkpoints/round-0001/adapter_config.json", "checkpoints/round-0001/adapter_model.safetensors",
        "checkpoints/round-0002/adapter_config.json", "checkpoints/round-0002/adapter_model.safetensors",
    }  # fmt: skip
    assert promised <= found
    assert [name for name in found if Path(name).name.startswith(".")] == [".lock"]


def test_all_rows_that_were_left_out_or_found_are_in_a_file_of_their_own(tiny_run):
    lines = [json.loads(line) for line in (tiny_run.path / "evaluation/left_out.jsonl").read_text().splitlines()]
    data = tiny_run.summary["data"]
    counted = {(what, reason): rows for what in ("refused", "changed") for reason, (rows, _) in data[what].items()}
    counted |= {("audit", finding["kind"]): finding["count"] for finding in data["audit"]}
    listed = {(line["what"], line["reason"]): sum(map(len, line["groups"])) for line in lines}
    assert listed.keys() == counted.keys()
    assert all(listed[key] == counted[key] for key in counted if key[0] != "audit")


def test_the_summary_has_every_key_of_its_schema_and_is_what_run_returned(tiny_run):
    summary = json.loads((tiny_run.path / "summary.json").read_text(encoding="utf-8"))
    assert summary == json.loads(json.dumps(tiny_run.summary))
    assert set(summary) >= {
        "arms", "budget", "bytes_up", "bytes_down", "seconds", "model", "adapter_sha256", "adapter", "data", "clients",
        "rounds", "cohort", "peak_memory_bytes", "command", "version", "seed", "reload_check", "trained_rows",
    }  # fmt: skip
    assert set(summary["arms"]) == {"base", "federated", "centralised", "local"}
    assert sorted(summary["arms"]["local"]) == CATEGORIES
    for arm in (summary["arms"]["base"], summary["arms"]["federated"], *summary["arms"]["local"].values()):
        assert sorted(arm["per_category"]) == CATEGORIES and math.isfinite(arm["loss"])
    seconds = dict(summary["seconds"])
    assert set(seconds) >= {"total", "federated", "local", "centralised", "evaluate", "generate"}
    assert seconds.pop("total") == pytest.approx(sum(seconds.values())), "each second is in one phase"
    assert (summary["clients"], summary["rounds"], summary["cohort"], summary["seed"]) == (8, 2, 8, 0)
    data = summary["data"]
    assert (data["rows"], data["train_rows"], data["held_out_rows"]) == (48, 32, 16)
    assert data["licence"] == "Apache-2.0" and summary["model"]["dtype"] == "float32"
    assert summary["adapter"]["r"] == 2 and "q_proj" in summary["adapter"]["targets"]
    assert summary["peak_memory_bytes"] > 50e6


def test_the_saved_adapter_is_the_one_that_was_measured_and_hashed(tiny_run):
    final = load_adapter(tiny_run.path / "adapter")
    assert digest(final) == tiny_run.summary["adapter_sha256"]
    assert digest(load_adapter(tiny_run.path / "checkpoints/round-0002")) == digest(final)
    assert final.base_digest == tiny_run.summary["model"]["digest"]
    measured = evaluate_run(tiny_run.path)
    assert measured["federated"]["loss"] == pytest.approx(tiny_run.summary["arms"]["federated"]["loss"], rel=1e-6)
    assert abs(tiny_run.summary["reload_check"]["difference"]) < 1e-6


def on_plain_peft(run, folder: Path):
    """(the base with the adapter of a folder, tokenizer, template, rows) by the files that anyone would take."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.path / "adapter")
    rows, template = prepare_rows(run.config, tokenizer)
    base = json.loads((run.path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == run.config.model.base
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    # Warnings are errors, so a fan_in_fan_out that PEFT had to set right is one.
    return peft.PeftModel.from_pretrained(model, folder).eval(), tokenizer, template, rows


def plain_losses(model, held_out) -> list[float]:
    """Nats per target token: of all rows, and of each category."""
    nats, targets = Counter(), Counter()
    for row in held_out:
        ids, learned = torch.from_numpy(row.input_ids).long(), torch.from_numpy(row.loss_mask[1:])
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits[learned], ids[1:][learned], reduction="sum").item()
        for key in ("all", row.category):
            nats[key] += nll
            targets[key] += int(learned.sum())
    return [nats[key] / targets[key] for key in ("all", *CATEGORIES)]


def test_plain_peft_gives_the_reported_losses_and_answers_from_the_files_of_the_adapter_alone(tiny_run):
    model, tokenizer, template, rows = on_plain_peft(tiny_run, tiny_run.path / "adapter")
    expected = plain_losses(model, rows.held_out)
    np.testing.assert_allclose(loss_of(tiny_run.summary, "federated"), expected, rtol=1e-5)

    def answer(example) -> str:
        prompt = torch.tensor([encode_prompt(template, tokenizer, example.messages, example.context)])
        out = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                             max_new_tokens=tiny_run.config.evaluation.max_new_tokens)  # fmt: skip
        return tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True).strip()

    for record in lines(tiny_run.path / "evaluation/generations.jsonl"):
        example = rows.examples[record["id"]]
        assert record["answers"]["federated"] == answer(example)
        with model.disable_adapter():
            assert record["answers"]["base"] == answer(example)


def test_plain_peft_reads_the_adapters_of_both_trained_arms_also_of_gpt2_with_a_rank_stabilised_scale(run_small):
    arms = "evaluation.arms=base,federated,centralised"
    run = run_small("lora.rslora=true", "federation.rounds=1", "evaluation.generate=0", arms, kind="gpt2")
    for arm, folder in (("federated", "adapter"), ("centralised", "arms/centralised")):
        model, _, _, rows = on_plain_peft(run, run.path / folder)
        np.testing.assert_allclose(loss_of(run.summary, arm), plain_losses(model, rows.held_out), rtol=1e-5)


def test_the_card_states_base_data_clients_rounds_and_licences(tiny_run):
    front, card = (tiny_run.path / "adapter/README.md").read_text(encoding="utf-8").split("\n---\n")
    base = tiny_run.config.model.base
    before, after = (loss_of(tiny_run.summary, arm)[0] for arm in ("base", "federated"))
    assert f"base_model: {json.dumps(base)}" in front
    for line in (
        "# LoRA adapter, tuned by 8 clients in 2 rounds",
        f"| base model | {base} |",
        "| base model's licence | unknown |",
        "| data | builtin:instructions, 32 training rows that stayed with their clients |",
        "| data's licence | Apache-2.0 |",
        "| adapter | r = 2, alpha = 4, on down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj |",
        f"| base digest | `{tiny_run.summary['model']['digest']}` |",
        f"| held-out loss | {before:.4f} before, {after:.4f} after (nats per token) |",
    ):
        assert line in card.splitlines()


def test_training_lowers_the_loss_of_every_trained_arm(tiny_run):
    loss = {name: entry["loss"] for name, entry in tiny_run.summary["arms"].items() if name != "local"}
    assert loss["federated"] < loss["base"] and loss["centralised"] < loss["base"]


def test_the_partition_file_puts_every_row_into_one_client_or_aside(tiny_run):
    partition = json.loads((tiny_run.path / "partition.json").read_text(encoding="utf-8"))
    dealt = [id for ids in partition["clients"].values() for id in ids]
    assert sorted(partition["clients"]) == CATEGORIES
    assert len({*dealt, *partition["held_out"]}) == len(dealt) + len(partition["held_out"]) == 48
    assert partition["settings"]["name"] == "by_key"
    table = partition["table"]
    assert np.array_equal(np.array(table["counts"]), 4 * np.eye(8, dtype=int))
    assert table["clients"] == table["categories"] == CATEGORIES


def test_rounds_have_a_line_each_with_every_key(tiny_run):
    rounds = lines(tiny_run.path / "rounds.jsonl")
    assert [line["round"] for line in rounds] == [1, 2]
    for line in rounds:
        assert line["cohort"] == CATEGORIES and line["missing"] == [] and line["rejected"] == []
        assert sum(line["weights"].values()) == pytest.approx(1.0)
        for key in ("weights", "train_loss", "steps", "examples", "tokens", "update_norm"):
            assert sorted(line[key]) == CATEGORIES
        assert sorted(line["held_out_per_category"]) == CATEGORIES
        assert line["held_out_per_client"] == line["held_out_per_category"], "each client has one category"
        assert set(line["seconds"]) == {"train", "aggregate", "evaluate", "commit"}
        assert line["learning_rate"] == [0.01, 0.01]
        assert 0 <= line["deviation"] < 1 and min(line["update_norm"].values()) > 0
        assert set(line["steps"].values()) == {1} and set(line["examples"].values()) == {2}
    assert rounds[-1]["held_out_loss"] == tiny_run.summary["arms"]["federated"]["loss"]
    journal = [entry["what"] for entry in lines(tiny_run.path / "journal.jsonl")]
    assert journal == ["started", "committed", "committed", "trained", "trained", "finished"]


def test_metrics_cover_every_arm_client_and_category_and_add_up(tiny_run):
    metrics = json.loads((tiny_run.path / "evaluation/metrics.json").read_text(encoding="utf-8"))
    assert metrics["held_out_rows"] == 16
    everyone = {**metrics["arms"], **{f"local:{c}": m for c, m in metrics["arms"]["local"].items()}}
    del everyone["local"]
    for arm in everyone.values():
        parts = arm["per_category"].values()
        assert sum(p["tokens"] for p in parts) == metrics["held_out_tokens"] == arm["tokens"]
        mean = sum(p["loss"] * p["tokens"] for p in parts) / metrics["held_out_tokens"]
        assert arm["loss"] == pytest.approx(mean) and arm["perplexity"] == pytest.approx(math.exp(mean))
        for client in CATEGORIES:  # a client holds one category here
            assert arm["per_client"][client] == arm["per_category"][client]
    assert [point[0] for point in metrics["curves"]["federated"]] == [0, 1, 2]
    assert [point[0] for point in metrics["curves"]["centralised"]] == [0, 1, 2]
    for client, curve in metrics["curves"]["local"].items():
        assert [point[0] for point in curve] == [0, 1, 2]
        assert curve[-1] == [2, metrics["arms"]["local"][client]["loss"]]
    pairs = {(d["a"], d["b"]): d for d in metrics["differences"]}
    assert {("federated", "base"), ("federated", "centralised"), ("federated", "local mean")} <= set(pairs)
    against_base = pairs["federated", "base"]
    expected = metrics["arms"]["federated"]["loss"] - metrics["arms"]["base"]["loss"]
    assert against_base["difference"] == pytest.approx(expected)
    assert against_base["ci95"][0] <= expected <= against_base["ci95"][1]
    means = [m["loss"] for m in metrics["arms"]["local"].values()]
    best = pairs["federated", "local best"]
    assert best["clients"] == [CATEGORIES[int(np.argmin(means))]] and best["same_rows"], "16 rows are too few to halve"
    assert best["difference"] == pytest.approx(metrics["arms"]["federated"]["loss"] - min(means))
    assert tiny_run.summary["best"] == {"local": {"clients": best["clients"], "loss": min(means), "same_rows": True}}
    expected = metrics["arms"]["federated"]["loss"] - np.mean(means)
    assert pairs["federated", "local mean"]["difference"] == pytest.approx(expected)
    for client, found in metrics["own_rows"].items():
        federated, alone = (m["per_client"][client] for m in (everyone["federated"], everyone[f"local:{client}"]))
        assert found["difference"] == pytest.approx(federated["loss"] - alone["loss"])
        assert found["rows"] == alone["rows"] and found["no_interval"] is None
    assert sorted(metrics["own_rows"]) == sorted(CATEGORIES)
    compared = {(d["metric"], d["b"]) for d in metrics["generation_differences"]}
    assert compared == {(m, b) for m in ("exact_match", "token_f1", "rouge_l") for b in ("base", "centralised")}


def test_generations_answer_held_out_rows_under_every_arm(tiny_run):
    held_out = json.loads((tiny_run.path / "partition.json").read_text(encoding="utf-8"))["held_out"]
    rows = lines(tiny_run.path / "evaluation/generations.jsonl")
    assert len(rows) == 2
    for row in rows:
        assert row["id"] in held_out and row["category"] in CATEGORIES and row["reference"]
        assert row["prompt"][-1]["role"] == "user" and row["prompt"][-1]["content"]
        assert {"base", "federated", "centralised"} <= set(row["answers"])
        assert set(row["finish_reason"]) == set(row["answers"])
        assert set(row["finish_reason"].values()) <= {"stop", "length"}
    assert len(set(rows[0]["answers"].values())) == 3, "arms that answer alike show nothing"


def test_events_cover_the_run_from_start_to_end_and_are_json(tiny_run):
    json.dumps(tiny_run.events, allow_nan=False)
    kinds = [event["event"] for event in tiny_run.events]
    told = [kind for kind in kinds if kind != "phase"]
    assert told[0] == "start" and kinds[-1] == "end"
    assert kinds.count("round") == 2 and kinds.count("start") == kinds.count("end") == 1
    rounds = [event for event in tiny_run.events if event["event"] == "round"]
    written = [{"event": "round", **line} for line in lines(tiny_run.path / "rounds.jsonl")]
    assert json.loads(json.dumps(rounds)) == written
    trained = [e["arm"] for e in tiny_run.events if e["event"] == "phase" and e["phase"] == "train"]
    assert trained == ["federated", "local", "centralised"]
    assert "personal models" not in [e.get("phase") for e in tiny_run.events], "there are none"


def test_progress_grows_to_the_whole_and_every_step_of_every_client_is_in_an_event(run_small):
    run = run_small("training.batch_size=9", "evaluation.generate=0", "training.clients_at_once=3")
    steps = [event for event in run.events if event["event"] == "step"]
    fractions = [event["fraction"] for event in steps]
    assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1.0)
    assert steps[-1]["eta_seconds"] == pytest.approx(0.0, abs=1e-6)
    done = Counter((e["arm"], c) for e in steps for c, s in e["clients"].items() if s["state"] == "done")
    assert {done["federated", c] for c in CATEGORIES} == {done["local", c] for c in CATEGORIES} == {2}


# What repeats


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(run_small):
    first, again = run_small(*JUST_ROUNDS), run_small(*JUST_ROUNDS)
    assert first.summary["adapter_sha256"] == again.summary["adapter_sha256"]
    assert (first.path / "adapter" / WEIGHTS).read_bytes() == (again.path / "adapter" / WEIGHTS).read_bytes()
    assert first.summary["arms"] == again.summary["arms"]
    other = run_small(*JUST_ROUNDS, "run.seed=1")
    assert other.summary["adapter_sha256"] != first.summary["adapter_sha256"]
    partitions = [(run.path / "partition.json").read_bytes() for run in (first, again, other)]
    assert partitions[0] == partitions[1] != partitions[2]


def test_arms_do_not_disturb_each_other(tiny_run, run_small):
    assert run_small(*JUST_ROUNDS).summary["adapter_sha256"] == tiny_run.summary["adapter_sha256"]


def test_the_saved_config_runs_again_to_the_same_adapter_in_no_more_seconds_than_pass(tiny_run, tmp_path):
    begin = time.perf_counter()
    again = experiment.run(recipe.load(tiny_run.path / "config.toml"), out_dir=tmp_path)
    assert again.summary["seconds"]["total"] <= time.perf_counter() - begin
    assert again.summary["adapter_sha256"] == tiny_run.summary["adapter_sha256"]


@pytest.mark.parametrize(
    "setting", ["training.clients_at_once=1", "training.clients_at_once=3", "training.tokens_per_pass=50"]
)
def test_how_the_work_is_cut_changes_nothing_beyond_rounding(setting, tiny_run, run_small):
    cut = run_small(setting, "evaluation.generate=0")
    for arm in ("base", "federated", "centralised"):
        np.testing.assert_allclose(loss_of(cut.summary, arm), loss_of(tiny_run.summary, arm), atol=1e-4)
    for client, entry in tiny_run.summary["arms"]["local"].items():
        assert cut.summary["arms"]["local"][client]["loss"] == pytest.approx(entry["loss"], abs=1e-4)
    assert cut.summary["budget"] == tiny_run.summary["budget"]
    if "tokens" not in setting:  # other passes are other sums; who trains beside whom changes no bit (decision 0008)
        assert cut.summary["adapter_sha256"] == tiny_run.summary["adapter_sha256"]


def test_the_command_line_and_the_function_give_the_same_adapter(tiny_run, small_config, capsys, monkeypatch, tmp_path):
    (tmp_path / "small.toml").write_text(recipe.to_toml(small_config(f"run.out={tmp_path / 'out'}")), encoding="utf-8")
    outcome = Shell(capsys, monkeypatch)("run", tmp_path / "small.toml", "--json")
    assert outcome.status == 0, outcome.err
    end = json.loads(outcome.out.splitlines()[-1])
    assert end["event"] == "end"
    assert end["summary"]["adapter_sha256"] == tiny_run.summary["adapter_sha256"]
    run = shepherd.run(shepherd.load_config(tmp_path / "small.toml"), out_dir=tmp_path / "api")
    assert run.path.parent == tmp_path / "api"
    assert run.summary["adapter_sha256"] == tiny_run.summary["adapter_sha256"]


@pytest.mark.parametrize("out", ["my runs", "../beside", "{absolute}"])
def test_the_command_to_repeat_a_run_repeats_it_from_where_it_was_started(out, small_config, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    jsonl(here / "own.jsonl", [(f"Say {i}", f"It is {i}", "ab"[i % 2]) for i in range(12)])
    monkeypatch.chdir(here)
    place = out.format(absolute=here / "deep" / "er")
    settings = (*JUST_ROUNDS, "data.source=own.jsonl", "partition.name=iid", "partition.clients=2", f"run.out={place}")
    first = experiment.run(small_config(*settings))
    words = shlex.split(first.summary["command"])
    assert words[:2] == ["shepherd", "run"] and Path(words[2]).is_absolute() is False
    again = subprocess.run([sys.executable, "-m", *words, "--json"], capture_output=True, text=True, check=True)
    (folder,) = {json.loads(line)["run"] for line in again.stdout.splitlines() if '"event": "end"' in line}
    assert (here / folder).samefile(first.path) is False
    assert (here / folder / "adapter" / WEIGHTS).read_bytes() == (first.path / "adapter" / WEIGHTS).read_bytes()
    page = html.unescape((first.path / "report.html").read_text(encoding="utf-8"))
    shown = first.summary["command"] if ".." not in place else f"shepherd run {first.path.name}/config.toml"
    assert shown in page and str(tmp_path) not in shown


def test_prompts_that_do_not_fit_into_the_window_are_counted_in_check_run_and_report(run_small, small_config):
    # 14 of 16 rows are longer than data.max_length = 128. In a window of 512, with 512 new tokens no prompt fits.
    settings = ("evaluation.arms=base,federated", "federation.rounds=1", "evaluation.generate=2")
    run = run_small(*settings, "evaluation.max_new_tokens=512")
    said = (
        "evaluation.generate = 2 asks for more answers than the 0 that are possible: 16 rows held out, 14 of them "
        "cut to data.max_length = 128, 2 of them with evaluation.max_new_tokens = 512 beyond the 512 positions of the "
        "model"
    )
    assert said in [event["message"] for event in run.events if event["event"] == "warning"]
    assert said == run.summary["unanswered"] and said in (run.path / "report.html").read_text(encoding="utf-8")
    assert said in plan(run.config).warnings
    assert not any("answers" in warning for warning in plan(small_config(*settings)).warnings)


def prompts_of(config, data, template, tokenizer, window):
    table = config.evaluation
    generation = Generation(table.generate, table.max_new_tokens, config.data.max_length)
    return generation.prompts(data.held_out, data.examples, template, tokenizer, window)


def test_for_a_row_that_cannot_be_answered_comes_the_next_of_its_category_and_fewer_are_said(small_config, tmp_path):
    long = "many words " * 60
    held = [("short", "a"), (long, "a"), ("rose " * 30, "a"), ("brief", "b"), (long, "b"), ("terse", "b"), (long, "c")]
    train = jsonl(tmp_path / "t.jsonl", [(f"Say {c} {i}.", f"{c}{i}", c) for c in "abc" for i in range(3)])
    rest = jsonl(tmp_path / "h.jsonl", [(f"Row {i}: {text}", "Yes.", c) for i, (text, c) in enumerate(held)])

    def answered(asked: int, window: int = 512) -> tuple[list[str], str]:
        settings = small_config(
            f"data.source={train}", f"data.held_out_source={rest}", "data.rows_per_category=0", "data.max_length=160",
            f"evaluation.generate={asked}",
        )  # fmt: skip
        tokenizer = load_tokenizer(Path(settings.model.base))
        rows, template = prepare_rows(settings, tokenizer)
        assert [row.cut > 0 for row in rows.held_out] == [len(text) > 200 for text, _ in held], "3 of 7 are cut"
        examples, prompts, lost = prompts_of(settings, rows, template, tokenizer, window)
        assert len(prompts) == len(examples)
        return [example.messages[0].content.split(":")[0] for example in examples], lost

    assert answered(2) == (["Row 0", "Row 3"], "")
    # The second of each category is cut, and the only one of c.
    assert answered(4) == (["Row 0", "Row 2", "Row 3", "Row 5"], "")
    fewer = "evaluation.generate = 5 asks for more answers than the {} that are possible: 7 rows held out, "
    cut = "3 of them cut to data.max_length = 160"
    assert answered(5) == (["Row 0", "Row 2", "Row 3", "Row 5"], fewer.format(4) + cut)
    # Row 2 is the longest of the others.
    assert answered(3, window=80) == (["Row 0", "Row 3", "Row 5"], "")
    beyond = ", 1 of them with evaluation.max_new_tokens = 3 beyond the 80 positions of the model"
    assert answered(4, window=80) == (["Row 0", "Row 3", "Row 5"], fewer.replace("5", "4").format(3) + cut + beyond)
    assert answered(0) == ([], "")


def test_plain_texts_and_answers_without_a_loss_are_left_out_of_generation_and_counted(small_config):
    settings = small_config("evaluation.generate=3")
    tokenizer = load_tokenizer(Path(settings.model.base))
    rows, template = prepare_rows(settings, tokenizer)
    asked, told = Message("user", "Which sheep?"), Message("assistant", "All.")
    rows = replace(rows, held_out=rows.held_out[:3])
    made = [(asked, told), (Message("text", "Once upon a time."),), (asked, told, asked, replace(told, learned=False))]
    rows = replace(
        rows,
        held_out=tuple(replace(row, cut=0) for row in rows.held_out),
        examples={row.id: Example(row.id, messages) for row, messages in zip(rows.held_out, made, strict=True)},
    )
    examples, prompts, lost = prompts_of(settings, rows, template, tokenizer, 512)
    assert [example.messages for example in examples] == [(asked, told)] and len(prompts) == 1
    assert lost == (
        "evaluation.generate = 3 asks for more answers than the 1 that are possible: 3 rows held out, 1 of them plain "
        "text without a prompt, 1 of them with a last answer that is not trained on"
    )


def test_a_record_of_an_answer_holds_all_that_its_prompt_was_made_of():
    turns = (
        Message("user", "Warm?"), Message("assistant", "", reasoning="Ask.", extra='{"tool_calls": []}'),
        Message("tool", "3"), Message("assistant", "No."),
    )  # fmt: skip
    record = generation_record(Example("a:1", turns, context="In Oslo.", tools="[]"), {"base": Answer("Yes.", "stop")})
    assert record["prompt"] == [
        {"role": "user", "content": "Warm?\n\nIn Oslo."},
        {"role": "assistant", "content": "", "reasoning": "Ask.", "extra": '{"tool_calls": []}'},
        {"role": "tool", "content": "3"},
    ]
    assert record["tools"] == "[]" and record["reference"] == "No."
    plain = generation_record(Example("a:1", (Message("user", "Q"), Message("assistant", "A"))), {})
    assert plain["prompt"] == [{"role": "user", "content": "Q"}] and "tools" not in plain


# Rows, steps and bytes


def test_a_clients_row_order_continues_over_rounds_and_the_summary_counts_how_often_rows_were_seen(
    run_small, monkeypatch
):
    seen: dict[str, Counter] = {}
    drawn = row_order.next_rows

    def spy(tokens, client, *rest):
        rows = drawn(tokens, client, *rest)
        seen.setdefault(client, Counter()).update(row.id for row in rows)
        return rows

    monkeypatch.setattr(cohort, "next_rows", spy)
    run = run_small(*JUST_ROUNDS, "federation.rounds=3")  # three rounds of two of each client's four rows
    for client in CATEGORIES:
        counts = Counter(seen[client].values())
        assert counts == {1: 2, 2: 2}
        expected = {"rows": 4, "seen": {str(times): rows for times, rows in counts.items()}}
        assert run.summary["trained_rows"][client] == expected


def test_bytes_are_those_of_the_adapter_for_each_client_and_round_and_the_plan_knew(run_small, small_config):
    settings = (*JUST_ROUNDS, "federation.clients_per_round=3", "federation.rounds=4")
    run = run_small(*settings)
    file = (run.path / "adapter" / WEIGHTS).read_bytes()
    payload = len(file) - 8 - int.from_bytes(file[:8], "little")  # what follows the header of a safetensors file
    assert run.summary["adapter"]["bytes"] == payload == 4 * run.summary["adapter"]["parameters"]
    assert run.summary["bytes_up"] == run.summary["bytes_down"] == payload * 3 * 4
    rounds = lines(run.path / "rounds.jsonl")
    assert sum(line["bytes_up"] for line in rounds) == run.summary["bytes_up"]
    assert all(len(line["cohort"]) == 3 for line in rounds) and len({tuple(line["cohort"]) for line in rounds}) > 1
    estimate = plan(small_config(*settings))
    assert (estimate.bytes_up, estimate.bytes_down) == (run.summary["bytes_up"], run.summary["bytes_down"])


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("training.local_steps=3", "training.batch_size=1"),
        ("training.local_steps=0", "training.local_epochs=1"),
        ("federation.clients_per_round=3", "training.local_steps=2"),
    ],
)
def test_arms_have_equal_budgets(settings, run_small):
    budget = run_small(*settings, "evaluation.generate=0", "evaluation.every=0").summary["budget"]
    federated, local, centralised = (budget[arm] for arm in ("federated", "local", "centralised"))
    assert centralised["rows"] == federated["rows"]
    assert local["optimizer_steps_per_client"] == federated["optimizer_steps_per_client"]
    assert centralised["optimizer_steps"] == federated["optimizer_steps_per_client"]
    if not any("clients_per_round" in setting for setting in settings):
        assert local["rows"] == federated["rows"] and local["target_tokens"] == federated["target_tokens"]
    if "training.local_epochs=1" in settings:  # everyone sees all rows once a round
        assert centralised["target_tokens"] == federated["target_tokens"]


@pytest.mark.parametrize("sizes, batch, each, steps", [((5, 7), 2, 6, 4), ((3, 3, 4), 4, 33, 10), ((1, 2, 9), 3, 4, 2)])
def test_pooled_rows_that_do_not_fill_their_steps_evenly_still_make_as_many_steps(
    sizes, batch, each, steps, run_small, tmp_path
):
    # Of an average client. 5 and 7 rows, two a step: 6 rows in round(3.5) = 4 steps. Ten steps of 3, 3 and 4 rows: 33.3
    # rows. 1, 2 and 9 rows, three a step: 4 rows in round(5 / 3) = 2 steps.
    rows = [(f"Say {c} {i}.", f"{c}{i}", c) for n, c in zip(sizes, "abc", strict=False) for i in range(n)]
    train = jsonl(tmp_path / "t.jsonl", rows)
    held = jsonl(tmp_path / "h.jsonl", [(f"Tell {c}.", f"{c}", c) for c in "ab"])
    local = ("training.local_steps=10",) if batch == 4 else ("training.local_steps=0", "training.local_epochs=1")
    run = run_small(
        f"data.source={train}", f"data.held_out_source={held}", "data.rows_per_category=0", *local,
        "federation.clients_per_round=1", f"training.batch_size={batch}", "evaluation.arms=base,federated,centralised",
        "evaluation.generate=0",
    )  # fmt: skip
    budget = run.summary["budget"]["centralised"]
    assert (budget["rows"], budget["optimizer_steps"]) == (2 * each, 2 * steps)  # in two rounds


def test_a_baseline_does_not_notice_where_rounds_end(run_small):
    # Its optimizer, walk, schedule and dropout go on. A federated client begins every round with a new optimizer.
    common = (
        "training.batch_size=1", "training.schedule=linear", "training.warmup_steps=1", "training.weight_decay=0.1",
        "lora.dropout=0.2", "evaluation.every=0", "evaluation.generate=0", "evaluation.local_clients=2",
    )  # fmt: skip
    one = run_small(*common, "federation.rounds=1", "training.local_steps=4").summary
    two = run_small(*common, "federation.rounds=2", "training.local_steps=2").summary
    for arm in ("local", "centralised"):
        assert two["arms"][arm] == one["arms"][arm] and two["budget"][arm] == one["budget"][arm]
    assert two["arms"]["federated"] != one["arms"]["federated"]


def test_with_one_client_and_one_round_federated_tuning_is_plain_fine_tuning(run_small):
    run = run_small(
        "partition.name=iid", "partition.clients=1", "federation.rounds=1", "training.local_steps=3",
        "training.batch_size=99", "evaluation.arms=base,federated,centralised", "evaluation.generate=0",
    )  # fmt: skip
    np.testing.assert_allclose(
        loss_of(run.summary, "federated"), loss_of(run.summary, "centralised"), atol=1e-5
    )  # fmt: skip
    assert run.summary["arms"]["federated"]["loss"] < run.summary["arms"]["base"]["loss"] - 1e-3
    assert lines(run.path / "rounds.jsonl")[0]["deviation"] < 1e-9


# Fewer arms, fewer measurements


def test_arms_that_the_recipe_leaves_out_are_neither_trained_nor_reported(run_small):
    run = run_small("evaluation.arms=base,federated,local", "evaluation.local_clients=2", "evaluation.generate=1")
    assert set(run.summary["arms"]) == {"base", "federated", "local"}
    assert sorted(run.summary["arms"]["local"]) == ["brainstorming", "summarization"]
    assert set(run.summary["budget"]) == {"federated", "local"}
    metrics = json.loads((run.path / "evaluation/metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["arms"]) == {"base", "federated", "local"} and set(metrics["curves"]) == {"federated", "local"}
    assert "centralised" not in {event.get("arm") for event in run.events}


def test_a_clients_curve_alone_passes_through_what_a_shorter_run_ends_with(tiny_run, run_small):
    short = run_small("federation.rounds=1", "evaluation.generate=0", "training.clients_at_once=3")
    curves = json.loads((tiny_run.path / "evaluation/metrics.json").read_text(encoding="utf-8"))["curves"]["local"]
    for client, arm in short.summary["arms"]["local"].items():
        (_, before), (_, first), (_, last) = curves[client]
        assert before == short.summary["arms"]["base"]["loss"]
        assert first == pytest.approx(arm["loss"], rel=1e-6) and first != pytest.approx(last, rel=1e-6)


def test_losses_per_client_of_a_round_are_those_of_its_own_rows(run_small):
    run = run_small(
        "partition.name=dirichlet", "partition.clients=3", "partition.alpha=0.3", "evaluation.arms=base,federated",
        "evaluation.generate=0", "evaluation.every=2", "federation.rounds=3",
    )  # fmt: skip
    first, second, third = lines(run.path / "rounds.jsonl")
    assert first["held_out_per_client"] is None and set(second["held_out_per_client"]) == set(third["weights"])
    federated = json.loads((run.path / "evaluation/metrics.json").read_text(encoding="utf-8"))["arms"]["federated"]
    assert third["held_out_per_client"] == {c: m["loss"] for c, m in federated["per_client"].items()}
    assert (
        len(set(third["held_out_per_client"].values())) == 3
        and second["held_out_per_client"] != (third["held_out_per_client"])
    )


def test_evaluating_only_at_the_end_gives_the_same_result_with_one_point_on_the_curve(tiny_run, run_small):
    run = run_small("evaluation.every=0", "evaluation.generate=0")
    assert [line["held_out_loss"] is None for line in lines(run.path / "rounds.jsonl")] == [True, False]
    assert run.summary["arms"] == tiny_run.summary["arms"]
    curves = json.loads((run.path / "evaluation/metrics.json").read_text(encoding="utf-8"))["curves"]
    assert [point[0] for point in curves["federated"]] == [point[0] for point in curves["centralised"]] == [0, 2]
    assert (run.path / "evaluation/generations.jsonl").exists() is False or not lines(
        run.path / "evaluation/generations.jsonl"
    )


def test_checkpoints_are_the_last_ones_and_the_best(run_small):
    worse = ("federation.rounds=4", "training.learning_rate=3", "data.rows_per_category=4", "run.seed=4")
    run = run_small(*JUST_ROUNDS, *worse, "checkpoints.keep=1")
    losses = [line["held_out_loss"] for line in lines(run.path / "rounds.jsonl")]
    best = 1 + int(np.argmin(losses))
    assert best < 3, "the test wants a run that gets worse"
    kept = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert kept == [f"round-{best:04d}", "round-0003", "round-0004"], "the last one is never alone"


def test_a_local_client_that_does_not_exist_is_answered_with_the_nearest_before_training(small_config, tmp_path):
    with pytest.raises(UsageError) as caught:
        experiment.run(small_config("evaluation.local_clients=closed_qu,open_qa"), out_dir=tmp_path)
    assert "Did you mean 'closed_qa'?" in caught.value.message
    assert not list(tmp_path.iterdir())


# When things break


def test_a_run_whose_adapter_on_disk_is_not_the_one_in_memory_fails(small_config, tmp_path, monkeypatch):
    def tampered(folder, adapter, **options):
        factors = {n: Factors(A, B + 0.05) for n, (A, B) in adapter.factors.items()}
        save_adapter(folder, Adapter(factors, adapter.r, adapter.alpha, False, adapter.base_digest), **options)

    monkeypatch.setattr(outputs, "write_adapter", tampered)
    with pytest.raises(EvaluationError) as caught:
        experiment.run(small_config(*JUST_ROUNDS), out_dir=tmp_path)
    assert caught.value.exit_code == 8
    assert "the adapter on disk has held-out loss" in caught.value.message
    assert not (tmp_path / "tiny" / "summary.json").exists()


def test_a_run_whose_adapter_lost_its_scale_on_disk_fails(small_config, tmp_path, monkeypatch):
    def tampered(folder, adapter, **options):
        save_adapter(folder, Adapter(adapter.factors, adapter.r, 9 * adapter.alpha), **options)

    monkeypatch.setattr(outputs, "write_adapter", tampered)
    with pytest.raises(EvaluationError, match="the adapter on disk has held-out loss"):
        experiment.run(small_config(*JUST_ROUNDS), out_dir=tmp_path)


@pytest.fixture(scope="module")
def poisoned_model(tmp_path_factory) -> Path:
    """A model that gives NaN for every text with a snowman in it, and for no other."""
    import safetensors.torch
    from transformers import AutoTokenizer

    folder = tiny_model("llama", tmp_path_factory.mktemp("poison"))
    (snowman,) = AutoTokenizer.from_pretrained(folder)("\N{SNOWMAN}")["input_ids"][-1:]
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][snowman] = float("nan")
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def poisoned_config(model: Path, folder: Path, ill: str, small_config):
    mark = {c: "\N{SNOWMAN}" if c in ill else "" for c in "abc"}
    rows = [(f"Say {c} {i}{mark[c]}.", f"It is {c}.", f"ward-{c}") for c in "abc" for i in range(4)]
    train = jsonl(folder / "train.jsonl", rows)
    held = jsonl(folder / "held.jsonl", [(f"Tell {c}.", f"It is {c}.", f"ward-{c}") for c in "abc"])
    return small_config(
        f"model.base={model}", f"data.source={train}", f"data.held_out_source={held}", "data.rows_per_category=0",
        "evaluation.generate=0", "evaluation.arms=base,federated,local",
    )  # fmt: skip


def test_a_client_whose_loss_is_not_finite_is_named_and_the_run_goes_on(poisoned_model, small_config, tmp_path):
    events = []
    run = experiment.run(poisoned_config(poisoned_model, tmp_path, "b", small_config), events.append, tmp_path)
    for line in lines(run.path / "rounds.jsonl"):
        assert [(r["client"], r["code"]) for r in line["rejected"]] == [("ward-b", "diverged")]
        assert "loss became nan in local step 1" in line["rejected"][0]["detail"]
        assert line["weights"] == {"ward-a": 0.5, "ward-c": 0.5} and "ward-b" not in line["train_loss"]
        assert line["bytes_down"] == 3 * run.summary["adapter"]["bytes"] == 1.5 * line["bytes_up"]
    assert run.summary["bytes_down"] == 1.5 * run.summary["bytes_up"] == 6 * run.summary["adapter"]["bytes"]
    assert run.summary["arms"]["federated"]["loss"] < run.summary["arms"]["base"]["loss"]
    assert sorted(run.summary["arms"]["local"]) == ["ward-a", "ward-c"]
    assert [f["client"] for f in run.summary["failed"]] == ["ward-b"]
    assert run.summary["trained_rows"]["ward-b"] == {"rows": 4, "seen": {"0": 4}}
    assert any("ward-b" in event["message"] for event in events if event["event"] == "warning")
    states = {s["state"] for e in events if e["event"] == "step" for c, s in e["clients"].items() if c == "ward-b"}
    assert states == {"failed"}


def test_a_run_ends_with_the_reasons_when_every_client_fails(poisoned_model, small_config, tmp_path):
    with pytest.raises(ClientError) as caught:
        experiment.run(poisoned_config(poisoned_model, tmp_path, "abc", small_config), out_dir=tmp_path)
    assert caught.value.exit_code == 6
    assert "round 1: 0 usable updates, 1 needed" in caught.value.message
    for client in ("ward-a", "ward-b", "ward-c"):
        assert f"{client}: diverged" in caught.value.message
    assert "training.learning_rate" in caught.value.hint


def test_a_held_out_loss_that_is_not_a_number_ends_the_run_with_the_round_and_a_hint(
    small_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(gate, "LARGEST", np.inf)  # one step of 1e30: the update is finite, its forward pass is not
    open_gate = (*JUST_ROUNDS, "training.learning_rate=1e30", "federation.max_update_norm=0")
    with pytest.raises(EvaluationError) as caught:
        experiment.run(small_config(*open_gate), out_dir=tmp_path)
    assert "round 1" in caught.value.message and "federated" in caught.value.message
    assert "training.learning_rate" in caught.value.hint


def test_a_local_client_that_ends_with_a_loss_that_is_not_finite_counts_as_failed(small_config):
    settings = small_config("training.learning_rate=1e30", "federation.rounds=1")
    base = load_base(settings.model.base, device="cpu", dtype="float32")
    rows, _ = prepare_rows(settings, base.tokenizer)
    trainer = trainer_of(settings, base)
    measure = lambda lora: row_losses(trainer.packed, rows.held_out, lora)  # noqa: E731
    setup = Baseline(
        arm_named("local"), trainer, rows.clients, ("closed_qa", "open_qa"), 8, prepare_schedule(settings), 1.0,
        settings.run.seed, measure, observe=lambda number, report: None,
    )  # fmt: skip
    arm = setup.arm.train(setup)
    assert [(f.client, f.code) for f in arm.failures] == [("closed_qa", "diverged"), ("open_qa", "diverged")]
    assert arm.losses == arm.adapters == arm.curves == {}


# Recipes


@pytest.mark.parametrize("name", sorted(recipe.recipes()))
def test_every_packaged_recipe_runs_a_round_of_its_shape(name, model_folder, tmp_path):
    tables = tomllib.loads((recipe.RECIPES / f"{name}.toml").read_text(encoding="utf-8"))
    full = recipe.load(name)
    small = [
        f"model.base={model_folder('llama')}", "model.dtype=float32", "model.device=cpu", "run.threads=1",
        "data.held_out_per_category=1", "federation.rounds=1", "data.max_length=128",
        f"training.batch_size={min(4, full.training.batch_size)}", "evaluation.generate=1",
        "evaluation.max_new_tokens=2",
    ]  # fmt: skip
    if not full.data.source.startswith("builtin:"):
        rows = [(f"Tell me of {c} {i}.", f"{c} is {i}.", c) for c in ("red", "green", "blue") for i in range(9)]
        small += [f"data.source={jsonl(tmp_path / 'rows.jsonl', rows)}"]
    else:
        small += ["data.rows_per_category=4"]
    if full.partition.clients > 10:
        small += ["partition.clients=6", "federation.clients_per_round=3"]
    if full.training.local_steps:
        small += ["training.local_steps=1"]
    settings = recipe.load(name, small)
    assert settings.partition.name == tables["partition"]["name"]
    assert (settings.lora, settings.partition.options) == (full.lora, full.partition.options)
    run = experiment.run(settings, out_dir=tmp_path)
    assert run.path.name == name
    assert set(run.summary["arms"]) == {"base", "federated", "local", "centralised"}
    assert math.isfinite(run.summary["arms"]["federated"]["loss"])
    assert (run.path / "report.html").stat().st_size > 1000
    assert run.summary["reload_check"]["difference"] == pytest.approx(0, abs=1e-5)


def test_a_run_with_its_report_opens_no_connection(run_small, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError(f"the run asked for the network: {arguments}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert (run_small("federation.rounds=1").path / "report.html").exists()
