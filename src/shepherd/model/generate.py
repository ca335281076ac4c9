"""Answers from the base with or without an adapter: prompts in, texts out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from shepherd.model.lora import CohortLora


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    tokenizer,
    prompts: Sequence[str],
    *,
    lora: CohortLora | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 8,
    streamer=None,
) -> list[str]:
    """Answer each prompt (text that ends where the response begins); greedy when temperature is 0.

    `lora` is a cohort of one slot. Prompts are batched by length, padded on the left. With a temperature, prompt i
    is drawn from `seed` + i alone, so base and tuned models answer from the same random numbers.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = 1 if temperature > 0 or streamer is not None else batch_size
    answers = [""] * len(prompts)
    with lora.attached() if lora is not None else nullcontext():
        if lora is not None:
            lora.segments = None
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            texts = _answer(
                model,
                tokenizer,
                [prompts[i] for i in indices],
                max_new_tokens,
                temperature,
                seed + indices[0],
                streamer,
            )
            for index, text in zip(indices, texts, strict=True):
                answers[index] = text
    return answers


def _answer(model, tokenizer, prompts, max_new_tokens, temperature, seed, streamer) -> list[str]:
    encoded = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
    longest = max(len(ids) for ids in encoded)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (longest - len(e)) + e for e in encoded], device=device)
    mask = torch.tensor([[0] * (longest - len(e)) + [1] * len(e) for e in encoded], device=device)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": 0.95} if temperature > 0 else {"do_sample": False}
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
            streamer=streamer,
            **sampling,
        )
    return [tokenizer.decode(row[longest:], skip_special_tokens=True).strip() for row in output]
