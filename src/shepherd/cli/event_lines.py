"""Events of a run as lines: plain text on stderr, or JSON on stdout."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import click

from shepherd.cli import interrupts, output
from shepherd.outcomes import entry_outcome
from shepherd.report import wording

if TYPE_CHECKING:
    from shepherd.experiment import events

SECONDS_BETWEEN_LINES = 30
FORMER_ROUNDS_SHOWN = 5
"""Most recent committed rounds shown of a resumed run."""


class Observer:
    """A receiver of the events of one run, and a context that ends its display."""

    run: str | None = None
    """The run directory, once the run has started."""
    labels: Mapping[str, str] = MappingProxyType({})
    """Names of clients that differ from their ids, once the run has started."""

    def __call__(self, event: events.Event) -> None:
        if event["event"] == "start":
            self.run, self.labels = event["run"], event["labels"]
        interrupts.check()
        self.show(event)

    def show(self, event: events.Event) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """End the display; a second call has no effect."""

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()


class JsonLines(Observer):
    """One JSON object per line on stdout; a failure adds {"event": "error", …} as the last."""

    def show(self, event: events.Event) -> None:
        click.echo(output.to_json(event))


class PlainLines(Observer):
    """One line per phase, round, evaluation and warning on stderr, for a site that comes or goes, and every 30 s within
    a long round."""

    def __init__(self) -> None:
        self.started: events.StartEvent | None = None
        self.last_line = time.monotonic()
        self.present: set[str] = set()

    def show(self, event: events.Event) -> None:
        event = named(event, self.labels)
        if event["event"] == "start":
            self.started = event
        if event["event"] == "sites":
            present = {name for name, row in event["sites"].items() if row["present"]}
            for name in sorted(present ^ self.present):
                self.write(f"{name} is {'connected' if name in present else 'gone'}")
            self.present = present
            return
        waited = time.monotonic() - self.last_line
        line = "" if event["event"] == "step" and waited < SECONDS_BETWEEN_LINES else describe(event, self.started)
        if line:
            self.last_line = time.monotonic()
            self.write(line)

    def write(self, line: str) -> None:
        output.note(line)


def named(event: events.Event, labels: Mapping[str, str]) -> events.Event:
    """Replace client ids by names in an event."""
    if not labels:
        return event

    def name(client: str) -> str:
        return wording.shorten(labels.get(client, client), 64, middle=True)

    if event["event"] == "clients" or event["event"] == "step":
        rows = {labels.get(c, c): row for c, row in event["clients"].items()}
        return cast("events.Event", {**event, "clients": rows})
    if event["event"] == "round" or event["event"] == "committed":
        rejected = [{**entry, "client": name(entry["client"])} for entry in event.get("rejected") or ()]
        silent = {"missing": [*map(name, event.get("missing") or ())], "late": [*map(name, event.get("late") or ())]}
        return cast("events.Event", {**event, "rejected": rejected, **silent})
    return event


def describe(event: events.Event, started: events.StartEvent | None = None) -> str:
    """Describe an event in one line; empty for events without one. started: the run's "start" event."""
    match event["event"]:
        case "start":
            clients, rounds = wording.plural(len(event["clients"]), "client"), wording.plural(event["rounds"], "round")
            line = f"run {event['run']}: {event['model']}, {clients}, {rounds}; arms: {', '.join(event['arms'])}"
            return line + (f"; resumed after round {event['round']}" if event["round"] else "")
        case "phase":
            arm = f" ({event['arm']})" if event["arm"] else ""
            return event["phase"] + arm + (f": {event['detail']}" if event["detail"] else "")
        case "step":
            left, speed = wording.duration(event["eta_seconds"]), wording.count(round(event["tokens_per_second"]))
            return f"{position(event)}: {wording.percent(event['fraction'], 0)} done, {speed} tokens/s, {left} left"
        case "committed" if started and event["round"] <= started["round"] - FORMER_ROUNDS_SHOWN:
            return ""
        case "round" | "committed":
            return _round(event, started["rounds"] if started else 0)
        case "evaluation":
            at = f" after round {event['round']}" if event["round"] else ""
            return f"{event['arm']}{at}: held-out loss {wording.digits(event['loss'])}"
        case "warning":
            return f"warning: {event['message']}"
    return ""


def _round(event: events.RoundEvent | events.CommittedEvent, rounds: int) -> str:
    """One line about a round; fields that an older version did not write are left out."""
    losses = [loss for loss in (event.get("train_loss") or {}).values() if wording.number(loss) is not None]
    mean = sum(losses) / len(losses) if losses else None
    before = " (before)" if event["event"] == "committed" else ""
    parts = [f"round {event['round']}" + (f"/{rounds}" if rounds else "") + before]
    parts.append(f"{wording.plural(len(event['cohort']), 'client')}, training loss {wording.digits(mean)}")
    if event.get("held_out_loss") is not None:
        parts.append(f"held-out loss {wording.digits(event['held_out_loss'])}")
    parts.append(f"{wording.size(event.get('bytes_up'))} up")
    parts.append(wording.duration(sum((event.get("seconds") or {}).values())))
    for entry in event.get("rejected") or ():
        parts.append(f"{entry_outcome(entry)} {entry['client']} ({entry['code']}: {entry['detail']})")
    if event.get("missing"):
        parts.append(f"lost {wording.listing(list(event['missing']))}")
    if event.get("late"):
        parts.append(f"late {wording.listing(list(event['late']))}")
    return ", ".join(parts)


def position(event: events.ClientsEvent | events.StepEvent) -> str:
    """The position in the run, e.g. "federated, round 2/8"."""
    arm = event["arm"]
    return "personal models" if arm == "personal" else f"{arm}, round {event['round']}/{event['rounds']}"
