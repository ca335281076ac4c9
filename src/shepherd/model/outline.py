"""The architecture of a model folder on the meta device, from tensor names and shapes: checks before the load.

A real load is checked by the same function, `judge`.

    model, notes = outline(folder)      # reads no weights; ModelError where some would be randomly initialised
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from shepherd.errors import ModelError, plural
from shepherd.model.digest import read_json, weight_files
from shepherd.model.folder import CAUSAL
from shepherd.model.quiet import first_line, quiet_transformers
from shepherd.model.targets import blocks_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

OTHERS = "choose a decoder-only transformer such as Llama, Qwen, Gemma, Mistral, Phi, GPT-2 or GPT-NeoX"
AGAIN = "copy or pull the model again"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# Buffers saved by older libraries, obsolete.
_FORMER_BUFFERS = (".inv_freq", ".attn.bias", ".attention.bias", ".masked_bias", ".causal_mask", ".position_ids")


def load_config(folder: Path) -> PretrainedConfig:
    """The config of a model folder. Raises ModelError unless transformers has a causal language model of its type."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        reason = "it needs code of its own, which is never run" if "auto_map" in config else "transformers has no such"
        raise ModelError(
            f"{folder}: model type {kind!r} cannot be loaded: {reason}",
            hint="use an architecture that transformers ships, or a newer transformers",
        )
    if CONFIG_MAPPING[str(kind)] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        seen = [name for name in ("vision_config", "audio_config") if name in config]
        what = " but reads pictures or sound beside text" if seen else ""
        raise ModelError(
            f"{folder}: model type {kind!r} is not a causal language model{what}",
            hint="take the text model of that family" if seen else CAUSAL,
        )
    try:
        found = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # Validators of configs raise errors of any type.
        raise ModelError(f"{folder / 'config.json'} does not describe a {kind} model: {error}") from error
    # A saved attention implementation may be missing here: ours is used in a pass, transformers' default outside of it.
    found._attn_implementation = None
    return found


def context_window(shape: PretrainedConfig) -> int | None:
    """The largest number of positions of the model, or None where its config has none."""
    return getattr(shape.get_text_config(), "max_position_embeddings", None)


def outline(folder: Path) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model on the meta device, and notes on the weights that it would not read.

    Raises ModelError where required weights are missing or have other shapes.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = load_config(folder)
    tensors = _tensors(folder)
    try:
        with quiet_transformers():
            kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            model, info = kind.from_pretrained(
                None, config=config, state_dict=dict(tensors), device_map={"": "meta"},
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:
        raise ModelError(f"{folder}: the model cannot be loaded: {first_line(error)}", hint=AGAIN) from error
    return model, judge(folder, model, info, tensors)


def skeleton(folder: Path) -> PreTrainedModel:
    """The model of a folder's config.json on the meta device. Its weights need not be there, and are not compared."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = load_config(folder)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    try:
        with quiet_transformers(), torch.device("meta"):
            return kind(config)
    except Exception as error:
        raise ModelError(f"{folder}: the model cannot be laid out: {first_line(error)}", hint=AGAIN) from error


def check_packable(model: PreTrainedModel) -> None:
    """Raise ModelError, before the load, for an architecture whose classes mix packed sequences.

    The behaviour itself is measured when the model is wrapped (`forward.PackedModel`).
    """
    name, reason = type(model).__name__, ""
    inside = blocks_of(model)[1].named_modules()
    text = model.config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ["unknown"])
    if getattr(model, "_is_stateful", False) and not all(
        "attention" in layer and "linear" not in layer for layer in layers
    ):
        reason = "it has recurrent layers, whose state would run from one packed sequence into the next"
    elif any(getattr(m, "is_causal", True) is False and not re.search("cross|encoder", n) for n, m in inside):
        reason = "its attention sees both sides of a token, so it does not write from left to right"
    elif any(re.search(r"\bsinks?$", n) for n, _ in model.named_parameters()):
        reason = "attention sinks are not supported yet"
    elif chunk := getattr(text, "attention_chunk_size", None):
        reason = f"chunked attention (attention_chunk_size = {chunk}) is not supported yet"
    if reason:
        raise ModelError(f"{name}: {reason}", hint=OTHERS)


def judge(
    folder: Path, model: PreTrainedModel, info: Mapping[str, Any], held: Collection[str] | None = None
) -> tuple[str, ...]:
    """Check the loading info of a model: ModelError for randomly initialised weights, notes on unread ones.

    info: `output_loading_info` of from_pretrained. held: the names of all tensors in the files; None reads them.
    """
    held = set(_tensors(folder) if held is None else held)
    refuse_missing(folder, model, info["missing_keys"], held)
    if mismatched := sorted(info["mismatched_keys"], key=str):
        name, found, wanted = mismatched[0] if isinstance(mismatched[0], tuple | list) else (mismatched[0], "?", "?")
        raise ModelError(
            f"{folder}: {plural(len(mismatched), 'weight')} cannot be loaded, their shapes are not those of "
            f"config.json, e.g. {name}: {_shape(found)} in the file, {_shape(wanted)} in the model",
            hint="config.json belongs to another model: " + AGAIN,
        )
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    unread = set(info["unexpected_keys"]) | {
        name for name in held - _own_names(model) if any(re.search(pattern, name) for pattern in ignored)
    }
    unread = {name for name in unread if not name.endswith(_FORMER_BUFFERS)}
    if not unread:
        return ()
    return (
        f"{plural(len(unread), 'tensor')} in the model's files have no place in {type(model).__name__} and are not "
        f"used: {', '.join(_families(unread))}",
    )


def refuse_missing(folder: Path, model: PreTrainedModel, missing: Collection[str], held: Collection[str]) -> None:
    """Raise ModelError for weights that are in no file and would be randomly initialised."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    missing = {name for name in missing if tied.get(name) not in missing}  # tied weights are one
    if not missing:
        return
    head = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    if {name.removesuffix(".weight").removesuffix(".bias") for name in missing} <= set(head):
        other = sorted(name for name in held if re.match(r"(score|classifier|v_head|value_head|qa_outputs)\b", name))
        what = f" but {other[0]}, as a classifier or reward model has" if other else ""
        raise ModelError(
            f"{folder} has no output head ({min(missing)} is in no file){what}: it would be random numbers",
            hint="take the model saved for causal language modelling (…ForCausalLM), not the body alone",
        )
    raise ModelError(
        f"{folder} is not whole: {plural(len(missing), 'weight')} in no file, e.g. {min(missing)}", hint=AGAIN
    )


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the files by name, on the meta device: its shape and type."""
    found = {}
    for path in weight_files(folder):
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118, not a dict
                part = file.get_slice(name)
                kind = _DTYPES.get(part.get_dtype(), torch.float32)
                found[name] = torch.empty(part.get_shape(), dtype=kind, device="meta")
    return found


def _own_names(model: PreTrainedModel) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} | {n for n, _ in model.named_buffers()}


def _families(names: Collection[str], most: int = 3) -> list[str]:
    """Names with numbers replaced by *, most frequent first: ["mtp.layers.*.weight (12)", "score.weight"]."""
    counts: dict[str, int] = {}
    for name in names:
        family = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        counts[family] = counts.get(family, 0) + 1
    listed = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [name + (f" ({count})" if count > 1 else "") for name, count in listed[:most]]
    return shown + ([f"and {len(listed) - most} more kinds"] if len(listed) > most else [])


def _shape(shape: Sequence[int] | str) -> str:
    return shape if isinstance(shape, str) else " × ".join(map(str, shape))
