"""Checks of a model folder without PyTorch: a complete causal language model in full precision.

    inspect_folder(Path("models/llama"))     # notes about it; ModelError where no run can use it

Only config.json, file names, first bytes and the headers of the weights are read. Checks that need the architecture
follow in `outline.py`.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from shepherd.errors import ModelError
from shepherd.model.digest import read_json, tokenizer_files, weight_files
from shepherd.model.licence import base_of

CAUSAL = "choose one that continues text, such as a Llama, Qwen, Gemma, Mistral or Phi"

_QUANTISED_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
}
_QUANTISED_TENSOR = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_packed|weight_scale(_inv)?|weight_shape|SCB|absmax|quant_map|quant_state\..+|"
    r"W_q|scales|_data|_scale)$"
)
_FULL = ("F16", "BF16", "F32", "F64")
_SPELT = {
    "gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "fbgemm_fp8": "FP8", "bitsandbytes": "bitsandbytes", "eetq": "EETQ",
    "hqq": "HQQ", "aqlm": "AQLM", "mxfp4": "MXFP4", "nvfp4": "NVFP4", "bitnet": "BitNet",
}  # fmt: skip

# Endings of architecture names that are not causal language models, with a description of each.
_OTHER_HEADS = (
    (r"For(SequenceClassification|RewardModel\w*)|\w*RewardModel\w*", "a classifier or reward model: it scores texts"),
    (r"ForTokenClassification", "a tagger: it labels each token"),
    (r"For(QuestionAnswering|MultipleChoice|NextSentencePrediction)", "made to choose answers, not to write them"),
    (r"For(MaskedLM|PreTraining)", "a masked language model: it fills gaps in, and reads on both sides of them"),
    (r"ForMaskedDiffusion\w*|\w*Diffusion\w*", "a diffusion model: it does not write from left to right"),
    (r"For(Image|Audio|Video|Object|Semantic|Depth)\w+", "made for pictures or sound"),
    (r"ForTextEncoding|\w*(Sentence|Text)Encoder\w*", "an encoder: it turns texts into vectors"),
)


def inspect_folder(folder: Path) -> tuple[str, ...]:
    """Check a model folder without PyTorch; returns notes on its unused content.

    Raises ModelError, with an alternative, unless it holds a causal language model in full precision: config, all
    safetensors files and a readable tokenizer.
    """
    _check_is_model(folder)
    check_pointer(folder / "config.json")
    config = read_json(folder / "config.json")
    _refuse_quantised(folder, config)
    notes = _check_head(folder, config)
    _check_weights(folder)
    _refuse_quantised_tensors(folder)
    _check_tokenizer(folder)
    return tuple(notes)


def stated_window(folder: Path) -> int | None:
    """The context window of the model in tokens according to config.json, or None without an entry."""
    config = read_json(folder / "config.json")
    table = text if isinstance(text := config.get("text_config"), Mapping) else config
    windows = (table.get(key) for key in ("max_position_embeddings", "n_positions"))
    return next((window for window in windows if isinstance(window, int) and window > 0), None)


def _check_is_model(folder: Path) -> None:
    adapter = folder / "adapter_config.json"
    if (folder / "config.json").is_file():
        if adapter.is_file():
            raise ModelError(
                f"{folder} holds a model and an adapter (adapter_config.json), which would be put on it when it loads",
                hint="move the adapter's files elsewhere; or merge the two first, with PEFT's merge_and_unload",
            )
        return
    if adapter.is_file():
        named = read_json(adapter).get("base_model_name_or_path") or "its base model"
        raise ModelError(
            f"{folder} is an adapter, not a base model",
            hint=f"set model.base to {named}; to go on from the adapter, merge it into that model first",
        )
    if gguf := sorted(folder.glob("*.gguf")):
        raise ModelError(f"{folder} has no config.json, only GGUF files", hint=f"set model.base to the file: {gguf[0]}")
    if (folder / "params.json").is_file():
        raise ModelError(
            f"{folder} has no config.json: its params.json is of the authors' own format",
            hint="take the model in the format of transformers: config.json, model*.safetensors, tokenizer.json",
        )
    if (folder / "identity.json").is_file():
        raise ModelError(
            f"{folder} is a run, not a model",
            hint=f"a tuned model as a base: shepherd export {shlex.quote(str(folder))} --to merged --out NEW",
        )
    below = sorted(
        path.parent for pattern in ("*/config.json", "snapshots/*/config.json") for path in folder.glob(pattern)
    )
    if below:
        raise ModelError(f"{folder} is not a model: it has no config.json", hint=f"set model.base to {below[-1]}")
    raise ModelError(
        f"{folder} is not a model: it has no config.json",
        hint="model.base is the folder that holds config.json, *.safetensors and tokenizer.json",
    )


def check_pointer(path: Path) -> None:
    """Raise ModelError where a file is a git-lfs pointer instead of the content."""
    with open(path, "rb") as stream:
        if stream.read(40).startswith(b"version https://git-lfs"):
            raise ModelError(
                f"{path} is a git-lfs pointer: the file itself was not fetched",
                hint=f"run `git lfs pull` in {path.parent}, or pull the model again",
            )


# Precision


def _refuse_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError for quantised weights according to the config or a quantiser's settings file."""
    for table in (config, config.get("text_config"), config.get("llm_config")):
        if not isinstance(table, Mapping):
            continue
        for key in ("quantization_config", "compression_config", "quantization"):  # the last is MLX's
            if settings := table.get(key):
                raise _quantised(folder, config, _kind_of(settings, key))
    for name, kind in _QUANTISED_FILES.items():
        if (folder / name).is_file():
            raise _quantised(folder, config, kind)


