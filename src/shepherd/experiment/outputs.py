"""The outputs of a run: the adapter as a PEFT folder, checked by reading it back, and answers by generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from shepherd._version import __version__
from shepherd.errors import EvaluationError
from shepherd.evaluation.answers import generation_record
from shepherd.evaluation.row_losses import RowLosses
from shepherd.experiment.arms import POOLED, TrainedArm
from shepherd.experiment.federated import Federated
from shepherd.experiment.inputs import Inputs
from shepherd.experiment.privacy_account import statement_of
from shepherd.experiment.session import Session
from shepherd.model.adapter import load_adapter
from shepherd.model.adapter import save_adapter as write_adapter
from shepherd.model.adapter_card import adapter_card
from shepherd.model.generate import generate
from shepherd.model.outline import context_window
from shepherd.report.guarantee import guarantee_sentence
from shepherd.round import Engine
from shepherd.server.merged_adapter import merged_adapter
from shepherd.types import GlobalModel


@dataclass(frozen=True)
class Answers:
    """Lines of generations.jsonl, and why they are fewer than evaluation.generate: a sentence, or ""."""

    records: list[dict[str, Any]]
    missing: str


def save_adapter(
    inputs: Inputs, federated: Federated, base_losses: RowLosses, engine: Engine, session: Session
) -> dict[str, float]:
    """Write the final adapter, then read it back and measure it again: {"loss": …, "difference": …} in nats per token.

    Raises EvaluationError where the adapter on disk does not give the reported loss.
    """
    base, trainer, data, store = inputs.base, inputs.trainer, inputs.data, session.store
    state, reported = federated.state, federated.losses.stat.mean
    guarantee = statement_of(inputs.plan, inputs.config.privacy.publish_nothing)
    merged = merged_adapter(state.model)
    with session.reporter.phase("save adapter"):
        with store.commit_folder("adapter") as folder:
            write_adapter(folder, merged, base_name=trainer.base_name, conv1d=trainer.conv1d)
            base.tokenizer.save_pretrained(folder)
            card = adapter_card(
                merged,
                base=base.name,
                base_licence=base.licence,
                data=data.dataset.name,
                data_licence=data.dataset.licence,
                rows=None if guarantee else sum(map(len, data.clients.values())),
                clients=len(data.clients),
                rounds=state.round,
                loss_before=base_losses.stat.mean,
                loss_after=reported,
                version=__version__,
                privacy=guarantee_sentence(guarantee) if guarantee else "",
            )
            (folder / "README.md").write_text(card, encoding="utf-8")
        with session.reporter.clock.on("evaluate"):
            model = GlobalModel(load_adapter(store.path / "adapter"))
            again = engine.evaluate(model, data.held_out).stat.mean
        # In bfloat16 a remainder beside the base is rounded otherwise than the same increment inside the adapter.
        rounded = bool(state.model.remainder) and base.dtype != torch.float32
        if not abs(again - reported) <= (2e-3 if rounded else 1e-4) * (1 + abs(reported)):
            raise EvaluationError(
                f"the adapter on disk has held-out loss {again:.6f}, the one in memory had {reported:.6f}",
                hint=f"do not use {store.path / 'adapter'}; this is a bug, please report it",
            )
    return {"loss": again, "difference": again - reported}


def generate_answers(
    inputs: Inputs, model: GlobalModel, baselines: Mapping[str, TrainedArm], session: Session
) -> Answers:
    """Answers of each arm that has one model to held-out prompts, in generations.jsonl."""
    base, trainer = inputs.base, inputs.trainer
    with session.reporter.phase("generate"):
        examples, prompts, missing = inputs.generation.prompts(
            inputs.data.held_out, inputs.data.examples, inputs.template, base.tokenizer,
            context_window(base.model.config),
        )  # fmt: skip
        if missing:
            session.reporter.warn(missing)
        if not prompts:
            return Answers([], missing)
        models: dict[str, GlobalModel | None] = {"base": None, "federated": model}
        models |= {name: GlobalModel(arm.adapters[POOLED]) for name, arm in baselines.items() if not arm.per_client}
        answers = {}
        for name, tuned in models.items():
            answers[name] = generate(
                base.model,
                base.tokenizer,
                prompts,
                lora=None if tuned is None else trainer.make_lora().load(tuned),
                stops=inputs.template.stops,
                max_new_tokens=inputs.generation.max_new_tokens,
            )
        records = [
            generation_record(example, {arm: each[i] for arm, each in answers.items()})
            for i, example in enumerate(examples)
        ]
        session.store.write_lines("evaluation/generations.jsonl", records)
    return Answers(records, missing)
