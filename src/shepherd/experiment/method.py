"""The method, the personalization and the cohort of a recipe, or why they conflict. Loads no torch and no model.

`compose` builds them once for a run. `check_clients` needs the clients that the rows are divided over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from shepherd.arms import COMPARED, Arm, arm_named, in_order
from shepherd.clients.personal.methods import Personalization, personalizations
from shepherd.clients.pool import Selection
from shepherd.clients.selection import build_selection, cohort_size
from shepherd.clients.selection_conflicts import conflicts
from shepherd.config import Config
from shepherd.errors import ShepherdError, UsageError, plural
from shepherd.experiment.named_clients import client_ranks, kept_names
from shepherd.experiment.privacy_conflicts import check_privacy, check_private_clients
from shepherd.server.clusters import check_clusters
from shepherd.server.composition import control_conflicts
from shepherd.server.method import Method
from shepherd.server.methods import build_method, check_ranks
from shepherd.server.transform_conflicts import conflicts as transform_conflicts
from shepherd.types import ClientId
from shepherd.updates.clipping import clip_specs
from shepherd.updates.composition import build_transforms


def prepare_method(config: Config) -> Method:
    """The method of the recipe with its server optimizer. Raises UsageError for unknown pieces and conflicts."""
    server, federation = config.server, config.federation
    method = build_method(
        federation.method, config.method.options, server.optimizer, server.options, federation.aggregator
    )
    check_ranks(method, config.lora.ranks, config.lora.r)
    if config.objective.scaffold:
        ranks = config.lora.ranks.values() if isinstance(config.lora.ranks, Mapping) else config.lora.ranks
        mixed = any(rank != config.lora.r for rank in ranks)
        problems = list(control_conflicts(method.pieces, federation.weights, mixed))
        if problems:
            raise UsageError("\n".join(problems))
    if method.pieces.weigh.own and federation.max_weight < 1:
        raise UsageError(
            f'federation.max_weight = {federation.max_weight:g} cannot hold: weigh "{method.pieces.weigh.name}" of '
            f"{federation.method} makes weights of its own",
            hint='set method.weigh = "given", or leave federation.max_weight at 1',
        )
    return method


def doubts(config: Config) -> tuple[str, ...]:
    """Warnings about settings that are accepted together but lose the property that their names imply."""
    if not config.objective.scaffold:
        return ()
    federation, found = config.federation, []
    if config.training.optimizer != "sgd":
        found.append(
            f"objective.scaffold corrects the steps of training.optimizer = {config.training.optimizer!r}, which is a "
            'heuristic: SCAFFOLD settles at the optimum with "sgd" (docs/methods.md)'
        )
    if federation.max_weight < 1 and federation.quarantine_after:
        found.append(
            f"objective.scaffold weighs by federation.max_weight = {federation.max_weight:g} over all clients; once "
            "one is quarantined, the others keep these weights"
        )
    return tuple(found)


@dataclass(frozen=True)
class Composition:
    """What a recipe composes: the method with its server optimizer, the personalization, the arms, and η_B / η_A of
    training."""

    method: Method
    personal: Personalization
    arms: tuple[Arm, ...]
    rate_ratio: float

    @property
    def baselines(self) -> tuple[Arm, ...]:
        """The arms that are trained beside the federation, in their order."""
        return tuple(arm for arm in in_order(self.arms) if arm.train)

    @property
    def personal_models(self) -> bool:
        """Whether clients end with personal models: by the personalization, or by the method's local modules."""
        return self.personal.name != "none" or self.method.pieces.personal


def compose(config: Config) -> Composition:
    """The parts of a recipe, built once for a run. Raises UsageError for unknown names and for conflicts."""
    method = prepare_method(config)
    rate_ratio = config.objective.rate_ratio or method.rate_ratio
    personal = prepare_personal(config, method)
    check_clipping(config, method, personal)
    arms = prepare_arms(config.evaluation.arms)
    check_privacy(config, method, personal, arms)
    return Composition(method, personal, arms, rate_ratio)


