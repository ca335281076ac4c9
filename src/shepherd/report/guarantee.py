"""A run's guarantee in sentences, from the block `privacy` of summary.json, for reports, cards and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shepherd.report.wording import significant

Statement = Mapping[str, Any]


def guarantee_sentence(found: Statement) -> str:
    """Unit, relation, ε, δ, accountant, N, q, z, C and T in one sentence; that a run is not private comes first."""
    spent = "infinite" if found.get("epsilon") is None else significant(found["epsilon"], 4)
    other = "infinite" if found.get("epsilon_rdp") is None else significant(found["epsilon_rdp"], 4)
    pld = "infinite" if found.get("epsilon_pld") is None else significant(found["epsilon_pld"], 4)
    numbers = [
        f"N\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{_shown(found['clients'], ',')}",
        f"q\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{_shown(found['sampling_rate'])}",
        f"z\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{_shown(found['noise_multiplier'])}",
        f"C\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{_shown(found.get('clip'))}",
        f"T\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{_shown(found.get('releases', found.get('steps')))}",
    ]
    text = (
        f"Differential privacy: ε\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{spent} at δ\N{NO-BREAK SPACE}="
        f"\N{NO-BREAK SPACE}{_shown(found['delta'])} (accountant {found['accountant']}; PLD {pld}, RDP {other}), with "
        f"{', '.join(numbers)}. Unit: {found['unit']}. Relation: {found['relation']}."
    )
    return f"{not_private(found)} {text}" if not found["private"] else text


def not_private(found: Statement) -> str:
    """Why a run with the mechanism is not private; "" where it is."""
    if found["private"]:
        return ""
    if found.get("noise") == "repeatable":
        return "Not private: cohorts and noise follow from run.seed, because privacy.repeatable_noise is set."
    noise = found.get("noise_multiplier", 0)
    least, most = noise if isinstance(noise, list | tuple) else (noise, noise)
    if most == 0:
        return "Not private: it ran without noise."
    if least == 0:
        return "Not private: a part of its rounds ran without noise."
    return "Not private: its noise is too little for a bound of epsilon."


def published_sentence(found: Statement) -> str:
    """That a study keeps models without noise beside the released one; "" where a run keeps none."""
    if not found.get("publish_nothing"):
        return ""
    return (
        "privacy.publish_nothing is set: the run directory also holds models that were trained without noise. Nothing "
        "of it is for publication."
    )


def _shown(value: Any, form: str = "g") -> str:
    """A number, or the least and the most of several."""
    if isinstance(value, list | tuple):
        ends = [_shown(each, form) for each in value]
        return ends[0] if len(set(ends)) == 1 else " to ".join(ends)
    return "n/a" if value is None else f"{value:{form}}"
