"""GGUF file -> model folder: weights unpacked to float32 safetensors, tokenizer, chat template, model card."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shepherd.errors import ModelError

# Raise when a conversion would give other files than before: cached ones are then made anew.
CONVERSION = 1

# Names of llama.cpp's pre-tokenizers that cut every digit off before the split of GPT-2, and that have only the latter.
# A GGUF file names its split; it does not spell it, and transformers falls back to GPT-2's for names it does not know.
_DIGITS_FIRST = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_PLAIN_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"}


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers: what the user sees is ours to draw."""
    import tqdm
    from transformers.utils import logging

    was_on, start = logging.is_progress_bar_enabled(), tqdm.tqdm.__init__
    logging.disable_progress_bar()
    tqdm.tqdm.__init__ = functools.partialmethod(start, disable=True)  # The unpacking of GGUF draws its own.
    try:
        yield
    finally:
        tqdm.tqdm.__init__ = start
        if was_on:
            logging.enable_progress_bar()


def gguf_facts(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file that the conversion needs. Raises ModelError when it is not a GGUF file."""
    with open(path, "rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: it does not start with 'GGUF'", hint="fetch the file again")
    import gguf

    try:
        fields = gguf.GGUFReader(path).fields
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
    }


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the model in `source` to `folder`, which exists and is empty.

    Weights are stored as float32: that is what the quantised blocks unpack to without a second rounding. Tied
    embeddings are stored once. Raises ModelError for architectures and tokenizers that cannot be rebuilt exactly.
    """
    facts = gguf_facts(source)
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True, "trust_remote_code": False}
    loading = dict(options, dtype=torch.float32)
    if hasattr(transformers, "GgufConfig"):  # Newer releases keep the blocks packed unless told otherwise.
        loading["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        with quiet_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, **options)
            _mend_split(tokenizer, facts, source)
            if facts["end"] is not None:  # whatever the reader of its tokenizer made of it
                tokenizer.eos_token = tokenizer.convert_ids_to_tokens(facts["end"])
            model = transformers.AutoModelForCausalLM.from_pretrained(source.parent, **loading)
            if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
                raise ModelError(f"{source}: its tokenizer has {len(tokenizer)} tokens, more than the model has rows")
            model.config._name_or_path = ""
            tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
            model.save_pretrained(folder, max_shard_size="100GB")
            tokenizer.save_pretrained(folder)
    except (ValueError, NotImplementedError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{source}: a GGUF file of architecture {facts['architecture']!r} cannot be converted: {error}",
            hint="use the model's hub id or its folder of safetensors files instead",
        ) from error
    _forget_origin(folder / "config.json", "_model_name_or_path", "_name_or_path")
    _forget_origin(folder / "tokenizer_config.json", "is_local", "local_files_only")
    licence = f"license: {facts['licence']}\n" if facts["licence"] else ""
    card = f"---\n{licence}---\n# {facts['name']}\n\nConverted from `{source.name}`; weights unpacked to float32.\n"
    (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")


def _mend_split(tokenizer: Any, facts: dict[str, Any], source: Path) -> None:
    """Give a byte-level tokenizer the split that the file names, or refuse: a wrong split trains on wrong ids.

    With GPT-2's split, SmolLM2 would meet "\\n\\n1." as two newline tokens where it was trained on one.
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
    """Drop notes about where the file was converted, so that the same source gives the same bytes."""
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in keys}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