def prepare_arms(names: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of a comparison. Raises UsageError for an unknown name, and where two arms share one."""
    found: dict[str, Arm] = {}
    for name in dict.fromkeys(names):
        arm = arm_named(name)
        if arm.name in found:
            raise UsageError(
                f"evaluation.arms names two arms {arm.name!r}: their results would lie in one place",
                hint=f"rename the function of {name}",
            )
        found[arm.name] = arm
    return tuple(found.values())


def prepare_personal(config: Config, method: Method) -> Personalization:
    """The personalization of the recipe. Raises UsageError where it does not fit the method."""
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


def check_clipping(config: Config, method: Method, personal: Personalization) -> None:
    """Raise UsageError where updates are to be clipped and carry more than their deltas."""
    wanted = config.federation.clip_update_norm
    limit = 1.0 if wanted == "median" else wanted
    problems = transform_conflicts(
        build_transforms(clip_specs(limit, wanted == "median")),
        method,
        weights=config.federation.weights,
        scaffold=config.objective.scaffold,
        clusters=personal.clusters,
        mixed_ranks=bool(config.lora.ranks),
    )
    if text := "\n".join(problems):
        raise UsageError(text)
    if wanted == "median" and len(method.pieces.train.sends) > 1:
        raise UsageError(
            f'federation.clip_update_norm = "median" and train "{method.pieces.train.name}" do not fit: A and B are '
            "sent in turn, and the norms of the one say nothing about the other",
            hint="set federation.clip_update_norm to a number",
        )


def check_length(config: Config, window: int | None) -> None:
    """Raise UsageError where rows may be longer than the model's window of positions, where it has one."""
    if window and config.data.max_length > window:
        raise UsageError(
            f"data.max_length = {config.data.max_length} is more than the {window} positions of {config.model.base}",
            hint=f"set data.max_length to at most {window}",
        )


# Who takes part


def check_clients(
    config: Config, composition: Composition, clients: tuple[ClientId, ...], labels: Mapping[ClientId, str]
) -> None:
    """Raise UsageError, for all conflicts at once, where the settings do not suit these clients, sorted by id."""
    method = composition.method
    found: list[ShepherdError] = []

    def attempt(step: Callable[[], object]) -> None:
        try:
            step()
        except UsageError as error:
            found.append(error)

    def clusters() -> None:
        wanted, size = composition.personal.clusters, prepare_selection(config, method, clients)[1]
        if wanted > size:
            raise UsageError(
                f"personalization.clusters = {wanted} start from a client each, and a round samples {size}",
                hint=f"set personalization.clusters to at most {size}, or federation.clients_per_round higher",
            )

    attempt(lambda: check_arms(config))
    attempt(lambda: client_ranks(config.lora, clients, labels))
    attempt(lambda: prepare_selection(config, method, clients))
    if not found:
        attempt(clusters)
        attempt(lambda: check_private_clients(config, len(clients), prepare_selection(config, method, clients)[1]))
    attempt(lambda: kept_names(config, composition.baselines, clients, labels))
    if found:
        raise UsageError("\n".join(error.message for error in found), next((e.hint for e in found if e.hint), ""))


def check_arms(config: Config) -> None:
    """Raise UsageError where the arms leave out what all are compared with."""
    missing = [arm for arm in COMPARED if arm not in config.evaluation.arms]
    if missing:
        raise UsageError(
            f"evaluation.arms must name {' and '.join(missing)}: the others are compared with them",
            hint=f"set evaluation.arms = {','.join([*missing, *config.evaluation.arms])}",
        )


def prepare_selection(config: Config, method: Method, clients: tuple[ClientId, ...]) -> tuple[Selection, int]:
    """The selection and the size of a cohort (its mean). Raises UsageError for all conflicts at once."""
    federation = config.federation
    selection = build_selection(config.selection.name, config.selection.options)
    problems = conflicts(
        selection,
        weights=federation.weights,
        clients_per_round=federation.clients_per_round,
        fraction=federation.fraction,
        min_updates=federation.min_updates,
        on_too_few=federation.on_too_few,
        over_select=federation.over_select,
        max_weight=federation.max_weight,
        own_weighing=method.pieces.weigh.name if method.pieces.weigh.own else "",
        aggregator=method.aggregator.name if method.aggregator else "",
    )
    there, hint = plural(len(clients), "client"), ""
    if federation.clients_per_round > len(clients):
        problems.append(
            f"federation.clients_per_round = {federation.clients_per_round} is more than the {there} of the data"
        )
        hint = f"set it to at most {len(clients)}; 0 samples federation.fraction of them"
    if federation.min_updates > len(clients):
        problems.append(f"federation.min_updates = {federation.min_updates} can never come from {there}")
        hint = hint or f"set it to at most {len(clients)}"
    if problems:
        raise UsageError("\n".join(problems), hint=hint)
    size = cohort_size(len(clients), federation.clients_per_round, federation.fraction)
    selection.check(clients, size)
    return selection, selection.cohort(len(clients), size)
