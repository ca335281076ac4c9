"""The history of a run over sites: the lines of its journal in; who took part when, bytes, seconds and pauses out.

    found = history(read_journal(run / "journal.jsonl").rows)
    found["sites"]["hospital-a"]["rounds"]      # {"1": "trained", "2": "late", "3": "absent"}

JSON values only: the same mapping is `federation` of summary.json. Lines of earlier versions have no bytes or seconds;
these are null then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from shepherd.errors import DataError

WHAT, EXPECTED = "sites", "expected sites"
"""Kinds of lines in the journal: a change of the federation, and the names of the sites that should take part."""
OVER = ("left", "removed")
ENDED = {"answered": "trained", "late": "late", "lost": "lost", "failed": "failed", "rejected": "rejected"}
"""State of a site after a task -> its outcome in the round."""


def rule_of_losses(most: int) -> str:
    """What a site needs to show losses. most: data.held_out_per_category of the recipe."""
    return (
        "each site shows losses of at least policy.least_group held-out rows, 10 in a new site.toml, and holds out at "
        f"most data.held_out_per_category = {most}"
    )


def history(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """{"sites", "pauses", "opened", "began"} of a journal; empty where it has no line of a federation.

    sites: by name, {"state", "reason", "present"} as they are last, {"rows", "digest"} as stated or null,
    "rounds": {round: outcome}, "reasons": {round: code}, "bytes_up" and "bytes_down" of questions and answers with
    "by_round": {round: [up, down]} (0: offers), "seconds": {round: until the answer}, "ignored": {code: messages}.
    An outcome is trained, late, lost, failed, rejected, idle (not sampled), absent, refused, left, removed, or working
    (without an answer so far, or the attempt was aborted).
    pauses: {"round" that was waited for, "from", "until" (null: still), "missing": names}; times are unix seconds.
    """
    found = _History()
    for row in rows:
        found.add(row)
    return found.value() if found.sites else {}


def _new() -> dict[str, Any]:
    return {"state": "never there", "reason": "", "present": False, "rows": None, "digest": None, "rounds": {},
            "reasons": {}, "bytes_up": None, "bytes_down": None, "by_round": {}, "seconds": {},
            "ignored": {}}  # fmt: skip


class _History:
    """What the lines so far say."""

    def __init__(self) -> None:
        self.sites: dict[str, dict[str, Any]] = {}
        self.pauses: list[dict[str, Any]] = []
        self.opened: float | None = None
        self.began: float | None = None
        self._attempts: dict[int, Mapping[str, Any]] = {}
        self._rounds: list[str] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """A line of the journal."""
        if row.get("what") == EXPECTED:
            for name in row["names"]:
                self.site(name)
        elif row.get("what") == WHAT:
            getattr(self, f"on_{row['event']}", lambda row: None)(row)

    def site(self, name: str) -> dict[str, Any]:
        """The entry of a site; of one that is new, absent from the rounds before."""
        if name not in self.sites:
            self.sites[name] = _new() | {"rounds": dict.fromkeys(self._rounds, "absent")}
        return self.sites[name]

    def on_run(self, row: Mapping[str, Any]) -> None:
        """A state of the run: a pause begins or ends."""
        if self.pauses and self.pauses[-1]["until"] is None and row["state"] != "paused":
            self.pauses[-1]["until"] = row.get("at")
        if row["state"] == "open" and self.opened is None:
            self.opened = row.get("at")
        if row["state"] == "paused":
            away = {name for name, site in self.sites.items() if not site["present"] or site["state"] == "refused"}
            missing = sorted(name for name in away if self.sites[name]["state"] not in OVER)
            number = int(row.get("round") or 0) + 1
            self.pauses.append({"round": number, "from": row.get("at"), "until": None, "missing": missing})

    def on_connection(self, row: Mapping[str, Any]) -> None:
        """A site is connected, or no longer."""
        site = self.site(row["client"])
        site["present"] = bool(row["present"])
        if site["state"] == "never there":
            site["state"] = "connected"

    def on_site(self, row: Mapping[str, Any]) -> None:
        """A state of a site: an admission, or its outcome in a round."""
        site, state = self.site(row["client"]), row["state"]
        site["state"], site["reason"] = state, row.get("reason", "")
        if state == "admitted":
            site["rows"], site["digest"] = row["rows"], row["digest"]
        if state == "working":
            self._ended(site, str(row["round"]), "working", "")
        elif state in ENDED and "round" in row:
            self._ended(site, str(row["round"]), ENDED[state], row.get("reason", ""))

    def on_eligible(self, row: Mapping[str, Any]) -> None:
        """The sites of a round: the others are absent, refused or gone."""
        number = str(row["round"])
        self.began = self.began if self.began is not None else row.get("at")
        self._rounds.append(number)
        for name, site in self.sites.items():
            gone = site["state"] if site["state"] in ("refused", *OVER) else "absent"
            self._ended(site, number, "idle" if name in row["clients"] else gone,
                        site["reason"] if gone == "refused" and name not in row["clients"] else "")  # fmt: skip

    def on_attempt(self, row: Mapping[str, Any]) -> None:
        """A question to some sites."""
        self._attempts[row["attempt"]] = row

    def on_exchanged(self, row: Mapping[str, Any]) -> None:
        """Bytes and seconds of an attempt."""
        attempt = self._attempts.get(row["attempt"], {})
        number = str(attempt.get("round", 0))
        for name in sorted({*row["up"], *row["down"]}):
            site = self.site(name)
            up, down = row["up"].get(name, 0), row["down"].get(name, 0)
            site["bytes_up"], site["bytes_down"] = (site["bytes_up"] or 0) + up, (site["bytes_down"] or 0) + down
            before = site["by_round"].get(number, (0, 0))
            site["by_round"][number] = [before[0] + up, before[1] + down]
            if attempt.get("for") == "train" and name in row["seconds"]:
                site["seconds"][number] = row["seconds"][name]

    def on_ignored(self, row: Mapping[str, Any]) -> None:
        """A message without effect; or a site that was sampled and is not back after a restart."""
        site, reason = self.site(row["client"]), row["reason"]
        if reason == "unreached":
            self._ended(site, str(row["round"]), "lost", reason)
        else:
            site["ignored"][reason] = site["ignored"].get(reason, 0) + 1

    def value(self) -> dict[str, Any]:
        """The history as JSON values."""
        return {"sites": dict(sorted(self.sites.items())), "pauses": self.pauses, "opened": self.opened,
                "began": self.began}  # fmt: skip

    @staticmethod
    def _ended(site: dict[str, Any], number: str, outcome: str, reason: str) -> None:
        site["rounds"][number] = outcome
        site["reasons"].pop(number, None)
        if reason:
            site["reasons"][number] = reason


def read_history(run: Path) -> dict[str, Any]:
    """The history in the journal of a run directory; empty where there is none. Lines that cannot be read are left out,
    as a process may be writing the last one."""
    file = run / "journal.jsonl"
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.is_file() else []
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", hint="check its permissions") from None
    found = _History()
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            found.add(json.loads(line))
    return found.value() if found.sites else {}
