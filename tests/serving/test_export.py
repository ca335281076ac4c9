"""Export: what others load gives the run's own logits, and nothing is left where it does not."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from console import Shell
from shepherd.errors import DataError, EvaluationError, ModelError, ResourceError, UsageError
from shepherd.serving.export import export
from shepherd.serving.merged_card import merged_card
from shepherd.serving.tuned import load_tuned
from shepherd.store import read_json
from shepherd.store.adapters import find_adapter
from tiny import CHAT_TEMPLATE, tiny_model
from tiny_run import tiny_run

IDS = (5, 17, 40, 8, 99, 3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHEPHERD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    base = tiny_model("llama", folder)
    (base / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n", encoding="utf-8")
    (base / "LICENSE").write_text("Share alike.", encoding="utf-8")
    return tiny_run(folder)


@pytest.fixture
def copy_of_run(run, tmp_path) -> Path:
    """A run that a test may spoil."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def ours(run: Path) -> np.ndarray:
    return load_tuned(run, device="cpu", dtype="float32").logits(IDS).numpy()


def theirs(model) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([IDS])).logits[0].float().numpy()


def load(folder: Path, **options):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32} | options)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_peft_gives_our_logits_from_an_export(kind, tmp_path):
    from peft import PeftModel

    run = tiny_run(tmp_path, kind)
    written = export(run, "peft", tmp_path / "out")
    base = load(tmp_path / kind)
    before = theirs(base)
    got = theirs(PeftModel.from_pretrained(base, str(tmp_path / "out")))
    np.testing.assert_allclose(got, ours(run), atol=1e-4)
    assert np.abs(got - before).max() > 0.05  # the adapter does something
    assert written.difference <= 1e-4 and written.rounding == 0


def test_a_peft_export_is_the_adapter_folder_byte_for_byte(run, tmp_path):
    assert export(run, "peft", tmp_path / "deep" / "er").path == tmp_path / "deep" / "er"
    names = {p.name for p in (run / "adapter").iterdir()}
    assert names == {p.name for p in (tmp_path / "deep" / "er").iterdir()} > {"adapter_model.safetensors", "README.md"}
    for name in names:
        assert (tmp_path / "deep" / "er" / name).read_bytes() == (run / "adapter" / name).read_bytes()


def auto(folder: Path):
    """Loaded by nothing but what the folder says, as vLLM, lm-eval and others do."""
    import torch
    from peft import AutoPeftModelForCausalLM

    with warnings.catch_warnings():  # peft asks transformers by an old name
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        return AutoPeftModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)


def test_peft_finds_the_base_of_a_run_and_of_an_export_by_itself(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)  # not where the run was started
    for folder in (run / "adapter", export(run, "peft", tmp_path / "out").path):
        np.testing.assert_allclose(theirs(auto(folder)), ours(run), atol=1e-4)


def test_a_run_that_named_its_base_by_a_name_of_ours_is_exported_with_one_that_peft_finds(copy_of_run, run, tmp_path):
    path = copy_of_run / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": "smollm2-135m"}))
    (copy_of_run / "adapter" / "MANIFEST.json").unlink(missing_ok=True)  # as it was sealed with the other name
    assert load_tuned(copy_of_run).base.digest == load_tuned(run).base.digest  # what is named there is not asked
    written = export(copy_of_run, "peft", tmp_path / "out").path
    assert json.loads((written / "adapter_config.json").read_text()) == config
    np.testing.assert_allclose(theirs(auto(written)), ours(run), atol=1e-4)


@pytest.mark.parametrize(
    ("base", "said"), [("lab/elsewhere@v2", "is not on this machine"), ("{other}", "warning: {other} is not the base")]
)
def test_an_export_for_another_machine_names_the_base_that_is_given_and_says_what_was_looked_at(
    run, tmp_path, base, said
):
    other = str(tiny_model("llama", tmp_path, seed=7))
    notes: list[str] = []
    written = export(run, "peft", tmp_path / "out", base=base.format(other=other), note=notes.append).path
    assert said.format(other=other) in notes[0]
    named = json.loads((written / "adapter_config.json").read_text())
    if base == "lab/elsewhere@v2":
        assert (named["base_model_name_or_path"], named["revision"]) == ("lab/elsewhere", "v2")
    else:
        assert named["base_model_name_or_path"] == other
    assert not (written / "MANIFEST.json").exists()  # it would be that of the run's own folder
    with pytest.raises(UsageError, match="needs no base"):
        export(run, "merged", tmp_path / "merged", base="lab/elsewhere")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_a_merged_model_gives_our_logits_with_transformers_alone(kind, tmp_path):
    run = tiny_run(tmp_path, kind)
    written = export(run, "merged", tmp_path / "out")
    np.testing.assert_allclose(theirs(load(tmp_path / "out")), ours(run), atol=1e-4)
    assert written.difference <= 1e-4 and written.rounding == 0
    assert written.tokens > 20


