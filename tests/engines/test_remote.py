"""Sites over a transport in memory train to the bits of the engine in one process, for methods and personal models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from federation_schedules import MemoryPlace
from prepared import plan_of, trainer_of
from shepherd._version import __version__
from shepherd.engines.local import LocalEngine
from shepherd.engines.remote import Remote
from shepherd.engines.site_trainer import EngineTrainer
from shepherd.errors import UsageError
from shepherd.experiment.personal_models import choose_clusters, mixtures, personal_models
from shepherd.experiment.rows import prepare_rows
from shepherd.experiment.run_card import run_card
from shepherd.experiment.schedule import prepare_schedule
from shepherd.experiment.trainer import base_weights
from shepherd.federation.cards import Policy, RunCard
from shepherd.federation.coordinator import Coordinator
from shepherd.federation.groups import Group
from shepherd.federation.policy import Own
from shepherd.federation.site import Site
from shepherd.federation.site_store import SiteStore
from shepherd.federation.states import Ledger
from shepherd.federation.transport import Aborted
from shepherd.federation.transports.memory import Arrival, MemoryTransport
from shepherd.model.base import load_base
from shepherd.round import Engine, run_round
from shepherd.server.methods import methods
from shepherd.testing.engines import has_the_methods_of_the_protocol
from shepherd.types import ClientFailure, ClientModel, GlobalModel, ServerState, Stat, TrainTask, Work
from shepherd.updates.gate import Gate

USUAL = (
    "partition.name=iid", "partition.clients=3", "data.categories=open_qa,summarization", "federation.rounds=3",
    "training.local_steps=1", "training.tokens_per_pass=512", "run.threads=1", "federation.on_too_few=skip",
)  # fmt: skip
METHODS = {
    "fedit": (),
    "ffa_lora": ("federation.method=ffa_lora", "federation.clip_update_norm=median"),
    "scaffold": (
        "objective.scaffold=true",
        "training.local_steps=2",
        "training.optimizer=sgd",
        "training.learning_rate=0.1",
    ),
    "mixed ranks": ("federation.method=flexlora", "lora.ranks=1,2", "federation.clients_per_round=2"),
    "remainder": ("federation.method=fedex_lora", "server.optimizer=fedavgm"),
    "clusters": ("personalization.name=ifca", "personalization.clusters=2"),
    "finetune": ("personalization.name=finetune", "personalization.steps=2"),
    "ditto": ("personalization.name=ditto", "objective.scaffold=true"),
    "feddpa T": ("personalization.name=feddpa", "personalization.variant=T"),
    "feddpa F": ("personalization.name=feddpa", "personalization.steps=2"),
    "fedsa_lora": ("federation.method=fedsa_lora",),
    "fedper_lora": ("federation.method=fedper_lora",),
}


class Setting:
    """A tiny run, and the same run with sites."""

    def __init__(self, config: Any, base: Any, rows: Any) -> None:
        self.config, self.base, self.rows = config, base, rows
        self.trainer, plan = trainer_of(config, base), plan_of(config, rows)
        self.plan = replace(plan, gate=lambda: Gate(run="demo", tokenizer=base.tokenizer_digest))
        self.own: dict[str, bytes] = {}
        self.places = {client: MemoryPlace() for client in rows.clients}
        self.lines: list[Any] = []
        self.transport = MemoryTransport({c: lambda c=c: self.site(c) for c in rows.clients})

    @property
    def start(self) -> ServerState:
        adapter, method = self.trainer.adapter, self.plan.method
        weights = base_weights(self.base, list(adapter.factors)) if method.needs_base else None
        return ServerState(0, method.start(adapter, self.config.run.seed, weights))

    @property
    def card(self) -> RunCard:
        digests = {"base": self.base.digest, "tokenizer": self.base.tokenizer_digest}
        return run_card(self.config, "demo", **digests, parameters=self.trainer.adapter.num_parameters)

    def site(self, client: str) -> Site:
        """A site that holds the rows of one client."""
        held_out = [self.rows.held_out[i] for i in self.rows.held_out_of(client)]
        host = self.trainer.host({client: self.rows.clients[client]})
        trainer = EngineTrainer(
            client, lambda card: (LocalEngine(host), held_out), lambda *given: self.finish(client, *given)
        )
        own = Own(self.base.digest, self.base.tokenizer_digest, __version__)
        policy = Policy(approve="policy", least_cohort=1, min_rows_round=1, least_group=1, categories="shown")
        return Site(client, policy, own, trainer, SiteStore(self.places[client]))

    def remote(self) -> Remote:
        """The engine over the sites, with the journal so far."""
        ledger = Ledger(self.lines.append, list(self.lines))
        coordinator = Coordinator(self.card, self.transport, ledger, clock=self.transport.clock)
        coordinator.open()
        coordinator.admit()
        return Remote(coordinator, LocalEngine(self.trainer.host({})))

    def local(self) -> LocalEngine:
        return LocalEngine(self.trainer.host(self.rows.clients))

    def run(self, engine: Engine, state: ServerState | None = None, rounds: int = 3) -> tuple[ServerState, list[Any]]:
        """The state after these rounds, and their records without times and sizes on the way."""
        state, records = state or self.start, []
        while state.round < rounds:
            state, record = run_round(state, self.plan, engine)
            records.append(replace(record, seconds={}))
        return state, records

    # Personal models

    def personal(self, state: ServerState, clients: list[str]) -> dict[str, bytes]:
        """The own models of some clients, as a simulation makes them."""
        data = replace(self.rows, clients={client: self.rows.clients[client] for client in clients})
        if self.plan.clusters:
            return {c: bytes([n]) for c, n in choose_clusters(self.trainer, data, state, self.plan.seed).items()}
        found, failures = personal_models(self.trainer, self.plan, data, state, prepare_schedule(self.config))
        assert not failures
        own = {client: model.adapter for client, model in found.items()}
        mixed = {}
        if self.trainer.settings.personal.mix is not None:
            mixed = mixtures(self.trainer, data, state.model.adapter, own, self.plan.seed)
        return {c: bits(a) + (mixed[c].anchors.tobytes() if c in mixed else b"") for c, a in own.items()}

    def finish(self, client: str, task: TrainTask, private) -> dict[str, Group]:
        """What a site makes of the last models: the same function, with its rows and its private state alone."""
        model = GlobalModel(task.views[client].adapter, task.remainder)
        clusters = tuple(GlobalModel(view.adapter) for view in task.clusters.get(client, ()))
        cursors, kept = {client: task.work[client].first_row}, {client: private} if private else {}
        state = ServerState(task.round - 1, model, cursors, kept, clusters=clusters)
        self.own |= self.personal(state, [client])
        return {"": Group(Stat(1.0, 1.0), 1)}


def directly(hop) -> list[Arrival]:
    return [Arrival(0.0, hop.data)]


def bits(adapter: Any) -> bytes:
    return b"".join(array.tobytes() for name in sorted(adapter.factors) for array in adapter.factors[name])


def model_bits(state: ServerState) -> list[Any]:
    """All that a round leaves but the private state of simulated clients: models, memories, cursors, histories."""
    models = [
        (bits(m.adapter), [(n, a.tobytes()) for n, a in m.memory.items()],
         [(n, r.L.tobytes(), r.R.tobytes()) for n, r in m.remainder.items()])
        for m in (state.model, *state.clusters)
    ]  # fmt: skip
    return [models, state.cursors, state.strikes, state.history]


@pytest.fixture(scope="module")
def setting(small_config):
    base = load_base(**small_config(*USUAL).model.model_dump())
    rows, _ = prepare_rows(small_config(*USUAL), base.tokenizer)
    return lambda *settings: Setting(small_config(*USUAL, *settings), base, rows)


@pytest.mark.parametrize("method", METHODS)
def test_sites_give_the_bits_of_one_process_and_their_personal_models_too(method, setting):
    here = setting(*METHODS[method])
    expected, records = here.run(here.local(), rounds=2)
    engine = here.remote()
    state, remote_records = here.run(engine, rounds=2)
    assert model_bits(state) == model_bits(expected)
    assert remote_records == records and all(record.weights for record in records)
    assert state.clients == {}, "private state stays at the sites"
    personal = here.personal(expected, sorted(here.rows.clients))
    if method in ("fedit", "ffa_lora", "scaffold", "mixed ranks", "remainder"):
        assert not personal
        return
    view = ClientModel(state.model.adapter)
    work = {c: Work(c, state.cursors.get(c, 0), 1, (0.1,)) for c in here.rows.clients}
    models = {c: tuple(ClientModel(m.adapter) for m in state.clusters) for c in work if state.clusters}
    task = TrainTask(3, dict.fromkeys(work, view), 0, work, state.model.remainder, here.plan.objective, clusters=models)
    finished = engine.coordinator.finish(task)
    assert sorted(finished) == sorted(work)
    assert here.own == personal


@pytest.mark.parametrize("method", sorted(set(methods) - set(METHODS) - {"flexlora", "fedex_lora"}))
def test_sites_give_the_bits_of_one_process_for_each_other_method(method, setting):
    here = setting(f"federation.method={method}", "lora.r=4")
    expected, records = here.run(here.local(), rounds=2)
    state, remote_records = here.run(here.remote(), rounds=2)
    assert model_bits(state) == model_bits(expected) and model_bits(state) != model_bits(here.start)
    assert remote_records == records and all(record.weights for record in records)


def test_rounds_with_lost_answers_an_abort_and_restarts_have_the_bits_of_a_simulation_in_which_the_same_clients_counted(
    setting,
):
    """The private state of control variates and second adapters goes back where an answer was lost."""
    here = setting(*METHODS["ditto"])
    first, *_, last = sorted(here.rows.clients)
    lost = {2: first}

    class Losing(LocalEngine):
        def train(self, task, *args, **options):
            for reply in super().train(task, *args, **options):
                gone = reply.client == lost.get(task.round)
                yield ClientFailure(reply.client, task.round, "lost", "the site is gone") if gone else reply

    expected, records = here.run(Losing(here.trainer.host(here.rows.clients)))
    state, _ = here.run(here.remote(), rounds=1)

    def hop(hop):
        if hop.way == "up" and hop.client == first:  # it has trained, and its process ends
            here.transport.stop(first)
            return []
        return directly(hop)

    here.transport.hop = hop
    plan, here.plan = here.plan, replace(here.plan, policy=replace(here.plan.policy, clock=None, deadline=20.0))
    state, second = here.run(here.remote(), state, rounds=2)
    here.plan = plan

    def abort(hop):
        if hop.way == "up" and hop.client == last:
            raise Aborted
        return directly(hop)

    here.transport.hop = directly
    here.transport.start(first)
    engine, here.transport.hop = here.remote(), abort
    with pytest.raises(Aborted):
        here.run(engine, state)
    here.transport.hop = directly
    here.transport.restart(last)
    state, third = here.run(here.remote(), state)
    assert model_bits(state)[:2] == model_bits(expected)[:2]
    assert [record.weights for record in (*second, *third)] == [record.weights for record in records[1:]]
    assert first not in second[0].weights and first in third[0].weights


def test_sites_measure_what_one_process_measures_and_the_server_its_own_rows(setting):
    here = setting()
    engine, local, model = here.remote(), here.local(), here.start.model
    clients = sorted(here.rows.clients)
    for given in (None, model):
        expected = local.measure(given, clients)
        assert {c: (pytest.approx(s.total), s.weight) for c, s in expected.items()} == {
            c: (s.total, s.weight) for c, s in engine.measure(given, clients).items()
        }
        held_out = engine.evaluate(given, here.rows.held_out)
        assert held_out.nll.tobytes() == local.evaluate(given, here.rows.held_out).nll.tobytes()
    assert engine.measure(None, clients) != engine.coordinator.measure(None, clients)
    assert {c: facts.rows for c, facts in engine.describe().items()} == here.plan.sizes


def test_what_sites_do_not_have_here_is_refused(setting):
    here = setting()
    engine = here.remote()
    has_the_methods_of_the_protocol(engine, None)
    with pytest.raises(UsageError, match="private tensors of client-000, and sites keep their own"):
        engine.restore({"client-000": {}})
    with pytest.raises(UsageError, match="has no base model"):
        Remote(engine.coordinator).evaluate(None, [])
