"""`shepherd privacy plan`: what it prints as text and as JSON, and what it refuses."""

from __future__ import annotations

import json
import math
import sys

import pytest

from console import Shell
from shepherd.cli.privacy import PLANS_ONLY
from shepherd.experiment.privacy_plan import BREAKING, NOT_COVERED, plan_privacy
from shepherd.server.methods import build_method

PLAN = ("privacy", "plan", "--clients=1000", "--per-round=50", "--rounds=20", "--delta=1e-4")
BREAK = {"fedex_lora", "fedmomentum", "flora", "florist", "flexlora", "raflora", "lora_fair", "hetlora", "fedrot_lora"}
"""Methods whose next model is no function of the weighted sum of the updates."""


@pytest.fixture
def shell(capsys, monkeypatch) -> Shell:
    return Shell(capsys, monkeypatch)


def plan(**changed):
    usual = {"clients": 1000, "per_round": 50, "rounds": 20, "delta": 1e-4, "noise": 2.0}
    return plan_privacy(**{**usual, **changed})


def test_the_plan_as_text_names_epsilon_unit_relation_accountant_methods_and_what_is_not_covered(shell):
    done = shell(*PLAN, "--noise=2")
    found = plan()
    assert (done.status, done.err) == (0, "")
    parts = (
        "1,000 clients, 50 a round, 20 rounds", f"{found.epsilon:.4g} at delta = 0.0001",
        f"(PLD {found.epsilon_pld:.5g}, RDP {found.epsilon_rdp:.5g})", "q = 0.05", "unit              client",
        "REPLACE_SPECIAL", "PLD of dp-accounting", "Signal is doubtful, at best with fed_sb, ravan.", "Not covered",
        PLANS_ONLY,
    )  # fmt: skip
    assert [part for part in parts if part not in done.out] == [], done.out
    lines = {words[0]: words[1:] for line in done.out.splitlines() if (words := line.split())}
    assert all(lines[method.name][:2] == [f"{method.values:,.0f}", f"{method.noise_over_clip:.3g}"]
               for method in found.methods)  # fmt: skip
    text = " ".join(done.out.split())
    assert [words for words in (*BREAKING, *NOT_COVERED) if words not in text] == []


def test_the_plan_as_json_is_the_plan(shell):
    done = shell(*PLAN, "--epsilon=0.3", "--json")
    found = json.loads(done.out)
    assert done.status == 0
    assert 0.3 - 1e-3 < found["epsilon"] <= 0.3 < found["epsilon_rdp"]
    again = plan(noise=found["noise_multiplier"])
    assert (again.epsilon, again.epsilon_rdp, again.sampling_rate) == (
        found["epsilon"], found["epsilon_rdp"], found["sampling_rate"])  # fmt: skip
    assert [method["name"] for method in found["methods"]] == [method.name for method in again.methods]
    assert found["unit"] and found["relation"] and found["accountant"] == "PLD" and found["not_covered"]
    assert found["noise_is_added"] is True, "by a recipe with [privacy]"


def test_an_infinite_epsilon_is_null_in_json_and_said_in_words(shell):
    done = shell(*PLAN, "--noise=0", "--json")
    assert done.status == 0 and json.loads(done.out)["epsilon"] is None
    assert "warning: a noise multiplier of 0 is no privacy" in done.err
    assert "inf at delta" in shell(*PLAN, "--noise=0").out


def test_the_methods_that_break_the_guarantee_are_those_of_the_sum_law():
    methods = plan().methods
    assert {method.name for method in methods if method.breaks} == BREAK
    assert {method.name for method in methods if not build_method(method.name).linear} == BREAK
    assert {method.name for method in methods if method.signal == "none"} == BREAK and len(methods) == 22


@pytest.mark.parametrize(("clients", "per_round", "rounds", "noise", "ratios"), [
    (100, 5, 20, 0.4492, {"fedit": 61, "ffa_lora": 39, "fed_sb": 5.6}),
    (10_000, 100, 500, 0.6763, {"fedit": 4.6, "ffa_lora": 2.9, "fed_sb": 0.42}),
])  # fmt: skip
def test_noise_over_clip_is_that_of_the_design(clients, per_round, rounds, noise, ratios, monkeypatch):
    monkeypatch.setattr("shepherd.experiment.privacy_plan.epsilons", lambda *_: plan_of_no_account())
    found = {m.name: m for m in plan(clients=clients, per_round=per_round, rounds=rounds, noise=noise).methods}
    assert {name: float(f"{found[name].noise_over_clip:.2g}") for name in ratios} == ratios
    expected = {name: "yes" if r <= 1 else "doubtful" if r <= math.sqrt(rounds) else "no" for name, r in ratios.items()}
    assert {name: found[name].signal for name in ratios} == expected


