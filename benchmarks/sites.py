"""What sites over a network cost beyond training: seconds a round, memory of each process, and both over time.

python benchmarks/sites.py [--sites 2] [--mb 10] [--rounds 10] [--soak MINUTES] [--every SECONDS]

Each site is a process without a trainer that answers a question with as many bytes. All run on this machine, over TLS.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from shepherd.federation.transport import Transport
from shepherd.federation.transports.serving import serve_federation, serve_site

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from federation_kits import Kits

MIB = 2**20


class Echo:
    """A site that answers with its question."""

    def __init__(self) -> None:
        self.session = secrets.token_hex(8)

    def handle(self, data: bytes, _: Callable[[bytes], None]) -> bytes:
        return bytes(data)


@contextmanager
def federation(folder: Path, names: list[str], limit: int) -> Iterator[tuple[Transport, list[int]]]:
    """A coordinator in this process and a process for each site: the transport, and the numbers of those processes."""
    kits, children = Kits(folder), []
    kits.server()
    for name in names:
        kit = kits.site(name)
        child = os.fork()
        if not child:
            serve_site(kit, Echo(), stop=threading.Event(), limit=limit)
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


def usage(children: list[int]) -> dict[str, tuple[float, int]]:
    """The greatest resident MiB and number of descriptors of each kind of process."""
    own = psutil.Process()
    engines = [child for child in own.children() if child.pid not in children]
    sites = [psutil.Process(child) for child in children]
    kinds = {
        "coordinator": [own], "its engine": engines, "site": sites,
        "engine of a site": [child for site in sites for child in site.children()],
    }  # fmt: skip
    return {
        kind: (max(p.memory_info().rss for p in found) / MIB, max(p.num_fds() for p in found))
        for kind, found in kinds.items() if found
    }  # fmt: skip


def show(title: str, seconds: list[float], children: list[int]) -> None:
    found = "; ".join(f"{kind} {mib:.0f} MiB, {fds} fds" for kind, (mib, fds) in usage(children).items())
    median = f"{statistics.median(seconds):.2f} s a round (at most {max(seconds):.2f}); " if seconds else ""
    print(f"{title}: {median}{found}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--mb", type=float, default=10.0, help="10^6 bytes of a question, and of an answer")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--soak", type=float, default=0.0, metavar="MINUTES", help="go on for so long; 60 for a release"
    )
    parser.add_argument("--every", type=float, default=30.0, metavar="SECONDS", help="between two lines of the soak")
    given = parser.parse_args()
    names, data = [f"site-{n:02}" for n in range(given.sites)], secrets.token_bytes(int(given.mb * 1e6))
    with (
        tempfile.TemporaryDirectory() as folder,
        federation(Path(folder), names, 4 * len(data) + MIB) as (transport, children),
    ):
        show("before the first round", [], children)
        show(f"{given.rounds} rounds", [ask(transport, names, data) for _ in range(given.rounds)], children)
        begin, line, seconds = time.monotonic(), given.every, []
        while time.monotonic() - begin < 60 * given.soak:
            seconds.append(ask(transport, names, data))
            if time.monotonic() - begin >= line:
                show(f"{line / 60:.1f} min, {len(seconds)} rounds", seconds, children)
                line, seconds = line + given.every, []
            time.sleep(0.2)


if __name__ == "__main__":
    main()
