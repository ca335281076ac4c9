"""A run directory -> what it tuned: the base, the adapter that lies on it, and how the run writes a prompt."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from shepherd.clients.personal.mixture import FILE as MIXTURE
from shepherd.config import Config
from shepherd.data.prompts import Template, build_template
from shepherd.data.tokenize import encode_prompt
from shepherd.data.values import Refusal
from shepherd.errors import ModelError, UsageError
from shepherd.model.adapter import load_adapter, save_adapter
from shepherd.model.base import Base, load_base
from shepherd.model.generate import generate
from shepherd.model.lora import CohortLora
from shepherd.model.outline import context_window
from shepherd.model.targets import pick_targets
from shepherd.model.threads import use_threads
from shepherd.recipe import load as load_config
from shepherd.server.merged_adapter import merged_adapter
from shepherd.store import open_run
from shepherd.store.adapters import FEDERATED, ArmName, arm_name, find_adapter
from shepherd.store.state import load_state
from shepherd.types import Adapter, GlobalModel, Message

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, eq=False)
class Tuned:
    """`lora` is a cohort of one slot that holds `adapter`; `with lora.attached():` the base computes with it.

    adapter: the whole increment, the remainder of a round inside.
    """

    name: str
    config: Config
    base: Base
    adapter: Adapter
    lora: CohortLora
    template: Template

    def generate(
        self,
        messages: str | Sequence[Message | Mapping[str, str]],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        bare: bool = False,
    ) -> str:
        """The answer to a question, or to a conversation of {"role", "content"} that ends with the user's turn.

        Temperature 0 is greedy; above it the answer is drawn from `seed`. bare: the base answers, without the adapter.
        Raises UsageError for a conversation that the template cannot represent or that leaves no room for an answer.
        """
        turns = [Message("user", messages)] if isinstance(messages, str) else [*map(_message, messages)]
        if not turns or turns[-1].role != "user":
            raise UsageError("there is no question", hint="a conversation ends with the user's turn")
        try:
            ids = encode_prompt(self.template, self.base.tokenizer, turns)
        except Refusal as reason:
            raise UsageError(f"the conversation cannot be asked: {reason}") from None
        window = context_window(self.base.model.config)
        room = max_new_tokens if window is None else min(max_new_tokens, window - len(ids))
        if room < 1:
            raise UsageError(f"the conversation has {len(ids)} tokens, and {self.name} reads {window}")
        (answer,) = generate(
            self.base.model,
            self.base.tokenizer,
            [ids],
            lora=None if bare else self.lora,
            stops=self.template.stops,
            max_new_tokens=room,
            temperature=temperature,
            seed=seed,
        )
        return answer.text

    def peft(self) -> PeftModel:
        """The same model as a `peft.PeftModel`, on a second copy of the base, for other tools."""
        from peft import PeftModel

        base = load_base(
            str(self.base.path),
            device=str(self.base.device),
            dtype=str(self.base.dtype).removeprefix("torch."),
            quantize=self.config.model.quantize,
        )
        conv1d = any(type(layer).__name__ == "Conv1D" for layer in self.lora.modules.values())
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(Path(folder), self.adapter, base_name=self.base.public_name, conv1d=conv1d)
            return PeftModel.from_pretrained(base.model, folder).eval()

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """The tuned model's logits float32[n, vocabulary] for n token ids."""
        self.lora.segments = None
        with self.lora.attached():
            return self.base.model(input_ids=torch.tensor([list(ids)], device=self.base.device)).logits[0].float()


def load_tuned(run_dir: ArmName | Path | str, *, round_number: int | None = None, shared: Base | None = None,
               dtype: str = "", device: str = "", quantize: str = "") -> Tuned:  # fmt: skip
    """The final adapter of a run, another of its adapters by name, or that of a round whose checkpoint was kept, on the
    run's base. Names are those of `store.adapters`: RUN, RUN:centralised, RUN:local/NAME, RUN@ROUND.

    `shared` is a base that is loaded already and used where the adapter belongs to it. `dtype`, `device` and
    `quantize` replace those of the run. Raises UsageError where the adapter is not there, ModelError where the base
    is no longer the one that the adapter was trained on.
    """
    wanted = named(run_dir, round_number)
    folder = open_run(wanted.run)
    config = load_config(folder / "config.toml")
    kept = find_adapter(wanted)
    if (kept.folder / MIXTURE).is_file():
        raise UsageError(
            f"{wanted} is a mixture of two adapters by the input, which neither chat nor an export has",
            hint=f"{folder}:{FEDERATED} is the global one of the two",
        )
    # A round keeps its remainder beside the adapter; the final adapter has it inside.
    learned = GlobalModel(load_adapter(kept.folder)) if kept.round is None else load_state(kept.folder).model
    adapter, model = learned.adapter, config.model
    if shared is not None and shared.digest == adapter.base_digest:
        base = shared
    else:
        use_threads(config.run.threads)
        base = load_base(
            model.base,
            revision=model.revision,
            device=device or model.device,
            dtype=dtype or model.dtype,
            quantize=quantize or model.quantize,
        )
    if adapter.base_digest != base.digest:
        raise ModelError(
            f"the adapter of {folder} belongs to another base: digest {adapter.base_digest[:12] or 'unknown'}, "
            f"{model.base} has {base.digest[:12]}",
            hint="use the base model that the run used, in the same revision (model.base in its config.toml)",
        )
    names = pick_targets(base.model, tuple(adapter.factors))
    modules = {name: base.model.get_submodule(name) for name in names}
    lora = CohortLora(modules, device=base.device).load(learned)
    name = folder.resolve().name
    name = kept.name(name) if kept.round is None else f"{name} round {kept.round}"
    template = build_template(config.data.template, base.tokenizer)
    return Tuned(name, config, base, merged_adapter(learned), lora, template)


def named(run_dir: ArmName | Path | str, round_number: int | None = None) -> ArmName:
    """The name of an adapter, with the round that was given beside it. Raises UsageError for a round of another arm."""
    wanted = run_dir if isinstance(run_dir, ArmName) else arm_name(run_dir)
    if round_number is None:
        return wanted
    if wanted != ArmName(wanted.run):
        raise UsageError(
            f"{wanted} is one adapter, and round {round_number} another", hint=f"{wanted.run}@{round_number}"
        )
    return wanted._replace(round=round_number)


def _message(turn: Message | Mapping[str, str]) -> Message:
    if isinstance(turn, Message):
        return turn
    if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
        raise UsageError(f'a turn is {{"role": …, "content": …}}, got {turn!r}')
    return Message(turn["role"], turn["content"])
