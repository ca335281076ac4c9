"""Personal models: made or chosen after the last round, written, and measured on each client's own rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from shepherd.clients.cohort import Cohort
from shepherd.clients.personal.ifca import HOMELESS, cluster_losses, judged, pick
from shepherd.clients.personal.methods import own_adapters, tuned, tuned_from
from shepherd.clients.personal.mixture import Mixture, hidden_states, prompt_of, save_mixture
from shepherd.evaluation.losses import row_losses, row_losses_each
from shepherd.evaluation.row_losses import RowLosses
from shepherd.experiment.arms import Observe
from shepherd.experiment.inputs import Inputs
from shepherd.experiment.rows import FederatedData
from shepherd.experiment.schedule import Schedule
from shepherd.experiment.session import Session
from shepherd.experiment.trainer import Trainer
from shepherd.model.adapter import save_adapter
from shepherd.rng import stream
from shepherd.round import Plan
from shepherd.server.merged_adapter import merged_adapter
from shepherd.types import Adapter, ClientFailure, ClientId, GlobalModel, Objective, ServerState


@dataclass(frozen=True)
class PersonalModels:
    """Which clients have a personal model; empty where a run makes none.

    mixtures: those of clients that weigh two adapters for each input, of which `models` has the local one. members:
    the clients of each cluster. losses: each model on its client's own held-out rows; a client without any is left
    out. shares: a mixture's mean λ there.
    """

    models: Mapping[ClientId, GlobalModel] = field(default_factory=dict)
    mixtures: Mapping[ClientId, Mixture] = field(default_factory=dict)
    members: Mapping[str, list[ClientId]] = field(default_factory=dict)
    losses: Mapping[ClientId, RowLosses] = field(default_factory=dict)
    shares: Mapping[ClientId, float] = field(default_factory=dict)


def train_personal(inputs: Inputs, state: ServerState, session: Session) -> tuple[PersonalModels, list[str]]:
    """Make or choose the clients' personal models, write them under personal/ or clusters/, and measure them.

    Also a warning for each client that ends without one.
    """
    if not inputs.composition.personal_models:
        return PersonalModels(), []
    trainer, data = inputs.trainer, inputs.data
    with session.reporter.phase("personal models"):
        own, notes = (_clusters if inputs.plan.clusters else _tuned)(inputs, state, session)
        with session.reporter.clock.on("evaluate"):
            if own.mixtures:
                losses, shares = mixed_losses(trainer, data, own.mixtures)
            else:
                losses, shares = own_losses(trainer, data, own.models), {}
    return replace(own, losses=losses, shares=shares), notes


def _tuned(inputs: Inputs, state: ServerState, session: Session) -> tuple[PersonalModels, list[str]]:
    """Each client's model is an adapter, or a mixture of two, under personal/."""
    trainer, data = inputs.trainer, inputs.data
    observe = session.meter.steps("personal")
    models, failures = personal_models(trainer, inputs.plan, data, state, inputs.schedule, observe)
    mixed = mixed_models(trainer, data, state, models, inputs.seed)
    if models:
        with session.store.commit_folder("personal") as folder:
            for client, model in sorted(models.items()):
                own = folder / quote(client, safe=" ", errors="surrogatepass").replace(".", "%2E")
                save_own(own, model, mixed.get(client), trainer)
    notes = [f"{data.partition.label(f.client)}: {f.code}: {f.detail}" for f in failures]
    return PersonalModels(models, mixed), notes


def mixed_models(
    trainer: Trainer, data: FederatedData, state: ServerState, models: Mapping[ClientId, GlobalModel], seed: int
) -> dict[ClientId, Mixture]:
    """The mixture of each client's own model with the global one; empty where the run mixes none."""
    if trainer.settings.personal.mix is None:
        return {}
    local = {client: model.adapter for client, model in models.items()}
    return mixtures(trainer, data, state.model.adapter, local, seed)


def save_own(folder: Path, model: GlobalModel, mixture: Mixture | None, trainer: Trainer) -> None:
    """Write a client's own model: an adapter as a PEFT folder, or a mixture of two."""
    if mixture is not None:
        save_mixture(folder, mixture, base_name=trainer.base_name, conv1d=trainer.conv1d)
    else:
        save_adapter(folder, merged_adapter(model), base_name=trainer.base_name, conv1d=trainer.conv1d)


def _clusters(inputs: Inputs, state: ServerState, session: Session) -> tuple[PersonalModels, list[str]]:
    """Each cluster's model is an adapter under clusters/, with the list of its clients."""
    trainer, data = inputs.trainer, inputs.data
    if not state.clusters:
        return PersonalModels(), [f"no round had {inputs.plan.clusters} usable updates, so no cluster was begun"]
    numbers = choose_clusters(trainer, data, state, inputs.seed)
    members: dict[str, list[ClientId]] = {}
    with session.store.commit_folder("clusters") as folder:
        for number, model in enumerate(state.clusters, start=1):
            save_adapter(folder / str(number), model.adapter, base_name=trainer.base_name, conv1d=trainer.conv1d)
            members[str(number)] = [client for client in sorted(numbers) if numbers[client] == number]
        (folder / "clients.json").write_text(json.dumps(members, indent=1) + "\n", encoding="ascii")
    notes = [f"{data.partition.label(client)}: {HOMELESS}" for client, number in numbers.items() if not number]
    models = {client: state.clusters[number - 1] for client, number in numbers.items() if number}
    return PersonalModels(models, members=members), notes


