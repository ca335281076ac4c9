"""What batching brings to generated answers: tokens per second by batch size, against batch size 1.

    python benchmarks/answers.py --json benchmarks/results/NAME.json
    python benchmarks/answers.py --prompts 4 --tokens 8 --batch-sizes 1 4 --repeats 1       # does it work here?

Prompts are the first built-in instructions; every side generates the same greedy tokens, which are compared. README.md
says how to read the result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers

from shepherd.data.prompts import build_template
from shepherd.data.sources import load_examples
from shepherd.data.tokenize import encode_prompt
from shepherd.model.adapter import fresh_adapter
from shepherd.model.base import load_base
from shepherd.model.generate import generate
from shepherd.model.lora import CohortLora
from shepherd.model.targets import pick_targets
from shepherd.model.threads import use_threads
from shepherd.types import Adapter, Factors

LIBRARY = "transformers"


def main() -> int:
    options = _arguments()
    use_threads(options.threads)
    base = load_base(options.model, dtype=options.dtype, device=options.device)
    template = build_template("auto", base.tokenizer)
    examples = load_examples("builtin:instructions").examples[: options.prompts]
    prompts = [encode_prompt(template, base.tokenizer, e.messages, e.context, e.tools) for e in examples]
    lora = _adapter(base) if options.adapter else None
    sides: list[Any] = [*options.batch_sizes, *([LIBRARY] if not options.adapter else [])]

    def run(side: Any) -> tuple[float, list[tuple[int, ...]]]:
        start = time.perf_counter()
        if side == LIBRARY:
            ids = _library(base, template, prompts, options.tokens)
        else:
            answers = generate(
                base.model, base.tokenizer, prompts, lora=lora, stops=template.stops, max_new_tokens=options.tokens,
                batch_size=side,
            )  # fmt: skip
            ids = [answer.ids for answer in answers]
        return time.perf_counter() - start, ids

    run(options.batch_sizes[-1])  # the libraries set themselves up
    seconds: dict[Any, list[float]] = {side: [] for side in sides}
    ids: dict[Any, list[tuple[int, ...]]] = {}
    loads = []
    for _ in range(options.repeats):
        for side in sides:
            loads.append(os.getloadavg()[0])
            spent, ids[side] = run(side)
            seconds[side].append(spent)
    first = options.batch_sizes[0]
    tokens = sum(map(len, ids[first]))
    rows = [
        {
            "side": side if side == LIBRARY else f"batch of {side}",
            "seconds": statistics.median(seconds[side]),
            "tokens_per_second": tokens / statistics.median(seconds[side]),
            "ratio": statistics.median(a / b for a, b in zip(seconds[first], seconds[side], strict=True)),
            "equal": sum(a == b for a, b in zip(ids[first], ids[side], strict=True)),
        }
        for side in sides
    ]
    facts = {
        "model": options.model, "dtype": str(base.dtype).removeprefix("torch."), "adapter": options.adapter,
        "prompts": len(prompts), "max_new_tokens": options.tokens, "tokens": tokens,
        "threads": torch.get_num_threads(), "load": [round(min(loads), 1), round(max(loads), 1)],
        "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
    }  # fmt: skip
    print(" ".join(f"{name}={value}" for name, value in facts.items()))
    print(f"{'side':<14}{'seconds':>10}{'tokens/s':>10}{'ratio':>8}{'equal':>8}")
    for row in rows:
        print(f"{row['side']:<14}{row['seconds']:>10.2f}{row['tokens_per_second']:>10.0f}{row['ratio']:>8.2f}"
              f"{row['equal']:>5}/{len(prompts)}")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps({**facts, "sides": rows}, indent=1) + "\n", encoding="utf-8")
    return int(base.dtype == torch.float32 and any(row["equal"] < len(prompts) for row in rows))


def _library(base, template, prompts: list[list[int]], tokens: int) -> list[tuple[int, ...]]:
    """The library's own loop over all prompts at once, where a finished row stays to the end."""
    stops = {base.tokenizer.eos_token_id, *map(base.tokenizer.convert_tokens_to_ids, template.stops)}
    longest = max(map(len, prompts))
    pad = base.tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=base.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=base.device)
    out = base.model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, eos_token_id=list(stops), pad_token_id=pad
    )
    rows = out[:, longest:].tolist()
    return [tuple(row[: next((i for i, token in enumerate(row) if token in stops), len(row))]) for row in rows]


def _adapter(base) -> CohortLora:
    """An adapter of rank 8 on all linear layers, with an increment that is not zero."""
    modules = {name: base.model.get_submodule(name) for name in pick_targets(base.model, "all-linear")}
    lora = CohortLora(modules, device=base.device)
    fresh = fresh_adapter(lora.sizes, 8, 16.0, 0)
    other = fresh_adapter({name: size[::-1] for name, size in lora.sizes.items()}, 8, 16.0, 1)
    factors = {name: Factors(A, 0.01 * other.factors[name].A.T.copy()) for name, (A, _) in fresh.factors.items()}
    return lora.hold([Adapter(factors, 8, 16.0)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--adapter", action="store_true", help="with an adapter; the library's loop is left out")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
