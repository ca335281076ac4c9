"""Canaries in a run, and the audit that attacks it: what is planted and withheld, what is found, what is refused."""

from __future__ import annotations

import json
import random
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from shepherd.errors import DataError, EvaluationError, ModelError, ShepherdError, UsageError
from shepherd.evaluation.attacks.exposure import chance
from shepherd.experiment.audit import AUDIT, NOT_A_PROOF, NOT_COVERED, AuditOptions, audit_run
from shepherd.experiment.audit_canaries import canary_tokens, candidates, draw_canaries, plant
from shepherd.store.records import read_rounds
from shepherd.types import Example, Message, Partition

WORDS = ["land", "water", "sheep", "morning", "evening", "answer", "weather", "capital", "colours", "short", "count"]
SETTINGS = (
    "partition.name=iid", "partition.clients=2", "data.held_out_per_category=50", "training.local_epochs=3",
    "training.local_steps=0", "training.batch_size=4", "federation.rounds=3", "lora.r=8", "training.learning_rate=2e-2",
    "evaluation.generate=0",
    "evaluation.arms=base,federated", "evaluation.every=0", "data.rows_per_category=0",
)  # fmt: skip
PLANTED = ("privacy.audit.canaries=4", "privacy.audit.copies=[0,12]")
QUICK = AuditOptions(candidates=60)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """A file of 210 rows of two categories."""
    draw = random.Random(0)
    lines = [
        {
            "instruction": f"{number} " + " ".join(draw.choices(WORDS, k=4)),
            "response": " ".join(draw.choices(WORDS, k=4)),
            "category": "ab"[number % 2],
        }
        for number in range(210)
    ]
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def done(run_small, rows):
    """A finished run with canaries; read it, do not write to it."""
    return run_small(f"data.source={rows}", *SETTINGS, *PLANTED)


@pytest.fixture(scope="module")
def attacked(done, tmp_path_factory):
    """(a copy of the run, what an audit of it found); read them, do not write to them."""
    path = Path(shutil.copytree(done.path, tmp_path_factory.mktemp("attacked") / "tiny"))
    return path, audit_run(path, options=QUICK)


@pytest.fixture
def copied(done, tmp_path) -> Path:
    return Path(shutil.copytree(done.path, tmp_path / "tiny"))


# Canaries


def planted(path):
    return json.loads((path / "private" / "canaries.json").read_text())["canaries"]


def test_the_texts_of_canaries_are_withheld_and_stand_nowhere_else(attacked, done):
    path = attacked[0]
    log = path / "private" / "canaries.json"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (log.parent, log)] == [0o700, 0o600]
    texts = [text for row in planted(path) for text in (row["name"], f"code of {row['name']}", row["response"])]
    assert len(texts) == 12
    others = [file for file in path.rglob("*") if file.is_file() and file != log]
    assert {"report.html", "rounds.jsonl", "rows_seen.jsonl", "partition.json", AUDIT} <= {file.name for file in others}
    for file in others:
        content = file.read_bytes()
        assert not [text for text in texts if text.encode() in content], file
    assert not [text for text in texts if text in json.dumps(done.events, default=str)]


def test_copies_are_among_the_training_rows_of_their_clients_and_never_among_held_out_rows(done):
    document = json.loads((done.path / "partition.json").read_text())
    held = {client: [i for i in ids if i.startswith("canary/")] for client, ids in document["clients"].items()}
    assert {client: len(ids) for client, ids in held.items()} == {"client-000": 12, "client-001": 12}
    assert [row["client"] for row in planted(done.path)] == ["", "client-000", "", "client-001"]
    assert not [i for i in document["held_out"] if "canary" in i] and len(document["held_out"]) == 100


def test_without_canaries_no_row_and_no_file_is_added(done, run_small, rows):
    plain = run_small(f"data.source={rows}", *SETTINGS, "federation.rounds=1", "training.local_steps=1")
    assert not (plain.path / "private").exists()
    assert "privacy" not in (plain.path / "config.toml").read_text()
    assert "canaries" not in json.loads((plain.path / "identity.json").read_text())
    there, here = (json.loads((run.path / "partition.json").read_text()) for run in (done, plain))
    ordinary = {c: [i for i in ids if not i.startswith("canary/")] for c, ids in there["clients"].items()}
    assert (ordinary, there["held_out"]) == (here["clients"], here["held_out"])
    with pytest.raises(UsageError, match="nothing was planted in this run"):
        audit_run(plain.path, ["exposure"])


def some_partition():
    examples = {
        f"{client}{i}": Example(f"{client}{i}", (Message("user", "u"), Message("assistant", "a")), client, "file")
        for client in "xy"
        for i in range(3)
    }
    return Partition({c: tuple(i for i in examples if i[0] == c) for c in "xy"}, "d"), examples


