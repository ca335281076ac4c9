"""Generation in batches: the ids of every prompt are those that it has alone, and a finished row leaves the batch."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from shepherd.data.prompts import build_template
from shepherd.data.tokenize import encode_prompt
from shepherd.model.base import load_base
from shepherd.model.generate import TOP_P, generate
from shepherd.model.lora import CohortLora
from shepherd.model.targets import pick_targets
from shepherd.types import Message
from tiny import random_adapters

QUESTIONS = Path(os.environ.get("SHEPHERD_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
PROMPTS = [
    np.random.default_rng(number).integers(5, 250, size=1 + number * 7 % 30).tolist() for number in range(50)
]  # fmt: skip


@pytest.fixture(scope="module")
def base(model_folder):
    return load_base(str(model_folder("llama")), dtype="float32", device="cpu")


def tuned(base) -> CohortLora:
    names = pick_targets(base.model, "all-linear")
    lora = CohortLora({name: base.model.get_submodule(name) for name in names})
    return lora.hold(random_adapters(lora.modules, 1))


# rotary positions; absolute ones; a sliding window of 8
@pytest.mark.parametrize("kind, count", [("llama", 50), ("gpt2", 9), ("gemma2", 9)])
def test_greedy_ids_of_50_prompts_are_those_of_batch_size_1(model_folder, kind, count):
    base = load_base(str(model_folder(kind)), dtype="float32", device="cpu")
    arguments = {"lora": tuned(base), "max_new_tokens": 5}
    alone = generate(base.model, base.tokenizer, PROMPTS[:count], **arguments, batch_size=1)
    assert generate(base.model, base.tokenizer, PROMPTS[:count], **arguments, batch_size=32) == alone
    assert len({answer.ids for answer in alone}) > count // 3


def test_a_finished_row_leaves_the_batch_and_the_others_go_on_as_if_it_had_stayed(base):
    free = generate(base.model, base.tokenizer, PROMPTS, max_new_tokens=12, batch_size=50)
    counts = Counter(token for answer in free for token in set(answer.ids[2:]))
    stop, _ = max(counts.items(), key=lambda item: min(item[1], 50 - item[1]))
    stops = (base.tokenizer.convert_ids_to_tokens(stop),)
    widths = []
    handle = base.model.get_output_embeddings().register_forward_hook(
        lambda _layer, inputs, _output: widths.append(len(inputs[0]))
    )
    found = generate(base.model, base.tokenizer, PROMPTS, stops=stops, max_new_tokens=12, batch_size=50)
    handle.remove()
    for answer, whole in zip(found, free, strict=True):
        cut = whole.ids.index(stop) if stop in whole.ids else None
        assert answer.ids == whole.ids[:cut]
        assert answer.finish_reason == ("length" if cut is None else "stop")
    lengths = [len(answer.ids) + (answer.finish_reason == "stop") for answer in found]
    assert widths == [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert widths[0] == 50 and 0 < widths[-1] < 50


def test_drawn_answers_depend_on_their_seed_alone_and_are_those_of_the_library_s_sampler(base):
    drawn = {"max_new_tokens": 6, "temperature": 1.5}
    together = generate(base.model, base.tokenizer, PROMPTS[:6], seed=[3, 3, 9, 1, 5, 6], batch_size=6, **drawn)
    for prompt, seed, answer in zip(PROMPTS, [3, 3, 9, 1, 5, 6], together, strict=False):
        assert generate(base.model, base.tokenizer, [prompt], seed=seed, **drawn) == [answer]
    torch.manual_seed(9)
    ids = base.model.generate(
        torch.tensor([PROMPTS[2]]), do_sample=True, temperature=1.5, top_p=TOP_P, top_k=0, max_new_tokens=6
    )
    assert list(together[2].ids) == ids[0, len(PROMPTS[2]) :].tolist()


def test_the_numbers_of_others_are_not_moved(base):
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    generate(base.model, base.tokenizer, PROMPTS[:2], max_new_tokens=2, temperature=1.0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
def test_greedy_ids_of_50_questions_are_those_of_batch_size_1_for_the_real_model():
    base = load_base("smollm2-135m", dtype="float32", device="cpu")
    template = build_template("auto", base.tokenizer)
    lines = (QUESTIONS / "vicuna_bench" / "question.jsonl").read_text(encoding="utf-8").splitlines()[:50]
    prompts = [encode_prompt(template, base.tokenizer, [Message("user", json.loads(line)["turns"][0])])
               for line in lines]  # fmt: skip
    arguments = {"stops": template.stops, "max_new_tokens": 16}
    alone = generate(base.model, base.tokenizer, prompts, **arguments, batch_size=1)
    assert [a.ids for a in generate(base.model, base.tokenizer, prompts, **arguments, batch_size=25)] == [
        a.ids for a in alone
    ]
