"""The cost of a run before it starts: `plan(config)` reads and divides the data, loads no weights and trains nothing.

Bytes are those of a run in which every sampled client replies; where they depend on more than that, `bytes_up_are` is
"about" or "at most". Time and memory are estimates: the products of a pass at a share of the
measured matrix-product peak, and the tensors that a decoder block of the usual shape keeps for its backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shepherd.config import Config
from shepherd.experiment.checks import Checked
from shepherd.experiment.division import shared_prompts
from shepherd.experiment.example_privacy import example_forecast, extra_slots
from shepherd.experiment.method import Composition, compose, doubts
from shepherd.experiment.named_clients import kept_names, local_names
from shepherd.experiment.plan import prepare_plan
from shepherd.experiment.privacy_account import forecast, privacy_warnings
from shepherd.experiment.progress import training_tokens
from shepherd.experiment.rows import FederatedData, prepare_generation, prepare_rows
from shepherd.experiment.schedule import Schedule, prepare_schedule
from shepherd.experiment.trainer import check_window, local_training
from shepherd.model.adapter import fresh_adapter
from shepherd.model.base import check_fit, check_folder, check_quantize, load_tokenizer, pick_device, pick_dtype
from shepherd.model.fetch import resolve
from shepherd.model.folder import inspect_folder
from shepherd.model.outline import check_packable, context_window, load_config, outline
from shepherd.model.slots import features
from shepherd.model.targets import pick_targets, reach
from shepherd.model.threads import matmul_peak, use_threads
from shepherd.round import Plan, draw_cohort
from shepherd.server.traffic import bounds, round_bytes
from shepherd.types import Adapter, ClientId, GlobalModel, ServerState, Work
from shepherd.updates.replies import Replies

PEAK_SHARE = 0.5  # of the matrix-product peak that a whole training step reaches
PROCESS_BYTES = 700e6  # Python, torch and transformers before any tensor of ours


@dataclass(frozen=True)
class Estimate:
    """Sizes of a run. `seconds` and `memory_bytes` are estimates; `bytes_up_are` is "exact", "about" or "at most".

    adapted_share: how much of the weights of the model's blocks carries an adapter. learning_rates: the peak of each
    arm. privacy: what its differential privacy will guarantee and the noise that it adds, None without. warnings: what
    a run would warn of before it begins. details: a warning that stands for several cases -> a
    sentence for each of them.
    """

    model_parameters: int
    adapter_parameters: int
    adapted_share: float
    dtype: str
    device: str
    rows: int
    train_rows: int
    held_out_rows: int
    clients: int
    cohort: int
    rounds: int
    rows_per_client: tuple[int, ...]
    steps_per_round: tuple[int, ...]
    learning_rates: dict[str, float]
    tokens: dict[str, int]
    bytes_up: int
    bytes_up_are: str
    bytes_down: int
    bytes_down_are: str
    memory_bytes: int
    disk_bytes: int
    seconds: float
    privacy: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    details: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def plan(config: Config, progress: Callable[[str], None] | None = None) -> Estimate:
    """Sizes, bytes, memory, disk and time of a run of `config`; `progress` is called with lines about what takes long.

    Raises what the run would raise for bad input."""
    return plan_checked(Checked(config, compose(config), None), progress)


def plan_checked(checked: Checked, progress: Callable[[str], None] | None = None) -> Estimate:
    """The same of a recipe that is checked, with what the checks have built."""
    config, composition = checked.config, checked.composition
    use_threads(config.run.threads)
    check_quantize(config.model.quantize, pick_device(config.model.device))
    folder = resolve(config.model.base, config.model.revision)
    check_folder(folder)
    tokenizer = load_tokenizer(folder)
    shape = load_config(folder)
    check_fit(folder, shape.get_text_config().vocab_size, tokenizer)
    rows, template = prepare_rows(config, tokenizer, progress, checked.sources)
    window = context_window(shape)
    *_, unanswered = prepare_generation(config).prompts(rows.held_out, rows.examples, template, tokenizer, window)
    schedule = prepare_schedule(config)
    rounds = prepare_plan(config, composition, rows.sizes, schedule, rows.partition.labels)
    found = estimate(config, composition, folder, rows, schedule, rounds)
    shared = shared_prompts(config, rows.dataset, rows.examples.values())
    warnings = (
        *doubts(config),
        *privacy_warnings(rounds, schedule.rounds),
        *found.warnings,
        *rows.warnings,
        *filter(None, [unanswered, shared]),
    )
    return replace(found, warnings=warnings, details=rows.details)


def estimate(
    config: Config,
    composition: Composition,
    folder: Path,
    rows: FederatedData,
    schedule: Schedule,
    rounds: Plan,
    *,
    timed: bool = True,
) -> Estimate:
    """The same of rows and a plan that are prepared. Without `timed` it measures nothing and gives 0 seconds.

    Its warnings are about the model alone.
    """
    device = pick_device(config.model.device)
    dtype = pick_dtype(config.model.dtype, device)
    names = local_names(config, tuple(rows.clients), rows.partition.labels)
    kept = kept_names(config, composition.baselines, tuple(rows.clients), rows.partition.labels)
    model, unread = outline(folder)
    shape = model.config
    check_window(config, shape)
    check_packable(model)
    targets = pick_targets(model, config.lora.targets)
    adapted = reach(model, config.lora.targets, targets)
    sizes = {name: features(model.get_submodule(name)) for name in targets}
    adapter = fresh_adapter(sizes, config.lora.r, config.lora.alpha, config.run.seed, rslora=config.lora.rslora)
    settings = local_training(config, composition.personal, device, adapter.num_parameters)
    work = {c: rounds.work(c, 1, 0) for c in rows.clients}

    count, personal = config.federation.rounds, settings.personal
    tokens = training_tokens(schedule, composition.baselines, rows, rounds, names, personal.cost)
    trained = sum(tokens.values())
    held_out = sum(len(t.input_ids) for t in rows.held_out)
    tokens["evaluation"] = held_out * _evaluations(config, composition, len(names))
    if composition.personal_models:  # each on the client's own held-out rows
        tokens["evaluation"] += sum(len(rows.held_out[i].input_ids) for c in rows.clients for i in rows.held_out_of(c))
    later = count - 1 if rounds.clusters else 0  # rounds in which there are clusters already
    if rounds.clusters:
        tokens["choice of clusters"] = rounds.clusters * _judged(rows, rounds, work, personal.rows, later)
    measured = sum(tokens.values()) - trained

    up, down, up_are, down_are = _traffic(rounds, adapter, count)
    alone = any(arm.per_client for arm in composition.baselines)
    slots = min(max(rounds.asked, len(names) if alone else 1), settings.clients_at_once)
    slots = max(slots, extra_slots(rounds, settings.clients_at_once))
    text = shape.get_text_config()
    body = model.num_parameters() - text.vocab_size * text.hidden_size
    head = 2 * text.vocab_size * text.hidden_size
    targets_share = sum(t.targets for t in rows.held_out) / held_out
    forward = 2 * body + head * targets_share  # operations per token
    operations = 2 * forward * trained + forward * measured
    return Estimate(
        model_parameters=model.num_parameters(),
        adapter_parameters=adapter.num_parameters,
        adapted_share=adapted.share,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        rows=len(rows.dataset.examples),
        train_rows=sum(map(len, rows.clients.values())),
        held_out_rows=len(rows.held_out),
        clients=len(rows.clients),
        cohort=rounds.cohort_size,
        rounds=count,
        rows_per_client=_least_and_most([len(held) for held in rows.clients.values()]),
        steps_per_round=_least_and_most([w.steps for w in work.values()]),
        learning_rates={arm.name: schedule.peak(arm.name) for arm in composition.arms if arm.name != "base"},
        tokens={arm: round(count) for arm, count in tokens.items()},
        bytes_up=up,
        bytes_up_are=up_are,
        bytes_down=down,
        bytes_down_are=down_are,
        memory_bytes=round(_memory(config, model, adapter.num_parameters, settings, dtype, text, slots)),
        disk_bytes=round(
            (min(max(2, config.checkpoints.keep) + 2, count) + 1) * (1 + rounds.clusters) * adapter.nbytes
            + len(kept) * adapter.nbytes
            + 10e6
        ),
        seconds=operations / (PEAK_SHARE * matmul_peak(dtype, str(device)) * 1e9) + 10 if timed else 0.0,
        privacy=forecast(rounds.privacy, count, up / (4 * count * rounds.cohort_size))
        if rounds.privacy
        else example_forecast(rounds, adapter),
        warnings=(*inspect_folder(folder), *unread, *adapted.notes),
    )


def _traffic(plan: Plan, adapter: Adapter, count: int) -> tuple[int, int, str, str]:
    """Bytes up and down of `count` rounds, and what each is: "exact", "about" or "at most".

    Draws and arrival follow from the seed, so a round's cohort is known, unless the selection depends on replies.
    """
    up = down = clusters = 0
    for number in range(1, count + 1):
        sampled, sent, counted = _cohort(plan, ServerState(number - 1, GlobalModel(adapter)))
        ranks = [[plan.rank(c) for c in some] for some in (sampled, sent, counted)]
        rest = (ranks[2], plan.objective.scaffold, clusters)
        up += round_bytes(plan.method, adapter, number, ranks[1], *rest)[0]
        down += round_bytes(plan.method, adapter, number, ranks[0], *rest)[1]
        clusters = clusters or (plan.clusters if plan.clusters <= len(counted) else 0)
    mixed = any(plan.rank(client) < adapter.r for client in plan.clients)
    late = plan.policy.deadline > 0
    learned = plan.select.learns and (mixed or late)
    if plan.privacy is not None or learned or (late and plan.policy.on_too_few == "wait"):
        return up, down, "about", "about"
    one_step = all(plan.work(client, 1, 0).steps == 1 for client in plan.clients)
    return up, down, *bounds(plan.method, adapter, mixed, one_step)


def _cohort(plan: Plan, state: ServerState) -> tuple[tuple[ClientId, ...], list[ClientId], list[ClientId]]:
    """Of the round after `state` the clients that are sampled, that meet the deadline, and whose updates count.

    A secret cohort is planned by its mean size.
    """
    if plan.privacy is not None:
        mean = plan.clients[: plan.cohort_size]
        return mean, list(mean), list(mean)
    cohort = draw_cohort(state, plan, Replies(), plan.cohort_size) or Replies()
    sent = sorted((c for c in cohort.work if c not in cohort.late), key=cohort.seconds.__getitem__)
    surplus = cohort.surplus(sent, plan.cohort_size if plan.policy.over_select else None)
    counted = [client for client in sent if client not in surplus]
    return tuple(cohort.work), sent, counted if sum(cohort.times[c] for c in sent) >= plan.min_updates else []


def _judged(rows: FederatedData, plan: Plan, work: Mapping[ClientId, Work], most: int, rounds: int) -> float:
    """Tokens of the rows by which clients choose a cluster: a cohort in each of `rounds` rounds, and all at the end."""
    length = {c: float(np.mean([len(t.input_ids) for t in held])) for c, held in rows.clients.items()}
    at_last = {c: min(len(held), most or len(held)) for c, held in rows.clients.items()}
    in_rounds = {c: min(work[c].rows, count) for c, count in at_last.items()}
    mean = float(np.mean([in_rounds[c] * length[c] for c in in_rounds]))
    return rounds * plan.asked * mean + sum(at_last[c] * length[c] for c in at_last)


def _evaluations(config: Config, composition: Composition, local: int) -> int:
    """How often all held-out rows go through the model."""
    rounds, every = config.federation.rounds, config.evaluation.every
    curve = len({n for n in range(every, rounds + 1, every)} | {rounds}) if every else 1
    models = sum(local if arm.per_client else 1 for arm in composition.baselines)
    return 1 + curve + 1 + curve * models


def _memory(config, model, adapter_parameters, settings, dtype, text, slots) -> float:
    width = 4 if dtype == torch.float32 else 2
    weights = model.num_parameters() * {"none": width, "8bit": 1, "4bit": 0.55}[config.model.quantize]
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    block = (18 * text.hidden_size + 8 * inner) * width + 4 * text.hidden_size * 4
    kept = 1 if settings.gradient_checkpointing else text.num_hidden_layers
    activations = settings.tokens_per_pass * (block * kept + text.hidden_size * width * text.num_hidden_layers)
    logits = settings.tokens_per_pass * text.vocab_size * (4 + width) * 0.5
    return PROCESS_BYTES + weights + activations + logits + 16 * adapter_parameters * slots


def _least_and_most(values: list[int]) -> tuple[int, ...]:
    return (min(values), max(values)) if min(values) != max(values) else (values[0],)
