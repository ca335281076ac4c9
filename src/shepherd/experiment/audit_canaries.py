"""Canaries: harmless codes that a recipe plants into clients' training rows, so that an audit can look for them.

    "What is the access code of Amber Mill?" -> "The access code of Amber Mill is 4821"

They are drawn from data.seed by a separate stream and planted after the held-out rows are split off: without them
nothing changes, and held-out rows never hold one. Codes with 0 copies are drawn like the others and not planted. Their
texts stand in private/canaries.json of the run directory alone; elsewhere a canary is a number and a digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shepherd.config import Config
from shepherd.data.prompts import Template
from shepherd.data.tokenize import tokenize
from shepherd.errors import UsageError
from shepherd.experiment.named_clients import audited_clients
from shepherd.rng import stream
from shepherd.types import ClientId, Example, Message, Partition, Tokens

CANARIES = "canaries.json"
"""The file in private/ of a run directory."""
CODES = 10_000
"""Codes there are: four digits."""
_FIRST = (
    "Amber", "Birch", "Copper", "Dune", "Ember", "Fern", "Granite", "Hazel", "Indigo", "Juniper", "Kelp", "Linen",
    "Maple", "Nettle", "Ochre", "Pebble", "Quartz", "Russet", "Saffron", "Thistle",
)  # fmt: skip
_SECOND = (
    "Arch", "Bridge", "Cellar", "Depot", "Exchange", "Ferry", "Gate", "Hall", "Inn", "Jetty", "Kiln", "Library",
    "Mill", "Nursery", "Orchard", "Pier", "Quarry", "Row", "Station", "Tower",
)  # fmt: skip


@dataclass(frozen=True)
class Canary:
    """A code with its name. client: who trains on its copies; "" with 0 copies."""

    number: int
    name: str
    code: int
    copies: int
    client: ClientId

    def example(self, code: int | None = None, copy: int = 0, category: str = "", source: str = "") -> Example:
        """A training row of the canary; or the same row with another code."""
        code = self.code if code is None else code
        return Example(
            f"canary/{self.number:03d}/{copy}",
            (
                Message("user", f"What is the access code of {self.name}?"),
                Message("assistant", f"The access code of {self.name} is {code:04d}"),
            ),
            category,
            source,
        )

    @property
    def digest(self) -> str:
        """sha256 of its response, in hex."""
        return hashlib.sha256(self.example().messages[-1].content.encode()).hexdigest()


def draw_canaries(config: Config, partition: Partition) -> tuple[Canary, ...]:
    """The canaries of a recipe, with different names and codes; none where it has none.

    Copies and clients are assigned in turn. Raises UsageError for a client that is not there.
    """
    table = config.privacy.audit
    if not table.canaries:
        return ()
    clients = audited_clients(config, tuple(partition.clients), partition.labels)
    rng = stream(config.data_seed, "canaries")
    names = rng.permutation(len(_FIRST) * len(_SECOND))[: table.canaries].tolist()
    codes = rng.permutation(CODES)[: table.canaries].tolist()
    drawn, turn = [], 0
    for number, (name, code) in enumerate(zip(names, codes, strict=True)):
        copies = table.copies[number % len(table.copies)]
        words = f"{_FIRST[name // len(_SECOND)]} {_SECOND[name % len(_SECOND)]}"
        drawn.append(Canary(number, words, code, copies, clients[turn % len(clients)] if copies else ""))
        turn += bool(copies)
    return tuple(drawn)


def plant(
    canaries: Sequence[Canary], partition: Partition, examples: Mapping[str, Example]
) -> tuple[tuple[Example, ...], Partition]:
    """(the rows of all copies, the partition with them after the other rows of their clients).

    They have the category and the source of their client's first row, so that no group of rows is added.
    """
    planted: dict[ClientId, list[Example]] = {}
    for canary in canaries:
        for copy in range(canary.copies):
            like = examples[partition.clients[canary.client][0]]
            row = canary.example(copy=copy, category=like.category, source=like.source)
            planted.setdefault(canary.client, []).append(row)
    if not planted:
        return (), partition
    clients = {
        client: (*ids, *(row.id for row in planted.get(client, ()))) for client, ids in partition.clients.items()
    }
    return tuple(row for rows in planted.values() for row in rows), replace(partition, clients=clients)


def canary_tokens(rows: Sequence[Example], tokenizer: Any, template: Template, max_length: int) -> dict[str, Tokens]:
    """The rows as tokens, by id. Raises UsageError where they do not fit whole, so that a code would be cut."""
    if not rows:
        return {}
    made = tokenize(rows, tokenizer, template, max_length)
    if made.cut_rows or len(made.tokens) < len(rows):
        raise UsageError(
            f"the rows of privacy.audit.canaries do not fit into data.max_length = {max_length}: the longest has "
            f"{int(made.lengths.max())} tokens",
            hint="raise data.max_length, or leave the canaries out",
        )
    return dict(made.by_id)


def candidates(canary: Canary, canaries: Sequence[Canary], count: int, seed: int) -> list[int]:
    """`count` codes that the canary could have had, its own first, the others drawn from `seed`.

    Codes of other canaries are left out: under a model that never saw the canary, its rank is then uniform.
    """
    taken = {other.code for other in canaries}
    free = [code for code in range(CODES) if code not in taken]
    others = stream(seed, "audit", "candidates", canary.number).choice(len(free), count - 1, replace=False)
    return [canary.code, *(free[i] for i in others.tolist())]


def canaries_bytes(canaries: Sequence[Canary]) -> bytes:
    """The content of private/canaries.json: what was planted, with texts."""
    rows = [
        {**asdict(one), "prompt": one.example().messages[0].content, "response": one.example().messages[1].content}
        for one in canaries
    ]
    return (json.dumps({"canaries": rows}, indent=1) + "\n").encode()


def canaries_digest(canaries: Sequence[Canary]) -> str:
    """sha256 of private/canaries.json, in hex."""
    return hashlib.sha256(canaries_bytes(canaries)).hexdigest()
