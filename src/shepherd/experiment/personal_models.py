"""Models of clients' own: made or chosen after the last round, measured on each client's own rows, left as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from shepherd.clients.cohort import Cohort
from shepherd.clients.personal.ifca import HOMELESS, cluster_losses, judged, pick
from shepherd.clients.personal.methods import own_adapters, tuned, tuned_from
from shepherd.clients.personal.mixture import Mixture, hidden_states, prompt_of, save_mixture
from shepherd.config import Config
from shepherd.evaluation.losses import RowLosses, row_losses, row_losses_each
from shepherd.experiment.arms import Observe
from shepherd.experiment.method import rate_ratio
from shepherd.experiment.rows import FederatedData
from shepherd.experiment.trainer import Trainer
from shepherd.model.adapter import save_adapter
from shepherd.rng import stream
from shepherd.round import Plan
from shepherd.server.merged_adapter import merged_adapter
from shepherd.store import RunDirectory
from shepherd.types import Adapter, ClientFailure, ClientId, GlobalModel, Objective, ServerState, Work


@dataclass(frozen=True)
class OwnModels:
    """Who has a model of its own; empty where a run makes none. members: the clients of each cluster.

    mixtures: those clients' that weigh two adapters for each input, of which `models` has the local one.
    """

    models: Mapping[ClientId, GlobalModel] = field(default_factory=dict)
    mixtures: Mapping[ClientId, Mixture] = field(default_factory=dict)
    members: Mapping[str, list[ClientId]] = field(default_factory=dict)

    def losses(self, learner: Trainer, rows: FederatedData) -> tuple[dict[ClientId, RowLosses], dict[ClientId, float]]:
        """Each on its client's own held-out rows, and a mixture's mean λ there; a client without any is left out."""
        if self.mixtures:
            return mixed_losses(learner, rows, self.mixtures)
        return own_losses(learner, rows, self.models), {}


def own_models(
    config: Config,
    learner: Trainer,
    plan: Plan,
    rows: FederatedData,
    state: ServerState,
    store: RunDirectory,
    observe: Observe,
    warn: Callable[[str], None],
) -> OwnModels:
    """Make or choose the models of clients' own, and write them under personal/ or clusters/ of the run."""
    if plan.clusters:
        return _clusters(config, learner, plan, rows, state, store, warn)
    models, failures = personal_models(config, learner, plan, rows, state, observe)
    mixed: dict[ClientId, Mixture] = {}
    if learner.settings.personal.mix is not None:
        locals_ = {client: model.adapter for client, model in models.items()}
        mixed = mixtures(learner, rows, state.model.adapter, locals_, config.run.seed)
    for failure in failures:
        warn(f"{rows.partition.label(failure.client)}: {failure.code}: {failure.detail}")
    if models:
        with store.commit_folder("personal") as folder:
            for client, model in sorted(models.items()):
                own = folder / quote(client, safe=" ", errors="surrogatepass").replace(".", "%2E")
                if client in mixed:
                    save_mixture(own, mixed[client], base_name=learner.base_name, conv1d=learner.conv1d)
                else:
                    save_adapter(own, merged_adapter(model), base_name=learner.base_name, conv1d=learner.conv1d)
    return OwnModels(models, mixed)


def _clusters(
    config: Config,
    learner: Trainer,
    plan: Plan,
    rows: FederatedData,
    state: ServerState,
    store: RunDirectory,
    warn: Callable[[str], None],
) -> OwnModels:
    """Each cluster's model is an adapter under clusters/, beside who is in which."""
    if not state.clusters:
        warn(f"no round had {plan.clusters} usable updates, so no cluster was begun")
        return OwnModels()
    numbers, members = choose_clusters(learner, rows, state, config.run.seed), {}
    with store.commit_folder("clusters") as folder:
        for number, model in enumerate(state.clusters, start=1):
            save_adapter(folder / str(number), model.adapter, base_name=learner.base_name, conv1d=learner.conv1d)
            members[str(number)] = [client for client in sorted(numbers) if numbers[client] == number]
        (folder / "clients.json").write_text(json.dumps(members, indent=1) + "\n", encoding="ascii")
    for client in (client for client, number in numbers.items() if not number):
        warn(f"{rows.partition.label(client)}: {HOMELESS}")
    models = {client: state.clusters[number - 1] for client, number in numbers.items() if number}
    return OwnModels(models, members=members)


