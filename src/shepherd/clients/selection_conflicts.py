"""Conflicts of a selection with the settings of `[federation]` and with the weighing of a method."""

from __future__ import annotations

from shepherd.clients.pool import Selection
from shepherd.clients.selection import _either


def conflicts(
    selection: Selection,
    *,
    weights: str = "examples",
    clients_per_round: int = 0,
    fraction: float = 1.0,
    min_updates: int = 1,
    on_too_few: str = "stop",
    over_select: float = 0.0,
    max_weight: float = 1.0,
    own_weighing: str = "",
    aggregator: str = "",
) -> list[str]:
    """One sentence for each setting of [federation] that conflicts with the selection: setting, reason, alternative.

    own_weighing: the method's weigh piece, if it ignores the weights of the round. aggregator: the rule in place of the
    weighted mean, if any.
    """
    found = []

    def clash(setting: str, why: str, instead: str) -> None:
        found.append(f'selection.name = "{selection.name}" and {setting} do not fit: {why}; {instead}')

    if weights not in selection.goes_with:
        why = "tokens are known only after a round, and its weights are fixed before"
        if selection.goes_with == ("examples",):
            why = "it draws clients by their examples, so its mean is by examples already"
        clash(f'federation.weights = "{weights}"', why, f"set federation.weights = {_either(selection.goes_with)}")
    if selection.sizes_itself and (clients_per_round or fraction < 1):
        setting = f"clients_per_round = {clients_per_round}" if clients_per_round else f"fraction = {fraction:g}"
        clash(f"federation.{setting}", "it determines the size of the cohort", "leave one of them out")
    if over_select and not selection.refills:
        clash(
            f"federation.over_select = {over_select:g}",
            "who counts would depend on speed, and its weights could not make up for that",
            "leave federation.over_select at 0 or take another selection, such as uniform",
        )
    if on_too_few == "wait" and not selection.refills:
        why = "it has sampled all" if selection.name == "everyone" else "its chances hold for one draw in a round"
        clash('federation.on_too_few = "wait"', why, 'set "skip" or "stop"')
    if selection.may_be_empty and min_updates > 1 and on_too_few == "stop":
        clash(
            f"federation.min_updates = {min_updates}",
            "a small draw would end the run",
            'set federation.on_too_few = "skip", or federation.min_updates = 1',
        )
    if max_weight < 1 and selection.fixed:
        clash(
            f"federation.max_weight = {max_weight:g}",
            "what is above the cap would go to the others, and its denominator is fixed",
            "leave federation.max_weight at 1, or bound updates with federation.max_update_norm",
        )
    if own_weighing and selection.weighs:
        clash(
            f'method.weigh = "{own_weighing}"',
            "both make weights, and only one of them can hold",
            'set method.weigh = "given", or selection.name = "uniform"',
        )
    if aggregator and selection.fixed:
        clash(
            f'federation.aggregator = "{aggregator}"',
            "its fixed denominator makes the mean unbiased, and an aggregator takes weights that sum to one",
            'set selection.name = "uniform", or leave federation.aggregator out',
        )
    return found
