"""Answers to questions: who answers, what a line holds, and that nothing is generated twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from console import Shell
from shepherd.errors import DataError, EvaluationError, ModelError, NetworkError, UsageError
from shepherd.evaluation.answer_files import read_answers, read_lines
from shepherd.evaluation.judge.calls.client import Endpoint, connected
from shepherd.evaluation.judge.calls.retry import Retries
from shepherd.evaluation.question_rows import Question
from shepherd.evaluation.questions import QuestionSet
from shepherd.experiment import answer as module
from shepherd.experiment.answer import Asked, answer, arms_of, asked_of
from shepherd.experiment.held_out_questions import _question
from shepherd.serving import answering_models as models
from shepherd.serving.answering import AnswerDecoding, EndpointModel
from shepherd.serving.answering_models import adapter_model, whole_model
from shepherd.serving.tuned import load_tuned
from shepherd.store.adapters import ArmName, kept_adapters
from shepherd.types import Example, Message
from stub_judge import StubJudge, error, text

QUESTIONS = QuestionSet("few", "few.jsonl", (
    Question(1, ("Name three colours.",), "generic"),
    Question(81, ("Where do sheep live?", "Say it in one word."), "writing", ("On land.",)),
    Question("x", ("What is the capital of France, and why does it matter to the weather?",)),
))  # fmt: skip
SHORT = AnswerDecoding(max_new_tokens=5)
SIZES: list[int] = []


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    """A copy of a finished run with every arm, its answers to come."""
    folder = tmp_path / "runs" / "demo"
    folder.parent.mkdir()
    shutil.copytree(tiny_run.path, folder)
    return folder


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """The sizes of the batches that are generated, as they come."""
    sizes: list[int] = []
    original = module.answer_batch

    def counted(model, questions, decoding):
        sizes.append(len(questions))
        return original(model, questions, decoding)

    monkeypatch.setattr(module, "answer_batch", counted)
    return sizes


def ask(asked, questions=QUESTIONS, decoding=SHORT, **options):
    return list(answer(asked, questions, decoding, **options))


def test_a_run_answers_with_the_arms_of_the_default_pairs_over_one_base(run, monkeypatch):
    loads: list[str] = []
    original = models.load_base
    monkeypatch.setattr(models, "load_base", lambda name, **options: loads.append(name) or original(name, **options))
    found = ask(arms_of(run))
    kept = [one.client for one in kept_adapters(run) if one.client]
    assert len(kept) == 3
    assert [one.name for one in found] == [
        "demo:federated", "demo:base", "demo:centralised", *(f"demo:local/{client}" for client in kept)
    ]  # fmt: skip
    assert [one.file.relative_to(run / "answers" / "few").as_posix() for one in found] == [
        "federated.jsonl", "base.jsonl", "centralised.jsonl", *(f"local/{client}.jsonl" for client in kept)
    ]  # fmt: skip
    assert len(loads) == 1
    digests = {line.adapter_digest for one in found for line in read_answers(one.file).lines.values()}
    assert len(digests) == 6 and "" in digests


def test_a_line_holds_what_was_asked_and_answered_turn_by_turn(run):
    (one,) = ask([asked_of(ArmName(run))])
    lines = read_answers(one.file).lines
    assert list(lines) == [1, 81, "x"] or set(lines) == {1, 81, "x"}
    tuned = load_tuned(run)
    line = lines[81]
    first = tuned.generate("Where do sheep live?", max_new_tokens=5)
    second = tuned.generate(
        [{"role": "user", "content": "Where do sheep live?"}, {"role": "assistant", "content": first},
         {"role": "user", "content": "Say it in one word."}],
        max_new_tokens=5,
    )  # fmt: skip
    assert line.answers == (first, second) and line.turns == QUESTIONS.questions[1].turns
    assert line.tokens == (5, 5) and line.cut == (True, True)
    assert (line.run, line.arm, line.category, line.reference) == ("demo", "federated", "writing", ("On land.",))
    assert line.base_digest == tuned.base.digest and line.question_hash == QUESTIONS.questions[1].hash
    assert line.decoding == {"max_new_tokens": 5, "temperature": 0.0} and line.dtype == "float32"
    assert one.cut == 3 and one.tokens == 5


def test_nothing_is_generated_twice_and_a_kill_loses_at_most_a_batch(run, batches):
    federated = [asked_of(ArmName(run))]
    (one,) = ask(federated, batch_size=2)
    assert batches == [2, 1] and (one.generated, one.reused) == (3, 0)
    whole = one.file.read_bytes()
    (again,) = ask(federated, batch_size=2)
    assert batches == [2, 1] and (again.generated, again.reused) == (0, 3) and one.file.read_bytes() == whole
    lines = whole.splitlines(keepends=True)
    one.file.write_bytes(lines[0] + lines[1][:70])  # killed while it wrote
    (resumed,) = ask(federated, batch_size=2)
    assert batches[2:] == [2] and (resumed.generated, resumed.reused) == (2, 1)
    assert sorted(one.file.read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_other_decoding_and_other_texts_are_asked_anew_and_earlier_answers_come_back(run, batches):
    federated = [asked_of(ArmName(run))]
    (one,) = ask(federated)
    first = read_answers(one.file)
    ask(federated, decoding=AnswerDecoding(max_new_tokens=3))
    assert {line.tokens for line in read_answers(one.file).lines.values()} == {(3,), (3, 3)}
    changed = QuestionSet("few", "", (Question(1, ("Name four colours.",)), *QUESTIONS.questions[1:]))
    ask(federated, changed)
    assert batches == [3, 3, 1]
    ask(federated)
    assert batches == [3, 3, 1] and read_answers(one.file).lines == first.lines
    drawn = [
        (ask(federated, decoding=AnswerDecoding(5, 1.5, seed)), read_answers(one.file).lines) for seed in (1, 2, 1)
    ]
    assert [answered.generated for (answered,), _ in drawn] == [3, 3, 0]
    assert drawn[0][1] == drawn[2][1]
    answers = {line.answers for _, lines in drawn for line in lines.values()}
    assert len(answers) == 6  # each question and seed has numbers of its own


def test_the_base_of_two_runs_answers_once(run, batches):
    other = run.with_name("other")
    shutil.copytree(run, other)
    found = ask([asked_of(ArmName(run, "base")), asked_of(ArmName(other, "base"))])
    assert batches == [3] and [(one.generated, one.reused) for one in found] == [(3, 0), (0, 3)]
    assert found[1].file.is_relative_to(other) and read_answers(found[1].file).name == "other:base"


def test_an_interrupted_change_of_settings_is_not_taken_for_one_system(run):
    federated = [asked_of(ArmName(run))]
    (one,) = ask(federated)
    later = QuestionSet("few", "", QUESTIONS.questions[:1])
    ask(federated, later, AnswerDecoding(max_new_tokens=3))
    with pytest.raises(EvaluationError, match="differ in decoding"):
        read_answers(one.file)


def test_held_out_rows_get_the_answers_of_the_run_s_own_evaluation(run):
    records = [json.loads(line) for line in (run / "evaluation/generations.jsonl").read_text("utf-8").splitlines()]
    notes: list[str] = []
    found = ask(
        [asked_of(ArmName(run)), asked_of(ArmName(run, "base"))], len(records), AnswerDecoding(3), note=notes.append
    )
    for one, arm in zip(found, ("federated", "base"), strict=True):
        lines = read_answers(one.file).lines
        assert {record["id"]: record["answers"][arm] for record in records} == {
            name: line.answers[0] for name, line in lines.items()
        }
        assert {record["id"]: record["prompt"][-1]["content"] for record in records} == {
            name: line.turns[0] for name, line in lines.items()
        }
        assert [line.reference for line in lines.values()] == [
            (records_of(records, name)["reference"],) for name in lines
        ]
    assert found[0].file.parent.name == "held-out"
    assert notes[0] == "held-out: 2 rows of builtin:instructions, licence: Apache-2.0"


def records_of(records, name):
    return next(record for record in records if record["id"] == name)


def test_a_question_beyond_the_window_is_refused_before_any_is_answered(run):
    long = QuestionSet("long", "", (*QUESTIONS.questions, Question("long", ("sheep " * 600,))))
    with pytest.raises(
        DataError, match=r"demo:federated cannot answer 1 of 4 questions:\n  long: \d+ tokens and 5 for"
    ):
        ask([asked_of(ArmName(run))], long)
    with pytest.raises(
        DataError, match=r"1 of 3 questions:\n  81: \d+ tokens and 480 for answers are more than the 512"
    ):
        ask([asked_of(ArmName(run))], decoding=AnswerDecoding(max_new_tokens=240))
    assert not list((run / "answers").rglob("*.jsonl"))


def test_a_folder_with_an_adapter_and_a_whole_model_answer_like_the_arms(run, model_folder, tmp_path):
    tiny = str(model_folder())
    outside = [
        Asked("adapter", tmp_path / "out", "adapter", lambda _: adapter_model(run / "adapter", tiny, dtype="float32")),
        Asked("tiny", tmp_path / "out", "tiny", lambda _: whole_model(tiny, dtype="float32")),
    ]
    arms = [asked_of(ArmName(run)), asked_of(ArmName(run, "base"))]
    for one, arm in zip(ask(outside), ask(arms), strict=True):
        ours, theirs = read_answers(one.file), read_answers(arm.file)
        assert ours.name in ("adapter", "tiny")
        assert {line.answers for line in ours.lines.values()} == {line.answers for line in theirs.lines.values()}
    with pytest.raises(ModelError, match="belongs to another base"):
        adapter_model(run / "adapter", str(model_folder("qwen2")))


def test_an_adapter_of_another_scale_is_not_answered_from_the_cache(run, model_folder, tmp_path):
    tiny, folder = str(model_folder()), tmp_path / "adapter"
    shutil.copytree(run / "adapter", folder)
    asked = Asked("adapter", tmp_path / "out", "adapter", lambda _: adapter_model(folder, tiny, dtype="float32"))
    (first,) = ask([asked])
    config = folder / "adapter_config.json"
    table = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps(table | {"lora_alpha": 2 * table["lora_alpha"]}), "utf-8")
    (second,) = ask([asked])
    assert (first.generated, second.generated, second.reused) == (3, 3, 0)


def test_two_models_of_one_name_do_not_write_one_file_unsaid(model_folder, tmp_path):
    def called(folder):
        return Asked("adapter", tmp_path / "out", "adapter", lambda _: whole_model(str(folder), dtype="float32"))

    one, other = called(model_folder()), called(model_folder("qwen2"))
    with pytest.raises(UsageError, match="two of the models are both called adapter"):
        ask([one, other])
    said = []
    for asked in (one, one, other):
        ask([asked], note=said.append)
    assert [line for line in said if "answers of another model of that name" in line] == [
        f"{tmp_path / 'out' / 'few' / 'adapter.jsonl'} holds answers of another model of that name, which count no "
        "more; another --out keeps them"
    ]


def test_an_arm_that_is_not_there_is_refused_by_name(run):
    with pytest.raises(UsageError, match="has no client 'nobody'"):
        asked_of(ArmName(run, "local", "nobody"))
    with pytest.raises(UsageError, match="has no checkpoint of round 9"):
        asked_of(ArmName(run, round=9))


# Endpoints


def remote(stub, place: Path) -> Asked:
    endpoint = Endpoint.named(stub.url, "far")
    model = EndpointModel(endpoint, connected(endpoint, Retries(tries=1)))
    return Asked("far", place, "far", lambda _: model)


def test_an_endpoint_is_asked_each_turn_after_its_own_answer(tmp_path):
    def script(_number, request):
        last = request["messages"][-1]["content"]
        return text(f"to {last[:5]}", model="far-v2", choices=[{
            "index": 0, "finish_reason": "length" if last.startswith("Name") else "stop",
            "message": {"role": "assistant", "content": f"to {last[:5]}"},
        }])  # fmt: skip

    notes: list[str] = []
    with StubJudge(script) as stub:
        (one,) = ask([remote(stub, tmp_path)], batch_size=2, note=notes.append)
        again = ask([remote(stub, tmp_path)], batch_size=2)
        assert len(stub.requests) == 4 and again[0].reused == 3
    assert notes[-1].endswith("answered as far-v2, asked for far")
    lines = read_answers(one.file).lines
    assert lines[81].answers == ("to Where", "to Say i") and lines[81].tokens == (10, 10)
    assert [line.cut for line in lines.values()] == [(True,), (False, False), (False,)]
    assert lines[1].endpoint == stub.url.split("/")[2] and lines[1].base == "far" and lines[1].name == "far"
    second = next(r for r in stub.requests if len(r["messages"]) == 3)
    assert [m["content"] for m in second["messages"]] == ["Where do sheep live?", "to Where", "Say it in one word."]
    assert second["max_tokens"] == 5 and second["temperature"] == 0.0 and "seed" not in second


def test_an_endpoint_gets_the_conversation_before_a_question(tmp_path):
    told = (Message("system", "Be brief."), Message("user", "Hello."), Message("assistant", "Hi."))
    with StubJudge(lambda number, request: text("Yes.", model="far")) as stub:
        list(answer([remote(stub, tmp_path)], QuestionSet("told", "", (Question(1, ("Well?",), before=told),)),
                    AnswerDecoding(5)))  # fmt: skip
    (request,) = stub.requests
    assert [(turn["role"], turn["content"]) for turn in request["messages"]] == [
        ("system", "Be brief."), ("user", "Hello."), ("assistant", "Hi."), ("user", "Well?"),
    ]  # fmt: skip


def test_the_reference_of_a_held_out_row_that_calls_a_tool_is_the_call():
    called = Message("assistant", "", extra='{"tool_calls": []}')
    rows = [Example("r", (Message("user", "Well?"), answer)) for answer in (called, Message("assistant", "Yes."))]
    assert [_question(row).reference for row in rows] == [('{"tool_calls": []}',), ("Yes.",)]


def test_a_refused_question_leaves_the_others_and_is_asked_again_later(tmp_path):
    def script(_number, request):
        return error(400, "too long") if len(request["messages"]) == 3 else text("yes", model="far")

    with (
        StubJudge(script) as stub,
        pytest.raises(NetworkError, match=r"far: 1 question of 3 without an answer: .*too l"),
    ):
        ask([remote(stub, tmp_path)], batch_size=2)
    file = tmp_path / "few" / "far.jsonl"
    assert [line.question_id for line in read_lines(file)] == [1, "x"] and len(stub.requests) == 4


def test_a_refused_key_ends_the_command_and_what_was_paid_for_stays(tmp_path):
    def script(number, _request):
        return error(401) if number > 1 else text("yes", model="far")

    with StubJudge(script) as stub, pytest.raises(NetworkError, match=r"2 questions of 3 without .* refuses a request"):
        ask([remote(stub, tmp_path)], batch_size=1)
    assert [line.question_id for line in read_lines(tmp_path / "few" / "far.jsonl")] == [1] and len(stub.requests) == 2


# The command


@pytest.fixture
def shell(capsys, monkeypatch, run) -> Shell:
    monkeypatch.chdir(run.parent.parent)
    monkeypatch.setenv("SHEPHERD_CACHE", str(run.parent.parent / "cache"))
    row = {"question_id": 1, "text": "Name three colours.", "answer": "Red, green and blue."}
    Path("mine.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"question_id": 2, "text": "Why?"}) + "\n")
    Path("nameless.jsonl").write_text(json.dumps({"text": "Why?"}) + "\n")
    Path("empty.jsonl").write_text("")
    return Shell(capsys, monkeypatch)


def test_the_command_prints_a_line_for_each_arm_and_says_what_was_cut(shell):
    outcome = shell("answer", "demo", "runs/demo@2", "--questions", "mine.jsonl", "--limit", 1, "--max-new-tokens", 4)
    head, *rows = outcome.out.splitlines()
    assert outcome.status == 0 and head.split()[:3] == ["answers", "of", "questions"]
    assert [row.split()[0] for row in rows][:3] == ["demo:federated", "demo:base", "demo:centralised"]
    assert rows[-1].split()[:5] == ["demo@2", "1", "0", "1", "1"]  # the last round is the federated adapter
    assert "2 questions of mine.jsonl, licence: not stated" in outcome.err
    assert "of the questions is not used: answer (2 rows)" in outcome.err
    assert "marked as cut: 7 questions with an answer that ended at --max-new-tokens 4" in outcome.err


@pytest.mark.parametrize(
    "line, status, message",
    [
        (("--questions", "mine.jsonl"), 2, "nobody to answer"),
        (("dmeo", "--questions", "mine.jsonl"), 2, "run not found: dmeo. Did you mean 'demo'?"),
        (("demo:centralized", "--questions", "mine.jsonl"), 2, "has no arm 'centralized'. Did you mean 'centralised'?"),
        (("demo:local/nobody", "--questions", "mine.jsonl"), 2, "has no client 'nobody'"),
        (("demo", "--questions", "nameless.jsonl"), 3, "nameless.jsonl: 1 question without an id: row 1"),
        (("demo", "--questions", "empty.jsonl"), 3, "empty.jsonl has no rows"),
        (("demo", "--questions", "vicuna"), 3, "cache/questions/vicuna.jsonl"),
        (("demo", "--questions", "none.jsonl"), 3, "data not found: none.jsonl"),
        (("demo", "--questions", "mine.jsonl", "--max-new-tokens", "600"), 3, "more than the 512 that the model reads"),
        (("demo/adapter", "--questions", "held-out"), 2, "run not found"),
        (("runs/demo/adapter", "--questions", "held-out"), 2, "adapter has no held-out rows"),
        (("model:nosuch", "--questions", "mine.jsonl"), 4, "unknown model: 'nosuch'"),
        (("--endpoint", "http://127.0.0.1:9/v1", "--questions", "mine.jsonl"), 2, "--endpoint and --model belong"),
        (("--endpoint", "http://127.0.0.1:9/v1", "--model", "far", "--questions", "mine.jsonl"), 7,
         "cannot be reached"),
        (("--endpoint", "https://example.org/v1", "--model", "far", "--questions", "mine.jsonl",
          "--key-variable", "NO_SUCH_KEY"), 2, "NO_SUCH_KEY is not set"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_by_name_and_status(shell, monkeypatch, line, status, message):
    monkeypatch.setattr(Retries, "__init__", lambda self, *a, **k: self.__dict__.update(
        tries=1, first_wait=0.0, longest_wait=0.0, sleep=lambda _: None))  # fmt: skip
    outcome = shell("answer", *line)
    assert outcome.status == status and message in outcome.err and "Traceback" not in outcome.err