def _kind_of(settings: Any, key: str) -> str:
    """The quantisation method in a table of settings, e.g. "GPTQ (4-bit)"."""
    settings = settings if isinstance(settings, Mapping) else {}
    method = str(settings.get("quant_method") or settings.get("method") or settings.get("quant_type") or "")
    bits = settings.get("bits") or settings.get("w_bit") or settings.get("nbits")
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        method, bits = method or "bitsandbytes", 4 if settings.get("load_in_4bit") else 8
    if not method:
        method = {"quantization": "MLX", "compression_config": "compressed-tensors"}.get(key, "quantised")
    name = _SPELT.get(method.lower(), method)
    return f"{name} ({bits}-bit)" if bits else name


def _refuse_quantised_tensors(folder: Path) -> None:
    """Raise ModelError for quantised weights according to the tensors, where the config has no entry."""
    for path in weight_files(folder):
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118, not a dict
                kind = file.get_slice(name).get_dtype()
                if _QUANTISED_TENSOR.search(name) or (name.endswith(".weight") and kind not in _FULL):
                    raise _quantised(folder, read_json(folder / "config.json"), f"quantised ({name}: {kind})")


def _quantised(folder: Path, config: Mapping[str, Any], kind: str) -> ModelError:
    origin = origin_of(folder, config)
    named = f" ({origin})" if origin else ""
    return ModelError(
        f"{folder} holds {kind} weights: a base is loaded in full precision, and quantised here if asked for",
        hint=f"take the full-precision model that it was made from{named}; "
        'model.quantize = "4bit" or "8bit" loads that one in few bits, on CUDA',
    )


