"""The local work of one site: its rows as a client's, its base, training, and the model that stays there.

In: a run card and the site's own file. Out: a `SiteTrainer` for `federation.site.Site`, in this process or in a child.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shepherd.engines.local import LocalEngine
from shepherd.engines.site_trainer import EngineTrainer, by_category
from shepherd.errors import DataError, ModelError, ShepherdError, UsageError
from shepherd.experiment.division import Sources, read_rows
from shepherd.experiment.method import Composition, compose
from shepherd.experiment.personal_models import (
    choose_clusters,
    mixed_losses,
    mixed_models,
    own_losses,
    personal_models,
    save_own,
)
from shepherd.experiment.plan import prepare_plan
from shepherd.experiment.rows import FederatedData, prepare_rows
from shepherd.experiment.run_card import site_config
from shepherd.experiment.schedule import Schedule, prepare_schedule
from shepherd.experiment.trainer import Trainer, prepare_trainer
from shepherd.federation.cards import RunCard, SiteFile
from shepherd.federation.groups import Group
from shepherd.federation.site_privacy import LEDGER
from shepherd.model.adapter import save_adapter
from shepherd.model.base import Base, load_base
from shepherd.model.threads import use_threads
from shepherd.recipe import to_toml
from shepherd.round import Plan
from shepherd.server.merged_adapter import merged_adapter
from shepherd.store import commit_folder
from shepherd.store.disk import DISK, make_folders, write_whole
from shepherd.store.lines import append, line_of
from shepherd.store.site_folder import OWN_FOLDER, ROWS
from shepherd.types import ClientId, GlobalModel, ServerState, Tensors, Tokens, TrainTask
from shepherd.updates.privacy.example_account import ExampleAccounts, ExampleRelease
from shepherd.updates.privacy.ledger import Ledger, read_releases


def site_trainer(file: SiteFile, folder: Path) -> EngineTrainer:
    """The trainer of a site in this process. Own models are kept in `folder`, the site's own."""
    work = SiteWork(file, folder)
    return EngineTrainer(file.site.name, work.load, work.finish, work.keep)


@dataclass(frozen=True)
class Loaded:
    """What a site computes a run with."""

    card: RunCard
    composition: Composition
    data: FederatedData
    trainer: Trainer
    plan: Plan
    schedule: Schedule


