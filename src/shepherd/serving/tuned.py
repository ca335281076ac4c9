"""A run directory -> what it tuned: the base, the adapter that lies on it, and how the run writes a prompt."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shepherd.config import Config
from shepherd.data.prompts import Template, build_template
from shepherd.errors import ModelError, UsageError
from shepherd.model.adapter import load_adapter
from shepherd.model.base import Base, load_base
from shepherd.model.lora import CohortLora
from shepherd.model.targets import pick_targets
from shepherd.model.threads import use_threads
from shepherd.recipe import load as load_config
from shepherd.store import MANIFEST, Rounds, check_sealed, checkpoint_name, open_run
from shepherd.store.state import load_state
from shepherd.types import Adapter, GlobalModel


@dataclass(frozen=True, eq=False)
class Tuned:
    """`lora` is a cohort of one slot that holds `adapter`; `with lora.attached():` the base computes with it."""

    name: str
    config: Config
    base: Base
    adapter: Adapter
    lora: CohortLora
    template: Template

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """The tuned model's logits float32[n, vocabulary] for n token ids."""
        self.lora.segments = None
        with self.lora.attached():
            return self.base.model(input_ids=torch.tensor([list(ids)], device=self.base.device)).logits[0].float()


def load_tuned(run_dir: Path | str, *, round_number: int | None = None, shared: Base | None = None, dtype: str = "",
               device: str = "", quantize: str = "") -> Tuned:  # fmt: skip
    """The final adapter of a run, or that of a round whose checkpoint was kept, on the run's base.

    `shared` is a base that is loaded already and used where the adapter belongs to it. `dtype`, `device` and
    `quantize` replace those of the run. Raises UsageError where the adapter is not there, ModelError where the base
    is no longer the one that the adapter was trained on.
    """
    folder = open_run(run_dir)
    config = load_config(folder / "config.toml")
    place = adapter_folder(folder, round_number)
    # A round keeps its remainder beside the adapter; the final adapter has it inside.
    learned = GlobalModel(load_adapter(place)) if round_number is None else load_state(place).model
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
    name = folder.resolve().name + (f" round {round_number}" if round_number is not None else "")
    return Tuned(name, config, base, adapter, lora, build_template(config.data.template, base.tokenizer))


def adapter_folder(run_dir: Path, round_number: int | None = None) -> Path:
    """Where a run keeps its final adapter, or that of a round.

    Raises UsageError with the rounds that there are, ModelError where it is not what was committed.
    """
    rounds = Rounds(run_dir / "checkpoints")
    kept = ", ".join(map(str, rounds.numbers()))
    if round_number is None:
        if (run_dir / "adapter").is_dir():
            return whole(run_dir / "adapter", "; chat and evaluate take a round with --round: " + kept if kept else "")
        place, finished = shlex.quote(str(run_dir)), (run_dir / "summary.json").exists()
        again = f"shepherd run {shlex.quote(f'{run_dir}/config.toml')}" if finished else f"shepherd resume {place}"
        raise UsageError(
            f"{run_dir} has no adapter" + ("" if finished else ": the run did not get to its end"),
            hint=again + (f"; shepherd evaluate and chat take a round with --round: {kept}" if kept else ""),
        )
    folder = rounds.folder / checkpoint_name(round_number)
    if round_number not in rounds.numbers():
        raise UsageError(
            f"{run_dir} has no checkpoint of round {round_number}",
            hint=f"rounds with a checkpoint: {kept or 'none'} (checkpoints.keep says how many stay)",
        )
    try:
        return rounds.verify(folder.name).folder
    except ValueError as damage:
        raise ModelError(
            f"the checkpoint {folder} is damaged: {damage}", hint=f"choose another round with --round: {kept}"
        ) from None


def whole(folder: Path, instead: str = "") -> Path:
    """`folder` again, each file that its manifest names read and found as it was committed: adapter/, personal/ and
    clusters/ of a run have one. A folder without a manifest, such as another tool's adapter, is taken as it is.

    Raises ModelError that names the first file that is damaged; `instead` adds to the hint.
    """
    if not os.path.lexists(folder / MANIFEST):
        return folder
    try:
        check_sealed(folder)
    except (ValueError, OSError) as damage:
        raise ModelError(
            f"{folder} is damaged: {damage}",
            hint="restore it from a copy, or repeat the run with shepherd run and its config.toml; "
            f"if the change is meant, delete {folder / MANIFEST}{instead}",
        ) from None
    return folder
