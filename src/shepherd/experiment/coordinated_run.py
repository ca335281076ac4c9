"""The run directory of a run over sites: identity, adapter, metrics and summary, without any row.

There is no partition.json: of each site its number of rows as stated, a digest with the site's own salt, and its
version are in summary.json, and in the journal from its admission on.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from shepherd._version import __version__
from shepherd.config import Config
from shepherd.errors import EvaluationError
from shepherd.experiment.coordinator_base import CoordinatorBase
from shepherd.experiment.events import CommittedEvent, Emit
from shepherd.experiment.federated import federated_budget
from shepherd.experiment.finished_run import peak_memory
from shepherd.experiment.identity import code_digest, plugin_digests
from shepherd.experiment.privacy_account import package_of_accountant
from shepherd.experiment.private_coordination import CARD, privacy_card, sites_of_the_card
from shepherd.experiment.progress import Meter
from shepherd.experiment.resume import Beginning, begin_or_go_on, resumptions
from shepherd.experiment.rows_seen import rows_seen, times_seen
from shepherd.experiment.run_card import run_card
from shepherd.experiment.site_attendance import Terms
from shepherd.experiment.site_measures import Measured, rows_of
from shepherd.experiment.summary import brief
from shepherd.federation.cards import RunCard
from shepherd.model.adapter import digest, load_adapter
from shepherd.model.adapter import save_adapter as write_adapter
from shepherd.model.adapter_card import adapter_card
from shepherd.recipe import to_toml
from shepherd.report.guarantee import guarantee_sentence
from shepherd.report.sites.history import WHAT, history
from shepherd.server.merged_adapter import merged_adapter
from shepherd.store import RunDirectory, read_journal
from shepherd.store.records import read_rounds
from shepherd.types import ClientId, ServerState
from shepherd.updates.privacy.publication import place_of

LICENCE = "unknown"


@dataclass(frozen=True)
class Results:
    """A run over sites after its last round. personal: (nats, targets, rows) of each site's own model; sizes: the rows
    of each site as stated; privacy: the statement of its guarantee, empty without."""

    state: ServerState
    measured: Measured
    personal: Mapping[ClientId, tuple[float, float, int]]
    sizes: Mapping[ClientId, int]
    cohort: int
    privacy: Mapping[str, Any] = field(default_factory=dict)

    @property
    def by_rows(self) -> bool:
        """Whether numbers of rows and tokens that trained are known: by DP-SGD they are not."""
        return "steps" not in self.privacy


def begin_coordination(config: Config, base: CoordinatorBase, store: RunDirectory, force: bool) -> Beginning:
    """Write what the run is made with and its id; or, in a directory that has them, check and read them.

    Raises UsageError, with what differs, where a resumed run was started with something else.
    """
    import numpy

    now = {
        "config": config.model_dump(mode="json"),
        "base": base.digest,
        "tokenizer": base.tokenizer_digest,
        "rows": "at sites",
        "shepherd": __version__,
        "code": code_digest(),
        "plugins": plugin_digests(config),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
    }

    def write() -> None:
        store.write_json("env.json", {"shepherd": __version__, "python": platform.python_version(),
                                      "platform": platform.platform(), "numpy": numpy.__version__})  # fmt: skip
        store.write_text("config.toml", to_toml(config))
        store.journal("started", model=base.digest)

    return begin_or_go_on(store, now, base.start, write, force)


def card_of(config: Config, base: CoordinatorBase, run_id: str, terms: Terms, store: RunDirectory) -> RunCard:
    """The card of a run. That of a private one is kept: a resumed run has the same N, whatever its terms are."""
    sites = sites_of_the_card(store) or max(terms.sites, config.federation.min_updates)
    card = run_card(
        config,
        run_id,
        base=base.digest,
        tokenizer=base.tokenizer_digest,
        parameters=base.adapter.num_parameters,
        offers=terms.offers,
        privacy=privacy_card(config, sites),
    )
    if card.privacy is not None:
        store.write_private(CARD, card.to_json())
    return card


def announce(
    emit: Emit, config: Config, store: RunDirectory, clients: Iterable[ClientId], state: ServerState, meter: Meter
) -> None:
    """Emit the start of a run, and the rounds that are committed already."""
    emit(
        {
            "event": "start", "run": str(store.path), "config": config.model_dump(mode="json"),
            "model": config.model.base, "clients": sorted(clients), "labels": {}, "rounds": config.federation.rounds,
            "arms": list(config.evaluation.arms), "round": state.round, "fraction": meter.fraction,
        }
    )  # fmt: skip
    for line in read_rounds(store.path):
        emit(cast("CommittedEvent", {"event": "committed", **line}))


def save_adapter(results: Results, base: CoordinatorBase, store: RunDirectory) -> None:
    """Write the final adapter as a PEFT folder. Raises EvaluationError where what is read back is another one."""
    state, measured, sizes, privacy = results.state, results.measured, results.sizes, results.privacy
    merged = merged_adapter(state.model)
    with store.commit_folder("adapter") as folder:
        write_adapter(folder, merged, base_name=base.public_name, conv1d=base.conv1d)
        base.tokenizer.save_pretrained(folder)
        before, after = (measured.arms[arm]["loss"] for arm in ("base", "federated"))
        card = adapter_card(
            merged, base=base.facts["name"], base_licence=base.facts["licence"], data="rows of the sites",
            data_licence=LICENCE, clients=len(sizes), rounds=state.round,
            rows=None if privacy else sum(sizes.values()), privacy=guarantee_sentence(privacy) if privacy else "",
            loss_before=float("nan") if before is None else before,
            loss_after=float("nan") if after is None else after, version=__version__,
        )  # fmt: skip
        (folder / "README.md").write_text(card, encoding="utf-8")
    if digest(load_adapter(store.path / "adapter")) != digest(merged):
        raise EvaluationError("the adapter on disk is not the one that was written", hint="look at the disk")


def write_results(
    config: Config, base: CoordinatorBase, results: Results, seconds: Mapping[str, float], store: RunDirectory
) -> dict[str, Any]:
    """Write evaluation/metrics.json and summary.json, with which the run is finished; the summary."""
    lines = read_rounds(store.path)
    store.write_json("evaluation/metrics.json", _metrics(results, lines))
    found = _summary(config, base, results, lines, seconds, store)
    if results.privacy:
        found["privacy"] = results.privacy
        store.write_json("privacy.json", {"shepherd": __version__, **package_of_accountant(), **results.privacy})
    store.write_json("summary.json", found)
    store.journal("finished")
    return found


def _metrics(results: Results, lines: list[Mapping[str, Any]]) -> dict[str, Any]:
    measured = results.measured
    federated = measured.arms["federated"]
    curve = [[line["round"], line["held_out_loss"]] for line in lines if line["held_out_loss"] is not None]
    found = {
        "held_out_rows": federated["rows"],
        "held_out_tokens": federated["tokens"],
        "arms": measured.arms,
        "curves": {"federated": [[0, measured.arms["base"]["loss"]], *curve]},
        "differences": measured.differences,
        "own_rows": {},
        "generation_differences": [],
    }
    if results.personal:
        found["personal"] = _personal(results)
    if results.privacy:
        found["privacy"] = results.privacy
    return found


def _personal(results: Results) -> dict[str, Any]:
    """Each site's losses on its own held-out rows under the base, the global and its own model."""
    found = {}
    for client, (total, weight, rows) in sorted(results.personal.items()):
        by_site = results.measured.by_site
        own = {name: by_site[arm][client] for name, arm in (("base", "base"), ("global", "federated"))
               if client in by_site.get(arm, {})}  # fmt: skip
        losses = {name: answer.stat.mean for name, answer in own.items() if rows_of(answer) == rows}
        found[client] = {"base": None, "global": None, **losses, "personal": total / weight, "rows": rows}
    return found


