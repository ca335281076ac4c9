"""Kill processes of a federation of numbers with SIGKILL, one after another, and say what its runs ended with.

    python kill_sites.py '{"folder": "...", "rounds": 6, "plan": [["trainer", "work"], ["coordinator", "upload"]]}'
    python kill_sites.py '{"folder": "...", "rounds": 12, "kills": 100, "seed": 0, "visits": true}'

Victims: coordinator, site, trainer, server engine, site engine. work: while a site trains; upload: after an answer has
arrived and before its round is committed; any: at a random instant. What is killed is started again, as by a service
manager. Everything is imported once, and each process of ours is a fork. visits: also a run without kills, to which a
site comes late, leaves and comes back, and which SIGTERM ends.
Prints {"whole": ending, "runs": [{"ending", "kills": [[victim, when, round, phase]], "orphans": []}], "visits": {…}}.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from kill_runs import forked

VICTIMS = ("coordinator", "site", "trainer", "server engine", "site engine")
SAME = ("cohort", "weights", "train_loss", "steps", "examples", "tokens", "update_norm", "learning_rate")
LONGEST = 600.0
"""Seconds of a run, after which it counts as stuck."""


class Federation:
    """The processes of one run: a coordinator and two sites."""

    def __init__(self, folder: Path, rounds: int, names: tuple[str, ...], **how: float) -> None:
        from federation_kits import Kits

        self.folder, self.rounds, self.how, self.run = folder, rounds, how, folder / "runs" / "numbers"
        folder.mkdir(exist_ok=True)
        kits = Kits(folder)
        self.port = kits.port
        kits.server()
        for name in names:
            kits.site(name)
        self.pids: dict[str, int] = {}
        self.due: dict[str, float] = dict.fromkeys((*names, "coordinator"), 0.0)
        self.finished = False
        self.ended: list[int] = []  # exit statuses of coordinators that stopped by themselves
        self._place = 0
        self._answered: dict[int, int] = {}  # of the last attempt at a round

    # Processes

    def start_due(self) -> None:
        """Start what is due, and note what has ended."""
        for role, at in list(self.due.items()):
            if time.monotonic() >= at:
                del self.due[role]
                self.pids[role] = forked(partial(self.work, role))
        for role, pid in list(self.pids.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self.pids[role]
                if role == "coordinator" and os.waitstatus_to_exitcode(status) == 0:
                    self.finished = True
                else:
                    self.ended += [] if os.WIFSIGNALED(status) else [os.WEXITSTATUS(status)]
                    assert len(self.ended) < 20, "the processes end by themselves"
                    self.due[role] = time.monotonic() + random.uniform(0, 0.5)

    def work(self, role: str) -> None:
        """The work of a process, which SIGTERM ends as it ends a command."""
        from number_federation import coordinate_numbers, serve_numbers
        from shepherd.cli.interrupts import handled

        if role != "coordinator":
            serve_numbers(self.folder, role)
            return
        try:
            with handled(last=True):
                coordinate_numbers(self.folder, self.rounds, lingers=0.1, **self.how)
        except SystemExit as ended:
            os._exit(int(ended.code or 0))

    def find(self, victim: str, dice: random.Random) -> int | None:
        """The number of a process, where it runs."""
        sites = sorted(self.pids.keys() - {"coordinator"})
        role = "coordinator" if victim in ("coordinator", "server engine") else dice.choice(sites) if sites else ""
        if role not in self.pids:
            return None
        if victim in ("coordinator", "site"):
            return self.pids[role]
        mark = "spawn_main" if victim == "trainer" else "shepherd.federation.transports.nvflare"
        try:
            children = psutil.Process(self.pids[role]).children()
            return next((child.pid for child in children if mark in " ".join(child.cmdline())), None)
        except psutil.NoSuchProcess:
            return None

    def terminate(self, role: str) -> int:
        """End a process by SIGTERM: its exit status."""
        pid = self.pids.pop(role)
        os.kill(pid, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def end(self) -> list[str]:
        """End the sites in order, and name what is left of all processes."""
        for role in list(self.pids):
            self.terminate(role)
        return orphans(self.folder)

    # Where the run is

    def phase(self) -> tuple[int, str]:
        """The round in progress, and "idle", "work" or "upload"."""
        journal = self.run / "journal.jsonl"
        if journal.exists():
            with journal.open("rb") as file:
                file.seek(self._place)
                lines = file.read().split(b"\n")[:-1]
            self._place += sum(len(line) + 1 for line in lines)
            for line in lines:
                row = json.loads(line) if line.strip() else {}
                if row.get("event") == "attempt" and row["for"] == "train":
                    self._answered = {row["round"]: 0}
                elif row.get("state") == "answered":
                    self._answered[row["round"]] = self._answered.get(row["round"], 0) + 1
        committed = max((int(path.name[6:]) for path in self.run.glob("checkpoints/round-????")), default=0)
        number, answered = max(self._answered.items(), default=(0, 0))
        if number <= committed:
            return committed, "idle"
        return number, "upload" if answered else "work"

    def lines(self) -> list[dict]:
        """The lines of the committed rounds."""
        return lines_of(self.run)


def lines_of(run: Path) -> list[dict]:
    """The lines of the committed rounds of a run."""
    file = run / "rounds.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def ending_of(run: Path) -> dict:
    """Everything of a run that does not measure time or attempts."""
    adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    return {
        "adapter": hashlib.sha256(adapter).hexdigest(),
        "rounds": [{key: line[key] for key in SAME} for line in lines_of(run)],
    }


def orphans(folder: Path) -> list[str]:
    """Processes that run for a federation in this folder, and are no children of ours."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        if str(folder) in " ".join(process.info["cmdline"] or []) and process.pid != os.getpid():
            found.append(" ".join(process.info["cmdline"])[:200])
    return found


