"""A cohort in one batch against one client after another with transformers.Trainer and PEFT.

    python benchmarks/cohort_vs_trainer.py --json benchmarks/results/mine.json

Both sides train the same clients on the same rows from the same adapter, with the same optimizer steps and the same
number of threads. Every measurement is a process of its own, so that peak memory is that side's alone, and the sides
take turns. The losses of both sides must agree, or the benchmark fails. README.md says how to read the result.
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
import time
from itertools import product
from pathlib import Path

from shepherd.model.threads import available_cores  # this process never imports torch: see `measure`

SIDES = {
    # name: (trains with, dtype of the base, bf16=True of TrainingArguments)
    "trainer-float32": ("trainer", "float32", False),
    "cohort-float32": ("cohort", "float32", False),
    "trainer-autocast": ("trainer", "float32", True),
    "cohort-bfloat16": ("cohort", "bfloat16", False),
    "trainer-bfloat16": ("trainer", "bfloat16", False),
}
RATIOS = (
    ("cohort-float32", "trainer-float32"),
    ("cohort-bfloat16", "trainer-bfloat16"),
    ("cohort-bfloat16", "trainer-autocast"),
    ("cohort-bfloat16", "trainer-float32"),
)
TOLERANCE = 1e-4  # between the float32 losses of both sides, relative
MEBI = 2**20


def main() -> int:
    options = _arguments()
    if options.child:
        print(json.dumps(_child(json.loads(options.child))))
        return 0
    threads = options.threads or available_cores()
    cases = []
    for targets, policy in product(options.targets, options.wait_policy):
        spec = {
            name: getattr(options, name)
            for name in ("model", "device", "data", "partition", "clients", "steps", "batch")
        }
        spec |= {"targets": targets, "wait_policy": policy, "threads": threads}
        runs = {side: [] for side in options.sides}
        for repeat, side in product(range(options.repeats), options.sides):
            runs[side].append(measure(spec | {"side": side}))
            last = runs[side][-1]
            print(
                f"{targets}, {policy}, {repeat + 1}/{options.repeats}: {side} {last['seconds']:.1f} s", file=sys.stderr
            )
        cases.append({"settings": spec, **summarise(runs), "runs": runs})
    report = {"machine": _machine(), "cases": cases}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for case in cases:
        print(table(case))
    disagreeing = [line for case in cases for line in case["disagreements"]]
    for line in disagreeing:
        print(f"error: {line}", file=sys.stderr)
    return 1 if disagreeing else 0


def measure(spec: dict) -> dict:
    """Run one side in a process of its own. Linux hands a parent's peak memory down, so ours must stay small."""
    environment = os.environ | {"OMP_NUM_THREADS": str(spec["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("OMP_WAIT_POLICY", None)
    if spec["wait_policy"] == "passive":
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}  # as the shepherd command sets them
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(spec)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{spec['side']} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def summarise(runs: dict[str, list[dict]]) -> dict:
    """Medians per side with [least, greatest], ratios within each repeat, and where the losses disagree."""
    peak = {}  # GFLOP/s by dtype: the best that any process measured
    for run in (run for side in runs.values() for run in side):
        for dtype, value in run["matmul_peak"].items():
            peak[dtype] = max(peak.get(dtype, 0.0), value)
    sides = {}
    for side, repeats in runs.items():
        dtype = "float32" if side.endswith("float32") else "bfloat16"
        for run in repeats:
            run["useful_tokens_per_second"] = run["tokens"] / run["seconds"]
            run["target_tokens_per_second"] = run["targets"] / run["seconds"]
            run["share_of_peak"] = run["flop"] / run["seconds"] / 1e9 / peak[dtype]
        keys = ("seconds", "cpu_seconds", "useful_tokens_per_second", "target_tokens_per_second", "share_of_peak",
                "peak_bytes", "peak_above_base_bytes")  # fmt: skip
        sides[side] = {key: _spread([run[key] for run in repeats]) for key in keys}
        sides[side]["computed_tokens_per_useful_token"] = repeats[0]["computed_tokens"] / repeats[0]["tokens"]
    ratios = {}
    for ours, theirs in RATIOS:
        if ours in runs and theirs in runs:
            pairs = list(zip(runs[ours], runs[theirs], strict=True))
            ratios[f"{ours} / {theirs}"] = {
                "useful_tokens_per_second": _spread([t["seconds"] / o["seconds"] for o, t in pairs]),
                "peak_memory": _spread([t["peak_bytes"] / o["peak_bytes"] for o, t in pairs]),
                "peak_memory_above_base": _spread(
                    [t["peak_above_base_bytes"] / o["peak_above_base_bytes"] for o, t in pairs]
                ),
            }
    reference = next((name for name in ("trainer-float32", "cohort-float32") if name in runs), next(iter(runs)))
    return {
        "sides": sides,
        "ratios": ratios,
        "matmul_peak_gflops": peak,
        "losses": {side: repeats[0]["losses"] for side, repeats in runs.items()},
        "largest_loss_difference": {side: _difference(runs[reference], repeats) for side, repeats in runs.items()},
        "disagreements": _disagreements(runs),
    }


def _disagreements(runs: dict[str, list[dict]]) -> list[str]:
    """float32 losses of both sides, per client and step, differ by more than rounding; or one worked on other rows."""
    first = next(iter(runs.values()))[0]
    found = [
        f"{side} trained on other rows than {next(iter(runs))}"
        for side, repeats in runs.items()
        if any((run["tokens"], run["targets"]) != (first["tokens"], first["targets"]) for run in repeats)
    ]
    if {"trainer-float32", "cohort-float32"} <= set(runs):
        difference = _difference(runs["trainer-float32"], runs["cohort-float32"])
        if not difference <= TOLERANCE:
            found.append(f"the float32 losses of the two sides differ by {difference:.2e}, more than {TOLERANCE:.0e}")
    return found


def _difference(a: list[dict], b: list[dict]) -> float:
    """Largest relative difference of a loss over repeats, clients and steps."""
    return max(
        abs(x - y) / abs(x)
        for one, other in zip(a, b, strict=True)
        for client in one["losses"]
        for x, y in zip(one["losses"][client], other["losses"][client], strict=True)
    )


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def table(case: dict) -> str:
    s, peak = case["settings"], case["matmul_peak_gflops"]
    lines = [
        "",
        f"{s['model']}, {s['data']}: {s['clients']} clients × {s['steps']} steps × {s['batch']} rows, "
        f"LoRA on {s['targets']}, {s['threads']} threads, OMP_WAIT_POLICY {s['wait_policy']}",
        f"matrix-product peak: {', '.join(f'{name} {value:.0f} GFLOP/s' for name, value in peak.items())}",
        f"{'':18}{'useful tokens/s':>22}{'targets/s':>11}{'CPU s':>8}{'of peak':>9}{'peak MiB':>10}{'over base':>11}"
        f"{'padding':>9}{'loss differs':>14}",
    ]
    for side, v in case["sides"].items():
        speed = v["useful_tokens_per_second"]
        lines.append(
            f"{side:18}{speed['median']:8.1f} [{speed['least']:5.1f}–{speed['greatest']:5.1f}]"
            f"{v['target_tokens_per_second']['median']:11.1f}{v['cpu_seconds']['median']:8.1f}"
            f"{v['share_of_peak']['median']:9.1%}"
            f"{v['peak_bytes']['median'] / MEBI:10.0f}{v['peak_above_base_bytes']['median'] / MEBI:11.0f}"
            f"{v['computed_tokens_per_useful_token']:9.2f}{case['largest_loss_difference'][side]:14.1e}"
        )
    lines += ["", f"{'ratio':38}{'tokens/s':>20}{'peak memory':>14}{'over base':>12}"]
    for name, v in case["ratios"].items():
        speed = v["useful_tokens_per_second"]
        lines.append(
            f"{name:38}{speed['median']:6.2f} [{speed['least']:.2f}–{speed['greatest']:.2f}]"
            f"{v['peak_memory']['median']:14.2f}{v['peak_memory_above_base']['median']:12.2f}"
        )
    return "\n".join(lines)


def _machine() -> dict[str, str]:
    from importlib.metadata import version

    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {"cpu": model, "system": platform.platform(), "python": platform.python_version()} | {
        name: version(name) for name in ("torch", "transformers", "peft", "accelerate")
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


# In the child: one side, measured


def _child(spec: dict) -> dict:
    import torch

    from shepherd.experiment.method import compose
    from shepherd.experiment.rows import prepare_rows
    from shepherd.experiment.schedule import prepare_schedule
    from shepherd.experiment.trainer import prepare_trainer
    from shepherd.model.base import load_base
    from shepherd.model.threads import matmul_peak
    from shepherd.recipe import load
    from shepherd.types import Work

    torch.set_num_threads(spec["threads"])
    kind, dtype, autocast = SIDES[spec["side"]]
    config = load(
        None,
        [
            f"data.source={spec['data']}", f"partition.name={spec['partition']}", f"lora.targets={spec['targets']}",
            f"training.batch_size={spec['batch']}", f"training.local_steps={spec['steps']}",
            *([f"partition.clients={spec['clients']}"] if spec["partition"] != "by_key" else []),
        ],
    )  # fmt: skip
    base = load_base(spec["model"], device=spec["device"], dtype=dtype)
    rows, _ = prepare_rows(config, base.tokenizer)
    if len(rows.clients) < spec["clients"]:
        raise SystemExit(f"{len(rows.clients)} clients are in the data, {spec['clients']} asked: use --partition iid")
    data = {c: rows.clients[c] for c in sorted(rows.clients)[: spec["clients"]]}
    work = {}
    for client, own in data.items():
        count, steps = prepare_schedule(config).share(len(own))
        work[client] = Work(client, 0, count, prepare_schedule(config).rates(steps, 1))
    learner = prepare_trainer(config, compose(config), base)
    train = _trainer_side(base, learner, data, autocast) if kind == "trainer" else _cohort_side(learner, data)

    memory = _Memory(base.device)
    base_bytes = memory.held()
    client = min(work)
    train({client: Work(client, 0, 1, work[client].learning_rates[:1])})  # first calls set up the libraries
    loading = memory.peak()
    memory.forget_peak()
    start, cpu = time.perf_counter(), time.process_time()
    losses, computed = train(work)
    memory.synchronise()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = memory.peak()
    used = [row for c, own in data.items() for row in _walked(own, work[c])]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "tokens": sum(len(row.input_ids) for row in used),
        "targets": sum(row.targets for row in used),
        "computed_tokens": computed,
        "flop": _flop(base.model, learner.adapter.num_parameters, used),
        "peak_bytes": peak,
        "loading_peak_bytes": loading,
        "peak_above_base_bytes": peak - base_bytes,
        "base_bytes": base_bytes,
        "losses": losses,
        "matmul_peak": {
            name: matmul_peak(getattr(torch, name), base.device.type, size=8192 if base.device.type == "cuda" else 1024)
            for name in ("float32", "bfloat16")
        },
        "device": torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else "cpu",
    }


def _walked(rows, work):
    from shepherd.clients.row_order import walk

    return walk(rows, work.client, work.first_row, work.rows, seed=0)


def _cohort_side(learner, data):
    """work -> ({client: losses}, tokens computed): all clients in one batch."""
    from shepherd.clients.training import train
    from shepherd.types import ClientModel, TrainTask

    def run(work):
        losses = {client: [] for client in work}

        def observe(report):
            for client, progress in report.items():
                if progress.step > len(losses[client]):
                    losses[client].append(progress.loss)

        task = TrainTask(1, {client: ClientModel(learner.adapter) for client in work}, 0, work)
        for _ in train(task, {}, learner.host(data), observe):
            pass
        return losses, sum(len(row.input_ids) for c, w in work.items() for row in _walked(data[c], w))

    return run


def _trainer_side(base, learner, data, autocast):
    """work -> ({client: losses}, tokens computed): for each client the adapter is reset and a new Trainer trains it."""
    import tempfile

    import peft
    import torch
    import transformers
    from torch.nn.utils.rnn import pad_sequence

    transformers.logging.set_verbosity_error()
    adapter, settings = learner.adapter, learner.settings
    model = peft.get_peft_model(
        base.model,
        peft.LoraConfig(r=adapter.r, lora_alpha=adapter.alpha, target_modules=sorted(adapter.factors)),
    )
    fresh = {
        f"base_model.model.{name}.lora_{x}.weight": torch.from_numpy(getattr(pair, x))
        for name, pair in adapter.factors.items()
        for x in "AB"
    }
    computed = 0

    def collate(rows):
        nonlocal computed
        ids = [torch.from_numpy(row.input_ids).long() for row in rows]
        labels = [torch.where(torch.from_numpy(row.loss_mask), i, -100) for row, i in zip(rows, ids, strict=True)]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=base.tokenizer.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        }
        computed += batch["input_ids"].numel()
        return batch

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    def run(work):
        nonlocal computed
        computed, losses = 0, {}
        with tempfile.TemporaryDirectory() as folder:
            for client in sorted(work):
                w = work[client]
                peft.set_peft_model_state_dict(model, fresh)
                trainer = InOrder(
                    model=model,
                    args=transformers.TrainingArguments(
                        folder, use_cpu=base.device.type == "cpu", bf16=autocast, max_steps=w.steps,
                        per_device_train_batch_size=-(-w.rows // w.steps), learning_rate=w.learning_rates[0],
                        lr_scheduler_type="constant", optim="adamw_torch", weight_decay=settings.weight_decay,
                        adam_beta1=settings.betas[0], adam_beta2=settings.betas[1],
                        max_grad_norm=settings.max_grad_norm, remove_unused_columns=False, save_strategy="no",
                        logging_steps=1, report_to=[], disable_tqdm=True, log_level="error",
                    ),
                    train_dataset=_walked(data[client], w),
                    data_collator=collate,
                )  # fmt: skip
                trainer.remove_callback(transformers.PrinterCallback)
                trainer.train()
                {k: v.clone() for k, v in peft.get_peft_model_state_dict(model).items()}  # what a server would be sent
                losses[client] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, computed

    return run


def _flop(model, adapter_parameters: int, rows) -> float:
    """Floating point operations that training on these rows needs, without padding; README.md derives them."""
    from shepherd.model.base import linear_names

    config = model.config.get_text_config()
    frozen = sum(model.get_submodule(name).weight.numel() for name in linear_names(model))
    head = model.get_output_embeddings().weight.numel()
    width = config.num_attention_heads * (
        getattr(config, "head_dim", 0) or config.hidden_size // config.num_attention_heads
    )
    tokens = sum(len(row.input_ids) for row in rows)
    targets = sum(row.targets for row in rows)
    pairs = sum(len(row.input_ids) * (len(row.input_ids) + 1) / 2 for row in rows)
    products = 4 * frozen * tokens + 6 * adapter_parameters * tokens + 4 * head * targets
    return products + 12 * config.num_hidden_layers * width * pairs


class _Memory:
    """Bytes held and their peak: resident memory of the process on a CPU, allocated tensors on a GPU."""

    def __init__(self, device) -> None:
        import torch

        self.cuda = torch.cuda if device.type == "cuda" else None

    def synchronise(self) -> None:
        if self.cuda:
            self.cuda.synchronize()

    def held(self) -> int:
        import psutil

        return self.cuda.memory_allocated() if self.cuda else psutil.Process().memory_info().rss

    def peak(self) -> int:
        if self.cuda:
            return self.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def forget_peak(self) -> None:
        """Start the peak anew, so that reading the base does not hide a smaller peak of training. CPU: Linux only."""
        if self.cuda:
            self.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="smollm2-135m", help="as model.base of a recipe")
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--data", default="builtin:instructions", help="as data.source of a recipe: a built-in, a file, a folder")
    add("--partition", default="by_key", choices=("by_key", "iid"), help="by_key: one category a client")
    add("--clients", type=int, default=8)
    add("--steps", type=int, default=2, help="optimizer steps of each client")
    add("--batch", type=int, default=4, help="rows of a client in one step")
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=0, help="of both sides; 0: all cores")
    add("--targets", nargs="+", default=["all-linear", "q_proj,v_proj"], help="layers that carry LoRA; each a table")
    add("--wait-policy", nargs="+", default=["passive"], choices=("passive", "default"), help="OMP_WAIT_POLICY")
    add("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    add("--json", type=Path, help="write every measurement here")
    add("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
