"""What a site loads for a run card: its rows, held out and tokenized, its base, and the trainer of its loop.

    trainer = site_trainer(read_site("site.toml"))      # for federation.site.Site

A site holds out some of its rows by the stream (seed, "hold out", its name), as a simulation with a file for each
client does by source. So both have the same rows where no prompt occurs at two sites: a simulation keeps rows that ask
the same together, and nobody sees the rows of two sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from shepherd.config import Config
from shepherd.data.partition import hold_out
from shepherd.data.prompts import build_template
from shepherd.data.tokenize import tokenize
from shepherd.engines.local import LocalEngine
from shepherd.engines.site_trainer import EngineTrainer, Finish
from shepherd.errors import ModelError
from shepherd.experiment.division import read_rows
from shepherd.experiment.method import compose
from shepherd.experiment.run_card import site_config
from shepherd.experiment.trainer import prepare_trainer
from shepherd.federation.cards import RunCard, SiteFile
from shepherd.model.base import load_base
from shepherd.model.threads import use_threads
from shepherd.types import Tokens


@dataclass(frozen=True)
class SiteRows:
    """The rows of a site: for training, and held out."""

    training: tuple[Tokens, ...]
    held_out: tuple[Tokens, ...]


def site_rows(config: Config, name: str, tokenizer: Any) -> SiteRows:
    """The rows of a site of this name, with the settings of `site_config`. Raises DataError for rows of no use."""
    dataset = read_rows(config)
    template = build_template(config.data.template, tokenizer)
    tokens = tokenize(dataset.examples, tokenizer, template, config.data.max_length).by_id
    usable = [replace(example, source=name) for example in dataset.examples if example.id in tokens]
    training, held_out = hold_out(usable, config.data.held_out_per_category, config.data_seed, "source")
    return SiteRows(*(tuple(tokens[example.id] for example in part) for part in (training, held_out)))


def site_trainer(site: SiteFile, finish: Finish | None = None) -> EngineTrainer:
    """The trainer of a site, which loads base and rows when a card is admitted."""
    name = site.site.name

    def load(card: RunCard) -> tuple[LocalEngine, Sequence[Tokens]]:
        config = site_config(card, site)
        use_threads(config.run.threads)
        base = load_base(**config.model.model_dump())
        if (base.digest, base.tokenizer_digest) != (card.base.digest, card.tokenizer):
            raise ModelError(f"{site.model.base} is another base or tokenizer than the run has")
        rows = site_rows(config, name, base.tokenizer)
        trainer = prepare_trainer(config, compose(config), base)
        return LocalEngine(trainer.host({name: rows.training})), rows.held_out

    return EngineTrainer(name, load, finish)
