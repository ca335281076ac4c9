"""What the server's part of a round costs: time beside reading the uploads once, peak memory, SVD routes, many rounds.

    python benchmarks/server_step.py --json benchmarks/results/NAME.json
    python benchmarks/server_step.py --parts svd --repeats 1                 # does it work here?

Updates are random numbers from safetensors files, mapped into memory; no model is needed. Every measurement is a
process of its own, so that peak memory is its alone. README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

BLOCK = {"q": (576, 576), "k": (576, 192), "v": (576, 192), "o": (576, 576), "gate": (576, 1536), "up": (576, 1536),
         "down": (1536, 576)}  # fmt: skip
SMOLLM2 = {f"model.layers.{i}.{name}_proj": size for i in range(30) for name, size in BLOCK.items()}
LLAMA_MODULES = 128  # q, k, v, o of 32 layers
METHODS = ("fedit", "ffa_lora", "fedmomentum", "fedex_lora", "flexlora", "flora")
PARTS = ("clients", "svd", "rounds", "held")
MEBI = 2**20


def main() -> int:
    options = _arguments()
    if options.child:
        spec = json.loads(options.child)
        print(json.dumps({"step": _step, "svd": _svd, "rounds": _rounds, "held": _held}[spec["part"]](spec)))
        return 0
    specs = []
    for name in options.methods:
        if "clients" in options.parts:
            specs += [
                {"part": "step", "method": name, "clients": count, "r": 16, "modules": options.modules}
                for count in options.clients
            ]
        if "rounds" in options.parts:
            specs.append({"part": "rounds", "method": name, "clients": 8, "r": 8, "rounds": options.rounds})
    if "svd" in options.parts:
        specs += [
            {"part": "svd", "size": options.size, "q": q, "dtype": dtype}
            for q in options.q
            for dtype in ("float32", "float64")
        ]
    if "held" in options.parts:
        specs += [
            {"part": "held", "method": name, "clients": count, "r": 8, "mib": options.updates_in_memory_mib}
            for name in options.methods
            for count in options.held
        ]
    results = []
    for spec in specs:
        runs = [measure(spec, options.threads) for _ in range(options.repeats if spec["part"] != "rounds" else 1)]
        results.append({"spec": spec, "median": _medians(runs), "runs": runs})
        print(_line(spec, results[-1]["median"]), flush=True)
        if options.json:
            report = {"command": sys.argv, "machine": _machine(options.threads), "results": results}
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(spec: dict, threads: int) -> dict:
    """One measurement in a process of its own."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(spec)],
        env=os.environ | dict.fromkeys(names, str(threads)), capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{spec} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _line(spec: dict, v: dict) -> str:
    if spec["part"] == "svd":
        return (
            f"svd of {spec['size']}² with q = {spec['q']:4}, {spec['dtype']}: thin {v['thin'] * 1e3:8.0f} ms, "
            f"dense {v['dense'] * 1e3:8.0f} ms, {v['dense'] / v['thin']:5.1f} times as long"
        )
    if spec["part"] == "held":
        return (
            f"run_round, {spec['method']}, K = {spec['clients']:3}, {spec['mib']} MiB of updates in memory: peak "
            f"{v['peak'] / MEBI:6.1f} MiB above the model (train {v['train'] / MEBI:.1f}, combine "
            f"{v['combine'] / MEBI:.1f}, diagnose {v['diagnose'] / MEBI:.1f}); adapter {v['adapter_bytes'] / MEBI:.1f} "
            f"MiB, uploads {v['upload_bytes'] / MEBI:.1f} MiB; diagnosed {v['modules']} modules; "
            f"{v['seconds']:.1f} s to combine and diagnose, {v['resident'] / MEBI:.1f} MiB more resident"
        )
    if spec["part"] == "rounds":
        last = len(v["combine"])
        both = [c + d for c, d in zip(v["combine"], v["diagnose"], strict=True)]
        return (
            f"{spec['method']:12} rounds 1–{last}, SmolLM2-135M all-linear, r = 8, K = 8: combine and diagnose, CPU s: "
            f"median {statistics.median(both):.2f}, greatest {max(both):.2f}, last {both[-1]:.2f}; "
            f"state {v['state'][-1]:.2f} s, {v['state_bytes'][-1] / MEBI:.0f} MiB"
        )
    return (
        f"{spec['method']:12} K = {spec['clients']:3}, {spec['modules']} of {LLAMA_MODULES} modules: "
        f"read {v['read']:.3f} s, "
        f"combine {v['combine']:6.2f} s ({v['combine'] / v['read']:5.1f} × reading), diagnose {v['diagnose']:6.2f} s, "
        f"peak {v['peak_above_start'] / MEBI:5.0f} MiB above the start, uploads {v['upload_bytes'] / MEBI:.0f} MiB"
    )


