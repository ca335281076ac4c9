"""A site's own log: its lines in; what left the site, by run and round, out.

found = read_site_log([Path("sites/north/runs/8f3c")], Path("sites/north/audit.jsonl"))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from shepherd.errors import DataError

KINDS = {"offer": "offers", "train": "trainings", "measure": "measures", "finish": "own models", "bye": "goodbyes"}
"""Event of a line -> what the messages of this kind are about."""
TAKEN = ("", "admitted")
"""Verdicts of a message of a run in which the site took part."""
OFFERS, OWN_MODEL, GOODBYE = "offer", "own model", "end"
"""What stands in the place of a round for messages that belong to none."""


def read_site_log(runs: Sequence[Path], log: Path, whole: bool = True) -> dict[str, Any]:
    """{"runs": {id: …}, "refused": {id: …}, "removed": {id: …}, "other": {event: lines}} of a site.

    "refused" has the runs in which the site never took part, "removed" those whose folder is gone since: {"verdicts":
    {verdict: messages}, "bytes_in", "bytes_out", "last"}, the newest last. whole: `runs` are all of the site; else
    lines of other runs are left out.

    A run has what its card and record say, "use_of_rows", what became of the site's rows, "base_loss", "own_loss", and
    "kinds": {kind: {"messages", "bytes_in", "bytes_out", "verdicts": {verdict: messages}}}, "rounds": {round, or OFFERS
    or OWN_MODEL: {"messages", "bytes_in", "bytes_out", "train_loss", "loss", "first", "last", "against": verdicts}}.
    bytes_out: of answers and progress.
    Losses: nats per target token on the site's own rows, in training and on those held out. Raises DataError for a log
    that cannot be read; a line that cannot is left out.
    """
    found: dict[str, Any] = {
        "runs": {path.name: _run(path) for path in runs},
        "refused": {},
        "removed": {},
        "other": {},
    }
    for line in _lines(log):
        run = found["runs"].get(line.get("run"))
        if run is not None:
            _add(run, line)
        elif "run" in line:
            if whole:
                _without_folder(found["refused"], line)
        else:
            event = str(line.get("event"))
            found["other"][event] = found["other"].get(event, 0) + 1
    taken = [run for run, about in found["refused"].items() if not about["verdicts"].keys().isdisjoint(TAKEN)]
    found["removed"] = {run: found["refused"].pop(run) for run in taken}
    for run in found["runs"].values():
        run["bytes_in"], run["bytes_out"] = (sum(kind[way] for kind in run["kinds"].values())
                                             for way in ("bytes_in", "bytes_out"))  # fmt: skip
    return found


def _run(folder: Path) -> dict[str, Any]:
    card, record, decision = (_json(folder / name) for name in ("card.json", "run.json", "decision.json"))
    digest = record.get("card")
    state = "over" if record.get("over") else "left" if record.get("left") else ""
    if not state:
        state = "takes part" if record.get("digest") else "not admitted"
    decided = decision if digest and decision.get("card") == digest else {}
    federation = card.get("federation") or {}
    return {
        "name": card.get("name", ""), "method": federation.get("method", ""), "planned": federation.get("rounds"),
        "base": (card.get("base") or {}).get("name", ""),
        "personal": (card.get("personalization") or {}).get("name", "none"), "state": state,
        "decision": decided.get("verdict", ""), "decided": decided.get("time", ""),
        "rows": record.get("rows"), "digest": record.get("digest"), "card": digest,
        "trainings": record.get("trainings", 0), "measures": record.get("measures", 0),
        "use_of_rows": _json(folder / "rows.json"),
        "models": [name for name, place in (("own", "model"), ("global", "adapter")) if (folder / place).is_dir()],
        "base_loss": None, "own_loss": None, "kinds": {}, "rounds": {},
    }  # fmt: skip


def _add(run: dict[str, Any], line: Mapping[str, Any]) -> None:
    """Count a line."""
    event = str(line.get("event"))
    if event not in KINDS:
        return
    received, sent = _bytes(line)
    kind = run["kinds"].setdefault(event, {"messages": 0, "bytes_in": 0, "bytes_out": 0, "verdicts": {}})
    number = {"offer": OFFERS, "finish": OWN_MODEL, "bye": GOODBYE}.get(event, str(line.get("round", 0)))
    entry = run["rounds"].setdefault(
        number, {"messages": 0, "bytes_in": 0, "bytes_out": 0, "train_loss": None, "loss": None,
                 "first": line.get("time"), "last": None, "against": []}
    )  # fmt: skip
    for place in (kind, entry):
        place["messages"] += 1
        place["bytes_in"] += received
        place["bytes_out"] += sent
    entry["last"] = line.get("time")
    verdict = str(line.get("verdict", ""))
    kind["verdicts"][verdict] = kind["verdicts"].get(verdict, 0) + 1
    if verdict not in TAKEN:
        entry["against"].append(verdict)
    if (loss := line.get("loss")) is None:
        return
    if event == "finish":
        run["own_loss"] = loss
    elif line.get("of") == "base":
        run["base_loss"] = loss
    else:
        entry["train_loss" if event == "train" else "loss"] = loss


def _without_folder(counted: dict[str, Any], line: Mapping[str, Any]) -> None:
    """Count a message of a run that has no folder."""
    if line.get("event") not in KINDS:
        return
    run = str(line["run"])
    entry = counted.pop(run, {"verdicts": {}, "bytes_in": 0, "bytes_out": 0})
    verdict = str(line.get("verdict", ""))
    entry["verdicts"][verdict] = entry["verdicts"].get(verdict, 0) + 1
    received, sent = _bytes(line)
    entry["bytes_in"] += received
    entry["bytes_out"] += sent
    counted[run] = {**entry, "last": line.get("time")}


def _bytes(line: Mapping[str, Any]) -> tuple[int, int]:
    """What came to the site, and what left it: answers and progress."""
    return _size(line, "bytes_in"), _size(line, "bytes_out") + _size(line, "bytes_progress")


def _size(line: Mapping[str, Any], key: str) -> int:
    value = line.get(key, 0)
    return value if isinstance(value, int) else 0


def _json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    with suppress(OSError, ValueError, RecursionError):
        value = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    return {}


def _lines(log: Path) -> Iterator[Mapping[str, Any]]:
    try:
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    except OSError as error:
        raise DataError(f"{log} cannot be read: {error.strerror}", hint="check its permissions") from None
    for line in text.split("\n"):
        with suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value
