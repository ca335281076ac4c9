"""Command lines that fail, and the files that they fail on: rows, models, run directories, settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from golden.recipes import BASE, begin, lay_out

MISTAKES = (
    # commands and options
    "",
    "rnu demo",
    "run --rounds 3",
    "run --lora.r 4",
    "run --data",
    "run --data ''",
    "list optimizer",
    "runs lss",
    "completion fihs",
    "copy demoo",
    "run --resume runs/golden --seed 3",
    # settings
    "run demoo",
    "run other/demo.toml",
    "run broken.toml",
    "run --set lora.r",
    "run --set training.rounds=3 --set lora.rnak=4 --set training.batchsize=2",
    "run --set partition.clients=-1 --set federation.fraction=1.5 --set lora.r=eight --set evaluation.arms=bse",
    "run --set partition.name=shard --set federation.method=fedot --set lora.r=0",
    "run --set partition.alpa=3",
    "run --set partition.name=dirichlet --set partition.alpha=x --set partition.balanced=no",
    "run --set federation.selection=poisson",
    "check --set data.format=doly --set data.template=chatml",
    "check --set 'data.template=Q: {instrucion} A: {response}'",
    "check --set selection.name=poisson --set selection.p=0.1",
    "check --set selection.name=availability --set selection.trace=nosuch.json",
    "check --set selection.name=poisson --set federation.weights=tokens --set federation.over_select=0.5"
    " --set federation.method=hetlora",
    "check --set federation.method=flora --set server.optimizer=fedadam",
    "check --set method.split=reinit --set method.payload=rotate --set method.train=B",
    "check --set personalization.name=dito",
    "check --set personalization.name=ifca --set federation.method=fedsa_lora",
    "check --set personalization.name=ifca --set personalization.clusters=9",
    "check --set objective.scaffold=true --set federation.weights=tokens",
    "check --set training.momentum=0.5",
    "check --set training.schedule_over=rounds --set training.warmup_steps=3",
    "check --set training.min_learning_rate=1",
    "check --set evaluation.arms=local",
    "check --set 'evaluation.metrics=[\"rouge\"]'",
    "check --set 'evaluation.metrics=[{name = \"rouge_l\", bta = 2.0}]'",
    "check --set evaluation.arms=base,federated --set evaluation.local_learning_rate=0.1",
    "check --set 'evaluation.local_clients=[\"open_qaa\"]'",
    "check --set federation.method=flexlora --set 'lora.ranks={open_qaa=4}'",
    "check --set federation.method=flexlora --set 'lora.ranks=[16]'",
    "check --set federation.clients_per_round=9 --set federation.min_updates=9",
    "check --set federation.clients_per_round=2 --set federation.min_updates=3",
    # data
    "run --data clinci.jsonl --model base",
    "run --data malformed.jsonl --model base",
    "run --data unknown.jsonl --model base",
    "run --data clinic.jsonl --columns instruction=quesion --model base",
    "run --data useless.jsonl --model base",
    "run --data nothing --model base",
    "data partition nosuch",
    "data partition same.jsonl",
    "data partition clinic.jsonl --set partition.clients=90",
    "data partition clinic.jsonl --set partition.name=by_key --set partition.clients=0 --set partition.key=ward",
    "data partition clinic.jsonl --set data.languages=german",
    "data partition builtin:nosuch",
    # models and places
    "check --model nosuch",
    "check --model org/name",
    "check --model nothing",
    "check --model bare",
    "check --model cut",
    "check --model plain --set data.template=chat",
    "check --model base --set lora.targets=q_prj,v_proj",
    "check --model base --set data.max_length=5000",
    "check --model base --set model.quantize=4bit --set model.device=cpu",
    "run --model base --out clinic.jsonl/runs",
    # clients
    "run --data clinic.jsonl --model base --set training.learning_rate=1e38 --set run.threads=1"
    " --set model.dtype=float32 --set training.tokens_per_pass=512 --set training.clients_at_once=3",
    # run directories
    "report frist",
    "report .",
    "evaluate runs/golden --round 7",
    "evaluate runs/other-base --round 1",
    "chat runs/no-adapter",
    "export runs/golden --to nosuch --out exported",
    "compare runs/golden nosuch",
    "report runs/no-config",
    "report runs/torn",
    "runs rm nosuch",
    "resume nosuch",
    "resume runs/other-base",
    "resume runs/other-rate",
    "resume runs/other-line",
)


def lay_out_mistakes(work: Path) -> None:
    """Put into `work` all that the command lines name, and a run that was stopped after its second round."""
    stopped = begin("frlora, stopped and resumed", work, [])
    lay_out(work)
    answers = [("red", i) for i in range(12)] + [("blue", i) for i in range(12)]
    _write(
        work,
        "clinic",
        [{"instruction": f"Name colour {i}.", "response": f"{c} {i}", "category": c} for c, i in answers],
    )
    _write(work, "unknown", [{"ask": "a", "tell": "b"}])
    _write(work, "useless", [{"instruction": "a", "response": ""}] * 3 + [{"instruction": "", "response": "b"}] * 2)
    _write(work, "same", [{"instruction": "Say hello.", "response": f"Hello {i}."} for i in range(30)])
    (work / "malformed.jsonl").write_text(
        '{"instruction": "a", "response": "b"}\n{"instruction": "a", response: "b"}\n'
    )
    (work / "broken.toml").write_text("[lora]\nr = = 4\n")
    (work / "nothing").mkdir()
    _models(work)
    _runs(stopped)


def _write(work: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _models(work: Path) -> None:
    for name, left_out in {"bare": "token", "plain": "chat_template", "cut": "nothing", "other": "nothing"}.items():
        (work / name).mkdir()
        for file in BASE.iterdir():
            if left_out not in file.name:
                shutil.copy(file, work / name)
    weights = work / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    weights = work / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100] + bytes(100))


def _runs(run: Path) -> None:
    copies = {
        name: shutil.copytree(run, run.parent / name)
        for name in ("other-base", "no-adapter", "no-config", "torn", "other-rate", "other-line")
    }
    (copies["no-config"] / "config.toml").unlink()
    shutil.rmtree(copies["no-adapter"] / "checkpoints")
    lines = (run / "rounds.jsonl").read_text()
    (copies["torn"] / "rounds.jsonl").write_text(lines[:300] + "\n" + lines[300:])
    (copies["other-line"] / "rounds.jsonl").write_text(lines.replace('"train_loss": {', '"train_loss":  {'))
    settings = (run / "config.toml").read_text()
    (copies["other-rate"] / "config.toml").write_text(settings.replace("learning_rate = 0.01", "learning_rate = 0.02"))
    (copies["other-base"] / "config.toml").write_text(settings.replace('/base"', '/other"'))
