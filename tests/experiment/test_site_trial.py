"""What a federation on one machine is made of: rows as files, processes that end, the card in plain words."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from shepherd.data.sources import load_examples
from shepherd.errors import DataError
from shepherd.experiment.run_card import run_card
from shepherd.experiment.sites import trial
from shepherd.experiment.sites.card_text import card_lines
from shepherd.federation.cards import Policy
from shepherd.federation.privacy_card import TRUST, PrivacyCard
from shepherd.recipe import load
from shepherd.types import Example, Message
from shepherd.updates.privacy.accountant import Rounds, epsilons

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def test_the_rows_of_a_recipe_are_divided_by_its_partition_and_read_again_as_they_were(tmp_path):
    rows = trial.divided(load("demo", ["data.rows_per_category=4"]), 3)
    assert list(rows) == ["site-1", "site-2", "site-3"]
    file = tmp_path / "rows.jsonl"
    for examples in rows.values():
        file.write_text("".join(trial.line_of(example) for example in examples), encoding="utf-8")
        again = load_examples(str(file)).examples
        known = [(e.messages, e.category, e.context, e.tools) for e in examples]
        assert [(e.messages, e.category, e.context, e.tools) for e in again] == known
    turns = (Message("system", "Be brief."), Message("user", "Hello?"), Message("assistant", "Hello."))
    for example in (Example("a", turns, "x"), Example("b", (Message("text", "A plain line."),), "y")):
        file.write_text(trial.line_of(example), encoding="utf-8")
        (again,) = load_examples(str(file)).examples
        assert (again.messages, again.category) == (example.messages, example.category)
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a", "b"):
        (two / f"{name}.jsonl").write_text('{"instruction": "What?", "output": "That."}\n' * 4)
    with pytest.raises(DataError, match="2 files are 2 clients, not 3"):
        trial.divided(load("own-data", [f"data.source={two}", "partition.name=files"]), 3)


def is_alive(process: int) -> bool:
    """Whether a process does more than wait to be collected."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for_end(processes: list[int]) -> None:
    """Return when none is alive: a signal takes its moment."""
    while any(map(is_alive, processes)):
        time.sleep(0.02)


def pids(log: Path) -> list[int]:
    while not (text := log.read_text()).endswith("\n"):
        time.sleep(0.02)
    return [int(word) for word in text.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="federations of sites need Linux")
def test_processes_end_with_the_block_whatever_they_ignore_and_with_their_parent_whatever_ends_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(trial, "PATIENCE", 0.2)
    with suppress(KeyboardInterrupt), trial.processes({"a": [sys.executable, "-c", STUBBORN]}, tmp_path):
        found = pids(tmp_path / "a.log")
        assert all(map(is_alive, found))
        raise KeyboardInterrupt
    wait_for_end(found)

    child = os.fork()
    if not child:  # a coordinator that is killed
        with trial.processes({"b": [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); "
                                    "time.sleep(600)"]}, tmp_path):  # fmt: skip
            pids(tmp_path / "b.log")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    wait_for_end(pids(tmp_path / "b.log"))


def test_a_card_in_plain_words_names_what_leaves_and_what_the_policy_keeps_back():
    config = load(None, ["run.name=demo", "objective.scaffold=true", "training.optimizer=sgd",
                         "personalization.name=finetune"])  # fmt: skip
    card = run_card(config, "a1", base="b" * 64, tokenizer="c" * 64, parameters=2_000_000)
    lines = card_lines(card, Policy(min_rows_tell=500, categories="shown"), "/data/rows.jsonl")
    text = "\n".join(f"{what}: {words}" for what, words in lines).replace("\N{NO-BREAK SPACE}", " ")
    for words in (
        "about 8.00 MB", "as 500 where it is smaller", "over at least 10 rows, by category, with the names",
        "a control variate (SCAFFOLD)", "finetune: made of your rows, kept on this machine",
        "the rows in /data/rows.jsonl: texts, answers, ids, paths",
    ):  # fmt: skip
        assert words in text, text
    table = PrivacyCard(unit="client", clip=0.5, noise_multiplier=2.0, delta=1e-3, sites=10, sampling_rate=0.25,
                        drawn_by="coordinator", trust=TRUST["client"])  # fmt: skip
    found = dict(card_lines(card.model_copy(update={"privacy": table}), Policy(), ""))
    assert "2.5 of 10 sites on average" in found["method"]
    epsilon = epsilons([Rounds(0.25, 2.0, card.federation.rounds)], 1e-3).least
    said = (
        f"delta = 0.001, epsilon = {epsilon:.4g} by this site's accountant, for all rounds. The coordinator is trusted"
    )
    assert f"noise multiplier 2, q = 0.25, {said}" in found["protection"] and "NOT private" not in found["protection"]
    test = card.model_copy(update={"privacy": table.model_copy(update={"noise": "repeatable"})})
    assert (
        "NOT private, a test: the noise can be computed by others."
        in dict(card_lines(test, Policy(), ""))["protection"]
    )
    own = run_card(load(None, ["data.held_out_source=builtin:instructions", "data.held_out_per_category=0"]), "a1",
                   base="b" * 64, tokenizer="c" * 64, parameters=1)  # fmt: skip
    assert ("", "no measure: the coordinator has held-out rows") in card_lines(own, Policy(), "")
