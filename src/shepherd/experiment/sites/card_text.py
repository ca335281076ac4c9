"""A run card in plain words, for the person who approves it: what is computed, and what would leave the site."""

from __future__ import annotations

from shepherd.federation.cards import Policy, RunCard
from shepherd.federation.site_privacy import epsilon_of
from shepherd.report.wording import count, plural, size


def card_lines(card: RunCard, policy: Policy, rows: str) -> list[tuple[str, str]]:
    """(what, in words) for each part of a card. rows: where the rows of the site are."""
    federation, training, personal = card.federation, card.training, card.personalization.name
    work = plural(training.local_steps, "step") if training.local_steps else f"{training.local_epochs:g} epochs"
    private = card.privacy
    sites = f"{plural(federation.min_updates, 'site')} or more"
    if private is not None and private.unit == "client":
        sites = f"{private.cohort:g} of {plural(private.sites, 'site')} on average, drawn at random"
    lines = [
        ("run", f"{card.name or 'without a name'}, id {card.run}"),
        ("base model", f"{card.base.name}, digest {card.base.digest[:12]}"),
        ("method", f"{federation.method}, {plural(federation.rounds, 'round')}, each with {sites}"),
        ("each round", f"trains on your rows for {work} of {training.batch_size}, learning rate "
                       f"{training.learning_rate:g}, rows cut at {card.data.max_length} tokens"),
    ]  # fmt: skip
    if personal != "none":
        lines.append(("own model", f"{personal}: made of your rows, kept on this machine"))
    lines += [
        ("leaves here", f"each round an update of the adapter: {count(card.parameters)} numbers, about "
                        f"{size(4 * card.parameters)}"),
        ("", _rows(policy)),
        ("", "the planned numbers of rows and steps; progress in steps, without losses"
             if private is not None and private.unit == "example" else
             "the mean loss, the number of steps and of target tokens of a round; progress while it trains"),
        ("", _held_out(card, policy)),
        ("stays here", f"the rows in {rows}: texts, answers, ids, paths, and errors in words"),
        ("protection", _protection(card)),
    ]  # fmt: skip
    if card.objective.scaffold:
        lines.insert(-3, ("", "a control variate (SCAFFOLD), of the size of the update"))
    return lines


def _rows(policy: Policy) -> str:
    least = policy.min_rows_tell
    return "the number of your rows" + (f", as {count(least)} where it is smaller" if least else "")


def _held_out(card: RunCard, policy: Policy) -> str:
    if card.privacy is not None:
        return "no measure of held-out rows: in a private run all of your rows are trained on"
    if not card.data.held_out_per_category:
        return "no measure: the coordinator has held-out rows"
    names = "by category, with the names" if policy.categories == "shown" else "without names of categories"
    return f"losses of held-out rows as sums over at least {plural(policy.least_group, 'row')}, {names}"


def _protection(card: RunCard) -> str:
    offered = f"the run offers: {', '.join(card.offers)}. " if card.offers else ""
    if (found := card.privacy) is not None:
        each = f"q = {found.sampling_rate:g}, " if found.unit == "client" else ""
        epsilon = epsilon_of(card)
        own = f", epsilon = {epsilon:.4g} by this site's accountant, for all rounds" if epsilon is not None else ""
        test = "NOT private, a test: the noise can be computed by others. " if found.noise != "secret" else ""
        return (
            f"{offered}TLS on the way. {test}Differential privacy of each {found.unit}: clip {found.clip:g}, noise "
            f"multiplier {found.noise_multiplier:g}, {each}delta = {found.delta:g}{own}. {found.trust}"
        )
    return (
        offered + "TLS on the way. The coordinator sees each update of this site; an update says something of the rows"
    )
