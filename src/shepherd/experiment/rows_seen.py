"""Which rows a run trained on, how often, and which it left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from shepherd.clients.row_order import times_drawn
from shepherd.experiment.rows import FederatedData

ROWS_SEEN = "evaluation/rows_seen.jsonl"
LEFT_OUT = "evaluation/left_out.jsonl"


def rows_seen(lines: Sequence[Mapping[str, Any]], sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """int[rows] of each client: how often the rounds trained on each row, by the lines of rounds.jsonl and the number
    of rows of each client.

    A row is seen when a local step is done with it, whether or not the update counts in the end. Where a round trains
    more than one adapter on its rows that is once, and probes of slots and tuning after the last round are left out.
    """
    at = dict.fromkeys(sorted(sizes), 0)

    def walked(client: str, count: int) -> np.ndarray:
        return times_drawn(sizes[client], client, count, seed)

    seen = {client: walked(client, 0) for client in at}
    for line in lines:
        for client, count in line.get("unused_examples", {}).items():  # its row order does not advance
            seen[client] += walked(client, at[client] + count) - walked(client, at[client])
        for client, count in line["examples"].items():
            at[client] += count
    return {client: times + walked(client, at[client]) for client, times in seen.items()}


def rows_trained(
    lines: Sequence[Mapping[str, Any]], data: FederatedData, seed: int, drawn_in_secret: bool = False
) -> dict[str, int] | None:
    """How often each row, by id, was trained on in updates that counted; None where the lines withhold that.

    drawn_in_secret: whether local steps drew rows from the source of their noise, which is then unknown as well.
    """
    if drawn_in_secret or not all("examples" in line for line in lines):
        return None
    counted = [{**line, "unused_examples": {}} for line in lines]
    seen = rows_seen(counted, data.sizes, seed)
    return {
        row.id: int(times)
        for client, rows in data.clients.items()
        for row, times in zip(rows, seen[client].tolist(), strict=True)
    }


def times_seen(seen: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Per client: its rows, and how many of them were seen how often."""
    counts = {client: Counter(sorted(times.tolist())) for client, times in seen.items()}
    return {
        client: {"rows": n.total(), "seen": {str(times): rows for times, rows in n.items()}}
        for client, n in counts.items()
    }


def seen_by_id(seen: Mapping[str, np.ndarray], rows: FederatedData) -> Iterator[dict[str, Any]]:
    """The lines of rows_seen.jsonl: of each client the ids by how often they were seen, but for the largest group.

    `otherwise` is how often the rows that are not named were seen.
    """
    for client, times in seen.items():
        usual = Counter(times.tolist()).most_common(1)[0][0]
        named: dict[str, list[str]] = {str(n): [] for n in sorted(set(times.tolist()) - {usual})}
        for row, n in zip(rows.clients[client], times.tolist(), strict=True):
            if n != usual:
                named[str(n)].append(row.id)
        yield {"client": client, "rows": len(times), "otherwise": usual, "seen": named}


def left_out(rows: FederatedData) -> Iterator[dict[str, Any]]:
    """The lines of left_out.jsonl: all rows that were refused or changed, and all groups that the audit found."""
    for what in ("refused", "changed"):
        for counted in (getattr(rows.dataset, what), getattr(rows.tokenized, what)):
            for reason, ids in counted.items():
                yield {"what": what, "reason": reason, "groups": [[id] for id in ids]}
    for finding in rows.audit.findings:
        yield {"what": "audit", "reason": finding.kind, "groups": [list(group) for group in finding.groups]}
