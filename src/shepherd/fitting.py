"""Config -> the method and the personal models that it names, or why they do not fit. Loads no torch and no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shepherd.clients.personal import Personalization, personalizations
from shepherd.config import Config
from shepherd.errors import UsageError
from shepherd.server.clusters import check_clusters
from shepherd.server.method import Method
from shepherd.server.methods import build_method, check_ranks
from shepherd.server.pieces import control_misfits


def prepare_method(config: Config) -> Method:
    """The method of the recipe with its server optimizer. Raises UsageError for unknown pieces and misfits."""
    server, federation = config.server, config.federation
    method = build_method(federation.method, config.method.options, server.optimizer, server.options)
    check_ranks(method, config.lora.ranks, config.lora.r)
    if config.objective.scaffold:
        ranks = config.lora.ranks.values() if isinstance(config.lora.ranks, Mapping) else config.lora.ranks
        mixed = any(rank != config.lora.r for rank in ranks)
        problems = list(control_misfits(method.pieces, federation.weights, mixed))
        if problems:
            raise UsageError("\n".join(problems))
    if method.pieces.weigh.own and federation.max_weight < 1:
        raise UsageError(
            f'federation.max_weight = {federation.max_weight:g} cannot hold: weigh "{method.pieces.weigh.name}" of '
            f"{federation.method} makes weights of its own",
            hint='set method.weigh = "given", or leave federation.max_weight at 1',
        )
    return method


def rate_ratio(config: Config) -> float:
    """η_B / η_A of local training: the recipe's, or the method's own where that is 0."""
    return config.objective.rate_ratio or prepare_method(config).rate_ratio


def has_own_models(personal: Personalization, method: Method) -> bool:
    """Whether clients end with models of their own: by the personalization, or by parts that the method leaves them."""
    return personal.name != "none" or method.pieces.personal


def prepare_personal(config: Config, method: Method) -> Personalization:
    """What clients do for a model of their own. Raises UsageError where it does not fit the method."""
    table = config.personalization
    personal = replace(personalizations.build(table.name, table.options), name=table.name)
    if personal.clusters:
        check_clusters(method, config.objective.scaffold)
    if personal.pull is not None or personal.mix is not None:
        p = method.pieces
        lost = "there is nothing to be pulled towards" if personal.pull else "it is no whole model to be mixed with"
        reasons = {
            "its adapter begins anew, or elsewhere, each round": p.split.resets or p.view.name == "fresh",
            "what does not fit into its adapter changes the model under the second one": p.remainder.keeps,
            "its clients train a core": p.start.heads > 0,
            "its clients keep parts of their own already": p.personal,
        }
        for reason, holds in reasons.items():
            if holds:
                raise UsageError(
                    f'personalization.name = "{personal.name}" and federation.method = "{method.name}" do not fit: '
                    f"{reason}, so {lost}",
                    hint='use federation.method = "fedit", "ffa_lora", "rolora" or "flexlora", or personalization.name '
                    '= "finetune"',
                )
    return personal
