"""Tiny random models with a real tokenizer, made in the process: nine architectures, two layers, a few hundred tokens.

folder = tiny_model("qwen3", tmp_path)      # a folder that `load_base` takes
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The last one is there because Qwen's tokenizer class adds it where it is missing.
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
_TEXT = (
    "Which of these animals live on land and which in water? The shepherd counts the sheep in the morning and "
    "in the evening. Write a short answer about the weather. What is the capital of France? Name three colours. "
    "user assistant system instruction response context question answer the and that with from this there "
)
_SHAPE: dict[str, Any] = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_position_embeddings=512,
)
_OLD_SHAPE: dict[str, Any] = dict(n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=512)
_ROUND_SHAPE = {key: value for key, value in _SHAPE.items() if key != "head_dim"}
_PLAIN_SHAPE = {key: value for key, value in _ROUND_SHAPE.items() if key != "num_key_value_heads"}
_WINDOW: dict[str, Any] = dict(sliding_window=8)
_ALTERNATING: dict[str, Any] = dict(layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8)

# kind: (config class, its arguments). Windows of 8 tokens, so that short sequences already meet them.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SHAPE),
    "qwen2": ("Qwen2Config", _ROUND_SHAPE),
    "qwen3": ("Qwen3Config", _SHAPE),
    "gpt2": ("GPT2Config", _OLD_SHAPE),
    "gpt_neox": ("GPTNeoXConfig", _PLAIN_SHAPE),
    "gemma2": ("Gemma2Config", {**_SHAPE, **_WINDOW, **_ALTERNATING}),
    "gemma3": ("Gemma3TextConfig", {**_SHAPE, **_WINDOW, **_ALTERNATING}),
    "mistral": ("MistralConfig", {**_SHAPE, **_WINDOW}),
    "phi3": ("Phi3Config", _ROUND_SHAPE),
}


@functools.cache
def _backend_text() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    return tokenizer.to_str()


def tiny_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> Any:
    """A byte-level BPE tokenizer: any text round-trips; pad is 0, <|im_start|> 1, <|im_end|> 2 and the end token."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend_text()),
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        model_max_length=512,
    )
    if chat_template:
        tokenizer.chat_template = chat_template
    return tokenizer


def tiny_model(
    kind: str, folder: Path, *, seed: int = 0, chat_template: str | None = CHAT_TEMPLATE, **changes: Any
) -> Path:
    """Save a random float32 model of `kind` with its tokenizer in `folder/kind` and return that path.

    `changes` go into the model's config.
    """
    import torch
    import transformers

    tokenizer = tiny_tokenizer(chat_template)
    name, shape = KINDS[kind]
    config = getattr(transformers, name)(
        **shape | changes,
        vocab_size=len(tokenizer),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.1,  # Wide enough that a wrong mask or position moves the logits.
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    path = Path(folder) / kind
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tiny_builtin(model: Path, cache: Path) -> Path:
    """Put a copy of `model` where the cache folder `cache`, now SHEPHERD_CACHE, has the built-in base."""
    from shepherd.model.catalogue import BUILTIN
    from shepherd.model.digest import write_manifest
    from shepherd.model.fetch import list_models

    name, packaged = next(iter(BUILTIN.items()))
    folder = cache / "models" / f"gguf-{packaged.sha256[:16]}-1"
    shutil.copytree(model, folder)
    write_manifest(folder, {"source": name})
    assert [entry.path for entry in list_models()] == [folder], "the built-in model is the tiny one"
    return folder


def random_adapters(modules: Any, count: int, r: int = 2) -> list[Any]:
    """Adapters of scale 1 for these layers, all different, with B away from zero."""
    from shepherd.model.slots import features
    from shepherd.types import Adapter, Factors

    adapters = []
    for seed in range(count):
        draw = np.random.default_rng(seed)
        factors = {}
        for name, module in modules.items():
            n_in, n_out = features(module)
            A, B = (draw.normal(0, 0.2, shape).astype(np.float32) for shape in ((r, n_in), (n_out, r)))
            factors[name] = Factors(A, B)
        adapters.append(Adapter(factors, r, float(r)))
    return adapters
