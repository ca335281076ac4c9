"""What is wrong with divided data, as findings with ids: nothing is changed here, everything is said.

Texts are compared as `holdout.alike` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shepherd.data.holdout import alike, same_prompt
from shepherd.data.sources import Dataset
from shepherd.types import Example, Partition

if TYPE_CHECKING:
    from shepherd.data.tokenize import Tokenized

KINDS = {
    "duplicates within a client": "the same instruction and answer, more than once in one client",
    "duplicates across clients": "the same instruction and answer in more than one client: less skew than it seems",
    "train and held-out overlap": "held-out rows whose instruction is also trained on: their loss flatters the model",
    "conflicting answers": "the same instruction with different answers",
    "empty answers": "rows that were refused: there was nothing to learn",
    "answers without content": "the whole answer is a word for nothing, such as NaN, None or N/A, and it is learned",
    "mis-decoded text": "U+FFFD, or UTF-8 that was read as another encoding (such as Ã© for é)",
    "another chat template": "control marks of a chat template within a text, such as <|im_start|> or [INST]",
    "other refusals": "rows that were refused for another reason",
    "over-long rows": "rows that truncation cut",
}  # fmt: skip


IDS = 5
"""Most ids of a group that a line shows."""
_NOTHING = frozenset(("nan", "none", "null", "n/a", "na", "nil", "undefined", "<na>", "#n/a", "nat"))
_MIS_DECODED = re.compile(
    "\ufffd|[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac[\u0080-\u00ff\u0152-\u2122]|\u00ef\u00bb\u00bf|\u00f0\u0178"
)
_TEMPLATES = re.compile(
    r"<\|im_(?:start|end)\|>|<\|(?:system|user|assistant|end|eot_id|start_header_id|endoftext|begin_of_text)\|>"
    r"|\[/?INST\]|<<SYS>>|<(?:start|end)_of_turn>|<｜(?:User|Assistant)｜>|^### (?:Instruction|Response):",
    re.MULTILINE,
)


def _says_nothing(example: Example) -> bool:
    learned = (m.content for m in example.messages if m.role == "assistant" and m.learned)
    return any(answer.strip(" .\"'").casefold() in _NOTHING for answer in learned)


def _holds(pattern: re.Pattern[str]) -> Callable[[Example], bool]:
    return lambda example: any(pattern.search(text) for text in (*_texts(example), example.context))


def _texts(example: Example) -> Iterable[str]:
    return (text for message in example.messages for text in (message.content, message.reasoning))


ROW_FAULTS: dict[str, Callable[[Example], bool]] = {
    "answers without content": _says_nothing,
    "mis-decoded text": _holds(_MIS_DECODED),
    "another chat template": _holds(_TEMPLATES),
}
"""The kinds that one row shows by itself."""


@dataclass(frozen=True)
class Finding:
    """One kind of fault: `groups` of ids of rows that share it (a group of one where a row stands for itself).

    `count` is the number of rows; of rows that are trained on and held out it is that of the held-out ones.
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
    """The findings that are not zero, in the order of `KINDS`, and how many rows were looked at."""

    findings: tuple[Finding, ...]
    rows: int

    def __getitem__(self, kind: str) -> Finding:
        """The finding of this kind; count 0 when there is none."""
        if kind not in KINDS:
            raise KeyError(kind)
        return next((f for f in self.findings if f.kind == kind), Finding(kind, 0, ()))

    def summary(self, beside: Container[str] = ()) -> str:
        """The findings in one line, without the kinds in `beside`; "" for none."""
        return ", ".join(f"{finding.count:,} {finding.kind}" for finding in self.findings if finding.kind not in beside)

    def describe(self, first: int = 3, ids: int = IDS) -> str:
        """One line per finding with the first groups and the first `ids` of each, or one that says there are none."""
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
    """Look through everything that is trained on and evaluated with.

    `tokens` adds what truncation cut and tokenising refused, `dataset` what reading refused (rows with an empty answer
    never become examples).
    """
    owner = {row_id: client for client, ids in partition.clients.items() for row_id in ids}
    groups: dict[str, list[tuple[str, ...]]] = {kind: [] for kind in KINDS}
    taught = {e.id: same_row(e) for e in (*train, *held_out)}
    for same in _alike(train, lambda example: taught[example.id]):
        in_client: dict[str, list[str]] = {}
        for row_id in same:
            in_client.setdefault(owner.get(row_id, ""), []).append(row_id)
        if len(in_client) > 1:
            groups["duplicates across clients"].append(same)
        groups["duplicates within a client"] += [tuple(ids) for ids in in_client.values() if len(ids) > 1]

    out = {e.id for e in held_out}
    for same in _alike([*train, *held_out], same_prompt):
        if 0 < sum(row_id in out for row_id in same) < len(same):
            groups["train and held-out overlap"].append(same)
        if len({taught[row_id] for row_id in same}) > 1:
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
        long = [t.id for t in tokens.tokens if t.cut]
        groups["over-long rows"] = [(row_id,) for row_id in long]
        counts["over-long rows"] = len(long)
    found = tuple(Finding(kind, counts[kind], tuple(same)) for kind, same in groups.items() if counts[kind])
    return Audit(found, len(train) + len(held_out))


def same_row(example: Example) -> str:
    """`same_prompt` with the answer: equal for rows that teach the same."""
    last = example.messages[-1]
    return f"{same_prompt(example)}\nassistant:{alike(f'{last.reasoning}{last.content}{last.extra}')}"


def _alike(examples: Iterable[Example], key: Callable[[Example], str]) -> list[tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for example in examples:
        groups.setdefault(key(example), []).append(example.id)
    return [tuple(ids) for ids in groups.values() if len(ids) > 1]