class SiteWork:
    """A site at work. The base is loaded once for all its runs."""

    def __init__(self, file: SiteFile, folder: Path) -> None:
        self.file, self.folder, self.client = file, folder, file.site.name
        self._base: Base | None = None
        self._loaded: Loaded | None = None

    def load(self, card: RunCard) -> tuple[LocalEngine, Sequence[Tokens]]:
        """The engine with the site's rows, and the rows that it holds out. DataError where no row can be used.

        Keeps what became of the rows, or why they cannot be read, for the operator: none of it leaves the site."""
        place = self.folder / "runs" / card.run
        make_folders(DISK, place)
        (place / ROWS).unlink(missing_ok=True)  # of other rows, perhaps
        try:
            return self._load(card, place)
        except ShepherdError as error:
            _keep_rows(place, error=error.message, hint=error.hint)
            raise

    def _load(self, card: RunCard, place: Path) -> tuple[LocalEngine, Sequence[Tokens]]:
        config = site_config(card, self.file)
        composition = compose(config)
        use_threads(config.run.threads)
        if self._base is None:
            self._base = load_base(**config.model.model_dump())
        if (self._base.digest, self._base.tokenizer_digest) != (card.base.digest, card.tokenizer):
            raise ModelError(f"{self.file.model.base} is another base or tokenizer than the run has")
        data = site_rows(config, self.client, self._base.tokenizer)
        trainer, schedule = prepare_trainer(config, composition, self._base), prepare_schedule(config)
        alone = replace(composition, personal=replace(composition.personal, clusters=0))  # one client makes none
        plan = prepare_plan(config, alone, data.sizes, schedule)
        self._loaded = Loaded(card, composition, data, trainer, plan, schedule)
        write_whole(DISK, place / "config.toml", to_toml(config).encode())
        _keep_rows(place, trained_on=data.sizes[self.client], held_out=len(data.held_out), notes=list(data.warnings))
        host = trainer.host(data.clients)
        if card.privacy is not None and card.privacy.unit == "example":
            accounts = ExampleAccounts(
                card.privacy.delta, self.file.policy.epsilon_max, lambda client: own_ledger(place / LEDGER)
            )
            host = replace(host, account=accounts.enter)
        return LocalEngine(host), data.held_out

    def keep(self, model: GlobalModel) -> None:
        """Keep a global model that the site was sent, in the place of the one before."""
        own = self._loaded
        assert own is not None, "nothing is measured before the rows are read"
        with commit_folder(self.folder / "runs" / own.card.run / "adapter") as place:
            trainer = own.trainer
            save_adapter(place, merged_adapter(model), base_name=trainer.base_name, conv1d=trainer.conv1d)

    def finish(self, task: TrainTask, private: Tensors) -> Mapping[str, Group]:
        """Make the site's own model of the last ones, keep it, and measure it on the rows that the site holds out.

        Raises UsageError where the run makes none.
        """
        own = self._loaded
        if own is None or not own.composition.personal_models:
            raise UsageError("the run makes no models of single sites")
        client, state = self.client, _state_of(task, self.client, private)
        if own.composition.personal.clusters:
            number = choose_clusters(own.trainer, own.data, state, own.plan.seed)[client]
            models = {client: state.clusters[number - 1]} if number else {}
        else:
            models, failures = personal_models(own.trainer, own.plan, own.data, state, own.schedule)
            if failures:
                raise ArithmeticError(failures[0].code)
        mixed = mixed_models(own.trainer, own.data, state, models, own.plan.seed)
        if not models:
            return {}
        with commit_folder(self.folder / "runs" / own.card.run / OWN_FOLDER) as place:
            save_own(place, models[client], mixed.get(client), own.trainer)
        losses = mixed_losses(own.trainer, own.data, mixed)[0] if mixed else own_losses(own.trainer, own.data, models)
        return by_category(losses[client], own.data.held_out) if client in losses else {}


def _keep_rows(place: Path, **found: Any) -> None:
    write_whole(DISK, place / ROWS, json.dumps(found, ensure_ascii=False, indent=1).encode())


def own_ledger(file: Path) -> Ledger:
    """The ledger of a site in one run: a line is on the medium before its noise is drawn. Raises DataError for lines
    that are none."""

    def write(line: Mapping[str, Any]) -> None:
        append(DISK, file, line_of(line))

    return Ledger(read_releases(file, ExampleRelease), write, file.name)


def site_rows(config: Any, client: ClientId, tokenizer: Any) -> FederatedData:
    """The rows of a site, all of one client, with those that it holds out: at most half, by the stream (seed, "hold
    out", its name). Raises DataError where no row can be used."""
    dataset = read_rows(config)
    if not dataset.examples:
        raise DataError(f"no row of {dataset.name} can be used")
    own = replace(dataset, examples=tuple(replace(e, source=client) for e in dataset.examples), unusable={})
    data, _ = prepare_rows(config, tokenizer, sources=Sources(own, None), some_held_out=False)
    ((_, rows),) = data.clients.items()
    partition = replace(data.partition, clients={client: tuple(row.id for row in rows)}, labels={client: client})
    return replace(data, clients={client: rows}, partition=partition)


def _state_of(task: TrainTask, client: ClientId, private: Tensors) -> ServerState:
    """The state after the last round as far as one site has it: the models of the task, its own tensors and its row."""
    model = GlobalModel(task.views[client].adapter, task.remainder)
    return ServerState(
        task.round - 1,
        model,
        {client: task.work[client].first_row},
        {client: private} if private else {},
        clusters=tuple(GlobalModel(view.adapter) for view in task.clusters.get(client, ())),
    )
