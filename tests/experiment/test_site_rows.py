"""Sites that read their own files have the rows, the held-out rows and the bits of a simulation with a file each."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from federation_schedules import MemoryPlace
from prepared import plan_of, trainer_of
from shepherd.clients.facts import facts_of
from shepherd.engines.local import LocalEngine
from shepherd.engines.remote import Remote
from shepherd.errors import DataError, ModelError
from shepherd.experiment.rows import prepare_rows
from shepherd.experiment.run_card import run_card, site_config
from shepherd.experiment.site_work import site_rows, site_trainer
from shepherd.federation.cards import Policy, SiteFile
from shepherd.federation.coordinator import Coordinator
from shepherd.federation.policy import Own
from shepherd.federation.site import Site
from shepherd.federation.site_store import SiteStore
from shepherd.federation.states import Ledger
from shepherd.federation.transports.memory import MemoryTransport
from shepherd.model.base import load_base
from shepherd.round import run_round
from shepherd.types import ServerState

NAMES = ("hospital-a", "hospital-b")
WORDS = ("red", "green", "blue", "tree", "stone", "river", "cloud", "house", "horse", "bread", "light", "storm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file of rows for each site; no prompt occurs in two of them."""
    folder, rng = tmp_path_factory.mktemp("sites"), np.random.default_rng(0)
    for name, rows in zip(NAMES, (9, 12), strict=True):
        lines = [
            {"instruction": f"{name} {i // 2}: {' '.join(rng.choice(WORDS, 3))}?", "response": str(rng.choice(WORDS))}
            for i in range(rows)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


@pytest.fixture(scope="module")
def config(small_config, folder):
    return small_config(
        f"data.source={folder}", "partition.name=files", "data.rows_per_category=0", "data.held_out_per_category=2",
        "objective.scaffold=true", "training.tokens_per_pass=256",
    )  # fmt: skip


@pytest.fixture(scope="module")
def base(config):
    return load_base(**config.model.model_dump())


@pytest.fixture(scope="module")
def simulated(config, base):
    return prepare_rows(config, base.tokenizer)[0]


def site_file(config, folder, name: str) -> SiteFile:
    tables = {
        "site": {"name": name, "device": "cpu", "dtype": "float32", "threads": 1, "tokens_per_pass": 256},
        "data": {"source": str(folder / f"{name}.jsonl")},
        "model": {"base": config.model.base},
    }
    return SiteFile.model_validate(tables)


def card_of(config, base):
    return run_card(config, "demo", base=base.digest, tokenizer=base.tokenizer_digest, parameters=10_000)


def test_a_site_has_the_training_rows_and_the_held_out_rows_of_the_simulation(config, base, folder, simulated):
    assert sorted(simulated.clients) == list(NAMES)
    for name in NAMES:
        rows = site_rows(site_config(card_of(config, base), site_file(config, folder, name)), name, base.tokenizer)
        held_out = [simulated.held_out[i] for i in simulated.held_out_of(name)]
        assert facts_of(rows.clients)[name] == facts_of(simulated.clients)[name]
        assert facts_of({name: rows.held_out})[name] == facts_of({name: held_out})[name]
        assert len(held_out) == 2


def test_sites_with_their_own_files_and_bases_give_the_bits_of_the_simulation(
    config, base, folder, simulated, tmp_path
):
    trainer, plan = trainer_of(config, base), plan_of(config, simulated)
    start = ServerState(0, plan.method.start(trainer.adapter, config.run.seed, None))
    places = {name: MemoryPlace() for name in NAMES}

    def site(name: str) -> Site:
        own = Own(base.digest, base.tokenizer_digest, "0.1.0")
        policy = Policy(approve="policy", least_cohort=1, min_rows_round=1, least_group=2)
        return Site(name, policy, own, site_trainer(site_file(config, folder, name), tmp_path), SiteStore(places[name]))

    transport = MemoryTransport({name: partial(site, name) for name in NAMES})
    coordinator = Coordinator(card_of(config, base), transport, Ledger([].append), clock=transport.clock)
    coordinator.open()
    assert coordinator.admit() == dict.fromkeys(NAMES, "admitted")
    assert {name: facts.rows for name, facts in coordinator.facts().items()} == plan.sizes
    gated = replace(plan, gate=partial(plan.gate, run="demo", tokenizer=base.tokenizer_digest))
    found, here = [], LocalEngine(trainer.host(simulated.clients))
    for engine, kept in ((here, plan), (Remote(coordinator), gated)):
        state = start
        for _ in range(2):
            state, record = run_round(state, kept, engine)
            assert sorted(record.weights) == list(NAMES)
        factors = state.model.adapter.factors
        found.append([array.tobytes() for name in sorted(factors) for array in factors[name]])
    assert found[0] == found[1]
    for name, measured in coordinator.measure(state.model, NAMES).items():
        held_out = [simulated.held_out[i] for i in simulated.held_out_of(name)]
        assert measured.stat == here.evaluate(state.model, held_out).stat


def test_a_site_keeps_what_became_of_its_rows_for_its_operator(config, base, folder, tmp_path):
    card, place = card_of(config, base), tmp_path / "runs" / "demo" / "rows.json"
    file = folder / "hospital-a.jsonl"
    own = tmp_path / "rows" / "hospital-a.jsonl"
    own.parent.mkdir()
    own.write_text(file.read_text() + '{"instruction": "nothing", "response": ""}\n')
    facts = site_trainer(site_file(config, own.parent, "hospital-a"), tmp_path).load_rows(card)
    found = json.loads(place.read_text())
    assert (found["trained_on"], found["held_out"]) == (facts.rows, 2)
    assert any(note.startswith("1 row refused: empty answer") for note in found["notes"])
    own.write_text('{"instruction": "nothing", "response": ""}\n')
    with pytest.raises(DataError):
        site_trainer(site_file(config, own.parent, "hospital-a"), tmp_path).load_rows(card)
    found = json.loads(place.read_text())
    assert "none of the 1 rows can be used" in found["error"] and "trained_on" not in found


def test_a_site_without_rows_of_use_or_with_another_base_does_not_take_part(config, base, folder, tmp_path):
    (tmp_path / "hospital-a.jsonl").write_text('{"other": 1}\n')
    card = card_of(config, base)
    with pytest.raises(DataError):
        site_trainer(site_file(config, tmp_path, "hospital-a"), tmp_path).load_rows(card)
    other = card.model_copy(update={"tokenizer": "e" * 64})
    with pytest.raises(ModelError, match="is another base or tokenizer than the run has"):
        site_trainer(site_file(config, folder, "hospital-a"), tmp_path).load_rows(other)
