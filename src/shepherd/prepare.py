"""Config -> everything that training needs: base, template, tokens per client, held-out rows, adapters' shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import psutil
import torch
from transformers import PretrainedConfig

from shepherd.clients.learning_rates import effective_steps, learning_rates
from shepherd.clients.settings import LocalTraining
from shepherd.clients.slots import probe_work
from shepherd.clients.training import Site
from shepherd.clients.virtual_clock import virtual_seconds
from shepherd.config import Config, TrainingTable
from shepherd.data.audit import Audit, audit
from shepherd.data.prompts import Template, build_template
from shepherd.data.sources import Dataset, losses
from shepherd.data.tally import sentences
from shepherd.data.tokenize import Tokenized, tokenize
from shepherd.dividing import divide_rows, natural_key, read_held_out, read_rows, remarks
from shepherd.engines.local import LocalEngine
from shepherd.errors import UsageError, plural
from shepherd.fitting import (
    check_clients,
    check_length,
    client_ranks,
    prepare_method,
    prepare_personal,
    prepare_selection,
    rate_ratio,
)
from shepherd.model.adapter import fresh_adapter
from shepherd.model.base import Base, load_base
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.slots import features
from shepherd.model.targets import pick_targets
from shepherd.model.threads import use_threads
from shepherd.plan import Plan, Policy
from shepherd.server.method import Method
from shepherd.server.weights import population_weights
from shepherd.types import Adapter, Choice, ClientId, Example, Objective, Partition, Tokens, Work
from shepherd.updates.gate import Gate, Limits

TOKENS_PER_PASS = {"cpu": 512, "mps": 4096, "cuda": 16384}


@dataclass(frozen=True)
class Rows:
    """The data of a run: who trains on what, and what is held out for everyone.

    notes: the sentences among the warnings that no count of `dataset` or `tokenized` stands for. details: a warning
    that stands for several cases -> a sentence for each of them. day: the day that the template writes into every
    prompt, or "".
    """

    dataset: Dataset
    examples: Mapping[str, Example]
    partition: Partition
    clients: Mapping[ClientId, tuple[Tokens, ...]]
    held_out: tuple[Tokens, ...]
    tokenized: Tokenized
    audit: Audit
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    details: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    day: str = ""

    def held_out_of(self, client: ClientId) -> list[int]:
        """Indices of the client's own held-out rows: of its categories, or of its sources where those divide."""
        key = natural_key(self.partition.settings)
        own = {getattr(row, key) for row in self.clients[client]}
        return [i for i, row in enumerate(self.held_out) if getattr(row, key) in own]


def prepare_rows(config: Config, tokenizer, tell: Callable[[str], None] | None = None) -> tuple[Rows, Template]:
    """Read, tokenise, hold out, divide and audit the data; `tell` is called with lines about what takes long.

    Raises DataError for data that cannot be used."""
    data = config.data
    dataset = read_rows(config, tell=tell)
    template = build_template(data.template, tokenizer)
    tokenized = tokenize(dataset.examples, tokenizer, template, data.max_length, tell)
    usable = [e for e in dataset.examples if e.id in tokenized.by_id]
    tokens = dict(tokenized.by_id)
    lost, beside = [*losses(dataset), *_losses_of_tokens(tokenized)], []
    extra, apart = read_held_out(config, dataset), None
    if extra is not None:
        kept = tokenize(extra.examples, tokenizer, template, data.max_length)
        tokens |= kept.by_id
        apart = [e for e in extra.examples if e.id in kept.by_id]
        where = data.held_out_source or "held-out rows"
        beside = [f"{where}: {note}" for note in (*losses(extra), *_losses_of_tokens(kept))]
    train, held_out, partition = divide_rows(config, usable, apart)
    details = remarks(config, dataset, usable, held_out if extra is None else None, partition)
    examples = {e.id: e for e in (*train, *held_out)}
    found = audit(partition, train, held_out, tokenized, dataset)
    if overlap := found["train and held-out overlap"].count:
        lost.append(
            f"{overlap} of {len(held_out)} held-out rows ask what is also trained on: their loss flatters the model"
        )
    if line := found.summary(
        beside=("train and held-out overlap", "empty answers", "other refusals", "over-long rows")
    ):
        lost.append(f"{line} (shepherd data inspect names them)")
    return Rows(
        dataset=dataset,
        examples=examples,
        partition=partition,
        clients={c: tuple(tokens[i] for i in ids) for c, ids in partition.clients.items()},
        held_out=tuple(tokens[e.id] for e in held_out),
        tokenized=tokenized,
        audit=found,
        warnings=(*details, *lost, *beside, *template.notes),
        notes=(*filter(None, [dataset.unread]), *dataset.notes, *beside, *template.notes),
        details=details,
        day=template.day,
    ), template  # fmt: skip


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


