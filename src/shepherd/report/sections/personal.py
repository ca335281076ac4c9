"""What a model of its own brings each client, as a section: base, alone, global, personal on its own held-out rows.

metrics.json holds it as "personal": {client: {"base": loss, "local": loss, "global": loss, "personal": loss,
"rows": held-out rows, "share": mean λ of a model that mixes}}; a loss is a number or {"loss": number}, and each may be
absent. Where clients share models, "clusters": {number: [client, …]} stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shepherd.report import charts
from shepherd.report.charts import Dots, Panel
from shepherd.report.findings import gap
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table, without_empty
from shepherd.report.sections.losses import AGAINST_BASE, extremes
from shepherd.report.wording import ABSENT, count, digits, left_out, listing, number, plural, shorten, signed

MODELS = {"base": "base", "local": "alone", "global": "global", "personal": "personal"}
STYLES = {"base": "base", "local": "local", "global": "federated", "personal": "s4"}


def personal(record: RunRecord, limits: Limits) -> Section | None:
    """Who gains and who loses by a personal model; None where the run has none."""
    given: Mapping[str, Mapping[str, Any]] = record.metrics.get("personal") or {}
    if not given:
        return None
    lines = []
    for client, losses in sorted(given.items()):
        line: dict[str, Any] = {"client": client, "rows": losses.get("rows")}
        line |= {model: _loss(losses.get(model)) for model in MODELS}
        line["share"] = number(losses.get("share"))
        line["gain"], line["gain_alone"] = (gap(line["personal"], line[other]) for other in ("global", "local"))
        lines.append(line)
    clusters: Mapping[str, list[str]] = record.metrics.get("clusters") or {}
    cluster_of = {client: name for name, members in clusters.items() for client in members}
    lines.sort(key=lambda line: (line["gain"] is None, line["gain"] or 0.0, line["client"]))
    text = []
    for key, other in (("gain", "the global model"), ("gain_alone", "the client trained alone")):
        judged = [line for line in lines if line[key] is not None]
        if not judged:
            continue
        better = sum(line[key] < 0 for line in judged)
        worse = [line["client"] for line in judged if line[key] > 0]
        text.append(
            f"Against {other}, the personal model has a lower loss for {better} of {plural(len(judged), 'client')}."
            + (f" It is worse for {listing([shorten(c, 32, middle=True) for c in worse])}." if worse else "")
        )
    if clusters:
        sizes = [f"{shorten(name, 32)} has {plural(len(members), 'client')}" for name, members in clusters.items()]
        text.append(
            "The personal model of a client is that of its cluster, which it chose by its training rows. "
            f"Of the clusters, {listing(sizes, 16)}."
        )
    text.append(
        "Each client is measured on its own held-out rows, which may be few: these are numbers without intervals."
    )
    drawn, cut = extremes(lines, limits.drawn)
    between = len(lines) - len(drawn)
    zero = any(line["base"] is not None for line in lines)
    series = [
        Dots(name, STYLES[model], [gap(line[model], line["base"] if zero else 0.0) for line in drawn])
        for model, name in MODELS.items()
        if any(line[model] is not None for line in lines) and not (zero and model == "base")
    ]
    picture = charts.dot_plot(
        [line["client"] for line in drawn],
        [Panel("", series)],
        title="Loss of each client: alone, global, personal" + (", against the base model" if zero else ""),
        description=f"{plural(len(drawn), 'client')}, sorted by personal minus global. " + " ".join(text[:1]),
        x_label=AGAINST_BASE if zero else "loss on its own held-out rows (nats per token)",
        zero=zero,
        gap_after=cut,
        gap_text=f"… {plural(between, 'client')} between these are left out of the picture",
    )
    shown, _ = extremes(lines, limits.rows)
    any_share = any(line["share"] is not None for line in shown)
    table = Table(
        "Loss of each client on its own held-out rows",
        (
            "Client",
            "Rows",
            "Cluster",
            "Base",
            "Alone",
            "Global",
            "Personal",
            "Personal − global",
            "Personal − alone",
            "Mean λ",
        ),
        [
            [
                line["client"],
                count(line["rows"]),
                cluster_of.get(line["client"], ABSENT),
                *(digits(line[model]) for model in MODELS),
                signed(line["gain"]),
                signed(line["gain_alone"]),
                digits(line["share"]),
            ]
            for line in shown
        ],
        note="A negative difference is a gain."
        + (" λ is the share of the local adapter in a model that mixes." if any_share else "")
        + left_out(len(lines), limits.rows, "client", "those that gain and lose most are shown"),
    )
    caption = "Each client, sorted by what its personal model brings over the global one: gains first, losses last."
    if zero:
        caption += " The dotted line is the base model on the same rows; further left is better."
    return Section("personal", "Personal models", text, [Figure(picture, caption, without_empty(table))])


def _loss(value: Any) -> float | None:
    return number(value.get("loss")) if isinstance(value, Mapping) else number(value)
