"""`shepherd privacy audit`: attacks on a finished run, each figure beside its baseline, written to audit.json.

    audit_run("runs/demo")                          # every attack that the run allows
    audit_run("runs/demo", attacks=("exposure",))   # one, which is refused where the run does not allow it

The attacker has the base, the final adapter, and for token presence one client's update. Failures to attack are not
proofs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shepherd._version import __version__
from shepherd.config import Config
from shepherd.data.partition import partition_digest
from shepherd.errors import DataError, EvaluationError, ModelError, ShepherdError, UsageError, did_you_mean
from shepherd.experiment.audit_canaries import CANARIES, canaries_digest
from shepherd.experiment.audit_exposure import attack_codes
from shepherd.experiment.audit_membership import attack_membership
from shepherd.experiment.audit_release import RELEASES, attack_release
from shepherd.experiment.audit_tokens import attack_tokens
from shepherd.experiment.checks import look_first
from shepherd.experiment.division import AT_SITES
from shepherd.experiment.finished_run import write_report
from shepherd.experiment.identity import FILE, held_out_digest
from shepherd.experiment.inputs import Inputs, load_inputs
from shepherd.experiment.progress import Reporter
from shepherd.model.adapter import digest, load_adapter
from shepherd.recipe import load as load_config
from shepherd.store import RunDirectory, open_run, read_json
from shepherd.store.records import read_rounds
from shepherd.types import ClientId, GlobalModel
from shepherd.updates.privacy.publication import PRIVATE, place_of

AUDIT = "audit.json"
"""The file in a run directory."""
NOT_A_PROOF = "Failures to attack are not proofs: another attack may succeed where these do not."
NOT_COVERED = (
    "Figures that are computed from training rows without noise are in private/audit.json alone: epsilon does not "
    "cover them."
)
OF_ROWS = ("membership", "tokens")
"""The attacks whose figures follow from training rows beside the model."""
Note = Callable[[str], None]


@dataclass(frozen=True)
class AuditOptions:
    """candidates: codes among which each canary is ranked. rows: the most that membership inference takes of each kind.
    round, client: of the update whose tokens are looked for; 0 and "" choose. releases: drawn with a canary, and
    as many without. seed: of all that is drawn."""

    candidates: int = 1000
    rows: int = 1000
    round: int = 0
    client: ClientId = ""
    seed: int = 0
    releases: int = RELEASES


@dataclass(frozen=True)
class AuditedRun:
    """A finished run with its rows, as they were: what an attack is carried out on."""

    folder: Path
    config: Config
    inputs: Inputs
    model: GlobalModel

    @cached_property
    def lines(self) -> list[Mapping[str, Any]]:
        """The lines of rounds.jsonl."""
        return read_rounds(self.folder)


Attack = Callable[[AuditedRun, AuditOptions, Note], dict[str, Any]]
ATTACKS: Mapping[str, Attack] = {
    "exposure": lambda run, options, note: attack_codes(
        run.inputs, run.model, run.lines, options.candidates, options.seed, note
    ),
    "membership": lambda run, options, note: attack_membership(
        run.inputs, run.model, run.lines, options.rows, options.seed, note
    ),
    "tokens": lambda run, options, note: attack_tokens(
        run.inputs, run.folder, run.lines, options.round, options.client, note
    ),
    "release": lambda run, options, note: attack_release(run.inputs.plan.privacy, options.seed, note, options.releases),
}
"""Each raises a ShepherdError where a run does not allow it."""


def audit_run(
    run_dir: Path | str,
    attacks: Sequence[str] = (),
    options: AuditOptions = AuditOptions(),
    note: Note = lambda line: None,
) -> dict[str, Any]:
    """Attack a finished run and write audit.json and the report: what was found, by attack, and what was left out.

    attacks: the names of some, else all. One that was named and that the run does not allow is an error; without names
    it is left out with the reason, and only where none is left that is an error. Raises DataError where rows are gone,
    EvaluationError where they changed, ModelError for another base.
    """
    if unknown := [name for name in attacks if name not in ATTACKS]:
        near = did_you_mean(unknown[0], ATTACKS)
        raise UsageError(f"unknown attack: {unknown[0]!r}.{near}", hint=f"attacks: {', '.join(ATTACKS)}")
    run = open_audited(run_dir, note)
    found: dict[str, Any] = {
        "version": __version__,
        "seed": options.seed,
        "adapter": digest(run.model.adapter),
        "privacy": stated_privacy(run.folder),
        "notes": [NOT_A_PROOF],
        "left_out": {},
    }
    refused: list[ShepherdError] = []
    for name in attacks or ATTACKS:
        try:
            found[name] = ATTACKS[name](run, options, note)
        except ShepherdError as error:
            if attacks:
                raise
            refused.append(error)
            found["left_out"][name] = error.message
    if len(refused) == len(ATTACKS):
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in found["left_out"].items())
        raise type(refused[0])(f"no attack can be carried out on this run:\n{reasons}", refused[0].hint)
    store = RunDirectory(run.folder)
    with store.lock():
        if found["privacy"]:
            found["notes"].append(NOT_COVERED)
            store.write_private(AUDIT, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
        store.write_json(AUDIT, published(found) if found["privacy"] else found)
        write_report(store)
    return found


def published(found: Mapping[str, Any]) -> dict[str, Any]:
    """What audit.json of a run with differential privacy holds: what follows from model, codes and mechanism alone."""
    kept = {key: value for key, value in found.items() if key not in OF_ROWS}
    if "exposure" in kept:
        kept["exposure"] = {key: value for key, value in kept["exposure"].items() if key != "codes"}
    withheld = (*found["left_out"], *(name for name in OF_ROWS if name in found))
    kept["left_out"] = dict.fromkeys(withheld, f"withheld, as it follows from rows: see {PRIVATE}/{AUDIT}")
    return kept


def open_audited(run_dir: Path | str, note: Note = lambda line: None) -> AuditedRun:
    """A finished run with its rows, base and final adapter, as they were. Raises the errors of `audit_run`."""
    folder = open_run(run_dir, "summary.json")
    config = load_config(folder / "config.toml")
    if config.data.source == AT_SITES:
        raise DataError(
            "an audit needs the rows that a run was trained on, and those of this run are at its sites",
            hint="audit a simulation of the same recipe (docs/audits.md)",
        )
    inputs = load_inputs(look_first(config, note, writes=False), None, Reporter(lambda event: None))
    _check_same(folder, inputs)
    return AuditedRun(folder, config, inputs, GlobalModel(load_adapter(folder / "adapter")))


def _check_same(folder: Path, inputs: Inputs) -> None:
    """Raise EvaluationError where rows, tokenizer or canaries are not those of the run, ModelError for another base."""
    then, data, base = read_json(place_of(folder, FILE)), inputs.data, inputs.base
    if then.get("base") != base.digest:
        raise ModelError(
            f"the run was trained on another base: digest {str(then.get('base'))[:12]}, now {base.digest[:12]}",
            hint="use the base model that the run used, in the same revision (model.base in its config.toml)",
        )
    source = inputs.config.data.source
    for what, key, now, where in (
        (
            "held-out rows are not those",
            "held_out",
            held_out_digest(data),
            inputs.config.data.held_out_source or source,
        ),
        ("data are not those", "data", data.dataset.digest, source),
        ("tokenizer is not that", "tokenizer", base.tokenizer_digest, inputs.config.model.base),
        ("rows of the clients are not those", "partition", partition_digest(data.partition), source),
    ):
        if then.get(key) != now:
            raise EvaluationError(
                f"the {what} of the run: digest {now[:12]}, then {str(then.get(key) or 'unknown')[:12]}",
                hint=f"give back what {where} held, and the config.toml that the run wrote",
            )
    if not data.canaries:
        return
    log = folder / PRIVATE / CANARIES
    if not log.is_file():
        raise DataError(f"{log} is gone: it says which codes were planted", hint="restore it from a copy")
    written = hashlib.sha256(log.read_bytes()).hexdigest()
    if not written == then.get("canaries") == canaries_digest(data.canaries):
        raise EvaluationError(
            f"{log} does not name the codes that the run planted: digest {written[:12]}, then "
            f"{str(then.get('canaries') or 'unknown')[:12]}",
            hint="restore it from a copy, and the config.toml that the run wrote",
        )


def stated_privacy(folder: Path) -> dict[str, Any] | None:
    """What the run states of its differential privacy, to stand beside what attacks find; None where it has none."""
    file = folder / "privacy.json"
    stated = read_json(file) if file.is_file() else read_json(folder / "summary.json").get("privacy")
    return dict(stated) if stated else None
