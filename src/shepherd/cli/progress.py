"""Progress of a run: events in; a live table, plain lines or JSON lines out.

    with observer() as watch:
        experiment.run(config, observer=watch)

An observer is called with the dicts of `experiment/events.py`, listed in docs/events.md. Table and lines go to stderr,
JSON goes to stdout. Observers do not change the run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import click

from shepherd.cli import interrupts, output
from shepherd.outcomes import entry_outcome
from shepherd.report import wording

if TYPE_CHECKING:
    from shepherd.experiment import events

REFRESH_PER_SECOND = 3
CLIENTS_SHOWN = 16
NARROW = 60
"""Terminals with fewer columns show the clients' names in place of their speeds."""
SECONDS_BETWEEN_LINES = 30
FORMER_ROUNDS_SHOWN = 5
"""Most recent committed rounds shown of a resumed run."""


def observer(as_json: bool = False, plain: bool = False) -> Observer:
    """JSON lines on request; a live table if stderr is a colour terminal; plain lines otherwise."""
    if as_json:
        return JsonLines()
    return PlainLines() if plain or not output.colours(sys.stderr) else LiveTable()


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
    """One line per phase, round, evaluation and warning on stderr, and every 30 s within a long round."""

    def __init__(self) -> None:
        self.started: events.StartEvent | None = None
        self.last_line = time.monotonic()

    def show(self, event: events.Event) -> None:
        event = named(event, self.labels)
        if event["event"] == "start":
            self.started = event
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
            return f"{_position(event)}: {wording.percent(event['fraction'], 0)} done, {speed} tokens/s, {left} left"
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


class LiveTable(Observer):
    """A table with a row for each client of the cohort, redrawn in place; rounds and losses scroll past above it."""

    def __init__(self, console: Any = None) -> None:
        import psutil
        from rich.console import Console
        from rich.live import Live

        self.process = psutil.Process()
        self.console = console or Console(stderr=True)
        self.started: events.StartEvent | None = None
        self.step: events.ClientsEvent | events.StepEvent | None = None
        self.fraction = self.speed = 0.0
        self.left: float | None = None
        self.at: tuple[Any, ...] = ()
        self.clients: dict[str, events.ClientRow] = {}
        self.phase = ""
        self.training = False
        self.sent = 0
        self.measured = ""
        self.live = Live(
            console=self.console,
            get_renderable=self.render,
            refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def show(self, event: events.Event) -> None:
        event = named(event, self.labels)
        match event["event"]:
            case "start":
                self.started, self.fraction = event, event["fraction"]
            case "phase":
                self.phase = " ".join(filter(None, (event["phase"], event["arm"])))
                self.phase += f": {event['detail']}" if event["detail"] else ""
                self.training = False
            case "clients" | "step":
                # Cohorts change with federated rounds; clients of the local arm stay.
                at = event["arm"], event["round"] if event["arm"] == "federated" else None
                self.clients = {**(self.clients if at == self.at else {}), **event["clients"]}
                self.step, self.at, self.training = event, at, True
                if event["event"] == "step":
                    self.fraction, self.left, self.speed = (
                        event["fraction"],
                        event["eta_seconds"],
                        event["tokens_per_second"],
                    )
            case "round" | "committed":
                self.sent += int(wording.number(event.get("bytes_up")) or 0)
                if event.get("held_out_loss") is not None:
                    self.measured = (
                        f"held-out loss {wording.digits(event['held_out_loss'])} after round {event['round']}"
                    )
        stays = event["event"] in ("start", "committed", "round", "evaluation", "warning")
        if stays and (line := describe(event, self.started)):
            self.console.print(output.clean(line), highlight=False, markup=False)
        if event["event"] == "end":
            self.close()
        elif not self.live.is_started:
            self.live.start()

    def close(self) -> None:
        self.live.stop()

    def render(self) -> Any:
        """The current header, progress bar and client rows."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        left = f"{wording.duration(self.left)} left" if self.training and self.left else ""
        speed = f"{_speed(self.speed)} tokens/s" if self.training and self.speed else ""
        name = wording.shorten(Path(self.run).name if self.run else "run", 32, middle=True)
        at = _position(self.step) if self.training and self.step else self.phase
        room = max(8, min(40, self.console.width - len(name) - len(at) - 6))
        model = wording.shorten(self.started["model"] if self.started else "", room, middle=True)
        title = Text.assemble((name, "bold"), "  ", model, "  ", (at, "cyan"))
        sent = f"{wording.size(self.sent)} sent by clients" if self.sent else ""
        memory = f"memory {wording.size(self.process.memory_info().rss)}"
        so_far = Text(" · ".join(filter(None, (self.measured, sent, memory))), "dim")
        bar = Table.grid(padding=(0, 1 if self.console.width < NARROW else 2))
        share = min(1.0, max(0.0, self.fraction))
        width = max(8, min(40, self.console.width - 46))
        bar.add_row(ProgressBar(total=1.0, completed=share, width=width), wording.percent(share, 0), left, speed)
        parts = [title, bar, so_far] if self.started else [title, so_far]  # the amount of work is known from then on
        if self.training:
            parts.append(self._clients(self.clients, Table(box=None, padding=(0, 2, 0, 0), header_style="dim")))
        return Group(*parts)

    def _clients(self, clients: Mapping[str, events.ClientRow], table: Any) -> Any:
        narrow = self.console.width < NARROW
        table.add_column("client")
        table.add_column("state")
        for head in ("step", "loss") if narrow else ("step", "loss", "tokens/s"):
            table.add_column(head, justify="right")
        room = max(1, min(CLIENTS_SHOWN, self.console.height - 7))
        names = sorted(clients)
        if len(names) > room:
            names = sorted(names, key=lambda name: (_ORDER.get(clients[name]["state"], 2), name))
        from rich.text import Text

        for name in names[:room]:
            row = clients[name]
            table.add_row(
                Text(wording.shorten(name, 32, middle=True)),
                Text(row["state"], _STYLE.get(row["state"], "")),
                f"{row['step']}/{row['steps']}" if row["steps"] else "",
                wording.digits(row["loss"]) if row["loss"] is not None else "",
                *([] if narrow else [_speed(row["tokens_per_second"])]),
            )
        hidden = [clients[name]["state"] for name in names[room:]]
        if hidden:
            counts = ", ".join(f"{hidden.count(state)} {state}" for state in sorted(set(hidden)))
            table.add_row(Text(f"and {len(hidden)} more", "dim"), Text(counts, "dim"))
        return table


def _speed(tokens_per_second: float | None) -> str:
    return wording.count(round(tokens_per_second)) if tokens_per_second else ""


def _position(event: events.ClientsEvent | events.StepEvent) -> str:
    """The position in the run, e.g. "federated, round 2/8"."""
    arm = event["arm"]
    return "personal models" if arm == "personal" else f"{arm}, round {event['round']}/{event['rounds']}"


_ORDER = {"failed": 0, "lost": 0, "rejected": 0, "late": 1, "training": 2, "waiting": 3, "done": 4}
_STYLE = {
    "failed": "bold red", "lost": "bold red", "rejected": "bold red", "late": "yellow", "training": "cyan",
    "waiting": "dim", "done": "green",
}  # fmt: skip
