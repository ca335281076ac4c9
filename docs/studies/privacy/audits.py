"""Audits of the runs of this study, and how far their models moved: audits.json and audits.md beside this file.

    python docs/studies/privacy/audits.py docs/studies/privacy/runs

Takes the run directories, which are not kept here. A run that audits.json has already, by the digest of its adapter, is
not attacked again, so the command may be repeated while a study goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
CANDIDATES, ROWS = 32, 100
"""Codes among which each planted one is ranked, and rows of each kind for membership inference."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the folder of the run directories")
    options = parser.parse_args()
    file = HERE / "audits.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    _measure_the_base_once()
    names = [run for run in _runs(HERE / "design.json") if (options.runs / run / "summary.json").exists()]
    for run in names:
        path = options.runs / run
        summary = _summary(path)
        if not _is_of(found.get(run), summary):
            print(f"{run} …", file=sys.stderr)
            found[run] = _attacked(path, summary)
            file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    order = [run for run in _runs(HERE / "design.json") if run in found]
    (HERE / "audits.md").write_text(_page({run: found[run] for run in order}), encoding="utf-8")
    return 0


def _is_of(one: Mapping[str, Any] | None, summary: Mapping[str, Any]) -> bool:
    """Whether figures are of this adapter, by the attacks as they are here."""
    return one is not None and (one["adapter"], one["exposure"]["candidates"], one["membership"]["rows"]) == (
        summary["adapter_sha256"],
        CANDIDATES,
        ROWS,
    )


def _runs(design: Path) -> list[str]:
    """The names of the runs, in the order of the study file."""
    from shepherd.experiment.study.variants import run_name

    seeds = json.loads(design.read_text(encoding="utf-8"))["seeds"]
    return [run_name(variant, seed) for variant in seeds for seed in seeds[variant]]


def _summary(path: Path) -> dict[str, Any]:
    from shepherd.store import read_json
    from shepherd.updates.privacy.publication import place_of

    return read_json(place_of(path, "summary.json"))


