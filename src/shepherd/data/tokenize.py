"""Tokenisation: examples to token ids with the mask of targets, truncated, with counts of cut and refused rows.

A token is a target if its characters, by the tokenizer's offsets, overlap an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from shepherd.data.progress import LARGE, Emit, LoopProgress
from shepherd.data.prompts import Rendered, Template
from shepherd.data.tally import RowsByReason, Tally, describe
from shepherd.data.values import Refusal
from shepherd.errors import DataError, ModelError, plural
from shepherd.types import Example, Message, Tokens

BATCH = 512


@dataclass(frozen=True)
class Tokenized:
    """All rows as tokens, in the order of the examples, with counts.

    lengths: int32[rows], in tokens before truncation. cut_rows, cut_tokens: rows and tokens that truncation cut.
    cut_contexts, cut_prompts, cut_responses: rows that lost a part of these (a row may count in several). escaped: rows
    that spell out a control token, encoded as ordinary text. changed: rows that the template alters, by trimming or by
    removing the reasoning of earlier turns.
    """

    tokens: tuple[Tokens, ...]
    refused: RowsByReason
    cut_rows: int
    cut_tokens: int
    lengths: np.ndarray
    cut_contexts: int = 0
    cut_prompts: int = 0
    cut_responses: int = 0
    escaped: int = 0
    changed: RowsByReason = field(default_factory=dict)
    by_id: dict[str, Tokens] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.by_id.update((t.id, t) for t in self.tokens)


@dataclass(frozen=True)
class MaskedRow:
    """A tokenised row. ids: int32[n]. turn: int32[n], the index of a token's answer or -1. context: bool[n]."""

    ids: np.ndarray
    turn: np.ndarray
    context: np.ndarray

    def keep(self, kept: np.ndarray) -> MaskedRow:
        return MaskedRow(self.ids[kept], self.turn[kept], self.context[kept])


def tokenize(
    examples: Sequence[Example], tokenizer: Any, template: Template, max_length: int, emit: Emit | None = None
) -> Tokenized:
    """Render, encode, mask and truncate the examples; `cut` defines the order of truncation.

    A row without a target is refused with its reason. `emit` receives progress lines. Raises DataError if no row is
    left, and ModelError for a tokenizer without offsets.
    """
    refused, changed = Tally(), Tally()
    tokens: list[Tokens] = []
    lengths: list[int] = []
    cut_in = {"context": 0, "prompt": 0, "response": 0}
    escaped = 0
    bos = tokenizer.bos_token_id
    if emit is not None and (size := sum(len(m.content) for e in examples for m in e.messages)) >= LARGE:
        emit(f"tokenising {plural(len(examples), 'row')}, {size / 1e6:,.0f} million characters")
    progress = LoopProgress(emit, "tokenising", len(examples))
    for first in range(0, len(examples), BATCH):
        progress.at(first)
        rendered_rows: list[tuple[Example, Rendered]] = []
        for example in examples[first : first + BATCH]:
            try:
                rendered_rows.append((example, template.render(example.messages, example.context, example.tools)))
            except Refusal as reason:
                refused.add(str(reason), example.id)
        encoded = encode_rows([rendered for _, rendered in rendered_rows], tokenizer)
        for (example, rendered), (ids, spans) in zip(rendered_rows, encoded, strict=True):
            full = _mask(ids, spans, rendered)
            row, parts = cut(full, max_length, bos)
            mask = row.turn >= 0
            lengths.append(len(full.ids))
            if not mask[1:].any():
                refused.add(f"no target left at max_length = {max_length}", example.id)
                continue
            for part in parts:
                cut_in[part] += 1
            escaped += bool(rendered.breaks)
            for what in rendered.changed:
                changed.add(what, example.id)
            tokens.append(
                Tokens(example.id, row.ids, mask, example.category, example.source, cut=len(full.ids) - len(row.ids))
            )
    if not tokens:
        raise _no_targets(len(examples), refused.by_reason, lengths, max_length)
    return Tokenized(
        tokens=tuple(tokens),
        refused=refused.by_reason,
        cut_rows=sum(t.cut > 0 for t in tokens),
        cut_tokens=sum(t.cut for t in tokens),
        lengths=np.array(lengths, np.int32),
        cut_contexts=cut_in["context"],
        cut_prompts=cut_in["prompt"],
        cut_responses=cut_in["response"],
        escaped=escaped,
        changed=changed.by_reason,
    )


