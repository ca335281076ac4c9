"""What trains a client in a run: the base with its adapters, and the settings of local training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch
from transformers import PretrainedConfig, PreTrainedModel

from shepherd.clients.personal.methods import Personalization
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost
from shepherd.config import Config
from shepherd.engines.local import LocalEngine
from shepherd.errors import UsageError
from shepherd.experiment.method import Composition, check_length, compose
from shepherd.model.adapter import fresh_adapter
from shepherd.model.base import Base, load_base
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.outline import context_window
from shepherd.model.slots import features
from shepherd.model.targets import pick_targets
from shepherd.model.threads import use_threads
from shepherd.types import Adapter, ClientId, Tokens
from shepherd.updates.privacy.example_account import ExampleAccounts, empty_ledger
from shepherd.updates.privacy.ledger import Ledger

TOKENS_PER_PASS = {"cpu": 512, "mps": 4096, "cuda": 16384}


def check_window(config: Config, shape: PretrainedConfig) -> None:
    """Raise UsageError where rows may be longer than the model's window of positions."""
    check_length(config, context_window(shape))
    kind, first = _changing_rope(shape)
    if first and config.data.max_length > first:
        raise UsageError(
            f"data.max_length = {config.data.max_length}: with a row of more than {first:,} tokens {config.model.base} "
            f"turns the positions of all rows of a pass by other angles (rope_type = {kind!r}), so a row would depend "
            "on the rows beside it",
            hint=f"set data.max_length to at most {first}",
        )


def _changing_rope(shape: PretrainedConfig) -> tuple[str, int | None]:
    """The kind of rotary positions that depend on the longest row of a pass, and the length from which they do."""
    text = shape.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    for table in (rope, *(value for value in rope.values() if isinstance(value, Mapping))):
        if table.get("rope_type") in ("dynamic", "longrope"):
            original = table.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None) or context_window(shape)
            return str(table["rope_type"]), original
    return "", None


@dataclass(frozen=True)
class Trainer:
    """The frozen base as a cohort's engine needs it, and the adapter that changes nothing yet."""

    packed: PackedModel
    make_lora: Callable[[], CohortLora]
    settings: LocalTraining
    adapter: Adapter
    base_name: str
    conv1d: bool

    def host(self, data: Mapping[ClientId, Sequence[Tokens]]) -> TrainingHost:
        """The host on which the clients with these rows are trained."""
        return TrainingHost(self.packed, self.make_lora, self.settings, data)


@dataclass(frozen=True)
class Layout:
    """The layers that carry an adapter, and the adapter that changes nothing yet. The model may lie on the meta device:
    shapes are all that is read."""

    adapter: Adapter
    modules: Mapping[str, torch.nn.Module]

    @property
    def conv1d(self) -> bool:
        """Whether the layers hold their weights as GPT-2's do."""
        return any(type(layer).__name__ == "Conv1D" for layer in self.modules.values())


def lay_out(config: Config, model: PreTrainedModel, base_digest: str) -> Layout:
    """The adapter of a recipe on a model. Raises UsageError for targets that are not there."""
    lora = config.lora
    modules = {name: model.get_submodule(name) for name in pick_targets(model, lora.targets)}
    sizes = {name: features(layer) for name, layer in modules.items()}
    fresh = fresh_adapter(sizes, lora.r, lora.alpha, config.run.seed, rslora=lora.rslora, base_digest=base_digest)
    return Layout(fresh, modules)


def prepare_trainer(config: Config, composition: Composition, base: Base) -> Trainer:
    """Wrap the base for packed passes and lay out the adapters."""
    layout = lay_out(config, base.model, base.digest)
    modules, adapter = layout.modules, layout.adapter

    def make_lora() -> CohortLora:
        return CohortLora(modules, dropout=config.lora.dropout, device=base.device)

    packed = PackedModel(base.model)
    packed.check_called(modules)
    return Trainer(
        packed=packed,
        make_lora=make_lora,
        settings=local_training(config, composition.personal, base.device, adapter.num_parameters),
        adapter=adapter,
        base_name=base.public_name,
        conv1d=layout.conv1d,
    )


def worker_engine(
    config: Config,
    threads: int,
    data: Mapping[ClientId, Sequence[Tokens]],
    open_ledger: Callable[[ClientId], Ledger] = empty_ledger,
) -> tuple[LocalEngine, str, str]:
    """The engine of a worker process for some clients, and the digests of its base and tokenizer.

    The config is a resolved one. open_ledger: of the clients' privacy accounts.
    """
    use_threads(threads)
    base = load_base(**config.model.model_dump())
    trainer, privacy = prepare_trainer(config, compose(config), base), config.privacy
    accounts = ExampleAccounts(privacy.delta, privacy.epsilon, open_ledger)
    return LocalEngine(replace(trainer.host(data), account=accounts.enter)), base.digest, base.tokenizer_digest


def local_training(config: Config, personal: Personalization, device: torch.device, parameters: int) -> LocalTraining:
    """The clients' settings; where the recipe has 0, tokens per pass by device and clients at once by memory."""
    t = config.training
    # All memory, not what is free now: the cut changes the last bits, and those must repeat on the same machine.
    memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else psutil.virtual_memory().total
    fit = max(1, int(0.1 * memory / (16 * parameters)))  # float32: value, gradient, two moments
    return LocalTraining(
        optimizer=t.optimizer,
        weight_decay=t.weight_decay,
        momentum=t.momentum,
        betas=t.betas,
        max_grad_norm=t.max_grad_norm,
        dropout=config.lora.dropout,
        gradient_checkpointing=t.gradient_checkpointing,
        tokens_per_pass=t.tokens_per_pass or TOKENS_PER_PASS[device.type],
        clients_at_once=t.clients_at_once or fit,
        personal=personal,
    )


def base_weights(base: Base, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The weights [out, in] of the adapted layers in float32. Raises UsageError for a quantised base."""
    found = {}
    for name in names:
        layer = base.model.get_submodule(name)
        kept = layer.get_parameter("weight")
        if not kept.is_floating_point():
            raise UsageError(
                f"the method begins from the base's weights, and those of {name} are quantised",
                hint='set model.quantize = "none"',
            )
        weight = kept.detach().float().cpu().numpy()
        found[name] = weight.T if type(layer).__name__ == "Conv1D" else weight
    return found
