"""Held-out losses by row of a run directory, and which rows are a client's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shepherd.experiment.study.record import RowTable
from shepherd.store import read_json

if TYPE_CHECKING:
    from shepherd.experiment.division import Sources


def row_table(run_dir: Path) -> RowTable:
    """The losses of every arm on every held-out row."""
    raise NotImplementedError


def own_rows(run_dir: Path, sources: Sources | None) -> dict[str, list[int]]:
    """The indices of each client's own held-out rows: of its categories, or of its sources where those divide.

    Empty where the rows are read by their library alone, as those of the hub.
    """
    from shepherd.experiment.division import natural_key

    if sources is None:
        return {}
    partition = read_json(run_dir / "partition.json")
    key = natural_key(partition["settings"])
    apart = sources.held_out.examples if sources.held_out is not None else sources.dataset.examples
    kinds: dict[str, Any] = {e.id: getattr(e, key) for e in (*sources.dataset.examples, *apart)}
    of_rows = [kinds.get(row) for row in partition["held_out"]]
    found: Mapping[str, list[int]] = {
        client: [i for i, kind in enumerate(of_rows) if kind in {kinds.get(row) for row in ids}]
        for client, ids in partition["clients"].items()
    }
    return dict(found)
