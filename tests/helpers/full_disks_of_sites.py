"""Fill the disk of a site and then that of the coordinator in a run of numbers over the network, and give space back.

    python full_disks_of_sites.py '{"folder": "...", "how": "volume"}'

how: "volume", the folders of each side are volumes that a file fills (the program must then be allowed to mount them:
`unshare -Urm`); "limit", the processes may write to no file. All that a side writes is on its disk, its kit with the
logs of its engine too. Prints {"whole": ending, "waits": whether the run waited for the site, "site": lines,
"coordinator": text, "status": of the coordinator, "committed": rounds on the full disk, "broken": files, "again":
status with space, "sites": {name: status}, "ending": …}.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from full_disk_runs import broken, mount
from kill_runs import forked
from kill_sites import Federation, ending_of

ROUNDS, VICTIM = 4, "north"
FILLED = {VICTIM: (VICTIM, f"{VICTIM}-records"), "coordinator": ("server", "runs")}
VOLUME = "size=2m"


class Sides(Federation):
    """The processes of a run, with what each of them says."""

    def __init__(self, folder: Path, how: str) -> None:
        self.how_full, self.said, self.statuses = how, {}, []
        if how == "volume":
            for name in sorted({name for names in FILLED.values() for name in names}):
                (folder / name).mkdir(parents=True)
                mount(folder / name, VOLUME)
        super().__init__(folder, ROUNDS, (VICTIM, "south"))

    def start(self, role: str) -> None:
        reading, writing = os.pipe()
        lines = self.said.setdefault(role, [])
        self.pids[role] = forked(partial(self.speak, role, writing))
        os.close(writing)
        threading.Thread(target=lambda: lines.extend(os.fdopen(reading)), daemon=True).start()

    def speak(self, role: str, writing: int) -> None:
        """The work of a process, as its command shows it."""
        from unittest import mock

        from number_federation import coordinate_numbers, serve_numbers
        from shepherd.cli import commands
        from shepherd.cli.main import main
        from shepherd.cli.site_view import SiteView
        from shepherd.federation.transports import link

        os.dup2(writing, 2)
        sys.stderr = open(2, "w", buffering=1, encoding="utf-8")  # noqa: SIM115, for good
        if role == "coordinator":
            run = partial(coordinate_numbers, self.folder, self.rounds)
            with mock.patch.object(commands.cli, "main", side_effect=lambda *_, **__: run()):
                os._exit(main(["run"]))
        link.AGAIN = 0.3
        view = SiteView(self.folder)
        serve_numbers(self.folder, role, on_event=lambda kind, **facts: view({"event": kind, **facts}))

    def fill(self, side: str) -> None:
        if self.how_full == "limit":
            resource.prlimit(self.pids[side], resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        for name in FILLED[side]:
            with suppress(OSError), (self.folder / name / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(512))

    def give_back(self, side: str) -> None:
        if self.how_full == "limit":
            if side in self.pids:
                resource.prlimit(self.pids[side], resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            return
        for name in FILLED[side]:
            (self.folder / name / "filler").unlink()

    def until(self, what: Callable[[], object]) -> None:
        end = time.monotonic() + 60
        while not what():
            assert time.monotonic() < end, (self.phase(), self.said)
            time.sleep(0.02)

    def end_of_coordinator(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pids.pop("coordinator"), 0)[1])


def main() -> None:
    spec = json.loads(sys.argv[1])
    import shepherd.experiment.coordinate  # noqa: F401
    from number_federation import RUN, rehearse_numbers

    root = Path(spec["folder"])
    rehearse_numbers(root / "whole", ROUNDS)
    sides = Sides(root / "sides", spec["how"])
    try:
        told = carry_out(sides)
    finally:
        for role in list(sides.pids):
            sides.terminate(role)
    whole = ending_of(root / "whole" / "runs" / RUN)
    print(json.dumps({**told, "whole": whole, "ending": ending_of(sides.run)}))


def carry_out(sides: Sides) -> dict:
    """A run in which the disk of a site is full for a while, and then that of the coordinator."""
    for role in ("coordinator", VICTIM, "south"):
        sides.start(role)
    sides.until(lambda: len(sides.lines()) >= 1)
    sides.fill(VICTIM)
    sides.until(lambda: any("cannot write" in line for line in sides.said[VICTIM]))
    time.sleep(1.0)
    stuck = len(sides.lines())
    time.sleep(1.0)
    told = {"waits": len(sides.lines()) == stuck, "alive": VICTIM in sides.pids}
    sides.give_back(VICTIM)
    sides.until(lambda: len(sides.lines()) > stuck)

    sides.fill("coordinator")
    told["status"] = sides.end_of_coordinator()
    told |= {"committed": len(sides.lines()), "broken": broken(sides.run), "at": stuck}
    sides.give_back("coordinator")
    told["coordinator"] = "".join(sides.said["coordinator"])
    sides.start("coordinator")
    told["again"] = sides.end_of_coordinator()
    told["sites"] = {role: sides.terminate(role) for role in sorted(sides.pids)}
    told["site"] = list(sides.said[VICTIM])
    return told


if __name__ == "__main__":
    main()
