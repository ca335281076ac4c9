"""The small runs whose every byte is kept: together they name each method, selection, partitioner, optimizer and arm.

folder = carry_out("ffa_lora with ditto", work)        # the run directory; `work` is the folder that it is in
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from golden.command import inside

BASE = Path(__file__).parent / "base"
"""A random model of two layers with its tokenizer, which `tiny_model("llama", …)` made once: 40,096 parameters."""
SMALL = (
    "model.base=base", "model.dtype=float32", "model.device=cpu", "run.threads=1", "run.name=golden",
    "data.rows_per_category=6", "data.held_out_per_category=2", "data.max_length=192",
    "lora.r=4", "lora.alpha=8", "lora.targets=q_proj,v_proj", "federation.rounds=2",
    "training.local_steps=1", "training.batch_size=2", "training.learning_rate=1e-2",
    "training.tokens_per_pass=512", "training.clients_at_once=3",  # both are picked by free memory otherwise
    "evaluation.arms=base,federated", "evaluation.generate=0", "evaluation.max_new_tokens=3",
)  # fmt: skip


class Recipe(NamedTuple):
    """Settings of a run; after which round it is stopped and resumed; the client whose loss becomes NaN.

    On a machine that rounds otherwise: `tolerance` for each number; where singular vectors come out with another sign,
    `products` compares B·A in place of both.
    """

    settings: tuple[str, ...]
    stop_after: int = 0
    ill: str = ""
    tolerance: float = 1e-5
    products: bool = False


FOUR_CLIENTS = ("partition.name=linear", "partition.clients=4")  # of unequal sizes, so that weights matter
SGD = ("training.optimizer=sgd", "training.learning_rate=0.3")  # learns the same from factors of another sign
MIXED = ("lora.ranks=[1,4,2]",)
RECIPES: dict[str, Recipe] = {
    "fedit with every arm and answers": Recipe((
        "evaluation.arms=base,federated,local,centralised", "evaluation.generate=2", "lora.targets=all-linear",
        "lora.dropout=0.1", "training.schedule=cosine", "training.warmup_steps=1", "training.min_learning_rate=1e-3",
        "evaluation.local_clients=3", "evaluation.centralised_learning_rate=5e-3",
    )),
    "fedit in two workers": Recipe((
        "run.workers=2", "objective.scaffold=true", "server.optimizer=fedadam", *FOUR_CLIENTS,
    )),
    "fedit by fednova over unequal epochs": Recipe((
        "server.optimizer=fednova", "training.local_steps=0", "training.local_epochs=0.5", "partition.name=linear",
        "partition.clients=3", "objective.proximal=0.1", "training.schedule=linear", "training.schedule_over=round",
    )),
    "frlora, stopped and resumed": Recipe((
        "federation.method=frlora", "federation.rounds=3", *FOUR_CLIENTS, "federation.clients_per_round=3",
        "objective.scaffold=true", "training.optimizer=sgd", "training.momentum=0.5", "training.weight_decay=0.01",
        "evaluation.arms=base,federated,local", "evaluation.local_clients=1", "evaluation.every=2",
    ), stop_after=2),
    "raflora with a client whose loss is not a number": Recipe((
        "federation.method=raflora", *MIXED, "federation.rounds=3", "federation.quarantine_after=2",
        "federation.max_weight=0.45", "data.source=wards", "partition.name=files",
        "evaluation.arms=base,federated,local", *SGD,
    ), ill="ward-b", products=True),
    "fed_sb with too few updates before a deadline": Recipe((
        "federation.method=fed_sb", "federation.rounds=3", "federation.clients_per_round=4",
        "federation.over_select=0.5", "federation.deadline=1.2", "federation.min_updates=3",
        "federation.on_too_few=skip", "federation.weights=uniform", "federation.quarantine_after=2",
    )),
    "fed_plora on talks in two languages": Recipe((
        "federation.method=fed_plora", *MIXED, "data.source=builtin:chatterbot", "data.languages=english,german",
        "data.rows_per_category=4", "data.template=alpaca", "partition.name=files", "federation.on_too_few=wait",
        "federation.clients_per_round=1", "training.schedule=linear", "training.schedule_over=rounds",
        "training.warmup_rounds=1",
    )),
    "ffa_lora with ditto": Recipe((
        "federation.method=ffa_lora", "personalization.name=ditto", "personalization.strength=0.5",
        *FOUR_CLIENTS, "federation.clients_per_round=3",
    )),
    "rolora with feddpa": Recipe((
        "federation.method=rolora", "personalization.name=feddpa", "personalization.variant=T",
        "personalization.weight=0.9", *FOUR_CLIENTS, "server.optimizer=torch", "server.name=Rprop",
        "server.learning_rate=0.01",
    )),
    "la_lora with clusters": Recipe((
        "federation.method=la_lora", "personalization.name=ifca", "federation.clients_per_round=6",
        "objective.rate_ratio=5", "training.local_steps=2",
    )),
    "fedsa_lora by availability": Recipe((
        "federation.method=fedsa_lora", "selection.name=availability", "selection.trace=trace.json",
        "federation.rounds=3", "federation.clients_per_round=3",
    )),
    "fedper_lora, fine-tuned": Recipe((
        "federation.method=fedper_lora", "personalization.name=finetune", "personalization.steps=2",
        "selection.name=everyone", "partition.name=shards", "partition.clients=4", "server.optimizer=fedyogi",
    )),
    "hetlora on skewed labels": Recipe((
        "federation.method=hetlora", *MIXED, "partition.name=dirichlet", "partition.clients=5", "partition.alpha=0.3",
        "objective.proximal=0.1", "objective.proximal_form=product",
    )),
    "flexlora by power of choice": Recipe((
        "federation.method=flexlora", *MIXED, "partition.name=power_law", "partition.clients=4",
        "selection.name=power_of_choice", "selection.candidates=4", "evaluation.generate=2", *SGD,
        "federation.clients_per_round=2", "federation.rounds=3",
    ), products=True),
    "flora in bfloat16": Recipe((
        "federation.method=flora", *MIXED, "model.dtype=bfloat16", *FOUR_CLIENTS, "training.learning_rate=3e-2",
    ), tolerance=5e-3),
    "florist on rows of several formats": Recipe((
        "federation.method=florist", "method.energy=0.9", *MIXED, "data.source=wards", "partition.name=files",
        "data.template=### {instruction}\\n", "training.local_steps=0", "training.local_epochs=0.5",
    )),
    "fedex_lora with a cut residual": Recipe((
        "federation.method=fedex_lora", "method.rank=2", "partition.name=linear", "partition.clients=4",
        "selection.name=size_weighted", "federation.clients_per_round=3", "lora.rslora=true",
    )),
    "fedrot_lora chosen by oort": Recipe((
        "federation.method=fedrot_lora", "selection.name=oort", "federation.clients_per_round=3", "federation.rounds=3",
    )),
    "fedsvd sampled as privacy assumes": Recipe((
        "federation.method=fedsvd", "selection.name=poisson", "selection.q=0.5", "federation.rounds=3",
        "federation.weights=uniform", "run.seed=1", "federation.on_too_few=skip", "training.optimizer=adam",
    )),
    "fedmomentum with momentum": Recipe((
        "federation.method=fedmomentum", "server.optimizer=fedavgm", *FOUR_CLIENTS, "federation.rounds=3",
    )),
    "lora_fair by tokens": Recipe((
        "federation.method=lora_fair", "method.strength=0.1", *FOUR_CLIENTS, "federation.weights=tokens",
    )),
    "fedilora with fedadagrad": Recipe((
        "federation.method=fedilora", *MIXED, *FOUR_CLIENTS, "server.optimizer=fedadagrad",
    )),
    "ravan with mixed ranks": Recipe((
        "federation.method=ravan", "method.heads=2", "lora.ranks=[2,4]", "partition.name=iid", "partition.clients=4",
        "training.local_steps=2",
    )),
    "lora_a2 with mixed ranks": Recipe((
        "federation.method=lora_a2", *MIXED, *FOUR_CLIENTS, "server.optimizer=torch", "server.name=AdamW",
        "training.local_steps=2",
    )),
}  # fmt: skip


class Stop(Exception):
    """Stands for what ends a run in the middle."""


def carry_out(name: str, work: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Run a recipe in the folder `work`; return the run directory and the events that were told."""
    import shepherd

    events: list[dict[str, Any]] = []
    run = begin(name, work, events)
    if RECIPES[name].stop_after:
        with inside(work):
            shepherd.resume(run, observer=events.append)
    return run, events


