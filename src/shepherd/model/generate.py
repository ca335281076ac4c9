"""Text generation by the base with or without an adapter: prompts as token ids in, texts out, optionally streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal, NamedTuple

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from shepherd.model.lora import CohortLora

TOP_P = 0.95


class Answer(NamedTuple):
    """A generated text and why it ended: an end token ("stop") or the limit of new tokens ("length")."""

    text: str
    finish_reason: Literal["stop", "length"]


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    lora: CohortLora | None = None,
    stops: Sequence[str] = (),
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 8,
    on_text: Callable[[str], None] | None = None,
) -> list[Answer]:
    """Generate a response to each prompt, given as token ids up to the response (`data.tokenize.encode_prompt`).

    `lora`: a cohort of one slot. A response ends at the tokenizer's end token, at one of `stops` (a template's), or
    after `max_new_tokens`. Temperature 0 is greedy decoding; above it, nucleus sampling with p = 0.95. Penalties in
    the model's generation config are ignored. Prompts are batched by length and padded on the left. With a
    temperature, the response to prompt i depends on `seed` + i alone, so base and tuned models use the same random
    numbers. `on_text` is called with the text so far after every token, one prompt after the other. Raises ValueError
    for `stops` that are not single tokens.
    """
    ends = _stop_ids(tokenizer, stops)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = 1 if temperature > 0 or on_text is not None else batch_size
    answers: dict[int, Answer] = {}
    sampling = _sampling(model, tokenizer, ends, max_new_tokens, temperature)
    with lora.attached() if lora is not None else nullcontext(), sampling:
        if lora is not None:
            lora.segments = None
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            streamer = None if on_text is None else _Streamer(tokenizer, ends, on_text)
            batch = [list(prompts[i]) for i in indices]
            rows = _continue(model, tokenizer, batch, seed + indices[0], streamer)
            for index, ids in zip(indices, rows, strict=True):
                reason: Literal["stop", "length"] = "length" if set(ends).isdisjoint(ids) else "stop"
                answers[index] = Answer(_text(tokenizer, ids, ends).strip(), reason)
    return [answers[index] for index in range(len(prompts))]


def _continue(model, tokenizer, prompts: list[list[int]], seed: int, streamer: BaseStreamer | None) -> list[list[int]]:
    """The new tokens of each prompt, including those after its end token."""
    longest = max(map(len, prompts))
    # Not the pad token, which may have no embedding: any token of the model will do under the mask.
    pad, device = tokenizer.eos_token_id, next(model.parameters()).device
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed % 2**63)
        output = model.generate(input_ids=ids, attention_mask=mask, streamer=streamer)
    return output[:, longest:].tolist()


@contextmanager
def _sampling(model, tokenizer, ends: Sequence[int], max_new_tokens: int, temperature: float) -> Iterator[None]:
    """Context with these generation settings in place of the model's."""
    drawn = {"do_sample": True, "temperature": temperature, "top_p": TOP_P, "top_k": 0} if temperature > 0 else {}
    previous = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=list(ends), pad_token_id=tokenizer.eos_token_id, **drawn
    )
    try:
        yield
    finally:
        model.generation_config = previous


class _Streamer(BaseStreamer):
    """Decode one sequence token by token, after its prompt, and pass the text so far to `on_text`."""

    def __init__(self, tokenizer, ends: Sequence[int], on_text: Callable[[str], None]) -> None:
        self.tokenizer, self.ends, self.on_text = tokenizer, ends, on_text
        self.ids: list[int] | None = None

    def put(self, value: torch.Tensor) -> None:
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        text = _text(self.tokenizer, self.ids, self.ends)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half a character: the next token completes it
            self.on_text(text)

    def end(self) -> None:
        self.on_text(_text(self.tokenizer, self.ids or [], self.ends))


def _text(tokenizer, ids: list[int], ends: Sequence[int]) -> str:
    """The text up to the first end token, without control tokens."""
    end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _stop_ids(tokenizer, stops: Sequence[str]) -> list[int]:
    """The ids of the end token and of `stops`. Raises ValueError for stops that are not one token."""
    ids = [tokenizer.convert_tokens_to_ids(stop) for stop in stops]
    unknown = [s for s, i in zip(stops, ids, strict=True) if i is None or tokenizer.convert_ids_to_tokens(i) != s]
    if unknown:
        raise ValueError(f"stops that are no tokens of this tokenizer: {unknown}")
    return list(dict.fromkeys([tokenizer.eos_token_id, *ids]))
