"""Run directories as far as a judge reads them: settings, and answers of arms to questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shepherd.evaluation.answer_files import AnswerLine, hash_of


def a_run(folder: Path, name: str = "demo", arms=("base", "centralised", "federated"), seed: int = 0, count: int = 4,
          reference: tuple[str, ...] = (), **settings) -> Path:  # fmt: skip
    """A run directory as far as a judge reads it: answers of arms to questions, longer from arm to arm. It keeps the
    adapter of the centralised arm. reference: of every question."""
    run = folder / "runs" / name
    (run / "answers" / "vicuna").mkdir(parents=True)
    (run / "arms" / "centralised").mkdir(parents=True)
    (run / "arms" / "centralised" / "adapter_config.json").write_text("{}", "utf-8")
    table = {"run": {"seed": seed, "name": name}, "evaluation": {"arms": ["base", "local", "centralised", "federated"]},
             "lora": {"r": 8, **settings}}  # fmt: skip
    rooms = [f"[{room}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
             for room, keys in table.items()]  # fmt: skip
    (run / "config.toml").write_text("\n".join(rooms), "utf-8")
    for place, arm in enumerate(arms):
        rows = []
        for n in range(1, count + 1):
            words, asked = 3 + place * (1 + n % 2) + n + seed, f"Question {n}?"
            rows.append(AnswerLine(n, ("word " * words,), (asked,), hash_of([asked]), "generic", run=name, arm=arm,
                                   base="tiny", key=f"{arm}-{n}", reference=reference))  # fmt: skip
        file = run / "answers" / "vicuna" / f"{arm.replace('/', '-')}.jsonl"
        file.write_text("".join(row.to_json() + "\n" for row in rows), "utf-8")
    return run


def recorded(run: Path, name: str = "calls.jsonl") -> list[dict[str, Any]]:
    """The lines of a file of calls; none where it is not there."""
    file = run / "judge" / name
    return [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]] if file.exists() else []