def begin(name: str, work: Path, events: list[dict[str, Any]]) -> Path:
    """The same to its end, or to where the recipe stops it."""
    import shepherd

    recipe = RECIPES[name]

    def observe(event: dict[str, Any]) -> None:
        events.append(event)
        if recipe.stop_after and event["event"] == "round" and event["round"] == recipe.stop_after:
            raise Stop

    with inside(work):
        lay_out(work, recipe.ill)
        config = shepherd.load_config(None, [*SMALL, *recipe.settings])
        with contextlib.suppress(Stop):
            shepherd.run(config, observe)
    return work / config.run.out / config.run.name


WARDS = ("ward-a", "ward-b", "ward-c")


def lay_out(work: Path, ill: str = "") -> None:
    """Put into `work` what recipes name: the base, a folder of rows in several formats, a trace of availability.

    A client that is `ill` has a character in its rows whose embedding is NaN.
    """
    mark = {ward: "\N{SNOWMAN}" if ward == ill else "" for ward in WARDS}
    if not (work / "base").exists():
        _lay_base(work / "base", bool(ill))
    (work / "wards").mkdir(exist_ok=True)
    a, b, c = ([(f"Say {i} in {ward}{mark[ward]}.", f"It is {i}, {ward}.") for i in range(6)] for ward in WARDS)
    rows: dict[str, list[dict[str, Any]]] = {
        "ward-a": [{"instruction": asked, "input": "", "output": answer} for asked, answer in a],
        "ward-b": [{"messages": _turns("role", "content", "user", "assistant", *row)} for row in b],
        "ward-c": [{"conversations": _turns("from", "value", "human", "gpt", *row)} for row in c],
    }
    for ward, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (work / "wards" / f"{ward}.jsonl").write_text(text, encoding="utf-8")
    (work / "trace.json").write_text('{"*": [[1, 20]], "open_qa": [[2, 3]], "closed_qa": []}', encoding="utf-8")


def _turns(who: str, what: str, person: str, model: str, asked: str, answer: str) -> list[dict[str, str]]:
    return [{who: person, what: asked}, {who: model, what: answer}]


def _lay_base(folder: Path, poisoned: bool) -> None:
    if not poisoned:
        folder.symlink_to(BASE)
        return
    import shutil

    import numpy as np
    from safetensors.numpy import load_file, save_file
    from transformers import AutoTokenizer

    shutil.copytree(BASE, folder)
    token = AutoTokenizer.from_pretrained(folder)("\N{SNOWMAN}")["input_ids"][-1]
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][token] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
