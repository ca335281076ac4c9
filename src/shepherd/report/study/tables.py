"""The tables of a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shepherd.errors import plural
from shepherd.report.page import Table
from shepherd.report.study.words import (
    PLACES,
    Document,
    arm_text,
    comparison_text,
    interval_text,
    p_text,
    verdict_text,
)
from shepherd.report.wording import ABSENT, count, digits, duration, listing, plain, signed, size


def comparisons_table(found: Document) -> Table:
    """The fixed comparisons with interval, adjusted p and verdict."""
    rows = []
    for entry in found["comparisons"]:
        name = comparison_text(entry, found["reference"])
        if entry["reason"]:
            rows.append([name, "0", *[ABSENT] * 5, verdict_text(entry)])
            continue
        rows.append([
            name, str(len(entry["seeds"])), signed(entry["difference"], PLACES), interval_text(entry["ci95"]),
            p_text(entry["p"]), p_text(entry["holm_p"]), digits(entry["margin"], PLACES), verdict_text(entry),
        ])  # fmt: skip
    return Table(
        "Comparisons fixed in the study file",
        ("First \N{MINUS SIGN} second", "Seeds", "Difference", "95 % interval", "p", "Holm p", "Margin", "First"),
        rows,
        texts=(0, 7),
    )


def checks_table(found: Document) -> Table:
    """Tests beside the t test, and what each comparison can see."""
    rows = [
        [
            comparison_text(entry, found["reference"]),
            plural(entry["units"], entry["unit"]),
            f"{entry['lower']}/{entry['higher']}/{entry['ties']}", p_text(entry["sign_p"]),
            p_text(entry["wilcoxon_p"]), p_text(entry["permutation_p"]),
            digits(entry["degrees"], 1), digits(entry["smallest_difference"], PLACES), p_text(entry["equal_p"]),
        ]
        for entry in found["comparisons"]
        if not entry["reason"]
    ]  # fmt: skip
    return Table(
        "Further tests, and what the design can see",
        ("First \N{MINUS SIGN} second", "Units", "Lower/higher/equal", "Sign p", "Wilcoxon p", "Permutation p",
         "Degrees", "Seen with 80 %", "Beyond margin p"),
        rows,
        texts=(0, 1),
        note="Seen with 80 %: the smallest true difference that this design finds with 80 % power, before Holm. Sign, "
        "Wilcoxon (Pratt) and permutation tests (below 20 units) are of means over seeds.",
    )  # fmt: skip


def seeds_table(found: Document) -> Table:
    """Each comparison seed by seed."""
    rows = []
    for entry in found["comparisons"]:
        values = dict(zip(entry.get("seeds", ()), entry.get("per_seed", ()), strict=True))
        name = comparison_text(entry, found["reference"])
        rows.append([name, *(signed(values.get(seed), PLACES) for seed in found["seeds"])])
    return Table("Differences seed by seed", ("First \N{MINUS SIGN} second", *_seeds(found)), rows)


def _seeds(found: Document) -> list[str]:
    return [f"seed {seed}" for seed in found["seeds"]]


def arms_table(found: Document) -> Table:
    """The losses of every arm, seed by seed."""
    rows = []
    for variant in found["variants"]:
        for entry in variant["arms"]:
            spread = f" ± {digits(entry['stderr'])}" if entry["stderr"] is not None else ""
            by_seed = [digits(entry["losses"].get(str(seed))) for seed in found["seeds"]]
            rows.append([variant["name"], arm_text(entry["arm"]), *by_seed, digits(entry["mean"]) + spread])
        if not variant["arms"]:
            rows.append([variant["name"], "not finished", *[ABSENT] * len(found["seeds"]), ABSENT])
    return Table(
        "Held-out loss of each arm (nats per response token)",
        ("Variant", "Arm", *_seeds(found), "Mean ± standard error over seeds"),
        rows,
        texts=(0, 1),
        note="Standard errors are over seeds, of losses; differences within a seed vary less. The best client is "
        "chosen on one half of the rows and compared on the other, with fewer than 40 rows on all of them.",
    )


def variants_table(found: Document) -> Table:
    """Settings that differ from the reference, traffic and time."""
    rows = [
        [
            variant["name"], f"{len(variant['finished'])} of {len(variant['seeds'])}", _differs(variant, found),
            size(variant["bytes_up"]), size(variant["bytes_down"]), digits(variant["deviation"]),
            duration(variant["seconds"]),
        ]
        for variant in found["variants"]
    ]  # fmt: skip
    return Table(
        "Variants",
        (
            "Variant",
            "Seeds finished",
            "Settings that differ from the reference",
            "Up",
            "Down",
            "Deviation",
            "Time of a run",
        ),
        rows,
        texts=(0, 2),
        note="Deviation: relative error, in the last round, of averaging A and B apart against the mean of products.",
    )


def _differs(variant: Mapping[str, Any], found: Document) -> str:
    if variant["name"] == found["reference"]:
        return "reference"
    return listing([f"{key} = {plain(value)}" for key, value in variant["differs"].items()], 8) or "none"


def budget_table(found: Document) -> Table:
    """What each arm of the reference spent."""
    variant = next((v for v in found["variants"] if v["name"] == found["reference"]), None)
    budget = variant["budget"] if variant else {}
    return Table(
        "Budget of each arm of the reference",
        ("Arm", "Steps in sequence", "Steps in all", "Rows", "Learned tokens", "Peak learning rate"),
        [
            [arm_text(arm), count(round(spent["optimizer_steps_per_client"], 1)), count(spent["optimizer_steps"]),
             count(spent["rows"]), count(spent["target_tokens"]), f"{spent['learning_rate']:g}"]
            for arm, spent in budget.items()
        ],
    )  # fmt: skip


def runs_table(found: Document) -> Table:
    """Every run with its state and digests."""
    return Table(
        "Runs",
        ("Run", "State", "Time", "Settings", "Data", "Partition", "Base", "Adapter", "Code", "Note"),
        [
            [run["run"], run["state"], duration(run["seconds"]),
             *((run["digests"] or {}).get(key, "")[:8] if (run["digests"] or {}).get(key) else ABSENT
               for key in ("config", "data", "partition", "base", "adapter", "code")), run["detail"] or ""]
            for run in found["runs"]
        ],
        texts=(0, 1, 3, 4, 5, 6, 7, 8, 9),
        note="Digests are the first 8 digits of a sha256; RUN.json has all.",
    )  # fmt: skip


def environment_table(found: Document) -> Table:
    """The machines and versions of the runs."""
    keys = list(dict.fromkeys(key for each in found["environments"] for key in each))
    return Table(
        "Environment",
        ("", *(f"machine {i}" for i in range(1, len(found["environments"]) + 1))),
        [[key, *(str(each.get(key, ABSENT)) for each in found["environments"])] for key in keys],
        texts=tuple(range(len(found["environments"]) + 1)),
    )
