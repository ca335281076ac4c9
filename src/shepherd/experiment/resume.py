"""The beginning of a run, or its continuation: what it is made with is written once, and held to afterwards."""

from __future__ import annotations

import platform
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shepherd._version import __version__
from shepherd.data.partition import partition_document
from shepherd.errors import DataError, UsageError
from shepherd.experiment.audit_canaries import CANARIES, canaries_bytes
from shepherd.experiment.identity import FILE, differences, identity
from shepherd.experiment.inputs import Inputs
from shepherd.model.base import Base
from shepherd.recipe import to_toml
from shepherd.store import RunDirectory, read_journal, read_json
from shepherd.store.state import load_state
from shepherd.types import ServerState
from shepherd.updates.privacy.publication import PRIVATE, place_of


@dataclass(frozen=True)
class Beginning:
    """Where a run begins or goes on: its id, the state before the next round, and what was found on the way there.

    facts: of the manifest of the last committed round; None before the first.
    """

    run_id: str
    state: ServerState
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] | None = None


def begin_or_resume(
    inputs: Inputs, store: RunDirectory, force: bool = False, wrap: Callable[..., object] | None = None
) -> Beginning:
    """Write what the run is made with and its id; or, in a directory that has them, check and read them.

    Raises UsageError, with what differs, where a resumed run was started with something else, and DataError where its
    files were changed; `force` goes on all the same and notes it, but for what ends a guarantee of privacy. wrap: what
    makes the engine from the recipe's; the run is made with it, too.
    """
    now = identity(inputs.resolved, inputs.base, inputs.data)
    if wrap is not None:
        named = wrap if hasattr(wrap, "__qualname__") else type(wrap)
        now["engine"] = f"{named.__module__}:{named.__qualname__}"

    def write() -> None:
        partition = inputs.data.partition
        store.write_json("partition.json", partition_document(partition, list(inputs.data.examples.values())))
        store.write_json("env.json", _environment(inputs.base))
        store.write_text("config.toml", to_toml(inputs.resolved))
        if inputs.data.canaries:
            store.write_private(CANARIES, canaries_bytes(inputs.data.canaries))
        store.journal("started", model=inputs.base.digest, data=inputs.data.dataset.digest)

    return begin_or_go_on(store, now, inputs.start, write, force)


def begin_or_go_on(
    store: RunDirectory, now: Mapping[str, Any], start: ServerState, write: Callable[[], None], force: bool = False
) -> Beginning:
    """The same, given the identity that the run has `now`, and what writes the other files of a new one."""
    if not (store.path / FILE).exists():
        if _is_private(now):
            store.withhold()
        run_id = secrets.token_hex(16)  # not from the seed: two runs of one recipe are two
        write()
        store.write_json(FILE, {"run": run_id, **now})  # last: with it, the run can be resumed
        return Beginning(run_id, start)
    then = read_json(place_of(store.path, FILE))
    if _is_private(now) and not _is_private(then):
        raise DataError(f"the rounds of {store.path} had no privacy, so no later one can give it: begin a new run")
    if _is_private(then) and not _is_private(now):
        raise DataError(
            f"the rounds of {store.path} had noise, and one without would end their guarantee: begin a new run"
        )
    if _is_private(then) and not store.withholds:
        raise DataError(
            f"{store.path} has no {PRIVATE}/journal.jsonl: what a private run withholds is gone, so it cannot go on",
            hint=f"restore {store.path / PRIVATE} from a copy, or begin a new run",
        )
    if _is_private(then) and then.get("partition") != now.get("partition"):
        raise DataError(
            f"{store.path} was begun with other rows of its clients: a row that moved to another client would have "
            "spent in both accounts, and the larger of them counts; this run cannot go on as private",
            hint="give back the data and the partition that it was started with, or begin a new run",
        )
    forced = differences(then, now)
    if forced and not force:
        listed = "\n".join(f"  {line}" for line in forced)
        raise UsageError(
            f"{store.path} was started with something else, so it would end with other numbers:\n{listed}",
            hint="give back what it was started with; or go on with --force, which is noted in the report",
        )
    recovered = store.recover()
    if recovered.lines and not force:
        raise DataError(
            f"{store.path}: {recovered.lines}, so curves and the best round would not be as measured",
            hint="restore it from a copy; or go on with --force, which is noted in the report",
        )
    forced += [recovered.lines] if recovered.lines else []
    notes = [f"{name}: {reason}" for name, reason in recovered.rejected] + list(recovered.notes)
    state = load_state(recovered.checkpoint.folder) if recovered.checkpoint else start
    store.journal("resumed", round=state.round, found=notes, forced=forced)
    facts = recovered.checkpoint.facts if recovered.checkpoint else None
    return Beginning(str(then.get("run", secrets.token_hex(16))), state, tuple(notes), facts)


def _is_private(made_with: Mapping[str, Any]) -> bool:
    return made_with["config"].get("privacy", {}).get("unit", "none") != "none"


def resumptions(run_dir: Path) -> dict[str, list[str]]:
    """The journal's entries on every time that the run was resumed: what it was forced over, and what was found
    damaged, each with the round after which it went on."""
    resumed = [row for row in read_journal(place_of(run_dir, "journal.jsonl")).rows if row["what"] == "resumed"]
    return {
        kind: [f"after round {row['round']}: {line}" for row in resumed for line in row[kind]]
        for kind in ("forced", "found")
    }


def _environment(base: Base) -> dict[str, Any]:
    import peft
    import transformers

    return {
        "shepherd": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "threads": torch.get_num_threads(),
        "device": str(base.device),
        "dtype": str(base.dtype),
    }
