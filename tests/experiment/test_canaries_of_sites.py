"""Canary strings: what is in the rows, paths, ids, categories and errors of a site is in nothing that leaves it.

`connect` is the transport of these tests: a context manager that is given {site: start of its process} and gives the
coordinator's side, with terms whose clock is that of the transport. Another transport is another parameter of the
fixture.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shepherd.experiment.coordinate import coordinate
from shepherd.experiment.site import compose_site
from shepherd.experiment.site_attendance import Terms
from shepherd.experiment.site_work import site_trainer
from shepherd.federation.site import Site
from shepherd.federation.transport import Transport
from shepherd.federation.transports.memory import MemoryTransport
from shepherd.report.sites.terminal import run_report
from sites import SETTINGS, InTurn, site_file

CANARY = "xqzcanary"
OURS = "xqzours"
"""In the rows and paths of the coordinator."""

Start = Callable[[], Site]
Connected = AbstractContextManager[tuple[Transport, Terms]]
Connect = Callable[[Mapping[str, Start]], Connected]


@contextmanager
def in_memory(starts: Mapping[str, Start]) -> Iterator[tuple[Transport, Terms]]:
    transport = MemoryTransport(starts)

    def sleep(seconds: float) -> None:
        transport.clock.now += seconds

    yield transport, Terms(sites=len(starts), enough=100.0, clock=transport.clock, sleep=sleep)
    transport.close()


@contextmanager
def over_the_network(starts: Mapping[str, Start]) -> Iterator[tuple[Transport, Terms]]:
    pytest.importorskip("nvflare")
    from federation_kits import Kits
    from network_sites import ServedSite
    from shepherd.federation.transports.serving import serve_federation

    with tempfile.TemporaryDirectory() as folder:
        kits = Kits(Path(folder) / "kits")
        with serve_federation(kits.server(), limit=4 * 2**20) as transport:
            served = [ServedSite(kits.site(name), InTurn(start())) for name, start in starts.items()]
            yield transport, Terms(sites=len(starts), enough=60.0)
            for site in served:
                site.end()
        for path in kits.folder.rglob("*"):  # what the engine wrote, on both sides
            assert not path.is_file() or not found_in(path.read_bytes(), CANARY), path


NETWORK = pytest.param(over_the_network, marks=pytest.mark.slow, id="network")


@pytest.fixture(scope="module", params=[pytest.param(in_memory, id="memory"), NETWORK])
def connect(request) -> Connect:
    return request.param


def canary(*parts: object) -> str:
    return "".join([CANARY, *map(str, parts)])


def write_site(folder: Path, name: str) -> Path:
    """A site whose every row has canaries in text, category and further columns, in a folder that is one."""
    place = folder / canary("folder", name)
    place.mkdir(parents=True)
    rows = [
        {"instruction": f"{canary('asks', name)} What is {n} and {n}?", "response": f"{canary('says', name)} {2 * n}",
         "category": canary("kind", name, n % 2), "id": canary("id", name, n), "source": canary("column", name)}
        for n in range(8)
    ]  # fmt: skip
    (place / f"{canary('file', name)}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


class Failing:
    """A trainer whose calls of some names raise once, with canaries in the text of the error."""

    def __init__(self, trainer, *names: str) -> None:
        self.trainer, self.names, self.raised = trainer, [*names], []

    def __getattr__(self, name):
        method = getattr(self.trainer, name)

        def call(*given):
            if name in self.names:
                self.names.remove(name)
                self.raised.append(name)
                raise ValueError(f"{canary('error', name)} in /{canary('path')}/row 3: {canary('asks')}")
            return method(*given)

        return call


@dataclass
class World:
    """Two sites, what came to them and what left them; and the coordinator's folder."""

    root: Path
    base: Path
    came: list[bytes] = field(default_factory=list)
    left: list[bytes] = field(default_factory=list)
    trainers: list[Failing] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)

    @property
    def ours(self) -> Path:
        return self.root / f"{OURS}coordinator"

    def start(self, name: str, place: Path, *failing: str) -> Start:
        file = site_file(name, place / f"{canary('file', name)}.jsonl", self.base, categories="hidden")

        def begin() -> Site:
            self.trainers.append(Failing(site_trainer(file, place), *failing))
            site = compose_site(file, place, self.trainers[-1])
            handle = site.handle

            def watched(data, report=lambda progress: None):
                self.came.append(data)
                answer = handle(data, lambda news: (self.left.append(news), report(news)))
                self.left.extend([answer] if answer is not None else [])
                return answer

            site.handle = watched
            return site

        return begin