def origin_of(folder: Path, config: Mapping[str, Any]) -> str:
    """The model that this one was derived from, according to its card or config, else an empty string."""
    noted = config.get("_name_or_path")
    return base_of(folder) or (noted if isinstance(noted, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", noted) else "")


# Architecture


def _check_head(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Notes on the architecture. Raises ModelError where config.json names one that is not a causal language model."""
    kind, named = config.get("model_type"), config.get("architectures")
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{folder}: {kind!r} is not a causal language model but an encoder-decoder"
            + (f" ({names[0]})" if names else ""),
            hint=CAUSAL,
        )
    for name in names:
        if name.endswith(("ForCausalLM", "LMHeadModel")):
            continue
        for pattern, what in _OTHER_HEADS:
            if re.search(f"(?:{pattern})$", name):
                origin = origin_of(folder, config)
                raise ModelError(
                    f"{folder} is not a causal language model: config.json names {name}, {what}",
                    hint=f"take the language model that it was made from ({origin})" if origin else CAUSAL,
                )
    notes = []
    if names and not any(re.search(r"For(CausalLM|ConditionalGeneration)$|LMHead|Decoder$", name) for name in names):
        notes.append(
            f"config.json names {names[0]}, a model without an output head: it must be in the files, or be tied"
        )
    if "auto_map" in config:
        notes.append("the model brings code of its own (auto_map), which is not run: transformers' own class is used")
    return notes


# Weights and tokenizer


def _check_weights(folder: Path) -> None:
    files = weight_files(folder)
    if missing := [path.name for path in files if not path.is_file()]:
        raise ModelError(
            f"{folder} is not whole: {len(missing)} of {len(files)} weight files are missing, e.g. {missing[0]}",
            hint="copy or pull the model again",
        )
    if not files:
        raise ModelError(
            f"{folder} has no weights: {_instead_of_weights(folder)}",
            hint="save the model with save_pretrained, which writes safetensors",
        )
    for path in files:
        check_pointer(path)
        try:
            with safe_open(path, "numpy"):  # reads the header, and compares it with the size of the file
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read whole: {error}", hint="copy or pull the model again") from None
    _check_names(folder, files)


def _check_names(folder: Path, files: list[Path]) -> None:
    """Raise ModelError for shards without an index, and for tensors missing from the file that the index names."""
    index = folder / "model.safetensors.index.json"
    if files == [folder / "model.safetensors"]:
        return
    if not index.is_file():
        raise ModelError(
            f"{folder} has no model.safetensors and no index of its weight files ({files[0].name}, …)",
            hint="copy model.safetensors.index.json too; or save the model with save_pretrained",
        )
    held: dict[str, set[str]] = {}
    for path in files:
        with safe_open(path, "numpy") as file:
            held[path.name] = set(file.keys())
    lost = [name for name, place in read_json(index)["weight_map"].items() if name not in held[place]]
    if lost:
        raise ModelError(
            f"{folder} is not whole: {len(lost)} of the tensors in its index are not in their files, e.g. {min(lost)}",
            hint="copy or pull the model again",
        )


def _instead_of_weights(folder: Path) -> str:
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        return f"only {pickled[0]}, which can hold code and is not loaded"
    others = sorted(p.name for pattern in ("*.gguf", "*.h5", "*.msgpack", "*.onnx") for p in folder.glob(pattern))
    return f"no *.safetensors file, only {others[0]}" if others else "no *.safetensors file"


def _check_tokenizer(folder: Path) -> None:
    files = tokenizer_files(folder)
    for path in files:
        check_pointer(path)
    if not files:
        other = (folder / "tekken.json").is_file()
        raise ModelError(
            f"{folder} has no tokenizer: " + ("only tekken.json, which only Mistral's own library reads" if other else
            "neither tokenizer.json nor tokenizer.model nor vocab.json is there"),
            hint="copy the tokenizer files of the original model into the folder"
            + (" (tokenizer.json and tokenizer_config.json)" if other else ""),
        )  # fmt: skip
    names = {path.name for path in files}
    if names <= {"tokenizer.model", "spiece.model"} and not _all_installed(("sentencepiece", "google.protobuf")):
        raise ModelError(
            f"{folder} has no tokenizer.json, only {min(names)}, which needs a package to be read (SentencePiece)",
            hint="copy tokenizer.json of the original model into the folder; or pip install sentencepiece protobuf",
        )


def _all_installed(modules: Iterable[str]) -> bool:
    for module in modules:
        try:
            if importlib.util.find_spec(module) is None:
                return False
        except ModuleNotFoundError:  # of a parent
            return False
    return True