def _measure_the_base_once() -> None:
    """Keep what the attacks measure under the bare base, which is the same for all runs."""
    from shepherd.experiment import audit_exposure, audit_membership

    kept: dict[tuple[Any, ...], Any] = {}

    def once(measure: Callable[..., Any], key: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
        def measured(model: Any, *rows: Any) -> Any:
            *rows, slot = rows
            if slot is not None:
                return measure(model, *rows, slot)
            if key(*rows) not in kept:
                kept[key(*rows)] = measure(model, *rows, None)
            return kept[key(*rows)]

        return measured

    audit_exposure.continuation_losses = once(
        audit_exposure.continuation_losses, lambda shared, ends: (*shared, *map(tuple, ends))
    )
    audit_membership.row_losses = once(audit_membership.row_losses, lambda rows: tuple(row.id for row in rows))


# Figures of one run


def _attacked(path: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a run: losses, exposure by copies, membership inference, the account, and its movements."""
    from shepherd.experiment.audit import ATTACKS, AuditOptions, open_audited

    run, options = open_audited(path), AuditOptions(candidates=CANDIDATES, rows=ROWS)
    exposure, membership = (ATTACKS[name](run, options, _progress) for name in ("exposure", "membership"))
    scores = ("auc", "ci95", "tpr", "tpr_ci95")
    return {
        "adapter": summary["adapter_sha256"],
        "method": run.config.federation.method,
        "unit": run.config.privacy.unit,
        "loss": {arm: summary["arms"][arm]["loss"] for arm in ("base", "federated")},
        "updates": sum(len(line["examples"]) for line in run.lines),
        "exposure": {
            **{key: exposure[key] for key in ("candidates", "most", "chance")},
            "codes": [
                {
                    **{key: code[key] for key in ("copies", "times_trained")},
                    "tuned": code["tuned"]["bits"],
                    "base": code["base"]["bits"],
                }
                for code in exposure["codes"]
            ],
        },
        "membership": {
            "rows": ROWS,
            **{key: membership[key] for key in ("inside", "outside")},
            **{name: {key: membership[name][key] for key in scores} for name in ("difference", "base")},
        },
        "privacy": _account(summary.get("privacy")),
        "movements": _movements(run),
        "noise_alone": _noise_alone(run) if run.config.privacy.unit == "client" else None,
    }


def _progress(line: str) -> None:
    print(f"  {line}", file=sys.stderr)


def _account(stated: Mapping[str, Any] | None) -> dict[str, Any] | None:
    keys = ("epsilon", "delta", "noise_multiplier", "sampling_rate", "clip", "clients")
    return {key: stated.get(key) for key in keys} if stated else None


def _movements(run: Any) -> dict[str, Any]:
    """L2 norm of each round's change of the values that clients send: {"values": how many, "norms": one a round}."""
    from shepherd.round import SERVER
    from shepherd.store.rounds import Rounds
    from shepherd.store.state import load_state
    from shepherd.updates.privacy.publication import place_of

    plan = run.inputs.plan
    kept, rejected = Rounds(place_of(run.folder, "checkpoints")).check_all()
    assert not rejected, rejected
    states = [run.inputs.start, *(load_state(one.folder) for one in sorted(kept, key=lambda one: one.round))]
    assert [state.round for state in states] == list(range(len(states))), "a round without a checkpoint"

    def values(state: Any) -> np.ndarray:
        view = plan.method.view(state.model, SERVER, state.model.adapter.r, state.round + 1, plan.seed)
        return np.concatenate([tensor.ravel().astype(np.float64) for tensor in view.tensors().values()])

    points = [values(state) for state in states]
    norms = [float(np.linalg.norm(b - a)) for a, b in itertools.pairwise(points)]
    return {"values": points[0].size, "norms": norms}


def _noise_alone(run: Any) -> dict[str, Any]:
    """The held-out loss of the same rounds, with the same noise and without any update; the run's loss minus it.

    It is the control for whether the updates left a trace under the noise. It exists because the noise repeats.
    """
    from shepherd.evaluation.losses import row_losses
    from shepherd.evaluation.row_losses import read_losses
    from shepherd.evaluation.statistics import paired_difference
    from shepherd.round import aggregate
    from shepherd.updates.replies import Replies

    inputs, state = run.inputs, run.inputs.start
    assert inputs.plan.privacy.repeatable is not None, "noise from the system's randomness does not come back"
    for number in range(1, run.config.federation.rounds + 1):
        state = replace(state, round=number, model=aggregate(state, inputs.plan, Replies()).model)
    lora = inputs.trainer.make_lora().load(state.model)
    (alone,) = row_losses(inputs.trainer.packed, inputs.data.held_out, lora)
    kept = read_losses(run.folder)
    assert list(kept.ids) == [row.id for row in inputs.data.held_out], "the held-out rows are in another order"
    found = paired_difference(kept.pooled["federated"], alone)
    return {"loss": alone.stat.mean, **{key: found[key] for key in ("difference", "ci95", "p", "rows")}}


# The page


def _page(found: Mapping[str, Mapping[str, Any]]) -> str:
    parts = ["# Audits and noise\n\nWritten by [audits.py](audits.py) from [audits.json](audits.json).\n"]
    if found:
        parts += [_losses(found), _traces(found), _exposures(found), _memberships(found), _noises(found)]
    return "\n".join(parts)


def _losses(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [_title(run), f"{one['loss']['base']:.3f}", f"{one['loss']['federated']:.3f}", str(one["updates"])]
        for run, one in found.items()
    ]
    return _table("Held-out loss, nats per response token", ["", "base", "federated", "updates"], rows)


def _traces(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for run, one in found.items():
        if alone := one["noise_alone"]:
            low, high = alone["ci95"]
            between = f"{_signed(alone['difference'], 3)} ({_signed(low, 3)} to {_signed(high, 3)})"
            rows.append([_title(run), f"{alone['loss']:.3f}", f"{one['loss']['federated']:.3f}", between])
    head = ["", "noise alone", "federated", "federated − noise alone (95 %)"]
    return _table("Whether updates left a trace: loss of the same noise without any update", head, rows)


def _exposures(found: Mapping[str, Mapping[str, Any]]) -> str:
    """By copies, the mean over codes of exposure minus that under the base; mean times that a code was trained on."""
    first = next(iter(found.values()))["exposure"]
    counts = sorted({code["copies"] for code in first["codes"]})
    number = sum(code["copies"] == counts[-1] for code in first["codes"])
    rows = []
    for run, one in found.items():
        by = {count: [code for code in one["exposure"]["codes"] if code["copies"] == count] for count in counts}
        times = [statistics.mean(code["times_trained"] for code in by[n]) for n in counts if _known(by[n])]
        most = [code["tuned"] for code in by[counts[-1]]]
        rows.append(
            [
                _title(run),
                *(_mean([code["tuned"] - code["base"] for code in by[count]]) for count in counts),
                f"{statistics.mean(most):.2f}",
                " / ".join(f"{n:.0f}" for n in times) or "secret",
            ]
        )
    head = ["", *(f"{count} copies" for count in counts), f"exposure, {counts[-1]} copies", "times trained"]
    return _table(
        f"Exposure, bits: that under the tuned model minus that under the base, mean (95 %) over {number} codes; "
        f"exposure is at most {first['most']:.0f}, {first['chance']:.2f} by chance",
        head,
        rows,
    )


def _known(codes: Sequence[Mapping[str, Any]]) -> bool:
    return all(code["times_trained"] is not None for code in codes)


def _memberships(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for run, one in found.items():
        m = one["membership"]
        rate, (low, high) = m["difference"]["tpr"], m["difference"]["tpr_ci95"]
        rows.append(
            [
                _title(run),
                f"{m['inside']} / {m['outside']}",
                _interval(m["difference"]["auc"], m["difference"]["ci95"]),
                _interval(m["base"]["auc"], m["base"]["ci95"]),
                f"{100 * rate:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
            ]
        )
    head = ["", "rows in / out", "AUC (95 %)", "AUC of the base", "true positives at 1 % false (95 %)"]
    return _table("Membership inference", head, rows)


def _noises(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Root mean square of a round's movement over C: the predicted noise alone, and observed, updates included."""
    rows = []
    for run, one in found.items():
        if one["unit"] != "client":
            continue
        stated, moved = one["privacy"], one["movements"]
        clip, expected = stated["clip"][0], stated["sampling_rate"] * stated["clients"]
        noise = stated["noise_multiplier"] * math.sqrt(moved["values"]) / expected
        rows.append(
            [
                _title(run),
                f"{stated['noise_multiplier']:.3g}",
                f"{clip:g}",
                f"{moved['values']:,}",
                f"{noise:.3g}",
                f"{_rms(moved['norms']) / clip:.3g}",
            ]
        )
    head = ["", "z", "C", "values", "noise/clip: z·√p/(qN)", "observed, updates included"]
    return _table("Movement of the model in a round over the clip, root mean square over rounds", head, rows)


def _title(run: str) -> str:
    return run.rsplit(".", 1)[0]


def _rms(norms: Sequence[float]) -> float:
    return math.sqrt(statistics.mean(norm**2 for norm in norms))


def _mean(values: Sequence[float]) -> str:
    """The mean with the 95 % interval of Student's t."""
    from shepherd.evaluation.statistics import difference_of_sums

    ones = np.ones(len(values))
    found = difference_of_sums(np.asarray(values), 0 * ones, ones)
    low, high = found["ci95"]
    interval = "" if low is None else f" ({_signed(low, 2)} to {_signed(high, 2)})"
    return _signed(found["difference"], 2) + interval


def _signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}".replace("-", "−")


def _interval(value: float, bounds: Sequence[float]) -> str:
    return f"{value:.3f} ({bounds[0]:.3f} to {bounds[1]:.3f})"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return f"## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
