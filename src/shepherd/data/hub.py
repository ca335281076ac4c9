"""Datasets of a hub, loaded by the package `datasets` (extra `hub`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shepherd import network
from shepherd.data.builtins import RawRows
from shepherd.data.trees import kind_of, shorten
from shepherd.errors import DataError, NetworkError, missing_extra, plural


def hub(name: str, note_splits: bool = True) -> RawRows:
    """The rows of `org/name[:config][@split]`; the split is `train` unless given.

    note_splits: a note names unread test and validation splits. A source `hub:` permits the network, so it is open
    while the rows are fetched.
    """
    if not name:
        raise DataError("hub: has no dataset name", hint="write hub:ORG/NAME")
    with network.opened():
        return _fetched(name, note_splits)


def _fetched(name: str, note_splits: bool) -> RawRows:
    try:
        import datasets as hub_datasets
    except ImportError:
        raise missing_extra("datasets", "hub") from None
    path, _, split = name.partition("@")
    path, _, config = path.partition(":")
    split = split or "train"
    if Path(path).exists():
        raise DataError(
            f"hub:{name}: {path} exists in this folder, and the package datasets would read it instead of the hub's",
            hint=f"start from another folder, or set data.source = {path}",
        )
    if not sys.stderr.isatty():
        hub_datasets.disable_progress_bars()
    try:
        data = hub_datasets.load_dataset(path, config or None, split=split)
    except Exception as error:  # its errors have no common class, and their text is what the user needs
        kind = NetworkError if isinstance(error, (ConnectionError, OSError)) else DataError
        raise kind(
            f"hub:{name} could not be loaded: {type(error).__name__}: {shorten(str(error), 200)}",
            hint="check the name and the network, or download the file and give its path",
        ) from error
    stem = path.rpartition("/")[2]
    rows = [(f"{stem}:{number}", dict(row)) for number, row in enumerate(data, 1)]
    splits = getattr(data.info, "splits", None) or {}
    notes = tuple(_other_splits(name, splits)) if note_splits and "@" not in name else ()
    return RawRows(f"hub:{name}", rows, data.info.license or _licence_on_card(path), notes)


def _other_splits(name: str, splits: Mapping[str, Any]) -> Iterator[str]:
    """A line on the test and validation splits of a dataset that is read from train; test is suggested first."""
    kinds = {split: kind for split in splits if (kind := kind_of(split)) in ("test", "validation")}
    if kinds:
        best = min(kinds, key=lambda split: kinds[split] != "test")
        named = ", ".join(f"{split} ({plural(splits[split].num_examples, 'row')})" for split in kinds)
        yield f"not read: the split {named}; --set data.held_out_source=hub:{name}@{best} holds it out"


def _licence_on_card(path: str) -> str:
    """The licence on the dataset's card, or "unknown": a run never fails for a missing card."""
    from huggingface_hub import DatasetCard

    try:
        facts = DatasetCard.load(path).data
    except Exception:
        return "unknown"
    named = facts.get("license_name") or facts.license
    return ", ".join(named) if isinstance(named, list) else str(named or "unknown")
