"""Two sites from two small files of rows, and the recipe of the same federation in one process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from shepherd.config import Config
from shepherd.experiment.coordinate import coordinate
from shepherd.experiment.opened_run import Run
from shepherd.experiment.site import compose_site
from shepherd.experiment.site_attendance import Terms
from shepherd.experiment.site_work import site_trainer
from shepherd.federation.cards import SiteFile
from shepherd.federation.site import Site
from shepherd.federation.transports.memory import MemoryTransport

ROWS = {"north": 7, "south": 5}
SETTINGS = (
    "partition.name=files", "data.rows_per_category=0", "data.held_out_per_category=2", "federation.rounds=2",
    "federation.min_updates=2", "training.local_steps=2", "training.batch_size=2", "training.learning_rate=1e-2",
    "training.tokens_per_pass=512", "run.threads=1", "evaluation.arms=base,federated", "evaluation.generate=0",
)  # fmt: skip

_PRIVATE = (
    "federation.method=ffa_lora", "federation.weights=uniform", "federation.on_too_few=skip", "federation.rounds=3",
    "federation.quarantine_after=0", "federation.min_updates=1", "privacy.clip=0.05", "privacy.noise_multiplier=2",
)  # fmt: skip
CLIENT = (
    *_PRIVATE, "privacy.unit=client", "privacy.delta=0.1", "selection.name=poisson", "federation.clients_per_round=1",
)  # fmt: skip
EXAMPLE = (*_PRIVATE, "privacy.unit=example", "privacy.delta=0.05")
"""Settings beside SETTINGS of a private run over both sites, by the unit of its privacy."""


def write_rows(folder: Path, counts: dict[str, int] | None = None) -> Path:
    """A file of rows for each site, none of which asks what another one asks."""
    folder.mkdir(parents=True, exist_ok=True)
    for site, count in (counts or ROWS).items():
        rows = [
            {"instruction": f"What is {number} plus {number} in the {site}?", "response": f"{2 * number} in the {site}",
             "category": "odd" if number % 2 else "even"}
            for number in range(count)
        ]  # fmt: skip
        folder.joinpath(f"{site}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def site_file(name: str, rows: Path, base: Path | str, **policy: Any) -> SiteFile:
    allowed = {
        "approve": "policy",
        "least_cohort": 1,
        "least_group": 1,
        "min_rows_round": 1,
        "categories": "shown",
        **policy,
    }
    return SiteFile.model_validate(
        {
            "site": {"name": name, "dtype": "float32", "device": "cpu", "threads": 1, "tokens_per_pass": 512},
            "data": {"source": str(rows)},
            "model": {"base": str(base)},
            "policy": allowed,
        }
    )


class Sites:
    """Sites over a transport in memory, with trainers in this process."""

    def __init__(self, rows: Path, base: Path | str, folder: Path, names: Iterable[str] = ROWS) -> None:
        self.rows, self.base, self.folder = rows, base, folder
        self.policy: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.transport = MemoryTransport({name: self.starter(name) for name in names})

    def starter(self, name: str) -> Callable[[], Site]:
        def start() -> Site:
            file = site_file(name, self.rows / f"{name}.jsonl", self.base, **self.policy.get(name, {}))
            place = self.folder / name
            return compose_site(file, place, site_trainer(file, place))

        return start

    def terms(self, **changes: Any) -> Terms:
        clock = self.transport.clock

        def sleep(seconds: float) -> None:
            clock.now += seconds

        return Terms(**{"sites": 2, "enough": 100.0, "clock": clock, "sleep": sleep} | changes)

    def coordinate(self, config: Config, folder: Path, **terms: Any) -> Run:
        """The run of a recipe over these sites, with its events in `events`."""
        return coordinate(config, self.transport, self.events.append, folder, self.terms(**terms))


class InTurn:
    """A site that shares this process, and torch's random numbers, with another one."""

    turn = threading.Lock()

    def __init__(self, site: Site) -> None:
        self.site, self.session = site, site.session

    def handle(self, data: bytes, report: Callable[[bytes], None]) -> bytes | None:
        with self.turn:
            return self.site.handle(data, report)


def adapter_of(run: Run) -> bytes:
    """The bytes of the adapter of a run."""
    return (run.path / "adapter" / "adapter_model.safetensors").read_bytes()
