"""What sites over a network cost beyond training: seconds a round, memory of each process, and both over time.

python benchmarks/sites.py [--sites 2] [--mb 10] [--rounds 10] [--soak MINUTES] [--pace SECONDS] [--every SECONDS]
python benchmarks/sites.py --answer 500

Each site is a process without a trainer that answers a question with as many bytes. All run on this machine, over TLS.
A soak exits with 1 where memory, descriptors or threads of a process grow in it (tests/helpers/flatness.py). With
--answer one site answers once with so many 10^6 bytes: the memory that this costs, taken and above the limit.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from shepherd.federation.transport import Transport
from shepherd.federation.transports.serving import serve_federation, serve_site

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from federation_kits import Kits
from flatness import Held, not_flat

MIB = 2**20
Processes = dict[str, list[psutil.Process]]


LARGE = b"a large answer, please"


class Echo:
    """A site that answers with its question, or with `large` bytes."""

    def __init__(self, large: int = 0) -> None:
        self.session, self.large = secrets.token_hex(8), large

    def handle(self, data: bytes, _: Callable[[bytes], None]) -> bytes:
        return secrets.token_bytes(self.large) if data == LARGE else bytes(data)


@contextmanager
def federation(folder: Path, names: list[str], limit: int, large: int = 0) -> Iterator[tuple[Transport, list[int]]]:
    """A coordinator in this process and a process for each site: the transport, and the numbers of those processes."""
    kits, children = Kits(folder), []
    kits.server()
    for name in names:
        kit = kits.site(name)
        child = os.fork()
        if not child:
            serve_site(kit, Echo(large), stop=threading.Event(), limit=limit)
        children.append(child)
    try:
        with serve_federation(folder / "server", limit=limit) as transport:
            begin = time.monotonic()
            while len(transport.present()) < len(names):
                time.sleep(0.1)
            print(f"{len(names)} sites present after {time.monotonic() - begin:.1f} s", flush=True)
            yield transport, children
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)


def ask(transport: Transport, names: list[str], data: bytes) -> float:
    """Seconds of one round: a question to each site, and its answer."""
    answered: set[str] = set()
    begin = time.monotonic()
    for reply in transport.ask(
        dict.fromkeys(names, data), 600.0, lambda: len(answered) == len(names), len(data), lambda client, news: None
    ):
        assert reply.data is not None and len(reply.data) == len(data), reply.client
        answered.add(reply.client)
    assert len(answered) == len(names)
    return time.monotonic() - begin


def processes(children: list[int]) -> Processes:
    """The processes of each kind."""
    own = psutil.Process()
    sites = [psutil.Process(child) for child in children]
    return {
        "coordinator": [own],
        "its engine": [child for child in own.children() if child.pid not in children],
        "site": sites,
        "engine of a site": [child for site in sites for child in site.children()],
    }


def held(found: Sequence[psutil.Process]) -> Held:
    """The greatest of what each of these processes holds now."""
    return Held(
        max(process.memory_info().rss for process in found) / MIB,
        max(process.num_fds() for process in found),
        max(process.num_threads() for process in found),
    )


def cpu_seconds(kinds: Processes) -> dict[str, float]:
    """CPU seconds that the processes of each kind have used together."""
    return {kind: sum(sum(process.cpu_times()[:2]) for process in found) for kind, found in kinds.items()}


class Line:
    """What one line of the output sums up: rounds, and what the processes hold after a round and before the next."""

    def __init__(self, kinds: Processes) -> None:
        self.kinds = kinds
        self.seconds: list[float] = []
        self.held: defaultdict[str, list[Held]] = defaultdict(list)
        self.cpu = cpu_seconds(kinds)

    def look(self) -> None:
        """Take a sample of every process."""
        for kind, found in self.kinds.items():
            self.held[kind].append(held(found))

    def round(self, transport: Transport, names: list[str], data: bytes) -> None:
        """One round, with a sample before and after it."""
        self.look()
        self.seconds.append(ask(transport, names, data))
        self.look()

    def kept(self) -> dict[str, Held]:
        """The least that each kind of process held in a sample: what it keeps when nothing is on its way."""
        return {kind: Held(*map(min, zip(*found, strict=True))) for kind, found in self.held.items()}

    def show(self, title: str) -> None:
        """Print the line."""
        what = "; ".join(
            f"{kind} {min(mib):.0f}-{max(mib):.0f} MiB, {max(fds)} fds, {max(threads)} threads"
            for kind, (mib, fds, threads) in ((kind, zip(*found, strict=True)) for kind, found in self.held.items())
        )
        if self.seconds:
            now = cpu_seconds(self.kinds)
            cpu = " + ".join(f"{(now[kind] - self.cpu[kind]) / len(self.seconds):.2f}" for kind in self.kinds)
            title += f": {statistics.median(self.seconds):.2f} s a round (at most {max(self.seconds):.2f}; CPU {cpu})"
        print(f"{title}; {what}", flush=True)


def soak(
    transport: Transport, kinds: Processes, names: list[str], data: bytes, given: argparse.Namespace
) -> dict[str, list[Held]]:
    """Rounds for so many minutes, one each `pace` seconds: what each process kept, line by line."""
    found: defaultdict[str, list[Held]] = defaultdict(list)
    begin = time.monotonic()
    end, line, due = begin + 60 * given.soak, Line(kinds), begin + given.every
    while time.monotonic() < end:
        next_round = time.monotonic() + given.pace
        line.round(transport, names, data)
        if time.monotonic() >= min(due, end):
            line.show(f"{(time.monotonic() - begin) / 60:.1f} min, {len(line.seconds)} rounds")
            for kind, least in line.kept().items():
                found[kind].append(least)
            line, due = Line(kinds), due + given.every
        time.sleep(max(0.0, next_round - time.monotonic()))
    return found


def peaks(kinds: Processes) -> dict[str, float]:
    """The greatest resident MiB of each kind of process since its start (Linux)."""
    return {
        kind: max(
            int(line.split()[1]) / 1024
            for process in found
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        for kind, found in kinds.items()
    }


def show_a_large_answer(size: int, limit: int) -> None:
    """Print what an answer of `size` bytes costs where a round takes `limit` bytes of each."""
    names = ["site-00", "site-01"]
    with tempfile.TemporaryDirectory() as folder, federation(Path(folder), names, limit, size) as (transport, children):
        kinds = processes(children)
        ask(transport, names, b"?")
        before, begin, seconds, taken = peaks(kinds), time.monotonic(), {}, True
        for reply in transport.ask(
            {"site-00": LARGE, "site-01": b"?"}, 600.0, lambda: len(seconds) == 2, limit, lambda client, news: None
        ):
            seconds[reply.client] = time.monotonic() - begin
            taken &= reply.data is not None and len(reply.data) <= limit
            del reply
        after = peaks(kinds)
        time.sleep(4.0)
        rest = {kind: held(found).mib for kind, found in kinds.items()}
    what = "; ".join(
        f"{kind} +{after[kind] - before[kind]:.0f} MiB (peak {after[kind]:.0f}, then {rest[kind]:.0f})"
        for kind in kinds
    )
    said = "" if taken else "not "
    print(
        f"{size / 1e6:.0f} MB, {said}taken, {max(seconds.values()):.1f} s, "
        f"the other {min(seconds.values()):.1f} s; {what}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--mb", type=float, default=10.0, help="10^6 bytes of a question, and of an answer")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--soak", type=float, default=0.0, metavar="MINUTES", help="go on for so long; 60 for a release"
    )
    parser.add_argument(
        "--pace", type=float, default=0.2, metavar="SECONDS", help="from a round of the soak to the next"
    )
    parser.add_argument("--every", type=float, default=30.0, metavar="SECONDS", help="between two lines of the soak")
    parser.add_argument("--answer", type=float, metavar="MB", help="what one answer of so many 10^6 bytes costs")
    given = parser.parse_args()
    if given.answer:
        for share in (0.2, 1.2):  # in this order: a peak stays
            show_a_large_answer(int(given.answer * 1e6), int(given.answer * share * 1e6))
        return 0
    names, data = [f"site-{n:02}" for n in range(given.sites)], secrets.token_bytes(int(given.mb * 1e6))
    with (
        tempfile.TemporaryDirectory() as folder,
        federation(Path(folder), names, 4 * len(data) + MIB) as (transport, children),
    ):
        kinds = processes(children)
        line = Line(kinds)
        line.look()
        line.show("before the first round")
        line = Line(kinds)
        for _ in range(given.rounds):
            line.round(transport, names, data)
        line.show(f"{given.rounds} rounds")
        if not given.soak:
            return 0
        grown = not_flat(soak(transport, kinds, names, data, given))
    print("\n".join(grown) or "flat: memory, descriptors and threads of every process", flush=True)
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