def carry_out(federation: Federation, kills: Callable[[], tuple[str, str, float] | None], dice: random.Random) -> dict:
    """Run to the end. kills: the next victim, its phase and seconds before; None: no more."""
    done: list[list] = []
    end, next_kill = time.monotonic() + LONGEST, kills()
    at = time.monotonic() + (next_kill[2] if next_kill else 0.0)
    while not federation.finished:
        assert time.monotonic() < end, f"the run is stuck after {done}, in {federation.phase()}"
        federation.start_due()
        if next_kill is not None and time.monotonic() >= at:
            victim, when, _ = next_kill
            number, phase = federation.phase()
            if when in ("any", phase) and (pid := federation.find(victim, dice)) is not None:
                os.kill(pid, 9)
                done.append([victim, when, number, phase])
                next_kill = kills()
                at = time.monotonic() + (next_kill[2] if next_kill else 0.0)
        time.sleep(0.01)
    left = federation.end()
    return {"ending": ending_of(federation.run), "kills": done, "orphans": left, "ended": federation.ended}


def visit(federation: Federation) -> dict:
    """A late site, one that goes and comes back, and SIGTERM in mid-round: how all came and went."""
    both = ["north", "south"]

    def until(what: Callable[[], bool]) -> None:
        end = time.monotonic() + LONGEST
        while not what():
            assert time.monotonic() < end, f"stuck in round {len(federation.lines()) + 1}"
            federation.start_due()
            time.sleep(0.05)

    def trained_by(cohort: list[str]) -> Callable[[], bool]:
        begin = len(federation.lines())
        return lambda: cohort in [line["cohort"] for line in federation.lines()[begin:]]

    del federation.due["south"]
    until(trained_by(["north"]))
    federation.due["south"] = 0.0
    until(trained_by(both))
    left = federation.terminate("south")
    until(trained_by(["north"]))
    federation.due["south"] = 0.0
    until(trained_by(both))
    until(lambda: federation.phase()[1] == "work")
    ended = federation.terminate("coordinator")
    with socket.create_server(("127.0.0.1", federation.port)):  # nobody has it any more
        pass
    last = json.loads((federation.run / "journal.jsonl").read_text().splitlines()[-1])
    return {
        "left": left, "ended": ended, "state": last.get("state"), "at work": sorted(federation.pids),
        "sites ended": [federation.terminate(name) for name in both], "orphans": orphans(federation.folder),
        "again": federation.ended,
    }  # fmt: skip


def main() -> None:
    spec = json.loads(sys.argv[1])
    import shepherd.experiment.coordinate
    import shepherd.experiment.site_attendance
    import shepherd.federation.transports.serving
    import shepherd.recipe  # noqa: F401
    from number_federation import ROWS

    root, dice = Path(spec["folder"]), random.Random(spec.get("seed", 0))
    plan, names = [tuple(one) for one in spec.get("plan", [])], tuple(ROWS)
    result = {"whole": carry_out(Federation(root / "whole", spec["rounds"], names), lambda: None, dice)["ending"]}
    result["runs"] = []
    left = spec.get("kills", len(plan))

    def kills() -> tuple[str, str, float] | None:
        nonlocal left
        if left <= 0:
            return None
        left -= 1
        if plan:
            return (*plan.pop(0), 0.0)
        return dice.choice(VICTIMS), dice.choice(("any", "any", "work", "upload")), dice.uniform(0.0, 4.0)

    while left > 0:
        federation = Federation(root / f"{len(result['runs'])}", spec["rounds"], names)
        result["runs"].append(carry_out(federation, kills, dice))
        print(result["runs"][-1]["kills"], file=sys.stderr, flush=True)
        if spec.get("kills"):
            left += spec["kills"] - left - sum(len(run["kills"]) for run in result["runs"])
    if spec.get("visits"):
        result["visits"] = visit(Federation(root / "visits", 10_000, names, sites=1, lost=6.0))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
