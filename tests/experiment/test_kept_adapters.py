"""Which clients leave the adapter of their local training: by default three, else a number or names."""

from __future__ import annotations

import hashlib

import pytest

from shepherd.errors import UsageError
from shepherd.experiment import run as experiment
from shepherd.experiment.estimate import plan
from shepherd.experiment.method import compose
from shepherd.experiment.named_clients import kept_names
from shepherd.recipe import load, resolve, to_toml
from shepherd.store.adapters import kept_adapters
from stopped_runs import stopped

CLIENTS = ("anna", "bert", "client-000", "dora", "emil")
LABELS = {"client-000": "Cléo"} | {c: c for c in CLIENTS if c != "client-000"}


def kept(arms=("base", "federated", "local"), **evaluation):
    config = resolve({"evaluation": {"arms": list(arms), **evaluation}})
    return kept_names(config, compose(config).baselines, CLIENTS, LABELS)


def test_a_number_is_spread_over_the_names_of_those_who_train_alone():
    assert kept() == ("anna", "client-000", "emil") and kept(keep_local=1) == ("anna",)
    assert kept(keep_local=0) == () and kept(keep_local="all") == kept(keep_local=99) == CLIENTS
    assert kept(local_clients=2) == ("anna", "emil") == kept(local_clients=2, keep_local="all")
    assert kept(arms=("base", "federated", "centralised")) == ()


def test_clients_are_named_by_their_ids_or_names_once_or_twice():
    assert kept(keep_local=["Cléo", "bert", "client-000"]) == ("client-000", "bert")


@pytest.mark.parametrize(
    ("evaluation", "message", "hint"),
    [
        ({"keep_local": ["berta"]}, "evaluation.keep_local names 'berta', which is not a client. Did you mean 'bert'?",
         "clients: anna, bert"),
        ({"keep_local": ["bert"], "local_clients": ["anna", "Cléo"]},
         "evaluation.keep_local names 'bert', which evaluation.local_clients leaves out",
         "anna, client-000 train alone"),
        ({"keep_local": 2, "arms": ["base", "federated", "centralised"]},
         "evaluation.keep_local = 2 would have no effect: no arm of evaluation.arms has a model per client",
         "add local to evaluation.arms"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_before_a_run(evaluation, message, hint):
    with pytest.raises(UsageError) as caught:
        kept(**evaluation)
    assert message in caught.value.message and hint in caught.value.hint


def test_a_run_refuses_an_unknown_name_before_it_trains(small_config, tmp_path):
    with pytest.raises(UsageError, match=r"keep_local names 'open_q', which is not a client\. Did you mean"):
        experiment.run(small_config("evaluation.keep_local=open_q"), out_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_default_is_left_out_of_the_recipe_that_a_run_writes():
    assert "keep_local" not in to_toml(load(None)) and 'keep_local = "all"' in to_toml(
        load(None, ["evaluation.keep_local=all"])
    )
    assert load(None, ["evaluation.keep_local=a,b"]).evaluation.keep_local == ("a", "b")
    with pytest.raises(UsageError, match="keep_local: must be 'all' or must be at least 0 or must be a list"):
        load(None, ["evaluation.keep_local=-1"])


def bytes_of(path):
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((path / "arms").rglob("*"))
        if file.is_file()
    }


def test_a_stopped_run_neither_loses_nor_repeats_an_adapter(run_small, small_config, tmp_path):
    some = ("evaluation.keep_local=closed_qa,open_qa", "evaluation.local_clients=3", "evaluation.generate=0",
            "evaluation.local_clients=closed_qa,summarization,open_qa", "federation.rounds=1")  # fmt: skip
    whole = run_small(*some)
    names = [found.client for found in kept_adapters(whole.path) if found.client]
    assert names == ["closed_qa", "open_qa"]
    at = lambda event: event["event"] == "phase" and event["arm"] == "centralised"  # noqa: E731
    folder = stopped(small_config(*some), tmp_path, at)
    assert (folder / "arms/local").is_dir() and not (folder / "arms/centralised").exists()
    experiment.resume(folder)
    assert bytes_of(folder) == bytes_of(whole.path)


def test_the_estimate_counts_what_is_kept(small_config):
    few, many = (plan(small_config(f"evaluation.keep_local={kept}")) for kept in (0, "all"))
    assert many.disk_bytes - few.disk_bytes == 8 * 4 * few.adapter_parameters
