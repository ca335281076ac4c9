"""Padding-free forward passes: sequences end to end in one row, the output head on response tokens only.

attention.py replaces the attention over a packed row, so any causal LM with transformers' attention interface works
unmodified. When a model is wrapped, a test pass measures whether it keeps packed sequences apart; a model that does
not (recurrent layers, custom attention biases) is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shepherd.errors import ModelError, plural
from shepherd.model import attention
from shepherd.model.outline import OTHERS, check_packable
from shepherd.model.packing import Pass, Row, pack
from shepherd.model.quiet import quiet_transformers
from shepherd.types import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS_MULTIPLE = 16
"""The rows of products with the base are padded to a multiple of this: then a row's result depends on that row alone.

See docs/decisions/0008.
"""
ROUTED = "met by a part of the tokens (a mixture of experts), so a cohort cannot share it"
HEAD_ROWS = 512  # rows of logits held at once when no gradient is needed


class PackedModel:
    """A frozen causal LM for packed passes. Raises ModelError when the model does not keep sequences apart."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.vocabulary = model.get_input_embeddings().get_parameter("weight").shape[0]
        self._own_attention = model.config._attn_implementation
        check_packable(model)
        self.head = model.get_output_embeddings()
        self.plain_head = False
        self._check()

    @contextmanager
    def packing(self) -> Iterator[PackedModel]:
        """Context in which the model takes packed passes; outside it, attention is the model's, for generation."""
        self.model.set_attn_implementation(attention.NAME)
        # Nothing is padded: with a pad token set, models warn of rows that begin or end with it.
        pad = getattr(self.model.config, "pad_token_id", None)
        with suppress(Exception):  # some configs require one
            self.model.config.pad_token_id = None
        try:
            yield self
        finally:
            self.model.config.pad_token_id = pad
            self.model.set_attn_implementation(self._own_attention)

    def loss_sums(self, batch: Pass) -> Tensor:
        """Summed negative log-likelihood (nats) of each target segment, float32[len(target_segments)]."""
        if self.plain_head:
            hidden = self.hidden(batch)
            weight, bias = self.head.weight, self.head.bias
            sums = [
                _head_loss(hidden[s.start : s.end], weight, bias, batch.labels[s.start : s.end])
                for s in batch.target_segments
            ]
        else:
            logits = self._logits(batch)
            sums = [
                F.cross_entropy(logits[s.start : s.end].float(), batch.labels[s.start : s.end], reduction="sum")
                for s in batch.target_segments
            ]
        return torch.stack(sums)

    @torch.no_grad()
    def token_losses(self, batch: Pass) -> tuple[Tensor, Tensor]:
        """For each target: its negative log-likelihood float32[P], and whether it was the likeliest token bool[P]."""
        if self.plain_head:
            hidden = self.hidden(batch)
            blocks = (F.linear(h, self.head.weight, self.head.bias) for h in hidden.split(HEAD_ROWS))
        else:
            blocks = self._logits(batch).split(HEAD_ROWS)
        losses, hits = [], []
        for logits, labels in zip(blocks, batch.labels.split(HEAD_ROWS), strict=True):
            losses.append(F.cross_entropy(logits.float(), labels, reduction="none"))
            hits.append(logits.argmax(-1) == labels)
        return torch.cat(losses), torch.cat(hits)

    def hidden(self, batch: Pass) -> Tensor:
        """The last hidden states at the predictors, [P, hidden], in the dtype of the base."""
        attention.open_pass(batch.bounds)
        output = self.model.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
        return output[0].index_select(0, batch.predictors)

    def _logits(self, batch: Pass) -> Tensor:
        attention.open_pass(batch.bounds)
        count = len(batch.predictors)
        filled = F.pad(batch.predictors, (0, -count % ROWS_MULTIPLE))  # position 0, repeated
        output = self.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=filled,
        )
        return output.logits[0, :count]

    @torch.no_grad()
    def check_called(self, layers: Mapping[str, nn.Module]) -> None:
        """Raise ModelError for layers {name: layer} that a pass skips, or calls with only some of its tokens (routed).

        An adapter on a skipped layer would never train, without an error.
        """
        seen: dict[str, int] = {}

        def note(name: str) -> Callable:
            return lambda _layer, inputs, _output: seen.update({name: inputs[0].numel() // inputs[0].shape[-1]})

        batch = pack([Row(0, Tokens("", np.arange(7, dtype=np.int32) % self.vocabulary, np.ones(7, bool)))])
        handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
        try:
            with self.packing():
                self.hidden(batch.to(self.device))
        finally:
            for handle in handles:
                handle.remove()
        unused = [name for name in layers if name not in seen]
        routed = [name for name, tokens in seen.items() if tokens != 7]
        for names, what in ((unused, "not used when text goes through the model"), (routed, ROUTED)):
            if names:
                raise ModelError(
                    f"{type(self.model).__name__}: {plural(len(names), 'adapted layer')} {what}, e.g. {names[0]}",
                    hint="name the layers to adapt in lora.targets, without these",
                )

    @torch.no_grad()
    def _check(self) -> None:
        """Compare the logits of two packed sequences with those of each alone; determine whether the head is plain.

        The tolerance for rounding is relative to a full leak: the second sequence's logits when it follows the first.
        A small leak (e.g. a convolution across the boundary) shows when other tokens in the first change the second.
        """
        with _each_row_rounded_alone(self.model), quiet_transformers():
            try:
                self._compare()
            except ModelError as error:
                raise ModelError(f"{type(self.model).__name__}: {error.message}", hint=error.hint or OTHERS) from error
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # Models without support for it raise errors of any type.
                raise ModelError(
                    f"{type(self.model).__name__} cannot take packed sequences: {error}", hint=OTHERS
                ) from error

    def _compare(self) -> None:
        generator = np.random.default_rng(0)
        tokens = [
            Tokens(str(n), generator.integers(0, self.vocabulary, n).astype(np.int32), np.ones(n, bool)) for n in (7, 6)
        ]
        batch = pack([Row(0, t) for t in tokens]).to(self.device)
        other = batch.input_ids.clone()
        other[:, :7] = (other[:, :7] + 1) % self.vocabulary
        first, second = batch.input_ids[:, :7], batch.input_ids[:, 7:]
        alone = torch.cat([self.model(input_ids=ids, use_cache=False).logits[0, :-1] for ids in (first, second)])
        joined = self.model(input_ids=batch.input_ids, use_cache=False).logits[0, 7:-1]
        with self.packing():
            got = self._logits(batch)
            masked, attended = attention.windows()
            single = torch.cat([self._logits(pack([Row(0, t)]).to(self.device)) for t in tokens])
            moved = _distance(self._logits(replace(batch, input_ids=other))[6:], got[6:])
            hidden = self.hidden(batch)
        leak = _distance(joined, alone[6:])
        # On a CPU a row's bits depend on that row alone; GPU kernels and quantised products round differently.
        same_bits = self.device.type == "cpu"
        same_kernels = got.dtype == torch.float32 and not getattr(self.model, "is_quantized", False)
        if (
            got.shape != alone.shape
            or _distance(got, alone) > (0.05 if same_kernels else 0.5) * leak
            or _distance(got, single) > (0.05 if same_bits or same_kernels else 0.5) * leak
            or moved > 0.05 * leak
        ):
            raise ModelError(
                "it does not keep packed sequences apart (recurrent layers, positions that it counts itself, or "
                "attention that does not go through transformers' attention interface), so a cohort cannot share a pass"
            )
        text = self.model.config.get_text_config()
        most = getattr(text, "max_position_embeddings", None) or float("inf")
        if unknown := {window for window in masked - attended if window < most}:
            raise ModelError(
                f"its mask has a window of {min(unknown)} tokens that its attention layers do not name, so a "
                "packed pass would see further than the model does"
            )
        if isinstance(self.head, nn.Linear) and self.head.weight.is_floating_point():
            # With as many rows as in `_logits`: with several threads, a product's last bits depend on their number.
            filled = F.pad(hidden, (0, 0, 0, -len(hidden) % ROWS_MULTIPLE))
            plain = F.linear(filled, self.head.weight, self.head.bias)[: len(hidden)]
            self.plain_head = plain.shape == got.shape and torch.equal(plain, got)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() - b.float()).norm()


@contextmanager
def _each_row_rounded_alone(model: nn.Module) -> Iterator[None]:
    """Context in which 8-bit layers of bitsandbytes round each row independently.

    By default they compute columns in which any row of the pass is large in half precision (LLM.int8, Dettmers et al.,
    2022), so that a sequence changes the rounding of its neighbours: not a leak, but it would be taken for one.
    """
    found = [getattr(module, "state", None) for module in model.modules()]
    states = [state for state in found if state is not None and hasattr(state, "threshold")]
    thresholds = [state.threshold for state in states]
    for state in states:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in zip(states, thresholds, strict=True):
            state.threshold = threshold


def _head_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Summed cross entropy of the head's logits in nats, float32; fused where torch supports it (2.12).

    Summed here in float32: torch would sum a bfloat16 head in bfloat16, where 1,808 and 1,816 are neighbours.
    """
    if hasattr(F, "linear_cross_entropy"):
        return F.linear_cross_entropy(hidden, weight, labels, linear_bias=bias, reduction="none").float().sum()
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="sum")