def test_canaries_have_the_category_of_their_client_and_go_to_named_clients_alone(small_config):
    config = small_config("privacy.audit.canaries=6", "privacy.audit.copies=[2,0,1]", 'privacy.audit.clients=["y"]')
    partition, examples = some_partition()
    canaries = draw_canaries(config, partition)
    assert [(one.client, one.copies) for one in canaries] == [("y", 2), ("", 0), ("y", 1)] * 2
    assert len({one.name for one in canaries}) == len({one.code for one in canaries}) == 6
    new, after = plant(canaries, partition, examples)
    assert {(row.category, row.source) for row in new} == {("y", "file")}
    assert after.clients["x"] == partition.clients["x"]
    assert after.clients["y"] == partition.clients["y"] + tuple(row.id for row in new) and len(new) == 6


def test_canaries_follow_from_the_seed_of_the_rows_alone(small_config):
    partition, _ = some_partition()

    def drawn(*settings):
        return [one.code for one in draw_canaries(small_config("privacy.audit.canaries=4", *settings), partition)]

    assert drawn("run.seed=1", "data.seed=3") == drawn("run.seed=2", "data.seed=3") != drawn("data.seed=4")


def test_candidates_are_the_code_and_others_that_no_canary_has(small_config):
    partition, _ = some_partition()
    canaries = draw_canaries(small_config("privacy.audit.canaries=100"), partition)
    codes = {one.code for one in canaries}
    found = candidates(canaries[3], canaries, 9000, seed=0)
    assert found[0] == canaries[3].code and len(set(found)) == 9000
    assert not set(found[1:]) & codes
    assert found != candidates(canaries[3], canaries, 9000, seed=1)


def test_a_client_that_is_not_there_is_refused_with_the_nearest(run_small, rows):
    with pytest.raises(UsageError, match=r"privacy.audit.clients names 'client-01'.*Did you mean 'client-001'"):
        run_small(f"data.source={rows}", *SETTINGS, *PLANTED, 'privacy.audit.clients=["client-01"]')


def test_canaries_that_would_be_cut_are_refused(model_folder):
    from shepherd.data.prompts import build_template
    from shepherd.model.base import load_tokenizer

    tokenizer = load_tokenizer(model_folder())
    row = Example("canary/000/0", (Message("user", "x" * 50), Message("assistant", "The access code of A is 0001")))
    with pytest.raises(UsageError, match=r"do not fit into data\.max_length = 32"):
        canary_tokens([row], tokenizer, build_template("auto", tokenizer), 32)


@pytest.mark.parametrize(
    "copies, words", [("[1]", "leaves no code without a copy"), ("[0]", "plants nothing: add a number above 0")]
)
def test_copies_without_a_comparison_or_without_a_canary_are_refused(small_config, copies, words):
    with pytest.raises(UsageError, match=words):
        small_config("privacy.audit.canaries=4", f"privacy.audit.copies={copies}")


# What is found


def test_codes_that_were_trained_on_are_exposed_and_those_that_were_not_are_not(attacked):
    _, found = attacked
    none, many = found["exposure"]["by_copies"]
    assert (none["copies"], many["copies"]) == (0, 12)
    assert many["tuned"] > max(none["tuned"], many["base"]) + 1
    assert found["exposure"]["chance"] == chance(60) and found["exposure"]["most"] == pytest.approx(np.log2(60))
    codes = found["exposure"]["codes"]
    assert [code["times_trained"] for code in codes] == [0, 108, 0, 108]
    assert all(len(code["sha256"]) == 64 for code in codes)


def test_membership_is_found_beside_the_base_that_saw_none_of_the_rows(attacked):
    found = attacked[1]["membership"]
    assert (found["inside"], found["outside"]) == (110, 100)
    low, high = found["base"]["ci95"]
    assert low <= 0.5 <= high
    assert found["difference"]["auc"] > found["base"]["auc"] and found["difference"]["ci95"][0] > 0.5
    assert found["difference"]["within_categories"]["auc"] == pytest.approx(found["difference"]["auc"], abs=0.05)
    assert found["compared"]["categories_apart"] < 0.2 and "split off by category" in found["compared"]["rows"]
    assert set(found["clients"]) == {"client-000", "client-001"}, "both have 20 rows and 100 outsiders"


def test_the_update_of_a_client_is_repeated_bit_for_bit(attacked):
    path, found = attacked
    assert found["tokens"]["replayed_exactly"] is True
    assert found["tokens"]["round"] == 3 and found["tokens"]["attacked"] == "ΔA"
    line = read_rounds(path)[-1]
    client = found["tokens"]["client"]
    assert (found["tokens"]["rows"], found["tokens"]["steps"]) == (line["examples"][client], line["steps"][client])


def test_an_audit_repeats_and_is_written_with_the_report(attacked, copied):
    path, found = attacked
    assert json.loads((path / AUDIT).read_text()) == json.loads(json.dumps(found))
    assert found["notes"] == [NOT_A_PROOF] and set(found["left_out"]) == {"release"} and found["privacy"] is None
    page = (path / "report.html").read_text()
    assert NOT_A_PROOF in page and "Exposure of planted codes" in page and "client-001, own rows" in page
    assert audit_run(copied, options=QUICK) == found


