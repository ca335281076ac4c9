"""Conversion of a GGUF file to a model folder: float32 safetensors, tokenizer, chat template, model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shepherd.errors import ModelError
from shepherd.model.folder import check_pointer
from shepherd.model.quiet import first_line, quiet_transformers

# Version of the conversion, raised when its output changes, so that cached models are converted again.
CONVERSION = 1

# llama.cpp's pre-tokenizers that separate every digit before the GPT-2 split, and (below) those with the GPT-2 split
# alone. A GGUF file contains the name of its split, not its definition; transformers uses GPT-2's for unknown names.
_DIGITS_FIRST = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_FULL = ("F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64")
_PLAIN_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"}


def gguf_facts(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file that the conversion needs. Raises ModelError when it is not a GGUF file."""
    check_pointer(path)
    with open(path, "rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: it does not start with 'GGUF'", hint="fetch the file again")
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        fields = reader.fields
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as GGUF, it may be cut short or damaged (its reader says: {error})",
            hint="fetch the file again",
        ) from error

    def value(key: str) -> Any:
        return fields[key].contents() if key in fields else None

    return {
        "architecture": value("general.architecture") or "",
        "name": value("general.name") or path.stem,
        "licence": value("general.license") or "",
        "tokenizer": value("tokenizer.ggml.model") or "",
        "split": value("tokenizer.ggml.pre") or "",
        "end": value("tokenizer.ggml.eos_token_id"),
        "type": value("general.type") or "model",
        "parts": value("split.count") or 1,
        "kinds": {int(tensor.tensor_type): tensor.tensor_type.name for tensor in reader.tensors},
    }


def check_gguf(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file, without PyTorch. Raises ModelError unless it holds a whole language model."""
    facts = gguf_facts(path)
    if facts["type"] == "adapter":
        raise ModelError(f"{path} is an adapter, not a base model", hint="set model.base to the model it was made for")
    if facts["type"] in ("mmproj", "vocab", "imatrix") or facts["architecture"] in ("clip", ""):
        what = ", ".join(filter(None, (facts["type"], facts["architecture"])))
        raise ModelError(
            f"{path} holds no language model but a part of one ({what})",
            hint="set model.base to the GGUF file of the model itself",
        )
    if facts["parts"] > 1:
        raise ModelError(
            f"{path} is one of {facts['parts']} parts of a model",
            hint="join them first: llama-gguf-split --merge FIRST_PART OUT.gguf",
        )
    return facts


def _refuse_kinds(source: Path, kinds: dict[int, str]) -> None:
    """Raise ModelError for quantised blocks that the installed release of transformers cannot unpack."""
    try:
        from transformers.integrations.gguf.dequant import GGML_NAME
    except ImportError:
        return
    unknown = sorted(name for kind, name in kinds.items() if kind not in GGML_NAME and name not in _FULL)
    if unknown:
        raise ModelError(
            f"{source}: its weights are in {', '.join(unknown)}, which transformers does not unpack",
            hint=f"take a file in one of {', '.join(sorted(GGML_NAME.values()))}, or the model's safetensors",
        )


def convert_gguf(source: Path, folder: Path) -> None:
    """Convert the GGUF file `source` into `folder`, an existing empty folder.

    Weights are stored as float32, to which quantised blocks unpack without a second rounding. Tied embeddings are
    stored once. Raises ModelError for architectures and tokenizers that cannot be rebuilt exactly.
    """
    facts = check_gguf(source)
    import torch
    import transformers

    from shepherd.model.outline import judge

    _refuse_kinds(source, facts["kinds"])

    options: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True, "trust_remote_code": False}
    loading = dict(options, dtype=torch.float32)
    if hasattr(transformers, "GgufConfig"):  # Newer releases keep the blocks packed by default.
        loading["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        with quiet_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, **options)
            _mend_split(tokenizer, facts, source)
            if facts["end"] is not None:  # the tokenizer's reader may choose another end token
                tokenizer.eos_token = tokenizer.convert_ids_to_tokens(facts["end"])
            loader: Any = transformers.AutoModelForCausalLM  # its type omits the loading info
            model, info = loader.from_pretrained(source.parent, output_loading_info=True, **loading)
            judge(source, model, info, set(model.state_dict()))
            if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
                raise ModelError(f"{source}: its tokenizer has {len(tokenizer)} tokens, more than the model has rows")
            model.config._name_or_path = ""
            tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
            model.save_pretrained(folder, max_shard_size="100GB")
            tokenizer.save_pretrained(folder)
    except (ValueError, NotImplementedError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{source}: a GGUF file of architecture {facts['architecture']!r} cannot be converted: {first_line(error)}",
            hint="use the model's hub id or its folder of safetensors files instead",
        ) from error
    _forget_origin(folder / "config.json", "_model_name_or_path", "_name_or_path")
    _forget_origin(folder / "tokenizer_config.json", "is_local", "local_files_only")
    licence = f"license: {facts['licence']}\n" if facts["licence"] else ""
    card = f"---\n{licence}---\n# {facts['name']}\n\nConverted from `{source.name}`; weights unpacked to float32.\n"
    (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")


def _mend_split(tokenizer: Any, facts: dict[str, Any], source: Path) -> None:
    """Set the pre-tokenizer split named in the file. Raises ModelError for an unknown one, which gives wrong token ids.

    With GPT-2's split, SmolLM2 would get "\\n\\n1." with two newline tokens where it was trained on one.
    """
    if facts["tokenizer"] != "gpt2":
        return
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    if facts["split"] in _DIGITS_FIRST:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        return
    fell_back = json.loads(backend.to_str())["pre_tokenizer"].get("type") == "ByteLevel"
    if fell_back and facts["split"] not in _PLAIN_GPT2:
        raise ModelError(
            f"{source}: how its tokenizer splits text ({facts['split'] or 'not stated'!r}) is not known here, "
            "and a guess would give wrong token ids",
            hint="use the model's hub id or its folder of safetensors files instead",
        )


def _forget_origin(path: Path, *keys: str) -> None:
    """Remove machine-dependent entries of a JSON file, so that the same source gives the same bytes."""
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in keys}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
