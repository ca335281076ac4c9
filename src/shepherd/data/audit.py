"""Audit of partitioned data: duplicates, overlaps, conflicts and damaged texts, with the ids of their rows.

Rows are reported, never changed. Texts are compared after `holdout.normalised`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shepherd.data.holdout import normalised, prompt_key
from shepherd.data.sources import Dataset
from shepherd.types import Example, Partition

if TYPE_CHECKING:
    from shepherd.data.tokenize import Tokenized

KINDS = {
    "duplicates within a client": "the same instruction and answer, more than once in one client",
    "duplicates across clients": "the same instruction and answer in more than one client: less skew than it seems",
    "train and held-out overlap": "held-out rows whose instruction is also trained on: their loss flatters the model",
    "conflicting answers": "the same instruction with different answers",
    "empty answers": "rows that were refused because they have no answer",
    "answers without content": "the answer is a placeholder such as NaN, None or N/A, and a target",
    "mis-decoded text": "U+FFFD, or UTF-8 that was read as another encoding (such as Ã© for é)",
    "another chat template": "control marks of a chat template within a text, such as <|im_start|> or [INST]",
    "other refusals": "rows that were refused for another reason",
    "over-long rows": "rows that truncation cut",
}  # fmt: skip


IDS = 5
"""Most ids of a group that a line shows."""
_PLACEHOLDERS = frozenset(("nan", "none", "null", "n/a", "na", "nil", "undefined", "<na>", "#n/a", "nat"))
_MIS_DECODED = re.compile(
    "\ufffd|[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac[\u0080-\u00ff\u0152-\u2122]|\u00ef\u00bb\u00bf|\u00f0\u0178"
)
_TEMPLATES = re.compile(
    r"<\|im_(?:start|end)\|>|<\|(?:system|user|assistant|end|eot_id|start_header_id|endoftext|begin_of_text)\|>"
    r"|\[/?INST\]|<<SYS>>|<(?:start|end)_of_turn>|<｜(?:User|Assistant)｜>|^### (?:Instruction|Response):",
    re.MULTILINE,
)


def _is_placeholder(example: Example) -> bool:
    targets = (m.content for m in example.messages if m.role == "assistant" and m.learned)
    return any(answer.strip(" .\"'").casefold() in _PLACEHOLDERS for answer in targets)


def _contains(pattern: re.Pattern[str]) -> Callable[[Example], bool]:
    return lambda example: any(pattern.search(text) for text in (*_texts(example), example.context))


def _texts(example: Example) -> Iterable[str]:
    return (text for message in example.messages for text in (message.content, message.reasoning))


ROW_FAULTS: dict[str, Callable[[Example], bool]] = {
    "answers without content": _is_placeholder,
    "mis-decoded text": _contains(_MIS_DECODED),
    "another chat template": _contains(_TEMPLATES),
}
"""The kinds of fault that a single row can have."""


@dataclass(frozen=True)
class Finding:
    """Faults of one kind: groups of ids of rows that share a fault; single rows are groups of one.

    `count` is the number of rows; for the overlap of training and evaluation, that of the held-out rows.
    """

    kind: str
    count: int
    groups: tuple[tuple[str, ...], ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(row_id for group in self.groups for row_id in group)

    @property
    def meaning(self) -> str:
        return KINDS[self.kind]


@dataclass(frozen=True)
class Audit:
    """The findings in the order of `KINDS`, without empty ones, and the number of audited rows."""

    findings: tuple[Finding, ...]
    rows: int

    def __getitem__(self, kind: str) -> Finding:
        """The finding of this kind, with count 0 if no row has the fault."""
        if kind not in KINDS:
            raise KeyError(kind)
        return next((f for f in self.findings if f.kind == kind), Finding(kind, 0, ()))

    def summary(self, without: Container[str] = ()) -> str:
        """The findings in one line, without these kinds; "" for none."""
        return ", ".join(f"{f.count:,} {f.kind}" for f in self.findings if f.kind not in without)

    def describe(self, first: int = 3, ids: int = IDS) -> str:
        """One line per finding, with the first groups and the first `ids` ids of each group."""
        if not self.findings:
            return f"{self.rows:,} rows, nothing found"
        lines = []
        for finding in self.findings:
            shown = "; ".join(
                " = ".join(group[:ids]) + (" = …" if len(group) > ids else "") for group in finding.groups[:first]
            )
            more = "; …" if len(finding.groups) > first else ""
            lines.append(f"{finding.count:,} {finding.kind}: {finding.meaning} ({shown}{more})")
        return "\n".join(lines)


def audit(
    partition: Partition,
    train: Sequence[Example],
    held_out: Sequence[Example],
    tokens: Tokenized | None = None,
    dataset: Dataset | None = None,
) -> Audit:
    """Audit all training and held-out rows.

    `tokens` adds rows that truncation cut or tokenisation refused, `dataset` rows that were refused on reading (those
    with an empty answer never become examples).
    """
    owner = {row_id: client for client, ids in partition.clients.items() for row_id in ids}
    groups: dict[str, list[tuple[str, ...]]] = {kind: [] for kind in KINDS}
    content = {e.id: row_key(e) for e in (*train, *held_out)}
    for same in _duplicates(train, lambda example: content[example.id]):
        in_client: dict[str, list[str]] = {}
        for row_id in same:
            in_client.setdefault(owner.get(row_id, ""), []).append(row_id)
        if len(in_client) > 1:
            groups["duplicates across clients"].append(same)
        groups["duplicates within a client"] += [tuple(ids) for ids in in_client.values() if len(ids) > 1]

    out = {e.id for e in held_out}
    for same in _duplicates([*train, *held_out], prompt_key):
        if 0 < sum(row_id in out for row_id in same) < len(same):
            groups["train and held-out overlap"].append(same)
        if len({content[row_id] for row_id in same}) > 1:
            groups["conflicting answers"].append(same)

    for kind, faulty in ROW_FAULTS.items():
        groups[kind] = [(example.id,) for example in (*train, *held_out) if faulty(example)]

    counts = {kind: sum(map(len, same)) for kind, same in groups.items()}
    counts["train and held-out overlap"] = sum(
        row_id in out for g in groups["train and held-out overlap"] for row_id in g
    )
    for refused in (dataset.refused if dataset else {}, tokens.refused if tokens else {}):
        for reason, ids in refused.items():
            kind = "empty answers" if reason in ("empty answer", "no answer") else "other refusals"
            groups[kind] += [(row_id,) for row_id in ids]
            counts[kind] += len(ids)
    if tokens:
        truncated = [t.id for t in tokens.tokens if t.cut]
        groups["over-long rows"] = [(row_id,) for row_id in truncated]
        counts["over-long rows"] = len(truncated)
    found = tuple(Finding(kind, counts[kind], tuple(same)) for kind, same in groups.items() if counts[kind])
    return Audit(found, len(train) + len(held_out))


def row_key(example: Example) -> str:
    """`prompt_key` with the last answer: equal for duplicates."""
    last = example.messages[-1]
    return f"{prompt_key(example)}\nassistant:{normalised(f'{last.reasoning}{last.content}{last.extra}')}"


def _duplicates(examples: Iterable[Example], key: Callable[[Example], str]) -> list[tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for example in examples:
        groups.setdefault(key(example), []).append(example.id)
    return [tuple(ids) for ids in groups.values() if len(ids) > 1]
