"""A recipe as a run card that all sites agree on, and back: the config of one site from a card and its site.toml.

    config = for_sites(recipe)                          # what of a recipe a federation of sites computes
    card = run_card(config, run_id, base=digest, tokenizer=digest, parameters=adapter.num_parameters)
    config = site_config(card, read_site("site.toml"))  # machine, rows and base are the site's own

Both ways lead through the same tables, so that a site trains as a simulation of the recipe does. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from shepherd._version import __version__
from shepherd.config import Config, Table
from shepherd.errors import UsageError
from shepherd.experiment.division import AT_SITES
from shepherd.experiment.method import compose
from shepherd.federation.cards import (
    BaseCard,
    DataCard,
    Document,
    FederationCard,
    LoraCard,
    ObjectiveCard,
    PersonalizationCard,
    Policy,
    RunCard,
    SiteFile,
    TrainingCard,
)
from shepherd.federation.privacy_card import PrivacyCard
from shepherd.model.fetch import is_local
from shepherd.types import ClientId

LEAST_GROUP: int = Policy.model_fields["least_group"].default
"""Held-out rows of which a site with a new site.toml shows a loss."""
BY_FILE = {"name": "files"}
"""The partition of the same rows in one process: a file for each site."""
Part = TypeVar("Part", bound=Document)


def for_sites(config: Config) -> tuple[Config, tuple[str, ...]]:
    """(the recipe as sites carry it out, a sentence for each setting that changes by that).

    Raises UsageError, for all settings at once, where they need rows of sites, or a fixed list of them.
    """
    problems, notes = [], []
    if config.lora.ranks and not isinstance(config.lora.ranks, Mapping):
        problems.append(
            "lora.ranks is a list in the order of the clients, and sites come and go: name them, "
            "lora.ranks = {hospital-a = 4}"
        )
    if config.model.quantize != "none":
        problems.append(f'model.quantize = "{config.model.quantize}" is not agreed on with sites')
    if config.privacy.audit.canaries:
        problems.append("privacy.audit.canaries plants codes into rows, and those of the clients are at their sites")
    if config.privacy.unit == "example" and config.privacy.noise_multiplier == "from_epsilon":
        problems.append(
            "privacy.epsilon: the card has the noise before a site states its rows, from which epsilon follows; set "
            "privacy.noise_multiplier, and each site's policy.epsilon_max is its budget"
        )
    if problems:
        raise UsageError("\n".join(problems))
    dropped = [name for name in config.evaluation.arms if name not in ("base", "federated")]
    if dropped:
        notes.append(f"evaluation.arms: {' and '.join(dropped)} need the rows of all sites and are left out")
    picks = [key for key in ("categories", "rows_per_category") if getattr(config.data, key)]
    if config.data.languages != type(config.data).model_fields["languages"].default:
        picks.append("languages")
    if picks:
        notes.append(f"{' and '.join(f'data.{key}' for key in picks)}: each site trains on all of its own rows")
    partition = config.partition
    if "partition" in config.model_fields_set and partition.name != BY_FILE["name"]:
        notes.append(f'partition.name = "{partition.name}": each site is a client with all of its own rows')
    if "generate" in config.evaluation.model_fields_set and config.evaluation.generate:
        notes.append("evaluation.generate: a run over sites generates no answers; shepherd answer does afterwards")
    private = config.privacy.unit != "none"
    notes += _without_losses(config)
    data = config.data.model_copy(
        update={"source": AT_SITES, "languages": ("english",), "categories": (), "rows_per_category": 0}
        | ({"held_out_per_category": 0} if config.data.held_out_source or private else {})
    )
    tables = config.model_dump(exclude_unset=True)
    tables |= {"data": data.model_dump(), "partition": BY_FILE}
    tables["evaluation"] = {"arms": ("base", "federated"), "generate": 0, "every": config.evaluation.every}
    return Config.model_validate(tables), tuple(notes)


def _without_losses(config: Config) -> list[str]:
    """Why sites will measure no held-out rows; [] where they will, or are not asked to."""
    few = config.data.held_out_per_category
    if not few or config.data.held_out_source:
        return []
    if config.privacy.unit != "none":
        return ["privacy: sites hold out no rows, so no loss is known; set data.held_out_source for losses"]
    if few >= LEAST_GROUP:
        return []
    return [
        f"data.held_out_per_category = {few}: a site shows no loss of fewer than {LEAST_GROUP} held-out rows unless "
        f"its policy.least_group is smaller; for losses set at least {LEAST_GROUP}, or data.held_out_source"
    ]


def run_card(
    config: Config,
    run: str,
    *,
    base: str,
    tokenizer: str,
    parameters: int,
    offers: Iterable[str] = (),
    privacy: PrivacyCard | None = None,
) -> RunCard:
    """The card of a run with this id. base, tokenizer: digests. parameters: trainable numbers of the adapter. privacy:
    the mechanism of the recipe, for a number of sites (private_coordination.py).

    The rate ratio is that of the method where the recipe leaves it open. Raises the UsageErrors of `compose`.
    """
    composition = compose(config)
    personal, objective = config.personalization, config.objective.model_dump()
    return RunCard(
        run=run,
        name=config.run.name,
        version=__version__,
        seed=config.run.seed,
        base=BaseCard(name=_without_folder(config.model.base)[:200], digest=base),
        tokenizer=tokenizer,
        lora=_part(LoraCard, config.lora),
        federation=_part(FederationCard, config.federation),
        training=_part(TrainingCard, config.training),
        data=_part(DataCard, config.data),
        method=config.method.options,
        server={"optimizer": config.server.optimizer, **config.server.options},
        objective=ObjectiveCard(**objective | {"rate_ratio": float(composition.rate_ratio)}),
        personalization=PersonalizationCard(name=personal.name, options=personal.options),
        parameters=parameters,
        offers=tuple(offers),
        privacy=privacy,
    )


def site_config(card: RunCard, site: SiteFile) -> Config:
    """The settings with which a site loads its rows and trains: those of the card, on the machine of the site file.

    Its rows are those of one client of a simulation with a file for each, so that they are held out as there
    (docs/decisions/0015).
    """
    own, ranks = site.site, card.lora.ranks
    rank = {own.name: ranks[own.name]} if isinstance(ranks, Mapping) and own.name in ranks else {}
    return Config.model_validate(
        {
            "run": {"seed": card.seed, "threads": own.threads},
            "model": {"base": site.model.base, "device": own.device, "dtype": own.dtype},
            "lora": {**card.lora.model_dump(), "ranks": rank},
            "partition": BY_FILE,  # all files of the source are rows of the site, also one called test
            "data": {**card.data.model_dump(), **site.data.model_dump()},
            "federation": card.federation.model_dump() | {"min_updates": 1},
            "method": dict(card.method),
            "server": dict(card.server),
            "objective": card.objective.model_dump(),
            "personalization": {"name": card.personalization.name, **card.personalization.options},
            "training": {**card.training.model_dump(), "tokens_per_pass": own.tokens_per_pass},
            "evaluation": {"arms": ("base", "federated"), "generate": 0},
        }
    )


def _without_folder(base: str) -> str:
    """The name of a base, without the place where it lies at the coordinator."""
    return Path(base).name if is_local(base) or Path(base).is_absolute() else base


def _part(kind: type[Part], table: Table) -> Part:
    """The keys of a recipe's table that a card has."""
    return kind.model_validate(table.model_dump(include=set(kind.model_fields)))


def known_ranks(config: Config, clients: Sequence[ClientId]) -> Config:
    """The config with lora.ranks of these clients only: others that it names may come later."""
    if not config.lora.ranks:
        return config
    assert isinstance(config.lora.ranks, Mapping)
    ranks = {client: rank for client, rank in config.lora.ranks.items() if client in clients}
    ranks = ranks or dict.fromkeys(clients, config.lora.r)
    return config.model_copy(update={"lora": config.lora.model_copy(update={"ranks": ranks})})