def test_with_privacy_epsilon_stands_beside_what_was_found_and_clients_are_withheld(copied):
    (copied / "privacy.json").write_text('{"epsilon": 3.99, "delta": 1e-4}')
    found = audit_run(copied, options=QUICK)
    assert found["privacy"] == {"epsilon": 3.99, "delta": 1e-4} and found["notes"] == [NOT_A_PROOF, NOT_COVERED]
    page, shown = (copied / "report.html").read_text(), json.loads((copied / AUDIT).read_text())
    assert "ε = 3.990 at δ = 0.0001" in page and NOT_COVERED in page
    assert {"membership", "tokens"} <= found.keys() and not {"membership", "tokens"} & shown.keys()
    assert set(shown["left_out"]) == {"membership", "tokens", "release"} and "private/audit.json" in page
    assert all("private/audit.json" in why for why in shown["left_out"].values())
    assert "client-00" not in json.dumps(shown) and shown["exposure"]["by_copies"] == found["exposure"]["by_copies"]
    withheld = copied / "private" / AUDIT
    assert json.loads(withheld.read_text()) == found and stat.S_IMODE(withheld.stat().st_mode) == 0o600


def test_a_run_that_withholds_who_trained_is_audited_by_all_rows_of_its_clients(copied):
    lines = [json.loads(line) for line in (copied / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        for key in ("examples", "unused_examples", "train_loss", "update_norm", "cohort"):
            line.pop(key)
    (copied / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    from shepherd.experiment.audit import open_audited
    from shepherd.experiment.audit_tokens import attack_tokens
    from shepherd.experiment.rows_seen import rows_trained

    run = open_audited(copied)
    assert rows_trained(lines, run.inputs.data, run.inputs.seed) is None
    found = attack_tokens(run.inputs, copied, lines, 0, "client-001", lambda line: None)
    assert found["replayed_exactly"] is None and found["client"] == "client-001"


# What is refused


def refused(error: type[ShepherdError], words: str, run: Path, *attacks: str, **options) -> None:
    with pytest.raises(error, match=words):
        audit_run(run, attacks, AuditOptions(candidates=60, **options))
    assert not (run / AUDIT).exists()


def test_rows_that_are_gone_or_changed_are_refused(copied, rows, tmp_path):
    config = (copied / "config.toml").read_text()
    (copied / "config.toml").write_text(config.replace(str(rows), str(tmp_path / "gone.jsonl")))
    refused(DataError, "data not found", copied)
    changed = tmp_path / "changed.jsonl"
    changed.write_text(rows.read_text().replace("sheep", "goats"))
    (copied / "config.toml").write_text(config.replace(str(rows), str(changed)))
    refused(EvaluationError, "are not those of the run: digest", copied)


def test_another_seed_or_log_of_canaries_is_refused(copied):
    log = copied / "private" / "canaries.json"
    text = log.read_text()
    log.write_text(text.replace('"copies": 12', '"copies": 11'))
    refused(EvaluationError, "does not name the codes that the run planted", copied)
    log.unlink()
    refused(DataError, "is gone: it says which codes were planted", copied)


def test_another_base_is_refused(copied, model_folder):
    identity = json.loads((copied / "identity.json").read_text())
    (copied / "identity.json").write_text(json.dumps({**identity, "base": "0" * 64}))
    refused(ModelError, "trained on another base: digest 000000000000", copied)


def test_rows_at_sites_are_refused(copied):
    config = (copied / "config.toml").read_text()
    source = next(line for line in config.splitlines() if line.startswith("source = "))
    (copied / "config.toml").write_text(config.replace(source, 'source = "sites:rows"'))
    refused(DataError, "those of this run are at its sites", copied)


def test_attacks_rounds_clients_and_candidates_that_are_not_there_are_refused(copied):
    refused(UsageError, "unknown attack: 'exposur'. Did you mean 'exposure'", copied, "exposur")
    refused(UsageError, "round 9 cannot be trained again", copied, "tokens", round=9)
    refused(UsageError, r"'client-01' has no update in round 3.*Did you mean", copied, "tokens", client="client-01")
    refused(UsageError, "99 rows of each kind: a false positive rate of 1 % needs 100", copied, "membership", rows=99)
    with pytest.raises(UsageError, match="10000 candidates: between 2 and 9,996"):
        audit_run(copied, ["exposure"], AuditOptions(candidates=10_000))


def test_fewer_than_a_hundred_outsiders_are_refused_and_left_out_among_other_attacks(tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run.path, tmp_path / "tiny"))
    refused(EvaluationError, "16 rows of the source were never trained on.* needs 100", run, "membership")
    found = audit_run(run)
    assert set(found["left_out"]) == {"exposure", "membership", "release"} and "tokens" in found
    assert "Left out, membership: 16 rows" in (run / "report.html").read_text()


def test_canaries_do_not_go_with_sites(small_config):
    from shepherd.experiment.run_card import for_sites

    with pytest.raises(UsageError, match=r"privacy\.audit\.canaries plants codes into rows"):
        for_sites(small_config(*PLANTED))
