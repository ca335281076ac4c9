"""Examples -> token ids with the mask of what is learned, cut to a length, with counts of all that was cut or refused.

A token is a target where its characters overlap a response's; the tokenizer's own offsets say which those are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from shepherd.data.prompts import Rendered, Template
from shepherd.data.tally import RowsByReason, Tally, describe
from shepherd.data.values import Refusal
from shepherd.data.waiting import LARGE, Tell, Waiting
from shepherd.errors import DataError, ModelError, plural
from shepherd.types import Example, Message, Tokens

BATCH = 512


@dataclass(frozen=True)
class Tokenized:
    """All rows as tokens, in the order of the examples, and the counts.

    `lengths` int32[rows] are the lengths before the cut. `cut_rows` and `cut_tokens` count truncation; of the rows,
    `cut_contexts`, `cut_prompts` and `cut_responses` lost a part of that (a row may be in several). `escaped` rows
    spell out a control token, which was encoded as ordinary text. `changed` rows are learned, though not as they were
    given: the template trims them, or takes the reasoning out of earlier turns.
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
    """ids int32[n]; turn int32[n] with the number of the response that a token belongs to, or -1; context bool[n]."""

    ids: np.ndarray
    turn: np.ndarray
    context: np.ndarray

    def keep(self, kept: np.ndarray) -> MaskedRow:
        return MaskedRow(self.ids[kept], self.turn[kept], self.context[kept])


