"""The view of a site: what is asked of it, what it does, and what it sent, one line each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from shepherd.cli import output
from shepherd.federation.verdicts import ADMITTED, VERDICTS, WAITING
from shepherd.report import wording
from shepherd.report.sites.site_page import rows_text

SECONDS_BETWEEN_LINES = 30.0


class SiteView:
    """Shows the events of a site: lines on stderr, or JSON lines on stdout."""

    def __init__(self, folder: Path, *, as_json: bool = False, asks: bool = False) -> None:
        self.folder, self.as_json, self.asks = folder, as_json, asks
        self.sent: dict[str, int] = {}
        self.messages: dict[str, int] = {}
        self._offered: dict[str, str] = {}
        self._last = ""
        self._progress = 0.0

    def __call__(self, event: Mapping[str, Any]) -> None:
        if self.as_json:
            click.echo(output.to_json(event))
            return
        run = str(event.get("run", ""))
        if event.get("bytes_out"):
            self.sent[run] = self.sent.get(run, 0) + event["bytes_out"]
            self.messages[run] = self.messages.get(run, 0) + 1
        line = self._line(event, run)
        if line and line != self._last:
            for part in line.split("\n"):
                output.note(part)
        self._last = line or self._last

    def close(self) -> None:
        """The sum of what was sent."""
        if not self.as_json and self.sent:
            total, number = wording.size(sum(self.sent.values())), sum(self.messages.values())
            log = self.folder / "audit.jsonl"
            output.note(f"sent in all: {total} in {wording.plural(number, 'message')}; each has a line in {log}")

    def _line(self, event: Mapping[str, Any], run: str) -> str:
        match event["event"]:
            case "connected":
                return "connected to the coordinator; waiting for a run"
            case "lost":
                return "the coordinator is not reached; trying again"
            case "waiting":
                return f"waiting: {event.get('why', 'the coordinator is not reached')}"
            case "refused" | "restarting" | "failed":
                return f"{event['event']}: {event.get('why', 'no reason is known')}"
            case "note":
                return str(event["text"])
            case "offer":
                return self._offer(run, str(event["verdict"]))
            case "rows":
                return "\n".join(_rows(event))
            case "progress":
                return self._step(event)
            case "train" | "measure" | "finish":
                return self._work(event)
            case "bye":
                number = wording.plural(self.messages.get(run, 0), "message")
                return f"run {run[:12]} is over: {wording.size(self.sent.get(run, 0))} sent in {number}"
            case "left":
                return "left the runs of the federation"
        return ""

    def _offer(self, run: str, verdict: str) -> str:
        if self._offered.get(run) == verdict:
            return ""
        self._offered[run] = verdict
        if verdict == ADMITTED:
            return f"run {run[:12]}: this site takes part"
        if verdict == WAITING:
            return "" if self.asks else f"run {run[:12]} waits for you: shepherd site approve {run[:12]}"
        return f"run {run[:12]}: this site does not take part: {VERDICTS.get(verdict, verdict)}"

    def _step(self, event: Mapping[str, Any]) -> str:
        now = time.monotonic()
        if now - self._progress < SECONDS_BETWEEN_LINES:
            return ""
        self._progress = now
        loss = f", loss {wording.digits(event['loss'])}" if event["loss"] is not None else ""
        return f"round {event['round']}: step {event['step']}/{event['steps']}{loss}"

    def _work(self, event: Mapping[str, Any]) -> str:
        what = {"train": "trained", "measure": "measured", "finish": f"own model kept in {self.folder / 'runs'}"}
        verdict, sent = str(event["verdict"]), wording.size(event["bytes_out"])
        if verdict:
            return f"round {event['round']}: {VERDICTS.get(verdict, verdict)}; sent {sent}"
        return f"round {event['round']}: {what[event['event']]}; sent {sent}"


def _rows(found: Mapping[str, Any]) -> list[str]:
    """What became of the rows, the remarks indented below; none of it leaves the site."""
    return [line if number == 0 else f"  {line}" for number, line in enumerate(rows_text(found))]
