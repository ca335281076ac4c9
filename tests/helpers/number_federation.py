"""A federation of numbers over the network: whole processes of a coordinator and of sites, without a model or torch.

    coordinate_numbers(folder, rounds)        # as `shepherd run` over sites; again in the same folder, as `resume`
    serve_numbers(folder, "north", seconds)   # as `shepherd site start`, until SIGTERM
    rehearse_numbers(folder, rounds)          # the same run with its sites in this process, on a virtual clock

What a site sends depends on the model, the round and its private state, so an update that counts twice, or starts from
another state, makes another adapter.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shepherd.clients.progress import Progress
from shepherd.federation.groups import Group
from shepherd.types import Adapter, ClientUpdate, Factors, ServerState, SiteFacts, Stat

BASE, TOKENIZER = "b" * 64, "c" * 64
ROWS = {"north": 7, "south": 5}
LIMIT = 64 * 2**20
RUN = "numbers"


class NumberTrainer:
    """Trains for some seconds. width: of the modules, so that an update has 16 · width bytes."""

    def __init__(self, client: str, seconds: float, width: int) -> None:
        self.client, self.seconds, self.width = client, seconds, width

    def load_rows(self, card: Any) -> SiteFacts:
        return SiteFacts(ROWS.get(self.client, 6), "rows of " + self.client)

    def train(self, task: Any, private: Any, observe: Callable[[Any], None]) -> ClientUpdate:
        work, adapter = task.work[self.client], task.views[self.client].adapter
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            observe({self.client: Progress("training", 1, work.steps)})
            time.sleep(0.05)
        before = private.get("p", np.zeros(4))
        rng = np.random.default_rng([task.seed, task.round, work.first_row, *self.client.encode()])
        now = np.sin(before.sum() + sum(float(pair.B.sum()) for pair in adapter.factors.values()))
        delta = {
            f"{name}.{part}": (rng.standard_normal(getattr(pair, part).shape) + now).astype(np.float32)
            for name, pair in adapter.factors.items() for part in "AB"
        }  # fmt: skip
        after = before * 0.5 + rng.standard_normal(4)
        return ClientUpdate(
            self.client, task.round, delta, ROWS.get(self.client, 6), 9, work.steps, {"loss": 1.0}, {"p": after}
        )

    def measure(self, model: Any, rows_of: str) -> dict[str, Group]:
        return {} if rows_of == "none" else {"held-out": Group(Stat(4.0 if model is None else 2.0, 4.0), 2)}

    def finish(self, task: Any, private: Any) -> dict[str, Group]:
        raise NotImplementedError


class _Tokenizer:
    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{}")


def base_of_numbers(width: int = 4) -> Any:
    """A coordinator's base without a model."""
    from shepherd.experiment.coordinator_base import CoordinatorBase
    from shepherd.types import GlobalModel

    pairs = {"model.layers.0.q_proj": Factors(np.ones((2, width), np.float32), np.zeros((width, 2), np.float32))}
    adapter = Adapter(pairs, 2, 4.0, base_digest=BASE)
    facts = {"name": "numbers", "digest": BASE, "parameters": 8, "licence": "unknown"}
    return CoordinatorBase(
        facts=facts, tokenizer_digest=TOKENIZER, public_name="numbers", tokenizer=_Tokenizer(), adapter=adapter,
        conv1d=False, start=ServerState(0, GlobalModel(adapter)),
    )  # fmt: skip


def recipe_of_numbers(rounds: int, sites: int) -> Any:
    """The config of a run."""
    from shepherd.recipe import load

    settings = [
        "model.base=numbers", f"run.name={RUN}", "lora.r=2", "lora.alpha=4", f"federation.rounds={rounds}",
        f"federation.min_updates={sites}", f"federation.clients_per_round={len(ROWS)}", "federation.method=fedit",
        "training.local_steps=2", "training.batch_size=2", "evaluation.every=0", "evaluation.generate=0",
        "evaluation.arms=base,federated", "data.source=rows", "partition.name=files",
    ]  # fmt: skip
    return load(None, settings)


