"""Benchmarks: the harness computes the run's own losses from the tokens of its rows; names, records and failures."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from shepherd.data.sources import load_examples
from shepherd.data.tokenize import encode_prompt, tokenize
from shepherd.errors import DataError, EvaluationError, NetworkError, UsageError
from shepherd.evaluation.losses import row_losses
from shepherd.experiment.benchmarks import benchmark as module
from shepherd.experiment.benchmarks import child, documents, tasks
from shepherd.experiment.benchmarks.benchmark import Settings, benchmark
from shepherd.experiment.benchmarks.documents import CHOICES, KINDS, Rows
from shepherd.experiment.benchmarks.models import pick_models
from shepherd.experiment.benchmarks.record import merged_record, task_records
from shepherd.experiment.benchmarks.tasks import parse, task_name
from shepherd.model.forward import PackedModel
from shepherd.model.generate import generate
from shepherd.report import write_report
from shepherd.serving.tuned import load_tuned
from shepherd.store import read_json
from shepherd.store.listing import entry
from shepherd.types import Message, Tokens

QUESTIONS = ("Name a colour.", "Name a fish.", "Name a tree.", "Two and two?", "Why is it so?", "Who is there?")
TWO_TURNS = {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Yes, one."},
                          {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "No."}]}  # fmt: skip


def rows_of(file, tuned) -> Rows:
    """The rows of a file as the run tokenises them."""
    found = load_examples(str(file)).examples
    data = tuned.config.data
    tokens = tokenize(found, tuned.base.tokenizer, tuned.template, data.max_length).tokens
    by_id = {example.id: example for example in found}
    return Rows(by_id, tokens, tuned.template, tuned.base.tokenizer, data.max_length, 3, 512)


def choice_losses(document, packed, lora=None) -> np.ndarray:
    """Nats of each choice of a document, by the loss of training."""
    found = []
    for ids, [[start, end]] in zip(document["token_ids"], document["answer_spans"], strict=True):
        mask = np.zeros(len(ids), bool)
        mask[start:end] = True
        found.append(Tokens("", np.array(ids, np.int32), mask))
    return row_losses(packed, found, lora)[0].nll


def test_the_harness_gives_a_runs_own_losses_choices_and_answers_for_base_adapter_and_merged_model(
    tiny_run, tmp_path, capsys
):
    run = shutil.copytree(tiny_run.path, tmp_path / "runs" / "tiny")
    tuned = load_tuned(run)
    base, packed = tuned.base, PackedModel(tuned.base.model)
    prompts = [encode_prompt(tuned.template, base.tokenizer, [Message("user", asked)]) for asked in QUESTIONS]
    answers = generate(base.model, base.tokenizer, prompts, stops=tuned.template.stops, max_new_tokens=3)
    lines = [{"instruction": q, "response": a.text} for q, a in zip(QUESTIONS, answers, strict=True) if a.text.split()]
    (file := tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, [*lines, TWO_TURNS])))
    said = []

    wanted = parse(["held-out:likelihood", str(file)])
    found = {r["task"]: r for r in benchmark(run, ["", "centralised"], wanted, Settings(batch_size=3), said.append)}

    arms = ["base", "federated", "merged", "centralised"]
    assert {name: list(record["models"]) for name, record in found.items()} == dict.fromkeys(
        ("held-out:likelihood", "mine:likelihood", "mine:choice", "mine:generation"), arms
    )
    assert said[0].endswith("mine.jsonl: rows of 2 formats: 6 dolly, 1 messages")
    assert [" ".join(sentence.split()[:2]) for sentence in said[1:]] == [
        "evaluating base", "evaluating federated", "exporting merged", "evaluating merged", "evaluating centralised"
    ]  # fmt: skip
    # The loss of the run, in every arm, with its standard error and its difference.
    held_out, metrics = found["held-out:likelihood"], read_json(run / "evaluation" / "metrics.json")
    for arm in ("base", "federated", "centralised"):
        figure = held_out["models"][arm]["metrics"]["loss"]
        assert figure["value"] == pytest.approx(metrics["arms"][arm]["loss"], abs=1e-5)
        assert figure["stderr"] == pytest.approx(metrics["arms"][arm]["stderr"], abs=1e-5)
    difference = next(d for d in metrics["differences"] if (d["a"], d["b"]) == ("federated", "base"))
    ours = next(d for d in held_out["differences"] if (d["a"], d["b"]) == ("federated", "base"))
    assert ours["difference"] == pytest.approx(difference["difference"], abs=1e-5)
    assert ours["ci95"] == pytest.approx(difference["ci95"], abs=1e-5)
    # Row by row, also where a row has two answers.
    rows, mine = rows_of(file, tuned), found["mine:likelihood"]
    assert mine["rows"] == [row.id for row in rows.tokens]
    assert len(documents.likelihood(rows).documents[-1]["answer_spans"][0]) == 2
    for arm, lora in (("base", None), ("federated", tuned.lora)):
        expected = row_losses(packed, rows.tokens, lora)[0]
        assert np.array(mine["models"][arm]["scores"]["loss"]) == pytest.approx(
            np.stack([expected.nll, expected.tokens], 1), abs=1e-3
        )
    choices, chosen = documents.choice(rows).documents, found["mine:choice"]
    for arm, lora in (("base", None), ("federated", tuned.lora)):
        right = [int(np.argmin(choice_losses(doc, packed, lora)) == doc["gold"]) for doc in choices]
        assert chosen["models"][arm]["scores"]["acc"] == right
        assert chosen["models"][arm]["metrics"]["acc"]["value"] == pytest.approx(np.mean(right))
    # The references are the answers of the base, so the base answers all but the last row exactly.
    exact = found["mine:generation"]["models"]["base"]["scores"]["exact_match"]
    assert exact[: len(lines)] == [1.0] * len(lines) and len(lines) >= 4
    for record in found.values():
        for metric in record["metrics"]:
            one, other = (record["models"][arm]["metrics"][metric]["value"] for arm in ("federated", "merged"))
            assert one == pytest.approx(other, abs=1e-3)
        assert record["harness"]["lm_eval"] and record["hash"] and record["limit"] is None
        assert record["models"]["base"]["args"]["dtype"] == "float32"
    assert found["mine:choice"]["models"]["federated"]["metrics"]["acc"]["stderr"] is not None

    # What a person sees of it.
    assert entry(run).benchmarks == ("held-out-likelihood", "mine-choice", "mine-generation", "mine-likelihood")
    page = write_report(run).read_text(encoding="utf-8")
    loss = held_out["models"]["federated"]["metrics"]["loss"]
    assert f"{loss['value']:.3f} ± {loss['stderr']:.3f}" in page and "mine:generation" in page
    from shepherd.cli.benchmark import _print

    _print([*found.values()])
    assert f"{loss['value']:.3f} ± {loss['stderr']:.3f}" in capsys.readouterr().out


def some_rows(tuned_template, tokenizer, count: int, tmp_path, max_length: int = 128) -> Rows:
    file = tmp_path / "some.jsonl"
    lines = [{"instruction": f"Question {n}?", "response": f"Answer number {n}."} for n in range(count)]
    file.write_text("\n".join(map(json.dumps, lines)))
    found = load_examples(str(file)).examples
    tokens = tokenize(found, tokenizer, tuned_template, max_length).tokens
    return Rows({e.id: e for e in found}, tokens, tuned_template, tokenizer, max_length, 3, 512)


@pytest.fixture(scope="module")
def parts(model_folder):
    from shepherd.data.prompts import build_template
    from shepherd.model.base import load_tokenizer

    tokenizer = load_tokenizer(model_folder("llama"))
    return build_template("alpaca", tokenizer), tokenizer


def test_a_choice_is_the_reference_among_responses_of_other_rows_at_drawn_places(parts, tmp_path):
    rows = some_rows(*parts, 24, tmp_path, max_length=512)
    found = documents.choice(rows)
    assert len(found.documents) == 24 and not found.left_out
    assert {len(doc["choices"]) for doc in found.documents} == {CHOICES}
    for doc in found.documents:
        assert doc["choices"][doc["gold"]] == rows.examples[doc["id"]].messages[-1].content
        assert len(set(doc["choices"])) == CHOICES
        starts = {
            (tuple(ids[:start]), start) for ids, [[start, _]] in zip(doc["token_ids"], doc["answer_spans"], strict=True)
        }
        assert len(starts) == 1, "every choice continues the same prompt"
    assert {doc["gold"] for doc in found.documents} == set(range(CHOICES))
    assert documents.choice(rows) == found, "a draw of its own seed, not of the run's"


def test_rows_that_a_task_cannot_use_are_counted_by_reason(parts, tmp_path):
    assert documents.choice(some_rows(*parts, 3, tmp_path, max_length=512)).left_out == {
        "with too few other responses that fit": 3
    }
    short = some_rows(*parts, 6, tmp_path, max_length=20)
    for kind in ("choice", "generation"):
        assert KINDS[kind](short).left_out == {"cut to data.max_length": 6}
    assert documents.none_left("x:choice", documents.choice(short)) == (
        "x:choice has no document: 6 rows cut to data.max_length"
    )
    assert len(KINDS["likelihood"](short).documents) == 6


def test_names_of_tasks_are_sorted_by_who_defines_them(tmp_path):
    (file := tmp_path / "rows.jsonl").write_text("{}")
    found = parse(["held-out", "arc_easy", f"{file}:choice", "held-out:choice"])
    assert found.offline == {
        "held-out": {"likelihood": False, "choice": True, "generation": False},
        str(file): {"choice": True},
    }
    assert found.harness == ("arc_easy",)
    assert task_name(str(file), "choice") == "rows:choice" and task_name("held-out", "choice") == "held-out:choice"
    for name, message in (
        ("held-out:choise", "Did you mean 'choice'"),
        (f"{file}:chioce", "Did you mean 'choice'"),
        ("nowhere.jsonl", "no file of rows: nowhere.jsonl"),
        ("", "the name of a task is empty"),
    ):
        with pytest.raises(UsageError, match=message):
            parse([name])
    other = tmp_path / "b" / "rows.jsonl"
    other.parent.mkdir()
    other.write_text("{}")
    with pytest.raises(UsageError, match="two sources of rows are called 'rows'"):
        parse([str(file), str(other)])


def test_without_the_harness_the_extra_is_named(monkeypatch, tiny_run):
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="'lm_eval'") as caught:
        benchmark(tiny_run.path, [""], parse(["held-out"]))
    assert "[eval]" in caught.value.hint


def test_an_arm_without_an_adapter_is_named_with_the_nearest_one(tiny_run):
    with pytest.raises(UsageError, match=r"has no arm 'centralized'\. Did you mean 'centralised'\?"):
        benchmark(tiny_run.path, ["centralized"], parse(["arc_easy"]))


def test_rows_too_short_for_a_named_kind_are_an_error(tiny_run):
    with pytest.raises(DataError, match=r"held-out:choice has no document: .* cut to data.max_length"):
        benchmark(tiny_run.path, ["base"], parse(["held-out:choice"]))


def test_a_quantised_run_has_no_merged_model_by_default(small_config):
    assert pick_models(["", "centralised"], small_config()) == ["base", "federated", "merged", "centralised"]
    assert pick_models([""], small_config("model.quantize=4bit", "model.device=cuda")) == ["base", "federated"]


def harness(error: type[OSError] | None = None) -> SimpleNamespace:
    """A task manager that knows a task, a group of it and a tag, and loads or fails."""

    def an_entry(kind: str, cfg=None, tags=()) -> SimpleNamespace:
        return SimpleNamespace(cfg=cfg, kind=SimpleNamespace(name=kind), tags=set(tags))

    def load(names):
        if error is not None:
            raise error("the hub is off")
        return {"tasks": {}}

    index = {
        "arc_easy": an_entry("TASK", {"task": "arc_easy", "dataset_path": "org/arc"}, ["arc"]),
        "both": an_entry("GROUP", {"group": "both", "task": ["arc_easy", {"task": "arc_easy"}]}),
        "arc": an_entry("TAG", tags=["arc_easy"]),
    }
    return SimpleNamespace(task_index=index, all_tasks=sorted(index), load=load)


@pytest.mark.parametrize("name", ["arc_easy", "both", "arc"])
def test_a_task_without_its_dataset_is_named_with_it(name, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NetworkError, match=f"task '{name}' reads the dataset org/arc, .* the network is off"):
        child.load_tasks(harness(ConnectionError), [name], None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(NetworkError, match=f"task '{name}': the dataset org/arc cannot be read: the hub is off"):
        child.load_tasks(harness(ConnectionError), [name], None)


def test_an_unknown_task_is_named_with_the_nearest_one():
    pytest.importorskip("lm_eval")
    with pytest.raises(UsageError, match=r"unknown task: 'arc_eesy'\. Did you mean 'arc_easy'\?"):
        child.load_tasks(harness(), ["arc_eesy"], None)


def test_a_failed_process_shows_its_last_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHILD", "shepherd.no_such_module")
    with pytest.raises(EvaluationError, match=r"(?s)ended with status 1; its last lines:.*No module named"):
        module._run({"out": str(tmp_path / "out.json")}, tmp_path / "job.json", False, print)


def test_an_error_of_the_process_keeps_its_kind():
    error = module._same_error({"status": 7, "message": "what", "hint": "how"})
    assert (type(error), error.message, error.hint) == (NetworkError, "what", "how")


def test_the_process_has_the_hub_off_unless_the_user_or_download_turned_it_on(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_DATASETS_TRUST_REMOTE_CODE", "1")
    closed = module._environment()
    assert {closed[name] for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")} == {"1"}
    assert "HF_DATASETS_TRUST_REMOTE_CODE" not in closed
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert "HF_EVALUATE_OFFLINE" not in module._environment()


def measured(**models: list[float]) -> dict:
    """What the process measured: accuracy of each model on three documents."""
    return {
        "versions": {"lm_eval": "0.4.13"},
        "models": {
            name: {
                "dtype": "float32",
                "device": "cpu",
                "tasks": {
                    "t": {
                        "version": 1, "hash": "abc", "fewshot": 0, "higher_is_better": {"acc": True},
                        "metrics": {"acc,none": {"value": sum(scores) / 3, "stderr": 0.1}},
                        "rows": ["a", "b", "c"], "scores": {"acc,none": scores},
                    }
                },
            }
            for name, scores in models.items()
        },
    }  # fmt: skip


def test_differences_are_of_the_federated_model_over_the_same_documents():
    found = task_records(measured(base=[0, 1, 0], federated=[1, 1, 0], local=[0, 0, 0]),
                         {"base": {}, "federated": {}, "local": {}}, limit=3)["t"]  # fmt: skip
    assert [(d["a"], d["b"], d["difference"]) for d in found["differences"]] == [
        ("federated", "local", pytest.approx(2 / 3)), ("federated", "base", pytest.approx(1 / 3)),
    ]  # fmt: skip
    alone = task_records(measured(base=[0, 1, 0], local=[1, 1, 1]), {"base": {}, "local": {}}, limit=3)["t"]
    assert [(d["a"], d["b"]) for d in alone["differences"]] == [("local", "base")]


def test_a_repeated_benchmark_adds_models_only_where_it_measured_the_same():
    first = task_records(measured(base=[0, 1, 0]), {"base": {}}, limit=None)["t"]
    second = task_records(measured(federated=[1, 1, 0]), {"federated": {}}, limit=None)["t"]
    both = merged_record(first, second)
    assert list(both["models"]) == ["base", "federated"] and len(both["differences"]) == 1
    for change in ({"hash": "other"}, {"limit": 2}, {"harness": {"lm_eval": "0.4.14"}}):
        assert list(merged_record({**first, **change}, second)["models"]) == ["federated"]
    assert merged_record({}, second) == second