def plan_of_no_account():
    from shepherd.updates.privacy.accountant import Epsilons

    return Epsilons(1.0, 2.0)


def test_a_federation_without_signal_is_told_from_one_with(shell, monkeypatch):
    monkeypatch.setattr("shepherd.experiment.privacy_plan.epsilons", lambda *_: plan_of_no_account())
    small = ("privacy", "plan", "--clients=100", "--per-round=5", "--rounds=4", "--delta=1e-3")
    assert "Expect no signal: with every method the noise is larger than all updates" in shell(*small, "--noise=1").out
    assert "There is signal with fed_sb, ravan." in shell(*small, "--noise=0.06").out


REFUSED = {
    "per-round = 101 is more than the 100 clients": ("--per-round=101", "--noise=1"),
    "per-round = 0: at least one client": ("--per-round=0", "--noise=1"),
    "clients = 0: a federation has at least one client": ("--clients=0", "--noise=1"),
    "rounds = 0: there is nothing to account for": ("--rounds=0", "--noise=1"),
    "rounds = 1000001 is more than the 1,000,000": ("--rounds=1000001", "--noise=1"),
    "delta = 0 is not between 0 and 1": ("--delta=0", "--noise=1"),
    "delta = 1 is not between 0 and 1": ("--delta=1", "--noise=1"),
    "delta = nan is not between 0 and 1": ("--delta=nan", "--noise=1"),
    "noise and epsilon are both given": ("--noise=1", "--epsilon=8"),
    "neither noise nor epsilon is given": (),
    "noise = -1: a noise multiplier is a number from 0 on": ("--noise=-1",),
    "noise = inf: a noise multiplier": ("--noise=inf",),
    "noise = 1e+07 is more than 1,000,000, which covers everything": ("--noise=1e7",),
    "clients = 1,000,000,000,001 is more than a federation can have": (f"--clients={10**12 + 1}", "--noise=1"),
    "clients = 10,000,000,000,000,000,": (f"--clients={10**400}", "--delta=0", "--noise=1"),
    "epsilon = 0: no noise reaches it": ("--epsilon=0",),
    "epsilon = -2: no noise reaches it": ("--epsilon=-2",),
    "epsilon = inf: it is no bound": ("--epsilon=inf",),
    "epsilon = 1e-09 is reached by no noise": ("--epsilon=1e-9", "--per-round=100", "--delta=1e-15"),
    "epsilon = 1e+06 asks for almost no noise": ("--epsilon=1e6",),
}


@pytest.mark.parametrize("words", REFUSED)
def test_numbers_that_are_no_plan_are_refused(words, shell):
    usual = {"--clients": "100", "--per-round": "5", "--rounds": "20", "--delta": "1e-3"}
    options = {**usual, **dict(option.split("=") for option in REFUSED[words])}
    done = shell("privacy", "plan", *(f"{name}={value}" for name, value in options.items()))
    assert (done.status, done.out) == (2, "") and f"error: {words}" in done.err and "hint: " in done.err, done.err


def test_all_mistakes_are_named_at_once(shell):
    done = shell("privacy", "plan", "--clients=5", "--per-round=9", "--rounds=0", "--delta=2")
    assert done.status == 2 and all(
        word in done.err for word in ("per-round = 9", "rounds = 0", "delta = 2", "neither")
    )


def test_delta_has_no_default(shell):
    done = shell("privacy", "plan", "--clients=5", "--per-round=1", "--rounds=1", "--noise=1")
    assert done.status == 2 and "Missing option '--delta'" in done.err


@pytest.mark.parametrize(("delta", "warning"), [
    (0.02, "delta = 0.02 is more than 1/N = 0.01"), (0.005, "delta = 0.005 is weak for 100 clients"), (0.001, ""),
])  # fmt: skip
def test_a_delta_that_is_large_for_the_clients_is_warned_of(delta, warning, shell):
    done = shell("privacy", "plan", "--clients=100", "--per-round=5", "--rounds=2", "--noise=3", f"--delta={delta}")
    assert done.status == 0 and (warning in done.err if warning else done.err == "")


def test_an_epsilon_that_is_hardly_a_guarantee_is_warned_of(shell):
    done = shell("privacy", "plan", "--clients=100", "--per-round=100", "--rounds=9", "--noise=0.5", "--delta=1e-3")
    assert done.status == 0 and "warning: epsilon = 3" in done.err and "is hardly a guarantee" in done.err


def test_a_missing_extra_is_answered_with_its_install_line_after_the_mistakes(shell, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    assert "noise = -1" in shell(*PLAN, "--noise=-1").err
    done = shell(*PLAN, "--noise=1.75")
    assert done.status == 2 and "hint: pip install 'shepherd-fedit[dp]'" in done.err
