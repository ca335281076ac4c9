"""An audit of a run whose clients drew the rows of their steps in secret: nobody knows which rows were trained on."""

from __future__ import annotations

import json

import pytest

from shepherd.errors import UsageError
from shepherd.experiment.audit import AuditOptions, audit_run

RUN = (
    "partition.name=iid", "partition.clients=4", "federation.rounds=1", "federation.clients_per_round=1",
    "data.held_out_per_category=100", "data.rows_per_category=0", "training.batch_size=2", "training.local_steps=1",
    "evaluation.arms=base,federated", "evaluation.generate=0", "privacy.unit=example", "privacy.clip=0.5",
    "privacy.noise_multiplier=2", "privacy.delta=0.01", "privacy.audit.canaries=2", "privacy.audit.copies=[0,2]",
)  # fmt: skip
OPTIONS = AuditOptions(candidates=20)


@pytest.fixture(scope="module")
def path(run_small, tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"instruction": f"count {i}", "response": f"{i} sheep", "category": "a"} for i in range(208)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_small(f"data.source={file}", *RUN).path


def test_all_rows_of_clients_that_took_part_and_no_others_stand_for_those_trained_on(path):
    found = audit_run(path, ["exposure", "membership"], OPTIONS)
    assert found["membership"]["inside"] == 27 and found["membership"]["outside"] == 100
    assert "which rows a step drew is secret" in found["membership"]["compared"]["rows"]
    assert [code["times_trained"] for code in found["exposure"]["codes"]] == [None, None]


def test_an_update_of_rows_drawn_in_secret_is_not_trained_again(path):
    with pytest.raises(UsageError, match="draws rows and noise of its steps in secret"):
        audit_run(path, ["tokens"], OPTIONS)