def _summary(
    config: Config, base: CoordinatorBase, results: Results, lines: list[Mapping[str, Any]],
    seconds: Mapping[str, float], store: RunDirectory,
) -> dict[str, Any]:  # fmt: skip
    state, sizes, arms = results.state, results.sizes, results.measured.arms
    adapter = merged_adapter(state.model)
    return {
        "arms": {name: brief(entry) for name, entry in arms.items()},
        "budget": {
            "federated": {
                **dataclasses.asdict(federated_budget(lines, results.cohort, config.training.learning_rate)),
                **({} if results.by_rows else {"target_tokens": None}),
            }
        },
        "bytes_up": sum(line["bytes_up"] for line in lines),
        "bytes_down": sum(line["bytes_down"] for line in lines),
        "seconds": dict(seconds),
        "model": dict(base.facts),
        "adapter_sha256": digest(adapter),
        "adapter": {
            "r": adapter.r, "alpha": adapter.alpha, "parameters": adapter.num_parameters, "bytes": adapter.nbytes,
            "targets": sorted({n.rsplit(".", 1)[-1] for n in adapter.factors}),
        },
        "data": {
            "name": "rows of the sites", "licence": LICENCE, "train_rows": sum(sizes.values()),
            "held_out_rows": arms["federated"]["rows"],
        },
        "sites": sites_of(store),
        "federation": history(read_journal(place_of(store.path, "journal.jsonl")).rows),
        "clients": len(sizes), "labels": {},
        "rounds": config.federation.rounds,
        "cohort": results.cohort,
        "failed": [],
        "peak_memory_bytes": peak_memory(),
        "version": __version__,
        "seed": config.run.seed,
        **({"trained_rows": times_seen(rows_seen(lines, sizes, config.run.seed))} if results.by_rows else {}),
        **resumptions(store.path),
    }  # fmt: skip


def sites_of(store: RunDirectory) -> dict[ClientId, dict[str, Any]]:
    """Every site that took part: its rows as stated, the digest that it salted, and its version, from the journal."""
    admitted = [
        row for row in read_journal(place_of(store.path, "journal.jsonl")).rows
        if row["what"] == WHAT and row.get("state") == "admitted"
    ]  # fmt: skip
    # A card of another version is refused, so the version of an admitted site is that of the run.
    facts = {row["client"]: {"rows": row["rows"], "digest": row["digest"], "version": __version__} for row in admitted}
    return dict(sorted(facts.items()))
