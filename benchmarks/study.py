"""Run a study: many settings times seeds, several runs at a time, one table with standard errors over the seeds.

    python benchmarks/study.py docs/studies/methods.toml --out studies/methods --jobs 8 --set data.source=dolly.jsonl

The TOML file has `seeds`, `base` (settings of every run) and a table `[variants]` of settings by name. Runs that are
finished are not run again. The table goes to TABLE.md and RESULTS.json in the folder of the study.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="key=value for every run")
    parser.add_argument("--only", nargs="+", help="these variants")
    options = parser.parse_args()
    study = tomllib.loads(options.study.read_text(encoding="utf-8"))
    variants = {name: [*study["base"], *more] for name, more in study["variants"].items()}
    variants = {name: v for name, v in variants.items() if not options.only or name in options.only}
    jobs = [(name, seed) for seed in study["seeds"] for name in variants]

    def run(job: tuple[str, int]) -> str:
        name, seed = job
        folder = _folder(options.out, name, seed)
        if (folder / "summary.json").exists():
            return ""
        settings = [*variants[name], *options.overrides, f"run.seed={seed}", f"run.name={folder.name}"]
        command = [
            sys.executable,
            "-m",
            "shepherd",
            "run",
            *study.get("recipe", []),
            "--out",
            str(options.out),
            "--plain",
        ]
        for setting in settings:
            command += ["--set", setting]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        problem = "" if done.returncode == 0 else f"{folder.name}: {done.stderr[-2000:]}"
        print(f"{folder.name}: {'failed' if problem else 'done'}", file=sys.stderr, flush=True)
        return problem

    options.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        problems = [problem for problem in pool.map(run, jobs) if problem]
    results = {name: [_result(_folder(options.out, name, seed)) for seed in study["seeds"]] for name in variants}
    (options.out / "RESULTS.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = _table(results, study.get("reference", next(iter(variants)))) + "".join(
        f"\n{name}, all arms\n\n{_arms_table(runs)}"
        for name, runs in results.items()
        if any(r and r["local"] for r in runs)
    )
    (options.out / "TABLE.md").write_text(table, encoding="utf-8")
    print(table)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _folder(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(' ', '-')}.{seed}"


def _result(folder: Path) -> dict | None:
    """What the table needs of one run."""
    if not (folder / "summary.json").exists():
        return None
    summary = json.loads((folder / "summary.json").read_text())
    last = json.loads((folder / "rounds.jsonl").read_text().splitlines()[-1])
    arms = summary["arms"]
    local = sorted(arm["loss"] for arm in arms.get("local", {}).values())
    return {
        "base": arms["base"]["loss"],
        "federated": arms["federated"]["loss"],
        "centralised": arms.get("centralised", {}).get("loss"),
        "local": {"mean": statistics.mean(local), "best": local[0], "worst": local[-1]} if local else None,
        "bytes_up": summary["bytes_up"],
        "bytes_down": summary["bytes_down"],
        "deviation": last["deviation"],
        "seconds": summary["seconds"]["total"],
        "device": summary["model"]["device"],
        "differences": json.loads((folder / "evaluation" / "metrics.json").read_text())["differences"],
    }


def _table(results: dict[str, list[dict | None]], reference: str) -> str:
    """Mean and standard error over seeds; the difference to the reference is paired by seed."""
    lines = [
        f"| variant | held-out loss | − base | − {reference} | MB up | MB down | deviation | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        pairs = [(run, ref) for run, ref in zip(runs, results.get(reference, runs), strict=True) if run and ref]
        if not pairs:
            lines.append(f"| {name} | failed | | | | | | |")
            continue
        runs = [run for run, _ in pairs]
        lines.append(
            f"| {name} | {_spread([r['federated'] for r in runs])} "
            f"| {_spread([r['federated'] - r['base'] for r in runs])} "
            f"| {_spread([r['federated'] - ref['federated'] for r, ref in pairs])} "
            f"| {runs[0]['bytes_up'] / 1e6:.1f} | {runs[0]['bytes_down'] / 1e6:.1f} "
            f"| {statistics.mean(r['deviation'] for r in runs):.3f} "
            f"| {statistics.mean(r['seconds'] for r in runs):.0f} |"
        )
    return "\n".join(lines) + "\n"


def _arms_table(runs: list[dict | None]) -> str:
    """The arms of one variant, seed by seed, and their differences paired by seed."""
    runs = [run for run in runs if run and run["local"]]
    arms = {
        "base, not tuned": [run["base"] for run in runs],
        **{f"clients alone, {which}": [run["local"][which] for run in runs] for which in ("worst", "mean", "best")},
        "federated": [run["federated"] for run in runs],
        "centralised": [run["centralised"] for run in runs],
    }
    others = ("base, not tuned", "clients alone, mean", "clients alone, best")
    pairs = [*(("federated", other) for other in others), ("federated", "centralised")]
    lines = ["| held-out loss | seeds in order | mean ± standard error |", "|---|---|---|"]
    lines += [
        f"| {arm} | {', '.join(f'{v:.3f}' for v in values)} | {_spread(values)} |" for arm, values in arms.items()
    ]
    for one, other in pairs:
        values = [a - b for a, b in zip(arms[one], arms[other], strict=True)]
        lines.append(f"| {one} − {other} | {', '.join(f'{v:+.3f}' for v in values)} | {_spread(values)} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) / len(values) ** 0.5:.4f}"


if __name__ == "__main__":
    sys.exit(main())
