"""A recipe as a run card and back: a site trains with the settings of the card on the machine of its own file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shepherd.experiment.method import compose
from shepherd.experiment.run_card import for_sites, run_card, site_config
from shepherd.experiment.trainer import local_training
from shepherd.federation.cards import Policy, SiteFile, read_card
from shepherd.federation.policy import Own, judge
from shepherd.recipe import load, recipes

OWN = Own("b" * 64, "c" * 64, "0.1.0")
SITE = SiteFile.model_validate(
    {
        "site": {"name": "hospital-a", "device": "cpu", "dtype": "float32", "threads": 3, "tokens_per_pass": 256},
        "data": {"source": "/rows.jsonl", "format": "alpaca"},
        "model": {"base": "/models/base"},
    }
)
SETTINGS = (
    (),
    ("federation.method=lora_a2", "training.optimizer=sgd", "training.momentum=0.9", "training.max_grad_norm=0"),
    ("federation.method=flexlora", "lora.ranks=2,4", "lora.rslora=true", "lora.dropout=0.1"),
    ("lora.ranks={open_qa=4}", "federation.method=hetlora", "federation.clip_update_norm=median"),
    ("objective.scaffold=true", "training.optimizer=sgd", "server.optimizer=fedadam", "server.tau=0.5"),
    ("personalization.name=ditto", "personalization.strength=0.5", "training.weight_decay=0.1"),
    ("personalization.name=feddpa", "personalization.steps=2", "data.template=alpaca", "data.max_length=128"),
    ("personalization.name=ifca", "personalization.clusters=2", "lora.targets=q_proj,v_proj"),
    ('method.home={name="modules",names=["layers.1"]}', "objective.proximal=0.1", "objective.proximal_form=product"),
)


def card_of(config, **options):
    return run_card(config, "demo", base="b" * 64, tokenizer="c" * 64, parameters=1000, **options)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(settings) or "defaults")
def test_a_site_trains_with_the_settings_of_the_run_that_its_card_comes_from(settings):
    config = load(None, [*settings, "training.clients_at_once=1"])
    card = card_of(config)
    assert read_card(card.to_json()) == card
    assert judge(card, Policy(least_cohort=1), OWN) == "admitted"
    theirs = site_config(read_card(card.to_json()), SITE)
    of_run, of_site = compose(config), compose(theirs)
    expected = local_training(config, of_run.personal, torch.device("cpu"), 1000)
    found = replace(local_training(theirs, of_site.personal, torch.device("cpu"), 1000), clients_at_once=1)
    assert found == replace(expected, tokens_per_pass=256)
    assert of_site.method.specs == of_run.method.specs and of_site.rate_ratio == of_run.rate_ratio
    same = ("template", "max_length", "held_out_per_category")
    assert all(getattr(theirs.data, name) == getattr(config.data, name) for name in same)
    lora = ("r", "alpha", "dropout", "rslora", "targets")
    assert all(getattr(theirs.lora, name) == getattr(config.lora, name) for name in lora)


def test_what_is_the_machine_s_own_comes_from_the_site_file_alone():
    config = load(None, ["model.base=/coordinator/base", "data.source=/coordinator/rows", "run.threads=7"])
    theirs = site_config(card_of(config), SITE)
    assert (theirs.model.base, theirs.model.device, theirs.model.dtype) == ("/models/base", "cpu", "float32")
    assert (theirs.data.source, theirs.data.format, theirs.run.threads) == ("/rows.jsonl", "alpaca", 3)
    assert b"/coordinator/rows" not in card_of(config).to_json()


@pytest.mark.parametrize("recipe", sorted(recipes()))
def test_every_packaged_recipe_has_a_card(recipe):
    config = load(recipe)
    card = card_of(config, offers=["dp"])
    assert card.federation.rounds == config.federation.rounds and card.offers == ("dp",)
    assert judge(card, Policy(least_cohort=1, max_rounds=10**6), OWN) in ("admitted", "steps")


@pytest.mark.parametrize(
    "settings, said",
    [
        (["partition.name=shards", "partition.clients=4", "partition.per_client=2"],
         'partition.name = "shards": each site is a client with all of its own rows'),
        (["evaluation.generate=4"],
         "evaluation.generate: a run over sites generates no answers; shepherd answer does afterwards"),
        (["data.languages=german"], "data.languages: each site trains on all of its own rows"),
        (["partition.name=files", "evaluation.generate=0"], None),
        (["data.held_out_per_category=9"],
         "data.held_out_per_category = 9: a site shows no loss of fewer than 10 held-out rows unless its "
         "policy.least_group is smaller; for losses set at least 10, or data.held_out_source"),
        (["data.held_out_per_category=9", "data.held_out_source=builtin:instructions"], None),
        (["data.held_out_per_category=0"], None),
    ],
)  # fmt: skip
def test_what_a_recipe_sets_and_sites_do_not_read_is_named(settings, said):
    _, notes = for_sites(load(None, ["evaluation.arms=base,federated", "data.rows_per_category=0", *settings]))
    assert notes == ((said,) if said else ())
