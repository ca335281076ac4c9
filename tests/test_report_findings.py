"""The sentences of the headline follow from the numbers, and say no more than they do."""

from __future__ import annotations

import pytest

from report_runs import change, write_run
from shepherd.report import compare, findings, load_run
from shepherd.report.conduct import alerts
from shepherd.report.results import cards, measure


def record_with(tmp_path, *entries, losses=None, **options):
    """A run whose measured differences are `entries` (a, b, value, ci95) and whose arms have the given losses."""
    run = write_run(tmp_path / "demo", **options)

    def edit(metrics):
        metrics["differences"] = [{"a": a, "b": b, "difference": v, "ci95": ci, "p": 0.5} for a, b, v, ci in entries]
        for arm, loss in (losses or {}).items():
            if arm == "local":
                metrics["arms"]["local"] = {client: {"loss": value} for client, value in loss.items()}
            else:
                metrics["arms"][arm]["loss"] = loss

    change(run / "evaluation" / "metrics.json", edit)
    return load_run(run)


def test_better_is_said_when_the_whole_interval_is_below_zero(tmp_path):
    record = record_with(tmp_path, ("federated", "local", -0.084, [-0.13, -0.04]))
    assert findings.verdict(record)[0] == (
        "Federated is better than the mean of the clients that trained alone, by 0.084 nats per token "
        "(95\xa0% interval 0.040 to 0.130)."
    )


def test_worse_is_said_as_plainly_as_better(tmp_path):
    record = record_with(tmp_path, ("federated", "local", 0.084, [0.04, 0.13]))
    assert findings.verdict(record)[0].startswith("Federated is worse than the mean of the clients")


@pytest.mark.parametrize("interval", [[-0.02, 0.03], [-0.02, 0.0], [0.0, 0.02]])
def test_nothing_is_claimed_when_the_interval_includes_zero(tmp_path, interval):
    record = record_with(tmp_path, ("federated", "local", 0.005, interval))
    first = findings.verdict(record)[0]
    assert "not distinguishable" in first
    assert "better" not in first and "worse" not in first


def test_a_difference_measured_the_other_way_round_is_turned(tmp_path):
    record = record_with(tmp_path, ("local", "federated", 0.084, [0.04, 0.13]))
    turned = findings.difference(record, "federated", "local")
    assert turned.value == -0.084 and turned.interval == (-0.13, -0.04)
    assert "better" in findings.verdict(record)[0]


def test_without_an_interval_the_sentence_says_that_it_may_be_chance(tmp_path):
    record = record_with(tmp_path, losses={"federated": 2.0, "local": {"a": 2.2, "b": 2.4}})
    # mean alone = (2.2 + 2.4) / 2 = 2.3, so the difference is 2.0 − 2.3 = −0.3
    first = findings.verdict(record)[0]
    assert "by 0.300" in first and "may be chance" in first


def test_the_best_client_alone_is_named_and_compared(tmp_path):
    record = record_with(
        tmp_path,
        ("federated", "local:b", 0.06, [0.01, 0.11]),
        losses={"federated": 2.06, "local": {"a": 2.4, "b": 2.0, "c": 2.8}},
        clients=3,
    )
    assert findings.best_and_worst_local(record) == ("b", "c")
    assert "Federated is worse than the best client alone (b)" in findings.verdict(record)[1]


def test_the_share_of_the_pooled_gain_is_the_ratio_of_the_two_gains_over_the_base(tmp_path):
    record = record_with(
        tmp_path,
        ("federated", "base", -0.3, [-0.4, -0.2]),
        ("federated", "centralised", 0.1, [0.05, 0.15]),
        ("centralised", "base", -0.4, [-0.5, -0.3]),
        losses={"base": 2.6, "federated": 2.3, "centralised": 2.2},
    )
    # gains over the base: federated 2.6 − 2.3 = 0.3, centralised 2.6 − 2.2 = 0.4, share 75 %
    assert any("75\xa0% of the gain" in sentence for sentence in findings.verdict(record))


def test_no_share_of_the_gain_is_given_when_federated_is_not_distinguishable_from_the_base(tmp_path):
    record = record_with(
        tmp_path,
        ("federated", "base", -0.01, [-0.05, 0.03]),
        ("federated", "centralised", 0.1, [0.05, 0.15]),
        losses={"base": 2.6, "federated": 2.59, "centralised": 2.5},
    )
    assert not any("of the gain" in sentence for sentence in findings.verdict(record))


def test_without_local_arms_the_report_does_not_say_that_federating_pays(tmp_path):
    record = load_run(write_run(tmp_path / "demo", arms=("base", "federated")))
    assert "does not show whether federating pays" in findings.verdict(record)[0]


def test_without_a_federated_arm_nothing_is_said_about_federation(tmp_path):
    record = load_run(write_run(tmp_path / "demo", arms=("base", "local")))
    assert findings.verdict(record) == [
        "The federated arm was not part of this run, so nothing is said about what federation brings."
    ]


def test_one_client_alone_is_neither_a_mean_nor_the_best_of_several(tmp_path):
    record = load_run(write_run(tmp_path / "demo", clients=1))
    sentences = " ".join(findings.verdict(record))
    assert "the client that trained alone" in sentences
    assert "best client" not in sentences and "mean of" not in sentences


def test_an_unfinished_run_says_how_far_it_is(tmp_path):
    record = load_run(write_run(tmp_path / "demo", finished=False))
    sentence, hint = findings.verdict(record)
    assert "2 of 3 rounds" in sentence and "follows" not in sentence and "better" not in sentence
    assert "shepherd resume" in hint
    done = load_run(write_run(tmp_path / "done", finished=False, overrides=("federation.rounds=2",)))
    assert "2 of 2 rounds are committed, but not all that follows them" in findings.verdict(done)[0]


def test_the_local_arm_is_the_mean_over_clients_and_its_perplexity_the_exponential_of_that_mean(tmp_path):
    record = record_with(tmp_path, losses={"local": {"a": 2.0, "b": 3.0}})
    local = next(arm for arm in findings.arms(record) if arm.key == "local")
    assert local.loss == 2.5
    assert local.perplexity == pytest.approx(12.182, abs=1e-3)  # e^2.5


@pytest.mark.parametrize("alone", [1, 3])
def test_where_not_all_clients_trained_alone_every_comparison_with_them_says_of_how_many_it_is(tmp_path, alone):
    losses = {name: 2.0 + i for i, name in enumerate("abc"[:alone])}
    record = record_with(tmp_path, losses={"local": losses}, clients=8)
    of = f"{alone} of 8 clients"
    told = [sentence for sentence in findings.verdict(record) if "alone" in sentence]
    assert len(told) == min(alone, 2) and all(f"the {of} that trained alone" in sentence for sentence in told)
    assert any(of in card["extra"] for card in cards(record)) and of in measure(record)
    assert any(of in line for line in alerts(record))
    assert f"mean alone is that of {of}" in compare([record.path]).to_text()