def context_window(shape: PretrainedConfig) -> int | None:
    """The most positions that the model was made for, or None where it does not say."""
    return getattr(shape.get_text_config(), "max_position_embeddings", None)


@dataclass(frozen=True)
class Learner:
    """The frozen base as a cohort's engine needs it, and the adapter that changes nothing yet."""

    packed: PackedModel
    make_lora: Callable[[], CohortLora]
    settings: LocalTraining
    adapter: Adapter
    base_name: str
    conv1d: bool

    def site(self, data: Mapping[ClientId, Sequence[Tokens]]) -> Site:
        """Where the clients with these rows are trained."""
        return Site(self.packed, self.make_lora, self.settings, data)


def prepare_learner(config: Config, base: Base) -> Learner:
    """Wrap the base for packed passes and lay out the adapters."""
    names = pick_targets(base.model, config.lora.targets)
    modules = {name: base.model.get_submodule(name) for name in names}
    sizes = {name: features(layer) for name, layer in modules.items()}
    lora = config.lora
    adapter = fresh_adapter(
        sizes, lora.r, lora.alpha, config.run.seed, rslora=lora.rslora, base_digest=base.digest
    )  # fmt: skip

    def make_lora() -> CohortLora:
        return CohortLora(modules, dropout=lora.dropout, device=base.device)

    packed = PackedModel(base.model)
    packed.check_called(modules)
    return Learner(
        packed=packed,
        make_lora=make_lora,
        settings=local_training(config, base.device, adapter.num_parameters),
        adapter=adapter,
        base_name=base.public_name,
        conv1d=any(type(layer).__name__ == "Conv1D" for layer in modules.values()),
    )


def worker_engine(
    config: Config, threads: int, data: Mapping[ClientId, Sequence[Tokens]]
) -> tuple[LocalEngine, str, str]:
    """An engine for some clients in a process of its own, and the digests of its base and tokenizer.

    The config is a resolved one.
    """
    use_threads(threads)
    base = load_base(**config.model.model_dump())
    learner = prepare_learner(config, base)
    return LocalEngine(learner.site(data)), base.digest, base.tokenizer_digest


def local_training(config: Config, device: torch.device, parameters: int) -> LocalTraining:
    """The clients' settings; where the recipe says 0, tokens per pass by device and clients at once by memory."""
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
        personal=prepare_personal(config, prepare_method(config)),
    )


def share(rows: int, training: TrainingTable) -> tuple[int, int]:
    """(rows, optimizer steps) of a client with so many rows in one round; a batch is never larger than the client."""
    batch = min(training.batch_size, rows)
    if training.local_steps:
        return training.local_steps * batch, training.local_steps
    asked = max(1, round(training.local_epochs * rows))
    return asked, math.ceil(asked / batch)


def peak_rate(config: Config, arm: str = "federated") -> float:
    """The peak learning rate of an arm: its own where one is set, or that of the federated arm."""
    return config.evaluation.own_rates.get(arm, config.training.learning_rate)


def rates(config: Config, steps: int, round_number: int, arm: str = "federated") -> tuple[float, ...]:
    """The learning rates of a client's steps in a round (from 1)."""
    t = config.training
    return learning_rates(
        peak_rate(config, arm),
        steps,
        least=t.min_learning_rate,
        schedule=t.schedule,
        over=t.schedule_over,
        round_index=round_number - 1,
        rounds=config.federation.rounds,
        warmup_steps=t.warmup_steps,
        warmup_rounds=t.warmup_rounds,
    )


