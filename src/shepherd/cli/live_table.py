"""The live table of a run: a row for each client of the cohort, or for each site of a federation, redrawn in place."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shepherd.cli import output
from shepherd.cli.event_lines import Observer, describe, named, position
from shepherd.report import wording

if TYPE_CHECKING:
    from shepherd.experiment import events

REFRESH_PER_SECOND = 3
CLIENTS_SHOWN = 16
NARROW = 60
"""Terminals with fewer columns show the clients' names in place of their speeds."""


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
        self.sites: Mapping[str, events.SiteRow] = {}
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
            case "sites":
                self.sites = event["sites"]
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
        at = position(self.step) if self.training and self.step else self.phase
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
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        if self.sites:
            parts.append(self._sites(table))
        elif self.training:
            parts.append(self._clients(self.clients, table))
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

    def _sites(self, table: Any) -> Any:
        """A row for each site: those that take part first, with what they do in the round."""
        from rich.text import Text

        narrow = self.console.width < NARROW
        for head in ("site", "state"):
            table.add_column(head)
        for head in ("step", "loss") if narrow else ("step", "loss", "received", "sent", "last sign"):
            table.add_column(head, justify="right")
        room = max(1, self.console.height - 7)
        names = sorted(self.sites)
        for name in names[:room]:
            site, row = self.sites[name], self.clients.get(name) if self.training else None
            state = state_of(site, row)
            bytes_ = [wording.size(site[way]) if site[way] else "" for way in ("bytes_down", "bytes_up")]
            last = "now" if site["present"] else ago(site["last"])
            table.add_row(
                Text(wording.shorten(name, 32, middle=True)),
                Text(state, _STYLE.get(state, "")),
                f"{row['step']}/{row['steps']}" if row and row["steps"] else "",
                wording.digits(row["loss"]) if row and row["loss"] is not None else "",
                *([] if narrow else [*bytes_, last]),
            )
        if len(names) > room:
            table.add_row(Text(f"and {len(names) - room} more", "dim"))
        return table


def state_of(site: events.SiteRow, row: events.ClientRow | None) -> str:
    """One or two words for the state of a site: at work, in the run, or in its connection."""
    if row is not None and (site["present"] or row["state"] != "waiting"):
        return row["state"]
    if not site["present"]:
        return "not there"
    if site["reason"] == "approval":
        return "not approved yet"
    if site["state"] in ("", "offered"):
        return "connected"
    return site["state"] if site["state"] in ("refused", "left", "removed", "finished") else "ready"


def ago(last: float | None) -> str:
    """How long ago a sign was; empty where there was none."""
    return f"{wording.duration(max(0.0, time.time() - last))} ago" if last else ""


def _speed(tokens_per_second: float | None) -> str:
    return wording.count(round(tokens_per_second)) if tokens_per_second else ""


_ORDER = {"failed": 0, "lost": 0, "rejected": 0, "late": 1, "training": 2, "waiting": 3, "done": 4}
_STYLE = {
    "failed": "bold red", "lost": "bold red", "rejected": "bold red", "late": "yellow", "training": "cyan",
    "waiting": "dim", "done": "green", "not there": "yellow", "not approved yet": "yellow", "refused": "bold red",
}  # fmt: skip
