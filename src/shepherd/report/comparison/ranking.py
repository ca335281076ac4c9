"""Ranking of settings by federated loss, with paired tests over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from shepherd.report.wording import digits, from_to, listing, plural, shorten, signed

Losses = Mapping[tuple[Any, ...], float]
"""{(seed, model, held-out rows): federated loss}: only losses with the same key are compared."""

SHOWN = 8


def ranking(settings: Sequence[tuple[str, Losses]]) -> list[str]:
    """Sentences that compare the settings with the lowest mean loss to each of the others.

    Settings are (name, losses). The lowest is taken among settings that were measured with the same model and seeds on
    the same rows, by the mean over their shared keys; others are listed as not compared.
    """
    known = [(name, losses) for name, losses in settings if losses]
    if len(known) < 2:
        return []
    classes = _comparable(known)
    sentences = []
    for comparable in (members for members in classes if len(members) > 1):
        names = listing([_named(name) for name, _ in comparable])
        sentences += _lowest(comparable, "" if len(classes) == 1 else f"Among {names}: ")
    apart = [_named(members[0][0]) for members in classes if len(members) == 1]
    if apart and len(classes) > 1:
        sentences.append(
            f"Not compared, as no other setting was measured with the same model and seed on the same held-out rows: "
            f"{listing(apart)}."
        )
    if not any(len(members) > 1 for members in classes):
        sentences.insert(0, "No setting can be ranked the lowest.")
    return sentences


def _comparable(known: Sequence[tuple[str, Losses]]) -> list[list[tuple[str, Losses]]]:
    """Classes of settings whose members all share at least one key; a setting joins the first class that fits."""
    classes: list[tuple[set[tuple[Any, ...]], list[tuple[str, Losses]]]] = []
    for name, losses in known:
        for keys, members in classes:
            if keys & losses.keys():
                keys.intersection_update(losses)
                members.append((name, losses))
                break
        else:
            classes.append((set(losses), [(name, losses)]))
    return [members for _, members in classes]


def _lowest(settings: Sequence[tuple[str, Losses]], among: str) -> list[str]:
    shared = set.intersection(*(set(losses) for _, losses in settings))
    means = [fmean(losses[key] for key in shared) for _, losses in settings]
    mean, best = min((mean, at) for at, mean in enumerate(means))
    name, ours = settings[best]
    level = [_named(name) for (name, _), loss in zip(settings, means, strict=True) if loss == mean]
    if len(level) == len(settings):
        return [f"{among}The federated losses of {listing(level)} are equal, {digits(mean)} nats per token."]
    over = ""
    if any(set(losses) != shared for _, losses in settings):
        over = f" over {plural(len(shared), 'shared seed')}"
    sentences = [f"{among}Lowest federated loss{over}: {_named(name)}, {digits(mean)} nats per token."]
    others = [entry for at, entry in enumerate(settings) if at != best]
    sentences += [_against(ours, _named(name), theirs) for name, theirs in others[:SHOWN]]
    if len(others) > SHOWN:
        sentences.append(f"The table lists {plural(len(others) - SHOWN, 'further setting')}.")
    return sentences


def _named(name: str) -> str:
    return shorten(name, 60, middle=True)


def _against(losses: Losses, name: str, theirs: Losses) -> str:
    gaps = [losses[key] - theirs[key] for key in losses if key in theirs]
    mean = fmean(gaps)
    if len(gaps) == 1:
        return (
            f"Against {name} the difference is {signed(mean)} with the one seed in common; other seeds may reverse "
            "it, so this is inconclusive."
        )
    paired = f"paired over {plural(len(gaps), 'seed')}"
    if max(gaps) - min(gaps) < 1e-12:
        return f"Against {name} the difference is {signed(mean)} with every seed ({paired}), so there is no interval."
    from scipy.special import stdtrit  # lazily: a report does not wait for it

    half = float(stdtrit(len(gaps) - 1, 0.975)) * stdev(gaps) / math.sqrt(len(gaps))
    word = "better than" if mean + half < 0 else "worse than" if mean - half > 0 else "not distinguishable from"
    return (
        f"It is {word} {name}: {signed(mean)}, 95\N{NO-BREAK SPACE}% interval {from_to((mean - half, mean + half))} "
        f"({paired}, Student's t)."
    )