def personal_models(
    config: Config,
    learner: Trainer,
    plan: Plan,
    rows: FederatedData,
    state: ServerState,
    observe: Observe = lambda number, report: None,
) -> tuple[dict[ClientId, GlobalModel], tuple[ClientFailure, ...]]:
    """The models of clients' own after the last round, and the clients whose tuning failed; none where none was asked.

    Kept ones come from what the clients keep; with `finetune` each client tunes the one that it keeps, or else the
    global model, on its own rows, going on in its walk over them. Of `feddpa` these are the local adapters alone:
    `mixtures` below has the rest.
    """
    personal, model = learner.settings.personal, state.model
    views = {c: plan.method.view(model, c, plan.rank(c), state.round + 1, plan.seed) for c in state.clients}
    kept = own_adapters(views, state.clients)
    if not personal.steps:
        return {client: replace(model, adapter=adapter) for client, adapter in kept.items()}, ()
    names, at_once = sorted(rows.clients), learner.settings.clients_at_once
    lora = learner.make_lora().lay(model.remainder)
    objective, found, failures = Objective(rate_ratio=rate_ratio(config)), {}, {}
    observe(state.round, dict.fromkeys(names, "waiting"))
    for start in range(0, len(names), at_once):
        begins = {c: kept.get(c, model.adapter) for c in names[start : start + at_once]}
        views = {client: tuned_from(personal, adapter) for client, adapter in begins.items()}
        cohort = Cohort(learner.packed, lora, learner.settings, views, rows.clients, config.run.seed, objective)
        rate = personal.learning_rate or config.training.learning_rate
        work = [
            Work(c, state.cursors.get(c, 0), personal.steps * min(config.training.batch_size, len(rows.clients[c])),
                 (rate,) * personal.steps)
            for c in views
        ]  # fmt: skip
        cohort.run(work, state.round + 1, lambda report: observe(state.round, report))
        failures |= cohort.failures
        for slot, client in enumerate(views):
            if client not in cohort.failures:
                own = tuned(begins[client], lora.held[slot].tensors())
                found[client] = replace(model, adapter=own)
    return found, tuple(failures.values())


def choose_clusters(learner: Trainer, rows: FederatedData, state: ServerState, seed: int) -> dict[ClientId, int]:
    """The cluster of every client after the last round, by its own training rows, also of those that never took part.

    From 1; 0 where none has a finite loss.
    """
    adapters = [model.adapter for model in state.clusters]
    names, at_once = sorted(rows.clients), learner.settings.clients_at_once
    lora, numbers = learner.make_lora(), {}
    for start in range(0, len(names), at_once):
        chunk = names[start : start + at_once]
        own = {
            c: judged(rows.clients[c], c, 0, len(rows.clients[c]), learner.settings.personal.rows, seed) for c in chunk
        }
        losses = cluster_losses(
            dict.fromkeys(chunk, adapters), own, learner.packed, lora, learner.settings.tokens_per_pass
        )
        numbers |= {client: pick(losses[client]) for client in chunk}
    return numbers


def own_losses(
    learner: Trainer, rows: FederatedData, models: Mapping[ClientId, GlobalModel]
) -> dict[ClientId, RowLosses]:
    """Each model on its client's own held-out rows; a client without any is left out."""
    found = {}
    for client, model in sorted(models.items()):
        own = [rows.held_out[i] for i in rows.held_out_of(client)]
        if own:
            lora = learner.make_lora().load(model)
            (found[client],) = row_losses(learner.packed, own, lora, learner.settings.tokens_measured)
    return found


def mixtures(
    learner: Trainer, rows: FederatedData, shared: Adapter, locals_: Mapping[ClientId, Adapter], seed: int
) -> dict[ClientId, Mixture]:
    """Each client's two adapters with the hidden states of some of its own training rows, drawn once and for all."""
    mix, found = learner.settings.personal.mix, {}
    for client, local in sorted(locals_.items()):
        own = rows.clients[client]
        drawn = sorted(stream(seed, "anchors", client).permutation(len(own))[: mix.samples])
        prompts = [prompt_of(own[i]) for i in drawn]
        anchors = hidden_states(learner.packed, learner.make_lora(), local, prompts, learner.settings.tokens_measured)
        found[client] = Mixture(shared, local, anchors, mix.weight)
    return found


def mixed_losses(
    learner: Trainer, rows: FederatedData, models: Mapping[ClientId, Mixture]
) -> tuple[dict[ClientId, RowLosses], dict[ClientId, float]]:
    """Each mixed model on its client's own held-out rows, and its mean λ there; a client without any is left out."""
    losses, shares, most = {}, {}, learner.settings.tokens_measured
    for client, mixture in sorted(models.items()):
        own = [rows.held_out[i] for i in rows.held_out_of(client)]
        if own:
            lora = learner.make_lora()
            measured = mixture.measure(learner.packed, lora, [prompt_of(row) for row in own], most)
            lora = mixture.hold(lora, measured)
            losses[client] = row_losses_each(learner.packed, own, lora, most)
            shares[client] = float(measured.mean())
    return losses, shares