FAILING = {"north": ("train", "finish"), "south": ("measure",)}


@pytest.fixture(scope="module")
def world(connect, small_config, model_folder, tmp_path_factory):
    """Two runs over two sites that make own models: measured on rows of the sites, and on rows of the coordinator."""
    root = tmp_path_factory.mktemp("apart")
    world = World(root, model_folder("llama"))
    world.ours.mkdir()
    own = [
        {"instruction": f"{OURS}asks {n}?", "response": f"{OURS}says {n}", "category": f"{OURS}kind"} for n in range(4)
    ]
    rows = world.ours / f"{OURS}rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in own))
    (world.ours / "tiny-llama").symlink_to(world.base)
    starts = {name: world.start(name, write_site(root, name), *failing) for name, failing in FAILING.items()}
    for held_out in ("", str(rows)):
        config = small_config(
            *SETTINGS, f"data.source={rows}", f"data.held_out_source={held_out}", "federation.rounds=2",
            "federation.min_updates=1", "federation.deadline=60.0", "personalization.name=finetune",
            "personalization.steps=2",
        )  # fmt: skip
        model = config.model.model_copy(update={"base": str(world.ours / "tiny-llama")})
        with connect(starts) as (transport, terms):
            coordinate(
                config.model_copy(update={"model": model}), transport, world.events.append, world.ours / "runs", terms
            )
    return world


def forms(text: str) -> list[bytes]:
    """A text as it may lie in a file: as it is, in hexadecimal digits, in the three phases of base64."""
    raw = text.encode()
    phases = [base64.b64encode(b"\0" * shift + raw)[4 if shift else 0 : -4].rstrip(b"=") for shift in range(3)]
    return [raw, raw.hex().encode(), raw.decode().encode("utf-16-le"), *phases]


def found_in(data: bytes, text: str) -> bool:
    return any(form.lower() in data.lower() for form in forms(text))


def test_no_canary_of_a_site_is_in_anything_that_the_coordinator_wrote_or_printed(world):
    raised = Counter(name for trainer in world.trainers for name in trainer.raised)
    assert raised == {"train": 2, "measure": 2, "finish": 2}, "of each run"
    written = {path: path.read_bytes() for path in (world.ours / "runs").rglob("*") if path.is_file()}
    assert {"report.html", "summary.json", "journal.jsonl", "metrics.json"} <= {path.name for path in written}
    journals = b"".join(data for path, data in written.items() if path.name == "journal.jsonl")
    assert b"error:ValueError" in journals, "its class is there, of its text nothing"
    for path, data in written.items():
        assert not found_in(data, CANARY), path
        assert CANARY not in str(path)
    for run in sorted((world.ours / "runs").iterdir()):
        text, facts = run_report(run)
        assert "north" in text and not found_in((text + json.dumps(facts)).encode(), CANARY)
    assert not found_in(repr(world.events).encode(), CANARY)


def test_no_canary_leaves_a_site(world):
    assert len(world.left) > 10
    for data in world.left:
        assert not found_in(data, CANARY)


def test_nothing_that_comes_to_a_site_has_rows_or_paths_of_the_coordinator(world):
    assert any(b"tiny-llama" in data for data in world.came), "the base has its name"
    for data in world.came:
        assert not found_in(data, OURS) and not found_in(data, str(world.root))


def test_the_search_finds_a_canary_in_each_of_its_forms(world):
    for form in forms(CANARY):
        assert found_in(b"\0 {" + form + b"} \0", CANARY)
    for shift in range(3):
        assert found_in(base64.b64encode(b"abc"[:shift] + canary("asks").encode()), CANARY)
    sites = b"".join(path.read_bytes() for path in world.root.glob(f"{CANARY}*/*.jsonl"))
    assert found_in(sites, CANARY)
