"""What example-level privacy costs in local training: a step of DP-SGD against an ordinary one, on the same rows.

    python benchmarks/example_privacy.py --json benchmarks/results/NAME.json
    python benchmarks/example_privacy.py --repeats 1 --steps 1                # does it work here?

One process, one base, one client. The sides take turns, step by step, so that both meet the same machine; the private
side draws all rows of the ordinary one in every step. README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np

MOST = 1.3
"""The ratio that is allowed at 8 rows a step."""
CLIENT, RATE = "client", 1e-4


def main() -> int:
    options = _arguments()
    from shepherd.model.base import load_base
    from shepherd.model.threads import use_threads

    threads = use_threads(options.threads)
    base = load_base(options.model, device=options.device, dtype=options.dtype)
    cases = [
        _measured(base, targets, rows, length, options)
        for targets, rows, length in product(options.targets, options.rows, options.length)
    ]
    report = {"command": sys.argv, "machine": _machine(threads), "model": options.model, "cases": cases}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    slow = [case for case in cases if case["rows"] == 8 and case["ratio"]["median"] > MOST]
    for case in slow:
        print(f"error: {case['targets']}: {case['ratio']['median']:.2f}, more than {MOST}", file=sys.stderr)
    return 1 if slow else 0


def _measured(base, targets: str, rows: int, length: int, options: argparse.Namespace) -> dict:
    """Seconds of each side by repeat, and the ratio within each repeat."""
    sides = _sides(base, targets, rows, length, options)
    for run in sides.values():
        run()  # first calls set up the libraries
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(options.repeats):
        for side in sorted(sides, reverse=repeat % 2 == 1):
            seconds[side].append(sides[side]())
    ratios = [p / o for p, o in zip(seconds["private"], seconds["ordinary"], strict=True)]
    case = {
        "targets": targets, "rows": rows, "length": length, "steps": options.steps, "seconds": seconds,
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)},
    }  # fmt: skip
    ratio, each = case["ratio"], {side: statistics.median(times) / options.steps for side, times in seconds.items()}
    print(
        f"{targets}, {rows} rows of {length} tokens: a step takes {each['ordinary']:.2f} s, and privately "
        f"{each['private']:.2f} s: ratio {ratio['median']:.2f} [{ratio['least']:.2f}–{ratio['greatest']:.2f}]",
        flush=True,
    )
    return case


def _sides(base, targets: str, rows: int, length: int, options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """{side: training of a round, which returns its CPU seconds (on a GPU: seconds)}."""
    import torch

    from shepherd.clients.training import train
    from shepherd.experiment.method import compose
    from shepherd.experiment.trainer import prepare_trainer
    from shepherd.recipe import load
    from shepherd.types import ClientModel, ExamplePrivacy, TrainTask, Work
    from shepherd.updates.privacy.noise import Noise

    config = load(None, [f"lora.targets={targets}", "lora.r=8", f"training.batch_size={rows}"])
    trainer = prepare_trainer(config, compose(config), base)
    host = trainer.host({CLIENT: _rows(base, rows, length)})
    host = type(host)(host.packed, host.make_lora, host.settings, host.data, lambda task, work, held: Noise())
    work = Work(CLIENT, 0, rows * options.steps, (RATE,) * options.steps)

    def side(privacy: ExamplePrivacy | None) -> Callable[[], float]:
        task = TrainTask(1, {CLIENT: ClientModel(trainer.adapter)}, 0, {CLIENT: work}, privacy=privacy)
        clock = time.process_time if base.device.type == "cpu" else time.perf_counter

        def run() -> float:
            begin = clock()
            (update,) = train(task, {}, host)
            if base.device.type == "cuda":
                torch.cuda.synchronize()
            assert update.steps == options.steps
            return clock() - begin

        return run

    return {"ordinary": side(None), "private": side(ExamplePrivacy(1.0, 1.0))}


def _rows(base, rows: int, length: int) -> list:
    """As many rows as a step takes, so that q = 1 draws them all; the last half of each is the response."""
    from shepherd.types import Tokens

    rng, size = np.random.default_rng(0), base.model.get_input_embeddings().weight.shape[0]
    mask = np.arange(length) >= length // 2
    return [Tokens(str(i), rng.integers(3, size, length).astype(np.int32), mask) for i in range(rows)]


def _machine(threads: int) -> dict[str, str | int]:
    names = ("torch", "transformers")
    return {"system": platform.platform(), "threads": threads} | {name: version(name) for name in names}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--targets", nargs="+", default=["q_proj,v_proj", "all-linear"])
    parser.add_argument("--rows", nargs="+", type=int, default=[8])
    parser.add_argument("--length", nargs="+", type=int, default=[64])
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
