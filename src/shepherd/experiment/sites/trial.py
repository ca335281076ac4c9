"""A federation on one machine, as a demonstration: rows divided into files, a process for each site, one run.

    run, place = try_federation(config, 3, None, observer, say=print)

What a real federation has is all there: certificates, processes, TLS on loopback. Only the people are missing: each
site approves what its policy allows.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shepherd.errors import UsageError
from shepherd.experiment.sites import folders
from shepherd.experiment.sites.joining import write_site
from shepherd.experiment.sites.site_file import NewSite
from shepherd.store.disk import PRIVATE

if TYPE_CHECKING:
    from shepherd.config import Config
    from shepherd.experiment.events import Emit
    from shepherd.experiment.opened_run import Run
    from shepherd.types import Example

NAME = "try"
SHOWN = {"approve": "policy", "least_group": 1, "min_rows_round": 1}
"""Where the policy of such a site differs from a strict one: nobody is there to be asked, and rows may be few."""
PATIENCE = 10.0
"""Seconds for a site's process to end before it is killed."""
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def try_federation(
    config: Config, sites: int, folder: Path | None, observer: Emit, say: Callable[[str], None]
) -> tuple[Run, Path]:
    """Carry out a recipe over this many sites on this machine; the run, and the folder with all that was made.

    Raises DataError where the rows cannot be divided so, UsageError for a folder that is not empty.
    """
    from shepherd.experiment.checks import from_anywhere
    from shepherd.experiment.sites.coordinator import run_federation
    from shepherd.federation.enrolment import invite, new_federation

    config = from_anywhere(config)
    rows = divided(config, sites)
    place = _empty(folder)
    place.joinpath("rows").mkdir()
    threads = max(1, (os.cpu_count() or 1) // sites)
    port, enrolment_port = _free_ports()
    federation = new_federation(
        place / folders.FEDERATIONS / NAME, host="localhost", port=port, enrolment_port=enrolment_port
    )
    for name, examples in rows.items():
        file = place / "rows" / f"{name}.jsonl"
        PRIVATE.write(file, "".join(map(line_of, examples)).encode())
        new = NewSite(name, str(file), config.model.base, threads=threads, policy=SHOWN)
        write_site(place / folders.SITES / name, new)
        PRIVATE.write(place / f"{name}.invite", invite(federation, name, 1))
    say(f"{place}: rows/ ({', '.join(f'{name}: {len(rows[name])}' for name in rows)}), federations/, sites/, runs/, "
        "and a log of each site")  # fmt: skip
    run = config.run.model_copy(update={"out": str(place / "runs")})
    shepherd = [sys.executable, "-m", "shepherd"]
    with processes({name: [*shepherd, "site", "join", f"{name}.invite"] for name in rows}, place):
        done = run_federation(config.model_copy(update={"run": run}), federation.path, observer, min_sites=sites)
    say(f"the same in one process, with the same bytes on this machine: shepherd run RECIPE --data {place}/rows "
        "--set partition.name=files")  # fmt: skip
    return done, place


def divided(config: Config, sites: int) -> dict[str, list[Example]]:
    """The rows of a recipe for each site, by its partition; those of data.held_out_source stay with the coordinator.

    Raises DataError where the partition does not make this many clients.
    """
    from shepherd.experiment.division import divide_rows, read_rows

    data = config.data.model_copy(update={"held_out_per_category": 0})
    partition = config.partition.model_copy(update={"clients": sites})
    found = read_rows(config)
    changed = config.model_copy(update={"data": data, "partition": partition})
    _, _, made = divide_rows(changed, found.examples, None, some_held_out=False)
    by_id = {example.id: example for example in found.examples}
    return {f"site-{number}": [by_id[row] for row in rows] for number, rows in enumerate(made.clients.values(), 1)}


def line_of(example: Example) -> str:
    """A line of JSON that is read as this example."""
    return json.dumps({**_row_of(example), "category": example.category}, ensure_ascii=False) + "\n"


def _row_of(example: Example) -> dict[str, Any]:
    roles = [message.role for message in example.messages]
    if roles == ["text"]:
        return {"text": example.messages[0].content}
    if roles == ["user", "assistant"] and not example.tools:
        instruction, response = (message.content for message in example.messages)
        return {"instruction": instruction, "input": example.context, "output": response}
    turns = [{"role": message.role, "content": message.content} for message in example.messages]
    return {"messages": turns, **({"tools": example.tools} if example.tools else {})}


@contextmanager
def processes(commands: Mapping[str, list[str]], place: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Command lines, each in a process with NAME.log; all end with the block, or with this process."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, arguments in commands.items():
            with open(place / f"{name}.log", "ab") as log:
                running[name] = subprocess.Popen(
                    arguments, cwd=place, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=log, start_new_session=True, preexec_fn=_end_with_parent,
                )  # fmt: skip
        yield running
    finally:
        for process in running.values():
            with suppress(ProcessLookupError):
                process.terminate()
        for process in running.values():
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                pass
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what it has left
                process.wait()


def _end_with_parent() -> None:
    """In the child: SIGTERM when the parent ends, however it ends."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def _empty(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="shepherd-federation-"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", hint="give a new folder with --dir")
    return folder.absolute()


def _free_ports() -> tuple[int, int]:
    """Two ports of loopback that were free a moment ago."""
    with socket.socket() as one, socket.socket() as other:
        for found in (one, other):
            found.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]
