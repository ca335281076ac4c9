"""How many updates the gate judges in a second, from bytes and from memory: good ones, broken ones, and a real adapter.

python benchmarks/gate.py [--seconds 1]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np

from shepherd.types import Adapter, ClientFailure, ClientModel, ClientUpdate, Factors, TrainTask, Work
from shepherd.updates.gate import Gate
from shepherd.updates.wire import Envelope, Sealed, pack

FEW = {"q": (64, 64), "k": (64, 32), "v": (64, 32), "o": (64, 64)}
# The linear layers of SmolLM2-135M: 30 blocks, width 576, three key-value heads of 64, inner width 1536.
BLOCK = {"q": (576, 576), "k": (576, 192), "v": (576, 192), "o": (576, 576), "gate": (576, 1536), "up": (576, 1536),
         "down": (1536, 576)}  # fmt: skip
SMOLLM2 = {f"model.layers.{i}.{name}_proj": size for i in range(30) for name, size in BLOCK.items()}
ENVELOPE = {"run": "benchmark", "nonce": "n-1", "base": "", "tokenizer": ""}


def setting(sizes: dict[str, tuple[int, int]], r: int) -> tuple[TrainTask, ClientUpdate]:
    rng = np.random.default_rng(0)
    pairs = {
        name: Factors(np.zeros((r, n), np.float32), np.zeros((m, r), np.float32)) for name, (n, m) in sizes.items()
    }
    view = ClientModel(Adapter(pairs, r, 2.0 * r))
    task = TrainTask(1, {"a": view}, 0, {"a": Work("a", 0, 4, (0.1,))})
    delta = {name: rng.standard_normal(array.shape, np.float32) for name, array in view.tensors().items()}
    return task, ClientUpdate("a", 1, delta, 4, 100, 1, {"loss": 2.0})


def rate(answer: object, task: TrainTask, seconds: float) -> float:
    """Answers admitted in a second, each by a fresh gate so that none is a duplicate."""
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        Gate(run="benchmark").admit(answer, task)
        count += 1
    return count / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each line")
    seconds = parser.parse_args().seconds
    for title, sizes, r in (("4 modules, r = 4", FEW, 4), ("SmolLM2-135M all-linear, r = 8", SMOLLM2, 8)):
        task, update = setting(sizes, r)
        data = pack(update, Envelope(**ENVELOPE, rank=r, scale=2.0))
        last = max(update.delta)
        spoilt = replace(update, delta={**update.delta, last: np.full_like(update.delta[last], np.nan)})
        print(f"{title}: {len(update.delta)} tensors, {len(data):,} bytes")
        for name, answer, good in (
            ("from memory", update, True),
            ("from bytes", Sealed("a", data), True),
            ("from memory, last tensor NaN", spoilt, False),
            ("from bytes, one bit flipped", Sealed("a", data[:-1] + bytes([data[-1] ^ 1])), False),
            ("from bytes, truncated", Sealed("a", data[:-100]), False),
            ("from bytes, of round 2", Sealed("a", data.replace(b'\\"round\\":1', b'\\"round\\":2')), False),
        ):
            refused = isinstance(Gate(run="benchmark").admit(answer, task), ClientFailure)
            if refused == good:
                raise SystemExit(f"{name}: the gate {'refused' if refused else 'admitted'} it")
            print(f"  {name:<30} {rate(answer, task, seconds):>10,.0f} a second")


if __name__ == "__main__":
    main()