def encode(rendered: Sequence[Rendered], tokenizer: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids int32[n], character spans int32[n, 2]) for each text, without added special tokens.

    Encoding starts anew at each break of a text, so that a control token spelled out in a row stays text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            "this tokenizer has no character offsets, which the mask of targets requires",
            hint="use a fast tokenizer (a tokenizer.json beside the model)",
        )
    pieces: list[str] = []
    starts: list[tuple[int, int]] = []
    for number, one in enumerate(rendered):
        edges = [0, *one.breaks, len(one.text)]
        for begin, end in pairwise(edges):
            pieces.append(one.text[begin:end])
            starts.append((number, begin))
    if not pieces:
        return []
    batch = tokenizer(pieces, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in rendered]
    for (number, begin), ids, offsets in zip(starts, batch["input_ids"], batch["offset_mapping"], strict=True):
        spans = np.asarray(offsets, np.int32).reshape(-1, 2) + np.int32(begin)
        parts[number].append((np.asarray(ids, np.int32), spans))
    return [(np.concatenate([ids for ids, _ in part]), np.concatenate([spans for _, spans in part])) for part in parts]


def encode_rows(rendered: Sequence[Rendered], tokenizer: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """`encode`, with every answer encoded as in generation: after the tokens of its prompt.

    Otherwise the beginning of an answer could share a token with the end of its prompt (":" and ")", a line break and
    the indentation of code), change the tokens of the prompt ("\\n\\n" before a word is two tokens in GPT-2), or be
    swallowed by the control token before it.
    """
    encoded = encode(rendered, tokenizer)
    added = tokenizer.added_tokens_decoder
    control = [token_id for token_id, token in added.items() if token.special]
    greedy = tuple(token.content for token in added.values() if token.rstrip)
    prompt_ends: list[tuple[int, int, int, Rendered]] = []  # row, start of an answer, token before it, text between
    joined: list[set[int]] = [set() for _ in rendered]
    for number, (one, (ids, spans)) in enumerate(zip(rendered, encoded, strict=True)):
        starts = np.flatnonzero(np.isin(ids, control))  # text after a control token is encoded by itself
        for a in {*one.begins, *(a for a, _ in one.spans)}:
            if _is_swallowed(one.text, a, greedy):
                joined[number].add(a)
                continue
            before = starts[spans[starts, 0] < a]
            token, begin = (int(before[-1]), int(spans[before[-1], 0])) if len(before) else (0, 0)
            breaks = tuple(b - begin for b in one.breaks if begin < b < a)
            prompt_ends.append((number, a, token, Rendered(one.text[begin:a], (), breaks=breaks)))
    ends = list(dict.fromkeys(end for *_, end in prompt_ends))
    alone = dict(zip(ends, (ids for ids, _ in encode(ends, tokenizer)), strict=True))
    for number, a, token, end in prompt_ends:
        if not np.array_equal(alone[end], encoded[number][0][token : token + len(alone[end])]):
            joined[number].add(a)
    for number, (one, places) in enumerate(zip(rendered, joined, strict=True)):
        if places:
            encoded[number] = encode([replace(one, breaks=tuple(sorted({*one.breaks, *places})))], tokenizer)[0]
    return encoded


def _is_swallowed(text: str, at: int, greedy: tuple[str, ...]) -> bool:
    """Whether a control token that absorbs following white space (as in Phi-3) would absorb an answer's indentation.

    A single space may belong to the template, and is then not part of the answer.
    """
    spaced = text[at : at + 2].isspace() or text[at : at + 1] in ("\n", "\t")
    return bool(greedy) and spaced and text[:at].rstrip().endswith(greedy)


def encode_prompt(
    template: Template, tokenizer: Any, messages: Sequence[Message], context: str = "", tools: str = ""
) -> list[int]:
    """The token ids of the prompt of generation. Control tokens spelled out in messages stay text.

    Raises Refusal for messages that the template cannot represent.
    """
    return encode_rows([template.opening(messages, context, tools)], tokenizer)[0][0].tolist()


def _mask(ids: np.ndarray, spans: np.ndarray, rendered: Rendered) -> MaskedRow:
    start, end = spans[:, 0], spans[:, 1]
    turn = np.full(len(ids), -1, np.int32)
    for number, (a, b) in enumerate(rendered.spans):
        turn[_overlap(start, end, a, b)] = number
    context = np.zeros(len(ids), bool)
    if rendered.context_span:
        a, b = rendered.context_span
        context = (start >= a) & (end <= b) & (start < b) & (turn < 0)
    # Text of the template after the last end token is neither a target nor visible to one.
    stop = int(np.flatnonzero(turn >= 0)[-1]) + 1 if (turn >= 0).any() else len(ids)
    return MaskedRow(ids[:stop], turn[:stop], context[:stop])


def _overlap(start: np.ndarray, end: np.ndarray, a: int, b: int) -> np.ndarray:
    """Tokens that share a character with [a, b), and empty tokens inside it.

    A byte-level tokenizer that trims its offsets gives a lone space an empty span after it; a mark such as "▁" may have
    an empty one too. A lone space before an answer belongs to it (see `bare`), so neither is ever outside.
    """
    return (start < b) & ((end > a) | (start >= a))


def cut(row: MaskedRow, max_length: int, bos: int | None = None) -> tuple[MaskedRow, tuple[str, ...]]:
    """`row` truncated to `max_length` tokens, and the parts that lost tokens: "context", "prompt", "response".

    Truncation removes the end of the context first, then the start of the prompt (older turns; a start token stays), as
    long as one token precedes the last answer. Only an answer that is still too long loses its end; the prompt then
    keeps up to a quarter of the length, since an answer without a question teaches nothing. An earlier answer that lost
    its beginning or its whole prompt is no longer a target.
    """
    over = len(row.ids) - max_length
    if over <= 0:
        return row, ()
    parts: list[str] = []
    context = np.flatnonzero(row.context)
    if len(context):
        parts.append("context")
        kept = np.ones(len(row.ids), bool)
        kept[context[max(0, len(context) - over) :]] = False
        row = row.keep(kept)
        over = len(row.ids) - max_length
    if over <= 0:
        return row, tuple(parts)
    last = row.turn.max(initial=-1)
    first_target = int(np.flatnonzero(row.turn == last)[0]) if last >= 0 else len(row.ids)
    response = len(row.ids) - first_target
    room = max_length - response if response < max_length else min(first_target, max(1, max_length // 4))
    if room < first_target:
        parts.append("prompt")
        head = int(bos is not None and row.ids[0] == bos and room > 1)
        kept = np.ones(len(row.ids), bool)
        kept[head : first_target - (room - head)] = False
        broken = np.intersect1d(row.turn[~kept], row.turn[kept])
        row = row.keep(kept)
        broken = np.union1d(broken, row.turn[head : head + 1])
        row = replace(row, turn=np.where(np.isin(row.turn, broken), -1, row.turn))
    if len(row.ids) > max_length:
        parts.append("response")
        row = row.keep(np.arange(len(row.ids)) < max_length)
    return row, tuple(parts)


def pieces(ids: Sequence[int], mask: Sequence[bool], tokenizer: Any) -> list[tuple[str, bool]]:
    """(text, is a target) for each token, for display. The concatenated texts are the decoded row.

    A character of several tokens belongs to the last of them; the others have an empty text.
    """
    ids = [int(i) for i in ids]
    decoded = _decode(ids, tokenizer)
    out: list[tuple[str, bool]] = []
    start = 0
    for number, target in enumerate(mask, 1):
        text = _decode(ids[:number], tokenizer)
        # An unfinished character decodes to a replacement mark, which the row does not have there.
        done = len(text) if decoded.startswith(text) else start
        out.append((decoded[start:done], bool(target)))
        start = max(start, done)
    return out


def _decode(ids: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _no_targets(rows: int, refused: RowsByReason, lengths: list[int], max_length: int) -> DataError:
    median = f"\n  max_length is {max_length}, the median row has {int(np.median(lengths))} tokens" if lengths else ""
    hint = "raise data.max_length" if lengths else "see the reasons above"
    if not lengths and any("template" in reason for reason in refused):
        hint = "choose another template: data.template is chat, alpaca, or a text that contains {instruction}"
    return DataError(f"none of the {rows} rows has a target\n{describe(refused)}{median}", hint=hint)
