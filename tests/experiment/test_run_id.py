"""A run has an id of its own: messages of another run of the same name do not count, and a resumed run keeps it. Nor do
messages count whose sender has another tokenizer."""

from __future__ import annotations

import json

import pytest

from shepherd.engines.local import LocalEngine
from shepherd.errors import ClientError
from shepherd.experiment import run as experiment
from shepherd.model.digest import tokenizer_digest
from shepherd.types import ClientUpdate
from shepherd.updates.wire import Envelope, Sealed, pack
from stopped_runs import Stop, after_round, stop_at, stopped

JUST_ROUNDS = ("federation.rounds=2", "evaluation.arms=base,federated", "evaluation.generate=0")


def id_of(folder) -> str:
    return json.loads((folder / "identity.json").read_text())["run"]


@pytest.fixture
def sealing(monkeypatch, model_folder):
    """sealing(id): from now on clients send messages of the run with this id, as a worker or a site would."""
    train, ours = LocalEngine.train, tokenizer_digest(model_folder())

    def seal(run, tokenizer=ours):
        def sealed(self, task, *rest):
            for answer in train(self, task, *rest):
                assert isinstance(answer, ClientUpdate)
                adapter = task.views[answer.client].adapter
                says = Envelope(run, f"n-{task.round}", adapter.base_digest, tokenizer, adapter.r, adapter.scale)
                yield Sealed(answer.client, pack(answer, says), answer.private)

        monkeypatch.setattr(LocalEngine, "train", sealed)

    return seal


def test_an_update_of_another_run_of_the_same_name_is_refused_and_the_adapter_does_not_depend_on_the_id(
    small_config, tmp_path, sealing
):
    config = small_config(*JUST_ROUNDS)
    runs = [experiment.run(config, out_dir=tmp_path / where) for where in "ab"]
    first, second = (id_of(run.path) for run in runs)
    assert runs[0].path.name == runs[1].path.name and first != second and len(first) == 32
    assert runs[0].summary["adapter_sha256"] == runs[1].summary["adapter_sha256"]
    sealing(first)
    with pytest.raises(ClientError) as caught:
        experiment.run(config, out_dir=tmp_path / "c")
    assert caught.value.exit_code == 6
    lines = caught.value.message.splitlines()
    assert lines[0] == "round 1: 0 usable updates, 1 needed" and len(lines) == 9
    assert all(line.endswith(": other-run: the update belongs to another run") for line in lines[1:])


@pytest.mark.parametrize("force", [False, True])
def test_a_resumed_run_keeps_its_id_so_that_messages_sent_before_still_count(small_config, tmp_path, sealing, force):
    config = small_config(*JUST_ROUNDS)
    whole = experiment.run(config, out_dir=tmp_path / "whole")
    folder = stopped(config, tmp_path / "stopped", after_round(1))
    if force:
        path = folder / "config.toml"
        path.write_text(path.read_text().replace("learning_rate = 0.01", "learning_rate = 0.02"))
    before = id_of(folder)
    sealing(before)
    again = experiment.resume(folder, force=force)
    assert id_of(folder) == before != id_of(whole.path) and bool(again.summary["forced"]) == force
    assert (again.summary["adapter_sha256"] == whole.summary["adapter_sha256"]) != force


def test_a_resumed_run_refuses_the_messages_of_another(small_config, tmp_path, sealing):
    folder = stopped(small_config(*JUST_ROUNDS), tmp_path, after_round(1))
    sealing(folder.name)  # its name is not its id
    with pytest.raises(ClientError, match="other-run"):
        experiment.resume(folder)


def test_a_run_from_before_there_were_ids_takes_no_message_of_anybody(small_config, tmp_path, sealing):
    folder = stopped(small_config(*JUST_ROUNDS, "federation.rounds=3"), tmp_path, after_round(1))
    identity = json.loads((folder / "identity.json").read_text())
    del identity["run"]
    (folder / "identity.json").write_text(json.dumps(identity))
    with pytest.raises(Stop):
        experiment.resume(folder, observer=stop_at(after_round(2)))
    for id in ("", "None", folder.name):
        sealing(id)
        with pytest.raises(ClientError, match="other-run"):
            experiment.resume(folder)


@pytest.mark.parametrize("theirs", ["", "0" * 64])
def test_an_update_made_with_another_tokenizer_on_the_same_base_is_refused(small_config, tmp_path, sealing, theirs):
    folder = stopped(small_config(*JUST_ROUNDS), tmp_path, after_round(1))
    sealing(id_of(folder), theirs)
    with pytest.raises(ClientError, match=r"tokenizer: another tokenizer or chat template than [0-9a-f]{12}$"):
        experiment.resume(folder)
    sealing(id_of(folder))
    assert experiment.resume(folder).summary["rounds"] == 2
