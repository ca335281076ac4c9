"""Adapters of a run by name: what is there is found and listed, what is not is refused with how to keep it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from shepherd.errors import ModelError, UsageError
from shepherd.model.adapter import fresh_adapter, save_adapter
from shepherd.store import RunDirectory
from shepherd.store.adapters import ArmName, arm_name, find_adapter, kept_adapters

CLIENTS = {"anna": "anna", "client-001": "Bert: ward 3@night", "cleo": "cleo", "dora": "dora", "emil": "emil"}


def adapter(seed: int):
    return fresh_adapter({"q": (3, 2)}, 1, 1.0, seed)


@pytest.fixture(scope="module")
def kept_run(tmp_path_factory) -> Path:
    """A run of four arms and two rounds, with the adapters of two of the three clients that trained alone."""
    store = RunDirectory.create(tmp_path_factory.mktemp("adapters"), "run")
    store.write_text("config.toml", '[evaluation]\narms = ["base", "federated", "local", "my_lab:centralised"]\n')
    store.write_json("partition.json", {"clients": {c: [] for c in CLIENTS}, "labels": CLIENTS})
    for number in (1, 2):
        with store.commit_round(number, {"round": number, "held_out_loss": None}) as folder:
            save_adapter(folder, adapter(number), base_name="b")
    with store.commit_folder("adapter") as folder:
        save_adapter(folder, adapter(3), base_name="b")
    with store.commit_folder("arms/centralised") as folder:
        save_adapter(folder, adapter(4), base_name="b")
    with store.commit_folder("arms/local") as folder:
        failed = {"client": "emil", "round": 1, "code": "diverged", "detail": "the loss became nan"}
        names = {"names": ["anna", "client-001", "cleo"], "failures": [failed]}
        (folder / "arm.json").write_text(json.dumps(names))
        for number, client in enumerate(("anna", "client-001"), 5):
            save_adapter(folder / "adapters" / client, adapter(number), base_name="b")
    return store.path


@pytest.fixture
def run(kept_run, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(kept_run, tmp_path / "run"))


def test_every_adapter_of_a_run_is_listed_by_a_name_that_finds_it(run):
    kept = kept_adapters(run)
    names = [found.name(run) for found in kept]
    alone = ["local/anna", "local/Bert: ward 3@night"]
    assert names == [str(run), *(f"{run}:{arm}" for arm in ("centralised", *alone)), f"{run}@1", f"{run}@2"]
    assert [find_adapter(name) for name in names] == list(kept)
    assert find_adapter(f"{run}:federated") == find_adapter(run) == find_adapter(ArmName(run)) == kept[0]
    assert find_adapter(f"{run}:local/client-001") == kept[3], "a client is named by its id, too"
    assert kept[3].folder == run / "arms/local/adapters/client-001" and kept[3].client == "client-001"
    assert kept_adapters(run / "none") == ()


def test_a_name_is_taken_apart_where_its_run_ends(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "a:b@2"
    odd.mkdir()
    assert arm_name(odd) == ArmName(odd) and arm_name(f"{odd}@7") == ArmName(odd, round=7)
    assert arm_name("run:local/x:y@3") == ArmName(Path("run"), "local", "x:y@3")
    assert arm_name("gone:local/x/y") == ArmName(Path("gone"), "local", "x/y")
    assert arm_name("gone@12") == ArmName(Path("gone"), round=12) and arm_name("gone@x") == ArmName(Path("gone@x"))
    assert arm_name(r"C:\runs\gone") == ArmName(Path(r"C:\runs\gone"))
    assert arm_name(r"C:\runs\gone:centralised") == ArmName(Path(r"C:\runs\gone"), "centralised")
    for name in ("run", "run@3", "run:centralised", "run:local/anna"):
        assert str(arm_name(name)) == name


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        (":local/cleo", "the adapter of this client was not kept", "--set evaluation.keep_local=cleo keeps it, =all"),
        (":local/dora", "evaluation.local_clients left it out", "evaluation.local_clients=all --set evaluation.keep_l"),
        (":local/emil", "the training of this client failed: the loss became nan", "run:local/anna"),
        (":local/ana", "has no client 'ana'. Did you mean 'anna'?", "run:local/anna, "),
        (":local/../../centralised", "has no client '../../centralised'", "kept: "),
        (":local", "is one model per client, so it needs a client", "run:local/Bert: ward 3@night"),
        (":centralised/anna", "the centralised arm has one model, not one per client", "run:centralised"),
        (":federated/anna", "the federated arm has one model, not one per client", "run:local/anna"),
        (":base", "is the bare base, which has no adapter", "--compare base"),
        (":centralized", "has no arm 'centralized'. Did you mean 'centralised'?", "federated, local, centralised"),
        (":", "has no arm ''", "it has federated"),
        (":..", "has no arm '..'", "it has federated"),
        ("@3", "has no checkpoint of round 3", "rounds with a checkpoint: 1, 2"),
    ],
)
def test_what_a_run_does_not_hold_is_refused_with_what_it_holds(name, message, hint, run):
    with pytest.raises(UsageError) as caught:
        find_adapter(f"{run}{name}")
    assert message in caught.value.message and hint in caught.value.hint


def test_an_arm_that_was_not_trained_says_how_to_get_it(run):
    (run / "config.toml").write_text('[evaluation]\narms = ["base", "federated", "local"]\n')
    (run / "arms/local").rename(run / "gone")
    with pytest.raises(UsageError, match="did not get as far as the local arm") as caught:
        find_adapter(f"{run}:local/anna")
    assert caught.value.hint.startswith("shepherd resume ")
    assert find_adapter(f"{run}:centralised"), "its folder is there, whatever the recipe names"
    (run / "arms/centralised").rename(run / "gone too")
    with pytest.raises(UsageError, match=r"has no centralised arm: evaluation\.arms does not name it") as caught:
        find_adapter(f"{run}:centralised")
    assert "--set evaluation.arms=base,federated,local,centralised" in caught.value.hint


@pytest.mark.parametrize("name", [":centralised", ":local/anna", "", "@1"])
def test_a_flipped_bit_is_named_and_that_of_another_client_does_not_matter(name, run):
    place = find_adapter(f"{run}{name}").folder
    file = place / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(ModelError, match=r"is damaged: .*adapter_model"):
        find_adapter(f"{run}{name}")
    assert find_adapter(f"{run}:local/client-001")