def _medians(runs: list[dict]) -> dict:
    """Medians of the numbers; lists and texts of the first run."""
    return {k: statistics.median(r[k] for r in runs) if isinstance(v, int | float) else v for k, v in runs[0].items()}


def _machine(threads: int) -> dict[str, object]:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"cpu": cpu or platform.processor(), "cores": os.cpu_count(), "load": load, "threads": threads,
            "python": platform.python_version(), "numpy": np.__version__}  # fmt: skip


# In the child


def _step(spec: dict) -> dict:
    """combine and diagnose on modules of 4096 × 4096, beside reading the uploads once."""
    from safetensors.numpy import save_file

    from shepherd.server.diagnostics import diagnose
    from shepherd.types import ClientUpdate

    sizes = {f"layers.{i // 4}.{'qkvo'[i % 4]}_proj": (4096, 4096) for i in range(spec["modules"])}
    method, model = _start(spec["method"], sizes, spec["r"])
    clients = [f"c{k:03}" for k in range(spec["clients"])]
    views = {c: method.view(model, c, spec["r"], 1, 0) for c in clients}
    with tempfile.TemporaryDirectory() as folder:
        for k, client in enumerate(clients):
            save_file(_delta(views[client], k), Path(folder) / client)
        deltas = {client: _mapped(Path(folder) / client) for client in clients}
        start = time.perf_counter()
        for delta in deltas.values():
            for array in delta.values():
                np.add.reduce(array, axis=None)
        read = time.perf_counter() - start
        updates = [ClientUpdate(c, 1, deltas[c], 4, 100, 1, {"loss": 2.0}) for c in clients]
        weights = dict.fromkeys(clients, 1 / len(clients))
        # Pages of the mapped files are resident too: what the uploads would take if they lay in memory, once.
        resident = _resident()
        _forget_peak()
        start = time.perf_counter()
        after = method.combine(model, views, updates, weights)
        combined = time.perf_counter()
        peak = _peak()
        seen = diagnose(model, after, views, updates, weights)
        end = time.perf_counter()
        size = sum(array.nbytes for delta in deltas.values() for array in delta.values())
    return {"read": read, "combine": combined - start, "diagnose": end - combined, "modules": seen.modules,
            "peak_above_start": peak - resident, "peak_with_diagnose": _peak() - resident, "upload_bytes": size,
            }  # fmt: skip


def _svd(spec: dict) -> dict:
    """Seconds of each route: thin QRs and a small SVD, or the SVD of the dense product."""
    from shepherd.lowrank import LowRank

    rng = np.random.default_rng(0)
    x = LowRank(rng.normal(size=(spec["size"], spec["q"])), rng.normal(size=(spec["q"], spec["size"])))
    x = x.astype(spec["dtype"])
    routes = {"thin": lambda: x.svd(thin=True), "dense": lambda: np.linalg.svd(x.dense(), full_matrices=False)}
    found = {}
    for name, route in routes.items():
        start = time.perf_counter()
        route()
        found[name] = time.perf_counter() - start
    return found


def _rounds(spec: dict) -> dict:
    """CPU seconds of combine, diagnose and making the state's bytes, round after round."""
    from shepherd.server.diagnostics import diagnose
    from shepherd.store.state import state_files
    from shepherd.types import ClientUpdate, ServerState

    method, model = _start(spec["method"], SMOLLM2, spec["r"])
    found = {"combine": [], "diagnose": [], "state": [], "state_bytes": [], "q": []}
    for number in range(1, spec["rounds"] + 1):
        clients = [f"c{k}" for k in range(spec["clients"])]
        views = {c: method.view(model, c, spec["r"], number, 0) for c in clients}
        updates = [
            ClientUpdate(c, number, _delta(views[c], number * 100 + k), 4, 100, 1, {"loss": 2.0})
            for k, c in enumerate(clients)
        ]
        weights = dict.fromkeys(clients, 1 / len(clients))
        times = [time.process_time()]
        after = method.combine(model, views, updates, weights)
        times.append(time.process_time())
        diagnose(model, after, views, updates, weights)
        times.append(time.process_time())
        files = state_files(ServerState(number, after, {}), base_name="none")
        times.append(time.process_time())
        for name, seconds in zip(("combine", "diagnose", "state"), np.diff(times).tolist(), strict=True):
            found[name].append(seconds)
        found["state_bytes"].append(sum(map(len, files.values())))
        found["q"].append(max((rest.q for rest in after.remainder.values()), default=0))
        del files
        model = after
    return found