def site_of_numbers(name: str, trainer: Any, records: Path) -> Any:
    """A site whose records are in that folder."""
    from shepherd._version import __version__
    from shepherd.federation.cards import Policy
    from shepherd.federation.policy import Own
    from shepherd.federation.site import Site
    from shepherd.federation.site_store import Folder, SiteStore

    policy = Policy(approve="policy", least_cohort=1, least_group=1, min_rows_round=1, max_trainings=10**6,
                    max_measures=10**6, max_rounds=10**5)  # fmt: skip
    return Site(name, policy, Own(BASE, TOKENIZER, __version__), trainer, SiteStore(Folder(records)))


def rehearse_numbers(folder: Path, rounds: int, *, width: int = 4) -> None:
    """The run in `folder/runs`, with sites in this process."""
    from unittest import mock

    from shepherd.experiment import coordinate as experiment
    from shepherd.experiment.site_attendance import Terms
    from shepherd.federation.transports.memory import MemoryTransport

    sites = {name: site_of_numbers(name, NumberTrainer(name, 0.0, width), folder / name) for name in ROWS}
    transport = MemoryTransport({name: lambda name=name: sites[name] for name in ROWS})
    terms = Terms(sites=len(ROWS), clock=transport.clock, sleep=lambda seconds: None)
    with mock.patch.object(experiment, "prepare_base", return_value=base_of_numbers(width)):
        experiment.coordinate(recipe_of_numbers(rounds, len(ROWS)), transport, None, folder / "runs", terms)


def coordinate_numbers(
    folder: Path,
    rounds: int,
    *,
    width: int = 4,
    sites: int = 2,
    on_event: Callable[..., None] = lambda kind, **facts: None,
    lingers: float = 0.0,
    lost: float = 60.0,
) -> None:
    """Begin the run in `folder/runs`, or go on with it.

    lingers: seconds between the last answer of a round and its commit; lost: after which a site that is away has lost
    its question.
    """
    from unittest import mock

    from shepherd.experiment import coordinate as experiment
    from shepherd.experiment.site_attendance import Terms
    from shepherd.federation.transports import hub, serving
    from shepherd.store import RunDirectory

    commit = RunDirectory.commit_round

    def commit_later(*given: Any, **facts: Any) -> Any:
        time.sleep(lingers)
        return commit(*given, **facts)

    terms = Terms(sites=sites, offer=20.0, sleep=lambda seconds: time.sleep(min(seconds, 0.2)))
    run = folder / "runs" / RUN
    with (
        mock.patch.object(experiment, "prepare_base", return_value=base_of_numbers(width)),
        mock.patch.object(RunDirectory, "commit_round", commit_later),
        mock.patch.object(serving, "Hub", partial(hub.Hub, lost=lost)),
        serving.serve_federation(folder / "server", limit=LIMIT, on_event=on_event) as transport,
    ):
        if (run / "identity.json").exists():
            experiment.resume_coordination(run, transport, None, terms)
        else:
            experiment.coordinate(recipe_of_numbers(rounds, sites), transport, None, folder / "runs", terms)


def serve_numbers(
    folder: Path,
    name: str,
    *,
    seconds: float = 0.3,
    width: int = 4,
    on_event: Callable[..., None] = lambda kind, **facts: None,
) -> None:
    """Serve as a site whose kit and records are in `folder/<name>`, until SIGTERM."""
    from shepherd.engines.site_process import ProcessTrainer
    from shepherd.federation.site_store import identity_lock
    from shepherd.federation.transports.serving import serve_site

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    records = folder / f"{name}-records"
    with identity_lock(records, name):
        trainer = ProcessTrainer(partial(NumberTrainer, name, seconds, width), name)
        try:
            site = site_of_numbers(name, trainer, records)
            serve_site(folder / name, site, stop=stop, on_event=on_event)
        finally:
            trainer.close()
