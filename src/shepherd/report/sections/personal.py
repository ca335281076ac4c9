"""Personal models: base, alone, global and personal loss of each client on its own held-out rows.

metrics.json holds them as "personal": {client: {"base": loss, "local": loss, "global": loss, "personal": loss,
"rows": held-out rows, "share": mean λ of a model that mixes}}; a loss is a number or {"loss": number}, and each may be
absent. Where clients share models, "clusters": {number: [client, …]} names the members of each cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from shepherd.arms import arm_named
from shepherd.report import charts
from shepherd.report.charts import Dots, Panel
from shepherd.report.findings import gap
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table, without_empty
from shepherd.report.wording import (
    ABSENT,
    AGAINST_BASE,
    count,
    digits,
    left_out,
    listing,
    number,
    plural,
    shorten,
    signed,
)

PERSONAL_STYLE = "s4"
MODELS = {
    "base": (arm_named("base").label, "base"),
    "local": ("alone", "local"),
    "global": ("global", "federated"),
    "personal": ("personal", PERSONAL_STYLE),
}
"""The models that a client is measured with: (name, style of its mark). The global one is that of the federated arm."""


@dataclass(frozen=True)
class PersonalLosses:
    """A client's losses by model, its held-out rows, and the mean share λ of its local adapter where models mix."""

    client: str
    losses: Mapping[str, float | None]
    rows: Any
    share: float | None

    def gain_over(self, model: str) -> float | None:
        """Personal − `model`: negative where the personal model is better."""
        return gap(self.losses["personal"], self.losses[model])


def personal_losses(record: RunRecord) -> list[PersonalLosses]:
    """The losses of every client with a personal model, the largest gain over the global one first."""
    given: Mapping[str, Mapping[str, Any]] = record.metrics.get("personal") or {}
    found = [
        PersonalLosses(
            client,
            {model: _loss(losses.get(model)) for model in MODELS},
            losses.get("rows"),
            number(losses.get("share")),
        )
        for client, losses in sorted(given.items())
    ]

    def order(line: PersonalLosses) -> tuple[bool, float, str]:
        gain = line.gain_over("global")
        return gain is None, gain or 0.0, line.client

    return sorted(found, key=order)


def personal(record: RunRecord, limits: Limits) -> Section | None:
    """Gains and losses by personal models; None where the run has none."""
    lines = personal_losses(record)
    if not lines:
        return None
    clusters: Mapping[str, list[str]] = record.metrics.get("clusters") or {}
    text = _text(lines, clusters)
    zero = any(line.losses["base"] is not None for line in lines)
    caption = "Loss of each client, sorted by personal minus global: the largest gain first."
    if zero:
        caption += " The dotted line is the base model on the same rows; further left is better."
    figure = Figure(_picture(lines, limits, zero, text[:1]), caption, _table(lines, clusters, limits))
    return Section("personal", "Personal models", text, [figure])


def _text(lines: Sequence[PersonalLosses], clusters: Mapping[str, list[str]]) -> list[str]:
    text = []
    for other, name in (("global", "the global model"), ("local", "the client trained alone")):
        known = [(line.client, gain) for line in lines if (gain := line.gain_over(other)) is not None]
        if not known:
            continue
        better = sum(gain < 0 for _, gain in known)
        worse = [client for client, gain in known if gain > 0]
        text.append(
            f"Against {name}, the personal model has a lower loss for {better} of {plural(len(known), 'client')}."
            + (f" It is worse for {listing([shorten(c, 32, middle=True) for c in worse])}." if worse else "")
        )
    if clusters:
        sizes = [f"{len(members)} in {shorten(name, 32)}" for name, members in clusters.items()]
        text.append(
            "The personal model of a client is the model of its cluster, chosen by the loss on its training rows. "
            f"Clients by cluster: {listing(sizes, 16)}."
        )
    text.append("Each client is measured on its own held-out rows, which may be few; these values have no intervals.")
    return text


def _picture(lines: Sequence[PersonalLosses], limits: Limits, zero: bool, text: Sequence[str]) -> Markup:
    drawn, cut = charts.extremes(lines, limits.drawn)
    series = [
        Dots(name, style, [gap(line.losses[model], line.losses["base"] if zero else 0.0) for line in drawn])
        for model, (name, style) in MODELS.items()
        if any(line.losses[model] is not None for line in lines) and not (zero and model == "base")
    ]
    return charts.dot_plot(
        [line.client for line in drawn],
        [Panel("", series)],
        title="Loss of each client: alone, global, personal" + (", against the base model" if zero else ""),
        description=f"{plural(len(drawn), 'client')}, sorted by personal minus global. " + " ".join(text),
        x_label=AGAINST_BASE if zero else "loss on its own held-out rows (nats per token)",
        zero=zero,
        gap_after=cut,
        gap_text=f"… {plural(len(lines) - len(drawn), 'client')} in between are not drawn",
    )


def _table(lines: Sequence[PersonalLosses], clusters: Mapping[str, list[str]], limits: Limits) -> Table:
    shown, _ = charts.extremes(lines, limits.rows)
    cluster_of = {client: name for name, members in clusters.items() for client in members}
    mixes = any(line.share is not None for line in shown)
    names = [name.capitalize() for name, _ in MODELS.values()]
    table = Table(
        "Loss of each client on its own held-out rows",
        ("Client", "Rows", "Cluster", *names, "Personal − global", "Personal − alone", "Mean λ"),
        [
            [
                line.client,
                count(line.rows),
                cluster_of.get(line.client, ABSENT),
                *(digits(line.losses[model]) for model in MODELS),
                signed(line.gain_over("global")),
                signed(line.gain_over("local")),
                digits(line.share),
            ]
            for line in shown
        ],
        note="A negative difference is a gain."
        + (" λ is the share of the local adapter in a model that mixes." if mixes else "")
        + left_out(len(lines), limits.rows, "client", "the largest gains and losses are shown"),
    )
    return without_empty(table)


def _loss(value: Any) -> float | None:
    return number(value.get("loss")) if isinstance(value, Mapping) else number(value)
