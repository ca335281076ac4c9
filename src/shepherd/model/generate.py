"""Text generation by the base with or without an adapter: prompts as token ids in, texts out, optionally streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig

from shepherd.model.lora import CohortLora

TOP_P = 0.95


class Answer(NamedTuple):
    """A generated text and why it ended: an end token ("stop") or the limit of new tokens ("length").

    ids: its tokens without the end token.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    ids: tuple[int, ...] = ()


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
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
    on_text: Callable[[str], None] | None = None,
) -> list[Answer]:
    """Generate a response to each prompt, given as token ids up to the response (`data.tokenize.encode_prompt`).

    `lora`: a cohort of one slot. A response ends at the tokenizer's end token, at one of `stops` (a template's), or
    after `max_new_tokens`. Temperature 0 is greedy decoding; above it, nucleus sampling with p = 0.95. Penalties in
    the model's generation config are ignored. Prompts are batched by length and padded on the left. With a
    temperature, the response to prompt i is drawn from `seed` + i, or from the i-th of the seeds, alone: base and tuned
    models use the same random numbers. `on_text` is called with the text so far after every token, one prompt after the
    other. Raises ValueError for `stops` that are not single tokens.
    """
    ends = _stop_ids(tokenizer, stops)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    size = 1 if on_text is not None else batch_size
    answers: dict[int, Answer] = {}
    sampling = _sampling(model, tokenizer, ends, max_new_tokens, temperature)
    with lora.attached() if lora is not None else nullcontext(), sampling:
        if lora is not None:
            lora.segments = None
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            batch = [list(prompts[i]) for i in indices]
            rows = _continue(model, tokenizer, batch, [seeds[i] for i in indices], on_text)
            for index, ids in zip(indices, rows, strict=True):
                reason: Literal["stop", "length"] = "stop" if ids[-1] in ends else "length"
                kept = tuple(ids if reason == "length" else ids[:-1])
                answers[index] = Answer(_text(tokenizer, kept).strip(), reason, kept)
    return [answers[index] for index in range(len(prompts))]


def _continue(
    model, tokenizer, prompts: list[list[int]], seeds: Sequence[int], on_text: Callable[[str], None] | None
) -> list[list[int]]:
    """The new tokens of each prompt, up to its end token."""
    longest = max(map(len, prompts))
    # Not the pad token, which may have no embedding: any token of the model will do under the mask.
    pad, device = tokenizer.eos_token_id, next(model.parameters()).device
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    draws = [torch.Generator(device).manual_seed(seed % 2**63) for seed in seeds]
    show = None if on_text is None else partial(_show, tokenizer, on_text)
    return model.generate(input_ids=ids, attention_mask=mask, custom_generate=partial(_decode, draws=draws, show=show))


def _decode(
    model,
    input_ids: Tensor,
    *,
    logits_processor,
    generation_config: GenerationConfig,
    draws: Sequence[torch.Generator],
    show: Callable[[list[int], bool], None] | None,
    **state: Any,
) -> list[list[int]]:
    """The new tokens of each row: the loop of `model.generate`, which prepares the arguments.

    Different from that of transformers: a finished row leaves the batch and the cache, and each row has a separate
    generator of random numbers.
    """
    del state["stopping_criteria"]  # the limit and the ends below are all there are
    limit = generation_config.max_length - input_ids.shape[1]
    ends = set(generation_config.eos_token_id)
    found: list[list[int]] = [[] for _ in input_ids]
    going = list(range(len(found)))
    for count in range(1, limit + 1):
        inputs = model.prepare_inputs_for_generation(
            input_ids, next_sequence_length=None if count == 1 else 1, is_first_iteration=count == 1, **state
        )
        outputs = model(**inputs, return_dict=True)
        state = model._update_model_kwargs_for_generation(outputs, state, is_encoder_decoder=False)
        scores = logits_processor(input_ids, outputs.logits[:, -1].float())
        if generation_config.do_sample:
            drawn = zip(scores.softmax(-1), (draws[row] for row in going), strict=True)
            tokens = torch.cat([torch.multinomial(one, 1, generator=source) for one, source in drawn])
        else:
            tokens = scores.argmax(-1)
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
        for row, token in zip(going, tokens.tolist(), strict=True):
            found[row].append(token)
        stays = [place for place, row in enumerate(going) if found[row][-1] not in ends]
        if show is not None:
            show(found[0], not stays or count == limit)
        if not stays:
            break
        if len(stays) < len(going):
            kept = torch.tensor(stays, device=input_ids.device)
            state["past_key_values"].reorder_cache(kept)
            rows = {name: value for name, value in state.items() if isinstance(value, Tensor)}
            state |= {name: value[kept] for name, value in rows.items() if len(value) == len(going)}
            input_ids, going = input_ids[kept], [going[place] for place in stays]
    return found


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


def _show(tokenizer, on_text: Callable[[str], None], ids: Sequence[int], finished: bool) -> None:
    text = _text(tokenizer, ids)
    if finished or not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half a character: the next token completes it
        on_text(text)


def _text(tokenizer, ids: Sequence[int]) -> str:
    """The text without control tokens."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _stop_ids(tokenizer, stops: Sequence[str]) -> list[int]:
    """The ids of the end token and of `stops`. Raises ValueError for stops that are not one token."""
    ids = [tokenizer.convert_tokens_to_ids(stop) for stop in stops]
    unknown = [s for s, i in zip(stops, ids, strict=True) if i is None or tokenizer.convert_ids_to_tokens(i) != s]
    if unknown:
        raise ValueError(f"stops that are no tokens of this tokenizer: {unknown}")
    return list(dict.fromkeys([tokenizer.eos_token_id, *ids]))
