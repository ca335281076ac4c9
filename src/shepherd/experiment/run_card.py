"""A recipe as two documents, and back: the run card of a coordinator, and the settings of a site that has a card.

    card = run_card(config, run, base=digest, tokenizer=digest, parameters=adapter.num_parameters)
    config = site_config(card, read_site("site.toml"))

What both have to agree on comes from the card, what is the machine's own from its site file. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from shepherd._version import __version__
from shepherd.config import Config, Table
from shepherd.experiment.method import compose
from shepherd.federation.cards import (
    BaseCard,
    DataCard,
    Document,
    FederationCard,
    LoraCard,
    ObjectiveCard,
    PersonalizationCard,
    RunCard,
    SiteFile,
    TrainingCard,
)

Part = TypeVar("Part", bound=Document)


def run_card(
    config: Config, run: str, *, base: str, tokenizer: str, parameters: int, offers: Iterable[str] = ()
) -> RunCard:
    """The card of a run with this id. base, tokenizer: digests. parameters: trainable numbers of the adapter.

    The rate ratio is that of the method where the recipe leaves it open. Raises the UsageErrors of `compose`.
    """
    composition = compose(config)
    personal, objective = config.personalization, config.objective.model_dump()
    return RunCard(
        run=run,
        name=config.run.name,
        version=__version__,
        seed=config.run.seed,
        base=BaseCard(name=config.model.base, digest=base),
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
    )


def site_config(card: RunCard, site: SiteFile) -> Config:
    """The settings with which a site loads its rows and trains: those of the card, on the machine of the site file."""
    own = site.site
    return Config.model_validate(
        {
            "run": {"seed": card.seed, "threads": own.threads},
            "model": {"base": site.model.base, "device": own.device, "dtype": own.dtype},
            "lora": card.lora.model_dump(exclude={"ranks"}),
            "partition": {"name": "files"},  # all files of the source are rows of the site, also one called test
            "data": {**card.data.model_dump(), **site.data.model_dump()},
            "federation": card.federation.model_dump(),
            "method": dict(card.method),
            "server": dict(card.server),
            "objective": card.objective.model_dump(),
            "personalization": {"name": card.personalization.name, **card.personalization.options},
            "training": {**card.training.model_dump(), "tokens_per_pass": own.tokens_per_pass},
        }
    )


def _part(kind: type[Part], table: Table) -> Part:
    """The keys of a recipe's table that a card has."""
    return kind.model_validate(table.model_dump(include=set(kind.model_fields)))
