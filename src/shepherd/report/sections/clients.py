"""Losses per client: base, alone and federated, on the client's own held-out rows and on all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from shepherd.report import charts, findings
from shepherd.report.charts import Dots, Panel
from shepherd.report.findings import gap
from shepherd.report.load import RunRecord
from shepherd.report.page import Figure, Limits, Section, Table, without_empty
from shepherd.report.wording import (
    ABSENT,
    AGAINST_BASE,
    HELD_OUT_LOSS,
    count,
    digits,
    from_to,
    left_out,
    listing,
    number,
    percent,
    plural,
    shorten,
    signed,
)

Loss = float | None
BASE, ALONE, FEDERATED = range(3)
"""Places in a `ClientLosses`' tuples."""


@dataclass(frozen=True)
class ClientLosses:
    """A client's (base, alone, federated) losses on its own held-out rows and on all of them.

    interval: of the difference federated − alone on its own rows, where the run has one.
    """

    client: str
    own: tuple[Loss, Loss, Loss]
    all: tuple[Loss, Loss, Loss]
    interval: tuple[float, float] | None = None

    @property
    def gain_own(self) -> Loss:
        return gap(self.own[FEDERATED], self.own[ALONE])

    @property
    def gain_all(self) -> Loss:
        return gap(self.all[FEDERATED], self.all[ALONE])


def client_losses(record: RunRecord) -> list[ClientLosses]:
    """The losses of every client, the largest gain on its own rows first; empty where none were measured."""
    arms, alone = findings.measured(record), findings.local_arms(record)
    base, federated = arms.get("base") or {}, arms.get("federated") or {}
    if not (alone or federated.get("per_client")):
        return []
    differences = findings.own_rows(record)

    def own(arm: Mapping[str, Any], client: str) -> Loss:
        return number((arm.get("per_client") or {}).get(client, {}).get("loss"))

    found = []
    for client in sorted(record.partition.get("clients") or alone):
        local = alone.get(client, {})
        difference = differences.get(client)
        found.append(
            ClientLosses(
                client,
                (own(base, client), own(local, client), own(federated, client)),
                (number(base.get("loss")), number(local.get("loss")), number(federated.get("loss"))),
                difference.interval if difference else None,
            )
        )
    return sorted(found, key=lambda line: (line.gain_own is None, line.gain_own or 0.0, line.client))


def clients(record: RunRecord, limits: Limits) -> Section:
    """Each client: base, alone and federated, on its own held-out rows and on all of them."""
    heading = "Per client"
    lines = client_losses(record)
    if not lines:
        return Section("clients", heading, ["No losses per client were measured."])
    text = _text(record, lines)
    zero = any(losses[BASE] is not None for line in lines for losses in (line.own, line.all))
    caption = "Loss of each client, sorted by federated minus alone on its own held-out rows: the largest gain first."
    if zero:
        caption += " The dotted line is the base model on the same rows; further left is better."
    picture = _picture(lines, limits, zero, text[:1])
    return Section("clients", heading, text, [Figure(picture, caption, _table(record, lines, limits))])


def _text(record: RunRecord, lines: Sequence[ClientLosses]) -> list[str]:
    text = []
    known = [(line, gain) for line in lines if (gain := line.gain_own) is not None]
    if known:
        better = sum(gain < 0 for _, gain in known)
        better_all = sum((line.gain_all or 0) < 0 for line, _ in known)
        losers = [line.client for line, gain in known if gain > 0]
        text.append(
            "On a client's own held-out rows, the federated model has a lower loss than the client's local model for "
            f"{better} of {plural(len(known), 'client')}; on all held-out rows, for {better_all} of {len(known)}."
            + (
                f" Better alone on their own rows: {listing([shorten(c, 32, middle=True) for c in losers])}."
                if losers
                else ""
            )
        )
        if not any(line.interval for line in lines):
            text.append("These values have no intervals: interpret small differences with care.")
    failed = [f"{f.get('client')} ({f.get('detail')})" for f in record.summary.get("failed") or []]
    if failed:
        text.append(
            f"Training alone failed, so these clients are in no figure: {listing([shorten(f, 80) for f in failed])}."
        )
    alone = findings.local_arms(record)
    if alone and len(alone) < len(lines):
        text.append(f"{len(alone)} of {plural(len(lines), 'client')} trained alone; the others have no local model.")
    return text


def _picture(lines: Sequence[ClientLosses], limits: Limits, zero: bool, text: Sequence[str]) -> Markup:
    drawn, cut = charts.extremes(lines, limits.drawn)

    def dots(place: int, name: str, style: str, losses: Sequence[tuple[Loss, Loss, Loss]]) -> Dots:
        return Dots(name, style, [gap(each[place], each[BASE]) if zero else each[place] for each in losses])

    panels = [
        Panel(title, [dots(ALONE, "alone", "local", losses), dots(FEDERATED, "federated", "federated", losses)])
        for title, losses in (
            ("on its own held-out rows", [line.own for line in drawn]),
            ("on all held-out rows", [line.all for line in drawn]),
        )
    ]
    return charts.dot_plot(
        [line.client for line in drawn],
        panels,
        title="Loss of each client, alone and federated" + (", against the base model" if zero else ""),
        description=f"{plural(len(drawn), 'client')}, sorted by federated minus alone on their own held-out rows. "
        + " ".join(text),
        x_label=AGAINST_BASE if zero else HELD_OUT_LOSS,
        zero=zero,
        gap_after=cut,
        gap_text=f"… {plural(len(lines) - len(drawn), 'client')} in between are not drawn",
    )


def _table(record: RunRecord, lines: Sequence[ClientLosses], limits: Limits) -> Table:
    shown, _ = charts.extremes(lines, limits.rows)
    held = findings.rows_held(record)
    rows = [
        [
            line.client,
            count(sum(held[line.client].values())) if line.client in held else ABSENT,
            _mostly(line.client, held.get(line.client, {})),
            *(digits(v) for v in line.own),
            signed(line.gain_own),
            from_to(line.interval),
            *(digits(v) for v in line.all[1:]),
            signed(line.gain_all),
        ]
        for line in shown
    ]
    compared = ("Alone", "Federated", "Difference")
    table = Table(
        "Loss of each client",
        ("Client", "Rows", "Main category", "Base", *compared, findings.INTERVAL, *compared),
        rows,
        texts=(0, 2),
        groups=(("", 3), ("On its own held-out rows", 5), ("On all held-out rows", 3)),
        note="Own rows: the held-out rows of the client's categories, or of its sources where the partition is by "
        "source. Difference: federated minus alone; a negative one is a gain. Interval: of the difference on the "
        "client's own rows, by Student's t over them."
        + left_out(len(lines), limits.rows, "client", "the largest gains and losses are shown"),
    )
    return without_empty(table)


def _mostly(client: str, held: Mapping[str, int]) -> str:
    """The category of most of a client's rows; absent for a client that is named after the only one it holds."""
    total = sum(held.values())
    if not total:
        return ABSENT
    most = min(held, key=lambda c: (-held[c], c))
    if most == client and held[most] == total:
        return ABSENT
    return f"{shorten(most, 24)} {percent(held[most] / total, 0)}"
