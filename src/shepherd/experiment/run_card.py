"""A recipe as a run card that all sites agree on, and back: the config of one site from a card and its site.toml.

    config = for_sites(recipe)                          # what of a recipe a federation of sites computes
    card = run_card(config, composition, run_id, …)
    site_config(card, read_site("site.toml"))           # machine, rows and base are the site's own, the rest the card's

Both ways lead through the same tables, so that a site trains as a simulation of the recipe does. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shepherd._version import __version__
from shepherd.config import Config
from shepherd.errors import UsageError
from shepherd.experiment.division import AT_SITES
from shepherd.experiment.method import Composition
from shepherd.federation.cards import (
    BaseCard,
    DataCard,
    FederationCard,
    LoraCard,
    ObjectiveCard,
    PersonalizationCard,
    RunCard,
    SiteFile,
    TrainingCard,
)
from shepherd.types import ClientId

_BY_SOURCE = {"name": "by_key", "key": "source"}
"""The partition of the same rows in one process: each site is a source."""
_SHARED_TRAINING = tuple(TrainingCard.model_fields)


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
    if problems:
        raise UsageError("\n".join(problems))
    dropped = [name for name in config.evaluation.arms if name not in ("base", "federated")]
    if dropped:
        notes.append(f"evaluation.arms: {' and '.join(dropped)} need the rows of all sites and are left out")
    picks = [key for key in ("categories", "rows_per_category") if getattr(config.data, key)]
    if picks:
        notes.append(f"{' and '.join(f'data.{key}' for key in picks)}: each site trains on all of its own rows")
    data = config.data.model_copy(
        update={"source": AT_SITES, "languages": ("english",), "categories": (), "rows_per_category": 0}
        | ({"held_out_per_category": 0} if config.data.held_out_source else {})
    )
    tables = config.model_dump(exclude_unset=True)
    tables |= {"data": data.model_dump(), "partition": _BY_SOURCE}
    tables["evaluation"] = {"arms": ("base", "federated"), "generate": 0, "every": config.evaluation.every}
    return Config.model_validate(tables), tuple(notes)


def run_card(
    config: Config, composition: Composition, run: str, *, base: BaseCard, tokenizer: str, parameters: int,
    offers: Sequence[str] = (),
) -> RunCard:  # fmt: skip
    """The card of a recipe `for_sites`. base, tokenizer: their digests; parameters: of the adapter."""
    lora, federation, data = config.lora, config.federation, config.data
    return RunCard(
        run=run,
        name=config.run.name,
        version=__version__,
        seed=config.run.seed,
        base=base,
        tokenizer=tokenizer,
        lora=LoraCard(
            r=lora.r, alpha=lora.alpha, dropout=lora.dropout, rslora=lora.rslora, targets=lora.targets,
            ranks=dict(lora.ranks) if isinstance(lora.ranks, Mapping) else {},
        ),
        federation=FederationCard(
            rounds=federation.rounds, method=federation.method, weights=federation.weights,
            min_updates=federation.min_updates, clip_update_norm=federation.clip_update_norm,
        ),
        training=TrainingCard(**{key: getattr(config.training, key) for key in _SHARED_TRAINING}),
        data=DataCard(
            template=data.template, max_length=data.max_length, held_out_per_category=data.held_out_per_category,
            seed=config.data_seed,
        ),
        method=config.method.options,
        server={"optimizer": config.server.optimizer, **config.server.options},
        objective=ObjectiveCard(**config.objective.model_dump() | {"rate_ratio": composition.rate_ratio}),
        personalization=PersonalizationCard(
            name=config.personalization.name, options=config.personalization.options
        ),
        parameters=parameters,
        offers=tuple(offers),
    )  # fmt: skip


def site_config(card: RunCard, file: SiteFile) -> Config:
    """The settings of one site: from its own file what is this machine's, the rest from the card.

    Its rows are those of one client, divided as `by_key` divides rows by their source: so they are held out as in a
    simulation whose clients are sources (docs/decisions/0015).
    """
    lora, data = card.lora.model_dump(), card.data.model_dump()
    seed, name = data.pop("seed"), file.site.name
    lora["ranks"] = {name: card.lora.ranks[name]} if name in card.lora.ranks else {}
    return Config.model_validate(
        {
            "run": {"seed": card.seed, "threads": file.site.threads},
            "model": {"base": file.model.base, "device": file.site.device, "dtype": file.site.dtype},
            "lora": lora,
            "data": {**data, **file.data.model_dump(), "seed": card.seed if seed is None else seed},
            "partition": _BY_SOURCE,
            "federation": card.federation.model_dump() | {"min_updates": 1},
            "method": dict(card.method),
            "server": dict(card.server),
            "training": {**card.training.model_dump(), "tokens_per_pass": file.site.tokens_per_pass},
            "objective": card.objective.model_dump(),
            "personalization": {"name": card.personalization.name, **card.personalization.options},
            "evaluation": {"arms": ("base", "federated"), "generate": 0},
        }
    )


def known_ranks(config: Config, clients: Sequence[ClientId]) -> Config:
    """The config with lora.ranks of these clients only: others that it names may come later."""
    if not config.lora.ranks:
        return config
    assert isinstance(config.lora.ranks, Mapping)
    ranks = {client: rank for client, rank in config.lora.ranks.items() if client in clients}
    ranks = ranks or dict.fromkeys(clients, config.lora.r)
    return config.model_copy(update={"lora": config.lora.model_copy(update={"ranks": ranks})})
