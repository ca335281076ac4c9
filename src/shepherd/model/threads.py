"""CPU configuration for matrix products: environment before torch loads, thread count and precision by measurement."""

from __future__ import annotations

import functools
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shepherd import network

if TYPE_CHECKING:
    import torch

_DEFAULTS = {
    # Spinning workers cost a busy machine far more than waking sleeping ones costs an idle one.
    "OMP_WAIT_POLICY": "PASSIVE",
    # A waiting thread of GNU OpenMP sleeps after a short spin, not at once: a pass has ten thousand short parallel
    # regions, and with a sleep in each two threads were slower than one (docs/decisions/0006).
    "GOMP_SPINCOUNT": "10000",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",  # its warnings concern its trainer and pipelines, unused here
    # Kernels are cached by shape, half a megabyte each; the lengths of passes vary, and 1,024 kernels are too many.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
}

# The products of a small model's MLP: tokens of a small step, hidden size, intermediate size.
_ROWS, _IN, _OUT = 256, 576, 1536
_CGROUP = Path("/sys/fs/cgroup")


def prepare_environment() -> None:
    """Set environment variables that torch and the hub read on import, unless the user set them; before torch loads."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    network.close_by_default()


def available_cores() -> int:
    """Physical cores available to this process, limited by affinity and the container's CPU quota; at least 1."""
    import psutil

    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(affinity, psutil.cpu_count(logical=False) or affinity, _quota(_CGROUP))))


def _quota(cgroup: Path) -> float:
    """Whole CPUs that the control group grants (version 2, then 1); infinity when it sets no limit."""
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if quota.strip() == "max" or int(quota) < 0:
            return math.inf
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return math.inf


def pick_threads(limit: int = 0) -> int:
    """The faster of one thread and all available cores (at most `limit` if not 0), by a short measurement.

    On a shared machine, two threads that wait for each other can be slower than one. All cores win a near tie, so that
    the choice, and with it the bytes of a run, does not depend on noise. Measured once per process.
    """
    cores = available_cores()
    most = min(cores, limit) if limit > 0 else cores
    return 1 if most == 1 else _faster(most)


@functools.cache
def _faster(most: int) -> int:
    import torch

    # Alternating, so that other load affects both.
    seconds = {1: math.inf, most: math.inf}
    for count in (1, most) * 3:
        seconds[count] = min(seconds[count], _product_seconds(torch.float32, count, budget=0.03))
    return 1 if seconds[1] * 1.1 < seconds[most] else most


def use_threads(count: int = 0) -> int:
    """Set torch's threads in this process to `count`, or to the choice of `pick_threads` if 0; returns the number."""
    import torch

    chosen = count or pick_threads()
    torch.set_num_threads(chosen)
    return chosen


@functools.cache
def bfloat16_speedup() -> float:
    """The speedup of a bfloat16 product over a float32 one on this CPU, at the current thread count."""
    import torch

    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for dtype in (torch.float32, torch.bfloat16) * 3:
        seconds[dtype] = min(seconds[dtype], _product_seconds(dtype, torch.get_num_threads(), budget=0.03))
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _product_seconds(dtype: torch.dtype, threads: int, budget: float) -> float:
    """The least time in seconds of one forward and one backward product, measured for about `budget` seconds."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            rows = torch.ones(_ROWS, _IN, dtype=dtype)
            weight = torch.ones(_OUT, _IN, dtype=dtype)
            best, end = math.inf, time.perf_counter() + budget
            back = torch.nn.functional.linear(rows, weight)
            for _ in range(1000):
                start = time.perf_counter()
                torch.nn.functional.linear(rows, weight)
                back @ weight
                stop = time.perf_counter()
                best = min(best, stop - start)
                if stop > end:
                    break
            return best
    finally:
        torch.set_num_threads(before)


def matmul_peak(dtype: torch.dtype | None = None, device: str = "cpu", seconds: float = 0.3, size: int = 1024) -> float:
    """Best measured GFLOP/s of a square matrix product in `dtype` (float32) at the current thread count."""
    import torch

    with torch.inference_mode():
        # Random values: some processors multiply constants faster.
        left = torch.rand(size, size, device=device).to(dtype or torch.float32)
        wait = torch.accelerator.synchronize if device != "cpu" else lambda place: None
        left @ left
        wait(left.device)
        best, end = math.inf, time.perf_counter() + seconds
        while True:
            start = time.perf_counter()
            left @ left
            wait(left.device)
            stop = time.perf_counter()
            best = min(best, stop - start)
            if stop > end:
                return 2 * size**3 / best / 1e9
