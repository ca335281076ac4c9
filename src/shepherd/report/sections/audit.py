"""Audits: what attacks on the finished run found, each figure beside its baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shepherd.report.load import RunRecord
from shepherd.report.page import Limits, Section, Table
from shepherd.report.wording import ABSENT, count, digits, left_out, percent, significant

REPEATED = {
    True: "repeated bit for bit",
    False: "not repeated bit for bit: another machine or version than the run's",
    None: "not compared: the record withholds losses",
}
"""Whether the update of a token attack equals the one of the run."""


def audit(record: RunRecord, limits: Limits) -> Section:
    """Exposure, membership inference and token presence, as far as the run was attacked with them."""
    found = record.audit
    text = [
        *found["notes"],
        f"Attacked by shepherd privacy audit with seed {count(found['seed'])}; audit.json has every figure.",
    ]
    if privacy := found.get("privacy"):
        text.append(
            f"Differential privacy of this run: ε = {significant(privacy.get('epsilon'), 4)} at δ = "
            f"{privacy.get('delta') or ABSENT}."
        )
    tables = []
    if exposure := found.get("exposure"):
        tables.append(_exposure(exposure))
    if membership := found.get("membership"):
        tables.append(_membership(membership, limits))
    if tokens := found.get("tokens"):
        tables.append(_tokens(record, tokens))
    if release := found.get("release"):
        tables.append(_release(release))
    text += [f"Left out, {name}: {reason}." for name, reason in found["left_out"].items()]
    return Section("audit", "Attacks on this run", text, tables)


def _exposure(found: Mapping[str, Any]) -> Table:
    rows = [
        [
            count(row["copies"]),
            count(row.get("codes")),
            digits(row.get("tuned"), 2),
            digits(row.get("base"), 2),
            digits(row.get("most_exposed"), 2),
            count(row.get("first")),
        ]
        for row in found["by_copies"]
    ]
    return Table(
        "Exposure of planted codes, in bits, by the number of their copies in the training rows",
        ("Copies", "Codes", "Tuned model", "Base", "Most exposed", "Ranked first"),
        rows,
        texts=(),
        note=f"Each code is ranked by loss among {count(found['candidates'])} candidates: at most "
        f"{digits(found['most'], 2)} bits, {digits(found['chance'], 2)} by chance. Codes with 0 copies were never "
        "trained on, and the base saw none. Ties count against the attack.",
    )


def _membership(found: Mapping[str, Any], limits: Limits) -> Table:
    names = {"difference": "Loss of the base minus that of the tuned model", "loss": "Loss of the tuned model"}
    names["base"] = "Loss of the base (baseline)"
    rows = [[title, *_scores(found[name])] for name, title in names.items()]
    clients = list(found["clients"].items())
    rows += [[f"{client}, own rows", *_scores(one)] for client, one in clients[: limits.rows]]
    within = (found["difference"].get("within_categories") or {}).get("auc")
    return Table(
        f"Membership inference: {count(found['inside'])} rows trained on against {count(found['outside'])} held out",
        ("Score", "AUC", "95 % interval", "True positives at 1 % false", "95 % interval"),
        rows,
        texts=(0, 2, 4),
        note=f"By chance 0.500 and 1 %. Rows: {found['compared']['rows']} (total variation "
        f"{digits(found['compared']['categories_apart'], 2)}). AUC of the attack within categories: {digits(within)}. "
        + left_out(len(clients), limits.rows, "client"),
    )


def _scores(found: Mapping[str, Any]) -> list[str]:
    low, high = (digits(bound) for bound in found["ci95"])
    below, above = (percent(bound) for bound in found["tpr_ci95"])
    return [digits(found["auc"]), f"{low} to {high}", percent(found["tpr"]), f"{below} to {above}"]


def _release(found: Mapping[str, Any]) -> Table:
    row = [significant(found.get(key)) for key in ("lower_bound", "estimate", "claimed", "noise_multiplier", "delta")]
    return Table(
        "Lower bound of ε of one release, whose canary takes part",
        ("Lower bound", "Estimate", "By the noise multiplier", "Noise multiplier", "δ"),
        [row],
        texts=(),
        note=f"From {count(found['releases'])} releases with a canary and as many without, through the clip and the "
        "noise of the run, at 95 % confidence. A smoke alarm, not a proof: "
        + ("it went off, the noise is less than it stands for." if found["alarm"] else "it did not go off."),
    )


def _tokens(record: RunRecord, found: Mapping[str, Any]) -> Table:
    labels = record.partition.get("labels") or {}
    row = [
        str(labels.get(found["client"], found["client"])),
        count(found["round"]),
        count(found.get("rows")),
        count(found.get("steps")),
        str(found.get("optimizer") or ABSENT),
        count(found.get("tokens")),
        percent(found.get("recall")),
        percent(found.get("guessed_by_frequency")),
    ]
    repeated = found.get("replayed_exactly")
    return Table(
        "Token presence in one client's update",
        ("Client", "Round", "Rows", "Steps", "Optimizer", "Tokens", "Found", "Guessed by frequency"),
        [row],
        texts=(0, 4),
        note=f"Of the tokens in the rows beside those of the template; their number is known to the attack. The update "
        f"was trained again from a checkpoint, {REPEATED[repeated if isinstance(repeated, bool) else None]}.",
    )
