"""What leaves a run with differential privacy: a class for every file that it writes, and for every key of its records.

    class_of("evaluation/rows_seen.jsonl")               # "never"
    released("rounds.jsonl", line)                       # the keys of a line that may be published
    place_of(Path("runs/demo"), "partition.json")        # runs/demo/private/partition.json

Released: nothing but the noised sums, what is computed from them, the settings, and the server's held-out rows, which
are not covered. Withheld: what depends on the clients' rows or on who took part; it lies in private/ of the run
directory, for the operator. Never: withheld, and no command copies it out. What has no class is withheld.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PRIVATE = "private"
"""The folder of a run directory for what is withheld: it goes into no report and no export."""

RELEASED, WITHHELD, NEVER = "released", "withheld", "never"
IN_PART = "in part"
"""A file that is whole in private/, and at its usual place has its released keys."""
WHETHER = "whether"
"""A list that is released as one entry where it holds any: that it holds some is released, what is withheld."""
PAIRS = "pairs"
"""A list of comparisons, of which those between released arms are released."""

ARMS = frozenset({"base", "federated"})
"""The arms whose figures are released: the bare base, and the model with noise."""

FILES = {
    "config.toml": RELEASED,
    "env.json": RELEASED,
    "identity.json": IN_PART,
    "privacy.jsonl": RELEASED,  # of unit "client": no line depends on rows
    "privacy.json": RELEASED,
    "ledgers": WITHHELD,  # of unit "example": a line shows the number of a client's rows, and its rounds
    "rounds.jsonl": IN_PART,
    "journal.jsonl": WITHHELD,
    "partition.json": NEVER,
    "checkpoints": WITHHELD,
    "adapter": RELEASED,
    "arms": NEVER,
    "personal": NEVER,
    "clusters": NEVER,
    "evaluation/metrics.json": IN_PART,
    "evaluation/losses.safetensors": WITHHELD,
    "evaluation/generations.jsonl": WITHHELD,
    "evaluation/rows_seen.jsonl": NEVER,
    "evaluation/left_out.jsonl": NEVER,
    "summary.json": IN_PART,
    "audit.json": RELEASED,  # figures over all rows; the whole is in private/
    "canaries.json": NEVER,
    "card.json": WITHHELD,  # of a run over sites
    "report.html": RELEASED,
    "benchmarks": WITHHELD,
    "answers": WITHHELD,
    "judge": WITHHELD,
    ".lock": RELEASED,
    ".writer.json": RELEASED,
}
"""Files and folders of a run directory -> class."""

ROUND = {
    "round": RELEASED,
    "held_out_loss": RELEASED,
    "held_out_per_category": RELEASED,
    "clip_norm": RELEASED,
    "bytes_down": RELEASED,  # of a private run as planned, for qN clients
    "held_out_per_client": NEVER,
    "learning_rate": WITHHELD,  # of the client with the most steps; the schedule is in config.toml
    **dict.fromkeys(("cohort", "missing", "rejected", "late", "ignored", "quarantined", "skipped"), WITHHELD),
    **dict.fromkeys(("weights", "train_loss", "steps", "examples", "unused_examples", "tokens"), WITHHELD),
    **dict.fromkeys(("bytes_up", "seconds", "deviation", "update_norm", "clipped"), WITHHELD),
    **dict.fromkeys(("diagnostics", "clusters"), WITHHELD),
}
"""A line of rounds.jsonl."""

STATE = {
    "round": RELEASED,
    "model": RELEASED,  # ε counts every round
    "clip": RELEASED,  # it follows from a noised count
    **dict.fromkeys(("cursors", "clients", "strikes", "history", "clusters", "median_norm"), NEVER),
    "quarantined": WITHHELD,
}
"""The state of the server in a checkpoint, which is withheld as a whole."""

_FIGURES = {
    **dict.fromkeys(("loss", "perplexity", "token_accuracy", "stderr", "rows", "tokens"), RELEASED),
    "per_category": RELEASED,
    "per_client": NEVER,
    "generation": RELEASED,
}
METRICS = {
    "held_out_rows": RELEASED,
    "held_out_tokens": RELEASED,
    "arms": {**dict.fromkeys(sorted(ARMS), _FIGURES), "*": NEVER},
    "curves": {"federated": RELEASED, "*": NEVER},
    "differences": PAIRS,
    "own_rows": NEVER,
    "generation_differences": PAIRS,
    "generation_metrics": RELEASED,
    "personal": NEVER,
    "clusters": NEVER,
    "privacy": RELEASED,
}

SUMMARY = {
    "arms": {**dict.fromkeys(sorted(ARMS), RELEASED), "*": NEVER},
    **dict.fromkeys(("budget", "bytes_up", "seconds", "peak_memory_bytes"), WITHHELD),
    **dict.fromkeys(("model", "adapter_sha256", "adapter", "bytes_down"), RELEASED),
    "data": {
        **dict.fromkeys(("name", "licence", "held_out_rows"), RELEASED),
        **dict.fromkeys(("digest", "rows", "train_rows", "refused", "changed", "notes", "cut_rows"), WITHHELD),
        **dict.fromkeys(("details", "audit"), WITHHELD),
    },
    **dict.fromkeys(("clients", "rounds", "cohort", "command", "version", "seed", "reload_check"), RELEASED),
    **dict.fromkeys(("labels", "failed", "rows_seen", "found"), WITHHELD),
    **dict.fromkeys(("trained_rows", "best", "sites", "federation"), NEVER),
    "forced": WHETHER,
    "unanswered": RELEASED,
    "privacy": RELEASED,
}

IDENTITY = {
    **dict.fromkeys(("run", "config", "base", "tokenizer", "held_out", "rows", "engine"), RELEASED),
    **dict.fromkeys(("shepherd", "code", "plugins", "python", "numpy", "torch", "peft", "transformers"), RELEASED),
    **dict.fromkeys(("tokenizers", "safetensors", "threads", "device", "processor"), RELEASED),
    **dict.fromkeys(("data", "partition", "trace", "day", "canaries"), WITHHELD),  # a digest depends on every row
}

EVENTS: dict[str, Mapping[str, Any]] = {
    "phase": {"phase": RELEASED, "arm": RELEASED, "detail": WITHHELD},
    "start": {
        **dict.fromkeys(("run", "config", "model", "rounds", "arms", "round", "fraction"), RELEASED),
        **dict.fromkeys(("clients", "labels"), WITHHELD),
    },
    "committed": ROUND,
    "warning": {"message": WITHHELD},
    "evaluation": {"arm": RELEASED, "round": RELEASED, "loss": RELEASED},
    "clients": {"arm": RELEASED, "round": RELEASED, "rounds": RELEASED, "clients": WITHHELD},
    "step": {
        **dict.fromkeys(("arm", "round", "rounds"), RELEASED),
        **dict.fromkeys(("clients", "tokens_per_second", "fraction", "eta_seconds"), WITHHELD),
    },
    "round": ROUND,
    "sites": {"sites": WITHHELD},
    "end": {"run": RELEASED, "summary": SUMMARY},
    "error": {"message": WITHHELD, "hint": WITHHELD, "exit_status": RELEASED},
}
"""The events of a run. An observer, as the operator's own program, receives them whole."""