def base_weights(base: Base, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The weights [out, in] of the adapted layers in float32. Raises UsageError for a quantised base."""
    found = {}
    for name in names:
        layer = base.model.get_submodule(name)
        if not layer.weight.is_floating_point():
            raise UsageError(
                f"the method begins from the base's weights, and those of {name} are quantised",
                hint='set model.quantize = "none"',
            )
        weight = layer.weight.detach().float().cpu().numpy()
        found[name] = weight.T if type(layer).__name__ == "Conv1D" else weight
    return found


def prepare_plan(config: Config, rows: Rows) -> Plan:
    """What stays the same over the rounds; the gate still lacks the run's id and the tokenizer's digest.

    Raises the UsageError of `check_clients`.
    """
    federation = config.federation
    check_clients(config, tuple(sorted(rows.clients)), rows.partition.labels)
    method = prepare_method(config)
    ranks = client_ranks(config.lora, sorted(rows.clients), rows.partition.labels)

    def work(client: ClientId, round_number: int, first_row: int) -> Work:
        count, steps = share(len(rows.clients[client]), config.training)
        return Work(client, first_row, count, rates(config, steps, round_number))

    clients = tuple(sorted(rows.clients))
    sizes = {client: len(rows.clients[client]) for client in clients}
    selection, size = prepare_selection(config, method, clients)
    return Plan(
        seed=config.run.seed,
        clients=clients,
        cohort_size=size,
        select=selection,
        method=replace(method, population=population_weights(sizes, federation.weights, federation.max_weight)),
        weights=federation.weights,
        min_updates=federation.min_updates,
        work=work,
        rank=ranks.__getitem__,
        objective=Objective(**config.objective.model_dump() | {"rate_ratio": rate_ratio(config)}),
        policy=Policy(
            on_too_few=federation.on_too_few,
            retries=federation.retries,
            over_select=federation.over_select,
            deadline=federation.deadline,
            quarantine_after=federation.quarantine_after,
            max_weight=federation.max_weight,
            clock=lambda work, number: virtual_seconds(config.run.seed, work, number),
        ),
        sizes=sizes,
        clusters=prepare_personal(config, method).clusters,
        probed={
            c: _probed_rows(method, work(c, 1, 0), len(rows.clients[c])) for c in clients if ranks[c] < config.lora.r
        },
        gate=partial(Gate, Limits(norm=federation.max_update_norm)),
        effective_steps=lambda work, steps, number: _effective_steps(config, method, work, steps, number),
    )


def _effective_steps(config: Config, method: Method, work: Work, steps: int, round_number: int) -> float:
    """FedNova's τ_k, in steps of the recipe's learning rate; all clients have that unit, whatever their first rate.

    With rate_ratio ≠ 1 the proximal term shrinks A and B by unlike factors, and A's are taken where A moves. Adam, and
    the proximal term on increments, have no a_k: there it is the sum of the rates.
    """
    training, objective = config.training, config.objective
    given = work.learning_rates[:steps]
    if training.optimizer != "sgd":
        return effective_steps(given, training.learning_rate)
    both = any("A" in moves for moves in method.pieces.train.of(round_number)[0])
    ratio = 1.0 if both else rate_ratio(config)
    mu = objective.proximal if objective.proximal_form == "factors" else 0.0
    peak = ratio * training.learning_rate
    return effective_steps([ratio * rate for rate in given], peak, training.momentum, mu)


def _probed_rows(method: Method, work: Work, held: int) -> int:
    """Rows of the probe of a client that has to choose its slots, in a round of this work."""
    steps = method.pieces.view.probe
    return 0 if steps is None else probe_work(work, Choice(0, steps), held).rows


def _losses_of_tokens(tokenized: Tokenized) -> Iterator[str]:
    """What tokenising left out or changed, a sentence for each reason."""
    yield from sentences("refused", tokenized.refused)
    yield from sentences("changed", tokenized.changed)
    if tokenized.cut_rows:
        cut, tokens = plural(tokenized.cut_rows, "row"), plural(tokenized.cut_tokens, "token")
        yield f"{cut} cut to data.max_length, {tokens} in all"
