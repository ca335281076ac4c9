"""A model of a run as lm-evaluation-harness loads models, with token ids from the documents of offline tasks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from lm_eval.models.huggingface import HFLM
from peft import PeftModel

from shepherd.model.base import load_base
from shepherd.model.generate import generate


class RunModel(HFLM):
    """A model that is loaded already, with its tokenizer; our loader read it, which runs no code of a model folder.

    The harness itself, given `peft=`, resizes the embeddings to the length of the tokenizer first. Where a model has
    more embeddings than tokens this changes every probability, so the adapter is put on the base as it is (`load`).
    """

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(Σ log p in nats, all tokens the most probable ones) of each request.

        A request of an offline task is the sum over the spans of its sequence of ids, each given all ids before it.
        """
        found: dict[int, tuple[float, bool]] = {}
        parts = [
            (number, ("", ""), ids[:start], ids[start:end])
            for number, request in enumerate(requests)
            if "token_ids" in _doc(request)
            for ids in (request.doc["token_ids"][request.idx],)
            for start, end in request.doc["answer_spans"][request.idx]
        ]
        if parts:
            answers = self._loglikelihood_tokens([part[1:] for part in parts], disable_tqdm=disable_tqdm)
            for (number, *_), (log_p, greedy) in zip(parts, answers, strict=True):
                total, all_greedy = found.get(number, (0.0, True))
                found[number] = (total + log_p, all_greedy and greedy)
        others = [number for number in range(len(requests)) if number not in found]
        texts = super().loglikelihood([requests[n] for n in others], disable_tqdm) if others else []
        found.update(zip(others, texts, strict=True))
        return [found[number] for number in range(len(requests))]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each request; to the prompt of an offline task as a run generates it, by greedy decoding."""
        found: dict[int, str] = {}
        ours = [number for number, request in enumerate(requests) if "prompt_token_ids" in _doc(request)]
        if ours:
            first = requests[ours[0]].doc
            answers = generate(
                self.model,
                self.tokenizer,
                [requests[number].doc["prompt_token_ids"] for number in ours],
                stops=first["stops"],
                max_new_tokens=first["max_new_tokens"],
                batch_size=int(self.batch_size),
            )
            found = {number: answer.text for number, answer in zip(ours, answers, strict=True)}
        others = [number for number in range(len(requests)) if number not in found]
        texts = super().generate_until([requests[n] for n in others], disable_tqdm) if others else []
        found.update(zip(others, texts, strict=True))
        return [found[number] for number in range(len(requests))]


def _doc(request: Any) -> Mapping[str, Any]:
    return request.doc if isinstance(request.doc, Mapping) else {}


def load(*, pretrained: str, adapter: str, device: str, dtype: str, quantize: str, batch_size: int) -> RunModel:
    """The model in a folder, with the PEFT adapter in another where that is not "".

    Raises ModelError for a model that cannot be used, ResourceError for a device that is missing or too small.
    """
    base = load_base(pretrained, device=device, dtype=dtype, quantize=quantize)
    model: Any = base.model
    if adapter:
        with warnings.catch_warnings():  # peft asks transformers by an old name
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            model = PeftModel.from_pretrained(model, adapter).eval()
    return RunModel(pretrained=model, tokenizer=base.tokenizer, batch_size=batch_size, softmax_dtype="float32")
