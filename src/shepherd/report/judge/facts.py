"""Tables of how pairs were judged: the judge, the questions, the arms, what was left out, who agrees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from shepherd.report.judge.figures import Judged
from shepherd.report.page import Limits, Table, without_empty
from shepherd.report.wording import (
    ABSENT,
    count,
    digits,
    duration,
    from_to,
    left_out,
    listing,
    number,
    percent,
    plain,
    plural,
    shorten,
    signed,
    significant,
)

UNKNOWN = "not recorded"
UNCHECKED = "not checked"
_WITH = {"people": "people", "judge": "a second judge", "same judge": "the same judge again"}
HASH = 12
"""Digits of a hash that a table shows; judge.json has all."""


def facts(judged: Judged, _: Limits) -> Table:
    """Judge, questions, budget, probes, agreement and cost: each with a value, or the words that it is not known."""
    judge, questions = judged["judge"], judged["questions"]
    rows = [
        ("Judge, as asked", _list(judge["asked"])),
        ("Judge, as answered", _list(judge["answered"])),
        ("Endpoint", _list(judge["hosts"])),
        ("Date", _dates(judge)),
        ("Decoding", _decoding(judge)),
        ("Prompt", _prompts(judge)),
        ("Calibration", _calibration(judge.get("calibration"))),
        ("Questions", _questions(questions)),
        ("Categories trained on", _trained_on(questions)),
        ("Budget of the arms", _budget(judged["budget"])),
        ("Repeats", _repeats(judged)),
        ("Agreement", _agreement(judged)),
        ("Injection probes", _probes(judged["probes"])),
        *_calls(judged["calls"]),
    ]
    return Table("How the answers were judged", ("", ""), rows, texts=(0, 1))


def arms(judged: Judged, limits: Limits) -> Table:
    """What is known of each arm, without columns that are known of none."""
    known = judged["arms"]
    rows = [
        [
            shorten(str(arm["name"]), 48, middle=True),
            _short(arm["adapter_digest"]),
            arm["base"] or ABSENT,
            _short(arm["base_digest"]),
            arm["dtype"] or ABSENT,
            arm["template"] or ABSENT,
            plain(arm["decoding"]),
            digits(arm["mean_characters"], 0),
            percent(arm["cut"]),
        ]
        for arm in known[: limits.rows]
    ]
    columns = ("Arm", "Adapter", "Base", "Digest of the base", "Precision", "Template", "Decoding", "Characters",
               "Cut off")  # fmt: skip
    table = without_empty(Table("Arms", columns, rows, texts=(0, 1, 2, 3, 4, 5, 6)))
    unknown = [name for name in columns if name not in table.columns]
    note = f"Not recorded: {listing([name[0].lower() + name[1:] for name in unknown])}." if unknown else ""
    return Table(**vars(table) | {"note": note + left_out(len(known), limits.rows, "arm")})


def gaps(judged: Judged, limits: Limits) -> list[Table]:
    """Judgements that count in no figure and texts that are unparsed, by arm and by question; empty without any."""
    tables = []
    for what, key in (("arm", "by_arm"), ("question", "by_question")):
        found: Mapping[str, Mapping[str, int]] = judged["left_out"][key]
        reasons = sorted({reason for each in found.values() for reason in each})
        rows = [[name, *(count(each.get(reason, 0)) for reason in reasons)] for name, each in found.items()]
        if rows:
            tables.append(
                Table(
                    f"Judgements left out or unparsed, by {what}",
                    (what.capitalize(), *(reason.capitalize() for reason in reasons)),
                    rows[: limits.rows],
                    note="A judgement concerns two arms and is counted for both; a recorded score counts although its "
                    "text is unparsed." * (what == "arm") + left_out(len(rows), limits.rows, what),
                )
            )
    return tables


def agreements(judged: Judged, limits: Limits) -> Table | None:
    """Agreement with second judges and with people; None where nobody checked."""
    rows = [
        [
            _WITH.get(str(found["with"]), str(found["with"])),
            _source(found),
            count(found["items"]),
            percent(found.get("share")),
            between_shares(found.get("share_ci95")),
            digits(found.get("kappa"), 2),
            from_to_plain(found.get("kappa_ci95")),
            percent(found.get("decided_share")),
        ]
        for found in judged["agreement"]
    ]
    if not rows:
        return None
    return Table(
        "Agreement with the judge",
        ("With", "Source", "Verdicts", "Same", "95 % interval", "Cohen's κ", "95 % interval", "Same, without ties"),
        rows[: limits.rows],
        texts=(0, 1),
        note="On the same two answers; intervals by the jackknife over questions."
        + left_out(len(rows), limits.rows, "row"),
    )


def between_shares(ends: Any) -> str:
    """An interval of shares, in per cent."""
    return f"{percent(ends[0])} to {percent(ends[1])}" if ends else ABSENT


def from_to_plain(ends: Any) -> str:
    """An interval of values without signs of plus."""
    return f"{digits(ends[0], 2)} to {digits(ends[1], 2)}" if ends else ABSENT


def _list(names: Any) -> str:
    return listing([shorten(str(name), 60) for name in names], 4) if names else UNKNOWN


def _short(digest: Any) -> str:
    return str(digest)[:HASH] if digest else ABSENT


def _dates(judge: Judged) -> str:
    ends = [str(judge[key])[:10] for key in ("first", "last") if judge[key]]
    return " to ".join(dict.fromkeys(ends)) or UNKNOWN


def _decoding(judge: Judged) -> str:
    text = listing([plain(each) for each in judge["decoding"]], 3) if judge["decoding"] else UNKNOWN
    return f"{text}; ignored by the endpoint: {_list(judge['ignored'])}" if judge["ignored"] else text


def _prompts(judge: Judged) -> str:
    prompts = judge["prompts"]
    return listing([f"{one['id']} (sha256 {_short(one['sha256'])}…)" for one in prompts], 4) if prompts else UNKNOWN


def _calibration(found: Any) -> str:
    if not found:
        return UNCHECKED
    fit = "fit" if found.get("fit") else "not fit: no verdicts"
    pairs = f" of {plural(found['pairs'], 'pair')}" if number(found.get("pairs")) is not None else ""
    return f"{percent(found.get('accuracy'))} right{pairs}, {percent(found.get('flips'))} turn with the order; {fit}"


def _questions(questions: Judged) -> str:
    source, licence, digest = (questions[key] for key in ("source", "licence", "sha256"))
    of = plural(len(questions["categories"]), "category") if questions["categories"] else f"categories {UNKNOWN}"
    ids = listing([str(each) for each in questions["ids"]], 4)
    return (
        f"{count(questions['count'])} ({ids}), {of}; source {shorten(str(source), 60) if source else UNKNOWN}; licence "
        f"{licence or UNKNOWN}; sha256 {_short(digest) + '…' if digest else UNKNOWN}"
        + (
            f"; the judge saw reference answers to {count(seen)}"
            if (seen := questions["reference_answers_shown"])
            else ""
        )
    )


def _trained_on(questions: Judged) -> str:
    trained = questions["trained_on"]
    return UNKNOWN if trained is None else listing([str(each) for each in trained], 12) if trained else "none"


def _budget(budget: Any) -> str:
    if not budget or budget.get("equal") is None:
        return UNKNOWN
    differing = [str(each) for each in budget.get("differences") or ()]
    return "equal" if budget["equal"] else f"not equal: {listing(differing, 6)}" if differing else "not equal"


def _repeats(judged: Judged) -> str:
    most = max(pair["repeats"] for pair in judged["pairs"])
    if most == 1:
        return "each judgement once"
    sds = [sd for pair in judged["pairs"] if (sd := number(pair["repeats_sd"])) is not None]
    spread = f"standard deviation {digits(min(sds))} to {digits(max(sds))} points" if sds else UNKNOWN
    return f"{plural(most, 'time')}; {spread}"


def _agreement(judged: Judged) -> str:
    found = [each for each in judged["agreement"] if each["items"]]
    if not found:
        return UNCHECKED
    return listing([
        f"{_WITH.get(str(each['with']), each['with'])} {percent(each['share'])}, κ "
        f"{digits(each['kappa'], 2)} on {count(each['items'])}" for each in found
    ], 4)  # fmt: skip


def _source(found: Judged) -> str:
    source = found.get("source")
    if found["with"] == "people":
        unmatched = f" ({plural(found['unmatched'], 'label')} on other answers)" if found.get("unmatched") else ""
        judges = "".join(f"{listing([*map(str, each)])}: " for each in found.get("judges") or ())
        return judges + shorten(str(source), 60, middle=True) + unmatched
    return " and ".join(shorten(PurePath(str(each)).name, 44, middle=True) for each in source or ())


def _probes(found: Any) -> str:
    """The shift of each way of injection."""
    ways = [
        f"{way} {signed(each['shift'])} points{_ends(each)} over {count(each.get('probes'))} probes"
        for way, each in (found or {}).items()
        if isinstance(each, Mapping) and number(each.get("shift")) is not None
    ]
    return f"rating of a weak answer moves: {'; '.join(ways)}" if ways else UNCHECKED


def _ends(found: Mapping[str, Any]) -> str:
    return f" (95 %: {from_to(found['ci95'])})" if found.get("ci95") else ""


def _calls(found: Any) -> list[tuple[str, str]]:
    found = found or {}
    tokens = [f"{count(found[key])} {way}" for key, way in (("tokens_in", "in"), ("tokens_out", "out"))
              if number(found.get(key)) is not None]  # fmt: skip
    cost = number(found.get("cost"))
    money = UNKNOWN if cost is None else f"{significant(cost)} {found.get('currency') or ''}".strip()
    return [
        ("Calls", _known(found, "calls", count)),
        ("Tokens", ", ".join(tokens) or UNKNOWN),
        ("Cost", money),
        ("Cache hits", _known(found, "cache_hits", count)),
        ("Wall time", _known(found, "wall_seconds", duration)),
    ]


def _known(found: Mapping[str, Any], key: str, write: Any) -> str:
    return UNKNOWN if number(found.get(key)) is None else write(found[key])
