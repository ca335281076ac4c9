"""What the figures of judged pairs mean, in sentences: verdicts first, then what limits them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shepherd.report.judge.figures import Judged, labels, total
from shepherd.report.wording import digits, from_to, listing, percent, plain, plural, shorten, signed, significant

MOST = 12
"""Most pairs that get a sentence; the tables have all."""


def verdicts(judged: Judged) -> list[str]:
    """A sentence per pair: what the judge says of b against a, with its interval."""
    pairs = judged["pairs"]
    sentences = [_verdict(pair) for pair in pairs[:MOST]]
    if len(pairs) > MOST:
        sentences.append(f"The tables below have {plural(len(pairs) - MOST, 'more pair')}.")
    return sentences


def _verdict(pair: Judged) -> str:
    a, b = (shorten(str(pair[side]), 60, middle=True) for side in ("a", "b"))
    verdict = {
        "higher": f"{b} is rated higher than {a}",
        "lower": f"{b} is rated lower than {a}",
        "equal within the margin": f"{b} and {a} are equal within the margin",
        "not distinguishable": f"{b} and {a} are not distinguishable",
        "no interval": f"Of {b} and {a} no interval can be given",
        "judge not fit": f"This judge is not fit to compare {b} with {a}",
    }.get(pair["verdict"], f"{b} and {a}")
    ends = f" (95 % interval {from_to(pair['ci95'])}, Holm p {significant(pair['holm_p'], 2)})" if pair["ci95"] else ""
    text = f"{verdict}: {signed(pair['difference'])} points per question{ends}."
    if (pair["wins"] - pair["losses"]) * pair["difference"] < 0:
        more = b if pair["wins"] > pair["losses"] else a
        most, least = max(pair["wins"], pair["losses"]), min(pair["wins"], pair["losses"])
        high, low = max(pair["total_a"], pair["total_b"]), min(pair["total_a"], pair["total_b"])
        text += (
            f" Both hold: {more} wins more questions ({most} to {least}, {pair['ties']} tied) and has the lower total "
            f"({total(low)} to {total(high)})."
        )
    return text


def unlike(judged: Judged) -> Iterator[str]:
    """In what the arms answered differently: decoding, template, precision."""
    for key in ("decoding", "template", "dtype"):
        ways: dict[str, list[str]] = {}
        for arm in judged["arms"]:
            if arm.get(key):
                ways.setdefault(plain(arm[key]), []).append(str(arm["name"]))
        if len(ways) > 1:
            which = "; ".join(f"{listing(names, 4)} with {way}" for way, names in ways.items())
            yield f"The arms did not answer alike, in {_ALIKE[key]}: {which}."


_ALIKE = {"decoding": "decoding", "template": "template", "dtype": "precision"}


def cautions(judged: Judged) -> Iterator[str]:
    """What the verdicts do not cover, the most important first."""
    pairs, names = judged["pairs"], labels(judged["pairs"])
    judge, calibration = judged["judge"], judged["judge"].get("calibration")
    if any(str(name).startswith("local:") for name in judge["asked"] or ()) and not (calibration or {}).get("fit"):
        yield "A local model judged, to try the plumbing: no figure here is evidence."
    if calibration and calibration.get("fit") is False:
        yield "This judge is not fit by its calibration, so its verdicts do not count."
    if others := [name for name in judge["answered"] or () if not any(
        str(name).startswith(str(asked)) for asked in judge["asked"] or ())]:  # fmt: skip
        yield f"The endpoint answered as {listing([str(name) for name in others])}, which was not the model asked for."
    turned = {str(file) for both in judged["orders"] for file in both["files"]}
    single = [name for name, pair in zip(names, pairs, strict=True)
              if pair["orders"] == 1 and str(pair["file"]) not in turned]  # fmt: skip
    if single:
        which = "" if len(single) == len(pairs) else f": {listing(single, 4)}"
        yield f"Judged in one order only{which}. A judge favours the answer that it is shown first."
    once = [name for name, pair in zip(names, pairs, strict=True) if pair["seeds"] == 1]
    if once:
        which = "" if len(once) == len(pairs) else f" ({listing(once, 4)})"
        yield f"One seed{which}: the verdicts hold for this training; other seeds may turn them."
    if (budget := judged["budget"]) and budget.get("equal") is False:
        yield f"The arms did not have equal budgets: {listing([str(d) for d in budget.get('differences') or ()])}."
    yield from unlike(judged)
    if trained := judged["questions"]["trained_on"]:
        yield f"Categories of these questions were trained on: {listing([str(each) for each in trained])}."
    small = [name for name, pair in zip(names, pairs, strict=True)
             if pair["verdict"] == "not distinguishable" and pair["smallest_difference"]]  # fmt: skip
    if small:
        least = min(pair["smallest_difference"] for pair in pairs if pair["smallest_difference"])
        yield f"This design finds differences from {digits(least)} points on with 80 % power; smaller ones it may miss."
    yield from _uncounted(pairs)
    if not any(each["items"] and each["with"] != "same judge" for each in judged["agreement"]):
        yield "Nobody checked whether people or a second judge agree with these verdicts."


def _uncounted(pairs: Sequence[Judged]) -> Iterator[str]:
    """Judgements and questions that are in no figure."""
    left = sum(pair["left_out"] for pair in pairs)
    if left:
        share = left / sum(pair["judgements"] for pair in pairs)
        yield f"{plural(left, 'judgement')} ({percent(share)}) without a score are left out."
    dropped = sum((pair.get("one_order") or 0) + (pair.get("lacking") or 0) for pair in pairs)
    if dropped:
        yield f"{plural(dropped, 'question')} of these pairs are in no figure, without a score in each order and seed."
    if superseded := sum(pair.get("superseded") or 0 for pair in pairs):
        yield f"{plural(superseded, 'judgement')} of answers that were written anew since are left out."