def personal_models(
    trainer: Trainer,
    plan: Plan,
    data: FederatedData,
    state: ServerState,
    schedule: Schedule,
    observe: Observe = lambda number, report: None,
) -> tuple[dict[ClientId, GlobalModel], tuple[ClientFailure, ...]]:
    """The clients' personal models after the last round, and the clients whose tuning failed.

    Kept ones come from what the clients keep; with `finetune` each client tunes the one that it keeps, or else the
    global model, on its own rows, continuing its row order. Of `feddpa` these are the local adapters alone:
    `mixtures` below has the rest.
    """
    personal, model = trainer.settings.personal, state.model
    views = {c: plan.method.view(model, c, plan.rank(c), state.round + 1, plan.seed) for c in state.clients}
    kept = own_adapters(views, state.clients)
    if not personal.steps:
        return {client: replace(model, adapter=adapter) for client, adapter in kept.items()}, ()
    names, at_once = sorted(data.clients), trainer.settings.clients_at_once
    lora = trainer.make_lora().lay(model.remainder)
    objective, found = Objective(rate_ratio=plan.objective.rate_ratio), {}
    failures: dict[ClientId, ClientFailure] = {}
    observe(state.round, dict.fromkeys(names, "waiting"))
    for start in range(0, len(names), at_once):
        begins = {c: kept.get(c, model.adapter) for c in names[start : start + at_once]}
        views = {client: tuned_from(personal, adapter) for client, adapter in begins.items()}
        cohort = Cohort(trainer.packed, lora, trainer.settings, views, data.clients, plan.seed, objective)
        work = [schedule.tuning(c, state.cursors.get(c, 0), len(data.clients[c]), personal) for c in views]
        cohort.run(work, state.round + 1, lambda report: observe(state.round, report))
        failures |= cohort.failures
        for slot, client in enumerate(views):
            if client not in cohort.failures:
                own = tuned(begins[client], lora.held[slot].tensors())
                found[client] = replace(model, adapter=own)
    return found, tuple(failures.values())


def choose_clusters(trainer: Trainer, data: FederatedData, state: ServerState, seed: int) -> dict[ClientId, int]:
    """The cluster of every client after the last round, by its own training rows, also of those that never took part.

    From 1; 0 where none has a finite loss.
    """
    adapters = [model.adapter for model in state.clusters]
    names, at_once = sorted(data.clients), trainer.settings.clients_at_once
    lora = trainer.make_lora()
    numbers: dict[ClientId, int] = {}
    for start in range(0, len(names), at_once):
        chunk = names[start : start + at_once]
        own = {
            c: judged(data.clients[c], c, 0, len(data.clients[c]), trainer.settings.personal.rows, seed) for c in chunk
        }
        losses = cluster_losses(
            dict.fromkeys(chunk, adapters), own, trainer.packed, lora, trainer.settings.tokens_per_pass
        )
        numbers |= {client: pick(losses[client]) for client in chunk}
    return numbers


def own_losses(
    trainer: Trainer, data: FederatedData, models: Mapping[ClientId, GlobalModel]
) -> dict[ClientId, RowLosses]:
    """Each model on its client's own held-out rows; a client without any is left out."""
    found = {}
    for client, model in sorted(models.items()):
        own = [data.held_out[i] for i in data.held_out_of(client)]
        if own:
            lora = trainer.make_lora().load(model)
            (found[client],) = row_losses(trainer.packed, own, lora, trainer.settings.tokens_measured)
    return found


def mixtures(
    trainer: Trainer, data: FederatedData, shared: Adapter, locals_: Mapping[ClientId, Adapter], seed: int
) -> dict[ClientId, Mixture]:
    """Each client's two adapters with the hidden states of some of its own training rows, drawn once."""
    mix, found = trainer.settings.personal.mix, {}
    assert mix is not None
    for client, local in sorted(locals_.items()):
        own = data.clients[client]
        drawn = sorted(stream(seed, "anchors", client).permutation(len(own))[: mix.samples])
        prompts = [prompt_of(own[i]) for i in drawn]
        anchors = hidden_states(trainer.packed, trainer.make_lora(), local, prompts, trainer.settings.tokens_measured)
        found[client] = Mixture(shared, local, anchors, mix.weight)
    return found


def mixed_losses(
    trainer: Trainer, data: FederatedData, models: Mapping[ClientId, Mixture]
) -> tuple[dict[ClientId, RowLosses], dict[ClientId, float]]:
    """Each mixed model on its client's own held-out rows, and its mean λ there; a client without any is left out."""
    losses, shares, most = {}, {}, trainer.settings.tokens_measured
    for client, mixture in sorted(models.items()):
        own = [data.held_out[i] for i in data.held_out_of(client)]
        if own:
            lora = trainer.make_lora()
            measured = mixture.measure(trainer.packed, lora, [prompt_of(row) for row in own], most)
            lora = mixture.hold(lora, measured.tolist())
            losses[client] = row_losses_each(trainer.packed, own, lora, most)
            shares[client] = float(measured.mean())
    return losses, shares