KEYS = {
    "rounds.jsonl": ROUND,
    "evaluation/metrics.json": METRICS,
    "summary.json": SUMMARY,
    "identity.json": IDENTITY,
}
"""The keys of each file that is released in part; "*" is any other key of a table."""


def class_of(name: str) -> str:
    """The class of a file or folder by its path in the run directory: its own, or that of a folder it lies in."""
    parts = Path(name).parts
    for end in range(len(parts), 0, -1):
        if found := FILES.get("/".join(parts[:end])):
            return found
    return WITHHELD


def released(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a record that may be published. name: its file, one of `KEYS`."""
    return _released(record, KEYS[name])


def _released(value: Any, shape: Any) -> Any:
    if shape == WHETHER:
        return [WITHHELD] if value else []
    if shape == PAIRS:
        return [entry for entry in value if {entry["a"], entry["b"]} <= ARMS]
    if shape == RELEASED or value is None:
        return value
    shown = {key: shape.get(key, shape.get("*", WITHHELD)) for key in value}
    return {key: _released(value[key], kind) for key, kind in shown.items() if kind not in (WITHHELD, NEVER)}


def withholds(run: Path) -> bool:
    """Whether a run directory withholds. A copy of its published part, without private/, does not."""
    return (run / PRIVATE / "journal.jsonl").is_file()  # every run begins one before anything else is known of it


def place_of(run: Path, name: str) -> Path:
    """Where a file or folder of a run lies as a whole, or would: in private/ where it is withheld, else as named."""
    return run / PRIVATE / name if withholds(run) and class_of(name) != RELEASED else run / name