def test_a_merged_model_brings_its_tokenizer_its_template_and_the_licences(run, tmp_path):
    from transformers import AutoTokenizer

    export(run, "merged", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    own = load_tuned(run).base.tokenizer
    assert tokenizer("Name three sheep.").input_ids == own("Name three sheep.").input_ids
    assert tokenizer.chat_template == CHAT_TEMPLATE and tokenizer.eos_token == own.eos_token
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    for fact in ("cc-by-sa-4.0", summary["data"]["licence"], summary["adapter_sha256"], "2 clients in 1 round, "):
        assert fact in card
    assert (tmp_path / "out" / "LICENSE").read_text(encoding="utf-8") == "Share alike."


def test_merged_weights_can_be_rounded_and_the_rounding_is_told_apart_from_errors(run, tmp_path):
    import torch

    notes: list[str] = []
    written = export(run, "merged", tmp_path / "out", dtype="bfloat16", note=notes.append)
    assert {p.dtype for p in load(tmp_path / "out", dtype="auto").parameters()} == {torch.bfloat16}
    assert written.difference <= 1e-4 < written.rounding
    assert f"rounding the weights to bfloat16 moved them by up to {written.rounding:.1e}" in notes[0]
    # bfloat16 keeps 8 bits: each weight is off by at most 2^-9 of itself.
    exact, rounded = tmp_path / "exact", load(tmp_path / "out").state_dict()
    export(run, "merged", exact)
    for name, weight in load(exact).state_dict().items():
        np.testing.assert_allclose(rounded[name], weight, rtol=2**-8, atol=1e-30)


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_an_export_that_gives_other_logits_fails_and_leaves_nothing(to, run, tmp_path, monkeypatch):
    import shepherd.serving.export

    load_model = shepherd.serving.export._load

    def worn(folder):  # a file that lost something on its way
        model = load_model(folder)
        if to == "peft" or folder.name != "llama":
            model.get_output_embeddings().weight.data[7] += 0.01
        return model

    monkeypatch.setattr("shepherd.serving.export._load", worn)
    with pytest.raises(EvaluationError, match="other logits than the run's model") as caught:
        export(run, to, tmp_path / "there" / "out")
    assert caught.value.exit_code == 8
    assert list((tmp_path / "there").iterdir()) == []


def test_logits_that_are_not_numbers_fail_too(run, tmp_path, monkeypatch):
    monkeypatch.setattr("shepherd.serving.export._largest", lambda a, b: float("nan"))
    with pytest.raises(EvaluationError):
        export(run, "peft", tmp_path / "out")


def test_nothing_is_overwritten_but_an_empty_folder_may_be_filled(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep", encoding="utf-8")
    (tmp_path / "file").write_text("keep", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        with pytest.raises(UsageError, match="nothing is overwritten"):
            export(run, "peft", tmp_path / name)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    export(run, "peft", tmp_path / "empty")
    assert (tmp_path / "empty" / "adapter_config.json").is_file()


def test_a_quantised_base_is_not_merged_and_the_reason_is_given(copy_of_run, tmp_path):
    config = copy_of_run / "config.toml"
    config.write_text(config.read_text().replace('quantize = "none"', 'quantize = "4bit"'))
    with pytest.raises(UsageError, match="a base in 4bit") as caught:
        export(copy_of_run, "merged", tmp_path / "out")
    assert "--to peft" in caught.value.hint
    assert export(copy_of_run, "peft", tmp_path / "out").difference <= 1e-4


def test_an_adapter_of_another_base_is_not_exported(tmp_path):
    run = tiny_run(tmp_path)
    tiny_model("llama", tmp_path, seed=1)
    with pytest.raises(ModelError, match="belongs to another base"):
        export(run, "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_generated_nothing_is_checked_on_fixed_questions(copy_of_run, tmp_path):
    (copy_of_run / "evaluation" / "generations.jsonl").unlink()
    notes: list[str] = []
    assert export(copy_of_run, "peft", tmp_path / "out", note=notes.append).tokens > 20
    assert "the logits of 3 conversations" in notes[0]


def test_broken_generations_are_an_error(copy_of_run, tmp_path):
    (copy_of_run / "evaluation" / "generations.jsonl").write_text('{"prompt": 3}\n')
    with pytest.raises(DataError, match=r"generations\.jsonl"):
        export(copy_of_run, "peft", tmp_path / "out")


def test_a_disk_that_is_too_small_is_noticed_before_writing(run, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1, 1))
    with pytest.raises(ResourceError, match="has 1 B left"):
        export(run, "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_form_or_precision_that_does_not_exist_is_answered_with_those_that_do(run, tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'merged'"):
        export(run, "merge", tmp_path / "out")
    with pytest.raises(UsageError, match="Did you mean 'bfloat16'"):
        export(run, "merged", tmp_path / "out", dtype="bfloat")
    with pytest.raises(UsageError, match="as it was learned"):
        export(run, "peft", tmp_path / "out", dtype="bfloat16")


def test_the_command_prints_the_folder_and_the_measured_difference(run, tmp_path, capsys, monkeypatch):
    outcome = Shell(capsys, monkeypatch)("export", run, "--to", "merged", "--out", tmp_path / "out")
    assert outcome.status == 0 and outcome.out == f"{tmp_path / 'out'}\n"
    assert outcome.err.startswith("loaded again: the logits of 2 conversations (")


def test_a_merged_models_card_shows_the_base_and_its_licence_as_text_only(run):
    summary = {**read_json(run / "summary.json")}
    summary["model"] = {**summary["model"], "name": "a|b<img>", "licence": "see <script>`x`|"}
    card = merged_card(summary, "float32", find_adapter(run), "0f")
    table = card.split("---", 2)[2]
    assert "<" not in table and "a/b‹img›" in table and "see ‹script›'x'/" in table
