"""Models that answer questions, by what holds them: an arm of a run, an adapter's folder, a model's folder or id.

model = run_model(arm_name("runs/demo:centralised"))
bare = run_model(arm_name("runs/demo:base"), model)         # over the same base, loaded once
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shepherd.config import ModelTable
from shepherd.data.prompts import build_template
from shepherd.errors import ModelError
from shepherd.model.adapter import CONFIG, digest, load_adapter
from shepherd.model.base import Base, load_base
from shepherd.model.digest import read_small
from shepherd.model.lora import CohortLora
from shepherd.model.targets import pick_targets
from shepherd.model.threads import use_threads
from shepherd.recipe import load as load_config
from shepherd.serving.answering import LocalModel
from shepherd.serving.tuned import load_tuned
from shepherd.store import open_run
from shepherd.store.adapters import ArmName

Dtype = Literal["auto", "float32", "bfloat16"]
BASE = "base"
"""The arm of the bare base."""


@dataclass
class SharedBase:
    """The base that was loaded last, for all arms on it. It is dropped before another is loaded."""

    table: ModelTable | None = None
    base: Base | None = None

    def load(self, table: ModelTable) -> Base:
        """The base of this table, loaded unless it is the last one. Raises ModelError and others as `load_base`."""
        if self.base is None or self.table != table:
            self.table = self.base = None
            self.base, self.table = _base(table), table
        return self.base


def run_model(arm: ArmName, shared: SharedBase | None = None) -> LocalModel:
    """An arm of a run, "base" included, on the base that is shared where the run has the same.

    Raises UsageError and ModelError as `load_tuned`.
    """
    config = load_config(open_run(arm.run) / "config.toml")
    use_threads(config.run.threads)
    base = (shared or SharedBase()).load(config.model)
    if arm.arm == BASE and arm.round is None:
        return LocalModel(base, None, build_template(config.data.template, base.tokenizer), config.model)
    tuned = load_tuned(arm, shared=base)
    return LocalModel(base, tuned.lora, tuned.template, config.model, digest(tuned.adapter))


def adapter_model(folder: Path, base: str = "", template: str = "auto", dtype: Dtype = "auto") -> LocalModel:
    """A PEFT folder on the base that it names, or on `base`. Raises ModelError where that is another one."""
    adapter = load_adapter(folder)
    recorded = json.loads(read_small(folder / CONFIG))
    name = base or str(recorded.get("base_model_name_or_path") or "")
    if not name:
        raise ModelError(f"{folder / CONFIG} does not name its base", hint="name it with --base")
    table = ModelTable(base=name, revision="" if base else str(recorded.get("revision") or ""), dtype=dtype)
    loaded = _base(table)
    if adapter.base_digest and adapter.base_digest != loaded.digest:
        raise ModelError(
            f"the adapter in {folder} belongs to another base: digest {adapter.base_digest[:12]}, {name} has "
            f"{loaded.digest[:12]}",
            hint="name its base with --base",
        )
    names = pick_targets(loaded.model, tuple(adapter.factors))
    modules = {name: loaded.model.get_submodule(name) for name in names}
    lora = CohortLora(modules, device=loaded.device).hold([adapter])
    return LocalModel(loaded, lora, build_template(template, loaded.tokenizer), table, digest(adapter), adapter.scale)


def whole_model(name: str, template: str = "auto", dtype: Dtype = "auto") -> LocalModel:
    """A model by itself, merged or not: a folder, a GGUF file, a built-in name or an id of the hub in the cache."""
    table = ModelTable(base=name, dtype=dtype)
    base = _base(table)
    return LocalModel(base, None, build_template(template, base.tokenizer), table)


def _base(table: ModelTable) -> Base:
    return load_base(
        table.base, revision=table.revision, device=table.device, dtype=table.dtype, quantize=table.quantize
    )
