"""Facts of a client's data that it announces before a plan is made: counts and a digest, no rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from shepherd.types import ClientId, SiteFacts, Tokens


def facts_of(data: Mapping[ClientId, Sequence[Tokens]]) -> dict[ClientId, SiteFacts]:
    """The facts of each client with these rows, by name."""
    return {client: SiteFacts(len(data[client]), rows_digest(data[client])) for client in sorted(data)}


def rows_digest(rows: Sequence[Tokens]) -> str:
    """sha256 over the tokens of the rows, and which of them are targets, in order."""
    total = hashlib.sha256()
    for row in rows:
        total.update(f"{len(row.input_ids)}\n".encode())
        total.update(row.input_ids.astype("<i4").tobytes())
        total.update(row.loss_mask.astype(bool).tobytes())
    return total.hexdigest()