def _held(spec: dict) -> dict:
    """Bytes that numpy and Python hold at the most, beyond the model, in each part of a round on SmolLM2's shapes.

    An engine of numbers makes one update after another. Resident memory is that of the same round once more, untraced.
    """
    import tracemalloc
    from functools import partial

    from shepherd import round as round_of
    from shepherd.clients.selection import build_selection
    from shepherd.round import Plan
    from shepherd.store import RunDirectory
    from shepherd.types import ClientUpdate, Objective, ServerState, Work
    from shepherd.updates.spool import Spool

    method, model = _start(spec["method"], SMOLLM2, spec["r"])
    clients = tuple(f"c{k:03}" for k in range(spec["clients"]))
    peaks: dict[str, int] = {}

    class Numbers:
        def restore(self, private):
            pass

        def train(self, task, deadline, enough, observe):
            for k, client in enumerate(sorted(task.views)):
                yield ClientUpdate(client, task.round, _delta(task.views[client], k), 1, 10, 1, {"loss": 2.0})

    def watched(name, function):
        def call(*arguments):
            tracemalloc.reset_peak()
            result = function(*arguments)
            peaks[name] = tracemalloc.get_traced_memory()[1] - before
            return result

        return call

    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            0, clients, len(clients), build_selection("uniform"), method, "uniform", 1,
            lambda client, number, first: Work(client, first, 1, (0.1,)), lambda client: spec["r"], Objective(),
            spool=partial(Spool, spec["mib"] * MEBI, RunDirectory(Path(folder)).scratch),
        )  # fmt: skip
        state = ServerState(0, model, {})
        _forget_peak()
        resident = _resident()
        record = round_of.run_round(state, plan, Numbers())[1]
        resident = _peak() - resident
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        round_of.ask, round_of.diagnose = watched("train", round_of.ask), watched("diagnose", round_of.diagnose)
        combine = watched("combine", method.combine)
        plan = replace(plan, method=_Watched(method, combine))
        round_of.run_round(state, plan, Numbers())
    return {**peaks, "peak": max(peaks.values()), "adapter_bytes": model.adapter.nbytes,
            "upload_bytes": record.bytes_up,
            "modules": record.diagnostics["modules"], "seconds": record.seconds["aggregate"], "resident": resident,
            }  # fmt: skip


class _Watched:
    """A method with another combine."""

    def __init__(self, method, combine) -> None:
        self.method, self.combine = method, combine

    def __getattr__(self, name: str):
        return getattr(self.method, name)


def _start(name: str, sizes: dict[str, tuple[int, int]], r: int):
    from shepherd.server.methods import methods
    from shepherd.types import Adapter, Factors

    rng = np.random.default_rng(0)
    method = methods.build(name)
    pairs = {}
    for module, (n_in, n_out) in sizes.items():
        A = rng.uniform(-1, 1, (r, n_in)) / n_in**0.5
        pairs[module] = Factors(A.astype(np.float32), np.zeros((n_out, r), np.float32))
    return method, method.start(Adapter(pairs, r, 2.0 * r), 0)


def _delta(view, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([7, seed])
    return {
        name: rng.standard_normal(array.shape, np.float32) * np.float32(2e-3) for name, array in view.tensors().items()
    }


def _mapped(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, mapped: nothing is read before it is asked for."""
    data = np.memmap(file, np.uint8, "r")
    begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:begin].tobytes())
    return {
        name: data[begin + entry["data_offsets"][0] : begin + entry["data_offsets"][1]]
        .view(np.float32).reshape(entry["shape"])
        for name, entry in header.items() if name != "__metadata__"
    }  # fmt: skip


def _resident() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _forget_peak() -> None:
    """Start the peak anew (Linux): getrusage then tells what combine needs, and not what wrote the uploads."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    add("--methods", nargs="+", default=list(METHODS))
    add("--clients", nargs="+", type=int, default=[4, 16, 64, 100])
    add("--modules", type=int, default=2, help=f"4096 × 4096 each; all q, k, v, o of Llama-7B are {LLAMA_MODULES}")
    add("--held", nargs="+", type=int, default=[4, 64, 256], help="clients of the part of that name")
    add("--updates-in-memory-mib", type=int, default=0)
    add("--rounds", type=int, default=20)
    add("--size", type=int, default=4096, help="of the square matrix whose SVD is taken")
    add("--q", nargs="+", type=int, default=[64, 256, 1024, 1600])
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=1, help="of the BLAS library")
    add("--json", type=Path, help="write every measurement here")
    add("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
