"""`shepherd privacy audit`: what it prints as text and as JSON, and its statuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from console import Shell
from shepherd.experiment import audit


@pytest.fixture
def shell(capsys, monkeypatch) -> Shell:
    return Shell(capsys, monkeypatch)


@pytest.fixture(scope="module")
def planted(run_small) -> Path:
    """A finished run with canaries and 16 held-out rows; its audits are written over each other."""
    return run_small("privacy.audit.canaries=2", "privacy.audit.copies=[0,2]", "evaluation.arms=base,federated").path


def test_it_prints_what_was_found_beside_baselines_and_what_was_left_out(shell, planted):
    done = shell("privacy", "audit", planted, "--candidates=20")
    assert done.status == 0, done.err
    for words in (
        "20 candidates, at most 4.32, 1.27 by chance", "0 (never trained on)", "most exposed", "by frequency",
        "repeated bit for bit", "left out: membership: 16 rows of the source", "Failures to attack are not proofs",
    ):  # fmt: skip
        assert words in done.out
    assert "exposure: code 2 of 2" in done.err and "code 2 of 2" not in done.out


def test_json_is_the_content_of_audit_json_and_one_attack_can_be_chosen(shell, planted):
    done = shell("privacy", "audit", planted, "--attack=tokens", "--client=closed_qa", "--json")
    found = json.loads(done.out)
    assert found == json.loads((planted / "audit.json").read_text())
    assert found["tokens"]["client"] == "closed_qa" and "exposure" not in found and found["left_out"] == {}


def test_what_a_run_does_not_allow_has_a_status_and_a_sentence(shell, planted, tiny_run, tmp_path, monkeypatch):
    done = shell("privacy", "audit", planted, "--attack=membership")
    assert done.status == 8 and "needs 100" in done.err and "data.held_out_per_category" in done.err
    plain = shutil.copytree(tiny_run.path, tmp_path / "plain")
    done = shell("privacy", "audit", plain, "--attack=exposure")
    assert done.status == 2 and "nothing was planted in this run" in done.err
    done = shell("privacy", "audit", tmp_path / "nowhere")
    assert done.status == 2 and "no run directory" in done.err
    with monkeypatch.context() as patch:
        patch.delitem(audit.ATTACKS, "tokens")
        done = shell("privacy", "audit", plain)
    assert done.status == 2 and "no attack can be carried out on this run:\n  exposure: nothing was planted" in done.err
    assert "  membership: " in done.err and "  release: the run has no client-level differential privacy" in done.err
    (plain / "summary.json").unlink()
    done = shell("privacy", "audit", plain)
    assert done.status == 2 and "has no summary.json" in done.err and "shepherd resume" in done.err