def tokenize(
    examples: Sequence[Example], tokenizer: Any, template: Template, max_length: int, tell: Tell | None = None
) -> Tokenized:
    """Render, encode, mask and cut every example; see `cut` for what truncation takes first.

    A row without a target is refused with its reason; `tell` is called with lines about long work. Raises DataError
    when no row is left, and ModelError for a tokenizer without offsets.
    """
    refused, changed = Tally(), Tally()
    tokens: list[Tokens] = []
    lengths: list[int] = []
    cut_in = {"context": 0, "prompt": 0, "response": 0}
    escaped = 0
    bos = tokenizer.bos_token_id
    if tell is not None and (size := sum(len(m.content) for e in examples for m in e.messages)) >= LARGE:
        tell(f"tokenising {plural(len(examples), 'row')}, {size / 1e6:,.0f} million characters")
    waiting = Waiting(tell, "tokenising", len(examples))
    for first in range(0, len(examples), BATCH):
        waiting.at(first)
        shown: list[tuple[Example, Rendered]] = []
        for example in examples[first : first + BATCH]:
            try:
                shown.append((example, template.render(example.messages, example.context, example.tools)))
            except Refusal as reason:
                refused.add(str(reason), example.id)
        encoded = encode_rows([rendered for _, rendered in shown], tokenizer)
        for (example, rendered), (ids, spans) in zip(shown, encoded, strict=True):
            full = _mask(ids, spans, rendered)
            row, where = cut(full, max_length, bos)
            mask = row.turn >= 0
            lengths.append(len(full.ids))
            if not mask[1:].any():
                refused.add(f"nothing left to learn at max_length = {max_length}", example.id)
                continue
            for part in where:
                cut_in[part] += 1
            escaped += bool(rendered.breaks)
            for what in rendered.changed:
                changed.add(what, example.id)
            tokens.append(
                Tokens(example.id, row.ids, mask, example.category, example.source, cut=len(full.ids) - len(row.ids))
            )
    if not tokens:
        raise _nothing(len(examples), refused.by_reason, lengths, max_length)
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
    """(ids int32[n], character spans int32[n, 2]) for each text, without the tokenizer's own special tokens.

    A text is encoded afresh at each of its breaks, so that a control token a user spelled out stays text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            "this tokenizer gives no character offsets, so the mask cannot be proven",
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
    """As `encode`, with every answer encoded as it would be generated: behind the tokens of its prompt.

    The beginning of an answer would else share a token with the end of its prompt (":" and ")", a line break and the
    indentation of code), change how the prompt is cut ("\\n\\n" before a word is two tokens in GPT-2), or be swallowed
    by the control token before it.
    """
    encoded = encode(rendered, tokenizer)
    added = tokenizer.added_tokens_decoder
    control = [token_id for token_id, token in added.items() if token.special]
    greedy = tuple(token.content for token in added.values() if token.rstrip)
    asked: list[tuple[int, int, int, Rendered]] = []  # row, where an answer begins, a token before it, what is between
    joined: list[set[int]] = [set() for _ in rendered]
    for number, (one, (ids, spans)) in enumerate(zip(rendered, encoded, strict=True)):
        starts = np.flatnonzero(np.isin(ids, control))  # what follows a control token is encoded for itself
        for a in {*one.begins, *(a for a, _ in one.spans)}:
            if _is_swallowed(one.text, a, greedy):
                joined[number].add(a)
                continue
            before = starts[spans[starts, 0] < a]
            token, begin = (int(before[-1]), int(spans[before[-1], 0])) if len(before) else (0, 0)
            breaks = tuple(b - begin for b in one.breaks if begin < b < a)
            asked.append((number, a, token, Rendered(one.text[begin:a], (), breaks=breaks)))
    ends = list(dict.fromkeys(end for *_, end in asked))
    alone = dict(zip(ends, (ids for ids, _ in encode(ends, tokenizer)), strict=True))
    for number, a, token, end in asked:
        if not np.array_equal(alone[end], encoded[number][0][token : token + len(alone[end])]):
            joined[number].add(a)
    for number, (one, places) in enumerate(zip(rendered, joined, strict=True)):
        if places:
            encoded[number] = encode([replace(one, breaks=tuple(sorted({*one.breaks, *places})))], tokenizer)[0]
    return encoded


def _is_swallowed(text: str, at: int, greedy: tuple[str, ...]) -> bool:
    """Whether a control token that takes the white space behind it (Phi-3's do) takes an answer's indentation.

    One space may be the template's own, and is then nothing to learn.
    """
    spaced = text[at : at + 2].isspace() or text[at : at + 1] in ("\n", "\t")
    return bool(greedy) and spaced and text[:at].rstrip().endswith(greedy)


def encode_prompt(
    template: Template, tokenizer: Any, messages: Sequence[Message], context: str = "", tools: str = ""
) -> list[int]:
    """The token ids that generation starts from; a control token that a user spelled out stays text here too.

    Raises Refusal for messages that the template cannot show.
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
    # What the template writes after the last end token teaches nothing and is seen by nothing that is learned.
    stop = int(np.flatnonzero(turn >= 0)[-1]) + 1 if (turn >= 0).any() else len(ids)
    return MaskedRow(ids[:stop], turn[:stop], context[:stop])


def _overlap(start: np.ndarray, end: np.ndarray, a: int, b: int) -> np.ndarray:
    """Tokens that share a character with [a, b), and those without characters that stand in it.

    A byte-level tokenizer that trims its offsets gives a lone space none, at the place behind it; a mark such as "▁"
    may have none either. A lone space before a response is its own (see `bare`), so neither is ever outside.
    """
    return (start < b) & ((end > a) | (start >= a))


def cut(row: MaskedRow, max_length: int, bos: int | None = None) -> tuple[MaskedRow, tuple[str, ...]]:
    """`row` in at most `max_length` tokens, and which parts lost some: "context", "prompt", "response".

    First the end of the context goes, then the start of the prompt (older turns; a start token stays), until the last
    response stands alone with one token before it. Only a response that is longer than that loses its end, and then
    the prompt keeps up to a quarter of the length, since an answer to nothing teaches nothing. An earlier response
    that lost its beginning, or all that stood before it, is no longer learned.
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
    """(text, is it a target) for each token, for colouring; the texts together are the decoded row.

    A character that several tokens share shows at the last of them; the others have an empty text.
    """
    ids = [int(i) for i in ids]
    whole = _decode(ids, tokenizer)
    out: list[tuple[str, bool]] = []
    shown = 0
    for number, target in enumerate(mask, 1):
        text = _decode(ids[:number], tokenizer)
        # An unfinished character decodes to a replacement mark that the whole row does not have there.
        done = len(text) if whole.startswith(text) else shown
        out.append((whole[shown:done], bool(target)))
        shown = max(shown, done)
    return out


def _decode(ids: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _nothing(rows: int, refused: RowsByReason, lengths: list[int], max_length: int) -> DataError:
    median = f"\n  max_length is {max_length}, the median row has {int(np.median(lengths))} tokens" if lengths else ""
    hint = "raise data.max_length" if lengths else "see the reasons above"
    if not lengths and any("template" in reason for reason in refused):
        hint = "choose another template: data.template is chat, alpaca, or a text of your own with {instruction}"
    return DataError(f"none of the {rows} rows has a token to learn\n{describe(refused)}{median}", hint=hint)
