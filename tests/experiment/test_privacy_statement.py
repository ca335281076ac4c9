"""The statement of a run's guarantee: from the lines of its ledgers, whatever the recipe has by then."""

from __future__ import annotations

from dataclasses import replace

from shepherd.experiment.example_privacy import example_statement
from shepherd.experiment.privacy_account import statement
from shepherd.report.guarantee import guarantee_sentence
from shepherd.updates.privacy.accountant import Rounds
from shepherd.updates.privacy.client_level import ClientLevel
from shepherd.updates.privacy.example_account import ExampleAccounts, ExampleRelease
from shepherd.updates.privacy.example_level import ExampleLevel
from shepherd.updates.privacy.ledger import Ledger, Release

NOW = ClientLevel(tuple(f"c{i}" for i in range(2000)), 0.02, 300.0, 0.5, 1e-4)
"""The mechanism of the recipe with which a run was forced to go on."""


def test_clients_rate_noise_and_its_source_are_those_of_the_lines():
    line = Release(1, 1, 1000, 0.05, 200.0, 0.5)
    said = statement(NOW.with_ledger(Ledger([line])))
    assert (said["clients"], said["sampling_rate"], said["noise_multiplier"]) == (1000, 0.05, 200.0)
    assert said["noise"] == "secret" and not said["adaptive_clip"]
    other = replace(line, clients=2000, noise_multiplier=300.0, noise="repeatable", count_noise=2.5)
    said = statement(NOW.with_ledger(Ledger([other, line])))
    assert (said["clients"], said["sampling_rate"], said["noise_multiplier"]) == ([1000, 2000], 0.05, [200.0, 300.0])
    assert said["noise"] == "repeatable" and said["adaptive_clip"] and not said["private"]
    sentence = guarantee_sentence(said).replace("\N{NO-BREAK SPACE}", " ")
    assert "N = 1,000 to 2,000, q = 0.05, z = 200 to 300," in sentence
    assert statement(NOW)["clients"] == 2000, "no line yet"


def test_noise_and_clip_of_the_steps_of_rows_are_those_of_the_lines():
    line = ExampleRelease("a", 1, 1, 100, 0.1, 5, 200.0, 0.5)
    ledgers = {"a": Ledger([line, replace(line, round=2, noise_multiplier=300.0)]), "b": Ledger()}
    planned = dict.fromkeys(ledgers, Rounds(0.1, 400.0, 5))
    level = ExampleLevel(1.0, 400.0, 1e-3, planned, accounts=ExampleAccounts(1e-3, 0.0, ledgers.__getitem__))
    said = example_statement(level)
    assert (said["noise_multiplier"], said["clip"], said["noise"]) == ([200.0, 300.0], 0.5, "secret")


def test_a_run_whose_noise_was_not_there_all_the_time_is_told_from_one_that_never_had_it():
    def why(*noise: float) -> str:
        lines = [Release(1, number, 100, 0.05, z, 0.5) for number, z in enumerate(noise, 1)]
        return guarantee_sentence(statement(NOW.with_ledger(Ledger(lines)))).partition(" Differential")[0]

    assert why(0.0) == "Not private: it ran without noise."
    assert why(0.0, 200.0) == "Not private: a part of its rounds ran without noise."
    assert why(0.001) == "Not private: its noise is too little for a bound of epsilon."
