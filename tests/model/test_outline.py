"""The outline and the load agree: randomly initialised weights are an error, unread ones a note, without output of
the library."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from console import Shell
from shepherd.errors import ModelError
from shepherd.model.base import load_base, load_tokenizer
from shepherd.model.outline import check_packable, load_config, outline
from tiny import tiny_model


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder("llama"), tmp_path / "model")


def rewrite(folder, drop=(), **extra):
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if k not in drop} | extra
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def both_refuse(folder, capfd) -> str:
    """The common error of `outline` and `load_base`, without output of the library on the terminal."""
    capfd.readouterr()
    said = set()
    for attempt in (outline, lambda folder: load_base(str(folder), device="cpu", dtype="float32")):
        with pytest.raises(ModelError) as caught:
            attempt(folder)
        said.add(caught.value.message)
    assert capfd.readouterr() == ("", "")
    (message,) = said
    return message


def test_an_outline_has_the_shapes_of_the_model_and_none_of_its_numbers(folder):
    model, notes = outline(folder)
    assert {p.device.type for p in model.parameters()} == {"meta"} and notes == ()
    assert model.num_parameters() == load_base(str(folder), device="cpu", dtype="float32").num_parameters


def test_a_missing_head_is_not_randomly_initialised_and_a_classifier_is_recognised(folder, capfd):
    rewrite(folder, drop=("lm_head.weight",))
    assert "has no output head (lm_head.weight is in no file)" in both_refuse(folder, capfd)
    edit(folder, architectures=None)
    rewrite(folder, **{"score.weight": torch.zeros(1, 32)})
    message = both_refuse(folder, capfd)
    assert "score.weight, as a classifier or reward model has" in message and "random numbers" in message


def test_weights_of_other_shapes_are_named_with_both_shapes(folder, capfd):
    edit(folder, intermediate_size=40)
    message = both_refuse(folder, capfd)
    assert "6 weights cannot be loaded" in message and "mlp.down_proj.weight: 32 × 48 in the file, 32 × 40" in message


def test_unused_tensors_are_named_once_by_kind_and_the_rest_is_loaded(folder, capfd):
    extra = {f"mtp.layers.{n}.weight": torch.zeros(2) for n in range(12)}
    rewrite(folder, **extra, **{"visual.patch.weight": torch.zeros(2)})
    assert outline(folder)[1] == (
        "13 tensors in the model's files have no place in LlamaForCausalLM and are not used: "
        "mtp.layers.*.weight (12), visual.patch.weight",
    )
    load_base(str(folder), device="cpu", dtype="float32")
    assert capfd.readouterr() == ("", "")


def test_a_tied_head_is_not_a_missing_weight(tmp_path):
    tied = tiny_model("llama", tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    assert outline(tied)[1] == ()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "mine", "auto_map": {}}, "needs code of its own"),
        ({"model_type": "qwen2_vl", "vision_config": {}}, "reads pictures or sound beside text"),
        ({"model_type": "vit"}, "'vit' is not a causal language model"),
        ({"num_attention_heads": "many"}, "does not describe a llama model"),
    ],
)
def test_a_config_of_another_kind_of_model_is_refused_with_its_kind(folder, config, said):
    edit(folder, **config)
    with pytest.raises(ModelError, match=said):
        load_config(folder)


def test_a_state_space_model_is_refused_before_it_is_loaded():
    from transformers import AutoModelForCausalLM, MambaConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(ModelError, match="MambaForCausalLM: it has recurrent layers"):
        check_packable(model)


def test_the_attention_package_named_in_a_config_is_not_needed(folder):
    edit(folder, _attn_implementation="flash_attention_2", attn_implementation="flash_attention_2")
    assert load_config(folder)._attn_implementation is None and outline(folder)[1] == ()
    assert load_base(str(folder), device="cpu", dtype="float32").model.config._attn_implementation == "sdpa"


def test_a_tokenizer_that_needs_remote_code_is_refused_with_that_reason(folder):
    path = folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]}, "tokenizer_class": "MineTokenizer"}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    with pytest.raises(ModelError, match=r"its tokenizer needs code of its own .* never run"):
        load_tokenizer(folder)


# The same error from every command


def test_check_run_and_data_inspect_report_the_same_error(folder, tmp_path, capsys, monkeypatch):
    edit(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"q {n}", "completion": f"a {n}"}) + "\n" for n in range(30)))
    monkeypatch.chdir(tmp_path)
    shell = Shell(capsys, monkeypatch)
    model, data = ("--model", str(folder)), ("--data", str(rows))
    for command in (("check", "own-data", *data), ("run", "own-data", *data), ("data", "inspect", str(rows))):
        outcome = shell(*command, *model)
        assert outcome.status == 4 and "holds GPTQ (4-bit) weights" in outcome.err, (command, outcome)
        assert "hint: take the full-precision model" in outcome.err and "optimum" not in outcome.err


def test_check_run_and_summary_note_the_coverage_of_a_mixture_of_experts(tmp_path, small_config):
    from transformers import MixtralConfig, MixtralForCausalLM

    from shepherd.experiment.estimate import plan
    from shepherd.experiment.run import run
    from tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, max_position_embeddings=512,
    )  # fmt: skip
    base = tmp_path / "moe"
    MixtralForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    settings = small_config(
        f"model.base={base}", "evaluation.arms=base,federated", "evaluation.generate=0", "federation.rounds=1"
    )
    planned, events = plan(settings), []
    (note,) = (line for line in planned.warnings if "all-linear" in line)
    assert "11 %" in note and "experts" in note and planned.adapted_share == pytest.approx(0.11, abs=0.005)
    done = run(settings, events.append, tmp_path / "runs")
    assert note in [event["message"] for event in events if event["event"] == "warning"]
    assert done.summary["adapter"]["share_of_the_blocks"] == round(planned.adapted_share, 4)
    assert note in done.summary["model"]["notes"]
    assert "11 %" in (done.path / "report.html").read_text(encoding="utf-8")
