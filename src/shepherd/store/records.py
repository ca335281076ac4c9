"""One line of rounds.jsonl: what a round did, as every reader finds it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shepherd.errors import DataError
from shepherd.types import ClientId
from shepherd.updates.privacy.publication import place_of


@dataclass(frozen=True)
class RoundRecord:
    """One line of rounds.jsonl. Sizes in bytes, times in seconds, losses in nats per target token.

    cohort: all who were asked, in one draw or more. rejected: unusable answers, with client, code and detail. missing:
    those who gave none. late: those whose answer came after the deadline, or after enough others. ignored: what a
    client sent beside the answer that counted. quarantined: who is asked no more from now on. skipped: too few
    answered, so the model is that of the round before. examples counts the rows that a client trained on,
    unused_examples those of clients whose update did not count, as far as they told; they come up again in the walk.
    learning_rate holds the rates of the first and the last local step of the client with the most steps. diagnostics:
    see server/diagnostics.py; empty for a skipped round. clusters: which one each client is in, from 1. clipped: how
    many of the updates that count were longer than clip_norm, the L2 norm to which they were clipped; None without.
    """

    round: int
    cohort: tuple[ClientId, ...]
    missing: tuple[ClientId, ...]
    rejected: tuple[Mapping[str, str], ...]
    weights: Mapping[ClientId, float]
    train_loss: Mapping[ClientId, float]
    steps: Mapping[ClientId, int]
    examples: Mapping[ClientId, int]
    tokens: Mapping[ClientId, int]
    bytes_up: int
    bytes_down: int
    seconds: Mapping[str, float]
    learning_rate: tuple[float, float]
    deviation: float
    update_norm: Mapping[ClientId, float]
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    late: tuple[ClientId, ...] = ()
    ignored: tuple[Mapping[str, str], ...] = ()
    quarantined: tuple[ClientId, ...] = ()
    skipped: bool = False
    clusters: Mapping[ClientId, int] = field(default_factory=dict)
    unused_examples: Mapping[ClientId, int] = field(default_factory=dict)
    clipped: int | None = None
    clip_norm: float | None = None


def troubles(record: RoundRecord) -> dict[str, Any]:
    """What in a round did not go as it should, by the record's own names; nothing of it is empty or false."""
    names = ("rejected", "missing", "late", "ignored", "quarantined", "skipped")
    return {name: getattr(record, name) for name in names if getattr(record, name)}


def notes(record: RoundRecord, label: Callable[[ClientId], str] = str) -> list[str]:
    """What a person should hear of a round beside its line: who is asked no more, by name, and that it was skipped."""
    codes = {entry["client"]: entry["code"] for entry in record.rejected}
    lines = [
        f"{label(c)} is quarantined, it is asked no more: {codes[c]} in round {record.round}"
        for c in record.quarantined
    ]
    if record.skipped and not record.cohort:
        lines.append(f"round {record.round} is skipped, nobody was drawn: the model stays as it is")
    elif record.skipped:
        lines.append(f"round {record.round} is skipped, too few clients gave a usable update: the model stays as it is")
    return lines


def read_rounds(run_dir: Path) -> list[Mapping[str, Any]]:
    """The committed rounds' lines of rounds.jsonl, in order. Raises DataError for a line that is none."""
    path = place_of(run_dir, "rounds.jsonl")
    lines: list[Mapping[str, Any]] = []
    try:
        for number, text in enumerate(path.read_bytes().splitlines() if path.exists() else (), 1):
            line = json.loads(text)
            if not isinstance(line, dict) or not {"round", "held_out_loss"} <= line.keys():
                raise ValueError(f"line {number} is not the record of a round")
            lines.append(line)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="restore it from a copy, or repeat the run") from None
    return lines
